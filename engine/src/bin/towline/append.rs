//! `towline append`: stdin becomes records in a shard's log.

mod history;
mod input;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use towline::client::policy::parse_policy;
use towline::client::{
    AppendError, AppendOptions, Appender, ClientError, Committed, ConnectOptions, Lost, Outcomes, Submitter, WirePolicy,
};
use towline::wire::message::ErrorCode;
use towline::{ShardId, units};

use crate::exit;
use history::{HistoryError, Recorder};
use input::{Filled, Framing, InputError, Splitter};
use report::{Run, Tally};

/// The longest that outcomes which keep coming are collected into one line.
const LINE_DELAY_MAX: Duration = Duration::from_millis(100);

/// Append records from stdin to a shard and tell what became of them.
///
/// Each line of output tells of a run of records. "committed" means that the commit policy holds
/// for them. "timed out" means that it did not hold in time: the records may be durable and may
/// still be committed, so appending them again may write them twice. Records of one run are in the
/// log in the order of the input.
///
/// After the first refusal, and when the shard stops, no more input is sent, so that the log has no
/// hole.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  every record is committed
  1  stdin, stdout or an argument is at fault (also: stdout was closed, so the input was not read on)
  2  the command line cannot be understood
  3  the outcome of some records is unknown: their deadline passed, or the shard stopped
  4  refused: the node, or the commit policy as things are, does not take the records
  5  the connection was lost; says how many records are committed and how many are unknown
  9  refused: fewer replicas have acknowledged lately than min-replicas of the node asks for

Examples:
  seq 1000 | towline append --to 127.0.0.1:4790 --shard 0
  towline append --to db1:4790 --shard 3 --chunk 64KiB --commit ack_n=2:flushed --deadline 5s < dump")]
pub(crate) struct Args {
    /// The primary's address, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    to: String,

    /// The shard to append to, counted from 0
    #[arg(long, value_name = "K")]
    shard: u32,

    /// One record for each line, without its newline (the default)
    #[arg(long, group = "framing")]
    lines: bool,

    /// A little-endian u32 length in front of each record: for records with newlines in them
    #[arg(long, group = "framing")]
    framed: bool,

    /// Cut stdin into records of SIZE, like 4096 or 64KiB; the last one may be shorter
    #[arg(long, group = "framing", value_name = "SIZE", value_parser = parse_chunk)]
    chunk: Option<usize>,

    /// What a commit waits for: local, ack_n=N[:LEVEL], all[:LEVEL] or majority[:LEVEL], where LEVEL
    /// is received, flushed (if left out) or applied [default: what the shard is configured for]
    #[arg(long, value_name = "POLICY", value_parser = parse_policy)]
    commit: Option<WirePolicy>,

    /// When to call a record timed out, like 200ms or 5s [default: the shard's own limit]
    #[arg(long, value_name = "TIME", value_parser = parse_deadline)]
    deadline: Option<Duration>,

    /// One JSON object for each line of output
    #[arg(long)]
    json: bool,

