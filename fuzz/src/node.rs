//! A primary and a replica of one shard, in memory: the engine's own state machines, with a list of
//! batches for a device. What the shell does around them (`shard/link/`) is done here in as few words
//! as it can be.

use towline::protocol::builder::{BatchBuilder, buffer_for};
use towline::protocol::framing::FrameBuffer;
use towline::protocol::gate::CommitGate;
use towline::protocol::history::History;
use towline::protocol::policy::Requirement;
use towline::protocol::primary::{HelloAnswer, LogEnds, Primary};
use towline::protocol::replica::{LogEnd, Plan, Replica};
use towline::protocol::slots::Slots;
use towline::{AckLevel, Lsn, Seq, ShardId, SystemId, Term};
use towline_wire::frame::{FrameHead, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, Welcome};
use towline_wire::message::{Ack, ErrorHead, Heartbeat};
use towline_wire::superblock::Base;
use towline_wire::{BatchFields, BatchView, Chain, PROTOCOL_VERSION};

/// The system of both.
pub const SYSTEM: SystemId = SystemId([9; 16]);
const SHARD: ShardId = ShardId(0);
const SHARDS: u32 = 1;
const SEGMENT_BYTES: u64 = 64 << 10;
const NEED: Requirement = Requirement::number(1, AckLevel::Flushed);

/// One batch of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where it starts.
    pub lsn: Lsn,
    /// Where the log is behind it.
    pub end: LogEnd,
    /// The chain before it.
    pub before: Chain,
    /// Header and body.
    pub wire: Vec<u8>,
}

/// A log's end.
#[must_use]
pub fn end_of(log: &[Stored]) -> LogEnd {
    log.last().map_or(LogEnd::default(), |b| b.end)
}

/// The same, of a log that is kept from `oldest` on: without a batch there it is empty.
#[must_use]
pub fn end_from(log: &[Stored], oldest: Lsn) -> LogEnd {
    let end = end_of(log);
    if end.lsn <= oldest { LogEnd { last_term: Term::ZERO, ..end } } else { end }
}

/// A log's history.
#[must_use]
pub fn history_of(log: &[Stored]) -> History {
    let mut history = History::default();
    log.iter().for_each(|b| history.begin(b.end.last_term, b.lsn));
    history
}

/// Adds a batch to a log.
pub fn append(log: &mut Vec<Stored>, term: Term, payload: &[u8], durable: Lsn, commit: Lsn) {
    let end = end_of(log);
    let mut builder = BatchBuilder::new(vec![0; buffer_for(payload.len())]);
    builder.push(payload);
    let sealed = builder.close(BatchFields {
        system: SYSTEM,
        shard: SHARD,
        term,
        lsn: end.lsn,
        first_seq: end.next_seq,
        record_count: 0,
        timestamp_us: 1,
        prev_chain: end.chain,
        durable_lsn: durable.min(end.lsn),
        commit_lsn: commit.min(end.lsn),
    });
    log.push(Stored {
        lsn: end.lsn,
        end: LogEnd {
            lsn: Lsn(end.lsn.0 + sealed.disk_len as u64),
            chain: sealed.chain,
            next_seq: Seq(end.next_seq.0 + 1),
            last_term: term,
        },
        before: end.chain,
        wire: sealed.buf[..sealed.wire_len].to_vec(),
    });
}

/// A replica's name as it is configured.
#[must_use]
pub fn name(n: u8) -> NodeName {
    NodeName::new(if n == 0 { "r0" } else { "r1" }).expect("a name")
}

/// Why a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// What came is no frame, or not what its kind says.
    BadFrame,
    /// A frame that has no place here.
    OutOfPlace,
    /// It was decided: refused, cut, snapshot, or goodbye.
    Decided,
    /// What came cannot be true.
    Violation,
}

/// A primary with one connection at a time.
pub struct PrimaryNode {
    /// The state machine.
    pub primary: Primary,
    /// The log, durable or not.
    pub log: Vec<Stored>,
    /// Where the log that is kept begins.
    pub oldest: Lsn,
    /// Bytes of the connection.
    pub frames: FrameBuffer,
    /// The slot and the link's number, once it streams, and the next batch to send.
    pub serving: Option<(usize, u64, usize)>,
    /// The highest term that it has heard of.
    pub heard: Term,
    links: u64,
}

