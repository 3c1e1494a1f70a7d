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
struct Queue {
    need: Requirement,
    waiters: VecDeque<Waiter>,
}

/// The gate of one shard.
#[derive(Debug)]
pub struct CommitGate {
    default: Requirement,
    durable: Lsn,
    commit: Lsn,
    slots: Vec<SlotPositions>,
    queues: Vec<Queue>,
    /// No waiter's deadline is earlier than this.
    earliest_ns: u64,
    /// A newer primary reigns: nothing becomes committed here any more.
    frozen: bool,
}

impl CommitGate {
    /// A gate for `slots` configured replicas over a log that is durable up to `durable`.
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

    /// What a slot has acknowledged.
    #[must_use]
    pub fn slot(&self, slot: usize) -> SlotPositions {
        self.slots[slot]
    }

    /// Waiters that are not complete.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(|q| q.waiters.len()).sum()
    }

    /// Whether somebody waits for a commit that ends at or below `lsn`.
    #[must_use]
    pub fn waits_up_to(&self, lsn: Lsn) -> bool {
        self.queues.iter().any(|q| q.waiters.front().is_some_and(|w| w.end <= lsn))
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
        let queue = match self.queues.iter().position(|q| q.need == need) {
            Some(at) => &mut self.queues[at],
            None => {
                // At most 3 levels x 256 numbers exist, and in practice one or two are used.
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
    /// within a link, but a replica that was cut begins anew lower.
    pub fn on_ack(&mut self, slot: usize, positions: SlotPositions) {
        self.slots[slot] = positions;
        self.move_commit();
    }

    /// Replicas that stand at or above `lsn` at `level`.
    #[must_use]
    pub fn acks(&self, level: AckLevel, lsn: Lsn) -> u8 {
        self.slots.iter().filter(|s| s.at(level) >= lsn).count().min(255) as u8
    }

    /// How far a requirement holds.
    fn holds_to(&self, need: Requirement) -> Lsn {
        let n = usize::from(need.replicas);
        if n == 0 {
            return self.durable;
        }
        let mut at = [Lsn::ZERO; limits::REPLICAS_MAX];
        let at = &mut at[..self.slots.len()];
        for (at, slot) in at.iter_mut().zip(&self.slots) {
            let received = canary!(ReceivedAsFlushed) && need.level == AckLevel::Flushed;
            *at = if received { slot.received } else { slot.at(need.level) };
        }
        let (_, nth, _) = at.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        (*nth).min(self.durable)
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiter(end: u64, first: u64) -> Waiter {
        Waiter { end: Lsn(end), lane: 0, first, count: 1, since_ns: 0, deadline_ns: u64::MAX }
    }

    fn ack(received: u64, flushed: u64, applied: u64) -> SlotPositions {
        SlotPositions { received: Lsn(received), flushed: Lsn(flushed), applied: Lsn(applied) }
    }

    const TWO_FLUSHED: Requirement = Requirement { replicas: 2, level: AckLevel::Flushed };

    fn completed(gate: &mut CommitGate) -> Vec<u64> {
        let mut out = Vec::new();
        gate.complete(|w, v| {
            assert!(matches!(v, Verdict::Committed { .. }));
            out.push(w.first);
        });
        out
    }

    #[test]
    fn a_commit_needs_the_primarys_own_copy_and_n_flushed_replicas() {
        let mut gate = CommitGate::new(TWO_FLUSHED, 3, Lsn(0), Lsn(0));
        gate.wait(TWO_FLUSHED, waiter(100, 1));
        gate.on_ack(0, ack(100, 100, 0));
        gate.on_ack(1, ack(100, 99, 0));
        gate.on_ack(2, ack(200, 0, 0));
        gate.on_durable(Lsn(200));
        assert_eq!(completed(&mut gate), [0; 0]);
        gate.on_ack(1, ack(100, 100, 0));
        assert_eq!(gate.commit(), Lsn(100));
        assert_eq!(completed(&mut gate), [1]);

        let mut gate = CommitGate::new(TWO_FLUSHED, 2, Lsn(0), Lsn(0));
        gate.wait(TWO_FLUSHED, waiter(100, 1));
        gate.on_ack(0, ack(100, 100, 100));
        gate.on_ack(1, ack(100, 100, 100));
        assert_eq!(completed(&mut gate), [0; 0], "the primary's copy is not durable");
        gate.on_durable(Lsn(100));
        assert_eq!(completed(&mut gate), [1]);
    }

    #[test]
    fn the_commit_lsn_never_moves_back() {
        let mut gate = CommitGate::new(TWO_FLUSHED, 2, Lsn(300), Lsn(50));
        gate.on_ack(0, ack(200, 200, 0));
        gate.on_ack(1, ack(200, 200, 0));
        assert_eq!(gate.commit(), Lsn(200));
        gate.on_ack(0, ack(0, 0, 0));
        assert_eq!(gate.commit(), Lsn(200));
    }

    #[test]
    fn an_applied_policy_does_not_hold_back_the_commit_lsn() {
        let need = Requirement { replicas: 1, level: AckLevel::Applied };
        let mut gate = CommitGate::new(need, 1, Lsn(100), Lsn(0));
        gate.wait(need, waiter(100, 1));
        gate.on_ack(0, ack(100, 100, 0));
        assert_eq!(gate.commit(), Lsn(100));
        assert_eq!(completed(&mut gate), [0; 0]);
        gate.on_ack(0, ack(100, 100, 100));
        assert_eq!(completed(&mut gate), [1]);
    }

    #[test]
    fn a_deposed_primarys_gate_moves_no_more() {
        let mut gate = CommitGate::new(TWO_FLUSHED, 2, Lsn(0), Lsn(0));
        gate.wait(TWO_FLUSHED, waiter(100, 1));
        gate.freeze();
        gate.on_durable(Lsn(100));
        gate.on_ack(0, ack(100, 100, 0));
        gate.on_ack(1, ack(100, 100, 0));
        assert_eq!(gate.commit(), Lsn(0));
        assert_eq!(completed(&mut gate), [0; 0]);
    }

    #[test]
    fn a_deadline_says_what_is_known_and_frees_the_waiter() {
        let mut gate = CommitGate::new(TWO_FLUSHED, 2, Lsn(0), Lsn(0));
        gate.wait(TWO_FLUSHED, Waiter { deadline_ns: 10, ..waiter(100, 1) });
        gate.wait(TWO_FLUSHED, Waiter { deadline_ns: 30, ..waiter(200, 2) });
        gate.on_durable(Lsn(150));
        gate.on_ack(1, ack(200, 200, 0));
        let mut out = Vec::new();
        gate.expire(9, |w, v| out.push((w.first, v)));
        assert!(out.is_empty());
        gate.expire(10, |w, v| out.push((w.first, v)));
        assert_eq!(out, [(1, Verdict::TimedOut { durable_here: true, acks: 1, wanted: 2 })]);
        assert_eq!(gate.waiting(), 1);
        gate.on_ack(0, ack(200, 200, 0));
        gate.on_durable(Lsn(200));
        assert_eq!(completed(&mut gate), [2]);
    }

    #[test]
    fn who_is_drained_is_told_once_and_nothing_waits_any_more() {
        let mut gate = CommitGate::new(TWO_FLUSHED, 2, Lsn(0), Lsn(0));
        let applied = Requirement { replicas: 1, level: AckLevel::Applied };
        gate.wait(TWO_FLUSHED, waiter(100, 1));
        assert!(!gate.wants_applied());
        gate.wait(applied, waiter(200, 2));
        assert!(gate.wants_applied());
        let mut told = Vec::new();
        gate.drain(|w| told.push(w.first));
        gate.drain(|w| told.push(w.first));
        assert_eq!((told, gate.waiting(), gate.wants_applied()), (vec![1, 2], 0, false));
        assert_eq!(gate.durable(), Lsn(0));
    }

    proptest! {
        /// Against a model that looks at every waiter every time.
        #[test]
        fn the_gate_agrees_with_a_model_that_scans(
            events in prop::collection::vec((0u8..5, 0usize..3, 1u64..6), 1..200)
        ) {
            let needs = [
                Requirement { replicas: 0, level: AckLevel::Flushed },
                TWO_FLUSHED,
                Requirement { replicas: 3, level: AckLevel::Received },
            ];
            let mut gate = CommitGate::new(TWO_FLUSHED, 3, Lsn(0), Lsn(0));
            let mut slots = [SlotPositions::default(); 3];
            let (mut durable, mut tail) = (0u64, 0u64);
            let mut open: Vec<(Requirement, u64, u64)> = Vec::new();
            for (n, (kind, which, by)) in events.into_iter().enumerate() {
                match kind {
                    0 => {
                        tail += by;
                        gate.wait(needs[which], waiter(tail, n as u64));
                        open.push((needs[which], tail, n as u64));
                    }
                    1 => {
                        durable = (durable + by).min(tail);
                        gate.on_durable(Lsn(durable));
                    }
                    2 => slots[which].received = Lsn((slots[which].received.0 + by).min(tail)),
                    3 => slots[which].flushed = Lsn((slots[which].flushed.0 + by).min(slots[which].received.0)),
                    _ => slots[which].applied = Lsn((slots[which].applied.0 + by).min(slots[which].flushed.0)),
                }
                gate.on_ack(which, slots[which]);
                let mut got = completed(&mut gate);
                got.sort_unstable();
                let (mut want, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|(need, end, _)| {
                    let acks = slots.iter().filter(|s| s.at(need.level).0 >= *end).count();
                    durable >= *end && acks >= usize::from(need.replicas)
                });
                open = rest;
                want.sort_unstable_by_key(|w| w.2);
                prop_assert_eq!(got, want.into_iter().map(|w| w.2).collect::<Vec<_>>());
            }
        }
    }
}
