//! `towline-bench compare`: the same work on Towline and on what a user would pick instead.
//!
//! In: the arguments and what is installed. Out: a table, a JSON document (`model`), a page (`html`).
//! `session` runs the groups of commits, `bulk` what is so many bytes; `peers` has one file for each
//! contender; `drive` is the load on those with a network protocol; `child` keeps servers, `interrupt`
//! sees to an orderly end.

mod args;
mod bulk;
mod child;
mod drive;
mod epoll;
mod html;
mod interrupt;
mod machine;
mod model;
mod peers;
mod probe;
mod session;
pub(crate) mod stats;
mod table;
mod turns;

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

pub(crate) use args::Args;
pub(crate) use peers::{NodeArgs, node};

use crate::cluster::Scratch;
use model::{BulkWork, FORMAT, Report};

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let args = args.clone().resolved();
    if args.list {
        return list();
    }
    let (report, ended) = if args.join.is_empty() { measure(&args)? } else { (join(&args.join)?, Ok(())) };
    say(&format!("{}\n{}\n", table::text(&report), table::LEGEND))?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        write(path, &text)?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&report))?;
    }
    ended
}

/// Writes to stdout. Whoever reads it may have enough of it.
fn say(text: &str) -> Result<(), String> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(format!("writing to stdout: {e}")),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("writing {}: {e}", path.display()))
}

/// What was measured, and whether that is all that was asked for.
fn measure(args: &Args) -> Result<(Report, Result<(), String>), String> {
    let mut field = session::field(&args.peers, peers::all())?;
    field.keep_those_who_do(args);
    if !field.has_wanted(&args.peers) {
        let why: Vec<_> = field.skipped.iter().map(|s| s.why.as_str()).collect();
        return Err(format!("nothing can be measured: {}", why.join("; ")));
    }
    interrupt::watch();
    let scratch = Scratch::new(args.dir.as_deref())?;
    let (part, ended) = session::run(args, field, &scratch.0)?;
    drop(scratch);
    let no_commits = part.groups.iter().all(|g| g.rows.iter().all(|r| r.runs.is_empty()));
    if no_commits && part.bulk.iter().all(|g| g.rows.iter().all(|r| r.runs.is_empty())) {
        ended?;
        return Err("nothing could be measured: every run failed; the lines above say why".into());
    }
    Ok((Report { format: FORMAT, parts: vec![part] }, ended))
}

fn join(files: &[std::path::PathBuf]) -> Result<Report, String> {
    let mut all = Report { format: FORMAT, parts: Vec::new() };
    for path in files {
        let wrong = |e: &dyn std::fmt::Display| format!("reading {}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let report: Report = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if report.format != FORMAT {
            return Err(wrong(&format!("format {}, this build reads {FORMAT}", report.format)));
        }
        all.parts.extend(report.parts);
    }
    Ok(all)
}

fn list() -> Result<(), String> {
    let mut out = String::new();
    for mut peer in peers::all() {
        let facts = peer.facts();
        let found = peer.find().unwrap_or_else(|why| format!("left out: {why}"));
        let _ = writeln!(
            out,
            "{:<16} {}; {}\n{:16} a commit means: {}\n{:16} {}",
            facts.name,
            facts.title,
            facts.scope.title(),
            "",
            facts.durability,
            "",
            found
        );
        for work in BulkWork::ALL {
            if let Some(way) = peer.bulk_ways(work).first() {
                let _ = writeln!(out, "{:16} {}: {}", "", work.title(), way.until);
            }
        }
        out.push('\n');
    }
    say(&out)
}
