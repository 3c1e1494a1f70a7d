//! The same work many times, on threads beside each other.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Gives every number below `count` to `work`, in order, on `jobs` threads, with the number of the thread. After
/// a break what has begun is finished, and nothing more begins.
///
/// # Panics
/// If `work` does.
pub fn each(jobs: usize, count: u64, work: impl Fn(usize, u64) -> ControlFlow<()> + Sync) {
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for job in 0..jobs.max(1) {
            let (next, over, work) = (&next, &over, &work);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        break;
                    }
                    if work(job, n).is_break() {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}
