//! Snapshots over links that break, and from primaries that lie.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;

use crate::cluster::{LIMIT, ONE, Place, of, of_replica, records, until, until_same};
use crate::cutter::Cutter;
use crate::store::{State, Store};
use towline::wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::{FEATURE_SNAPSHOT, HELLO, Hello, Role, Verdict, Welcome};
use towline::wire::message::{
    ErrorCode, ErrorHead, SnapshotBegin, SnapshotEnd, SnapshotId, SnapshotPoint, SnapshotRequest, snapshot_checksum,
};
use towline::wire::superblock::Base;
use towline::wire::{Chain, PROTOCOL_VERSION};
use towline::{Lsn, Primary, Retain, RetainMax, Seq, SystemId, Term};

const SEGMENT: u64 = 64 << 10;

/// A primary that has let go of the beginning of its log, and its state.
fn trimmed(place: &Place) -> (Primary, Store) {
    let store = Store::default();
    let mut config = place.primary("p", &[]);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.node.snapshot = store.snapshots();
    config.retain_max = RetainMax::Unlimited;
    let primary = Primary::open(config).unwrap();
    store.trim_above(&primary, Lsn::ZERO);
    primary.create_slot("r1", false).unwrap();
    (primary, store)
}

#[test]
fn a_snapshot_goes_on_where_its_link_was_cut_wherever_that_was() {
    let place = Place::new();
    let (primary, store) = trimmed(&place);
    let cutter = Cutter::start(place.addr);
    let copy = Store::default();
    let mut config = place.replica("r1");
    config.primary = cutter.addr;
    // The first connection asks who the primary is.
    cutter.cut(1000, 997);
    let r1 = copy.open(config);
    until("it was cut often", || cutter.cuts.load(Ordering::Relaxed) > 8);
    until("it goes on all the same", || {
        store.write(&primary.handle(), &records(1, 0));
        let done = copy.lock().installed > 0;
        if done {
            cutter.cut(0, 0);
        }
        done
    });
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    let counters = of_replica(&r1).telemetry.counters;
    assert!(counters.snapshots_resumed > 3, "{counters:?}");
    assert_eq!((store.lock().produced, copy.lock().staged), (1, 1), "one, over all those links");
    assert!(of(&primary).telemetry.counters.snapshots_resumed > 3);
}

#[test]
fn a_replica_that_was_started_anew_takes_another_one_from_its_start() {
    let place = Place::new();
    let (primary, store) = trimmed(&place);
    store.lock().chunks_allowed = Some(5);
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    until("it is under way", || of_replica(&r1).snapshot.is_some_and(|s| s.done_bytes > 0));
    r1.stop();
    store.lock().chunks_allowed = None;
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    assert_eq!(copy.lock().staged, 2);
    until("nothing is left of the first", || store.lock().producers_alive == 0);
    assert_eq!(copy.lock().stages_alive, 0);
}

const SYSTEM: SystemId = SystemId([7; 16]);
const AT: Lsn = Lsn(1 << 20);

fn point() -> SnapshotPoint {
    SnapshotPoint { id: SnapshotId([9; 16]), at: AT, base: Base { chain: Chain(3), seq: Seq(2) } }
}

fn framed(kind: FrameKind, arg: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::header(kind, 0, arg, payload)[..], payload].concat()
}

fn begin(total: Option<u64>, offset: u64) -> Vec<u8> {
    framed(FrameKind::SnapshotBegin, 0, &SnapshotBegin { point: point(), total, offset }.to_bytes())
}

fn chunk(offset: u64, bytes: &[u8]) -> Vec<u8> {
    framed(FrameKind::SnapshotChunk, offset, bytes)
}

fn end(lie: impl Fn(&mut SnapshotEnd)) -> Vec<u8> {
    let mut end = SnapshotEnd { point: point(), total: 4, chunks: 1, checksum: snapshot_checksum(0, &[0; 4]) };
    lie(&mut end);
    framed(FrameKind::SnapshotEnd, AT.0, &end.to_bytes())
}

fn read_frame(stream: &mut TcpStream) -> Option<(FrameHead, Vec<u8>)> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).ok()?;
    let head = FrameHead::check(&header).unwrap();
    let mut payload = vec![0; head.len];
    stream.read_exact(&mut payload).ok()?;
    Some((head, payload))
}

