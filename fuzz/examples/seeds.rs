//! Writes the committed corpora from real encodings. The inputs that a bug was found with stay beside
//! them; their names begin with `found-`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use towline::protocol::builder::{BatchBuilder, buffer_for};
use towline_fuzz::client::ASKS;
use towline_fuzz::superblock::Owned;
use towline_wire::frame::{self, FrameKind};
use towline_wire::handshake::NodeName;
use towline_wire::message::{
    AckLevel, AppendHead, ControlAction, ControlRequest, Goodbye, SlotAction, SlotRequest, TailRequest, TailStart,
    WirePolicy,
};
use towline_wire::superblock::{COPY, HEAD, SLOT, SLOTS_AT, SlotEntry, SlotKind, SlotLoss, Superblock};
use towline_wire::{BatchFields, Chain, Lsn, Seq, ShardId, SystemId, Term, record};

struct Corpora(PathBuf);

impl Corpora {
    fn put(&self, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    }
}

fn main() -> io::Result<()> {
    let crate_folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    let to = Corpora(Path::new(&crate_folder).join("corpus"));
    batches(&to)?;
    records(&to)?;
    clients(&to)?;
    superblocks(&to)?;
    texts(&to)?;
    opens(&to)?;
    conversations(&to)?;
    numbers(&to)
}

fn body(payloads: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for payload in payloads {
        let at = body.len();
        body.resize(at + record::encoded_len(payload.len()), 0);
        record::encode(payload, &mut body[at..]);
    }
    body
}

fn batches(to: &Corpora) -> io::Result<()> {
    for (name, payloads) in
        [("many", vec![&b"ab"[..]; 20]), ("empty-record", vec![&b""[..]]), ("pair", vec![&b"12345678"[..], b"x"])]
    {
        let room: usize = payloads.iter().map(|p| p.len() + 16).sum();
        let mut builder = BatchBuilder::new(vec![0; buffer_for(room)]);
        payloads.iter().for_each(|p| builder.push(p));
        let sealed = builder.close(BatchFields {
            system: SystemId([7; 16]),
            shard: ShardId(2),
            term: Term(3),
            lsn: Lsn(40960),
            first_seq: Seq(9),
            record_count: 0,
            timestamp_us: 1,
            prev_chain: Chain(5),
            durable_lsn: Lsn(36864),
            commit_lsn: Lsn(32768),
        });
        to.put("batch", name, &sealed.buf[..sealed.wire_len])?;
    }
    Ok(())
}

fn records(to: &Corpora) -> io::Result<()> {
    to.put("records", "body", &body(&[b"abc", b"", b"12345678", b"123456789"]))?;
    to.put("records", "body-of-one", &body(&[&[0xff; 300]]))?;
    // A count, lengths, edits of five bytes.
    to.put("records", "whole", &[4, 0, 1, 8, 255])?;
    to.put("records", "flip", &[3, 9, 7, 40, 1, 0, 0, 2, 1])?;
    to.put("records", "zeroed", &[9, 20, 30, 40, 50, 60, 70, 80, 90, 100, 5, 0, 4, 0, 0])
}

fn frame_bytes(kind: FrameKind, arg: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::header(kind, 0, arg, payload), payload].concat()
}

fn append(request: u64, policy: WirePolicy, payloads: &[&[u8]]) -> Vec<u8> {
    let head = AppendHead { request, deadline_us: 0, record_count: payloads.len() as u32, policy };
    frame_bytes(FrameKind::Append, 0, &[&head.to_bytes()[..], &body(payloads)].concat())
}

fn slot(name: &str, action: SlotAction) -> Vec<u8> {
    let name = NodeName::new(name).expect("a name");
    frame_bytes(FrameKind::SlotRequest, 0, &SlotRequest { name, action }.to_bytes())
}

