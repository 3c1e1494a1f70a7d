//! Nothing from the network is believed unchecked: a peer that sends anything else than the protocol
//! is cut off, costs no memory, counts for nothing, and disturbs nobody.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::cluster::{LIMIT, ONE, Place, commit, of, of_replica, until, until_connected, until_same};
use towline::wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, WELCOME, Welcome};
use towline::wire::message::{Ack, AckLevel, AppendHead, ErrorCode, ErrorHead, WirePolicy};
use towline::wire::record;
use towline::{AppendOptions, CommitPolicy, Lsn, Outcome, Primary, Replica, ShardId, SystemId, Term};

fn connect(place: &Place) -> TcpStream {
    let peer = TcpStream::connect(place.addr).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    peer
}

fn framed(kind: FrameKind, arg: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::header(kind, 0, arg, payload)[..], payload].concat()
}

fn greeting(hello: &Hello) -> Vec<u8> {
    [&PREAMBLE[..], &framed(FrameKind::Hello, 0, &hello.to_bytes())].concat()
}

fn replica_hello(primary: &Primary, name: &str) -> Hello {
    let name = NodeName::new(name).unwrap();
    Hello { role: Role::Replica, system: primary.system(), name, ..Hello::client(ONE) }
}

/// The next frame, or `None` if the node closed the connection.
fn next(peer: &mut TcpStream) -> Option<(FrameHead, Vec<u8>)> {
    let mut header = [0; frame::HEADER];
    match peer.read_exact(&mut header) {
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
        other => other.expect("the node neither answers nor closes"),
    }
    let head = FrameHead::check(&header).unwrap();
    let mut payload = vec![0; head.len];
    peer.read_exact(&mut payload).unwrap();
    head.check_payload(&payload).unwrap();
    Some((head, payload))
}

/// Reads to the end of the connection; the error that the node gave, if it gave one.
fn farewell(peer: &mut TcpStream) -> Option<ErrorCode> {
    let mut said = None;
    while let Some((head, payload)) = next(peer) {
        if head.kind == FrameKind::Error {
            said = Some(ErrorHead::check(&payload).unwrap().0.code);
        }
    }
    said
}

fn welcomed(peer: &mut TcpStream) -> Welcome {
    let (head, payload) = next(peer).unwrap();
    assert_eq!((head.kind, payload.len()), (FrameKind::Welcome, WELCOME));
    Welcome::check(&payload).unwrap()
}

/// A node with one honest replica, which must not notice anything.
fn with_replica(place: &Place) -> (Primary, Replica) {
    let mut config = place.primary("p", &["r1", "evil"]);
    config.commit = "ack_n=1".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    until_connected(&primary, 1);
    (primary, replica)
}

fn is_unharmed(primary: &Primary, replica: &Replica) {
    commit(&primary.handle(), b"still here");
    until_same(primary, replica);
    assert_eq!(of(primary).slots[0].connects, 1, "the honest replica's link was cut");
}

#[test]
fn garbage_is_answered_with_an_error_and_a_closed_connection() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let hello = Hello::client(ONE).to_bytes();
    let mut broken_crc = greeting(&Hello::client(ONE));
    *broken_crc.last_mut().unwrap() ^= 1;
    let mut oversize = [&PREAMBLE[..], &frame::header(FrameKind::Hello, 0, 0, &hello)].concat();
    oversize[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases: Vec<Vec<u8>> = vec![
        vec![0; 200],
        (0..=255).cycle().take(100_000).collect(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"TOWLINE2 and more than eight bytes".to_vec(),
        broken_crc,
        oversize,
        // The wrong frame first.
        [&PREAMBLE[..], &framed(FrameKind::StatusRequest, 0, &[])].concat(),
        // A hello that is shorter than a hello.
        [&PREAMBLE[..], &framed(FrameKind::Hello, 0, &hello[..10])].concat(),
    ];
    for (n, bytes) in cases.iter().enumerate() {
        let mut peer = connect(&place);
        // The node may close before it has read everything.
        let _ = peer.write_all(bytes);
        let _ = peer.shutdown(Shutdown::Write);
        let said = farewell(&mut peer);
        let fits = matches!(said, Some(ErrorCode::BadFrame | ErrorCode::OutOfPlace) | None);
        assert!(fits, "case {n}: {said:?}");
    }
    is_unharmed(&primary, &replica);
}

#[test]
fn half_a_hello_is_waited_for_only_so_long() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let began = Instant::now();
    let bytes = greeting(&Hello::client(ONE));
    let mut peers: Vec<_> = [0, 3, PREAMBLE.len(), PREAMBLE.len() + 10, bytes.len() - 1]
        .map(|len| {
            let mut peer = connect(&place);
            peer.write_all(&bytes[..len]).unwrap();
            peer
        })
        .into();
    is_unharmed(&primary, &replica);
    for peer in &mut peers {
        assert_eq!(farewell(peer), Some(ErrorCode::Idle));
    }
    assert!(began.elapsed() < 2 * towline::limits::HANDSHAKE_TIMEOUT);
}

