//! A replica beside a log in memory: what it follows, what it refuses, what it may say.

use super::*;
use crate::protocol::builder::{BatchBuilder, buffer_for};
use proptest::prelude::*;
use towline_wire::BatchFields;
use towline_wire::PROTOCOL_VERSION;
use towline_wire::handshake::{FEATURE_BEGIN, FEATURE_SNAPSHOT, NodeName, Verdict};

const SYSTEM: SystemId = SystemId([5; 16]);
const OTHER: SystemId = SystemId([6; 16]);
const BLOCK: u64 = 4096;

/// A replica of one shard whose log holds `blocks` batches of term 3, all flushed.
fn replica(blocks: u64, commit: u64) -> Replica {
    let mut history = History::default();
    let last_term = if blocks > 0 { Term(3) } else { Term::ZERO };
    if blocks > 0 {
        history.begin(Term(3), Lsn(0));
    }
    let end = LogEnd { lsn: Lsn(blocks * BLOCK), chain: Chain(77), next_seq: Seq(blocks), last_term };
    Replica::new((SYSTEM, ShardId(1), 4, 1 << 20), Term(3), history, end, Lsn(commit))
}

fn welcome(term: u64, verdict: Verdict) -> Welcome {
    Welcome {
        protocol: PROTOCOL_VERSION,
        verdict,
        depth: 0,
        shard_count: 4,
        heartbeat_ms: 1000,
        system: SYSTEM,
        features: 0,
        term: Term(term),
        tail: Lsn(10 * BLOCK),
        commit_lsn: Lsn(0),
        segment_bytes: 1 << 20,
        time_us: 0,
        record_bytes_max: 0,
    }
}

fn stream(term: u64, from: u64) -> Welcome {
    welcome(term, Verdict::Stream { from: Lsn(from) })
}

fn fields(r: &Replica, term: u64) -> BatchFields {
    BatchFields {
        system: SYSTEM,
        shard: ShardId(1),
        term: Term(term),
        lsn: r.received(),
        first_seq: r.next_seq(),
        record_count: 0,
        timestamp_us: 0,
        prev_chain: r.chain,
        durable_lsn: Lsn(0),
        commit_lsn: Lsn(0),
    }
}

/// A batch of one small record, so of one block.
fn batch(fields: BatchFields) -> BatchHeader {
    let mut b = BatchBuilder::new(vec![0; buffer_for(10)]);
    b.push(&[1; 10]);
    *BatchHeader::check(&b.close(fields).buf).unwrap()
}

fn receive(r: &mut Replica, term: u64, commit: u64) {
    let h = batch(fields(r, term));
    r.on_batch(&h, Lsn(commit)).unwrap();
}

#[test]
fn a_stream_that_begins_at_this_logs_end_is_followed_under_its_term() {
    let mut r = replica(2, 0);
    let w = stream(5, 2 * BLOCK);
    assert_eq!(r.on_welcome(&w), Ok(Plan::Follow { term: Term(5) }));
    r.follow(&w);
    assert_eq!((r.term, r.lag_bytes()), (Term(5), 8 * BLOCK));
    let hello = r.hello(NodeName::new("r1").unwrap(), 7);
    assert_eq!((hello.term, hello.last_term, hello.end_lsn), (Term(5), Term(3), Lsn(2 * BLOCK)));
    assert_eq!((hello.chain, hello.system, hello.shard), (Chain(77), SYSTEM, ShardId(1)));
}

#[test]
fn a_stream_that_begins_elsewhere_is_refused() {
    for from in [0, BLOCK, 3 * BLOCK] {
        let no = Violation::WrongStart { from: Lsn(from), end: Lsn(2 * BLOCK) };
        assert_eq!(replica(2, 0).on_welcome(&stream(3, from)), Err(no));
    }
}

#[test]
fn a_primary_of_an_older_term_is_refused_whatever_it_offers() {
    let stale = Err(Violation::StalePrimary { theirs: Term(2), ours: Term(3) });
    let (to, oldest) = (Lsn(0), Lsn(0));
    for verdict in [Verdict::Stream { from: Lsn(2 * BLOCK) }, Verdict::Cut { to }, Verdict::NeedSnapshot { oldest }] {
        assert_eq!(replica(2, 0).on_welcome(&welcome(2, verdict)), stale);
    }
}