/// Answers one hello as a primary whose log begins behind whatever the replica has; the answer to a replica
/// is what it says to these bytes behind the verdict.
fn lie(listener: &TcpListener, bytes: &[u8]) -> Option<ErrorCode> {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut preamble = [0; PREAMBLE.len()];
        stream.read_exact(&mut preamble).unwrap();
        let (_, hello) = read_frame(&mut stream).unwrap();
        assert_eq!(hello.len(), HELLO);
        let hello = Hello::check(&hello).unwrap();
        let verdict = match hello.role {
            Role::Client => Verdict::Client,
            Role::Replica => Verdict::Snapshot { oldest: Lsn(SEGMENT), known: true },
        };
        let welcome = Welcome {
            protocol: PROTOCOL_VERSION,
            verdict,
            shard_count: 1,
            heartbeat_ms: 1000,
            depth: 0,
            system: SYSTEM,
            features: 0,
            term: Term(3),
            tail: Lsn(2 << 20),
            commit_lsn: AT,
            segment_bytes: SEGMENT,
            time_us: 0,
            record_bytes_max: 1 << 20,
        };
        stream.write_all(&framed(FrameKind::Welcome, 0, &welcome.to_bytes())).unwrap();
        if hello.role == Role::Client {
            continue;
        }
        assert!(hello.features & FEATURE_SNAPSHOT != 0);
        let (head, request) = read_frame(&mut stream).unwrap();
        assert_eq!(head.kind, FrameKind::SnapshotRequest);
        assert_eq!(SnapshotRequest::check(&request).unwrap().offset, 0, "nothing is kept of what was refused");
        // It may close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut said = None;
        while let Some((head, payload)) = read_frame(&mut stream) {
            if head.kind == FrameKind::Error {
                said = Some(ErrorHead::check(&payload).unwrap().0.code);
            }
        }
        return said;
    }
}

#[test]
fn a_primary_that_lies_is_refused_with_the_cause_and_nothing_is_installed() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = place.replica("r1");
    config.primary = listener.local_addr().unwrap();
    config.node.snapshot_bytes_max = 256 << 10;
    config.reconnect_max = std::time::Duration::from_millis(20);
    let all = |parts: &[Vec<u8>]| parts.concat();
    let mut behind = SnapshotBegin { point: point(), total: None, offset: 0 };
    behind.point.at = Lsn(1 << 40);
    let uncommitted = SnapshotEnd { point: behind.point, total: 4, chunks: 1, checksum: snapshot_checksum(0, &[0; 4]) };
    let mut flipped = chunk(0, &[0; 4]);
    *flipped.last_mut().unwrap() ^= 1;
    let mut long = chunk(0, &[0; 4]);
    long[..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
    let large = vec![0; 256 << 10];
    let bad = Some(ErrorCode::BadSnapshot);
    let cases = vec![
        ("a chunk without a beginning", chunk(0, b"x"), bad),
        ("an end without a beginning", end(|_| ()), bad),
        ("two beginnings", all(&[begin(None, 0), begin(None, 0)]), bad),
        ("a beginning in the middle", begin(None, 4), bad),
        ("a wrong offset", all(&[begin(None, 0), chunk(4, b"x")]), bad),
        ("the same chunk twice", all(&[begin(None, 0), chunk(0, b"xx"), chunk(0, b"xx")]), bad),
        ("no bytes", all(&[begin(None, 0), chunk(0, b"")]), bad),
        ("more than declared", all(&[begin(Some(3), 0), chunk(0, &[0; 4])]), bad),
        ("less than declared", all(&[begin(Some(5), 0), chunk(0, &[0; 4]), end(|_| ())]), bad),
        ("more than may be, as it says", begin(Some((256 << 10) + 1), 0), bad),
        ("more than may be", all(&[begin(None, 0), chunk(0, &large), chunk(256 << 10, b"x")]), bad),
        ("another length", all(&[begin(None, 0), chunk(0, &[0; 4]), end(|e| e.total = 5)]), bad),
        ("another number", all(&[begin(None, 0), chunk(0, &[0; 4]), end(|e| e.chunks = 2)]), bad),
        ("another checksum", all(&[begin(None, 0), chunk(0, &[0; 4]), end(|e| e.checksum ^= 1)]), bad),
        ("another position", all(&[begin(None, 0), chunk(0, &[0; 4]), end(|e| e.point.at = Lsn(4096))]), bad),
        ("another chain", all(&[begin(None, 0), chunk(0, &[0; 4]), end(|e| e.point.base.chain = Chain(0))]), bad),
        (
            "not committed",
            all(&[
                framed(FrameKind::SnapshotBegin, 0, &behind.to_bytes()),
                chunk(0, &[0; 4]),
                framed(FrameKind::SnapshotEnd, AT.0, &uncommitted.to_bytes()),
            ]),
            bad,
        ),
        ("a wrong CRC", all(&[begin(None, 0), flipped]), Some(ErrorCode::BadFrame)),
        ("a length beyond every cap", all(&[begin(None, 0), long]), Some(ErrorCode::BadFrame)),
        ("a batch", framed(FrameKind::Ack, 0, &[0; 40]), Some(ErrorCode::OutOfPlace)),
    ];
    let copy = Store::default();
    // It asks who the primary is when it is opened.
    let opened = {
        let copy = copy.clone();
        thread::spawn(move || copy.open(config))
    };
    for (what, bytes, said) in &cases {
        assert_eq!(lie(&listener, bytes), *said, "{what}");
    }
    let r1 = opened.join().unwrap();
    assert_eq!((copy.state(), of_replica(&r1).durable_lsn), (State::default(), Lsn::ZERO));
    assert!(r1.reads(ONE).is_ok());
    drop(listener);
    // What came before a link broke off is kept to go on with, as long as the replica runs.
    assert!(copy.lock().stages_alive <= 1);
    r1.stop();
    assert_eq!(copy.lock().stages_alive, 0);
}
