//! Hellos and their answers, acks that can and cannot be true, lost slots, a newer term.

use super::*;
use crate::limits;
use crate::protocol::gate::Waiter;
use crate::protocol::policy::Requirement;
use towline_wire::Seq;
use towline_wire::message::AckLevel;

#[path = "primary_terms_tests.rs"]
mod terms;

const SYSTEM: SystemId = SystemId([5; 16]);

fn primary() -> Primary {
    let mut history = History::default();
    history.begin(Term(1), Lsn(0));
    history.begin(Term(3), Lsn(8192));
    history.begin(Term(4), Lsn(20480));
    let need = Requirement::number(1, AckLevel::Flushed);
    let gate = CommitGate::new(need, 2, Lsn(40960), Lsn(0));
    let names = [NodeName::new("r1").unwrap(), NodeName::new("r2").unwrap()];
    Primary::new((SYSTEM, ShardId(0), 1), Term(4), history, gate, Slots::fresh(&names))
}

fn log() -> LogEnds {
    LogEnds { oldest: Lsn(4096), tail: Lsn(40960), chain: Chain(77) }
}

fn hello(last_term: u64, end: u64, chain: u64) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        role: Role::Replica,
        shard: ShardId(0),
        features: 0,
        system: SYSTEM,
        term: Term(last_term),
        last_term: Term(last_term),
        end_lsn: Lsn(end),
        chain: Chain(chain),
        commit_lsn: Lsn(0),
        process: 0,
        name: NodeName::new("r1").unwrap(),
    }
}

fn refused(cause: Refusal) -> HelloAnswer {
    HelloAnswer::Verdict(Verdict::Refused(cause))
}

#[test]
fn a_hello_that_does_not_belong_is_refused_with_its_cause() {
    let mut p = primary();
    let ask = |p: &mut Primary, h: Hello| p.answer(&h, log(), 0);
    let h = hello(4, 40960, 77);
    assert_eq!(ask(&mut p, Hello { protocol: 2, ..h }), refused(Refusal::Protocol));
    assert_eq!(ask(&mut p, Hello { system: SystemId([6; 16]), ..h }), refused(Refusal::ForeignSystem));
    assert_eq!(ask(&mut p, Hello { system: SystemId::NONE, ..h }), refused(Refusal::ForeignSystem));
    assert_eq!(ask(&mut p, Hello { shard: ShardId(1), ..h }), refused(Refusal::NoSuchShard));
    let stranger = NodeName::new("r3").unwrap();
    assert_eq!(ask(&mut p, Hello { name: stranger, ..h }), refused(Refusal::UnknownReplica));
    assert_eq!(ask(&mut p, hello(4, 45056, 1)), refused(Refusal::Future));
    assert_eq!(ask(&mut p, hello(4, 40960, 78)), refused(Refusal::Diverged));
    assert!(!p.is_deposed());
}

#[test]
fn a_newer_term_deposes_the_primary_for_good() {
    let mut p = primary();
    let newer = Hello { term: Term(5), ..hello(4, 40960, 77) };
    assert_eq!(p.answer(&newer, log(), 0), HelloAnswer::Deposed);
    assert!(p.is_deposed());
    assert_eq!(p.slots().connected(), 0);
    // Acks of links that are still open move nothing any more.
    let committed = p.gate.commit();
    assert_eq!(p.attach(1, (1, 7), Lsn(40960), 0), Err(Refusal::StalePrimary));
    p.gate.on_ack(1, SlotPositions { received: Lsn(40960), flushed: Lsn(40960), applied: Lsn(0) });
    p.gate.on_durable(Lsn(45056));
    p.gate.complete(|_, _| panic!("a deposed primary finishes no commit"));
    assert_eq!(p.gate.commit(), committed);
    assert_eq!(p.answer(&hello(4, 40960, 77), log(), 0), refused(Refusal::StalePrimary));
}

