//! Many runs on all cores, each on its own thread and in its own world.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::run::{How, Ran, run};

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Many {
    /// Runs.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failed: Vec<Ran>,
    /// Faults that came, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Commits acknowledged.
    pub commits: u64,
    /// Appends.
    pub appends: u64,
    /// Steps of tasks.
    pub steps: u64,
    /// Virtual seconds.
    pub virtual_s: f64,
    /// Real seconds.
    pub seconds: f64,
}

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
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new(Many::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds {
                        break;
                    }
                    let ran = run(from + n, how);
                    let mut all = super::handler::lock(&all);
                    all.seeds += 1;
                    for (kind, count) in &ran.counts {
                        *all.counts.entry(kind).or_default() += count;
                    }
                    all.commits += ran.commits;
                    all.appends += ran.appends;
                    all.steps += ran.steps;
                    all.virtual_s += ran.virtual_ns as f64 / 1e9;
                    each(all.seeds, &ran);
                    if ran.violation.is_some() {
                        all.failed.push(ran);
                        over.fetch_or(stop_at_first, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.failed.sort_by_key(|ran| ran.seed);
    all.seconds = began.elapsed().as_secs_f64();
    all
}
