//! The shell of one shard: executes what [`crate::protocol`] decides, on one core.
//!
//! Comes in: appends from this core's tasks, from other threads ([`mesh`]) and from connections
//! ([`link`]). Goes out: writes to the slice ([`wal`]), the same buffers to replicas, outcomes to
//! lanes. All state of a shard is behind one `RefCell` that is never borrowed across an await.

pub(crate) mod append;
pub(crate) mod applying;
pub(crate) mod commit;
pub(crate) mod lanes;
pub(crate) mod link;
pub(crate) mod mesh;
pub(crate) mod settings;
pub(crate) mod slots;
mod spare;
pub(crate) mod wal;
#[cfg(feature = "sim")]
mod watched;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use towline_wire::{Chain, Lsn, Seq, ShardId, SystemId, Term};

use crate::config::{NodeConfig, TooFewReplicas, ZeroCopy};
use crate::limits;
use crate::node::Watermark;
use crate::notify::Changed;
use crate::outcome::AppendError;
use crate::protocol::pipeline::Pipeline;
use crate::protocol::primary::Primary;
use crate::protocol::replica::{Beginning, Replica};
use crate::protocol::settings::Settings;
use crate::protocol::slots::Slots;
use crate::rt;
use crate::rt::worker::Worker;
use crate::snapshot::Snapshots;
use crate::telemetry::{self, SlotHistogram, Telemetry};
use append::OpenBatch;
use lanes::Lanes;
use link::conn::Conn;
use link::snapshot_out::Producing;
use mesh::ticket::TicketSlots;
use settings::Live;
use spare::Spare;
use wal::live::LiveSegments;
use wal::ring::Ring;

/// What a shard is configured with, checked.
#[derive(Clone, Debug)]
pub(crate) struct ShardConfig {
    pub(crate) shard_count: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) segments_ahead: u64,
    pub(crate) prefill_bytes: u64,
    pub(crate) batch_bytes: usize,
    pub(crate) record_bytes_max: usize,
    pub(crate) in_flight_bytes_max: u64,
    pub(crate) write_depth: usize,
    pub(crate) max_linger: Duration,
    /// Bytes of log that are kept in any case; `None`: all.
    pub(crate) keep: Option<u64>,
    /// A replica's cap on what its slots hold, and how long one may be without a link. A primary has
    /// them in its settings.
    pub(crate) cap: Option<u64>,
    pub(crate) slot_idle_max: Option<Duration>,
    pub(crate) live_window_bytes: u64,
    pub(crate) zero_copy: ZeroCopy,
    /// How links send.
    pub(crate) flow: Flow,
    pub(crate) too_few: TooFewReplicas,
    /// A replica's longest pause before it connects again.
    pub(crate) reconnect_max: Duration,
    /// Whether a replica whose log is too old gives it up for a new one.
    pub(crate) rebuild: bool,
    /// The embedder's state as snapshots, and the largest of them.
    pub(crate) snapshot: Option<Snapshots>,
    pub(crate) snapshot_bytes_max: u64,
}

/// How far a replica is with a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakingShown {
    /// Where it was when this link began.
    pub(crate) from: u64,
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    /// When that was.
    pub(crate) since_ns: u64,
}

/// How a node's shard sends, and what it does while replicas are behind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Bytes in each second that a link may send from disk.
    pub(crate) catch_up_max: Option<u64>,
    /// Bytes that a link may have sent and not acknowledged.
    pub(crate) link_window: u64,
    /// How far the commit quorum may be behind before batches wait.
    pub(crate) lag_target: Option<u64>,
    /// Links compress batches where that pays.
    pub(crate) compress: bool,
}

impl Flow {
    /// What each of so many shards may send of so many bytes in each second.
    pub(crate) fn share(rate: u64, shards: u32) -> u64 {
        (rate / u64::from(shards)).max(1)
    }
}

