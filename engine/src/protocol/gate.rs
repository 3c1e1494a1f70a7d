//! The commit gate: takes the primary's durable position and the replicas' acknowledgements, moves
//! the commit LSN, and completes waiters in LSN order, in runs.
//!
//! The n-th largest of the slots' positions is where at least n replicas stand (the order
//! statistic of PostgreSQL's `SyncRepGetNthLatestSyncRecPtr`). A waiter is one lane's records in one
//! batch, not one record, so that the cost of a move does not grow with records; queues are kept
//! per requirement and in LSN order, so that a move pops a prefix and never scans.

use std::collections::VecDeque;

use towline_wire::Lsn;
use towline_wire::message::AckLevel;

use super::policy::Requirement;
use crate::limits;

/// What one replica has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct SlotPositions {
    /// Checked and in the replica's memory.
    pub received: Lsn,
    /// On the replica's device.
    pub flushed: Lsn,
    /// Through the replica's handler.
    pub applied: Lsn,
}

impl SlotPositions {
    const fn at(&self, level: AckLevel) -> Lsn {
        match level {
            AckLevel::Received => self.received,
            AckLevel::Flushed => self.flushed,
            AckLevel::Applied => self.applied,
        }
    }
}

/// Records of one lane in one batch that wait for one requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Waiter {
    /// The end of the batch that holds them.
    pub end: Lsn,
    /// Who waits: the shell's key.
    pub lane: u32,
    /// The lane's number of the first record.
    pub first: u64,
    /// Records.
    pub count: u32,
    /// When the first of them was appended, in nanoseconds of the shard's clock.
    pub since_ns: u64,
    /// When to give up, in nanoseconds of the shard's clock; [`u64::MAX`] for never.
    pub deadline_ns: u64,
}

/// Why a waiter is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The requirement holds.
    Committed {
        /// Replicas that have acknowledged at the level, never fewer than wanted.
        acks: u8,
    },
    /// The deadline passed first.
    TimedOut {
        /// Whether the primary's own copy is on its device.
        durable_here: bool,
        /// Replicas that have acknowledged at the level.
        acks: u8,
        /// Replicas wanted.
        wanted: u8,
    },
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
struct Queue {
    need: Requirement,
    waiters: VecDeque<Waiter>,
}

/// The gate of one shard.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub struct CommitGate {
    default: Requirement,
    durable: Lsn,
    commit: Lsn,
    /// The slots that count, by their numbers,
    members: Vec<usize>,
    /// and what each of them has acknowledged.
    slots: Vec<SlotPositions>,
    queues: Vec<Queue>,
    /// No waiter's deadline is earlier than this.
    earliest_ns: u64,
    /// A newer primary reigns: nothing becomes committed here any more.
    frozen: bool,
}

impl CommitGate {
    /// A gate for `slots` configured replicas, whose slots have the numbers below that, over a log that is durable up to `durable`.
    ///
    /// Nothing above `commit`, the durable lower bound from before the start, counts as committed
    /// until replicas have said so in this reign.
    #[must_use]
    pub fn new(default: Requirement, slots: usize, durable: Lsn, commit: Lsn) -> Self {
        assert!(commit <= durable && usize::from(default.replicas) <= slots);
        let mut gate = Self {
            default,
            durable,
            commit,
            members: (0..slots).collect(),
            slots: vec![SlotPositions::default(); slots],
            queues: Vec::new(),
            earliest_ns: u64::MAX,
            frozen: false,
        };
        gate.move_commit();
        gate
    }

    /// What the primary's own device holds.
    #[must_use]
    pub const fn durable(&self) -> Lsn {
        self.durable
    }

    /// The highest LSN for which the shard's default policy holds, with the level taken at most as
    /// `flushed`: it never moves back. (A policy at level `applied` makes its waiters wait longer;
    /// it cannot hold back the commit LSN, because replicas apply what is committed.)
    #[must_use]
    pub const fn commit(&self) -> Lsn {
        self.commit
    }

