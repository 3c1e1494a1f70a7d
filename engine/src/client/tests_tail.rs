//! Subscriptions against a node of wire's making.

use std::time::Duration;

use towline_wire::frame::{FrameError, FrameKind};
use towline_wire::handshake::{Verdict, Welcome};
use towline_wire::message::ErrorCode;
use towline_wire::{BatchError, Lsn, Seq, SystemId, Term};

use super::fake::{Fake, Log, Peer, TERM, frame_bytes, welcome};
use super::*;

const SHARD: u32 = 2;
const ALL: TailRequest = TailRequest { start: TailStart::Oldest, flushed: false, until_end: true };

fn open_with(node: &Fake, request: TailRequest) -> Tail {
    Tail::open(&node.addr, SHARD, request, &ConnectOptions::default()).unwrap()
}

/// A node that takes a subscription and hands the connection on.
fn serve(send: impl FnOnce(&mut Peer, TailRequest) + Send + 'static) -> Fake {
    Fake::new(move |mut peer| {
        peer.accept();
        let request = peer.tail_request();
        send(&mut peer, request);
    })
}

fn error_of(request: TailRequest, send: impl FnOnce(&mut Peer, TailRequest) + Send + 'static) -> ClientError {
    let node = serve(send);
    let mut tail = open_with(&node, request);
    let error = loop {
        match tail.next_batch() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the tail ended without an error"),
            Err(error) => break error,
        }
    };
    node.join();
    error
}