#[test]
fn a_tail_that_only_the_replica_has_is_cut_where_the_histories_part() {
    let mut p = primary();
    let cut = |to| HelloAnswer::Verdict(Verdict::Cut { to: Lsn(to) });
    assert_eq!(p.answer(&hello(3, 24576, 0), log(), 0), cut(20480));
    assert_eq!(p.answer(&hello(1, 12288, 0), log(), 0), cut(8192));
    // Known to be committed on the replica: never cut.
    let h = Hello { commit_lsn: Lsn(24576), ..hello(3, 24576, 0) };
    assert_eq!(p.answer(&h, log(), 0), refused(Refusal::CutBelowCommit));
    // Term 2 never was: its bytes go, although the position is inside this log.
    let h = hello(2, 8192, 5);
    assert_eq!(p.answer(&h, log(), 0), HelloAnswer::NeedChain(Lsn(8192)));
    assert_eq!(p.answer_with_chain(&h, log().oldest, Some(Chain(6)), 0), Verdict::Cut { to: Lsn(8192) });
    assert_eq!(p.answer_with_chain(&h, log().oldest, Some(Chain(5)), 0), Verdict::Stream { from: Lsn(8192) });
    // Same term, same LSN, other bytes: laws are broken somewhere; refuse.
    let h = hello(3, 12288, 5);
    assert_eq!(p.answer_with_chain(&h, log().oldest, None, 0), Verdict::Refused(Refusal::Diverged));
    // Nothing is kept for it any more, until somebody makes its slot anew.
    let lost = Lost { name: h.name, cause: SlotLoss::Diverged, restart: Lsn(0) };
    assert_eq!((p.take_lost(), p.take_lost()), (vec![lost], vec![]));
    assert_eq!(p.answer(&h, log(), 0), refused(Refusal::SlotDiverged));
}

#[test]
fn a_diverged_impostor_takes_no_slot_from_a_replica_that_is_served() {
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
    let h = Hello { process: 7, ..hello(3, 12288, 5) };
    assert_eq!(p.answer_with_chain(&h, log().oldest, None, 0), Verdict::Refused(Refusal::Diverged));
    assert!(p.slots().is_served_by(0, 1) && p.take_lost().is_empty());
    let other = Hello { process: 8, ..h };
    assert_eq!(p.answer(&other, log(), 0), refused(Refusal::SlotInUse));
}

#[test]
fn what_a_replica_has_counts_no_more_once_its_slot_is_lost() {
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
    let ack = Ack { received: Lsn(20480), flushed: Lsn(20480), ..Ack::default() };
    p.on_ack(0, 1, &ack, 0).unwrap();
    assert_eq!(p.gate.acks(AckLevel::Flushed, Lsn(20480)), 1);
    p.lose_for_cap(&[0], 0);
    assert_eq!(p.gate.acks(AckLevel::Flushed, Lsn(4096)), 0);
    assert_eq!(p.gate.commit(), Lsn(20480), "what was committed stays so");
    assert_eq!(p.on_ack(0, 1, &ack, 0), Err(AckViolation::NotTheLink));
    assert_eq!(p.answer(&hello(4, 40960, 77), log(), 0), refused(Refusal::SlotRetentionCap));
    assert_eq!(p.attach(0, (2, 7), Lsn(40960), 0), Err(Refusal::SlotRetentionCap));
    assert_eq!(p.make_slot(hello(4, 0, 0).name, false, Lsn(4096), 0), Ok(0));
    assert_eq!(p.attach(0, (2, 7), Lsn(40960), 0), Ok(None));
    p.on_ack(0, 2, &Ack { received: Lsn(40960), flushed: Lsn(40960), ..ack }, 0).unwrap();
    assert_eq!(p.gate.commit(), Lsn(40960));
    // Away for too long, and removed.
    p.detach(0, 2, 5);
    p.expire_slots(Some(Duration::from_nanos(10)), 15);
    p.remove_slot(hello(4, 0, 0).name, 15).unwrap();
    let causes: Vec<_> = p.take_lost().iter().map(|l| (l.name.to_string(), l.cause)).collect();
    let [r1, r2] = ["r1".to_string(), "r2".to_string()];
    assert_eq!(causes, [(r1.clone(), SlotLoss::RetentionCap), (r1, SlotLoss::Idle), (r2, SlotLoss::Idle)]);
    assert_eq!(p.answer(&hello(4, 40960, 77), log(), 15), refused(Refusal::SlotRemoved));
}