#[test]
fn another_clusters_primary_or_one_of_another_shape_is_refused() {
    let r = replica(2, 0);
    let w = stream(3, 2 * BLOCK);
    assert_eq!(r.on_welcome(&Welcome { protocol: 9, ..w }), Err(Violation::Protocol(9)));
    assert_eq!(
        r.on_welcome(&Welcome { system: OTHER, ..w }),
        Err(Violation::ForeignSystem { theirs: OTHER, ours: SYSTEM })
    );
    assert_eq!(r.on_welcome(&Welcome { shard_count: 5, ..w }), Err(Violation::ShardCount { theirs: 5, ours: 4 }));
    assert_eq!(
        r.on_welcome(&Welcome { segment_bytes: 2 << 20, ..w }),
        Err(Violation::SegmentBytes { theirs: 2 << 20, ours: 1 << 20 })
    );
    assert_eq!(r.on_welcome(&welcome(3, Verdict::Client)), Err(Violation::NotForReplica));
    let refused = welcome(0, Verdict::Refused(Refusal::UnknownReplica));
    assert_eq!(r.on_welcome(&refused), Ok(Plan::Refused(Refusal::UnknownReplica)));
    let oldest = Lsn(64 * BLOCK);
    assert_eq!(r.on_welcome(&welcome(3, Verdict::NeedSnapshot { oldest })), Ok(Plan::NeedSnapshot { oldest }));
}

#[test]
fn a_new_replica_takes_the_identity_of_the_first_primary_it_follows() {
    let mut r =
        Replica::new((SystemId::NONE, ShardId(1), 0, 0), Term(0), History::default(), LogEnd::default(), Lsn(0));
    let w = stream(7, 0);
    assert_eq!(r.on_welcome(&w), Ok(Plan::Follow { term: Term(7) }));
    r.follow(&w);
    assert_eq!((r.system, r.shard_count, r.segment_bytes), (SYSTEM, 4, 1 << 20));
    assert!(matches!(r.on_welcome(&Welcome { system: OTHER, ..w }), Err(Violation::ForeignSystem { .. })));
}

#[test]
fn what_is_known_to_be_committed_is_never_cut() {
    let r = replica(4, 2 * BLOCK);
    let cut = |to: u64| r.on_welcome(&welcome(5, Verdict::Cut { to: Lsn(to) }));
    assert_eq!(cut(2 * BLOCK), Ok(Plan::Cut { to: Lsn(2 * BLOCK) }));
    assert_eq!(cut(BLOCK), Err(Violation::CutBelowCommit { to: Lsn(BLOCK), commit: Lsn(2 * BLOCK) }));
    // To its own end: its last term never was. Here that would take committed batches too.
    assert_eq!(cut(4 * BLOCK), Err(Violation::CutBelowCommit { to: Lsn(0), commit: Lsn(2 * BLOCK) }));
}

/// A commit LSN that lies inside of a batch passes every check of a single frame. The boundary below it
/// is found only when the cut is made: that must not be a panic, and not a cut.
#[test]
fn a_commit_inside_of_a_batch_is_no_reason_to_cut_that_batch() {
    let mut r = replica(4, 0);
    let beat =
        Heartbeat { term: Term(3), tail: Lsn(4 * BLOCK), tail_seq: Seq(4), commit_lsn: Lsn(2 * BLOCK + 1), time_us: 0 };
    assert_eq!(r.on_heartbeat(&beat), Ok(()));
    let to = Lsn(3 * BLOCK);
    assert_eq!(r.on_welcome(&welcome(5, Verdict::Cut { to })), Ok(Plan::Cut { to }));
    let commit = Lsn(2 * BLOCK + 1);
    assert_eq!(r.may_cut(Lsn(2 * BLOCK)), Err(Violation::CutBelowCommit { to: Lsn(2 * BLOCK), commit }));
    assert_eq!(r.may_cut(to), Ok(()));
}

/// Found by the simulator: a replica that had applied committed records had forgotten after its start
/// that they were, and a primary could have had them cut.
#[test]
fn what_a_handler_was_given_as_committed_is_still_committed_after_a_start() {
    let mut r = replica(4, 0);
    r.on_resumed(Lsn(2 * BLOCK));
    assert_eq!(r.committed(), Lsn(2 * BLOCK));
    let to = Lsn(BLOCK);
    let cut = r.on_welcome(&welcome(5, Verdict::Cut { to }));
    assert_eq!(cut, Err(Violation::CutBelowCommit { to, commit: Lsn(2 * BLOCK) }));
}

