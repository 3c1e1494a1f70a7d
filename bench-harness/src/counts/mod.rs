//! `towline-bench counts`: instructions of the hot path's pure parts, which a noisy machine does not
//! change, held against the counts that are stored beside this crate.
//!
//! callgrind counts the instructions of a process that does a piece of work N times, and of one that
//! does it N / 2 times: the difference is the work's, without setting up.

mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use work::{ALL, FLAT, Work};

/// The stored counts, by the build.
const STORED: &str = include_str!("../../counts.json");
/// Which of them are this build's: assertions cost instructions, and so do calls across crates that are not
/// optimised together. `.ci/run` counts in the build that its tests use.
const BUILD: &str = if cfg!(debug_assertions) { "tests" } else { "release" };
/// How much more than the stored count fails. Libraries and processors choose other ways, and what the
/// compiler inlines moves with code elsewhere: durable slots moved the gate's count by 16 % without a
/// change to the gate.
const TOLERANCE: f64 = 0.25;

/// Count the instructions of append, gate, replica, frame and recovery with callgrind, and hold them
/// against the counts that are stored for this kind of build (a release, or what `cargo test` builds): more
/// than 25 % above fails, and so does a cost that grows with waiters, lag, shards or with the log.
///
/// Exit code 1: a count is too high, or callgrind cannot be run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Store this build's counts in this file, beside the other build's, instead of comparing them
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
    /// What callgrind runs: one piece of work, so many times
    #[arg(long, hide = true, num_args = 2)]
    one: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    what: &'static str,
    instructions: f64,
    stored: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<(), String> {
    if let Some([name, times]) = args.one.as_deref() {
        let work = ALL.iter().find(|w| w.name == name).ok_or("no such work")?;
        (work.run)(times.parse().map_err(|_| "no such number")?);
        return Ok(());
    }
    let mut all = stored()?;
    let stored = all.remove(BUILD).unwrap_or_default();
    let mut lines = Vec::new();
    for work in ALL {
        let instructions = each(work)?;
        lines.push(Line { name: work.name, what: work.what, instructions, stored: stored.get(work.name).copied() });
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines).map_err(|e| e.to_string())?);
    } else {
        println!("{:<12} {:>14} {:>14}         instructions for", "", "counted", "stored");
        for l in &lines {
            let (stored, change) = l.stored.map_or(("-".into(), String::new()), |s| {
                (format!("{s:.1}"), format!("{:+.1} %", (l.instructions / s - 1.0) * 100.0))
            });
            println!("{:<12} {:>14.1} {stored:>14} {change:>8} {}", l.name, l.instructions, l.what);
        }
    }
    if let Some(file) = &args.write {
        let counted = lines.iter().map(|l| (l.name.to_string(), (l.instructions * 10.0).round() / 10.0));
        all.insert(BUILD.into(), counted.collect());
        let text = serde_json::to_string_pretty(&all).map_err(|e| e.to_string())? + "\n";
        return std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()));
    }
    let wrong = judge(&lines.iter().map(|l| (l.name, l.instructions)).collect(), &stored);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The stored counts of each kind of build, by the name of the work.
fn stored() -> Result<BTreeMap<String, BTreeMap<String, f64>>, String> {
    serde_json::from_str(STORED).map_err(|e| format!("counts.json: {e}"))
}

/// What is too high.
fn judge(counted: &BTreeMap<&str, f64>, stored: &BTreeMap<String, f64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, count) in counted {
        match stored.get(*name) {
            None => wrong.push(format!("{name} has no stored count: towline-bench counts --write counts.json")),
            Some(stored) if *count > stored * (1.0 + TOLERANCE) => {
                wrong.push(format!("{name} takes {count:.1} instructions, stored are {stored:.1}"));
            }
            Some(_) => {}
        }
    }
    for (small, large, most, of) in FLAT {
        if let (Some(a), Some(b)) = (counted.get(small), counted.get(large))
            && b > &(a * most)
        {
            wrong.push(format!("{large} takes {b:.1} instructions, {small} {a:.1}: the cost grows with the {of}"));
        }
    }
    wrong
}

/// Instructions for one of a piece of work.
fn each(work: &Work) -> Result<f64, String> {
    let (whole, half) = (collected(work, work.times)?, collected(work, work.times / 2)?);
    Ok(whole.saturating_sub(half) as f64 / (work.times - work.times / 2) as f64)
}

fn collected(work: &Work, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["counts", "--one", work.name, &times.to_string()])
        .output()
        .map_err(|e| format!("valgrind: {e} (Debian: apt-get install valgrind)"))?;
    let text = String::from_utf8_lossy(&out.stderr);
    instructions(&text).ok_or_else(|| format!("callgrind of {} says no count: {text}", work.name))
}

/// The number behind callgrind's `Collected :`.
fn instructions(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.contains("Collected"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_count_above_the_tolerance_or_that_grows_is_named() {
        let stored = BTreeMap::from([("gate-1".to_string(), 100.0), ("gate-1000".to_string(), 100.0)]);
        let counted = |a, b| BTreeMap::from([("gate-1", a), ("gate-1000", b)]);
        assert_eq!(judge(&counted(124.0, 124.0), &stored), [""; 0]);
        assert_eq!(judge(&counted(126.0, 105.0), &stored).len(), 1);
        assert_eq!(
            judge(&counted(80.0, 95.0), &stored),
            ["gate-1000 takes 95.0 instructions, gate-1 80.0: the cost grows with the waiters"]
        );
        assert_eq!(judge(&BTreeMap::from([("new", 1.0)]), &stored).len(), 1);
    }

    #[test]
    fn callgrinds_last_line_is_read() {
        let text = "==1== Events    : Ir\n==1== Collected : 123456\n==1== \n==1== I   refs:      123,456\n";
        assert_eq!(instructions(text), Some(123_456));
        assert_eq!(instructions("valgrind: failed"), None);
    }

    #[test]
    fn every_piece_of_work_can_be_done_and_has_a_stored_count() {
        let stored = stored().unwrap();
        assert_eq!(stored.keys().collect::<Vec<_>>(), ["release", "tests"]);
        for work in ALL {
            (work.run)(work.times / 4);
        }
        let names: BTreeSet<_> = ALL.iter().map(|work| work.name.to_string()).collect();
        for counts in stored.into_values() {
            assert_eq!(counts.into_keys().collect::<BTreeSet<_>>(), names);
        }
    }
}