#[test]
fn what_a_replica_says_it_no_longer_has_counts_no_more() {
    let has = |hello: &Hello| {
        let mut p = primary();
        p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
        p.on_ack(0, 1, &Ack { received: Lsn(20480), flushed: Lsn(20480), ..Ack::default() }, 0).unwrap();
        p.detach(0, 1, 0);
        let _ = p.answer(hello, log(), 0);
        p.gate.slot(0).unwrap().flushed
    };
    assert_eq!(has(&hello(4, 24576, 5)), Lsn(20480), "what it has more is of no link");
    assert_eq!(has(&hello(3, 12288, 5)), Lsn(12288));
    let empty = Hello { system: SystemId::NONE, ..hello(0, 0, 0) };
    assert_eq!(has(&empty), Lsn(0), "its folder is another one");
    assert_eq!(has(&Hello { features: FEATURE_BEGIN, ..empty }), Lsn(0));
    assert_eq!(has(&hello(0, 40960, 77)), Lsn(0), "its log has begun there, with nothing in it");
    assert_eq!(has(&Hello { system: SystemId([6; 16]), ..empty }), Lsn(20480), "a stranger");
}

#[test]
fn a_hello_counts_for_nothing_until_its_replica_has_acknowledged_on_its_link() {
    let mut p = primary();
    let ack = |lsn| Ack { received: Lsn(lsn), flushed: Lsn(lsn), ..Ack::default() };
    let counts = |p: &Primary| p.gate.slot(0).unwrap();
    p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
    p.on_ack(0, 1, &ack(20480), 0).unwrap();
    p.on_sent(0, 1, Lsn(28672));
    p.on_ack(0, 1, &Ack { received: Lsn(28672), ..ack(24576) }, 0).unwrap();
    // The next process, whose folder is a new one, is heard first; then what the one before had said last.
    let _ = p.answer(&Hello { system: SystemId::NONE, process: 7, ..hello(0, 0, 0) }, log(), 0);
    assert_eq!((counts(&p).received, counts(&p).flushed), (Lsn(0), Lsn(0)));
    assert_eq!(p.attach(0, (2, 7), Lsn(28672), 0), Ok(None));
    assert_eq!((counts(&p).received, counts(&p).flushed), (Lsn(0), Lsn(0)));
    assert_eq!((p.slots().fresh_until(1, Duration::MAX), p.slots().heard_within(Duration::from_nanos(1), 1)), (0, 0));
    assert_eq!(p.on_ack(0, 2, &ack(20480), 0), Err(AckViolation::WentBack), "it has said that it has more");
    p.detach(0, 2, 0);
    assert_eq!(counts(&p).flushed, Lsn(0));
    // A process that lives says so.
    p.attach(0, (3, 7), Lsn(8192), 0).unwrap();
    p.on_ack(0, 3, &ack(8192), 1).unwrap();
    assert_eq!((counts(&p).received, counts(&p).flushed), (Lsn(8192), Lsn(8192)));
    assert_eq!(p.slots().heard_within(Duration::from_nanos(1), 1), 1);
    // Its next link, of what it had in memory only.
    p.on_sent(0, 3, Lsn(12288));
    p.on_ack(0, 3, &Ack { received: Lsn(12288), ..ack(8192) }, 1).unwrap();
    assert_eq!(p.attach(0, (4, 7), Lsn(12288), 1), Ok(Some(3)));
    assert_eq!((counts(&p).received, counts(&p).flushed), (Lsn(8192), Lsn(8192)));
}

#[test]
fn an_ack_above_sent_or_from_another_link_never_counts() {
    let mut p = primary();
    assert_eq!(p.attach(0, (1, 7), Lsn(20480), 0), Ok(None));
    let ack = |received, flushed| Ack { received: Lsn(received), flushed: Lsn(flushed), ..Ack::default() };
    assert_eq!(
        p.on_ack(0, 1, &ack(24576, 24576), 0),
        Err(AckViolation::AboveSent { acked: Lsn(24576), sent: Lsn(20480) })
    );
    p.on_sent(0, 1, Lsn(28672));
    assert_eq!(p.on_ack(0, 2, &ack(24576, 24576), 0), Err(AckViolation::NotTheLink));
    assert_eq!(p.on_ack(0, 1, &ack(24576, 24576), 0), Ok(()));
    assert_eq!(p.on_ack(0, 1, &ack(24576, 20480), 0), Err(AckViolation::WentBack));
    assert_eq!(p.gate.commit(), Lsn(24576));
    assert_eq!(p.attach(0, (2, 7), Lsn(24576), 0), Ok(Some(1)), "a newer link replaces the one before");
}