fn control(action: ControlAction, if_version: u64) -> Vec<u8> {
    frame_bytes(FrameKind::ControlRequest, 0, &ControlRequest { action, if_version }.to_bytes())
}

fn clients(to: &Corpora) -> io::Result<()> {
    let flushed = AckLevel::Flushed;
    let tail = TailRequest { start: TailStart::Oldest, flushed: false, until_end: true };
    let tail = frame_bytes(FrameKind::Tail, 0, &tail.to_bytes());
    let status = frame_bytes(FrameKind::StatusRequest, 0, &[]);
    let bye = frame_bytes(FrameKind::Goodbye, Goodbye::Done as u64, &[]);
    let appends = [
        append(1, WirePolicy::Default, &[b"one"]),
        append(2, WirePolicy::AckN(2, AckLevel::Applied), &[b"two", b"three"]),
        append(3, WirePolicy::Local, &[&[3; 1000]]),
        append(4, WirePolicy::All(flushed), &[&[4_u8; 100][..]; 12]),
        append(5, WirePolicy::Majority(AckLevel::Received), &[b""]),
    ]
    .concat();
    let refused =
        [append(6, WirePolicy::AckN(9, flushed), &[b"x"]), append(7, WirePolicy::Local, &[&[7; 5000]])].concat();
    let large = append(8, WirePolicy::Default, &[&[8; 4000], &[9; 4000], &[10; 4000]]);
    let slots = [
        slot("reader", SlotAction::Create),
        status.clone(),
        slot("r1", SlotAction::Drop),
        slot("r1", SlotAction::Create),
        slot("once", SlotAction::CreateTemporary),
        status.clone(),
        slot("reader", SlotAction::Drop),
        slot("nobody", SlotAction::Drop),
        slot("reader", SlotAction::Create),
    ];
    let all = ControlAction::Commit(WirePolicy::All(flushed));
    let r2 = NodeName::new("r2").expect("a name");
    let settings = [
        control(ControlAction::AddReplica(r2), 1),
        control(all, 2),
        control(ControlAction::Deadline(1), 2),
        control(ControlAction::Deadline(5_000_000_000), 0),
        control(ControlAction::RetainMax(1 << 20), 0),
        control(ControlAction::RetainMax(1), 0),
        control(ControlAction::SlotIdleMax(60_000_000_000), 0),
        control(ControlAction::MinReplicasAge(20_000_000_000), 0),
        control(ControlAction::RemoveReplica(r2), 0),
        control(ControlAction::MinReplicas(2), 0),
        append(10, WirePolicy::Default, &[b"refused"]),
        control(ControlAction::MinReplicas(0), 0),
        control(ControlAction::Commit(WirePolicy::AckN(3, flushed)), 0),
    ];
    // See `asks.rs`. Commits that wait for replicas of whom some leave.
    let leaves = [0, 1, 2, 2, 1, 1, 9, 0, 0, 1, 3, 0, 2, 7, 0, 10, 2, 1, 0, 0, 1, 1, 2, 8, 4, 4, 10, 2, 0, 0];
    let announced = &append(9, WirePolicy::Default, &[&[0; 3000]])[..frame::HEADER + 10];
    let appends_again = appends.clone();
    // How: CRCs are made right, chunk size, default policy.
    for (name, how, bytes) in [
        ("appends", 0x20, appends.clone()),
        ("appends-in-pieces", 0x26, appends.clone()),
        ("session", 0x41, [appends, refused.clone(), tail.clone(), status.clone(), bye.clone()].concat()),
        ("refused", 0x00, refused),
        ("large", 0x0a, large),
        ("announced", 0x01, announced.to_vec()),
        ("tail", 0x00, tail),
        ("status", 0x02, status),
        ("goodbye", 0x00, bye),
        ("slots", 0x00, [&appends_again[..], &slots.concat()].concat()),
        ("settings", 0x20, [&settings.concat()[..], &appends_again].concat()),
        ("settings-in-pieces", 0x44, settings.concat()),
        ("slots-raw", 0x01, slots.concat()),
        ("asks-that-leave", ASKS, leaves.to_vec()),
    ] {
        to.put("client", name, &[&[how], &bytes[..]].concat())?;
    }
    Ok(())
}