impl PrimaryNode {
    /// A reign begins over a log.
    #[must_use]
    pub fn new(log: Vec<Stored>, term: Term, commit: Lsn) -> Self {
        let gate = CommitGate::new(NEED, 2, end_of(&log).lsn, commit);
        let primary =
            Primary::new((SYSTEM, SHARD, SHARDS), term, history_of(&log), gate, Slots::fresh(&[name(0), name(1)]));
        let frames = FrameBuffer::new(2048);
        Self { primary, log, oldest: Lsn(0), frames, serving: None, heard: term, links: 0 }
    }

    /// The replica's frame; a welcome if it was a hello.
    pub fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Welcome>, Ends> {
        let Some((slot, link, _)) = self.serving else {
            if head.kind != FrameKind::Hello {
                return Err(Ends::OutOfPlace);
            }
            let hello = Hello::check(payload).map_err(|_| Ends::BadFrame)?;
            return Ok(Some(self.welcome(&hello)));
        };
        match head.kind {
            FrameKind::Ack => {
                let ack = Ack::check(payload).map_err(|_| Ends::BadFrame)?;
                self.primary.on_ack(slot, link, &ack, 0).map_err(|_| Ends::Violation)?;
                Ok(None)
            }
            FrameKind::Goodbye => Err(Ends::Decided),
            FrameKind::Error => Err(ErrorHead::check(payload).map_or(Ends::BadFrame, |_| Ends::Decided)),
            _ => Err(Ends::OutOfPlace),
        }
    }

    fn welcome(&mut self, hello: &Hello) -> Welcome {
        let verdict = self.decide(hello);
        if let Verdict::Stream { from } = verdict {
            let slot = self.primary.slots().of(hello.name).expect("the answer has checked it");
            self.links += 1;
            self.primary.attach(slot, (self.links, hello.process), from, 0).expect("the answer has checked it");
            let next = self.log.iter().position(|b| b.lsn == from).unwrap_or(self.log.len());
            self.serving = Some((slot, self.links, next));
        }
        let tail = end_of(&self.log).lsn;
        Welcome {
            protocol: PROTOCOL_VERSION,
            verdict,
            depth: 0,
            shard_count: SHARDS,
            heartbeat_ms: 1000,
            system: SYSTEM,
            features: 0,
            term: self.primary.term,
            tail,
            commit_lsn: self.primary.gate.commit(),
            segment_bytes: SEGMENT_BYTES,
            time_us: 1,
            record_bytes_max: 1 << 20,
        }
    }

    fn decide(&mut self, hello: &Hello) -> Verdict {
        if hello.protocol != PROTOCOL_VERSION {
            return Verdict::Refused(Refusal::Protocol);
        }
        if hello.shard.0 >= SHARDS {
            return Verdict::Refused(Refusal::NoSuchShard);
        }
        if hello.role == Role::Client {
            return Verdict::Client;
        }
        let end = end_of(&self.log);
        let log = LogEnds { oldest: self.oldest, tail: end.lsn, chain: end.chain };
        match self.primary.answer(hello, log, 0) {
            HelloAnswer::Verdict(verdict) => verdict,
            HelloAnswer::Deposed => {
                self.heard = self.heard.max(hello.term);
                Verdict::Refused(Refusal::StalePrimary)
            }
            HelloAnswer::Snapshot(_) => unreachable!("it makes none"),
            HelloAnswer::NeedBase(at) => {
                let batch = self.log.iter().position(|b| b.lsn == at && b.lsn >= self.oldest);
                let base = batch.map(|n| Base { chain: self.log[n].before, seq: end_of(&self.log[..n]).next_seq });
                self.primary.answer_begin(hello, self.oldest, at, base)
            }
            HelloAnswer::NeedChain(lsn) => {
                let chain = self.log.iter().find(|b| b.lsn == lsn && b.lsn >= self.oldest).map(|b| b.before);
                self.primary.answer_with_chain(hello, self.oldest, chain, 0)
            }
        }
    }

    /// The connection is gone.
    pub fn lost(&mut self) {
        if let Some((slot, link, _)) = self.serving.take() {
            self.primary.detach(slot, link, 0);
        }
        self.frames = FrameBuffer::new(2048);
    }
}

/// A replica with one connection at a time.
pub struct ReplicaNode {
    /// The state machine.
    pub replica: Replica,
    /// The log, flushed or not.
    pub log: Vec<Stored>,
    /// Where the log that is kept begins.
    pub oldest: Lsn,
    /// It is remembered what came before that.
    pub has_base: bool,
    /// What the next hello asks for.
    pub asks_from: Option<LogEnd>,
    /// Bytes of the connection.
    pub frames: FrameBuffer,
    /// Said hello, and no welcome has come.
    pub waiting: bool,
    /// Follows.
    pub following: bool,
    /// Cuts since it followed last.
    pub cuts: u32,
}

