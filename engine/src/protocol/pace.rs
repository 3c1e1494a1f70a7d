//! How fast a link may send what it reads from disk: a cap in bytes for each second, and manners
//! towards who is live.

use std::time::Duration;

use towline_wire::Lsn;

use crate::limits;

/// A token bucket, kept as the time at which what was taken is paid for (GCRA, as ATM's traffic
/// shaping has it): no timer fills it, and a clock that stands still takes nothing away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    bytes_per_s: u64,
    paid_ns: u64,
}

impl TokenBucket {
    /// A bucket that fills with so many bytes in each second, at least one.
    #[must_use]
    pub const fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: if bytes_per_s == 0 { 1 } else { bytes_per_s }, paid_ns: 0 }
    }

    /// Takes `bytes`, more than there are if need be, and says how long to take nothing more. What
    /// was not taken in time is lost but for a short burst.
    #[must_use]
    pub fn take(&mut self, bytes: u64, now_ns: u64) -> Duration {
        let cost = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_s));
        let from = self.paid_ns.max(now_ns.saturating_sub(limits::CATCH_UP_BURST.as_nanos() as u64));
        self.paid_ns = from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
        Duration::from_nanos(self.paid_ns.saturating_sub(now_ns))
    }
}

/// How a reader reads from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// Bytes of one read, at most.
    pub bytes: usize,
    /// Reads in flight ahead of what is taken.
    pub depth: usize,
}

/// The pace of one link while it reads from disk.
///
/// While others are live, which shows in the log growing, catch-up takes small slices, and sends them
/// politely: the core is left to the others in between. Without a cap it also leaves them the disk: it reads
/// for [`limits::POLITE_SHARE`] percent of the time, but always sends twice as much as the log grows, so that
/// it comes to an end. With a cap, that is what it may take.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    bucket: Option<TokenBucket>,
    tail: Lsn,
    /// Others are live until then, unless the log is seen to grow again.
    live_until_ns: u64,
    /// What was sent under the cap is paid for then.
    not_before_ns: u64,
    /// What reading [`PER_BYTES`] takes; 0: nothing was read yet.
    read_ns: u64,
    /// What was sent without a cap is made up for then,
    polite_until_ns: u64,
    /// or once the log has grown up to there.
    grows_to: Lsn,
}

/// What the time of a read is related to.
const PER_BYTES: u64 = 1 << 20;

impl Pace {
    /// The cap in bytes for each second from now on; at first there is none. Under another one, what was
    /// sent under the one before is forgotten: nothing of it is waited for.
    pub fn cap(&mut self, bytes_per_s: Option<u64>) {
        let bucket = bytes_per_s.map(TokenBucket::new);
        let rate = |b: &TokenBucket| b.bytes_per_s;
        if self.bucket.as_ref().map(rate) != bucket.as_ref().map(rate) {
            self.bucket = bucket;
            (self.not_before_ns, self.polite_until_ns) = (0, 0);
        }
    }

    /// The log ends at `tail` now. Says whether others are live.
    pub fn look(&mut self, tail: Lsn, now_ns: u64) -> bool {
        if tail > self.tail {
            // The first look tells nothing.
            if self.tail > Lsn::ZERO {
                self.live_until_ns = now_ns.saturating_add(limits::LIVE_FOR.as_nanos() as u64);
            }
            self.tail = tail;
        }
        let others_live = now_ns < self.live_until_ns;
        if !others_live || self.tail >= self.grows_to {
            self.polite_until_ns = 0;
        }
        others_live
    }

    /// Reading `bytes` took so long. An average over about eight reads; one that took more than twice of that
    /// waited for something else, and counts as twice.
    pub fn read(&mut self, bytes: u64, took: Duration) {
        let took_ns = took.as_nanos().saturating_mul(u128::from(PER_BYTES)).checked_div(u128::from(bytes));
        let Some(took_ns) = took_ns.map(|ns| u64::try_from(ns).unwrap_or(u64::MAX).max(1)) else { return };
        self.read_ns = match self.read_ns {
            0 => took_ns,
            so_far => so_far - so_far.div_ceil(8) + took_ns.min(so_far.saturating_mul(2)).div_ceil(8),
        };
    }

