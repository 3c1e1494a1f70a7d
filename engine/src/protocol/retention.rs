//! Which log may be let go of, and when the log may not grow: the keep-size floor, the slots, the
//! archive, what is not committed, and the cap that wins over slots.
//!
//! Whole segments are recycled, so a position holds the segment that it lies in. The cap is on what
//! slots may hold: a slot that alone holds more is lost, the one furthest behind first. Log that is
//! not committed is never recycled, whoever is to blame: there the cap keeps the log from growing.
//! A slot that is near to where others hold the log anyway is not lost for that: its replica may be
//! the one that the commit waits for.

use towline_wire::Lsn;

use crate::limits;

/// How much may be kept, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At least so many bytes are kept; `None`: all, unless the embedder lets go of it.
    pub keep: Option<u64>,
    /// At most so many are kept for slots, and not committed; `None`: no bound.
    pub cap: Option<u64>,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

/// Where a shard's log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The end of the last closed batch.
    pub appended: Lsn,
    /// What is on the device.
    pub durable: Lsn,
    /// Where the last durable batch starts: it is never let go of.
    pub last_durable: Lsn,
    /// What is committed, on a replica also applied.
    pub commit: Lsn,
    /// Up to where the embedder lets it go.
    pub trim_to: Lsn,
    /// Up to where it is archived, if there is an archive.
    pub archived: Option<Lsn>,
}

/// Who keeps the oldest log from being recycled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// What is to be kept in any case.
    KeepSize,
    /// Whoever has to acknowledge it, or apply it.
    Commit,
    /// The archive.
    Archive,
    /// The last batch is always kept.
    LastBatch,
    /// A slot.
    Slot(usize),
    /// Those that a slot's replica feeds.
    Below(usize),
}

impl Holder {
    /// Its name in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeepSize => "keep size",
            Self::Commit => "commit",
            Self::Archive => "archive",
            Self::LastBatch => "last batch",
            Self::Slot(_) => "slot",
            Self::Below(_) => "below",
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycling {
    /// Slots that are lost for the cap, the worst first.
    pub lost: Vec<usize>,
    /// Segments that end at or below this may go once those are lost.
    pub below: Lsn,
    /// Who holds what is left.
    pub holder: Holder,
}

impl Limits {
    /// As near to what is kept anyway, no slot is lost.
    const fn near(&self) -> u64 {
        limits::RETAIN_MAX_SEGMENTS_MIN * self.segment_bytes
    }

    fn segment(&self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 - lsn.0 % self.segment_bytes)
    }

    /// Decides about the log and the valid slots, each with where it holds the log from.
    #[must_use]
    pub fn recycle(&self, log: &Log, slots: impl Iterator<Item = (usize, Lsn)>) -> Recycling {
        let kept = self.keep.map_or(Lsn::ZERO, |keep| Lsn(log.durable.0.saturating_sub(keep)));
        // On equal terms the first one is named.
        let free = [
            (kept.max(log.trim_to), Holder::KeepSize),
            (log.commit, Holder::Commit),
            (log.archived.unwrap_or(Lsn(u64::MAX)), Holder::Archive),
            (log.last_durable, Holder::LastBatch),
        ];
        let (free, holder) = free.into_iter().min_by_key(|(at, _)| *at).expect("there are four");
        let mut slots: Vec<_> = slots.collect();
        slots.sort_by_key(|(slot, restart)| (*restart, *slot));
        let most = self.cap.map(|cap| cap.max(log.durable.since(self.segment(free)) + self.near()));
        let mut lost = Vec::new();
        for (slot, restart) in slots {
            if canary!(RecycleAboveSlot) {
                break;
            }
            let held = self.segment(restart);
            if held >= self.segment(free) {
                // It holds no segment that would go without it, nor does any slot after it.
                return Recycling { lost, below: free.min(restart), holder };
            }
            match most {
                Some(most) if log.durable.since(held) > most => lost.push(slot),
                _ => return Recycling { lost, below: restart, holder: Holder::Slot(slot) },
            }
        }
        Recycling { lost, below: free, holder }
    }

    /// Keeps more for those that replicas feed, as far as the cap allows: no slot is lost for them, as
    /// the replica that feeds them has what they need.
    #[must_use]
    pub fn keep_below(&self, log: &Log, r: Recycling, fed: impl Iterator<Item = (usize, Lsn)>) -> Recycling {
        let fits = |at: &Lsn| self.cap.is_none_or(|cap| log.durable.since(self.segment(*at)) <= cap);
        match fed.filter(|(_, at)| *at < r.below && fits(at)).min_by_key(|(slot, at)| (*at, *slot)) {
            Some((slot, at)) => Recycling { below: at, holder: Holder::Below(slot), ..r },
            None => r,
        }
    }