#[test]
fn a_cut_to_its_own_end_takes_the_whole_last_term() {
    let mut r = replica(2, 2 * BLOCK);
    r.follow(&stream(6, 2 * BLOCK));
    receive(&mut r, 6, 0);
    receive(&mut r, 6, 0);
    r.on_flushed(Lsn(4 * BLOCK));
    let plan = r.on_welcome(&welcome(8, Verdict::Cut { to: Lsn(4 * BLOCK) }));
    assert_eq!(plan, Ok(Plan::Cut { to: Lsn(2 * BLOCK) }));
}

#[test]
fn a_cut_log_says_so_everywhere() {
    let mut r = replica(2, 2 * BLOCK);
    r.follow(&stream(6, 2 * BLOCK));
    receive(&mut r, 6, 0);
    r.on_flushed(Lsn(3 * BLOCK));
    r.on_applied(Lsn(3 * BLOCK), Seq(3));
    let end = LogEnd { lsn: Lsn(2 * BLOCK), chain: Chain(77), next_seq: Seq(2), last_term: Term(3) };
    r.on_cut(end);
    let ack = r.ack(9);
    assert_eq!((ack.received, ack.flushed, ack.applied), (end.lsn, end.lsn, end.lsn));
    assert_eq!((ack.applied_seq, ack.echo_us, r.next_seq()), (Seq(2), 9, Seq(2)));
    assert_eq!(r.history.entries(), [(Term(3), Lsn(0))]);
    let hello = r.hello(NodeName::new("r1").unwrap(), 7);
    assert_eq!((hello.end_lsn, hello.last_term, hello.chain), (end.lsn, Term(3), Chain(77)));
    // The promise not to follow an older term outlives the bytes.
    assert_eq!(hello.term, Term(6));
}

#[test]
fn a_batch_that_does_not_follow_changes_nothing_and_names_the_field() {
    let mut r = replica(2, 0);
    r.follow(&stream(5, 2 * BLOCK));
    let good = fields(&r, 5);
    let before = format!("{r:?}");
    for (field, bad) in [
        ("system", BatchFields { system: OTHER, ..good }),
        ("shard", BatchFields { shard: ShardId(0), ..good }),
        ("LSN", BatchFields { lsn: Lsn(BLOCK), ..good }),
        ("LSN", BatchFields { lsn: Lsn(3 * BLOCK), ..good }),
        ("chain", BatchFields { prev_chain: Chain(78), ..good }),
        ("first sequence", BatchFields { first_seq: Seq(3), ..good }),
        ("term", BatchFields { term: Term(2), ..good }),
        ("term", BatchFields { term: Term(6), ..good }),
    ] {
        let no = r.on_batch(&batch(bad), Lsn(0)).unwrap_err();
        assert_eq!(no, Violation::DoesNotFollow { lsn: bad.lsn, end: Lsn(2 * BLOCK), field });
        assert_eq!(format!("{r:?}"), before);
    }
    // A term between its last batch's and the primary's is one that a catch-up brings.
    r.on_batch(&batch(BatchFields { term: Term(4), ..good }), Lsn(0)).unwrap();
    assert_eq!(r.history.entries(), [(Term(3), Lsn(0)), (Term(4), Lsn(2 * BLOCK))]);
}

#[test]
fn committed_is_never_above_what_is_flushed_here() {
    let mut r = replica(1, 0);
    r.follow(&stream(3, BLOCK));
    receive(&mut r, 3, 9 * BLOCK);
    assert_eq!((r.committed(), r.received()), (Lsn(BLOCK), Lsn(2 * BLOCK)));
    r.on_flushed(Lsn(2 * BLOCK));
    assert_eq!(r.committed(), Lsn(2 * BLOCK));
    let beat = |commit: u64, term: u64| Heartbeat {
        term: Term(term),
        tail: Lsn(20 * BLOCK),
        tail_seq: Seq(20),
        commit_lsn: Lsn(commit),
        time_us: 0,
    };
    r.on_heartbeat(&beat(BLOCK, 3)).unwrap();
    assert_eq!((r.committed(), r.lag_bytes()), (Lsn(2 * BLOCK), 18 * BLOCK));
    for term in [2, 4] {
        assert!(matches!(r.on_heartbeat(&beat(0, term)), Err(Violation::StalePrimary { .. })));
    }
}