    /// Write what is appended and what became of it to a new FILE, for `towline verify --history`
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

impl Args {
    fn framing(&self) -> Framing {
        // `lines` is what remains; clap admits one of the three.
        debug_assert!(!(self.lines && self.framed));
        match self.chunk {
            Some(size) => Framing::Chunk(size),
            None if self.framed => Framing::Framed,
            None => Framing::Lines,
        }
    }
}

fn parse_chunk(text: &str) -> Result<usize, String> {
    match units::parse_size(text).map(usize::try_from) {
        Ok(Ok(0)) => Err("a chunk holds at least one byte".to_owned()),
        Ok(Ok(size)) => Ok(size),
        Ok(Err(_)) => Err(format!("`{text}` is too large")),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_deadline(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(Duration::ZERO) => Err(format!("`{text}`: nothing is committed in no time")),
        other => other.map_err(|error| error.to_string()),
    }
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Stdin, or what it holds.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Stdin or stdout cannot be had at all.
    #[error("cannot use {what}: {source}")]
    Handle { what: &'static str, source: io::Error },
    /// Stdout. A closed one is no failure to talk about.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The client did not take a record that the splitter let pass.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Appends stdin. Two threads, because one waits for input while the other waits for outcomes.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = AppendOptions {
        policy: args.commit.unwrap_or(WirePolicy::Default),
        deadline: args.deadline,
        ..AppendOptions::default()
    };
    let appender = match Appender::open(&args.to, args.shard, options, &ConnectOptions::default()) {
        Ok(appender) => appender,
        Err(error) => return Ok(exit::give_up(&error)),
    };
    let recorder = match &args.history {
        None => None,
        Some(path) => match history::ask(&args.to, options.policy) {
            Ok(cluster) => match cluster? {
                Some(cluster) => Some(Arc::new(Recorder::create(path, &cluster, ShardId(args.shard))?)),
                None => {
                    exit::complain(&format!("refused: {} is a replica, it takes no appends; none was sent", args.to));
                    return Ok(ExitCode::from(exit::REFUSED));
                }
            },
            Err(error) => return Ok(exit::give_up(&error)),
        },
    };
    let stdin = owned(&io::stdin()).map_err(|source| Failure::Handle { what: "stdin", source })?;
    let stdout = owned(&io::stdout()).map_err(|source| Failure::Handle { what: "stdout", source })?;
    let splitter = Splitter::new(stdin, args.framing(), appender.record_bytes_max())?;
    let (submitter, outcomes) = appender.split();
    let feeder_recorder = recorder.clone();
    let feeder = thread::spawn(move || feed(splitter, submitter, feeder_recorder.as_deref()));
    let mut report = Report::new(stdout, args.json, recorder);
    let ended = report.all(outcomes);
    let code = report.exit_code(&ended);
    match ended {
        Ended::Lost(lost) => {
            report.lost(&lost);
            Ok(code)
        }
        // The feeder may be waiting for input that never comes: the process's end ends it.
        Ended::Stopped { unsent } => {
            if let Some(failure) = report.history_error.take() {
                return Err(failure.into());
            }
            if let Some(source) = report.output_error.take() {
                return Err(Failure::Output(source));
            }
            if !report.closed {
                let Tally { committed, refused, .. } = report.tally;
                exit::complain(&format!(
                    "stopped there: {committed} records are committed, {refused} are refused, {} have an unknown \
                     outcome, {unsent} that were read were not sent; nothing behind them was",
                    report.tally.unknown()
                ));
            }
            Ok(code)
        }
        Ended::Complete => match feeder.join() {
            Ok(Ok(())) => report.history_error.take().map_or(Ok(code), |failure| Err(failure.into())),
            Ok(Err(failure)) if report.tally.unknown() + report.tally.refused == 0 => Err(failure),
            // Both have to be said, and an unknown outcome is the graver one.
            Ok(Err(failure)) => {
                exit::complain(&failure.to_string());
                Ok(code)
            }
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// A handle of our own: the standard library's would buffer by lines.
fn owned(handle: &impl AsFd) -> io::Result<File> {
    Ok(File::from(handle.as_fd().try_clone_to_owned()?))
}

/// Submits every record. What was collected is sent whenever the input pauses, and at its end, also
/// if that is an error: the records before it are whole.
fn feed(mut splitter: Splitter<File>, mut submitter: Submitter, recorder: Option<&Recorder>) -> Result<(), Failure> {
    // Nothing is sent that the history does not have yet.
    let note = || recorder.map_or(Ok(()), Recorder::write);
    let fed = (|| {
        loop {
            let filled = splitter.fill()?;
            while let Some(record) = splitter.record()? {
                let Some(recorder) = recorder else {
                    submitter.submit(record)?;
                    continue;
                };
                if submitter.sends_before(record.len()) {
                    recorder.write()?;
                }
                recorder.append(record)?;
                recorder.submitted(submitter.submit(record)?);
            }
            match filled {
                Filled::Full => {}
                Filled::Short => {
                    note()?;
                    submitter.flush()?;
                }
                Filled::End => return Ok(()),
            }
        }
    })();
    if let Err(Failure::History(_)) = fed {
        return fed;
    }
    note()?;
    match (fed, submitter.finish()) {
        // The outcomes' side knows of these and tells them better.
        (Err(Failure::Append(AppendError::Lost(_) | AppendError::Finished)), _) => Ok(()),
        (Ok(()), Err(AppendError::Lost(_) | AppendError::Finished)) => Ok(()),
        (Ok(()), finished) => finished.map_err(Failure::from),
        (fed, _) => fed,
    }
}

/// Whether the node ended the connection because it does not take appends from us, like a replica.
fn refused(lost: &Lost) -> bool {
    matches!(*lost.cause, ClientError::Server { code: ErrorCode::Refused, .. })
}

/// How the outcomes came to an end.
enum Ended {
    /// All input is answered.
    Complete,
    /// We stopped: at a refusal or the shard's end, or because nobody reads our output.
    Stopped { unsent: u64 },
    /// The connection is lost.
    Lost(Lost),
}

/// Prints what became of the records.
struct Report {
    out: File,
    json: bool,
    line: String,
    tally: Tally,
    /// Nobody reads our output any more.
    closed: bool,
    output_error: Option<io::Error>,
    recorder: Option<Arc<Recorder>>,
    history_error: Option<HistoryError>,
}

impl Report {
    fn new(out: File, json: bool, recorder: Option<Arc<Recorder>>) -> Self {
        let (line, tally) = (String::new(), Tally::default());
        Self { out, json, line, tally, closed: false, output_error: None, recorder, history_error: None }
    }

    fn count(&mut self, outcome: &Committed) {
        self.tally.count(outcome);
        if let Some(recorder) = &self.recorder {
            recorder.outcome(outcome);
        }
    }

    /// Prints every outcome until there are no more.
    fn all(&mut self, mut outcomes: Outcomes) -> Ended {
        let mut stopping = false;
        loop {
            let first = match outcomes.next_outcome() {
                Ok(Some(first)) => first,
                Ok(None) if stopping => {
                    return Ended::Stopped { unsent: outcomes.submitted().saturating_sub(self.tally.answered()) };
                }
                Ok(None) | Err(AppendError::Finished) => return Ended::Complete,
                Err(AppendError::Lost(lost)) => return Ended::Lost(lost),
                // Only a submitter meets the other errors.
                Err(_) => return Ended::Complete,
            };
            let since = Instant::now();
            let mut run = Run::new(&first);
            self.count(&first);
            while let Some(next) = outcomes.try_next_outcome() {
                self.count(&next);
                if !run.absorb(&next) {
                    self.push(&run);
                    run = Run::new(&next);
                }
                if since.elapsed() > LINE_DELAY_MAX {
                    break;
                }
            }
            self.push(&run);
            self.print();
            let failed = self.closed || self.output_error.is_some() || self.history_error.is_some();
            let done = failed || self.tally.refused + self.tally.undecided > 0;
            if done && !stopping {
                stopping = true;
                outcomes.stop_submitting();
            }
        }
    }

    fn push(&mut self, run: &Run) {
        self.line.push_str(&if self.json { run.json() } else { run.to_string() });
        self.line.push('\n');
    }

    fn print(&mut self) {
        // What is told here stands in the history already.
        if let Some(Err(error)) = self.recorder.as_ref().map(|r| r.write()) {
            self.history_error.get_or_insert(error);
        }
        if !self.closed && self.output_error.is_none() {
            match self.out.write_all(self.line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
                other => self.output_error = other.err(),
            }
        }
        self.line.clear();
    }

    fn lost(&mut self, lost: &Lost) {
        let unknown = lost.unknown_records();
        if self.json && unknown > 0 {
            self.line.push_str(&report::unknown_json(unknown));
            self.line.push('\n');
            self.print();
        }
        let timed_out = match self.tally.unknown() {
            0 => String::new(),
            n => format!("{n} timed out or were cut off (may be durable), "),
        };
        let what = if refused(lost) { "refused" } else { "connection lost" };
        exit::complain(&format!(
            "{what}: {} ({}). {} records are committed, {timed_out}{unknown} have an unknown outcome \
             (they may be committed: appending them again may write them twice), {} that were read were not sent; \
             nothing behind them was",
            lost.cause,
            exit::hint(&lost.cause),
            self.tally.committed,
            lost.unsent,
        ));
    }

    fn exit_code(&self, ended: &Ended) -> ExitCode {
        match ended {
            Ended::Lost(lost) if refused(lost) && self.tally.answered() == 0 => ExitCode::from(exit::REFUSED),
            Ended::Lost(_) => ExitCode::from(exit::LOST),
            _ if self.tally.unknown() > 0 => ExitCode::from(exit::UNKNOWN),
            _ if self.tally.gated > 0 => ExitCode::from(exit::GATED),
            _ if self.tally.refused > 0 => ExitCode::from(exit::REFUSED),
            _ if self.closed => ExitCode::from(exit::FAILED),
            _ => ExitCode::SUCCESS,
        }
    }
}
