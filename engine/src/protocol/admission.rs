//! The lag target: how long a primary waits between two batches while the replicas that commits wait
//! for are behind. Gently at first, so that the log grows a little slower than they take it, long
//! before a hard limit is reached; nothing is refused or dropped.

use std::time::Duration;

use crate::limits;

/// How long to wait after a batch of `bytes`, if a full one has `batch_bytes`, while the replica that
/// completes the commit quorum is `lag` bytes behind.
///
/// Nothing up to `target`. From there it grows with the square of what is above, to
/// [`limits::THROTTLE_MAX`] at twice the target; and with the batch's size, as a small batch adds
/// little to the lag.
#[must_use]
pub fn pause(lag: u64, target: u64, bytes: u64, batch_bytes: u64) -> Duration {
    if lag <= target {
        return Duration::ZERO;
    }
    let above = (lag - target) as f64 / target.max(1) as f64;
    let part = bytes as f64 / batch_bytes.max(1) as f64;
    limits::THROTTLE_MAX.mul_f64(above.min(1.0).powi(2) * part.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nothing_waits_up_to_the_target_and_then_a_little_more_with_each_byte() {
        let full = |lag| pause(lag, 64 * MIB, MIB, MIB);
        assert_eq!(full(0), Duration::ZERO);
        assert_eq!(full(64 * MIB), Duration::ZERO);
        assert!(full(64 * MIB + MIB) < Duration::from_micros(50), "gently: {:?}", full(65 * MIB));
        let mut last = Duration::ZERO;
        for lag in (64 * MIB..=128 * MIB).step_by(MIB as usize) {
            let now = full(lag);
            assert!(now >= last && now - last < limits::THROTTLE_MAX / 20, "a step at {lag}: {last:?}, {now:?}");
            last = now;
        }
        assert_eq!(last, limits::THROTTLE_MAX);
        assert_eq!(full(u64::MAX), limits::THROTTLE_MAX);
    }

    #[test]
    fn a_small_batch_waits_for_its_part_and_a_huge_one_no_longer_than_a_full_one() {
        let at = |bytes| pause(u64::MAX, 0, bytes, MIB);
        assert_eq!(at(MIB / 256), limits::THROTTLE_MAX / 256);
        assert_eq!(at(64 * MIB), limits::THROTTLE_MAX);
        assert_eq!(pause(1, 0, 0, 0), Duration::ZERO);
    }
}
