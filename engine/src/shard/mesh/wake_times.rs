//! How long outcomes lie before another thread takes them, counted where they are taken: on that
//! thread, without a lock, in a few buckets for each power of two. The shard collects the counts
//! into its histogram when somebody asks for the status.

use std::sync::atomic::Ordering;

use crate::sync::AtomicU64;
use crate::telemetry::{Stage, Telemetry};

/// Four buckets for each power of two: within an eighth of the value.
const BUCKETS: usize = 256;

/// Counts of durations in nanoseconds.
#[derive(Debug)]
pub(crate) struct WakeTimes([AtomicU64; BUCKETS]);

impl Default for WakeTimes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

const fn bucket(ns: u64) -> usize {
    if ns < 4 {
        return ns as usize;
    }
    let log = 63 - ns.leading_zeros();
    ((log as usize) << 2) | ((ns >> (log - 2)) & 3) as usize
}

/// The middle of a bucket.
const fn middle(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (log, step) = (bucket >> 2, (bucket & 3) as u64);
    let quarter = 1 << (log - 2);
    (4 + step) * quarter + quarter / 2
}

impl WakeTimes {
    /// Counts one.
    pub(crate) fn record(&self, ns: u64) {
        self.0[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the counts into a shard's histogram.
    pub(crate) fn collect(&self, into: &mut Telemetry) {
        for (n, count) in self.0.iter().enumerate() {
            if count.load(Ordering::Relaxed) > 0 {
                into.record(Stage::Wake, middle(n), count.swap(0, Ordering::Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_within_an_eighth_of_what_it_counts() {
        for ns in (0..64).map(|shift| 1u64 << shift).flat_map(|p| [p, p + p / 3, p + p / 2]).chain([0, 3, 5, 6, 7]) {
            let (got, ns) = (middle(bucket(ns)) as f64, ns as f64);
            assert!((got - ns).abs() <= ns / 8.0 + 1.0, "{ns} counts as {got}");
        }
    }
}