impl ShardConfig {
    pub(crate) fn new(node: &NodeConfig, shard_count: u32, segment_bytes: u64) -> Self {
        Self {
            shard_count,
            segment_bytes,
            segments_ahead: node.segments_ahead as u64,
            prefill_bytes: node.prefill_bytes,
            batch_bytes: node.batch_bytes,
            record_bytes_max: node.record_bytes_max,
            in_flight_bytes_max: node.in_flight_bytes_max(),
            write_depth: node.write_depth,
            max_linger: node.max_linger,
            keep: node.retain.keep(),
            cap: None,
            slot_idle_max: None,
            live_window_bytes: node.live_window_bytes as u64,
            zero_copy: ZeroCopy::Auto,
            flow: Flow::default(),
            too_few: TooFewReplicas::Wait,
            reconnect_max: limits::RECONNECT_MAX,
            rebuild: false,
            snapshot: node.snapshot.clone(),
            snapshot_bytes_max: node.snapshot_bytes_max,
        }
    }
}

/// What this shard is on this node.
#[derive(Debug)]
pub(crate) enum Role {
    Primary(Primary),
    Replica(Replica),
}

/// One shard on its core.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) config: ShardConfig,
    /// What an operator may change.
    pub(crate) live: Live,
    pub(crate) inner: RefCell<Inner>,
    pub(crate) segments: LiveSegments,
    /// There may be something to close or to write.
    pub(crate) work: Changed,
    /// There may be room for records again.
    pub(crate) room: Changed,
    /// A batch, a position or the shard's state changed: links, tails and the handler look again.
    pub(crate) moved: Changed,
    /// Segments or superblock may need attention.
    pub(crate) keep: Changed,
    pub(crate) telemetry: RefCell<Telemetry>,
    /// The tickets of handles that append here.
    pub(crate) tickets: RefCell<Vec<Arc<TicketSlots>>>,
    /// How long the replica of each slot took, from the send of a batch until it was received, and
    /// until it was flushed there.
    pub(crate) ack_times: RefCell<Vec<[SlotHistogram; 2]>>,
    /// On a replica: whom it follows, or why it follows nobody.
    pub(crate) link: RefCell<String>,
    /// A look at what is due later is coming.
    soon: Cell<bool>,
    /// A write failed.
    pub(crate) failed: Cell<bool>,
    /// There was no space for the next segment.
    pub(crate) disk_full: Cell<bool>,
    /// The log may not grow: what is not committed fills the cap.
    pub(crate) log_full: Cell<bool>,
    /// The log is being cut: the superblock says already that it may end early, and must not say
    /// otherwise before it is done.
    pub(crate) cutting: Cell<bool>,
    /// While the log is being cut: up to where the handler is to go back first.
    pub(crate) take_back: Cell<Option<(Lsn, Seq)>>,
    /// Where the log is to begin anew, until the keeper has seen to it.
    pub(crate) begin: Cell<Option<Beginning>>,
    /// Where it is to begin if a snapshot was installed before the start, until the handler has said so.
    pub(crate) noted: Cell<Option<Beginning>>,
    /// What was noted is not so.
    pub(crate) not_installed: Cell<bool>,
    /// Where it has begun anew, until the handler has seen that.
    pub(crate) begun: Cell<Option<(Lsn, Seq)>>,
    /// Whether the handler can do without what is left out then; `None` before it has looked at the log.
    pub(crate) takes_gaps: Cell<Option<bool>>,
    /// The thread on which the embedder makes and installs snapshots, if it does.
    pub(crate) snapshotter: OnceCell<Worker>,
    /// On a primary: the snapshot that is being made.
    pub(crate) producing: RefCell<Option<Producing>>,
    /// On a replica: the primary keeps no log from where this one ends, and it may not begin anew by itself.
    pub(crate) needs_rebuild: Cell<bool>,
    /// On a replica: whether the handler can go on behind a snapshot; known with `takes_gaps`.
    pub(crate) takes_snapshots: Cell<bool>,
    /// How far a snapshot is that is being taken.
    pub(crate) taking: Cell<Option<TakingShown>>,
    /// The log begins anew behind a snapshot: the handler stands there.
    pub(crate) installed: Cell<bool>,
    /// When the link to the primary began, in nanoseconds of the shard's clock.
    pub(crate) linked_ns: Cell<u64>,
    /// How often the log was cut: what was read before may be gone.
    pub(crate) cuts: Cell<u64>,
    /// No batch is closed before this, for the lag target.
    pub(crate) throttled_ns: Cell<u64>,
    /// Bytes of reads in flight, or not taken yet, ahead of links that catch up.
    pub(crate) ahead_bytes: Cell<u64>,
    /// Bytes of a batch that comes in and waits for segments.
    pub(crate) arriving: Cell<u64>,
    /// The commit LSN where other cores read it.
    pub(crate) watermark: Arc<Watermark>,
    /// Numbers links, so that a late word from an old one is told apart.
    next_link: Cell<u64>,
}

