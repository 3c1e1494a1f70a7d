//! The write pipeline: several batches in flight to the device, completions in any order, one
//! durable position that only moves over a prefix without a hole.

use std::collections::VecDeque;

use towline_wire::Lsn;

/// Positions of the log on this node: `appended >= written >= durable`.
#[derive(Debug)]
pub struct Pipeline {
    /// The end of the last closed batch.
    appended: Lsn,
    /// The end of the last batch handed to the device.
    written: Lsn,
    /// Everything below is on the device.
    durable: Lsn,
    /// Where the last durable batch starts.
    last_durable: Lsn,
    in_flight: VecDeque<InFlight>,
    depth_max: usize,
    bytes_max: u64,
}

#[derive(Debug)]
struct InFlight {
    start: Lsn,
    end: Lsn,
    done: bool,
}

impl Pipeline {
    /// An idle pipeline at the end of a recovered log whose last batch starts at `last_batch`. At most `depth_max` batches are in flight,
    /// and at most `bytes_max` bytes, except that one batch alone may always be.
    #[must_use]
    pub fn new(end: Lsn, last_batch: Lsn, depth_max: usize, bytes_max: u64) -> Self {
        assert!(depth_max > 0 && last_batch <= end);
        let in_flight = VecDeque::with_capacity(depth_max);
        Self { appended: end, written: end, durable: end, last_durable: last_batch, in_flight, depth_max, bytes_max }
    }

    /// The end of the last closed batch.
    #[must_use]
    pub const fn appended(&self) -> Lsn {
        self.appended
    }

    /// The end of the last batch handed to the device.
    #[must_use]
    pub const fn written(&self) -> Lsn {
        self.written
    }

    /// Everything below is on the device.
    #[must_use]
    pub const fn durable(&self) -> Lsn {
        self.durable
    }

    /// Where the last durable batch starts: a recovery may begin there.
    #[must_use]
    pub const fn last_durable(&self) -> Lsn {
        self.last_durable
    }

    /// Bytes handed to the device and not durable yet.
    #[must_use]
    pub const fn in_flight_bytes(&self) -> u64 {
        self.written.since(self.durable)
    }

