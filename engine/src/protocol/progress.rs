//! How a replica comes along while it catches up: its rate, and the time that is left.

use towline_wire::Lsn;

use crate::limits;

/// A catch-up under way, from what its replica has flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Progress {
    from: Lsn,
    /// The last mark: when, what the replica had, where the log ended.
    mark: (u64, Lsn, Lsn),
    /// Bytes in each second, of the replica and of the log's end, over the last marks.
    rates: Option<(u64, u64)>,
    /// When the last batch that was sent had been closed, in microseconds of the wall clock.
    sent_time_us: u64,
}

/// What is shown of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shown {
    /// Bytes in each second that the replica takes; 0 as long as nothing is known.
    pub bytes_per_s: u64,
    /// How much of what there is to catch up with is done.
    pub percent: f64,
    /// When it will have caught up, in milliseconds from now; `None` if it never will at this rate, or
    /// nothing is known yet.
    pub left_ms: Option<u64>,
    /// How old what was sent last is, in milliseconds.
    pub behind_ms: f64,
}

impl Progress {
    /// A replica that has `from` begins to catch up with a log that ends at `tail`.
    #[must_use]
    pub const fn new(from: Lsn, tail: Lsn, now_ns: u64) -> Self {
        Self { from, mark: (now_ns, from, tail), rates: None, sent_time_us: 0 }
    }

    /// Something was sent; the replica has `has`, and the log ends at `tail`.
    pub fn on_sent(&mut self, has: Lsn, tail: Lsn, sent_time_us: u64, now_ns: u64) {
        self.sent_time_us = sent_time_us;
        let (then, had, ended) = self.mark;
        let age = now_ns.saturating_sub(then);
        if age < limits::PROGRESS_MARK.as_nanos() as u64 {
            return;
        }
        let per_s = |from: Lsn, to: Lsn| {
            let bytes = u128::from(to.0.saturating_sub(from.0)) * 1_000_000_000 / u128::from(age);
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        let now = (per_s(had, has), per_s(ended, tail));
        // Half of each mark, so that one slow moment does not make the estimate jump.
        let mean = |old: u64, new: u64| old / 2 + new / 2;
        self.rates = Some(self.rates.map_or(now, |old| (mean(old.0, now.0), mean(old.1, now.1))));
        self.mark = (now_ns, has, tail);
    }

    /// What to show now.
    #[must_use]
    pub fn shown(&self, has: Lsn, tail: Lsn, wall_us: u64) -> Shown {
        let (all, left) = (tail.0.saturating_sub(self.from.0), tail.0.saturating_sub(has.0));
        let percent = if all == 0 { 100.0 } else { (1.0 - left as f64 / all as f64).max(0.0) * 100.0 };
        let left_ms = self.rates.and_then(|(replica, log)| {
            let nearer = replica.checked_sub(log).filter(|nearer| *nearer > 0)?;
            u64::try_from(u128::from(left) * 1000 / u128::from(nearer)).ok()
        });
        let behind_ms = match self.sent_time_us {
            0 => 0.0,
            at => wall_us.saturating_sub(at) as f64 / 1000.0,
        };
        Shown { bytes_per_s: self.rates.map_or(0, |r| r.0), percent, left_ms, behind_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    #[test]
    fn rate_percent_and_the_time_that_is_left_follow_the_replica_and_the_log() {
        let (mut tail, mut has) = (1000 * MIB, 0);
        let mut p = Progress::new(Lsn(0), Lsn(tail), S);
        assert_eq!(p.shown(Lsn(0), Lsn(tail), 0), Shown { left_ms: None, ..Shown::default() });
        let mut now = S;
        for _ in 0..20 {
            (now, has, tail) = (now + S / 2, has + 20 * MIB, tail + 5 * MIB);
            p.on_sent(Lsn(has), Lsn(tail), 3_000_000, now);
        }
        let shown = p.shown(Lsn(has), Lsn(tail), 5_500_000);
        assert!((39 * MIB..=40 * MIB).contains(&shown.bytes_per_s), "{shown:?}");
        assert!((shown.percent - 400.0 / 1100.0 * 100.0).abs() < 0.1, "{shown:?}");
        // 700 MiB are left, and 30 MiB/s of them go.
        let left = shown.left_ms.unwrap();
        assert!((23_300..24_000).contains(&left), "{shown:?}");
        assert!((shown.behind_ms - 2500.0).abs() < 0.1);
    }

    #[test]
    fn a_replica_that_is_slower_than_the_log_has_no_time_left_to_tell() {
        let mut p = Progress::new(Lsn(0), Lsn(MIB), S);
        p.on_sent(Lsn(MIB), Lsn(3 * MIB), 1, 2 * S);
        assert_eq!(p.shown(Lsn(MIB), Lsn(3 * MIB), 1).left_ms, None);
        // A replica that was cut, and clocks that stand still.
        p.on_sent(Lsn(0), Lsn(3 * MIB), 1, 2 * S);
        p.on_sent(Lsn(0), Lsn(3 * MIB), 1, 4 * S);
        assert!(p.shown(Lsn(0), Lsn(0), 0).percent >= 0.0);
        assert_eq!(p.shown(Lsn(0), Lsn(u64::MAX), 0).left_ms, None);
    }
}