/// Everything of a shard that changes.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) role: Role,
    pub(crate) system: SystemId,
    pub(crate) pipeline: Pipeline,
    pub(crate) ring: Ring,
    pub(crate) open: Option<OpenBatch>,
    pub(crate) spare: Spare,
    /// The chain up to the end of the last closed batch.
    pub(crate) chain: Chain,
    /// The number of the next record, counting the open batch.
    pub(crate) next_seq: Seq,
    /// Where the log that is kept begins.
    pub(crate) oldest: Lsn,
    /// Up to where the embedder lets the log go.
    pub(crate) trim_to: Lsn,
    /// Up to where the log is archived, if there is an archive: there is none yet.
    pub(crate) archived: Option<Lsn>,
    /// Positions of those who read the log.
    pub(crate) readers: Vec<Option<Lsn>>,
    pub(crate) lanes: Lanes,
    /// Why the shard takes nothing any more.
    pub(crate) stopped: Option<String>,
}

/// Until a batch was received, and until it was flushed.
pub(crate) fn ack_histograms() -> [SlotHistogram; 2] {
    std::array::from_fn(|_| telemetry::histogram())
}

impl Shard {
    pub(crate) fn new(
        id: ShardId,
        (config, settings): (ShardConfig, Option<&Settings>),
        role: Role,
        log: LogAtOpen,
        segments: LiveSegments,
        watermark: Arc<Watermark>,
    ) -> Rc<Self> {
        let system = match &role {
            Role::Primary(p) => p.system,
            Role::Replica(r) => r.system,
        };
        watermark.publish(match &role {
            Role::Primary(p) => p.gate.commit(),
            Role::Replica(r) => r.committed(),
        });
        let slots = match &role {
            Role::Primary(p) => p.slots(),
            Role::Replica(r) => r.slots(),
        };
        let slots = slots.iter().map(|(n, _)| n + 1).max().unwrap_or(0);
        let ack_times = (0..slots).map(|_| ack_histograms()).collect();
        let pipeline = Pipeline::new(log.end, log.last_batch, config.write_depth, config.in_flight_bytes_max);
        let shard = Rc::new(Self {
            id,
            inner: RefCell::new(Inner {
                role,
                system,
                pipeline,
                ring: Ring::default(),
                open: None,
                spare: Spare::default(),
                chain: log.chain,
                next_seq: log.next_seq,
                oldest: log.oldest,
                trim_to: Lsn::ZERO,
                archived: None,
                readers: Vec::new(),
                lanes: Lanes::default(),
                stopped: None,
            }),
            live: Live::new(&config, settings),
            config,
            segments,
            work: Changed::default(),
            room: Changed::default(),
            moved: Changed::default(),
            keep: Changed::default(),
            telemetry: RefCell::default(),
            link: RefCell::default(),
            tickets: RefCell::default(),
            ack_times: RefCell::new(ack_times),
            soon: Cell::new(false),
            failed: Cell::new(false),
            disk_full: Cell::new(false),
            log_full: Cell::new(false),
            cutting: Cell::new(false),
            take_back: Cell::new(None),
            begin: Cell::new(None),
            noted: Cell::new(None),
            not_installed: Cell::new(false),
            begun: Cell::new(None),
            takes_gaps: Cell::new(None),
            needs_rebuild: Cell::new(false),
            snapshotter: OnceCell::new(),
            producing: RefCell::default(),
            takes_snapshots: Cell::new(false),
            taking: Cell::new(None),
            installed: Cell::new(false),
            linked_ns: Cell::new(0),
            cuts: Cell::new(0),
            throttled_ns: Cell::new(0),
            ahead_bytes: Cell::new(0),
            arriving: Cell::new(0),
            watermark,
            next_link: Cell::new(1),
        });
        shard.be_watched();
        shard
    }

