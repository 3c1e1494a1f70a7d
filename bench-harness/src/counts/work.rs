//! The work whose instructions are counted: the pure parts of the hot path, each as often as asked.

use std::io;

use towline::protocol::builder::{BatchBuilder, buffer_for};
use towline::protocol::framing::FrameBuffer;
use towline::protocol::gate::{CommitGate, SlotPositions, Waiter};
use towline::protocol::history::History;
use towline::protocol::pipeline::Pipeline;
use towline::protocol::policy::Requirement;
use towline::protocol::recovery::{Facts, LogSource, recover};
use towline::protocol::replica::{LogEnd, Replica};
use towline::wire::batch::{BatchFields, BatchView};
use towline::wire::frame::{self, FrameKind};
use towline::wire::message::{Ack, AckLevel};
use towline::{Lsn, Seq, ShardId, SystemId, Term};

/// Bytes of a record.
const RECORD: usize = 256;
/// Bytes of a batch's buffer, as the engine's default is.
const BATCH: usize = 512 << 10;
const BLOCK: u64 = 4096;
const SYSTEM: SystemId = SystemId([7; 16]);

/// One thing that is counted.
pub(super) struct Work {
    /// Its name on the command line and in the stored counts.
    pub(super) name: &'static str,
    /// What it is, for people.
    pub(super) what: &'static str,
    /// How often it is done for a count; the difference to half of that is what counts.
    pub(super) times: u64,
    /// Does it so many times.
    pub(super) run: fn(u64),
}

/// All of it.
pub(super) const ALL: &[Work] = &[
    Work {
        name: "append",
        what: "a record: append, batch close, gate, pipeline",
        times: 40_000,
        run: |n| append(n, 1),
    },
    Work { name: "append-16", what: "a record, 16 shards in turn", times: 40_000 * 16, run: |n| append(n, 16) },
    Work { name: "gate-1", what: "an advance of the gate, 1 waiter", times: 4000, run: |n| gate(n, 1) },
    Work { name: "gate-1000", what: "an advance of the gate, 1,000 waiters", times: 4000, run: |n| gate(n, 1000) },
    Work { name: "gate-100000", what: "an advance, 100,000 waiters", times: 4000, run: |n| gate(n, 100_000) },
    Work { name: "lag-1", what: "an advance, a replica that is a batch behind", times: 4000, run: |n| lag(n, 1) },
    Work { name: "lag-100000", what: "an advance, one that is far behind", times: 4000, run: |n| lag(n, 100_000) },
    Work { name: "replica", what: "a record on a replica: check, follow, walk", times: 40_000, run: replica },
    Work { name: "frame", what: "a frame: buffer, check, decode", times: 8000, run: frames },
    Work { name: "recovery-2", what: "a MiB of recovery, a log of 2 MiB", times: 8, run: |n| recovery(n, 2) },
    Work { name: "recovery-8", what: "a MiB of recovery, a log of 8 MiB", times: 16, run: |n| recovery(n, 8) },
];

/// What must not cost more although there is more of something: the two, and how much the second may
/// cost of the first.
pub(super) const FLAT: &[(&str, &str, f64, &str)] = &[
    ("gate-1", "gate-1000", 1.1, "waiters"),
    ("gate-1", "gate-100000", 1.1, "waiters"),
    ("lag-1", "lag-100000", 1.05, "lag of a replica"),
    ("append", "append-16", 1.05, "shards"),
    ("recovery-2", "recovery-8", 1.05, "log"),
];

fn fields(at: &LogEnd) -> BatchFields {
    BatchFields {
        system: SYSTEM,
        shard: ShardId(0),
        term: Term(1),
        lsn: at.lsn,
        first_seq: at.next_seq,
        record_count: 0,
        timestamp_us: 1,
        prev_chain: at.chain,
        durable_lsn: at.lsn,
        commit_lsn: at.lsn,
    }
}

const NEED: Requirement = Requirement::number(2, AckLevel::Flushed);

fn ack(gate: &mut CommitGate, at: Lsn) {
    for slot in 0..2 {
        gate.on_ack(slot, SlotPositions { received: at, flushed: at, applied: at });
    }
}

fn append(records: u64, shards: usize) {
    let shard = || {
        let pipeline = Pipeline::new(Lsn::ZERO, Lsn::ZERO, 4, 64 << 20);
        (CommitGate::new(NEED, 2, Lsn::ZERO, Lsn::ZERO), LogEnd::default(), pipeline)
    };
    let mut all: Vec<_> = (0..shards).map(|_| shard()).collect();
    let (record, mut left) = ([0xa5; RECORD], records);
    let mut buf = vec![0; BATCH];
    let (mut done, mut turn) = (0, 0);
    while left > 0 {
        let (gate, end, pipeline) = &mut all[turn % shards];
        turn += 1;
        let mut builder = BatchBuilder::new(buf);
        while left > 0 && builder.fits(record.len() + 8) {
            // A caller's bytes are not known when the engine is compiled.
            builder.push(std::hint::black_box(&record));
            left -= 1;
        }
        let count = builder.count();
        let sealed = builder.close(fields(end));
        let start = end.lsn;
        end.lsn = Lsn(start.0 + sealed.disk_len as u64);
        end.chain = sealed.chain;
        pipeline.write(start, end.lsn);
        let first = end.next_seq.0;
        gate.wait(NEED, Waiter { end: end.lsn, lane: 0, first, count, since_ns: 0, deadline_ns: u64::MAX });
        end.next_seq = Seq(first + u64::from(count));
        if let Some(durable) = pipeline.complete(end.lsn) {
            gate.on_durable(durable);
        }
        ack(gate, end.lsn);
        gate.complete(|waiter, _| done += u64::from(waiter.count));
        buf = sealed.buf;
    }
    assert_eq!(done, records);
}