#[test]
fn what_one_primary_called_committed_is_not_taken_for_another_ones_bytes() {
    let mut r = replica(1, 0);
    r.follow(&stream(3, BLOCK));
    // The old primary is far ahead, and gone before its bytes came.
    receive(&mut r, 3, 8 * BLOCK);
    r.on_flushed(Lsn(2 * BLOCK));
    r.on_link_lost();
    r.follow(&Welcome { commit_lsn: Lsn(BLOCK), ..stream(4, 2 * BLOCK) });
    receive(&mut r, 4, BLOCK);
    r.on_flushed(Lsn(3 * BLOCK));
    assert_eq!(r.committed(), Lsn(2 * BLOCK), "the new primary has not said that its batch is committed");
}

#[test]
#[should_panic(expected = "applied <= self.flushed")]
fn nothing_is_applied_before_it_is_flushed() {
    let mut r = replica(1, 0);
    r.follow(&stream(3, BLOCK));
    receive(&mut r, 3, 0);
    r.on_applied(Lsn(2 * BLOCK), Seq(2));
}

proptest! {
    /// Whatever comes in whatever order, an ack's positions are ordered and go forward, and what
    /// is committed is flushed.
    #[test]
    fn acks_tell_the_truth(events in prop::collection::vec((0u8..5, 0u64..12), 1..100)) {
        let mut r = replica(0, 0);
        r.follow(&stream(3, 0));
        let mut before = r.ack(0);
        let mut committed = Lsn(0);
        for (kind, n) in events {
            match kind {
                0 | 1 => {
                    let bad = if n == 0 { BLOCK } else { 0 };
                    let mut f = fields(&r, 3);
                    f.lsn = Lsn(f.lsn.0 + bad);
                    let h = batch(f);
                    prop_assert_eq!(r.on_batch(&h, Lsn(n * BLOCK)).is_ok(), bad == 0);
                }
                2 => {
                    let to = r.flushed().0 + (n * BLOCK).min(r.received().since(r.flushed()));
                    r.on_flushed(Lsn(to));
                }
                3 => {
                    let to = r.applied().0 + (n * BLOCK).min(r.committed().since(r.applied()));
                    r.on_applied(Lsn(to), Seq(to / BLOCK));
                }
                _ => {
                    let (tail, tail_seq, commit_lsn) = (Lsn(0), Seq(0), Lsn(n * BLOCK));
                    r.on_heartbeat(&Heartbeat { term: Term(3), tail, tail_seq, commit_lsn, time_us: 0 }).unwrap();
                }
            }
            let now = r.ack(0);
            prop_assert!(now.received >= now.flushed && now.flushed >= now.applied);
            prop_assert!(now.received >= before.received && now.flushed >= before.flushed);
            prop_assert!(r.committed() >= committed && r.committed() <= now.flushed);
            prop_assert!(r.lag_bytes() >= now.received.since(now.flushed));
            (before, committed) = (now, r.committed());
        }
    }
}

fn begin(at: u64, commit: u64) -> Welcome {
    let base = Base { chain: Chain(9), seq: Seq(30) };
    let verdict = Verdict::Begin { at: Lsn(at), base, known: true };
    Welcome { commit_lsn: Lsn(commit), ..welcome(4, verdict) }
}

#[test]
fn a_log_begins_anew_only_where_that_was_allowed_and_only_further_on() {
    let told = |r: &Replica, at, commit| r.on_welcome(&begin(at, commit));
    let mut r = replica(0, 0);
    assert!(told(&r, 5 * BLOCK, 5 * BLOCK).is_err(), "it has not asked");
    assert_eq!(r.hello(NodeName::new("r1").unwrap(), 1).features & FEATURE_BEGIN, 0);
    r.allow_begin(true, false);
    assert_eq!(r.hello(NodeName::new("r1").unwrap(), 1).features & FEATURE_BEGIN, FEATURE_BEGIN);
    assert!(
        matches!(told(&r, 5 * BLOCK, 5 * BLOCK), Ok(Plan::Begin(b)) if b.at == Lsn(5 * BLOCK) && b.term == Term(4))
    );
    r.allow_begin(false, true);
    assert!(told(&r, 5 * BLOCK, 5 * BLOCK).is_err(), "its handler would miss records");
    // A log with something in it is not given up unless that is wanted.
    let mut r = replica(4, 4 * BLOCK);
    r.allow_begin(true, false);
    assert!(told(&r, 5 * BLOCK, 5 * BLOCK).is_err());
    r.allow_begin(true, true);
    assert!(told(&r, 5 * BLOCK, 5 * BLOCK).is_ok());
    assert!(matches!(told(&r, 4 * BLOCK, 5 * BLOCK), Err(Violation::WrongStart { .. })), "it could go on there");
    assert!(matches!(told(&r, 3 * BLOCK, 5 * BLOCK), Err(Violation::WrongStart { .. })));
}

