//! The values behind the golden vectors of `docs/FORMAT.md`: each message once, with a different
//! number in every field, so that two swapped fields cannot pass.
#![allow(dead_code, reason = "each test file uses its own part")]

use proptest::test_runner::{Config, RngSeed};
use towline_wire::frame::{self, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, Welcome};
use towline_wire::message::{
    Ack, AckLevel, AppendHead, CommitStatus, Committed, ControlAction, ControlRequest, ErrorCode, ErrorHead, Goodbye,
    Heartbeat, PackedHead, SlotAction, SlotRequest, SnapshotBegin, SnapshotEnd, SnapshotId, SnapshotPoint,
    SnapshotRequest, TailRequest, TailStart, WirePolicy,
};
use towline_wire::superblock::{self, Base, LinksEntry, SettingsEntry, SlotEntry, SlotKind, SlotLoss, Superblock};
use towline_wire::{BatchFields, Chain, Lsn, Seq, ShardId, SystemId, Term, batch, record};

/// The records in every sample that carries records.
pub(crate) const RECORDS: [&[u8]; 2] = [b"hello", b"group commit"];

/// A system id whose bytes all differ.
pub(crate) const SYSTEM: SystemId =
    SystemId([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);

const TIME_US: u64 = 1_700_000_000_000_000;
const CHAIN: Chain = Chain(0x0123_4567_89ab_cdef);

/// Property tests draw the same cases in every run.
pub(crate) fn deterministic(cases: u32) -> Config {
    // Miri looks at the code, not at many values; it is some thousand times slower.
    let cases = if cfg!(miri) { 2 } else { cases };
    Config { cases, rng_seed: RngSeed::Fixed(0x70_77_6c_69_6e_65), failure_persistence: None, ..Config::default() }
}

/// Records as a body.
pub(crate) fn body(records: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![0xa5; records.iter().map(|r| record::encoded_len(r.len())).sum()];
    let mut at = 0;
    for r in records {
        at += record::encode(r, &mut body[at..]);
    }
    assert_eq!(at, body.len());
    body
}

pub(crate) fn batch_fields() -> BatchFields {
    BatchFields {
        system: SYSTEM,
        shard: ShardId(3),
        term: Term(7),
        lsn: Lsn(16_384),
        first_seq: Seq(41),
        record_count: 2,
        timestamp_us: TIME_US,
        prev_chain: CHAIN,
        durable_lsn: Lsn(12_288),
        commit_lsn: Lsn(8_192),
    }
}

/// A batch as it crosses the network.
pub(crate) fn sealed(fields: &BatchFields, body: &[u8]) -> (Vec<u8>, Chain) {
    let mut bytes = vec![0xa5; batch::HEADER];
    bytes.extend_from_slice(body);
    let chain = batch::seal(fields, &mut bytes);
    (bytes, chain)
}

/// The sample batch as it crosses the network.
pub(crate) fn batch_bytes() -> Vec<u8> {
    sealed(&batch_fields(), &body(&RECORDS)).0
}

/// The same bytes as they lie on disk.
pub(crate) fn on_disk(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(towline_wire::round_up_to_block(bytes.len() as u64) as usize, 0);
    bytes
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol: 1,
        role: Role::Replica,
        shard: ShardId(3),
        features: 0,
        system: SYSTEM,
        term: Term(7),
        last_term: Term(6),
        end_lsn: Lsn(16_384),
        chain: CHAIN,
        commit_lsn: Lsn(8_192),
        process: 0x1122_3344_5566_7788,
        name: NodeName::new("replica-1").unwrap(),
    }
}

pub(crate) fn welcome(verdict: Verdict) -> Welcome {
    Welcome {
        protocol: 1,
        verdict,
        depth: 0,
        shard_count: 4,
        heartbeat_ms: 100,
        system: SYSTEM,
        features: 0,
        term: Term(7),
        tail: Lsn(20_480),
        commit_lsn: Lsn(8_192),
        segment_bytes: 64 << 20,
        time_us: TIME_US,
        record_bytes_max: 16 << 20,
    }
}

/// Each verdict, by the name of its golden vector.
pub(crate) const VERDICTS: [(&str, Verdict); 7] = [
    ("frame-welcome-stream", Verdict::Stream { from: Lsn(16_384) }),
    ("frame-welcome-cut", Verdict::Cut { to: Lsn(12_288) }),
    ("frame-welcome-need-snapshot", Verdict::NeedSnapshot { oldest: Lsn(4_096) }),
    ("frame-welcome-begin", Verdict::Begin { at: Lsn(4_096), base: Base { chain: CHAIN, seq: Seq(41) }, known: true }),
    ("frame-welcome-snapshot", Verdict::Snapshot { oldest: Lsn(4_096), known: true }),
    ("frame-welcome-client", Verdict::Client),
    ("frame-welcome-refused", Verdict::Refused(Refusal::CutBelowCommit)),
];