/// Each advance completes one waiter and finds another one at the end of the queue.
fn gate(advances: u64, waiters: u64) {
    let mut gate = CommitGate::new(NEED, 2, Lsn::ZERO, Lsn::ZERO);
    let waiter =
        |n: u64| Waiter { end: Lsn((n + 1) * BLOCK), lane: 0, first: n, count: 1, since_ns: 0, deadline_ns: u64::MAX };
    for n in 0..waiters {
        gate.wait(NEED, waiter(n));
    }
    for n in 0..advances {
        gate.wait(NEED, waiter(waiters + n));
        let at = Lsn((n + 1) * BLOCK);
        gate.on_durable(at);
        ack(&mut gate, at);
        let mut done = 0;
        gate.complete(|_, _| done += 1);
        assert_eq!(done, 1);
    }
}

/// Each advance completes one waiter while a third replica is so many batches behind the other two.
fn lag(advances: u64, batches: u64) {
    let mut gate = CommitGate::new(NEED, 3, Lsn::ZERO, Lsn::ZERO);
    let begin = 100_000;
    for n in begin..begin + advances {
        let at = Lsn((n + 1) * BLOCK);
        gate.wait(NEED, Waiter { end: at, lane: 0, first: n, count: 1, since_ns: 0, deadline_ns: u64::MAX });
        gate.on_durable(at);
        let behind = Lsn(at.0 - batches * BLOCK);
        gate.on_ack(2, SlotPositions { received: behind, flushed: behind, applied: behind });
        ack(&mut gate, at);
        let mut done = 0;
        gate.complete(|_, _| done += 1);
        assert_eq!(done, 1);
    }
}

/// A log of so many bytes, in batches of 64 KiB, each with as many records as fit.
fn log(bytes: usize) -> (Vec<u8>, LogEnd) {
    let (mut out, mut end) = (Vec::with_capacity(bytes + BATCH), LogEnd::default());
    while out.len() < bytes {
        let mut builder = BatchBuilder::new(vec![0; buffer_for(60 << 10)]);
        while builder.fits(RECORD + 8) {
            builder.push(&[out.len() as u8; RECORD]);
        }
        let count = builder.count();
        let sealed = builder.close(fields(&end));
        out.extend_from_slice(&sealed.buf[..sealed.disk_len]);
        end = LogEnd {
            lsn: Lsn(out.len() as u64),
            chain: sealed.chain,
            next_seq: Seq(end.next_seq.0 + u64::from(count)),
            last_term: Term(1),
        };
    }
    (out, end)
}

fn replica(records: u64) {
    let (log, _) = log(1 << 20);
    let mut left = records;
    while left > 0 {
        let mut history = History::default();
        history.begin(Term(1), Lsn::ZERO);
        let identity = (SYSTEM, ShardId(0), 1, 64 << 20);
        let mut replica = Replica::new(identity, Term(1), history, LogEnd::default(), Lsn::ZERO);
        let mut at = 0;
        while left > 0 && at < log.len() {
            let view = BatchView::check_on_disk(&log[at..]).expect("it was made above");
            replica.on_batch(view.header(), Lsn::ZERO).expect("it follows");
            at += view.header().disk_len() as usize;
            replica.on_flushed(Lsn(at as u64));
            let walked = view.records().map(|r| u64::from(r[0]) & 1 | 1).sum::<u64>();
            std::hint::black_box(replica.ack(0));
            left = left.saturating_sub(walked);
        }
    }
}

fn frames(count: u64) {
    let payload = Ack { received: Lsn(8192), flushed: Lsn(4096), ..Ack::default() }.to_bytes();
    let mut bytes = frame::header(FrameKind::Ack, 0, 0, &payload).to_vec();
    bytes.extend_from_slice(&payload);
    let mut buffer = FrameBuffer::new(1 << 20);
    for _ in 0..count {
        let mut at = 0;
        while at < bytes.len() {
            let room = buffer.room().expect("a frame that is right");
            let n = room.len().min(bytes.len() - at);
            room[..n].copy_from_slice(&bytes[at..at + n]);
            buffer.received(n);
            at += n;
            while buffer.missing() == Ok(0) {
                let (head, payload) = buffer.take().expect("a frame that is right");
                assert_eq!(head.kind, FrameKind::Ack);
                std::hint::black_box(Ack::check(payload).expect("an ack that is right"));
                if buffer.is_empty() {
                    break;
                }
            }
        }
    }
}

struct Memory(Vec<u8>);

impl LogSource for Memory {
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]> {
        let from = (lsn.0 as usize).min(self.0.len());
        Ok(&self.0[from..(from + len).min(self.0.len())])
    }
}

fn recovery(mib: u64, log_mib: usize) {
    let (mut bytes, end) = log(log_mib << 20);
    bytes.resize(bytes.len() + (64 << 10), 0);
    let mut memory = Memory(bytes);
    let facts = Facts {
        system: SYSTEM,
        shard: ShardId(0),
        term: Term(1),
        own_term: Term(1),
        oldest: Lsn::ZERO,
        base: None,
        floor: Lsn::ZERO,
        commit: Lsn::ZERO,
        reached: (Term::ZERO, Lsn::ZERO),
        in_flight_bytes_max: 4 << 20,
    };
    for _ in 0..mib / log_mib as u64 {
        let found = recover(&mut memory, &facts, |view| {
            std::hint::black_box(view);
        })
        .expect("it is whole");
        assert_eq!(found.end, end);
    }
}
