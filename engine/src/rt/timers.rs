//! Timers of one executor, in the order in which they are due.

use std::collections::BTreeMap;
use std::task::Waker;

/// A timer: when it is due, and which of those it is.
pub(super) type TimerId = (u64, u64);

/// Who waits until when.
#[derive(Debug, Default)]
pub(super) struct Timers {
    waiting: BTreeMap<TimerId, Waker>,
    count: u64,
}

impl Timers {
    /// A timer that is due at `ns`.
    pub(super) const fn add(&mut self, ns: u64) -> TimerId {
        self.count += 1;
        (ns, self.count)
    }

    /// Tells `waker` when it is due.
    pub(super) fn wait(&mut self, timer: TimerId, waker: &Waker) {
        self.waiting.entry(timer).and_modify(|w| w.clone_from(waker)).or_insert_with(|| waker.clone());
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&mut self, timer: TimerId) {
        self.waiting.remove(&timer);
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|((ns, _), _)| *ns)
    }

    /// Puts those that are due into `wake`.
    pub(super) fn due(&mut self, now_ns: u64, wake: &mut Vec<Waker>) {
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now_ns
        {
            wake.push(first.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_due_in_order_and_not_before() {
        let (mut timers, mut wake) = (Timers::default(), Vec::new());
        let ids = [30, 10, 20, 10].map(|ns| timers.add(ns));
        for id in ids {
            timers.wait(id, Waker::noop());
            timers.wait(id, Waker::noop());
        }
        assert_eq!(timers.next(), Some(10));
        timers.due(9, &mut wake);
        assert_eq!(wake.len(), 0);
        timers.due(19, &mut wake);
        assert_eq!((wake.len(), timers.next()), (2, Some(20)));
        timers.forget(ids[2]);
        timers.forget(ids[1]);
        assert_eq!(timers.next(), Some(30));
        timers.due(u64::MAX, &mut wake);
        assert_eq!((wake.len(), timers.next()), (3, None));
    }
}
