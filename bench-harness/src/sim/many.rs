//! Many runs on all cores, each on its own thread and in its own world.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::Instant;

use super::handler::lock;
use super::run::{How, Ran, run};
use crate::jobs;

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Many {
    /// Runs.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failed: Vec<Ran>,
    /// Faults that came, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// What the engine counted.
    pub did: BTreeMap<&'static str, u64>,
    /// Commits acknowledged.
    pub commits: u64,
    /// Appends.
    pub appends: u64,
    /// Steps of tasks.
    pub steps: u64,
    /// The sum of the runs' hashes: the same for the same seeds on the same commit, on any machine.
    pub hash: u64,
    /// Virtual seconds.
    pub virtual_s: f64,
    /// Real seconds.
    pub seconds: f64,
}

/// What must come to pass in many runs, or they have become blind to it.
const MUST_HAPPEN: [&str; 18] = [
    "catch_ups",
    "copied_sends",
    "log_full",
    "packed_batches",
    "polite_pauses",
    "refused: LogFull",
    "refused: MinReplicas",
    "refused: TooFewReplicas",
    "segments_recycled",
    "slots_lost_idle",
    "slots_lost_removed",
    "slots_lost_retention_cap",
    "snapshots_installed",
    "snapshots_resumed",
    "throttled",
    "whole_cuts",
    "window_waits",
    "zero_copy_sends",
];

impl Many {
    /// What never happened and should have, in so many runs.
    #[must_use]
    pub fn missed(&self) -> Vec<&'static str> {
        let never = |what: &&&str| self.did.get(**what).is_none_or(|count| *count == 0);
        if self.seeds < SEEDS_SEE_ALL { Vec::new() } else { MUST_HAPPEN.iter().filter(never).copied().collect() }
    }
}

/// So many runs see everything that can happen.
const SEEDS_SEE_ALL: u64 = 5000;

/// Runs `seeds` seeds from `from` on, on `jobs` threads, until one fails if `stop_at_first`. `each` is
/// told of every run as it ends.
pub fn many(
    (from, seeds): (u64, u64),
    jobs: usize,
    how: &How,
    stop_at_first: bool,
    each: impl Fn(u64, &Ran) + Sync,
) -> Many {
    let began = Instant::now();
    let all = Mutex::new(Many::default());
    jobs::each(jobs, seeds, |_, n| {
        let ran = run(from + n, how);
        let mut all = lock(&all);
        all.seeds += 1;
        for (kind, count) in &ran.counts {
            *all.counts.entry(kind).or_default() += count;
        }
        for (counter, count) in &ran.did {
            *all.did.entry(counter).or_default() += count;
        }
        all.commits += ran.commits;
        all.appends += ran.appends;
        all.steps += ran.steps;
        all.hash = all.hash.wrapping_add(ran.hash);
        all.virtual_s += ran.virtual_ns as f64 / 1e9;
        each(all.seeds, &ran);
        let failed = ran.violation.is_some();
        if failed {
            all.failed.push(ran);
        }
        if failed && stop_at_first { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.failed.sort_by_key(|ran| ran.seed);
    all.seconds = began.elapsed().as_secs_f64();
    all
}
