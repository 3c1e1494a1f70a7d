//! A replica that feeds others: what those below it are answered, when their links end, and what of
//! the log they still need.
//!
//! Towards them it is what a primary is: the same [`Primary`] answers, with the same slots, and a gate
//! that nobody waits at. It stands on this replica's term, history and device, and says no more than
//! those know:
//!
//! - It serves once it has followed its own upstream since it was started: from then on its log is a
//!   part of that term's. A folder alone does not say so: it may end with a reign that came to nothing.
//! - That a node below has more than this log may only mean that this replica is behind. Nobody is told
//!   to cut for that, but by a newer term that began here, or where this log has all that the primary
//!   had when its term was heard.
//! - When the term changes, or the log goes back or begins anew, links below end: those nodes say hello
//!   again, and promise, cut or begin as at a primary.
//! - It says how deep it is below the primary. When that changes links end too, so that replicas which
//!   were told to feed each other in a circle count up to the limit, and one of them is refused.

use towline_wire::handshake::{Hello, Refusal, Verdict};
use towline_wire::message::AckLevel;
use towline_wire::{Lsn, Seq, ShardId, SystemId, Term};

use super::Replica;
use crate::limits;
use crate::protocol::gate::CommitGate;
use crate::protocol::history::History;
use crate::protocol::policy::Requirement;
use crate::protocol::primary::{HelloAnswer, LogEnds, Primary};
use crate::protocol::slots::Slots;

/// What a replica heard of the primary last, through whatever stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Where its log ends.
    pub tail: Lsn,
    /// The number of the next record there.
    pub tail_seq: Seq,
    /// Its clock, in microseconds since 1970; 0 if nothing was heard.
    pub time_us: u64,
}

/// What a replica is to those below it.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Below {
    side: Primary,
    /// Links between this replica and the primary, once it has followed.
    depth: Option<u8>,
}

fn gate(durable: Lsn) -> CommitGate {
    CommitGate::new(Requirement::number(0, AckLevel::Flushed), 0, durable, Lsn::ZERO)
}

impl Below {
    pub(super) fn new(system: SystemId, shard: ShardId, shard_count: u32) -> Self {
        let slots = Slots::default();
        let identity = (system, shard, shard_count);
        Self { side: Primary::new(identity, Term::ZERO, History::default(), gate(Lsn::ZERO), slots), depth: None }
    }

    /// An upstream of a depth is followed; `same_term` says whether in the same term as before.
    pub(super) fn on_follow(&mut self, upstream: u8, same_term: bool) {
        let depth = Some(upstream.saturating_add(1));
        if self.depth != depth || !same_term {
            self.side.slots_mut().let_go_of_links();
        }
        self.depth = depth;
    }

    /// The log ends at `end` now: what those below have above it may be of another history.
    pub(super) fn on_cut(&mut self, end: Lsn) {
        self.side.slots_mut().rewind(end);
    }
}

impl Replica {
    /// With the slots of those that it feeds.
    #[must_use]
    pub fn feeding(mut self, slots: Slots) -> Self {
        *self.below.side.slots_mut() = slots;
        self
    }

    /// The log is about to begin at `at`: links below end, and no slot holds what was before that.
    pub fn about_to_begin(&mut self, at: Lsn) {
        self.below.side.slots_mut().begin(at);
    }

    /// The slots of those that it feeds.
    #[must_use]
    pub const fn slots(&self) -> &Slots {
        self.below.side.slots()
    }

    /// What it is to those that it feeds, standing where this replica stands now.
    pub fn below(&mut self) -> &mut Primary {
        let side = &mut self.below.side;
        (side.system, side.shard_count, side.term) = (self.system, self.shard_count, self.term);
        if side.gate.durable() != self.flushed {
            side.gate = gate(self.flushed);
        }
        side
    }

    /// As [`Replica::below`], to answer a hello from this log's history.
    pub fn answering(&mut self) -> &mut Primary {
        self.below.side.history.clone_from(&self.history);
        self.below()
    }

    /// Answers the hello of a node below.
    #[must_use]
    pub fn answer(&mut self, hello: &Hello, log: LogEnds, now_ns: u64) -> HelloAnswer {
        let refuse = |cause| HelloAnswer::Verdict(Verdict::Refused(cause));
        // Whom no answer is for is told that first.
        let foreign = hello.system != self.system && !hello.system.is_none();
        if let Some(slot) = self.slots().of(hello.name).filter(|_| !foreign) {
            if self.below.depth.is_some_and(|depth| depth >= limits::CASCADE_DEPTH_MAX) {
                return refuse(Refusal::TooDeep);
            }
            if self.below.depth.is_none() || hello.term > self.term || self.lacks(hello, log.tail) {
                self.below().slots_mut().is_there(slot, now_ns);
                return refuse(Refusal::Behind);
            }
        }
        self.answering().answer(hello, log, now_ns)
    }

    /// Whether a node below has what this log, which ends at `tail`, has not, and the primary may have.
    fn lacks(&self, hello: &Hello, tail: Lsn) -> bool {
        const OPEN: Lsn = Lsn(u64::MAX);
        // A newer term that began here tells where the two part. A log without a batch parts nowhere.
        let continues = hello.last_term == Term::ZERO || self.history.common_end(hello.last_term, OPEN) == Some(OPEN);
        // All that is older than its term the primary had when that was heard.
        let is_whole = tail >= self.primary_tail && hello.last_term < self.term;
        hello.end_lsn > tail && continues && !is_whole
    }

    /// How many bytes in front of what is on this device those below still need, and those below them.
    #[must_use]
    pub fn owed(&self) -> u64 {
        let needed = self.slots().iter().filter(|(_, s)| s.is_valid()).map(|(_, s)| s.restart.min(s.below)).min();
        needed.map_or(0, |needed| self.flushed.0.saturating_sub(needed.0))
    }

    /// What was heard of the primary last.
    #[must_use]
    pub fn heard(&self) -> Heard {
        let tail = self.primary_tail.max(self.received);
        Heard { tail, tail_seq: self.primary_seq.max(self.next_seq), time_us: self.primary_us }
    }

    /// Links between this replica and the primary: 1 where it follows that itself, 0 before it has
    /// followed anybody.
    #[must_use]
    pub fn depth(&self) -> u8 {
        self.below.depth.unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "cascade_tests.rs"]
mod tests;
