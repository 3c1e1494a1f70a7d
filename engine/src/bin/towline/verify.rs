//! `towline verify`: every byte of a node's folder, checked; and what clients were told, held
//! against the folders that are left.

mod history;
mod report;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use thiserror::Error;
use towline::OpenError;
use towline::offline::{self, Progress, VerifyReport};
use towline::units::show_size;

use crate::exit;

/// How long it may take before it says how far it is, and how often it says so.
const PROGRESS: Duration = Duration::from_secs(1);

/// Check every byte of nodes' folders, whether they run or not. Nothing is written.
///
/// Reads each shard's log from the oldest position that is kept: CRCs, chain, sequence numbers,
/// padding, terms and the superblock's copies. A torn tail is what a crash leaves, or what a running
/// node is writing just now: it is told and is no damage.
///
/// With --history, what clients were told is held against the folders: acknowledged records that are
/// missing where their policy promised them, records that nobody appended, that are there twice, out
/// of order or out of place, and logs that differ. The folders are those of the nodes that are left;
/// nodes without one count as lost. They should be stopped. docs/TESTING.md describes the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  every shard is whole; with --history: and holds what was promised
  1  a folder or a history cannot be read
  2  the command line cannot be understood
  6  at least one shard is damaged; says file and offset
  8  the logs are not what the history says: an acknowledged record is missing, or another promise is
     broken (whether a shard is damaged or not)

Examples:
  towline append --to 127.0.0.1:4790 --shard 0 --history h.jsonl < data
  towline verify --history h.jsonl --converged p r1 r2")]
pub(crate) struct Args {
    /// The nodes' folders
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,

    /// What clients were told, as `towline append --history` writes it; more than one may be given
    #[arg(long, value_name = "FILE")]
    history: Vec<PathBuf>,

    /// Not every append is in the history: records that it does not know are no phantoms
    #[arg(long, requires = "history")]
    partial: bool,

    /// All nodes have caught up: a log that ends before another one is an error
    #[arg(long, requires = "history")]
    converged: bool,

    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// A folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A history, or what it has to do with the folders.
    #[error(transparent)]
    History(#[from] history::HistoryError),
    /// Stdout.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
}

/// Verifies and prints.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    // A bad history is told before gigabytes are read.
    let checker = if args.history.is_empty() { None } else { Some(history::read(&args.history, args.dirs.len())?) };
    let reports = args.dirs.iter().map(|dir| verify(dir)).collect::<Result<Vec<_>, _>>()?;
    let verdict = match &checker {
        Some(checker) => Some(history::check(checker, &args, &reports)?),
        None => None,
    };
    let text = if args.json {
        let nodes: Vec<_> = args.dirs.iter().zip(&reports).collect();
        let whole = reports.iter().all(VerifyReport::is_whole);
        let document = match (&nodes[..], &verdict) {
            ([(_, report)], None) => report::to_json(report),
            _ => {
                let node = |(dir, report): &(&PathBuf, &VerifyReport)| {
                    let mut node = report::to_json(report);
                    node["dir"] = json!(dir.display().to_string());
                    node
                };
                let nodes: Vec<_> = nodes.iter().map(node).collect();
                json!({"whole": whole, "history": verdict.as_ref().map(history::to_json), "nodes": nodes})
            }
        };
        format!("{document}\n")
    } else {
        let mut text = String::new();
        for (n, (dir, report)) in args.dirs.iter().zip(&reports).enumerate() {
            if args.dirs.len() > 1 {
                let _ = writeln!(text, "log {n}: {}", dir.display());
            }
            text.push_str(&report::to_text(report));
        }
        if let Some(verdict) = &verdict {
            text.push_str(&history::to_text(verdict));
        }
        text
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(Failure::Output(error)),
        _ => {}
    }
    Ok(match verdict {
        Some(verdict) if !verdict.holds() => ExitCode::from(exit::VIOLATED),
        _ if reports.iter().all(VerifyReport::is_whole) => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::DAMAGED),
    })
}

fn verify(dir: &Path) -> Result<VerifyReport, OpenError> {
    let mut said = Instant::now();
    let mut shown = false;
    let terminal = io::stderr().is_terminal();
    let report = offline::verify_with(dir, |p| {
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            shown = true;
            say(p, terminal);
        }
    });
    if shown && terminal {
        let _ = writeln!(io::stderr());
    }
    report
}

/// On a terminal in one line that is written again and again.
fn say(p: Progress, terminal: bool) {
    let (before, behind) = if terminal { ("\r", "\u{1b}[K") } else { ("", "\n") };
    let (read, most) = (show_size(p.read_bytes), show_size(p.at_most_bytes));
    let _ = write!(io::stderr(), "{before}shard {}: {read} of at most {most} read{behind}", p.shard);
}