#[test]
fn a_log_is_not_given_up_for_a_primary_that_has_lost_what_was_committed_or_reigned_before() {
    let mut r = replica(4, 4 * BLOCK);
    r.allow_begin(true, true);
    let less = r.on_welcome(&begin(5 * BLOCK, 3 * BLOCK));
    assert!(matches!(less, Err(Violation::KnowsLess { .. })), "{less:?}");
    let older = Welcome { term: Term(2), ..begin(5 * BLOCK, 5 * BLOCK) };
    assert!(matches!(r.on_welcome(&older), Err(Violation::StalePrimary { .. })));
    let other = Welcome { system: OTHER, ..begin(5 * BLOCK, 5 * BLOCK) };
    assert!(matches!(r.on_welcome(&other), Err(Violation::ForeignSystem { .. })));
}

#[test]
fn a_log_that_has_begun_takes_the_first_batch_there_and_nothing_else() {
    let mut r = replica(4, 4 * BLOCK);
    r.allow_begin(true, true);
    let Ok(Plan::Begin(b)) = r.on_welcome(&begin(6 * BLOCK, 8 * BLOCK)) else { panic!("it may") };
    r.on_begin(&b);
    assert_eq!((r.flushed(), r.committed(), r.next_seq(), r.is_empty()), (b.at, b.at, Seq(30), true));
    let hello = r.hello(NodeName::new("r1").unwrap(), 1);
    assert_eq!((hello.end_lsn, hello.chain, hello.last_term, hello.term), (b.at, Chain(9), Term::ZERO, Term(4)));
    let follow = Welcome { commit_lsn: Lsn(8 * BLOCK), ..stream(4, 6 * BLOCK) };
    assert_eq!(r.on_welcome(&follow), Ok(Plan::Follow { term: Term(4) }));
    r.follow(&follow);
    assert_eq!(r.catch_up().map(|c| (c.bootstrap, c.from, c.tail)), Some((true, b.at, Lsn(10 * BLOCK))));
    assert!(!r.is_caught_up());
    let late = batch(BatchFields { lsn: Lsn(7 * BLOCK), ..fields(&r, 4) });
    assert!(matches!(r.on_batch(&late, Lsn(0)), Err(Violation::DoesNotFollow { field: "LSN", .. })));
    for _ in 0..4 {
        receive(&mut r, 3, 0);
        r.on_flushed(r.received());
    }
    assert!(r.is_caught_up() && r.catch_up().is_none());
    assert_eq!(r.history.entries(), [(Term(3), b.at)]);
}

#[test]
fn a_snapshot_is_taken_only_by_who_has_asked_and_where_the_log_ends_before() {
    let mut r = replica(2, 0);
    let snapshot = |oldest| welcome(4, Verdict::Snapshot { oldest: Lsn(oldest), known: true });
    let end = r.flushed().0;
    assert!(r.on_welcome(&snapshot(end + BLOCK)).is_err(), "it has not asked");
    r.allow_snapshot(true, false);
    assert!(!r.is_empty() && r.on_welcome(&snapshot(end + BLOCK)).is_err(), "its log may not be given up");
    r.allow_snapshot(false, true);
    assert!(r.on_welcome(&snapshot(end + BLOCK)).is_err(), "its handler takes none");
    r.allow_snapshot(true, true);
    assert!(r.hello(NodeName::NONE, 1).features & FEATURE_SNAPSHOT != 0);
    assert_eq!(r.on_welcome(&snapshot(end + BLOCK)), Ok(Plan::Snapshot { term: Term(4), known: true }));
    assert!(matches!(r.on_welcome(&snapshot(end)), Err(Violation::WrongStart { .. })), "it needs none");
}

