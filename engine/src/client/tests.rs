//! The appending client and the status against a node of wire's making. Nothing here sleeps: what
//! has to happen first is waited for.

use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use towline_wire::frame::{self, FrameError, FrameKind};
use towline_wire::handshake::{Refusal, Role, Verdict};
use towline_wire::message::{AckLevel, ErrorCode, Goodbye, Heartbeat};
use towline_wire::{Lsn, Seq, ShardId};

use super::fake::{Fake, Peer, RECORD_BYTES_MAX, TERM, committed, frame_bytes, welcome};
use super::*;

fn open(node: &Fake, options: AppendOptions) -> Result<Appender, ClientError> {
    Appender::open(&node.addr, 2, options, &ConnectOptions::default())
}

fn opened(node: &Fake) -> Appender {
    open(node, AppendOptions::default()).unwrap()
}

fn lost(error: AppendError) -> Lost {
    match error {
        AppendError::Lost(lost) => lost,
        other => panic!("expected a lost connection, not {other:?}"),
    }
}

/// Answers every request as committed, in order, until the client is gone.
fn commit_all(mut peer: Peer) -> u64 {
    peer.accept();
    let mut seq = 0;
    while let Some((head, records)) = peer.append() {
        peer.reply(&committed(&head, seq));
        seq += records.len() as u64;
    }
    seq
}

#[test]
fn records_arrive_in_order_and_are_answered() {
    let (seen, records) = mpsc::channel();
    let node = Fake::new(move |mut peer| {
        let hello = peer.accept();
        assert_eq!((hello.role, hello.shard), (Role::Client, ShardId(2)));
        let mut seq = 0;
        while let Some((head, records)) = peer.append() {
            assert_eq!(head.policy, WirePolicy::AckN(2, AckLevel::Flushed));
            assert_eq!(head.deadline_us, 5_000_000);
            peer.heartbeat(4096, 4096);
            peer.reply(&committed(&head, seq));
            seq += records.len() as u64;
            seen.send(records).unwrap();
        }
    });
    let options = AppendOptions {
        policy: WirePolicy::AckN(2, AckLevel::Flushed),
        deadline: Some(Duration::from_secs(5)),
        ..AppendOptions::default()
    };
    let mut appender = open(&node, options).unwrap();
    assert_eq!(appender.record_bytes_max() as u64, RECORD_BYTES_MAX);
    assert!(appender.next_outcome().unwrap().is_none(), "nothing is under way");
    let one = appender.append_one(b"alone").unwrap();
    assert_eq!((one.status, one.record_count, one.first_seq.0), (CommitStatus::Committed, 1, 0));
    let request = appender.submit(b"").unwrap();
    assert_eq!(appender.submit(b"second of two").unwrap(), request);
    appender.flush().unwrap();
    let two = appender.next_outcome().unwrap().unwrap();
    assert_eq!((two.request, two.record_count, two.first_seq.0), (request, 2, 1));
    assert!(appender.next_outcome().unwrap().is_none());
    drop(appender);
    node.join();
    let all: Vec<Vec<u8>> = records.iter().flatten().collect();
    assert_eq!(all, [&b"alone"[..], b"", b"second of two"]);
}

#[test]
fn frames_fill_to_their_target_and_a_large_record_goes_alone() {
    let (seen, sizes) = mpsc::channel();
    let node = Fake::new(move |mut peer| {
        peer.accept();
        while let Some((head, records)) = peer.append() {
            seen.send(records.iter().map(Vec::len).collect::<Vec<_>>()).unwrap();
            peer.reply(&committed(&head, 0));
        }
    });
    // 100 bytes are 112 encoded: two fit into 256, three do not.
    let mut appender = open(&node, AppendOptions { frame_bytes: 256, ..AppendOptions::default() }).unwrap();
    for len in [100, 100, 100, 5000, 100] {
        appender.submit(&vec![1; len]).unwrap();
    }
    appender.flush().unwrap();
    while appender.next_outcome().unwrap().is_some() {}
    drop(appender);
    node.join();
    assert_eq!(sizes.iter().collect::<Vec<_>>(), [vec![100, 100], vec![100], vec![5000], vec![100]]);
}

