//! Histories from files, held against folders.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;
use towline::history::{
    Checker, Event, Examination, Kind, LINE_BYTES_MAX, LOGS_MAX, LineError, LogHead, Refused, Scope, Verdict, parse,
};
use towline::offline::{self, ShardReport, VerifyReport};
use towline::{OpenError, ShardId};

use super::{Args, Failure};

/// Why a history cannot be held against the folders.
#[derive(Debug, Error)]
pub(crate) enum HistoryError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} line {line}, {source}", path.display())]
    Line { path: PathBuf, line: u64, source: LineError },
    #[error("{} line {line}: {source}", path.display())]
    Refused { path: PathBuf, line: u64, source: Refused },
    #[error("{} does not begin with a line like {}", path.display(), Event::Begin { nodes: 3 })]
    Begin { path: PathBuf },
    #[error("{} line {line}: the history begins a second time", path.display())]
    Again { path: PathBuf, line: u64 },
    #[error("{dirs} folders are given, the history is of {nodes} nodes")]
    Folders { dirs: usize, nodes: u8 },
    #[error("{dirs} folders are given, at most {LOGS_MAX} can be compared")]
    TooMany { dirs: usize },
    #[error("{} is of system {found}, the folders in front of it of {expected}", path.display())]
    Systems { path: PathBuf, found: String, expected: String },
}

/// Reads histories.
pub(super) fn read(paths: &[PathBuf], dirs: usize) -> Result<Checker, HistoryError> {
    let mut checker = None;
    let mut nodes = 0;
    for path in paths {
        read_one(path, &mut checker, &mut nodes)?;
    }
    match checker {
        _ if dirs > usize::from(LOGS_MAX) => Err(HistoryError::TooMany { dirs }),
        _ if dirs > usize::from(nodes) => Err(HistoryError::Folders { dirs, nodes }),
        // Each path was read, so one is there.
        None => Err(HistoryError::Folders { dirs, nodes }),
        Some(checker) => Ok(checker),
    }
}

fn read_one(path: &Path, checker: &mut Option<Checker>, nodes: &mut u8) -> Result<(), HistoryError> {
    let failed = |source| HistoryError::Read { path: path.into(), source };
    let mut file = BufReader::with_capacity(256 << 10, File::open(path).map_err(failed)?);
    let mut source = None;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // One byte more than a line may have, and its newline.
        file.by_ref().take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line).map_err(failed)?;
        if line.pop_if(|b| *b == b'\n').is_none() && line.len() <= LINE_BYTES_MAX {
            // The end; or what a writer that was killed left of a line. It writes an append's line
            // whole before it sends the record, so a torn one tells of nothing.
            break;
        }
        let event = parse(&line).map_err(|source| HistoryError::Line { path: path.into(), line: number, source })?;
        let (checker, source) = match (&event, source) {
            (Event::Begin { nodes: n }, None) => {
                let checker = checker.get_or_insert_with(|| Checker::new(*n));
                *nodes = *n;
                let new = checker.source();
                source = Some(new);
                (checker, new)
            }
            (Event::Begin { .. }, Some(_)) => return Err(HistoryError::Again { path: path.into(), line: number }),
            (_, None) => break,
            (_, Some(source)) => match checker.as_mut() {
                Some(checker) => (checker, source),
                None => break,
            },
        };
        let refused = |source| HistoryError::Refused { path: path.into(), line: number, source };
        checker.push(source, &event).map_err(refused)?;
    }
    if source.is_none() { Err(HistoryError::Begin { path: path.into() }) } else { Ok(()) }
}

/// Holds the folders against the history.
pub(super) fn check(checker: &Checker, args: &Args, reports: &[VerifyReport]) -> Result<Verdict, Failure> {
    one_system(args, reports)?;
    let logs = reports.len() as u8;
    let mut examination = checker.examine(Scope { logs, partial: args.partial, converged: args.converged });
    for (log, (dir, report)) in (0..).zip(args.dirs.iter().zip(reports)) {
        for shard in &report.shards {
            // Without a superblock nothing can be read; what was promised there is then missing.
            if shard.system.is_none() {
                continue;
            }
            let authority = serving(reports, shard.shard) == Some(log);
            examine(&mut examination, dir, log, shard, authority)?;
        }
    }
    Ok(examination.finish())
}

