//! `towline-bench images` and `towline-bench errors`: every crash, and every call to a disk that fails.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use towline_bench::jobs;
use towline_bench::sim::handler::lock;
use towline_bench::sim::{errors, images, run};

use crate::simulate::{TRACE_LINES, canary_of};
use crate::{Ended, real_errors};

/// Photograph a workload's disks at every boundary of a call (write, flush, rename, start and end of
/// a direct write), build what a crash there may leave (nothing that was not flushed, everything,
/// prefixes, random subsets, writes torn at 512 bytes with old bytes, zeros, ones and random bytes
/// behind the tear), and open each image with the real engine.
///
/// Exit code 3: an image lost something that was acknowledged, held something that was not appended,
/// did not open, or was another when it was opened again; or there were fewer images than asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Images {
    /// Workloads
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// At least so many images of each are opened
    #[arg(long, default_value_t = 12_000)]
    most: u64,
    /// Switch a deliberate bug on, to see that it is found
    #[arg(long)]
    canary: Option<String>,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn every_image(args: &Images) -> Result<(), Ended> {
    let canary = args.canary.as_deref().map(canary_of).transpose()?;
    run::record_panics(false);
    let began = Instant::now();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let all = Mutex::new(Vec::new());
    jobs::each(jobs, args.seeds, |_, n| {
        let seed = args.from + n;
        let found = images::enumerate(seed, args.most, canary)
            .and_then(|images| Ok((images, images::every_tear(seed, canary)?)));
        lock(&all).push((seed, found));
        ControlFlow::Continue(())
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.sort_by_key(|(seed, _)| *seed);
    let mut sum = images::Images::default();
    let (mut wrong, mut tears) = (Vec::new(), 0);
    for (seed, found) in all {
        match found {
            Ok((found, more)) => {
                tears += more;
                sum.boundaries += found.boundaries;
                sum.appends += found.appends;
                found.images.iter().for_each(|(kind, n)| *sum.images.entry(kind).or_default() += n);
            }
            Err(e) => wrong.push(format!("seed {seed}: {e}")),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let document = serde_json::json!({
            "images": sum.total(), "by_kind": sum.images, "boundaries": sum.boundaries, "appends": sum.appends,
            "every_tear": tears, "seconds": seconds, "failed": wrong,
        });
        println!("{document:#}");
    } else {
        let (images, appends) = (sum.total(), sum.appends);
        println!("{images} images at {} boundaries of {appends} appends in {seconds:.1} s", sum.boundaries);
        sum.images.iter().for_each(|(kind, n)| println!("  {kind:<24} {n}"));
        println!("{tears} more are every tear of small workloads, read and not opened");
    }
    if wrong.is_empty() { Ok(()) } else { Err(Ended::Found(wrong.join("\n"))) }
}

/// Run a workload of a primary and a replica again and again in the simulated machine; each time
/// another one of their calls to a disk fails: once, and once more with every call after it.
///
/// With --real the nodes run on this machine, on files in a temporary folder. Writes also find the disk full, or are
/// cut short.
///
/// Exit code 3: something was acknowledged on a disk that had failed, or something acknowledged was
/// not there when the node had started again.
#[derive(Debug, clap::Args)]
pub(crate) struct Errors {
    /// Workloads
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Let only one in so many calls fail
    #[arg(long, default_value_t = 1)]
    step: usize,
    /// On this machine instead of the simulated one: the workload of --from only
    #[arg(long, conflicts_with = "seeds")]
    real: bool,
    /// Where to make the temporary folders of --real [default: the system's temporary folder]
    #[arg(long, requires = "real")]
    dir: Option<PathBuf>,
    /// Switch a deliberate bug on, to see that it is found
    #[arg(long)]
    canary: Option<String>,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn every_error(args: &Errors) -> Result<(), Ended> {
    let canary = args.canary.as_deref().map(canary_of).transpose()?;
    if args.real {
        return real_errors::run(args.from, args.step, args.dir.as_deref(), canary, args.json);
    }
    run::record_panics(false);
    let began = Instant::now();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<_> =
        (0..args.seeds).map(|n| (args.from + n, errors::enumerate(args.from + n, args.step, jobs, canary))).collect();
    let seconds = began.elapsed().as_secs_f64();
    let (runs, commits) = all.iter().fold((0, 0), |(r, c), (_, e)| (r + e.runs, c + e.commits));
    let mut wrong = Vec::new();
    for (seed, errors) in &all {
        for (failing, ran) in &errors.failed {
            let which = if failing.forever { "and every one after it" } else { "alone" };
            let violation = ran.violation.as_deref().unwrap_or_default();
            wrong.push(format!(
                "seed {seed}: call {} of node {} fails, {which}: {violation}",
                failing.call, failing.node
            ));
        }
    }
    if args.json {
        let calls: Vec<_> = all.iter().map(|(_, e)| &e.calls).collect();
        let document = serde_json::json!({
            "runs": runs, "calls": calls, "commits": commits, "seconds": seconds, "failed": wrong,
        });
        println!("{document:#}");
    } else {
        println!("{runs} failures of calls, {commits} commits acknowledged, in {seconds:.1} s");
        for (seed, errors) in &all {
            let of = |n: usize| errors.calls.get(n).copied().unwrap_or_default();
            println!("  workload {seed:<6} {} calls of the primary, {} of the replica", of(0), of(1));
        }
        if let Some((seed, (failing, _))) = all.iter().find_map(|(seed, e)| Some((*seed, e.failed.first()?))) {
            println!("  the first that went wrong, to its end:");
            let trace = errors::again(seed, *failing, canary).trace;
            trace[trace.len().saturating_sub(TRACE_LINES)..].iter().for_each(|line| println!("    {line}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Ended::Found(wrong.join("\n"))) }
}
