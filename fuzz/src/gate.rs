//! The commit gate against [`Model`], event by event.

use arbitrary::{Result, Unstructured};
use towline::protocol::gate::{CommitGate, SlotPositions, Verdict, Waiter};
use towline::protocol::policy::Requirement;
use towline::{AckLevel, Lsn};

use crate::alloc::bounded;
use crate::gate_model::{Came, Model, Waiting};

const LEVELS: [AckLevel; 3] = [AckLevel::Received, AckLevel::Flushed, AckLevel::Applied];
/// Each requirement in use keeps room for this many waiters, at 48 bytes each.
const QUEUES_BYTES: usize = 8 * towline::limits::WAITERS_RESERVED * 48;

/// A gate, a model of it, and events for both.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(mut pair) = Pair::new(&mut u) else { return };
    let taken = data.len() * 64;
    while !u.is_empty() {
        let event = bounded(taken, QUEUES_BYTES, || pair.event(&mut u));
        if event.is_err() {
            break;
        }
        pair.compare();
    }
}

struct Pair {
    gate: CommitGate,
    model: Model,
    tail: u64,
    now: u64,
    added: u64,
}

impl Pair {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let slots = usize::from(u.int_in_range(0..=7_u8)?);
        let (replicas, level) = requirement(u, slots)?;
        let durable = u64::from(u.arbitrary::<u8>()?);
        let commit = u64::from(u.arbitrary::<u8>()?).min(durable);
        let default = Requirement::number(replicas as u8, LEVELS[level]);
        Ok(Self {
            gate: CommitGate::new(default, slots, Lsn(durable), Lsn(commit)),
            model: Model::new((replicas, level), slots, durable, commit),
            tail: durable,
            now: 0,
            added: 0,
        })
    }

    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let kind: u8 = u.arbitrary()?;
        let by = u64::from(u.arbitrary::<u8>()?);
        match kind % 16 {
            0..=4 => {
                let (replicas, level) = requirement(u, self.model.slots.len())?;
                self.tail += by % 8;
                let deadline = if by & 8 == 0 { u64::MAX } else { self.now + (by >> 4) };
                self.wait(replicas, level, deadline);
            }
            5..=7 => {
                let durable = (self.model.durable + by % 32).min(self.tail);
                self.gate.on_durable(Lsn(durable));
                self.model.on_durable(durable);
            }
            8..=11 if !self.model.slots.is_empty() => {
                // Forward mostly; backward too: a replica that was cut begins anew lower.
                let slot = usize::from(u.arbitrary::<u8>()?) % self.model.slots.len();
                let forward = |at: u64| (at + by % 32).min(self.tail);
                let [received, flushed, applied] = self.model.slots[slot];
                let said = match by >> 5 {
                    0 | 1 => [forward(received), flushed, applied],
                    2 | 3 => [received, forward(flushed).min(received), applied],
                    4 | 5 => [received, flushed, forward(applied).min(flushed)],
                    6 => [forward(received); 3],
                    _ => [received, flushed, applied].map(|at| at.min(by % 32)),
                };
                let [received, flushed, applied] = said.map(Lsn);
                self.gate.on_ack(slot, SlotPositions { received, flushed, applied });
                self.model.on_ack(slot, said);
            }
            12 | 13 => self.complete(),
            14 => self.expire(by),
            15 if by == 255 => {
                self.gate.freeze();
                self.model.frozen = true;
            }
            15 if by == 254 => {
                let mut told = Vec::new();
                self.gate.drain(|w| told.push(w.first));
                let mut all: Vec<u64> = self.model.waiting.drain(..).map(|w| w.id).collect();
                told.sort_unstable();
                all.sort_unstable();
                assert_eq!(told, all);
            }
            _ => self.complete(),
        }
        Ok(())
    }

    fn wait(&mut self, replicas: usize, level: usize, deadline: u64) {
        let waiter = Waiter {
            end: Lsn(self.tail),
            lane: level as u32,
            first: self.added,
            count: 1 + replicas as u32,
            since_ns: self.now,
            deadline_ns: deadline,
        };
        self.gate.wait(Requirement::number(replicas as u8, LEVELS[level]), waiter);
        self.model.waiting.push(Waiting { id: self.added, end: self.tail, replicas, level, deadline });
        self.added += 1;
    }

    fn complete(&mut self) {
        let mut out = Vec::new();
        self.gate.complete(|w, v| out.push((*w, v)));
        let expected = self.model.complete();
        self.same(&out, expected);
    }

    fn expire(&mut self, by: u64) {
        self.now += by % 16;
        let mut out = Vec::new();
        self.gate.expire(self.now, |w, v| out.push((*w, v)));
        let expected = self.model.expire(self.now);
        self.same(&out, expected);
    }

    /// The same waiters with the same words, in order within each requirement.
    fn same(&self, out: &[(Waiter, Verdict)], mut expected: Vec<(Waiting, Came)>) {
        let mut last: Vec<((u32, u32), u64)> = Vec::new();
        for (w, verdict) in out {
            let at = expected.iter().position(|(e, _)| e.id == w.first).expect("the model lets it wait");
            let (e, came) = expected.swap_remove(at);
            assert_eq!((w.end, w.deadline_ns), (Lsn(e.end), e.deadline));
            assert_eq!((w.lane, w.count), (e.level as u32, 1 + e.replicas as u32), "a waiter was mixed up");
            match (*verdict, came) {
                (Verdict::Committed { acks }, Came::Committed(n)) => assert_eq!(usize::from(acks), n),
                (Verdict::TimedOut { durable_here, acks, wanted }, Came::TimedOut(here, n)) => {
                    assert_eq!((durable_here, usize::from(acks), usize::from(wanted)), (here, n, e.replicas));
                }
                (verdict, came) => panic!("{verdict:?} where the model has {came:?}"),
            }
            let queue = (w.lane, w.count);
            match last.iter_mut().find(|l| l.0 == queue) {
                Some(l) => {
                    assert!(l.1 < w.first, "out of order");
                    l.1 = w.first;
                }
                None => last.push((queue, w.first)),
            }
        }
        assert!(expected.is_empty(), "still waiting: {expected:?}");
    }

    fn compare(&self) {
        let (gate, model) = (&self.gate, &self.model);
        assert_eq!(gate.commit(), Lsn(model.commit));
        assert_eq!(gate.durable(), Lsn(model.durable));
        assert_eq!(gate.waiting(), model.waiting.len());
        assert_eq!(gate.wants_applied(), model.wants_applied());
        for (slot, said) in model.slots.iter().enumerate() {
            let at = gate.slot(slot).expect("it counts");
            assert_eq!([at.received, at.flushed, at.applied], said.map(Lsn));
        }
        for (level, lsn) in [(0, model.durable), (1, model.commit), (2, self.tail)] {
            assert_eq!(usize::from(gate.acks(LEVELS[level], Lsn(lsn))), model.acks(level, lsn));
        }
    }
}

/// One of four pairs of replicas and level, so that queues grow: each takes room for many waiters.
fn requirement(u: &mut Unstructured<'_>, slots: usize) -> Result<(usize, usize)> {
    let byte = usize::from(u.arbitrary::<u8>()?);
    Ok([(0, 1), (1, byte / 4 % 3), (2, 1), (slots, 2)].map(|(n, level)| (n.min(slots), level))[byte % 4])
}
