//! What happens in a world, counted: faults as they come, and what the engine has done.

use std::collections::BTreeMap;

use super::{Event, Faults, NodeId, SimWorld};

impl SimWorld {
    /// Counts a fault that came from outside.
    pub fn hit(&self, kind: &'static str) {
        self.count(kind);
    }

    pub(super) fn count(&self, kind: &'static str) {
        *self.counts.borrow_mut().entry(kind).or_default() += 1;
    }

    /// Faults so far, by kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.borrow().clone()
    }

    /// Counts something that must come to pass in many runs.
    pub fn happened(&self, what: &'static str) {
        *self.did.borrow_mut().entry(what).or_default() += 1;
    }

    /// What the shards of processes that have ended had counted, and what else has happened.
    #[must_use]
    pub fn did(&self) -> BTreeMap<&'static str, u64> {
        self.did.borrow().clone()
    }

    /// Nothing goes wrong by itself any more.
    pub fn stop_faults(&self) {
        self.faults.borrow_mut().stop();
        let now = self.now_ns();
        let machines = self.machines.borrow().len();
        for n in 0..machines {
            let machine = &mut self.machines.borrow_mut()[n];
            (machine.crash_in, machine.fails_at, machine.lies) = (None, None, None);
            machine.paused_until = machine.paused_until.min(now);
        }
        for n in 0..machines {
            self.at(now, Event::Resume(NodeId(n as u32)));
        }
    }

    /// Draws whether a fault comes, and counts it.
    pub(super) fn strikes(&self, kind: &'static str, rate: impl FnOnce(&Faults) -> f64) -> bool {
        let rate = rate(&self.faults.borrow());
        let strikes = rate > 0.0 && self.rng().chance(rate);
        if strikes {
            self.count(kind);
        }
        strikes
    }
}
