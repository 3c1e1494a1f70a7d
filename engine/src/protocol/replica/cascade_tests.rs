//! What a replica answers those below it, when their links end, and what it says that they need.

use super::*;
use crate::protocol::replica::{Beginning, LogEnd};
use towline_wire::handshake::{NodeName, Role, Welcome};
use towline_wire::message::Ack;
use towline_wire::superblock::{Base, SlotEntry, SlotKind};
use towline_wire::{Chain, PROTOCOL_VERSION};

const SYSTEM: SystemId = SystemId([5; 16]);
const BLOCK: u64 = 4096;

fn name() -> NodeName {
    NodeName::new("b").unwrap()
}

/// A replica whose log has four blocks of term 2 and, behind them, four of term 3, with a slot for `b`.
fn replica() -> Replica {
    let mut history = History::default();
    history.begin(Term(2), Lsn(0));
    history.begin(Term(3), Lsn(4 * BLOCK));
    let end = LogEnd { lsn: Lsn(8 * BLOCK), chain: Chain(77), next_seq: Seq(8), last_term: Term(3) };
    let saved = SlotEntry { name: name(), restart_lsn: Lsn(2 * BLOCK), kind: SlotKind::Made, lost: None };
    let (slots, _) = Slots::new(&[], &[saved], true, Lsn(0), 0);
    Replica::new((SYSTEM, ShardId(1), 4, 1 << 20), Term(3), history, end, Lsn(6 * BLOCK)).feeding(slots)
}

/// Its upstream, of a depth, whose primary is in a term and has so many blocks, streams to it.
fn follow(r: &mut Replica, (depth, term, blocks): (u8, u64, u64)) {
    let w = Welcome {
        protocol: PROTOCOL_VERSION,
        verdict: Verdict::Stream { from: r.flushed() },
        depth,
        shard_count: 4,
        heartbeat_ms: 1000,
        system: SYSTEM,
        features: 0,
        term: Term(term),
        tail: Lsn(blocks * BLOCK),
        commit_lsn: Lsn(0),
        segment_bytes: 1 << 20,
        time_us: 9,
        record_bytes_max: 0,
    };
    r.follow(&w);
}

/// A hello of a log of so many blocks that ends with a term.
fn hello(last_term: u64, blocks: u64) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        role: Role::Replica,
        shard: ShardId(1),
        features: 0,
        system: SYSTEM,
        term: Term(last_term),
        last_term: Term(last_term),
        end_lsn: Lsn(blocks * BLOCK),
        chain: Chain(77),
        commit_lsn: Lsn(0),
        process: 7,
        name: name(),
    }
}

fn ask(r: &mut Replica, hello: Hello) -> HelloAnswer {
    let log = LogEnds { oldest: Lsn(0), tail: r.received(), chain: Chain(77) };
    r.answer(&hello, log, 0)
}

fn refused(cause: Refusal) -> HelloAnswer {
    HelloAnswer::Verdict(Verdict::Refused(cause))
}

fn streams(blocks: u64) -> HelloAnswer {
    HelloAnswer::Verdict(Verdict::Stream { from: Lsn(blocks * BLOCK) })
}

/// A link serves the slot from the log's end.
fn attach(r: &mut Replica, link: u64) {
    let from = r.flushed();
    r.below().attach(0, (link, 7), from, 0).unwrap();
}

fn is_served(r: &Replica) -> bool {
    r.slots().iter().any(|(_, s)| s.link.is_some())
}

#[test]
fn nobody_is_served_before_this_replica_has_followed_its_own_upstream() {
    let mut r = replica();
    assert_eq!(ask(&mut r, hello(3, 8)), refused(Refusal::Behind));
    follow(&mut r, (0, 3, 8));
    assert_eq!(ask(&mut r, hello(3, 8)), streams(8));
    let stranger = NodeName::new("c").unwrap();
    assert_eq!(ask(&mut r, Hello { name: stranger, ..hello(3, 8) }), refused(Refusal::UnknownReplica));
    assert_eq!(ask(&mut r, Hello { system: SystemId([6; 16]), ..hello(3, 8) }), refused(Refusal::ForeignSystem));
}

#[test]
fn a_newer_term_below_does_not_depose_anybody() {
    let mut r = replica();
    follow(&mut r, (0, 3, 8));
    for system in [SYSTEM, SystemId::NONE] {
        let newer = Hello { term: Term(9), system, ..hello(3, if system.is_none() { 0 } else { 8 }) };
        assert_eq!(ask(&mut r, newer), refused(Refusal::Behind));
    }
    assert_eq!(ask(&mut r, hello(3, 8)), streams(8));
    assert!(!r.below().is_deposed());
}