pub(crate) fn ack() -> Ack {
    Ack { received: Lsn(20_480), flushed: Lsn(16_384), applied: Lsn(12_288), applied_seq: Seq(41), echo_us: TIME_US }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat { term: Term(7), tail: Lsn(20_480), tail_seq: Seq(43), commit_lsn: Lsn(16_384), time_us: TIME_US }
}

pub(crate) fn append_head() -> AppendHead {
    AppendHead { request: 99, deadline_us: 250_000, record_count: 2, policy: WirePolicy::AckN(1, AckLevel::Flushed) }
}

/// An append's payload.
pub(crate) fn append_bytes(head: &AppendHead, records: &[&[u8]]) -> Vec<u8> {
    [head.to_bytes().to_vec(), body(records)].concat()
}

pub(crate) fn committed() -> Committed {
    Committed {
        request: 99,
        term: Term(7),
        lsn: Lsn(20_480),
        first_seq: Seq(41),
        record_count: 2,
        status: CommitStatus::TimedOut,
        acks: 1,
        wanted: 2,
        durable_here: true,
    }
}

/// Each kind of start, by the name of its golden vector.
pub(crate) const TAILS: [(&str, TailRequest); 3] = [
    ("frame-tail-at", TailRequest { start: TailStart::At(Lsn(16_384)), flushed: true, until_end: false }),
    ("frame-tail-oldest", TailRequest { start: TailStart::Oldest, flushed: false, until_end: true }),
    ("frame-tail-from-end", TailRequest { start: TailStart::End, flushed: false, until_end: false }),
];

pub(crate) const ERROR: ErrorHead = ErrorHead { code: ErrorCode::TooOld, arg: 4_096 };
pub(crate) const ERROR_TEXT: &str = "position is gone";
pub(crate) const STATUS: &[u8] = br#"{"shards":4}"#;

/// An error's payload.
pub(crate) fn error_bytes(head: &ErrorHead, text: &str) -> Vec<u8> {
    let (head, text) = head.to_bytes(text);
    [&head, text.as_bytes()].concat()
}

pub(crate) fn slot_request() -> SlotRequest {
    SlotRequest { name: NodeName::new("reader").unwrap(), action: SlotAction::CreateTemporary }
}

const SNAPSHOT: SnapshotPoint = SnapshotPoint {
    id: SnapshotId([0x10, 0x21, 0x32, 0x43, 0x54, 0x65, 0x76, 0x87, 0x98, 0xa9, 0xba, 0xcb, 0xdc, 0xed, 0xfe, 0x0f]),
    at: Lsn(16_384),
    base: Base { chain: CHAIN, seq: Seq(41) },
};

/// A snapshot's only chunk.
pub(crate) const SNAPSHOT_CHUNK: &[u8] = b"ada=1 bob=2";

pub(crate) fn snapshot_request() -> SnapshotRequest {
    SnapshotRequest { id: SNAPSHOT.id, offset: 6 }
}

pub(crate) fn snapshot_begin() -> SnapshotBegin {
    SnapshotBegin { point: SNAPSHOT, total: Some(11), offset: 6 }
}

pub(crate) fn snapshot_end() -> SnapshotEnd {
    SnapshotEnd {
        point: SNAPSHOT,
        total: 11,
        chunks: 1,
        checksum: towline_wire::message::snapshot_checksum(0, SNAPSHOT_CHUNK),
    }
}

/// The batch compressed, as an LZ4 block of literals and matches, behind its head.
pub(crate) fn packed_bytes() -> Vec<u8> {
    const BLOCK: &str = "\
        f01254574c420100000000112233445566778899aabbccddeeff0300000002000000071c00000400\
        10400500320000290700f3040000401e18240a0600efcdab89674523010030190012200800822800\
        0000a96fd9810e000f060003539da829bd051b009368656c6c6f0000000c1000f00167726f757020\
        636f6d6d697400000000";
    let digits = BLOCK.as_bytes().chunks(2).map(|d| core::str::from_utf8(d).unwrap());
    let block: Vec<u8> = digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect();
    [&PackedHead { batch_len: batch_bytes().len() }.to_bytes(), &block[..]].concat()
}

/// A name, a policy and a number, each by the name of its golden vector.
pub(crate) fn control_requests() -> [(&'static str, ControlRequest); 3] {
    let request = |action, if_version| ControlRequest { action, if_version };
    [
        ("frame-control-add-replica", request(ControlAction::AddReplica(NodeName::new("r3").unwrap()), 8)),
        ("frame-control-commit", request(ControlAction::Commit(WirePolicy::AckN(2, AckLevel::Applied)), 0)),
        ("frame-control-deadline", request(ControlAction::Deadline(500_000_000), 0)),
    ]
}

/// A frame: header and payload.
pub(crate) fn framed(kind: FrameKind, flags: u8, arg: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::header(kind, flags, arg, payload), payload].concat()
}

