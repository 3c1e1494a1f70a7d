//! `towline-bench errors --real`: every call to a real disk that fails.

use std::path::Path;
use std::time::Instant;

use towline::canary::{self, Canary};
use towline_bench::failing::{self, Sweep};

use crate::Ended;
use crate::cluster::Scratch;

/// Runs beside each other on each core: most of the time they wait for the disk.
const JOBS_PER_CORE: usize = 2;
/// How many runs go by before something is said.
const SAY_EVERY: usize = 100;

pub(crate) fn run(seed: u64, step: usize, dir: Option<&Path>, canary: Option<Canary>, json: bool) -> Result<(), Ended> {
    let scratch = Scratch::new(dir)?;
    failing::record_panics();
    canary::set_everywhere(canary);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from) * JOBS_PER_CORE;
    let began = Instant::now();
    let found = failing::enumerate(&scratch.0, seed, step, jobs, |done, of| {
        if !json && done.is_multiple_of(SAY_EVERY) {
            eprintln!("{done} of {of} runs in {:.0} s", began.elapsed().as_secs_f64());
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let runs: u64 = found.runs.values().sum();
    let wrong: Vec<String> = found
        .failed
        .iter()
        .map(|(failing, violation)| match failing {
            Some(failing) => format!("{failing}: {violation}"),
            None => format!("no call fails: {violation}"),
        })
        .collect();
    let sum = &found.sum;
    if json {
        let calls = found.calls.map(
            |c| serde_json::json!({ "all": c.all, "writes": c.writes, "growing": c.growing, "of_blocks": c.long }),
        );
        let by_way: serde_json::Map<_, _> =
            found.runs.iter().map(|(sweep, n)| (sweep.name().to_string(), (*n).into())).collect();
        let document = serde_json::json!({
            "runs": runs, "by_way": by_way, "not_met": found.unmet, "calls": calls, "commits": sum.commits,
            "refused_appends": sum.refused, "unknown_appends": sum.unknown, "refused_starts": sum.refused_starts,
            "seconds": seconds, "failed": wrong,
        });
        println!("{document:#}");
    } else {
        println!("{runs} failures of calls in {seconds:.1} s; {} runs made fewer calls than that", found.unmet);
        for (calls, node) in found.calls.iter().zip(["primary", "replica"]) {
            let (all, writes, growing, long) = (calls.all, calls.writes, calls.growing, calls.long);
            println!(
                "  {node}: {all} calls, of which {writes} writes, {growing} that need space, {long} of several blocks"
            );
        }
        for sweep in Sweep::ALL {
            println!("  {:<30} {}", sweep.name(), found.runs.get(&sweep).unwrap_or(&0));
        }
        println!(
            "  {} appends acknowledged, {} refused, {} of which nobody knows; {} starts refused",
            sum.commits, sum.refused, sum.unknown, sum.refused_starts
        );
    }
    if wrong.is_empty() { Ok(()) } else { Err(Ended::Found(wrong.join("\n"))) }
}