#[test]
fn what_a_node_below_has_more_is_cut_only_where_this_log_knows_better() {
    let mut r = replica();
    // The primary has more than this replica: so may the one below.
    follow(&mut r, (0, 5, 12));
    assert_eq!(ask(&mut r, hello(3, 10)), refused(Refusal::Behind));
    // A newer term began here before the other log's end.
    assert_eq!(ask(&mut r, hello(2, 10)), HelloAnswer::Verdict(Verdict::Cut { to: Lsn(4 * BLOCK) }));
    // A log that was begun further on, and has nothing yet.
    assert_eq!(ask(&mut r, hello(0, 10)), refused(Refusal::Behind));
    // This one has all that the primary had when it began to reign: what is older and not here is nowhere.
    let mut r = replica();
    follow(&mut r, (0, 5, 8));
    assert_eq!(ask(&mut r, hello(3, 10)), HelloAnswer::Verdict(Verdict::Cut { to: Lsn(8 * BLOCK) }));
    assert_eq!(ask(&mut r, hello(5, 10)), refused(Refusal::Behind), "the same term has grown there first");
    let knows = Hello { commit_lsn: Lsn(9 * BLOCK), ..hello(3, 10) };
    assert_eq!(ask(&mut r, knows), refused(Refusal::CutBelowCommit));
}

#[test]
fn links_below_end_with_the_term_the_depth_a_cut_and_a_new_beginning_and_with_nothing_else() {
    let mut r = replica();
    follow(&mut r, (0, 3, 8));
    attach(&mut r, 1);
    r.on_link_lost();
    follow(&mut r, (0, 3, 8));
    assert!(is_served(&r), "the upstream went and came back");
    follow(&mut r, (1, 3, 8));
    assert!(!is_served(&r));
    attach(&mut r, 2);
    follow(&mut r, (1, 4, 8));
    assert!(!is_served(&r));
    attach(&mut r, 3);
    r.on_cut(LogEnd { lsn: Lsn(7 * BLOCK), chain: Chain(66), next_seq: Seq(7), last_term: Term(3) });
    assert!(!is_served(&r));
    assert_eq!(r.slots().get(0).unwrap().restart, Lsn(7 * BLOCK), "it may have to be cut there too");
    attach(&mut r, 4);
    let base = Base { chain: Chain(9), seq: Seq(20) };
    r.about_to_begin(Lsn(20 * BLOCK));
    r.on_begin(&Beginning { at: Lsn(20 * BLOCK), base, term: Term(4), known: true });
    assert!(!is_served(&r));
    assert_eq!((r.slots().get(0).unwrap().restart, r.owed()), (Lsn(20 * BLOCK), 0));
}

#[test]
fn a_row_of_replicas_is_no_longer_than_the_limit() {
    let mut r = replica();
    follow(&mut r, (limits::CASCADE_DEPTH_MAX - 2, 3, 8));
    assert_eq!((r.depth(), ask(&mut r, hello(3, 8))), (limits::CASCADE_DEPTH_MAX - 1, streams(8)));
    for depth in [limits::CASCADE_DEPTH_MAX - 1, u8::MAX] {
        follow(&mut r, (depth, 3, 8));
        assert_eq!(ask(&mut r, hello(3, 8)), refused(Refusal::TooDeep));
    }
}

#[test]
fn what_those_below_need_and_those_below_them_is_owed_but_moves_no_ack() {
    let mut r = replica();
    follow(&mut r, (0, 3, 8));
    assert_eq!(r.owed(), 6 * BLOCK, "the slot's restart LSN is known before its replica comes");
    attach(&mut r, 1);
    assert_eq!(r.owed(), 0);
    let ack = Ack { received: Lsn(8 * BLOCK), flushed: Lsn(8 * BLOCK), ..Ack::default() };
    r.below().on_ack(0, 1, &ack, 0).unwrap();
    r.below().on_owed(0, 1, 3 * BLOCK);
    assert_eq!((r.owed(), r.ack(0).flushed), (3 * BLOCK, Lsn(8 * BLOCK)));
    r.below().on_owed(0, 2, 7 * BLOCK);
    assert_eq!(r.owed(), 3 * BLOCK, "of another link");
    r.below().on_owed(0, 1, u64::MAX);
    assert_eq!(r.owed(), 8 * BLOCK, "no more than there is");
    r.below().on_owed(0, 1, 0);
    assert_eq!(r.owed(), 0);
}

#[test]
fn nobody_below_is_told_of_more_than_this_device_holds_and_the_primarys_word_is_passed_on() {
    let mut r = replica();
    follow(&mut r, (0, 3, 12));
    assert_eq!(r.heard(), Heard { tail: Lsn(12 * BLOCK), tail_seq: Seq(8), time_us: 9 });
    let beat = towline_wire::message::Heartbeat {
        term: Term(3),
        tail: Lsn(20 * BLOCK),
        tail_seq: Seq(40),
        commit_lsn: Lsn(20 * BLOCK),
        time_us: 11,
    };
    r.on_heartbeat(&beat).unwrap();
    assert_eq!(r.heard(), Heard { tail: Lsn(20 * BLOCK), tail_seq: Seq(40), time_us: 11 });
    assert_eq!(r.committed(), Lsn(8 * BLOCK));
    assert_eq!(r.below().gate.durable(), Lsn(8 * BLOCK));
}