/// Every kind of frame at least once, by the name of its golden vector.
pub(crate) fn frames() -> Vec<(&'static str, FrameKind, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |name, kind, flags, arg, payload: &[u8]| all.push((name, kind, framed(kind, flags, arg, payload)));
    add("frame-hello", FrameKind::Hello, 0, 0, &hello().to_bytes());
    for (name, verdict) in VERDICTS {
        add(name, FrameKind::Welcome, 0, 0, &welcome(verdict).to_bytes());
    }
    add("frame-batch", FrameKind::Batch, FLAG_ACK_RECEIVED, 8_192, &batch_bytes());
    add("frame-ack", FrameKind::Ack, 0, 0, &ack().to_bytes());
    add("frame-heartbeat", FrameKind::Heartbeat, FLAG_REPLY_NOW, 0, &heartbeat().to_bytes());
    add("frame-append", FrameKind::Append, 0, 0, &append_bytes(&append_head(), &RECORDS));
    add("frame-committed", FrameKind::Committed, 0, 0, &committed().to_bytes());
    for (name, tail) in TAILS {
        add(name, FrameKind::Tail, 0, 0, &tail.to_bytes());
    }
    add("frame-tail-end", FrameKind::TailEnd, 0, 20_480, &[]);
    add("frame-error", FrameKind::Error, 0, 0, &error_bytes(&ERROR, ERROR_TEXT));
    add("frame-goodbye", FrameKind::Goodbye, 0, Goodbye::Done as u64, &[]);
    add("frame-status-request", FrameKind::StatusRequest, 0, 0, &[]);
    add("frame-status", FrameKind::Status, 0, 0, STATUS);
    add("frame-slot-request", FrameKind::SlotRequest, 0, 0, &slot_request().to_bytes());
    for (name, request) in control_requests() {
        add(name, FrameKind::ControlRequest, 0, 0, &request.to_bytes());
    }
    add("frame-packed", FrameKind::Packed, FLAG_ACK_RECEIVED, 8_192, &packed_bytes());
    add("frame-snapshot-request", FrameKind::SnapshotRequest, 0, 0, &snapshot_request().to_bytes());
    add("frame-snapshot-begin", FrameKind::SnapshotBegin, 0, 0, &snapshot_begin().to_bytes());
    add("frame-snapshot-chunk", FrameKind::SnapshotChunk, 0, 6, SNAPSHOT_CHUNK);
    add("frame-snapshot-end", FrameKind::SnapshotEnd, 0, 20_480, &snapshot_end().to_bytes());
    add("frame-snapshot-ack", FrameKind::SnapshotAck, 0, 11, &[]);
    all
}

pub(crate) type Owned = Superblock<Vec<(Term, Lsn)>, Vec<SlotEntry>>;

pub(crate) fn slot(name: &str, restart: u64, kind: SlotKind, lost: Option<SlotLoss>) -> SlotEntry {
    SlotEntry { name: NodeName::new(name).unwrap(), restart_lsn: Lsn(restart), kind, lost }
}

pub(crate) fn settings() -> SettingsEntry {
    SettingsEntry {
        version: 9,
        policy: WirePolicy::Majority(AckLevel::Flushed),
        deadline_ns: 2_000_000_000,
        retain_max: u64::MAX,
        slot_idle_max_ns: 0,
        min_replicas_age_ns: 10_000_000_000,
        links: Some(LinksEntry { catch_up_max: 100 << 20, lag_target: 0, link_window: 32 << 20 }),
        min_replicas: 1,
    }
}

pub(crate) fn superblock() -> Owned {
    Superblock {
        generation: 12,
        system: SYSTEM,
        shard: ShardId(3),
        shard_count: 4,
        term: Term(7),
        own_term: Term(6),
        segment_bytes: 64 << 20,
        oldest_lsn: Lsn(4_096),
        base: None,
        floor_lsn: Lsn(16_384),
        commit_lsn: Lsn(12_288),
        in_flight_bytes_max: 4 << 20,
        name: NodeName::new("replica-1").unwrap(),
        history: vec![(Term(5), Lsn(0)), (Term(6), Lsn(8_192)), (Term(7), Lsn(16_384))],
        slots: vec![
            slot("r1", 12_288, SlotKind::Configured, None),
            slot("reader", 0, SlotKind::Made, Some(SlotLoss::RetentionCap)),
        ],
        settings: Some(settings()),
    }
}

/// Of a log that was begun in the middle, and is empty.
pub(crate) fn superblock_begun() -> Owned {
    Superblock {
        oldest_lsn: Lsn(20_480),
        base: Some(Base { chain: Chain(0x1122_3344_5566_7788), seq: Seq(90) }),
        floor_lsn: Lsn(20_480),
        commit_lsn: Lsn(20_480),
        history: Vec::new(),
        slots: Vec::new(),
        settings: None,
        ..superblock()
    }
}

pub(crate) fn superblock_bytes(superblock: &Owned) -> Vec<u8> {
    let mut bytes = vec![0xa5; superblock::COPY];
    superblock.encode(&mut bytes);
    bytes
}