    #[cfg(not(feature = "sim"))]
    fn be_watched(self: &Rc<Self>) {}

    /// A number for a new link.
    pub(crate) fn number_link(&self) -> u64 {
        let n = self.next_link.get();
        self.next_link.set(n + 1);
        n
    }

    /// Wakes links once, a little later: what can ride on the next batch or ack waits that long
    /// for one.
    pub(crate) fn notify_soon(self: &Rc<Self>) {
        if !self.soon.replace(true) {
            let shard = self.clone();
            rt::spawn(async move {
                rt::sleep(limits::PIGGYBACK).await;
                shard.soon.set(false);
                shard.moved.notify();
            });
        }
    }

    /// Why the shard takes nothing any more, if so.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.inner.borrow().stopped.clone()
    }

    /// Whether the shard takes nothing any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.inner.borrow().stopped.is_some()
    }

    /// Why an append finds no room.
    pub(crate) fn no_room(&self) -> AppendError {
        match (self.disk_full.get(), self.log_full.get()) {
            (true, _) => AppendError::DiskFull,
            (false, true) => AppendError::LogFull,
            (false, false) => AppendError::WouldBlock,
        }
    }

    /// Counts what went over a connection since it was counted last; returns the calls that sent.
    pub(crate) fn count_traffic(&self, conn: &Conn) -> u64 {
        let (sends, receives, bytes) = conn.take_counts();
        self.count(|c| {
            c.send_calls += sends;
            c.receive_calls += receives;
            c.sent_bytes += bytes;
        });
        sends
    }

    /// Counts.
    pub(crate) fn count(&self, counting: impl FnOnce(&mut telemetry::Counters)) {
        counting(&mut self.telemetry.borrow_mut().counters);
    }

    /// Stops the shard for good: nothing is acknowledged any more and every waiter is told. After
    /// an I/O error this is final (law 8): what the device holds shows at the next open.
    pub(crate) fn stop(&self, why: &str) {
        {
            let mut inner = self.inner.borrow_mut();
            if inner.stopped.is_some() {
                return;
            }
            inner.stopped = Some(why.into());
            inner.fail_waiters(crate::outcome::Outcome::Stopped);
            inner.lanes.clear();
        }
        self.work.notify();
        self.room.notify();
        self.moved.notify();
        self.keep.notify();
    }

    /// The term of the primary that this shard is or follows.
    pub(crate) fn term(&self) -> Term {
        self.inner.borrow().term()
    }

    /// Whether a newer term was seen.
    pub(crate) fn is_deposed(&self) -> bool {
        matches!(&self.inner.borrow().role, Role::Primary(p) if p.is_deposed())
    }

    /// Whether this node follows another one.
    pub(crate) fn is_replica(&self) -> bool {
        matches!(self.inner.borrow().role, Role::Replica(_))
    }

    /// Whether somebody waits for a commit.
    pub(crate) fn has_waiters(&self) -> bool {
        let inner = self.inner.borrow();
        inner.open.is_some() || matches!(&inner.role, Role::Primary(p) if p.gate.waiting() > 0)
    }

    /// Whether everything that was appended is on the device, and nobody waits.
    pub(crate) fn is_at_rest(&self) -> bool {
        let inner = self.inner.borrow();
        let waits = matches!(&inner.role, Role::Primary(p) if p.gate.waiting() > 0);
        inner.open.is_none() && inner.pipeline.in_flight() == 0 && !waits
    }

    /// What the superblock says of the log's end: where the last durable batch starts, what is
    /// committed, where terms began.
    pub(crate) fn floor(&self) -> (Lsn, Lsn, Vec<(Term, Lsn)>) {
        let inner = self.inner.borrow();
        let history = match &inner.role {
            Role::Primary(p) => p.history.entries().to_vec(),
            Role::Replica(r) => r.history.entries().to_vec(),
        };
        (inner.pipeline.last_durable(), inner.committed(), history)
    }

    /// Whether a write failed: its completion will not come.
    pub(crate) fn write_failed(&self) -> bool {
        self.failed.get()
    }

    /// What is committed and on this node's device.
    pub(crate) fn committed(&self) -> Lsn {
        self.inner.borrow().committed()
    }

    /// Another node's word may have moved what is committed.
    pub(crate) fn publish_commit(&self) {
        self.watermark.publish(self.committed());
    }

    /// What is on this node's device.
    pub(crate) fn durable(&self) -> Lsn {
        self.inner.borrow().pipeline.durable()
    }
}