#[test]
fn who_does_not_belong_is_refused_with_the_cause() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let good = replica_hello(&primary, "evil");
    let foreign = SystemId([0xee; 16]);
    for (hello, cause) in [
        (Hello { protocol: 99, ..good }, Refusal::Protocol),
        (Hello { shard: ShardId(7), ..good }, Refusal::NoSuchShard),
        (Hello { system: foreign, ..good }, Refusal::ForeignSystem),
        (Hello { name: NodeName::new("stranger").unwrap(), ..good }, Refusal::UnknownReplica),
        (
            Hello { end_lsn: Lsn(1 << 40), term: of(&primary).term, last_term: of(&primary).term, ..good },
            Refusal::Future,
        ),
    ] {
        let mut peer = connect(&place);
        peer.write_all(&greeting(&hello)).unwrap();
        assert_eq!(welcomed(&mut peer).verdict, Verdict::Refused(cause));
        assert_eq!(farewell(&mut peer), Some(ErrorCode::Refused));
    }
    is_unharmed(&primary, &replica);
}

#[test]
fn a_forged_acknowledgement_counts_for_nothing() {
    let place = Place::new();
    let mut config = place.primary("p", &["evil"]);
    config.deadline = Duration::from_secs(2);
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let link = |ack: Ack| {
        let mut peer = connect(&place);
        peer.write_all(&greeting(&replica_hello(&primary, "evil"))).unwrap();
        assert_eq!(welcomed(&mut peer).verdict, Verdict::Stream { from: Lsn::ZERO });
        peer.write_all(&framed(FrameKind::Ack, 0, &ack.to_bytes())).unwrap();
        farewell(&mut peer)
    };
    let waiting = handle.append(ONE, b"never acknowledged").unwrap();
    until("it is on the device", || of(&primary).durable_lsn > Lsn::ZERO);
    let far = Lsn(1 << 40);
    let forged = Ack { received: far, flushed: far, applied: far, ..Ack::default() };
    assert_eq!(link(forged), Some(ErrorCode::BadAck));
    // Positions that contradict each other.
    let crossed = Ack { received: Lsn::ZERO, flushed: Lsn(4096), ..Ack::default() };
    assert_eq!(link(crossed), Some(ErrorCode::BadFrame));
    assert_eq!((of(&primary).commit_lsn, of(&primary).slots[0].flushed_lsn), (Lsn::ZERO, Lsn::ZERO));
    let outcome = waiting.wait();
    assert!(matches!(outcome, Ok(Outcome::TimedOut { acks: 0, wanted: 1, .. })), "{outcome:?}");
}

#[test]
fn frames_that_are_out_of_place_end_a_link() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let mut huge = frame::header(FrameKind::Batch, 0, 0, &[]);
    huge[..4].copy_from_slice(&(1u32 << 31).to_le_bytes());
    for bytes in [framed(FrameKind::StatusRequest, 0, &[]), framed(FrameKind::Append, 0, &[0; 64]), huge.to_vec()] {
        let mut peer = connect(&place);
        peer.write_all(&greeting(&replica_hello(&primary, "evil"))).unwrap();
        welcomed(&mut peer);
        peer.write_all(&bytes).unwrap();
        assert!(matches!(farewell(&mut peer), Some(ErrorCode::BadFrame | ErrorCode::OutOfPlace)));
    }
    is_unharmed(&primary, &replica);
}

#[test]
fn a_replica_that_takes_nothing_holds_nobody_up() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let mut peer = connect(&place);
    peer.write_all(&greeting(&replica_hello(&primary, "evil"))).unwrap();
    welcomed(&mut peer);
    // It reads no more. The kernel's buffers fill, then its sender waits; the others go on.
    let handle = primary.handle();
    let tickets: Vec<_> = (0..400).map(|_| handle.append(ONE, &[9; 64 << 10]).unwrap()).collect();
    for ticket in tickets {
        assert!(matches!(ticket.wait(), Ok(Outcome::Committed { acks: 1.., .. })));
    }
    until_same(&primary, &replica);
    assert!(of(&primary).memory_bytes <= 20 << 20);
    drop(peer);
    is_unharmed(&primary, &replica);
}