#[test]
fn what_a_lost_replica_had_only_received_counts_no_more() {
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
    p.on_sent(0, 1, Lsn(40960));
    let ack = Ack { received: Lsn(40960), flushed: Lsn(24576), ..Ack::default() };
    p.on_ack(0, 1, &ack, 0).unwrap();
    assert_eq!(p.gate.acks(AckLevel::Received, Lsn(40960)), 1);
    p.detach(0, 1, 0);
    assert_eq!(p.gate.acks(AckLevel::Received, Lsn(40960)), 0);
    assert_eq!(p.gate.acks(AckLevel::Flushed, Lsn(24576)), 1);
    assert_eq!(p.slots().holding().collect::<Vec<_>>(), [(0, Lsn(24575)), (1, Lsn(0))]);
}

#[test]
fn a_link_that_was_replaced_takes_nothing_from_the_one_that_serves() {
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(20480), 0).unwrap();
    assert_eq!(p.attach(0, (2, 7), Lsn(24576), 0), Ok(Some(1)));
    p.on_sent(0, 2, Lsn(28672));
    p.on_ack(0, 2, &Ack { received: Lsn(28672), flushed: Lsn(24576), ..Ack::default() }, 0).unwrap();
    // Its tasks notice late.
    p.on_sent(0, 1, Lsn(40960));
    p.detach(0, 1, 0);
    let slot = p.slots().get(0).unwrap();
    assert_eq!((slot.link, slot.sent, p.slots().connected()), (Some(2), Lsn(28672), 1));
    assert_eq!(p.gate.slot(0).unwrap().received, Lsn(28672));
}

#[test]
fn a_link_sends_within_its_window_or_one_batch_alone() {
    let mut p = primary();
    let tail = Lsn(40960);
    p.attach(0, (1, 7), Lsn(4096), 0).unwrap();
    // Nothing is under way: one batch may go, however large, and more within the window.
    assert_eq!(p.may_send(0, tail, 8192), MaySend { first: tail, more: Lsn(12288) });
    p.on_sent(0, 1, Lsn(20480));
    assert_eq!(p.may_send(0, tail, 8192), MaySend { first: Lsn(12288), more: Lsn(12288) });
    // What is acknowledged as received makes room; a log that ends earlier is the end.
    let ack = |received| Ack { received: Lsn(received), flushed: Lsn(4096), applied: Lsn(0), ..Ack::default() };
    p.on_ack(0, 1, &ack(16384), 0).unwrap();
    assert_eq!(p.may_send(0, tail, 8192), MaySend { first: Lsn(24576), more: Lsn(24576) });
    assert_eq!(p.may_send(0, tail, u64::MAX), MaySend { first: tail, more: tail });
    p.on_ack(0, 1, &ack(20480), 0).unwrap();
    assert_eq!(p.may_send(0, tail, 4096), MaySend { first: tail, more: Lsn(24576) });
    // Another slot's link has a window of its own, and one that is gone sends nothing.
    assert_eq!(p.may_send(9, tail, 8192), MaySend { first: Lsn(0), more: Lsn(0) });
}

#[test]
fn a_replica_catches_up_from_the_first_read_to_the_first_batch_from_memory_or_the_end_of_its_link() {
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(4096), 0).unwrap();
    let progress = |p: &Primary| p.slots().get(0).unwrap().progress;
    p.on_catch_up(0, Some(5), Lsn(40960), 10);
    assert!(progress(&p).is_some());
    p.on_catch_up(0, None, Lsn(40960), 20);
    assert!(progress(&p).is_none());
    p.on_catch_up(0, Some(5), Lsn(40960), 30);
    p.detach(0, 1, 40);
    assert!(progress(&p).is_none());
}

fn waiter(end: u64) -> Waiter {
    Waiter { end: Lsn(end), lane: 0, first: 0, count: 1, since_ns: 0, deadline_ns: u64::MAX }
}