fn examine(
    examination: &mut Examination<'_>,
    dir: &Path,
    log: u8,
    shard: &ShardReport,
    authority: bool,
) -> Result<(), OpenError> {
    let shard_id = shard.shard;
    let mut begun = false;
    let read = offline::read_log(dir, shard_id, None, |batch| {
        if !begun {
            begun = true;
            examination.begin_log(LogHead { log, shard: shard_id, start: batch.header().lsn(), authority });
        }
        examination.view(batch);
        ControlFlow::Continue(())
    })?;
    if !begun {
        examination.begin_log(LogHead { log, shard: shard_id, start: read.oldest, authority });
    }
    examination.end_log(read.end);
    Ok(())
}

/// Folders of two systems have nothing to say about each other.
fn one_system(args: &Args, reports: &[VerifyReport]) -> Result<(), HistoryError> {
    let mut expected = None;
    for (dir, report) in args.dirs.iter().zip(reports) {
        for shard in report.shards.iter().filter(|s| !s.system.is_none()) {
            let expected = *expected.get_or_insert(shard.system);
            if shard.system != expected {
                let (found, expected) = (shard.system.to_string(), expected.to_string());
                return Err(HistoryError::Systems { path: dir.clone(), found, expected });
            }
        }
    }
    Ok(())
}

/// The serving primary of a shard: a primary's folder, that of the newest term.
fn serving(reports: &[VerifyReport], shard: ShardId) -> Option<u8> {
    let of_shard = |report: &VerifyReport| {
        let found = report.shards.iter().find(|s| s.shard == shard && !s.system.is_none());
        found.filter(|s| s.name.is_empty()).map(|s| s.term)
    };
    let primaries = (0..).zip(reports).filter_map(|(log, report)| Some((of_shard(report)?, log)));
    primaries.max().map(|(_, log)| log)
}

/// For people.
pub(super) fn to_text(verdict: &Verdict) -> String {
    let mut out = String::new();
    let Verdict { appends, committed, timed_out, refused, unknown, promised, records, .. } = verdict;
    let _ = writeln!(
        out,
        "history: {appends} appends: {committed} committed ({promised} of them still promised), {timed_out} timed out, \
         {refused} refused, {unknown} unknown; the logs hold {records} records"
    );
    for violation in &verdict.violations {
        let _ = writeln!(out, "  VIOLATED  {}: {violation}", violation.kind().name());
    }
    let total: u64 = verdict.counts.iter().sum();
    let shown = verdict.violations.len() as u64;
    if total > shown {
        let _ = writeln!(out, "  and {} more", total - shown);
    }
    let _ = match total {
        0 => writeln!(out, "the logs are what the history says"),
        _ => writeln!(out, "the logs are NOT what the history says: {total} violations"),
    };
    out
}

/// For programs.
pub(super) fn to_json(verdict: &Verdict) -> Value {
    let Verdict { appends, committed, timed_out, refused, unknown, promised, records, .. } = verdict;
    let counts: serde_json::Map<_, _> =
        Kind::ALL.iter().map(|kind| (kind.name().to_owned(), json!(verdict.count(*kind)))).collect();
    let violation = |v: &towline::history::Violation| json!({"kind": v.kind().name(), "text": v.to_string()});
    json!({
        "holds": verdict.holds(),
        "appends": appends,
        "committed": committed,
        "promised": promised,
        "timed_out": timed_out,
        "refused": refused,
        "unknown": unknown,
        "records": records,
        "counts": counts,
        "violations": verdict.violations.iter().map(violation).collect::<Vec<_>>(),
    })
}