fn superblocks(to: &Corpora) -> io::Result<()> {
    let mut s = Superblock {
        generation: 12,
        system: SystemId([5; 16]),
        shard: ShardId(3),
        shard_count: 4,
        term: Term(7),
        own_term: Term(6),
        segment_bytes: 64 << 20,
        oldest_lsn: Lsn(4096),
        base: None,
        floor_lsn: Lsn(16384),
        commit_lsn: Lsn(12288),
        in_flight_bytes_max: 4 << 20,
        name: NodeName::new("replica-1").expect("a name"),
        history: vec![(Term(5), Lsn(0)), (Term(6), Lsn(8192)), (Term(7), Lsn(16384))],
        slots: Vec::new(),
        settings: None,
    };
    let front = |s: &Owned| {
        let mut copy = vec![0; COPY];
        s.encode(&mut copy);
        let slots = if s.slots.is_empty() { 0 } else { SLOTS_AT + SLOT * s.slots.len() };
        copy.truncate(slots.max(HEAD + 16 * s.history.len()));
        copy
    };
    let newer = front(&s);
    s.generation = 11;
    let older = front(&s);
    to.put("superblock", "one", &[&[0], &newer[..]].concat())?;
    to.put("superblock", "two", &[&[4], &newer[..], &older].concat())?;
    let slot = |name: &str, kind, lost| SlotEntry {
        name: NodeName::new(name).expect("a name"),
        restart_lsn: Lsn(12288),
        kind,
        lost,
    };
    let lost = Some(SlotLoss::RetentionCap);
    s.slots = vec![slot("r1", SlotKind::Configured, None), slot("reader", SlotKind::Made, lost)];
    to.put("superblock", "slots", &[&[0], &front(&s)[..]].concat())?;
    s.slots.clear();
    to.put("superblock", "bad-crc", &[&[1], &newer[..]].concat())?;
    (s.name, s.history, s.own_term) = (NodeName::NONE, Vec::new(), Term(0));
    to.put("superblock", "fresh", &[&[0], &front(&s)[..]].concat())?;
    s.history = (0..40).map(|n| (Term(n / 6), Lsn(n * 4096))).collect();
    s.history.dedup_by_key(|e| e.0);
    to.put("superblock", "long-history", &[&[0], &front(&s)[..]].concat())
}

fn texts(to: &Corpora) -> io::Result<()> {
    let example = include_str!("../../docs/towline.example.toml");
    let field = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let plain = |line: &'static str| line.strip_prefix('#').filter(|l| field(l)).unwrap_or(line);
    let fields: Vec<&str> = example.lines().map(plain).filter(|l| field(l) && !l.starts_with('#')).collect();
    to.put("config", "example", example.as_bytes())?;
    to.put("config", "every-field", fields.join("\n").as_bytes())?;
    for (n, pair) in fields.chunks(2).enumerate() {
        to.put("config", &format!("fields-{n:02}"), pair.join("\n").as_bytes())?;
    }
    for (name, text) in [
        ("unknown", "shards = 3\nshard = 4\n"),
        ("unit", "segment-size = \"64MB\"\n"),
        ("array", "cpus = [\n  0,\n  \"x\",\n]"),
        ("twice", "name = \"a\"\nname = \"b\""),
        ("no-value", "shards = \n"),
        ("table", "[a.b]\nc = { d = 1, e = [[1], [2]] }"),
        ("string", "name = \"\"\"\n\\u00e9\n\"\"\""),
    ] {
        to.put("config", name, text.as_bytes())?;
    }
    for (n, text) in [
        "local",
        "ack_n=2",
        "ack_n=255:applied",
        "ack_n=1:received",
        "all",
        "all:flushed",
        "majority:applied",
        "ack_n=0",
        "ack_n=01",
        "local:flushed",
        "ack_n=1:flushed:x",
        "quorum",
        "64MiB",
        "18446744073709551615",
        "16777216TiB",
        "4KiB",
        "200ms",
        "5s",
        "1m",
        "2h",
        "7us",
        "1.5MiB",
        "-1",
    ]
    .iter()
    .enumerate()
    {
        to.put("policy", &format!("text-{n:02}"), text.as_bytes())?;
    }
    Ok(())
}