#[test]
fn a_record_over_the_limit_is_not_taken_and_harms_nothing() {
    let node = Fake::new(|peer| assert_eq!(commit_all(peer), 1));
    let mut appender = opened(&node);
    let too_large = vec![0; RECORD_BYTES_MAX as usize + 1];
    match appender.submit(&too_large) {
        Err(AppendError::RecordTooLarge { len, max }) => assert_eq!((len, max), (too_large.len(), too_large.len() - 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(appender.append_one(&too_large[1..]).unwrap().record_count, 1);
    drop(appender);
    node.join();
}

#[test]
fn outcomes_stay_typed_and_may_come_out_of_order() {
    let statuses = [CommitStatus::TimedOut, CommitStatus::Fenced, CommitStatus::Stopped, CommitStatus::TooFewReplicas];
    let node = Fake::new(move |mut peer| {
        peer.accept();
        let heads: Vec<_> = statuses.iter().map(|_| peer.append().unwrap().0).collect();
        for (head, status) in heads.iter().zip(statuses).rev() {
            peer.reply(&Committed { status, acks: 1, ..committed(head, 9) });
        }
        assert!(peer.append().is_none());
    });
    let mut appender = opened(&node);
    let mut requests = Vec::new();
    for _ in statuses {
        requests.push(appender.submit(b"x").unwrap());
        appender.flush().unwrap();
    }
    for (request, status) in requests.into_iter().zip(statuses).rev() {
        let outcome = appender.next_outcome().unwrap().unwrap();
        assert_eq!((outcome.request, outcome.status), (request, status));
    }
    drop(appender);
    node.join();
}

#[test]
fn a_refusal_carries_the_nodes_words() {
    let node = Fake::new(|mut peer| peer.refuse(Refusal::NotPrimary, "ask 10.0.0.7:4790"));
    match open(&node, AppendOptions::default()).err().unwrap() {
        error @ ClientError::Refused { .. } => {
            assert_eq!(error.advice(), Advice::TryElsewhere);
            assert!(error.to_string().contains("NotPrimary") && error.to_string().contains("ask 10.0.0.7:4790"));
        }
        other => panic!("{other:?}"),
    }
    node.join();
}

#[test]
fn a_refusal_without_words_still_names_its_cause() {
    let node = Fake::new(|mut peer| {
        peer.accept_with(&welcome(Verdict::Refused(Refusal::NoSuchShard)));
    });
    let error = open(&node, AppendOptions::default()).err().unwrap();
    assert!(matches!(error, ClientError::Refused { cause: Refusal::NoSuchShard, .. }), "{error:?}");
    assert_eq!(error.advice(), Advice::Stop);
    node.join();
}

#[test]
fn what_is_no_towline_node_is_told_apart() {
    let node = Fake::new(|mut peer| {
        peer.hello();
        std::io::Write::write_all(&mut peer.stream, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").unwrap();
    });
    let error = open(&node, AppendOptions::default()).err().unwrap();
    assert!(matches!(error, ClientError::Frame { at: 0, source: FrameError::HeaderCrc { .. } }), "{error:?}");
    assert_eq!(error.advice(), Advice::Stop);
    node.join();

    // A port where nobody listens any more.
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = status(&addr).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }) && error.to_string().contains(&addr), "{error:?}");
    assert_eq!(error.advice(), Advice::TryElsewhere);
}

#[test]
fn a_length_over_its_cap_is_refused_before_memory_is_taken() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        peer.append();
        let mut head = frame::header(FrameKind::Committed, 0, 0, &[]);
        // The header is forged: the wire crate refuses to make one like it.
        head[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32c_of(&head[..20]);
        head[20..].copy_from_slice(&crc.to_le_bytes());
        std::io::Write::write_all(&mut peer.stream, &head).unwrap();
        assert!(peer.append().is_none());
    });
    let mut appender = opened(&node);
    appender.submit(b"x").unwrap();
    appender.flush().unwrap();
    let lost = lost(appender.next_outcome().unwrap_err());
    let too_large = |e: &ClientError| matches!(e, ClientError::Frame { source: FrameError::TooLarge { .. }, .. });
    assert!(too_large(&lost.cause), "{:?}", lost.cause);
    assert_eq!((lost.unknown.len(), lost.unsent), (1, 0));
    drop(appender);
    node.join();
}

/// CRC32C, bit by bit: independent of the crate that wire uses.
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[test]
fn a_truncated_frame_is_a_closed_connection_with_unknown_outcomes() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        let (head, _) = peer.append().unwrap();
        let whole = frame_bytes(FrameKind::Committed, 0, &committed(&head, 0).to_bytes());
        std::io::Write::write_all(&mut peer.stream, &whole[..whole.len() - 1]).unwrap();
    });
    let mut appender = opened(&node);
    let error = lost(appender.append_one(b"x").unwrap_err());
    assert!(matches!(*error.cause, ClientError::Closed { .. }), "{:?}", error.cause);
    assert_eq!(error.cause.advice(), Advice::Reopen);
    assert_eq!(error.unknown, [Unknown { request: 1, first_record: 0, records: 1 }]);
    node.join();
}