    /// Batches in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether a batch of `bytes` may be handed to the device now.
    #[must_use]
    pub fn may_write(&self, bytes: u64) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < self.depth_max && self.in_flight_bytes() + bytes <= self.bytes_max)
    }

    /// A batch was closed and handed to the device.
    ///
    /// # Panics
    /// If it does not follow the one before it, or the limits are passed.
    pub fn write(&mut self, start: Lsn, end: Lsn) {
        assert!(start == self.appended && end > start, "batch at {start:?} after {:?}", self.appended);
        assert!(self.may_write(end.since(start)), "write limits are passed");
        self.appended = end;
        self.written = end;
        self.in_flight.push_back(InFlight { start, end, done: false });
    }

    /// The device has the batch that ends at `end`. Returns the new durable position if it moved.
    ///
    /// # Panics
    /// If no such batch is in flight.
    pub fn complete(&mut self, end: Lsn) -> Option<Lsn> {
        let batch = self.in_flight.iter_mut().find(|b| b.end == end && !b.done);
        batch.expect("a completion is of a batch in flight").done = true;
        let before = self.durable;
        while let Some(front) = self.in_flight.front().filter(|b| b.done || (canary!(DurableOverHole) && b.end <= end))
        {
            (self.last_durable, self.durable) = (front.start, front.end);
            self.in_flight.pop_front();
        }
        assert!(self.appended >= self.written && self.written >= self.durable);
        (self.durable > before).then_some(self.durable)
    }

    /// The log begins anew further on, at `at`, while nothing was in flight.
    ///
    /// # Panics
    /// If something is in flight, or `at` lies behind.
    pub fn begin(&mut self, at: Lsn) {
        assert!(self.in_flight.is_empty() && at > self.durable);
        (self.appended, self.written, self.durable, self.last_durable) = (at, at, at, at);
    }

    /// The log was cut back to `end`, its last batch now at `last_batch`, while nothing was in flight.
    ///
    /// # Panics
    /// If something is in flight, or `end` lies ahead.
    pub fn cut(&mut self, end: Lsn, last_batch: Lsn) {
        assert!(self.in_flight.is_empty() && end <= self.durable);
        (self.appended, self.written, self.durable) = (end, end, end);
        self.last_durable = last_batch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durable_never_passes_a_hole() {
        let mut p = Pipeline::new(Lsn(0), Lsn(0), 4, 1 << 20);
        for n in 0..4 {
            p.write(Lsn(n * 10), Lsn(n * 10 + 10));
        }
        assert!(!p.may_write(10));
        assert_eq!(p.complete(Lsn(30)), None);
        assert_eq!(p.complete(Lsn(20)), None);
        assert_eq!(p.complete(Lsn(10)), Some(Lsn(30)));
        assert_eq!(p.complete(Lsn(40)), Some(Lsn(40)));
        assert_eq!(p.in_flight_bytes(), 0);
    }

    #[test]
    fn bytes_in_flight_are_bounded_but_one_batch_always_goes() {
        let mut p = Pipeline::new(Lsn(0), Lsn(0), 8, 100);
        assert!(p.may_write(1000));
        p.write(Lsn(0), Lsn(1000));
        assert!(!p.may_write(1));
        assert_eq!(p.complete(Lsn(1000)), Some(Lsn(1000)));
        p.write(Lsn(1000), Lsn(1060));
        assert!(p.may_write(40) && !p.may_write(41));
    }

    #[test]
    fn a_cut_takes_every_position_back() {
        let mut p = Pipeline::new(Lsn(30), Lsn(20), 4, 100);
        assert_eq!((p.appended(), p.last_durable()), (Lsn(30), Lsn(20)));
        p.cut(Lsn(10), Lsn(0));
        assert_eq!((p.appended(), p.written(), p.durable(), p.last_durable()), (Lsn(10), Lsn(10), Lsn(10), Lsn(0)));
        p.write(Lsn(10), Lsn(20));
        assert_eq!((p.in_flight(), p.in_flight_bytes()), (1, 10));
        assert_eq!(p.complete(Lsn(20)), Some(Lsn(20)));
        assert_eq!(p.last_durable(), Lsn(10));
    }

    #[test]
    #[should_panic(expected = "a completion is of a batch in flight")]
    fn a_write_completes_once() {
        let mut p = Pipeline::new(Lsn(0), Lsn(0), 4, 100);
        p.write(Lsn(0), Lsn(10));
        p.write(Lsn(10), Lsn(20));
        p.complete(Lsn(20));
        p.complete(Lsn(20));
    }

    proptest! {
        /// Completions in any order, against a list of what is done.
        #[test]
        fn durable_is_the_end_of_the_longest_prefix_that_is_done(
            events in prop::collection::vec((any::<bool>(), 1u64..50, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut p = Pipeline::new(Lsn(100), Lsn(90), 4, 100);
            let mut all: Vec<(u64, u64, bool)> = vec![(90, 100, true)];
            for (write, bytes, which) in events {
                let end = all.last().unwrap().1;
                let open: Vec<usize> = (0..all.len()).filter(|n| !all[*n].2).collect();
                // What is done in front of a hole still holds its place.
                let hole = open.first().copied().unwrap_or(all.len());
                let (depth, in_flight) = (all.len() - hole, end - all[hole - 1].1);
                let may = depth == 0 || (depth < 4 && in_flight + bytes <= 100);
                prop_assert_eq!(p.may_write(bytes), may);
                if write && may {
                    p.write(Lsn(end), Lsn(end + bytes));
                    all.push((end, end + bytes, false));
                } else if !open.is_empty() {
                    let n = open[which.index(open.len())];
                    all[n].2 = true;
                    let moved = p.complete(Lsn(all[n].1));
                    prop_assert_eq!(moved.is_some(), n == hole);
                }
                let last = all.iter().take_while(|b| b.2).last().unwrap();
                prop_assert_eq!((p.last_durable(), p.durable()), (Lsn(last.0), Lsn(last.1)));
                prop_assert_eq!((p.written(), p.appended()), (Lsn(all.last().unwrap().1), p.written()));
                prop_assert_eq!(p.in_flight_bytes(), p.written().since(p.durable()));
            }
        }
    }
}