    /// What a slot has acknowledged, if it counts.
    #[must_use]
    pub fn slot(&self, slot: usize) -> Option<SlotPositions> {
        self.member(slot).map(|at| self.slots[at])
    }

    fn member(&self, slot: usize) -> Option<usize> {
        if self.members.get(slot) == Some(&slot) {
            return Some(slot);
        }
        self.members.iter().position(|m| *m == slot)
    }

    /// Other slots count from now on, and another default requirement holds. Waiters for a share of
    /// the configured replicas wait for that share of these; others keep their number. Call
    /// [`CommitGate::complete`] afterwards: it may hold now.
    ///
    /// # Panics
    /// If the requirement can never hold.
    pub fn configure(&mut self, default: Requirement, members: impl Iterator<Item = (usize, SlotPositions)>) {
        (self.members, self.slots) = members.unzip();
        assert!(self.slots.len() <= limits::REPLICAS_MAX && usize::from(default.replicas) <= self.slots.len());
        self.default = default;
        for queue in &mut self.queues {
            // Each share has one queue for a level, so no two become the same.
            queue.need = queue.need.over(self.slots.len());
        }
        self.move_commit();
    }

    /// Whether somebody waits for what holds: never between two calls of the shell.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let overdue = |q: &Queue| q.waiters.front().is_some_and(|w| w.end <= self.holds_to(q.need));
        !self.frozen && self.queues.iter().any(overdue)
    }

    /// Waiters that are not complete.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(|q| q.waiters.len()).sum()
    }

    /// The lowest end of a commit that somebody waits for.
    #[must_use]
    pub fn waits_from(&self) -> Option<Lsn> {
        self.queues.iter().filter_map(|q| q.waiters.front()).map(|w| w.end).min()
    }

    /// Whether somebody waits for a commit that ends at or below `lsn`.
    #[must_use]
    pub fn waits_up_to(&self, lsn: Lsn) -> bool {
        self.waits_from().is_some_and(|end| end <= lsn)
    }

    /// Whether somebody waits for the `applied` level: replicas are asked to be prompt.
    #[must_use]
    pub fn wants_applied(&self) -> bool {
        self.queues.iter().any(|q| q.need.level == AckLevel::Applied && q.need.replicas > 0 && !q.waiters.is_empty())
    }

    /// Adds a waiter. Waiters come in LSN order.
    ///
    /// # Panics
    /// If it lies before one that waits for the same requirement.
    pub fn wait(&mut self, need: Requirement, waiter: Waiter) {
        self.earliest_ns = self.earliest_ns.min(waiter.deadline_ns);
        // It may have been asked for when other replicas were configured.
        let need = need.over(self.slots.len());
        let queue = match self.queues.iter().position(|q| q.need == need) {
            Some(at) => &mut self.queues[at],
            None => {
                // At most 3 levels x 258 numbers and shares exist, and in practice one or two are used.
                self.queues.push(Queue { need, waiters: VecDeque::with_capacity(limits::WAITERS_RESERVED) });
                self.queues.last_mut().expect("just pushed")
            }
        };
        assert!(queue.waiters.back().is_none_or(|w| w.end <= waiter.end), "waiters come in LSN order");
        queue.waiters.push_back(waiter);
    }

    /// The primary's device has come to `durable`. Moves the commit LSN; call
    /// [`CommitGate::complete`] afterwards.
    pub fn on_durable(&mut self, durable: Lsn) {
        assert!(durable >= self.durable || canary!(OwnCopyInFlight), "durable went back");
        self.durable = self.durable.max(durable);
        self.move_commit();
    }

    /// A replica's acknowledgement, checked by the caller to be possible. Positions never go back
    /// within a link, but a replica that was cut begins anew lower. A slot that does not count is passed over.
    pub fn on_ack(&mut self, slot: usize, positions: SlotPositions) {
        if let Some(at) = self.member(slot) {
            self.slots[at] = positions;
            self.move_commit();
        }
    }

    /// Replicas that stand at or above `lsn` at `level`.
    #[must_use]
    pub fn acks(&self, level: AckLevel, lsn: Lsn) -> u8 {
        self.slots.iter().filter(|s| s.at(level) >= lsn).count().min(255) as u8
    }

    /// How many bytes of a log that ends at `tail` the replicas that the default policy waits for lack,
    /// on their devices or as the policy says. 0 if it waits for none. Who is further behind than
    /// enough others, or only reads, does not count.
    #[must_use]
    pub fn quorum_lag(&self, tail: Lsn) -> u64 {
        let need = Requirement { level: self.default.level.min(AckLevel::Flushed), ..self.default };
        // What was committed before a restart they have, although they have not said so again.
        self.nth_best(need).map_or(0, |at| tail.0.saturating_sub(at.max(self.commit).0))
    }

    /// How far a requirement holds.
    fn holds_to(&self, need: Requirement) -> Lsn {
        self.nth_best(need).map_or(self.durable, |at| at.min(self.durable))
    }

    /// Where as many replicas stand as a requirement wants; `None` if it wants none.
    fn nth_best(&self, need: Requirement) -> Option<Lsn> {
        let n = usize::from(need.replicas);
        if n == 0 {
            return None;
        }
        if n > self.slots.len() {
            // It was asked for when more were configured.
            return Some(Lsn::ZERO);
        }
        let mut at = [Lsn::ZERO; limits::REPLICAS_MAX];
        let at = &mut at[..self.slots.len()];
        for (at, slot) in at.iter_mut().zip(&self.slots) {
            let received = canary!(ReceivedAsFlushed) && need.level == AckLevel::Flushed;
            *at = if received { slot.received } else { slot.at(need.level) };
        }
        let (_, nth, _) = at.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        Some(*nth)
    }

    /// A newer primary reigns: the commit LSN stays where it is, and no waiter is completed.
    pub fn freeze(&mut self) {
        self.frozen = true;
    }

    fn move_commit(&mut self) {
        if self.frozen {
            return;
        }
        let need = Requirement { level: self.default.level.min(AckLevel::Flushed), ..self.default };
        self.commit = self.commit.max(self.holds_to(need));
        assert!(self.commit <= self.durable, "commit is above durable");
    }

    /// Completes every waiter whose requirement holds, in LSN order within each requirement.
    pub fn complete(&mut self, mut done: impl FnMut(&Waiter, Verdict)) {
        if self.frozen {
            return;
        }
        for q in 0..self.queues.len() {
            let need = self.queues[q].need;
            if self.queues[q].waiters.is_empty() {
                continue;
            }
            let holds_to = self.holds_to(need);
            while let Some(&waiter) = self.queues[q].waiters.front().filter(|w| w.end <= holds_to) {
                self.queues[q].waiters.pop_front();
                let acks = self.acks(need.level, waiter.end);
                assert!(acks >= need.replicas || canary!(ReceivedAsFlushed));
                done(&waiter, Verdict::Committed { acks });
            }
        }
    }

    /// Gives up on waiters whose deadline has passed. Scans, but only when the earliest deadline
    /// has come.
    pub fn expire(&mut self, now_ns: u64, mut done: impl FnMut(&Waiter, Verdict)) {
        if now_ns < self.earliest_ns {
            return;
        }
        let mut queues = std::mem::take(&mut self.queues);
        let mut earliest = u64::MAX;
        for queue in &mut queues {
            queue.waiters.retain(|w| {
                if w.deadline_ns > now_ns {
                    earliest = earliest.min(w.deadline_ns);
                    return true;
                }
                let verdict = Verdict::TimedOut {
                    durable_here: w.end <= self.durable,
                    acks: self.acks(queue.need.level, w.end),
                    wanted: queue.need.replicas,
                };
                done(w, verdict);
                false
            });
        }
        self.queues = queues;
        self.earliest_ns = earliest;
    }

    /// Takes every waiter out, for a shard that stops or is fenced.
    pub fn drain(&mut self, mut each: impl FnMut(&Waiter)) {
        for queue in &mut self.queues {
            queue.waiters.drain(..).for_each(|w| each(&w));
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