/// Where a recovered log stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogAtOpen {
    pub(crate) oldest: Lsn,
    pub(crate) end: Lsn,
    pub(crate) last_batch: Lsn,
    pub(crate) chain: Chain,
    pub(crate) next_seq: Seq,
}

impl Inner {
    /// The term of the primary that this shard is or follows.
    pub(crate) fn term(&self) -> Term {
        match &self.role {
            Role::Primary(p) => p.term,
            Role::Replica(r) => r.term,
        }
    }

    pub(crate) fn committed(&self) -> Lsn {
        match &self.role {
            Role::Primary(p) => p.gate.commit(),
            Role::Replica(r) => r.committed(),
        }
    }

    /// What serves those that this node feeds.
    pub(crate) fn feeding(&mut self) -> &mut Primary {
        match &mut self.role {
            Role::Primary(p) => p,
            Role::Replica(r) => r.below(),
        }
    }

    /// As [`Inner::feeding`], to answer a hello.
    pub(crate) fn answering(&mut self) -> &mut Primary {
        match &mut self.role {
            Role::Primary(p) => p,
            Role::Replica(r) => r.answering(),
        }
    }

    /// The slots of those that this node feeds.
    pub(crate) const fn slots(&self) -> &Slots {
        match &self.role {
            Role::Primary(p) => p.slots(),
            Role::Replica(r) => r.slots(),
        }
    }

    /// Up to where those that this node feeds may be sent: a primary sends while it writes, a replica
    /// what is on its own device, so that nobody below has what it may lose.
    pub(crate) fn sendable(&self) -> Lsn {
        match &self.role {
            Role::Replica(_) if !canary!(FeedsUnflushed) => self.pipeline.durable(),
            _ => self.pipeline.appended(),
        }
    }

    /// The primary's side, where there must be one.
    pub(crate) fn primary(&mut self) -> &mut Primary {
        match &mut self.role {
            Role::Primary(p) => p,
            Role::Replica(_) => unreachable!("only a primary's tasks ask for it"),
        }
    }

    /// The replica's side, where there must be one.
    pub(crate) fn replica(&mut self) -> &mut Replica {
        match &mut self.role {
            Role::Replica(r) => r,
            Role::Primary(_) => unreachable!("only a replica's tasks ask for it"),
        }
    }

    /// The replica's side, if there is one.
    pub(crate) const fn replica_if_any(&self) -> Option<&Replica> {
        match &self.role {
            Role::Replica(r) => Some(r),
            Role::Primary(_) => None,
        }
    }

    /// Whether appends are taken at all.
    pub(crate) fn check_open(&self) -> Result<(), AppendError> {
        if let Some(why) = &self.stopped {
            return Err(AppendError::Stopped(why.clone()));
        }
        match &self.role {
            Role::Primary(p) if p.is_deposed() => Err(AppendError::Fenced),
            Role::Primary(_) => Ok(()),
            Role::Replica(_) => Err(AppendError::Stopped("this node is a replica".into())),
        }
    }

    /// Lets go of batches that nobody in memory needs.
    pub(crate) fn trim_ring(&mut self, live_window_bytes: u64) {
        if canary!(RingNotTrimmed) {
            return;
        }
        let durable = self.pipeline.durable();
        let needed = self.readers.iter().flatten().min().copied().unwrap_or(durable);
        self.ring.trim(durable, needed, live_window_bytes);
    }
}
