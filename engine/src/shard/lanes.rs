//! Lanes: who is told what became of appends. A lane is a stream of appends with numbers of its
//! own; the gate completes runs of them.

use std::fmt;
use std::rc::Rc;

use crate::limits;
use crate::outcome::Outcome;

/// Takes outcomes. Must not call back into the shard.
pub(crate) trait Lane {
    /// The appends `first..first + count` of this lane have this outcome.
    fn complete(&self, first: u64, count: u32, outcome: &Outcome);

    /// Whether nobody listens any more and nothing of it waits, so that its number is free.
    fn is_over(&self) -> bool {
        false
    }
}

/// The lanes of one shard by number.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Vec<Option<Rc<dyn Lane>>>,
    free: Vec<u32>,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({})", self.lanes.len() - self.free.len())
    }
}

impl Lanes {
    /// Adds a lane; `None` if there are too many.
    pub(crate) fn add(&mut self, lane: Rc<dyn Lane>) -> Option<u32> {
        if let Some(n) = self.free.pop() {
            self.lanes[n as usize] = Some(lane);
            return Some(n);
        }
        if self.lanes.len() == limits::LANES_MAX {
            let over = |l: &Option<Rc<dyn Lane>>| l.as_ref().is_some_and(|l| l.is_over());
            self.free.extend((0..self.lanes.len()).filter(|n| over(&self.lanes[*n])).map(|n| n as u32));
            let n = self.free.pop()?;
            self.lanes[n as usize] = Some(lane);
            return Some(n);
        }
        self.lanes.push(Some(lane));
        Some(self.lanes.len() as u32 - 1)
    }

    /// Removes a lane. Its number is used again only once nothing of it waits, which the caller
    /// knows.
    pub(crate) fn remove(&mut self, n: u32) {
        if self.lanes[n as usize].take().is_some() {
            self.free.push(n);
        }
    }

    /// Lets go of every lane, once everything was told: some hold the shard that holds them.
    pub(crate) fn clear(&mut self) {
        self.lanes.fill(None);
    }

    /// Tells a lane.
    #[inline]
    pub(crate) fn complete(&self, n: u32, first: u64, count: u32, outcome: &Outcome) {
        if let Some(lane) = &self.lanes[n as usize] {
            lane.complete(first, count, outcome);
        }
    }
}