impl ReplicaNode {
    /// A replica over a log that is kept from `oldest` on, of which `commit` is known to be committed.
    #[must_use]
    pub fn new(log: Vec<Stored>, (oldest, has_base): (Lsn, bool), term: Term, commit: Lsn) -> Self {
        let identity = (SYSTEM, SHARD, SHARDS, SEGMENT_BYTES);
        let mut history = history_of(&log);
        history.trim(oldest);
        let end = end_from(&log, oldest);
        let replica = Replica::new(identity, term, history, end, commit.max(oldest));
        let frames = FrameBuffer::new(usize::MAX);
        Self { replica, log, oldest, has_base, asks_from: None, frames, waiting: false, following: false, cuts: 0 }
    }

    /// Lets go of what lies in front of a batch.
    pub fn trim(&mut self, oldest: Lsn) {
        if oldest > self.oldest {
            (self.oldest, self.has_base) = (oldest, false);
            self.replica.history.trim(oldest);
        }
    }

    /// Whole batches go, so the end may lie below: as `shard/wal/open.rs` cuts.
    fn cut(&mut self, to: Lsn, all: bool) -> Result<(), Ends> {
        let kept = self.log.iter().take_while(|b| b.end.lsn <= to).count();
        let end = end_from(&self.log[..kept], self.oldest);
        self.replica.may_cut(end.lsn).map_err(|_| Ends::Violation)?;
        let leaves_nothing = self.oldest > Lsn(0) && end.lsn == self.oldest;
        if leaves_nothing && !self.has_base && !all {
            self.asks_from = Some(end);
            return Ok(());
        }
        self.has_base |= leaves_nothing;
        self.log.truncate(kept);
        self.replica.on_cut(end);
        self.cuts += 1;
        Ok(())
    }

    /// The primary's frame.
    pub fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Ends> {
        if self.waiting {
            return match head.kind {
                FrameKind::Welcome => self.welcome(&Welcome::check(payload).map_err(|_| Ends::BadFrame)?),
                FrameKind::Error => Err(ErrorHead::check(payload).map_or(Ends::BadFrame, |_| Ends::Decided)),
                _ => Err(Ends::OutOfPlace),
            };
        }
        match head.kind {
            FrameKind::Batch => {
                let view = BatchView::check(payload).map_err(|_| Ends::BadFrame)?;
                let h = view.header();
                self.replica.on_batch(h, Lsn(head.arg)).map_err(|_| Ends::Violation)?;
                let (next_seq, last_term) = (h.end_seq(), h.term());
                let end = LogEnd { lsn: h.end_lsn(), chain: h.chain(), next_seq, last_term };
                self.log.push(Stored { lsn: h.lsn(), end, before: h.prev_chain(), wire: payload.to_vec() });
                Ok(())
            }
            FrameKind::Heartbeat => {
                let beat = Heartbeat::check(payload).map_err(|_| Ends::BadFrame)?;
                self.replica.on_heartbeat(&beat).map_err(|_| Ends::Violation)
            }
            FrameKind::Goodbye => Err(Ends::Decided),
            FrameKind::Error => Err(ErrorHead::check(payload).map_or(Ends::BadFrame, |_| Ends::Decided)),
            _ => Err(Ends::OutOfPlace),
        }
    }

    fn welcome(&mut self, welcome: &Welcome) -> Result<(), Ends> {
        self.waiting = false;
        match self.replica.on_welcome(welcome).map_err(|_| Ends::Violation)? {
            Plan::Follow { .. } => {
                self.replica.follow(welcome);
                (self.following, self.cuts) = (true, 0);
                Ok(())
            }
            Plan::Cut { to } => {
                self.cut(to, false)?;
                Err(Ends::Decided)
            }
            Plan::CutAll { to } => {
                self.cut(to, true)?;
                Err(Ends::Decided)
            }
            Plan::Begin(_) | Plan::Snapshot { .. } => unreachable!("it has not asked"),
            Plan::NeedSnapshot { .. } | Plan::Refused(_) => Err(Ends::Decided),
        }
    }

    /// The connection is gone; everything received gets to the device before the next one.
    pub fn lost(&mut self) {
        if self.following {
            self.replica.on_link_lost();
        }
        self.replica.on_flushed(self.replica.received());
        (self.waiting, self.following) = (false, false);
        self.frames = FrameBuffer::new(usize::MAX);
    }
}