#[test]
fn batches_arrive_checked_and_the_end_ends_it() {
    let node = serve(|peer, request| {
        assert_eq!(request, ALL);
        let mut log = Log::new(SHARD);
        let first = log.batch(&[b"one", b"", b"three"]);
        peer.send(FrameKind::Batch, 8192, &first);
        peer.heartbeat(16384, 8192);
        log.fields.term = Term(TERM.0 + 1);
        let second = log.batch(&[&[5; 5000]]);
        peer.send(FrameKind::Batch, log.end(), &second);
        peer.send(FrameKind::TailEnd, log.end(), &[]);
    });
    let mut tail = open_with(&node, ALL);
    assert_eq!((tail.position(), tail.welcome().term), (None, TERM));
    let batch = tail.next_batch().unwrap().unwrap();
    assert_eq!(batch.records().collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
    assert_eq!((batch.lsn(), batch.end_lsn(), batch.commit_lsn()), (Lsn(0), Lsn(4096), Lsn(8192)));
    assert_eq!((batch.first_seq(), batch.record_count(), batch.term()), (Seq(0), 3, TERM));
    assert_eq!(batch.timestamp_us(), 1_000);
    assert_eq!(batch.header().chain(), towline_wire::BatchView::check(batch.as_bytes()).unwrap().header().chain());
    assert_eq!(tail.position(), Some(Lsn(4096)));
    let batch = tail.next_batch().unwrap().unwrap();
    assert_eq!((batch.lsn(), batch.end_lsn(), batch.first_seq()), (Lsn(4096), Lsn(12288), Seq(3)));
    assert_eq!((tail.commit_lsn(), tail.tail_lsn()), (Lsn(12288), Lsn(16384)));
    assert_eq!(tail.heartbeat().unwrap().tail, Lsn(16384));
    for _ in 0..2 {
        assert!(tail.next_batch().unwrap().is_none());
    }
    node.join();
}

#[test]
fn a_tail_may_begin_in_the_middle() {
    let node = serve(|peer, request| {
        assert_eq!(request.start, TailStart::At(Lsn(4096)));
        let mut log = Log::new(SHARD);
        log.batch(&[b"before"]);
        for record in [b"a", b"b"] {
            let bytes = log.batch(&[record]);
            peer.send(FrameKind::Batch, 1 << 20, &bytes);
        }
        peer.send(FrameKind::TailEnd, log.end(), &[]);
    });
    let mut tail = open_with(&node, TailRequest { start: TailStart::At(Lsn(4096)), ..ALL });
    assert_eq!(tail.next_batch().unwrap().unwrap().first_seq(), Seq(1));
    assert_eq!(tail.next_batch().unwrap().unwrap().first_seq(), Seq(2));
    assert!(tail.next_batch().unwrap().is_none());
    node.join();
}

#[test]
fn an_unaligned_start_is_refused_before_anything_is_sent() {
    let request = TailRequest { start: TailStart::At(Lsn(4097)), ..ALL };
    let opened = Tail::open("never resolved", SHARD, request, &ConnectOptions::default());
    assert!(matches!(opened.err(), Some(ClientError::Unaligned { lsn: Lsn(4097) })));
}

/// Sends one good batch, then one made after the log's fields were changed.
fn second_batch_after(change: impl FnOnce(&mut Log) + Send + 'static) -> ClientError {
    error_of(ALL, |peer, _| {
        let mut log = Log::new(SHARD);
        let good = log.batch(&[b"good"]);
        peer.send(FrameKind::Batch, 1 << 20, &good);
        change(&mut log);
        let bad = log.batch(&[b"bad"]);
        peer.send(FrameKind::Batch, 1 << 20, &bad);
    })
}

fn out_of_line(error: ClientError) -> OutOfLine {
    assert_eq!(error.advice(), Advice::Stop);
    match error {
        ClientError::OutOfLine { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_that_does_not_follow_is_refused() {
    let found = out_of_line(second_batch_after(|log| log.fields.prev_chain.0 ^= 1));
    assert!(matches!(found, OutOfLine::Chain { .. }), "{found:?}");
    let found = out_of_line(second_batch_after(|log| log.fields.lsn.0 += 4096));
    assert_eq!(found, OutOfLine::Lsn { expected: Lsn(4096), found: Lsn(8192) });
    let found = out_of_line(second_batch_after(|log| log.fields.first_seq.0 += 1));
    assert_eq!(found, OutOfLine::Seq { expected: Seq(1), found: Seq(2) });
    let found = out_of_line(second_batch_after(|log| log.fields.term.0 -= 1));
    assert_eq!(found, OutOfLine::Term { before: TERM, found: Term(TERM.0 - 1) });
    let found = out_of_line(second_batch_after(|log| log.fields.system = SystemId([8; 16])));
    assert!(matches!(found, OutOfLine::System { .. }), "{found:?}");
    let found = out_of_line(second_batch_after(|log| log.fields.shard.0 += 1));
    assert!(matches!(found, OutOfLine::Shard { .. }), "{found:?}");
}

#[test]
fn a_first_batch_elsewhere_than_asked_for_is_refused() {
    let request = TailRequest { start: TailStart::At(Lsn(4096)), ..ALL };
    let error = error_of(request, |peer, _| {
        let bytes = Log::new(SHARD).batch(&[b"x"]);
        peer.send(FrameKind::Batch, 4096, &bytes);
    });
    assert_eq!(out_of_line(error), OutOfLine::Lsn { expected: Lsn(4096), found: Lsn(0) });
}

#[test]
fn a_logs_first_batch_must_be_a_first_batch() {
    let error = error_of(ALL, |peer, _| {
        let mut log = Log::new(SHARD);
        log.fields.prev_chain.0 = 1;
        let bytes = log.batch(&[b"x"]);
        peer.send(FrameKind::Batch, 4096, &bytes);
    });
    assert!(matches!(out_of_line(error), OutOfLine::Chain { .. }));
}

#[test]
fn damage_on_the_way_is_noticed() {
    let error = error_of(ALL, |peer, _| {
        let mut bytes = Log::new(SHARD).batch(&[b"x"]);
        let last = bytes.len() - 8;
        bytes[last] ^= 1;
        peer.send(FrameKind::Batch, 4096, &bytes);
    });
    assert!(matches!(error, ClientError::Batch { source: BatchError::BodyCrc { .. }, .. }), "{error:?}");
    assert_eq!(error.advice(), Advice::Reopen);
    let error = error_of(ALL, |peer, _| {
        std::io::Write::write_all(&mut peer.stream, &[0xa5; 64]).unwrap();
    });
    assert!(matches!(error, ClientError::Frame { source: FrameError::HeaderCrc { .. }, .. }), "{error:?}");
}

#[test]
fn a_batch_cut_short_is_a_closed_connection() {
    let error = error_of(ALL, |peer, _| {
        let whole = frame_bytes(FrameKind::Batch, 4096, &Log::new(SHARD).batch(&[b"x"]));
        std::io::Write::write_all(&mut peer.stream, &whole[..whole.len() - 3]).unwrap();
    });
    assert!(matches!(error, ClientError::Closed { .. }), "{error:?}");
    assert_eq!(error.advice(), Advice::Reopen);
}

#[test]
fn what_is_not_committed_is_not_delivered_unless_asked_for() {
    let send = |peer: &mut Peer, _| {
        let mut log = Log::new(SHARD);
        let bytes = log.batch(&[b"x"]);
        peer.send(FrameKind::Batch, 0, &bytes);
        peer.send(FrameKind::TailEnd, log.end(), &[]);
    };
    let found = out_of_line(error_of(ALL, send));
    assert_eq!(found, OutOfLine::NotCommitted { end: Lsn(4096), commit: Lsn(0) });
    let node = serve(send);
    let mut tail = open_with(&node, TailRequest { flushed: true, ..ALL });
    assert_eq!(tail.next_batch().unwrap().unwrap().commit_lsn(), Lsn(0));
    assert!(tail.next_batch().unwrap().is_none());
    node.join();
}

#[test]
fn the_commit_lsn_never_moves_back() {
    let found = out_of_line(error_of(ALL, |peer, _| {
        peer.heartbeat(8192, 8192);
        peer.heartbeat(8192, 4096);
    }));
    assert_eq!(found, OutOfLine::CommitMovedBack { before: Lsn(8192), found: Lsn(4096) });
}

#[test]
fn an_end_that_leaves_batches_out_is_refused() {
    let found = out_of_line(error_of(ALL, |peer, _| {
        let bytes = Log::new(SHARD).batch(&[b"x"]);
        peer.send(FrameKind::Batch, 4096, &bytes);
        peer.send(FrameKind::TailEnd, 8192, &[]);
    }));
    assert_eq!(found, OutOfLine::Lsn { expected: Lsn(4096), found: Lsn(8192) });
    let follow = TailRequest { until_end: false, ..ALL };
    let error = error_of(follow, |peer, _| peer.send(FrameKind::TailEnd, 0, &[]));
    assert!(matches!(error, ClientError::OutOfPlace { kind: FrameKind::TailEnd, .. }), "{error:?}");
}

#[test]
fn a_position_that_is_not_there_is_typed() {
    let request = TailRequest { start: TailStart::At(Lsn(8192)), ..ALL };
    let error = error_of(request, |peer, _| peer.error(ErrorCode::TooOld, 65536, "recycled"));
    assert!(matches!(error, ClientError::TooOld { asked: Lsn(8192), oldest: Lsn(65536), .. }), "{error:?}");
    let error = error_of(request, |peer, _| peer.error(ErrorCode::NoSuchPosition, 4096, "beyond the end"));
    assert!(matches!(error, ClientError::NoSuchPosition { asked: Lsn(8192), end: Lsn(4096), .. }), "{error:?}");
    assert!(error.is_refusal());
}

#[test]
fn silence_is_idle() {
    // The node stays until the client hangs up, and says nothing.
    let node = Fake::new(|mut peer| {
        peer.accept_with(&Welcome { heartbeat_ms: 5, ..welcome(Verdict::Client) });
        peer.tail_request();
        assert!(peer.read().is_none());
    });
    let mut tail = open_with(&node, ALL);
    match tail.next_batch() {
        Err(ClientError::Idle { waited, .. }) => assert_eq!(waited, Duration::from_millis(15)),
        other => panic!("{other:?}"),
    }
    drop(tail);
    node.join();
}