/// Where a log of four blocks begins that has let go of two, all of which were committed.
const BEGINNING: LogEnd = LogEnd { lsn: Lsn(2 * BLOCK), chain: Chain(66), next_seq: Seq(2), last_term: Term::ZERO };

#[test]
fn a_log_is_cut_to_its_beginning_only_when_the_primary_was_asked_what_comes_then() {
    let name = NodeName::new("r1").unwrap();
    let mut r = replica(4, 2 * BLOCK);
    r.ask_from(Some(BEGINNING));
    let asks = r.hello(name, 1);
    assert_eq!((asks.end_lsn, asks.chain, asks.last_term), (BEGINNING.lsn, Chain(66), Term::ZERO));
    assert_eq!((asks.commit_lsn, r.flushed(), r.is_empty()), (BEGINNING.lsn, Lsn(4 * BLOCK), false));
    let all = Ok(Plan::CutAll { to: BEGINNING.lsn });
    assert_eq!(r.on_welcome(&stream(5, 2 * BLOCK)), all, "it goes on from there");
    assert!(matches!(r.on_welcome(&stream(5, 4 * BLOCK)), Err(Violation::WrongStart { .. })));
    assert!(matches!(r.on_welcome(&stream(2, 2 * BLOCK)), Err(Violation::StalePrimary { .. })));
    let cut = welcome(5, Verdict::Cut { to: BEGINNING.lsn });
    assert!(matches!(r.on_welcome(&cut), Err(Violation::CutBelowCommit { .. })), "that was committed");
    // Where the primary keeps that no more, it is a log that is too old.
    let oldest = Lsn(3 * BLOCK);
    let none = welcome(5, Verdict::NeedSnapshot { oldest });
    assert_eq!(r.on_welcome(&none), Ok(Plan::NeedSnapshot { oldest }));
    let snapshot = welcome(5, Verdict::Snapshot { oldest, known: false });
    r.allow_begin(true, false);
    r.allow_snapshot(true, false);
    assert_eq!(r.hello(name, 1).features & (FEATURE_BEGIN | FEATURE_SNAPSHOT), 0);
    assert!(r.on_welcome(&begin(3 * BLOCK, 5 * BLOCK)).is_err() && r.on_welcome(&snapshot).is_err());
    r.allow_begin(true, true);
    r.allow_snapshot(true, true);
    // Also in front of its own end: the tail is not in that log.
    assert_eq!(r.on_welcome(&begin(3 * BLOCK, 5 * BLOCK)), all);
    assert_eq!(r.on_welcome(&snapshot), all);
    assert!(matches!(r.on_welcome(&begin(2 * BLOCK, 5 * BLOCK)), Err(Violation::WrongStart { .. })));
    assert!(matches!(r.on_welcome(&begin(3 * BLOCK, 2 * BLOCK)), Err(Violation::KnowsLess { .. })));
    // It is asked once: then it says what it has.
    r.ask_from(None);
    assert_eq!(r.hello(name, 1).end_lsn, Lsn(4 * BLOCK));
    // And cut there it is an empty log, which begins where it began.
    r.on_cut(BEGINNING);
    assert!(r.is_empty() && r.committed() == BEGINNING.lsn);
    let hello = r.hello(name, 1);
    assert_eq!((hello.end_lsn, hello.chain, hello.last_term), (asks.end_lsn, asks.chain, asks.last_term));
    let w = stream(5, 2 * BLOCK);
    assert_eq!(r.on_welcome(&w), Ok(Plan::Follow { term: Term(5) }));
    r.follow(&w);
    receive(&mut r, 5, 0);
}

#[test]
fn a_log_that_holds_what_is_committed_is_never_offered_to_be_cut_whole() {
    let mut r = replica(4, 2 * BLOCK);
    r.ask_from(Some(BEGINNING));
    // The handler says so, between two hellos.
    r.on_resumed(Lsn(3 * BLOCK));
    r.ask_from(Some(BEGINNING));
    assert_eq!(r.hello(NodeName::NONE, 1).end_lsn, Lsn(4 * BLOCK));
    assert!(r.on_welcome(&stream(5, 2 * BLOCK)).is_err());
}