    /// Bytes to send at a time.
    #[must_use]
    pub const fn slice(others_live: bool) -> usize {
        if others_live { limits::CATCH_UP_SLICE_BYTES } else { limits::READ_CHUNK_BYTES }
    }

    /// How to read what is sent.
    #[must_use]
    pub const fn reads(others_live: bool) -> Reads {
        match others_live {
            true => Reads { bytes: limits::POLITE_READ_BYTES, depth: limits::POLITE_READ_AHEAD },
            false => Reads { bytes: limits::READ_CHUNK_BYTES, depth: limits::READ_AHEAD },
        }
    }

    /// `bytes` were sent from disk, and count for the cap, or as what others had to wait for. Says whether it
    /// is the others' turn now.
    pub fn sent(&mut self, bytes: u64, now_ns: u64) -> bool {
        let after = |ns: u128| now_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX));
        if let Some(bucket) = &mut self.bucket {
            self.not_before_ns = after(bucket.take(bytes, now_ns).as_nanos());
        } else if now_ns < self.live_until_ns {
            let read_ns = u128::from(bytes) * u128::from(self.read_ns) / u128::from(PER_BYTES);
            self.polite_until_ns = after(read_ns * (100 - limits::POLITE_SHARE) / limits::POLITE_SHARE);
            self.grows_to = Lsn(self.tail.0 + bytes.div_ceil(2));
            return self.polite_until_ns > now_ns;
        }
        false
    }

    /// How long to send nothing, for the cap or for the others, as long as they are live; then to look again.
    #[must_use]
    pub fn pause(&self, now_ns: u64) -> Duration {
        let polite_until_ns = self.polite_until_ns.min(self.live_until_ns);
        Duration::from_nanos(self.not_before_ns.max(polite_until_ns).saturating_sub(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_gives_its_rate_whatever_the_slices() {
        for slice in [1, 4096, 1 << 20, 64 << 20] {
            let mut bucket = TokenBucket::new(10 << 20);
            let (mut now, mut sent) = (5 * S, 0);
            while now < 105 * S {
                sent += slice;
                now += (bucket.take(slice, now).as_nanos() as u64).max(1);
                if slice == 1 && sent > 1_000_000 {
                    break;
                }
            }
            let due = (now - 5 * S) as f64 / S as f64 * f64::from(10 << 20);
            let burst = f64::from(10 << 20) * limits::CATCH_UP_BURST.as_secs_f64();
            assert!((sent as f64) <= due + burst + slice as f64, "{sent} of {due} by {slice}");
            assert!(sent as f64 + burst >= due * 0.99, "{sent} of {due} by {slice}");
        }
    }

    #[test]
    fn what_was_not_taken_in_time_comes_as_a_short_burst_only() {
        let mut bucket = TokenBucket::new(1000);
        assert_eq!(bucket.take(1000, S), Duration::from_secs(1) - limits::CATCH_UP_BURST);
        let much_later = 1_000_000 * S;
        assert_eq!(bucket.take(1000, much_later), Duration::from_secs(1) - limits::CATCH_UP_BURST);
        // Nothing overflows at the ends.
        assert!(TokenBucket::new(0).take(u64::MAX, u64::MAX) < Duration::MAX);
    }

    #[test]
    fn others_are_live_while_the_log_grows_and_a_little_longer() {
        let mut pace = Pace::default();
        assert!(!pace.look(Lsn(4096), S), "the log's length tells nothing");
        assert!(!pace.look(Lsn(4096), S + 1));
        assert!(pace.look(Lsn(8192), S + 2));
        let over = S + 2 + limits::LIVE_FOR.as_nanos() as u64;
        assert!(pace.look(Lsn(8192), over - 1));
        assert!(!pace.look(Lsn(8192), over));
    }

    fn after(pace: &mut Pace, bytes: u64) -> Duration {
        pace.sent(bytes, S);
        pace.pause(S)
    }

    #[test]
    fn only_a_cap_makes_it_wait_and_slices_are_small_while_others_are_live() {
        let mut pace = Pace::default();
        assert_eq!(after(&mut pace, 1 << 20), Duration::ZERO);
        pace.cap(Some(1 << 20));
        assert!(after(&mut pace, 1 << 20) > Duration::from_millis(900));
        assert_eq!(pace.pause(3 * S), Duration::ZERO);
        assert!(Pace::slice(true) < Pace::slice(false));
    }

    /// Others are live, and reading a slice took a millisecond.
    fn beside_others() -> Pace {
        let mut pace = Pace::default();
        pace.look(Lsn(4096), S);
        assert!(pace.look(Lsn(8192), S));
        pace.read(SLICE, MS);
        pace
    }

    const SLICE: u64 = 128 << 10;
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_cap_others_have_the_disk_for_most_of_the_time() {
        let mut pace = beside_others();
        assert_eq!(after(&mut pace, SLICE), 9 * MS);
        assert!(pace.look(Lsn(8192), S + 1));
        assert_eq!(pace.pause(S), 9 * MS, "others are live still");
        // A part of what was read counts as a part.
        assert_eq!(after(&mut pace, SLICE / 2), 9 * MS / 2);
    }

    #[test]
    fn nobody_is_waited_for_who_is_not_live() {
        let mut pace = Pace::default();
        pace.read(SLICE, MS);
        assert_eq!(after(&mut pace, SLICE), Duration::ZERO);
        let mut pace = beside_others();
        pace.read(SLICE, 1000 * MS);
        let now = S + limits::LIVE_FOR.as_nanos() as u64;
        assert_eq!(after(&mut pace, 64 * SLICE), limits::LIVE_FOR, "then it is looked again");
        assert!(!pace.look(Lsn(8192), now));
        assert_eq!(pace.pause(now), Duration::ZERO);
    }

    #[test]
    fn a_log_that_grows_is_caught_up_with() {
        let mut pace = beside_others();
        assert!(pace.sent(SLICE, S));
        assert!(pace.look(Lsn(8192 + SLICE / 2 - 1), S + 1));
        assert!(pace.pause(S + 1) > Duration::ZERO);
        assert!(pace.look(Lsn(8192 + SLICE / 2), S + 2));
        assert_eq!(pace.pause(S + 2), Duration::ZERO);
    }

    #[test]
    fn a_cap_is_what_may_be_taken_also_beside_others() {
        let mut pace = beside_others();
        pace.cap(Some(1 << 40));
        assert!(!pace.sent(SLICE, S));
        assert!(after(&mut pace, SLICE) < MS);
        pace.cap(None);
        assert_eq!(after(&mut pace, SLICE), 9 * MS);
        pace.cap(Some(1 << 40));
        assert_eq!(pace.pause(S), Duration::ZERO, "what was sent without a cap is not waited for under one");
    }

    #[test]
    fn one_slow_read_counts_little_and_slow_reads_count_in_full() {
        let mut pace = beside_others();
        pace.read(SLICE, 1000 * MS);
        assert!(after(&mut pace, SLICE) < 11 * MS);
        for _ in 0..200 {
            pace.read(SLICE, 10 * MS);
        }
        assert!(after(&mut pace, SLICE) > 89 * MS);
        for _ in 0..200 {
            pace.read(SLICE, MS);
        }
        assert!(after(&mut pace, SLICE) < 10 * MS);
        // Nothing that is measured makes it fail.
        pace.read(0, MS);
        pace.read(1, Duration::MAX);
        pace.read(u64::MAX, Duration::ZERO);
        assert!(after(&mut pace, u64::MAX) > Duration::ZERO);
    }

    #[test]
    fn another_cap_owes_nothing_and_the_same_one_forgives_nothing() {
        let mut pace = Pace::default();
        pace.cap(Some(1));
        let long = after(&mut pace, 1 << 20);
        pace.cap(Some(1));
        assert_eq!(pace.pause(S), long);
        assert!(after(&mut pace, 1) > long);
        pace.cap(Some(1 << 30));
        assert_eq!(pace.pause(S), Duration::ZERO);
        assert!(after(&mut pace, 1 << 20) < Duration::from_millis(1));
        pace.cap(None);
        assert_eq!(after(&mut pace, 1 << 30), Duration::ZERO);
    }
}