fn begins(end: u64, last_term: u64) -> Hello {
    Hello { features: FEATURE_BEGIN, ..hello(last_term, end, 5) }
}

const BASE: Base = Base { chain: Chain(9), seq: Seq(3) };

#[test]
fn a_replica_that_would_begin_further_on_is_told_where_and_its_slot_holds_the_log_from_there() {
    let mut p = primary();
    // What the slot held before is of a log that is gone.
    p.slots.get_mut(0).unwrap().restart = Lsn(20480);
    let empty = begins(0, 0);
    assert_eq!(p.answer(&empty, log(), 0), HelloAnswer::NeedBase(Lsn(4096)));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(4096), "from this moment on");
    let told = p.answer_begin(&empty, Lsn(4096), Lsn(4096), Some(BASE));
    assert_eq!(told, Verdict::Begin { at: Lsn(4096), base: BASE, known: false });
    // Whoever does not ask is refused as ever, and holds nothing.
    p.slots.get_mut(0).unwrap().restart = Lsn(20480);
    let plain = Hello { features: 0, ..empty };
    assert_eq!(p.answer(&plain, log(), 0), HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: Lsn(4096) }));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(20480));
    // The log has moved on meanwhile, or cannot be read just now.
    let oldest = Lsn(8192);
    assert_eq!(p.answer_begin(&empty, oldest, Lsn(4096), Some(BASE)), Verdict::Refused(Refusal::Busy));
    assert_eq!(p.answer_begin(&empty, oldest, oldest, None), Verdict::Refused(Refusal::Busy));
    // Who can go on does not begin anew.
    assert_eq!(p.answer(&begins(8192, 1), log(), 0), HelloAnswer::NeedChain(Lsn(8192)));
}

#[test]
fn a_log_that_is_given_up_is_known_only_if_its_last_term_is_remembered_and_went_further() {
    let p = primary();
    let known = |end, term| match p.answer_begin(&begins(end, term), Lsn(12288), Lsn(12288), Some(BASE)) {
        Verdict::Begin { known, .. } => known,
        other => panic!("{other:?}"),
    };
    assert!(known(4096, 1) && known(8192, 1) && known(12288, 3));
    assert!(!known(12288, 1), "term 1 ended before that");
    assert!(!known(4096, 2), "of term 2 nothing is known");
}

#[test]
fn a_log_that_was_begun_and_is_empty_goes_on_by_its_chain_and_is_never_cut() {
    let mut p = primary();
    let begun = Hello { last_term: Term::ZERO, ..begins(8192, 4) };
    assert_eq!(p.answer(&begun, log(), 0), HelloAnswer::NeedChain(Lsn(8192)));
    let stream = Verdict::Stream { from: Lsn(8192) };
    assert_eq!(p.answer_with_chain(&begun, Lsn(4096), Some(Chain(5)), 0), stream);
    for other in [Some(Chain(6)), None] {
        let refused = Verdict::Refused(Refusal::CutBelowCommit);
        assert_eq!(p.answer_with_chain(&begun, Lsn(4096), other, 0), refused);
    }
    let ahead = Hello { end_lsn: Lsn(45056), ..begun };
    assert_eq!(p.answer(&ahead, log(), 0), refused(Refusal::CutBelowCommit));
    let at_tail = Hello { end_lsn: Lsn(40960), chain: Chain(77), ..begun };
    let stream = Verdict::Stream { from: Lsn(40960) };
    assert_eq!(p.answer(&at_tail, log(), 0), HelloAnswer::Verdict(stream));
}

#[test]
fn a_replica_that_never_held_a_record_does_not_count_for_it() {
    let mut p = primary();
    // Somebody wants more than the shard's policy, for a record in front of where the replica begins.
    let need = Requirement::number(2, AckLevel::Flushed);
    p.gate.wait(need, waiter(8192));
    let begun = Hello { last_term: Term::ZERO, ..begins(8192, 4) };
    assert_eq!(p.answer(&begun, log(), 700), refused(Refusal::Busy));
    assert_eq!(p.slots().get(0).unwrap().idle_ns(1000), 300, "who is told to come again is not away");
    p.gate.drain(|_| {});
    p.gate.wait(need, waiter(12288));
    assert_eq!(p.answer(&begun, log(), 0), HelloAnswer::NeedChain(Lsn(8192)));
}