#[test]
fn a_node_that_dies_mid_window_leaves_a_list_of_unknown_outcomes() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        let heads: Vec<_> = (0..3).map(|_| peer.append().unwrap().0).collect();
        peer.reply(&committed(&heads[0], 0));
    });
    let mut appender = opened(&node);
    for group in [2, 3, 4] {
        for _ in 0..group {
            appender.submit(b"record").unwrap();
        }
        appender.flush().unwrap();
    }
    appender.submit(b"collected, never flushed").unwrap();
    node.join();
    let first = appender.next_outcome().unwrap().unwrap();
    assert_eq!((first.request, first.record_count), (1, 2), "what arrived before the loss is delivered");
    let unknown =
        [Unknown { request: 2, first_record: 2, records: 3 }, Unknown { request: 3, first_record: 5, records: 4 }];
    for _ in 0..2 {
        let error = lost(appender.next_outcome().unwrap_err());
        assert_eq!((&error.unknown[..], error.unsent, error.unknown_records()), (&unknown[..], 1, 7));
        assert!(error.to_string().contains("7 records in 2 requests have an unknown outcome"), "{error}");
    }
    let error = lost(appender.flush().unwrap_err());
    assert_eq!((&error.unknown[..], error.unsent), (&unknown[..], 1));
}

#[test]
fn the_nodes_last_words_win_over_a_failed_write() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        peer.append().unwrap();
        peer.error(ErrorCode::Stopped, 0, "write failed on the device");
    });
    let mut appender = open(&node, AppendOptions { frame_bytes: 4096, ..AppendOptions::default() }).unwrap();
    let error = loop {
        if let Err(error) = appender.submit(&[0; 4000]) {
            break lost(error);
        }
    };
    assert!(matches!(*error.cause, ClientError::Server { code: ErrorCode::Stopped, .. }), "{:?}", error.cause);
    assert!(!error.unknown.is_empty());
    node.join();
}

#[test]
fn a_goodbye_explains_the_end() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        let (head, _) = peer.append().unwrap();
        peer.send(FrameKind::Goodbye, Goodbye::Stopping as u64, &[]);
        peer.reply(&committed(&head, 0));
    });
    let mut appender = opened(&node);
    assert_eq!(appender.append_one(b"x").unwrap().request, 1, "replies after a goodbye still count");
    node.join();
    let error = loop {
        // The end may be noticed after the first request is written.
        if let Err(error) = appender.append_one(b"y") {
            break lost(error);
        }
    };
    assert!(matches!(*error.cause, ClientError::Goodbye { .. }), "{:?}", error.cause);
    assert_eq!(error.cause.advice(), Advice::TryElsewhere);
}

#[test]
fn replies_that_cannot_be_true_end_the_connection() {
    for (request, records) in [(99, 1), (1, 2)] {
        let node = Fake::new(move |mut peer| {
            peer.accept();
            let (head, _) = peer.append().unwrap();
            peer.reply(&Committed { request, record_count: records, ..committed(&head, 0) });
            assert!(peer.append().is_none());
        });
        let mut appender = opened(&node);
        let error = lost(appender.append_one(b"x").unwrap_err());
        assert!(matches!(*error.cause, ClientError::BadReply { .. }), "{:?}", error.cause);
        assert_eq!((error.unknown.len(), error.cause.advice()), (1, Advice::Stop));
        drop(appender);
        node.join();
    }
}

#[test]
fn a_silent_node_is_idle_and_its_outcomes_unknown() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        peer.append().unwrap();
        assert!(peer.append().is_none(), "the client hangs up");
    });
    let options = AppendOptions { reply_timeout: Duration::from_millis(20), ..AppendOptions::default() };
    let mut appender = open(&node, options).unwrap();
    let error = lost(appender.append_one(b"x").unwrap_err());
    assert!(matches!(*error.cause, ClientError::Idle { .. }), "{:?}", error.cause);
    assert_eq!(error.unknown.len(), 1);
    drop(appender);
    node.join();
}

#[test]
fn unread_outcomes_are_bounded() {
    let node = Fake::new(|peer| assert_eq!(commit_all(peer), 5));
    let options = AppendOptions { unread_max: 4, window_requests: 4, ..AppendOptions::default() };
    let mut appender = open(&node, options).unwrap();
    for _ in 0..4 {
        appender.submit(b"x").unwrap();
        appender.flush().unwrap();
    }
    appender.submit(b"x").unwrap();
    assert!(matches!(appender.flush(), Err(AppendError::OutcomesUnread { limit: 4 })));
    assert_eq!(appender.next_outcome().unwrap().unwrap().request, 1);
    appender.flush().unwrap();
    for request in 2..=5 {
        assert_eq!(appender.next_outcome().unwrap().unwrap().request, request);
    }
    drop(appender);
    node.join();
}