/// A primary that lies to a replica.
#[test]
fn a_replica_takes_no_batch_that_does_not_check() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"good");
    until_same(&primary, &replica);
    let (system, end) = (primary.system(), of(&primary).appended_lsn);
    primary.stop();
    let listener = TcpListener::bind(place.addr).unwrap();
    for n in 0..4 {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        let mut preamble = [0; PREAMBLE.len()];
        peer.read_exact(&mut preamble).unwrap();
        let hello = Hello::check(&next(&mut peer).unwrap().1).unwrap();
        assert_eq!((hello.system, hello.end_lsn), (system, end));
        let welcome = Welcome {
            protocol: towline::wire::PROTOCOL_VERSION,
            verdict: Verdict::Stream { from: end },
            depth: 0,
            shard_count: 1,
            heartbeat_ms: 1000,
            system,
            features: 0,
            term: Term(9),
            tail: end,
            commit_lsn: end,
            segment_bytes: 64 << 10,
            time_us: 0,
            record_bytes_max: 0,
        };
        peer.write_all(&framed(FrameKind::Welcome, 0, &welcome.to_bytes())).unwrap();
        let mut batch = vec![0; 4096];
        let body = record::encode(b"evil", &mut batch[towline::wire::batch::HEADER..]);
        batch.truncate(towline::wire::batch::HEADER + body);
        let fields = towline::wire::BatchFields {
            system: if n == 0 { SystemId([1; 16]) } else { system },
            shard: ONE,
            term: Term(9),
            lsn: end,
            first_seq: towline::Seq(1),
            record_count: 1,
            timestamp_us: 0,
            prev_chain: if n == 1 { towline::wire::Chain(1) } else { hello.chain },
            durable_lsn: Lsn::ZERO,
            commit_lsn: Lsn::ZERO,
        };
        towline::wire::batch::seal(&fields, &mut batch);
        if n == 2 {
            *batch.last_mut().unwrap() ^= 1;
        }
        if n == 3 {
            // A length that is not the batch's.
            batch.extend([0; 8]);
        }
        let _ = peer.write_all(&[&frame::batch_header(0, end, batch.len())[..], &batch].concat());
        let _ = peer.shutdown(Shutdown::Write);
        farewell(&mut peer);
    }
    let s = of_replica(&replica);
    assert_eq!((s.appended_lsn, s.tail_seq.0, s.stopped), (end, 1, None));
}

#[test]
fn a_client_that_sends_garbage_after_its_welcome_is_cut_off() {
    let place = Place::new();
    let (primary, replica) = with_replica(&place);
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    for bytes in
        [vec![0xff; 4096], framed(FrameKind::Append, 0, &[0xff; 100]), framed(FrameKind::Welcome, 0, &[0; 112])]
    {
        let mut peer = connect(&place);
        peer.write_all(&greeting(&Hello::client(ONE))).unwrap();
        assert_eq!(welcomed(&mut peer).verdict, Verdict::Client);
        peer.write_all(&bytes).unwrap();
        assert!(matches!(farewell(&mut peer), Some(ErrorCode::BadFrame | ErrorCode::OutOfPlace)));
    }
    let before = of(&primary).tail_seq.0;
    assert!(primary.handle().append_with(ONE, b"x", local).unwrap().wait().unwrap().committed().is_some());
    assert_eq!((before, of(&primary).tail_seq.0), (0, 1), "nothing of it was appended");
    is_unharmed(&primary, &replica);
}

#[test]
fn a_client_that_takes_no_answers_is_read_no_further() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let mut peer = connect(&place);
    peer.write_all(&greeting(&Hello::client(ONE))).unwrap();
    welcomed(&mut peer);
    // Refused at once: there are no two replicas. What the kernel keeps of both directions is less.
    let policy = WirePolicy::AckN(2, AckLevel::Flushed);
    let head = AppendHead { request: 1, deadline_us: 0, record_count: 1, policy };
    let mut body = vec![0; record::encoded_len(1)];
    record::encode(b"x", &mut body);
    let many = framed(FrameKind::Append, 0, &[&head.to_bytes()[..], &body].concat()).repeat(1 << 10);
    peer.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let sent = (0..2048).take_while(|_| peer.write_all(&many).is_ok()).count();
    assert!(sent < 2048, "{} MiB of appends are answered, and nobody takes that", (sent * many.len()) >> 20);
    primary.stop();
}