#[test]
fn a_replica_with_state_is_told_to_take_a_snapshot_if_the_embedder_makes_them_and_its_slot_holds_the_log() {
    let mut p = primary();
    p.slots.get_mut(0).unwrap().restart = Lsn(20480);
    let takes = |features| Hello { features, ..begins(0, 0) };
    let need = HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: Lsn(4096) });
    assert_eq!(p.answer(&takes(FEATURE_SNAPSHOT), log(), 0), need, "nobody makes one");
    p.makes_snapshots = true;
    p.gate.on_ack(1, SlotPositions { received: Lsn(12288), flushed: Lsn(12288), applied: Lsn(0) });
    let told = Verdict::Snapshot { oldest: Lsn(4096), known: false };
    assert_eq!(p.answer(&takes(0), log(), 0), need, "it takes none");
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(20480));
    assert_eq!(p.answer(&takes(FEATURE_SNAPSHOT), log(), 0), HelloAnswer::Snapshot(told));
    // The state is going to stand there or behind. Held from its oldest on, the log could be more than the cap
    // lets a slot hold: it was lost, made anew, and lost again.
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(12288), "from this moment on");
    // Who can do without one begins without.
    assert_eq!(p.answer(&takes(FEATURE_SNAPSHOT | FEATURE_BEGIN), log(), 0), HelloAnswer::NeedBase(Lsn(4096)));
    // Who can go on takes none.
    let goes_on = Hello { features: FEATURE_SNAPSHOT, ..begins(8192, 1) };
    assert_eq!(p.answer(&goes_on, log(), 0), HelloAnswer::NeedChain(Lsn(8192)));
}

#[test]
fn a_slot_is_in_use_while_a_snapshot_is_sent_and_nothing_that_it_says_changes() {
    const SILENT: u64 = 3 * limits::HEARTBEAT.as_nanos() as u64 + 1;
    let mut p = primary();
    p.attach(0, (1, 7), Lsn(8192), 0).unwrap();
    p.on_sent(0, 1, Lsn(12288));
    let before = p.slots().get(0).unwrap().at;
    p.detach(0, 1, 0);
    assert_eq!(p.stage(0, 2, 7, 10), Ok(()));
    assert_eq!(p.slots().get(0).unwrap().at, before);
    assert_eq!(p.slots().get(0).unwrap().sent, Lsn(8192), "no log is under way");
    assert!(p.slots().is_served_by(0, 2));
    p.goes_on_at(0, 1, Lsn(40960));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(8192).min(p.gate.durable()), "not its link");
    p.may_go_on_at(0, 1, Lsn(4096), Lsn(0));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(8192), "not its link");
    p.may_go_on_at(0, 2, Lsn(12288), Lsn(4096));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(8192), "more is held already");
    p.may_go_on_at(0, 2, Lsn(0), Lsn(4096));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(4096), "what is gone is not held");
    p.goes_on_at(0, 2, Lsn(20480));
    assert_eq!(p.slots().get(0).unwrap().restart, Lsn(20480), "what is in front of the state is not needed");
    // It acknowledges nothing, and lives all the same.
    assert_eq!(p.stage(0, 3, 8, 11), Err(Refusal::SlotInUse));
    p.on_staged(0, 2, SILENT);
    assert_eq!(p.stage(0, 3, 8, SILENT + 10), Err(Refusal::SlotInUse));
    assert_eq!(p.stage(0, 3, 8, 3 * SILENT), Ok(()), "it was silent for too long");
    p.unstage(0, 2, 3 * SILENT);
    assert!(p.slots().is_served_by(0, 3), "the old link's end is no matter");
    p.unstage(0, 3, 3 * SILENT);
    assert!(p.slots().get(0).unwrap().link.is_none());
    // A slot for one link waits for that link still.
    let t = p.make_slot(NodeName::new("t").unwrap(), true, Lsn(4096), 0).unwrap();
    p.stage(t, 4, 9, 0).unwrap();
    p.unstage(t, 4, 0);
    assert!(p.slots().get(t).is_some());
    p.depose();
    assert_eq!(p.stage(0, 5, 7, 0), Err(Refusal::StalePrimary));
}