/// A log of so many batches, what the superblock says, then edits.
fn opens(to: &Corpora) -> io::Result<()> {
    for (name, bytes) in [
        ("whole", &[7, 0, 5, 4, 3 * 4, 3, 8][..]),
        ("primary", &[11, 0, 8, 8, 3 * 4, 3 + 8 * 3, 8]),
        ("trimmed", &[11, 6, 9, 8, 0, 4, 4]),
        ("floor-at-the-end", &[4, 0, 4, 4, 0, 2, 4]),
        ("history", &[11, 0, 10, 0, 1, 1, 5, 10, 4, 8]),
        ("torn", &[9, 0, 3, 2, 0, 4, 4, 0, 4, 9, 0, 0]),
        ("damaged", &[9, 0, 3, 2, 0, 4, 0, 0, 2, 2, 2, 1]),
    ] {
        to.put("open", name, bytes)?;
    }
    Ok(())
}

/// How two logs begin, then events; see `handshake.rs`. A frame takes a byte that says whether it is
/// changed: 0 is not.
fn conversations(to: &Corpora) -> io::Result<()> {
    // Hello and welcome.
    let hello = [0, 0, 0];
    let round = [&[2, 4, 1, 3, 4, 0, 6, 7, 0, 8, 0][..]; 3].concat();
    for (name, shape, known, events) in [
        ("follow", 0x03, 0x05, [&hello[..], &round].concat()),
        ("empty", 0x00, 0x00, [&hello[..], &round].concat()),
        ("cut", 0x2f, 0x22, [&hello[..], &hello, &hello, &hello, &round].concat()),
        ("behind", 0x33, 0x11, [&hello[..], &[4, 0, 4, 0, 4, 0, 6, 6, 6, 7, 0, 13, 7, 0]].concat()),
        ("restart", 0x13, 0x01, [&hello[..], &round, &[2, 9, 9, 4, 0, 6, 7, 0, 12], &hello, &hello, &round].concat()),
        ("deposed", 0x03, 0x01, [&[0, 193, 24 + 32][..], &[12], &hello, &round].concat()),
        ("changed-ack", 0x03, 0x01, [&hello[..], &round, &[7, 194, 24, 9, 7, 0]].concat()),
        ("changed-welcome", 0x0f, 0x10, [&[0, 0, 194, 24 + 48, 1][..], &hello, &round].concat()),
        ("made-up", 0x03, 0x01, [&hello[..], &[9, 3, 0, 0, 0, 0, 0, 0, 0, 0, 40][..], &[0; 40], &[0]].concat()),
        ("trimmed", 0x31, 0x00, [&[14, 4][..], &hello, &round].concat()),
    ] {
        to.put("handshake", name, &[&[shape, known], &events[..]].concat())?;
    }
    Ok(())
}

/// Events and values of all kinds, from a fixed row of numbers.
fn numbers(to: &Corpora) -> io::Result<()> {
    let mut state = 1_u64;
    let mut row = |len: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    };
    for kind in 0..10 {
        to.put("encode", &format!("kind-{kind}"), &[&[kind], &row(160)[..]].concat())?;
    }
    for (n, len) in [40, 120, 300, 600, 900].into_iter().enumerate() {
        to.put("gate", &format!("row-{n}"), &row(len))?;
    }
    Ok(())
}