/// The node writes before it reads the next request, and the client takes no outcome before the
/// end: without a reader of its own, both would wait for the other to read. Ten heartbeats with each
/// reply make more bytes than the kernel holds for a connection (`tcp_rmem` and `tcp_wmem` allow 36
/// MiB on a large machine), else the kernel's buffers would hide the deadlock.
#[test]
fn a_hundred_thousand_requests_of_one_record_do_not_deadlock() {
    const RECORDS: u64 = 100_000;
    let node = Fake::new(|mut peer| {
        peer.accept();
        let beat = Heartbeat { term: TERM, tail: Lsn(0), tail_seq: Seq(0), commit_lsn: Lsn(0), time_us: 1 };
        let beats = frame_bytes(FrameKind::Heartbeat, 0, &beat.to_bytes()).repeat(10);
        for seq in 0..RECORDS {
            let (head, _) = peer.append().unwrap();
            let reply = frame_bytes(FrameKind::Committed, 0, &committed(&head, seq).to_bytes());
            std::io::Write::write_all(&mut peer.stream, &[&beats[..], &reply].concat()).unwrap();
        }
        assert!(peer.append().is_none());
    });
    let options = AppendOptions {
        unread_max: RECORDS as usize,
        window_requests: RECORDS as usize,
        window_bytes: usize::MAX,
        ..AppendOptions::default()
    };
    let mut appender = open(&node, options).unwrap();
    for n in 0..RECORDS {
        appender.submit(&n.to_le_bytes()).unwrap();
        appender.flush().unwrap();
    }
    for request in 1..=RECORDS {
        assert_eq!(appender.next_outcome().unwrap().unwrap().request, request);
    }
    assert!(appender.next_outcome().unwrap().is_none());
    drop(appender);
    node.join();
}

/// The node holds back its replies until the client's window is full, then answers them all.
#[test]
fn a_window_that_fills_again_and_again_does_not_deadlock() {
    const RECORDS: usize = 100_000;
    const WINDOW: usize = 16;
    let node = Fake::new(|mut peer| {
        peer.accept();
        let (mut seq, mut held) = (0, Vec::new());
        while seq < RECORDS as u64 {
            let (head, records) = peer.append().unwrap();
            held.push(committed(&head, seq));
            seq += records.len() as u64;
            if held.len() == WINDOW || seq == RECORDS as u64 {
                held.drain(..).for_each(|reply| peer.reply(&reply));
            }
        }
        assert!(peer.append().is_none());
    });
    let options = AppendOptions { frame_bytes: 1 << 10, window_requests: WINDOW, ..AppendOptions::default() };
    let (mut submitter, mut outcomes) = open(&node, options).unwrap().split();
    let feeder = std::thread::spawn(move || {
        for n in 0..RECORDS {
            submitter.submit(&n.to_le_bytes()).unwrap();
        }
        submitter.finish().unwrap();
    });
    let mut seen = 0;
    while let Some(outcome) = outcomes.next_outcome().unwrap() {
        assert_eq!(outcome.first_seq.0, seen);
        seen += u64::from(outcome.record_count);
    }
    assert_eq!((seen, outcomes.submitted()), (RECORDS as u64, RECORDS as u64));
    feeder.join().unwrap();
    drop(outcomes);
    node.join();
}

#[test]
fn the_outcomes_half_can_end_the_appends() {
    let node = Fake::new(|peer| assert_eq!(commit_all(peer), 1));
    let (mut submitter, mut outcomes) = opened(&node).split();
    submitter.submit(b"x").unwrap();
    submitter.flush().unwrap();
    assert_eq!(outcomes.next_outcome().unwrap().unwrap().record_count, 1);
    outcomes.stop_submitting();
    assert!(outcomes.next_outcome().unwrap().is_none());
    submitter.submit(b"y").unwrap();
    assert!(matches!(submitter.finish(), Err(AppendError::Finished)));
    drop(outcomes);
    node.join();
}

#[test]
fn a_status_comes_back_as_it_was_sent() {
    let node = Fake::new(|mut peer| {
        peer.accept();
        assert_eq!(peer.read().unwrap().0.kind, FrameKind::StatusRequest);
        peer.heartbeat(0, 0);
        peer.send(FrameKind::Status, 0, b"{\"node\":{}}");
    });
    assert_eq!(status(&node.addr).unwrap(), "{\"node\":{}}");
    node.join();

    let node = Fake::new(|mut peer| {
        peer.accept();
        peer.read().unwrap();
        peer.send(FrameKind::Status, 0, b"{\"n\xff");
    });
    assert!(matches!(status(&node.addr), Err(ClientError::StatusText { at: 3 })));
    node.join();

    let node = Fake::new(|mut peer| {
        peer.accept();
        peer.read().unwrap();
        peer.send(FrameKind::Batch, 0, b"");
    });
    assert!(matches!(status(&node.addr), Err(ClientError::OutOfPlace { kind: FrameKind::Batch, .. })));
    node.join();
}
