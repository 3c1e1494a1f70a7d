//! The gate: what completes whom, and when the commit LSN moves.

use super::*;
use crate::protocol::policy::Share;
use proptest::prelude::*;

fn waiter(end: u64, first: u64) -> Waiter {
    Waiter { end: Lsn(end), lane: 0, first, count: 1, since_ns: 0, deadline_ns: u64::MAX }
}

fn ack(received: u64, flushed: u64, applied: u64) -> SlotPositions {
    SlotPositions { received: Lsn(received), flushed: Lsn(flushed), applied: Lsn(applied) }
}

const TWO_FLUSHED: Requirement = Requirement::number(2, AckLevel::Flushed);

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
fn the_lag_is_that_of_the_replica_which_completes_the_quorum() {
    let mut gate = CommitGate::new(TWO_FLUSHED, 3, Lsn(50), Lsn(50));
    assert_eq!(gate.quorum_lag(Lsn(1000)), 950, "what was committed before, they have");
    gate.on_ack(0, ack(900, 900, 0));
    assert_eq!(gate.quorum_lag(Lsn(1000)), 950);
    gate.on_ack(1, ack(900, 700, 0));
    assert_eq!(gate.quorum_lag(Lsn(1000)), 300, "its own device may be behind, and does not count");
    gate.on_ack(2, ack(900, 800, 0));
    assert_eq!(gate.quorum_lag(Lsn(1000)), 200, "the slowest of three does not count");
    let local = Requirement::number(0, AckLevel::Flushed);
    assert_eq!(CommitGate::new(local, 3, Lsn(0), Lsn(0)).quorum_lag(Lsn(1000)), 0);
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
    let need = Requirement::number(1, AckLevel::Applied);
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
    let applied = Requirement::number(1, AckLevel::Applied);
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

#[test]
fn commits_are_judged_by_the_replicas_that_are_configured_when_they_are_judged() {
    let flushed = AckLevel::Flushed;
    let all = Requirement { replicas: 3, level: flushed, share: Share::All };
    let majority = Requirement { replicas: 2, level: flushed, share: Share::Majority };
    let mut gate = CommitGate::new(majority, 3, Lsn(0), Lsn(0));
    gate.wait(all, waiter(100, 1));
    gate.wait(Requirement::number(3, flushed), waiter(100, 2));
    gate.wait(majority, waiter(100, 3));
    gate.on_durable(Lsn(100));
    gate.on_ack(0, ack(100, 100, 0));
    assert_eq!((completed(&mut gate), gate.commit()), (vec![], Lsn(0)));
    // Slot 2 has all and leaves: what it has counts no more. Slot 1 is replaced by slot 7.
    gate.on_ack(2, ack(100, 100, 0));
    assert_eq!((completed(&mut gate), gate.commit()), (vec![3], Lsn(100)));
    gate.wait(majority, waiter(200, 4));
    gate.configure(majority.over(2), [(0, ack(100, 100, 0)), (7, ack(50, 50, 0))].into_iter());
    assert!(!gate.is_overdue());
    gate.on_ack(1, ack(300, 300, 0));
    gate.on_ack(2, ack(300, 300, 0));
    assert_eq!(completed(&mut gate), [0; 0], "who left does not count");
    gate.on_ack(7, ack(100, 100, 0));
    assert!(gate.is_overdue());
    assert_eq!(completed(&mut gate), [1], "two are all; a number of three stays three");
    // Alone, it is the majority.
    gate.on_durable(Lsn(200));
    gate.configure(majority.over(1), [(7, ack(200, 200, 0))].into_iter());
    assert_eq!((completed(&mut gate), gate.commit()), (vec![4], Lsn(200)));
    gate.configure(Requirement::number(0, flushed), std::iter::empty());
    gate.wait(all, waiter(300, 5));
    gate.on_durable(Lsn(300));
    assert_eq!((completed(&mut gate), gate.commit(), gate.waiting()), (vec![], Lsn(300), 2), "all of none is nobody");
}

proptest! {
    /// Against a model that looks at every waiter every time.
    #[test]
    fn the_gate_agrees_with_a_model_that_scans(
        events in prop::collection::vec((0u8..5, 0usize..3, 1u64..6), 1..200)
    ) {
        let needs = [
            Requirement::number(0, AckLevel::Flushed),
            TWO_FLUSHED,
            Requirement::number(3, AckLevel::Received),
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