    /// Whether the log may have another segment: not if what nobody may let go of, as it is not
    /// committed or not archived, fills the cap. What is all committed may always grow, so that one
    /// batch can be larger than the cap.
    #[must_use]
    pub fn may_grow(&self, log: &Log) -> bool {
        let held = log.commit.min(log.archived.unwrap_or(Lsn(u64::MAX)));
        let Some(cap) = self.cap else { return true };
        held >= log.appended || log.appended.since(self.segment(held)) < cap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: u64 = 64 << 10;

    fn limits(keep: Option<u64>, cap: Option<u64>) -> Limits {
        Limits { keep: keep.map(|k| k * SEGMENT), cap: cap.map(|c| c * SEGMENT), segment_bytes: SEGMENT }
    }

    /// A log of so many segments, all committed.
    fn log(segments: u64) -> Log {
        let end = Lsn(segments * SEGMENT);
        let last_durable = Lsn(end.0 - 4096);
        Log { appended: end, durable: end, last_durable, commit: end, trim_to: Lsn(0), archived: None }
    }

    fn at(segment: u64) -> Lsn {
        Lsn(segment * SEGMENT + 8192)
    }

    fn none() -> std::iter::Empty<(usize, Lsn)> {
        std::iter::empty()
    }

    #[test]
    fn without_slots_the_keep_size_what_is_committed_and_the_last_batch_hold_the_log() {
        let below = |l: Limits, log: Log| {
            let r = l.recycle(&log, none());
            assert!(r.lost.is_empty());
            (r.below, r.holder)
        };
        assert_eq!(below(limits(None, None), log(10)), (Lsn(0), Holder::KeepSize));
        assert_eq!(below(limits(None, None), Log { trim_to: at(3), ..log(10) }), (at(3), Holder::KeepSize));
        assert_eq!(below(limits(Some(2), None), log(10)), (Lsn(8 * SEGMENT), Holder::KeepSize));
        assert_eq!(below(limits(Some(20), None), log(10)), (Lsn(0), Holder::KeepSize));
        let log = Log { commit: at(4), ..log(10) };
        assert_eq!(below(limits(Some(2), None), log), (at(4), Holder::Commit));
        let log = Log { archived: Some(at(1)), ..log };
        assert_eq!(below(limits(Some(2), None), log), (at(1), Holder::Archive));
        let all = Log { commit: Lsn(u64::MAX), trim_to: Lsn(u64::MAX), archived: None, ..log };
        assert_eq!(below(limits(Some(0), None), all), (log.last_durable, Holder::LastBatch));
    }

    #[test]
    fn the_lowest_valid_slot_holds_the_log_and_without_a_cap_for_good() {
        let l = limits(Some(2), None);
        let slots = [(0, at(7)), (1, at(3)), (2, at(9))];
        let r = l.recycle(&log(100), slots.into_iter());
        assert_eq!(r, Recycling { lost: vec![], below: at(3), holder: Holder::Slot(1) });
        let r = l.recycle(&log(10), [(4, at(8))].into_iter());
        assert_eq!(r.holder, Holder::KeepSize, "a slot in the segment that is kept anyway holds nothing");
    }

    #[test]
    fn slots_that_hold_more_than_the_cap_are_lost_the_worst_first() {
        let l = limits(Some(2), Some(5));
        let slots = [(0, at(7)), (1, at(3)), (2, at(4)), (3, at(10))];
        // What slot 0 holds are exactly five segments.
        let r = l.recycle(&log(12), slots.into_iter());
        assert_eq!(r, Recycling { lost: vec![1, 2], below: at(7), holder: Holder::Slot(0) });
        let mut more = log(12);
        (more.durable, more.appended) = (Lsn(more.durable.0 + 4096), Lsn(more.appended.0 + 4096));
        let r = l.recycle(&more, slots.into_iter());
        assert_eq!(r.lost, [1, 2, 0]);
        assert_eq!(r.holder, Holder::KeepSize);
        assert_eq!(r.below, Lsn(10 * SEGMENT + 4096));
    }

    #[test]
    fn no_slot_is_lost_where_that_frees_nothing() {
        // The replica is needed for the commit: what it lacks is not committed.
        let stuck = Log { commit: at(3), ..log(100) };
        let r = limits(Some(2), Some(5)).recycle(&stuck, [(0, at(3))].into_iter());
        assert_eq!(r, Recycling { lost: vec![], below: at(3), holder: Holder::Commit });
        // All is kept anyway.
        let r = limits(None, Some(5)).recycle(&log(100), [(0, at(3))].into_iter());
        assert_eq!((r.lost.len(), r.holder), (0, Holder::KeepSize));
        // The embedder lets go.
        let r = limits(None, Some(5)).recycle(&Log { trim_to: at(50), ..log(100) }, [(0, at(3))].into_iter());
        assert_eq!((r.lost.as_slice(), r.below), (&[0][..], at(50)));
    }

    #[test]
    fn a_slot_near_what_is_kept_anyway_is_not_lost_so_that_commits_can_go_on() {
        // What is not committed fills the cap, and the commit waits for slot 0, one segment behind.
        let full = Log { commit: at(95), ..log(100) };
        let l = limits(Some(2), Some(5));
        assert!(!l.may_grow(&full));
        let r = l.recycle(&full, [(0, at(94)), (1, at(93)), (2, at(92))].into_iter());
        assert_eq!(r, Recycling { lost: vec![2], below: at(93), holder: Holder::Slot(1) });
    }

    #[test]
    fn those_that_a_replica_feeds_hold_log_up_to_the_cap_and_cost_no_slot() {
        let l = limits(Some(2), Some(5));
        let kept = |fed: &[(usize, Lsn)]| {
            let log = log(12);
            let r = l.keep_below(&log, l.recycle(&log, [(0, at(9))].into_iter()), fed.iter().copied());
            assert!(r.lost.is_empty());
            (r.below, r.holder)
        };
        assert_eq!(kept(&[]), (at(9), Holder::Slot(0)));
        assert_eq!(kept(&[(0, at(10))]), (at(9), Holder::Slot(0)), "it is kept anyway");
        assert_eq!(kept(&[(0, at(8)), (3, at(7))]), (at(7), Holder::Below(3)), "exactly five segments");
        assert_eq!(kept(&[(0, at(8)), (3, at(6))]), (at(8), Holder::Below(0)), "what does not fit is let go of");
        let none = limits(Some(2), None);
        let r = none.keep_below(&log(100), none.recycle(&log(100), [].into_iter()), [(0, at(1))].into_iter());
        assert_eq!(r.below, at(1));
    }

    #[test]
    fn log_that_is_not_committed_may_not_fill_the_disk() {
        let l = limits(Some(2), Some(5));
        assert!(l.may_grow(&log(100)));
        let stuck = |commit: Lsn, segments: u64| Log { commit, ..log(segments) };
        assert!(l.may_grow(&stuck(at(96), 100)));
        assert!(!l.may_grow(&stuck(at(95), 100)));
        assert!(!l.may_grow(&Log { archived: Some(at(3)), ..log(100) }));
        assert!(limits(Some(2), None).may_grow(&stuck(at(1), 100)));
        // One batch larger than the cap, after everything before it was committed.
        assert!(l.may_grow(&stuck(Lsn(100 * SEGMENT), 100)));
    }

    proptest! {
        /// Nothing is recycled above a slot that stays, above what is committed or archived, or out of
        /// what is to be kept; and what slots hold stays within the cap.
        #[test]
        fn recycling_honours_every_holder_and_the_cap(
            keep in prop::option::of(0..8u64), more in prop::option::of(2..8u64), end in 1..200u64, commit in 0..200u64,
            trim in 0..200u64, archived in prop::option::of(0..200u64), slots in prop::collection::vec(0..200u64, 0..6),
        ) {
            let blocks = |n: u64| Lsn(n * 16_384);
            let l = Limits { cap: more.map(|more| (keep.unwrap_or(0) + more) * SEGMENT), ..limits(keep, None) };
            let log = Log {
                appended: blocks(end), durable: blocks(end), last_durable: blocks(end - 1),
                commit: blocks(commit.min(end)), trim_to: blocks(trim), archived: archived.map(blocks),
            };
            let slots: Vec<_> = slots.iter().map(|s| blocks(*s.min(&end))).enumerate().collect();
            let r = l.recycle(&log, slots.iter().copied());
            prop_assert!(r.below <= log.commit && r.below <= log.last_durable);
            prop_assert!(log.archived.is_none_or(|a| r.below <= a));
            prop_assert!(keep.is_none_or(|k| r.below <= log.trim_to.max(Lsn(log.durable.0.saturating_sub(k * SEGMENT)))));
            prop_assert!(keep.is_some() || r.below <= log.trim_to);
            let stay = |(n, _): &&(usize, Lsn)| !r.lost.contains(n);
            let floor = |lsn: Lsn| lsn.0 - lsn.0 % SEGMENT;
            for (_, restart) in slots.iter().filter(stay) {
                prop_assert!(r.below <= *restart);
            }
            if let (Holder::Slot(_), Some(cap)) = (r.holder, l.cap) {
                let anyway = log.durable.0 - floor(l.recycle(&log, none()).below);
                prop_assert!(log.durable.0 - floor(r.below) <= cap.max(anyway + 2 * SEGMENT));
            }
            for pair in r.lost.windows(2) {
                prop_assert!(slots[pair[0]].1 <= slots[pair[1]].1);
            }
            let without = l.recycle(&log, slots.iter().copied().filter(|s| stay(&s)));
            prop_assert!(without.lost.is_empty() && without.below == r.below, "once they are lost no more are");
        }
    }
}
