//! The nodes: the engine's own state machines, each with a list of batches for a device. What the shell
//! does around them (`shard/link/`, `node/primary.rs`) is done here in as few words as it can be.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use towline_wire::batch::BatchHeader;
use towline_wire::handshake::{Hello, NodeName, Refusal, Verdict, Welcome};
use towline_wire::message::Heartbeat;
use towline_wire::{BatchFields, BatchView, Chain, Lsn, PROTOCOL_VERSION, ShardId, SystemId, Term};

use crate::protocol::builder::{BatchBuilder, buffer_for};
use crate::protocol::gate::{CommitGate, Verdict as Said, Waiter};
use crate::protocol::history::History;
use crate::protocol::policy::Requirement;
use crate::protocol::primary::{HelloAnswer, LogEnds, Primary};
use crate::protocol::replica::{LogEnd, Plan, Replica, Violation};
use crate::protocol::slots::Slots;

const SYSTEM: SystemId = SystemId([9; 16]);
const SHARD: ShardId = ShardId(0);
const SEGMENT_BYTES: u64 = 64 << 10;

/// A batch: its number in [`BATCHES`]. Equal numbers are equal bytes.
pub(super) type Id = u16;

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) header: BatchHeader,
    pub(super) end: LogEnd,
}

#[derive(Default)]
struct Batches {
    all: Vec<&'static Batch>,
    made: HashMap<(Chain, Term, Lsn), Id>,
}

thread_local! {
    /// Each batch is built once: what a term writes behind a chain is always the same.
    static BATCHES: RefCell<Batches> = RefCell::default();
}

pub(super) fn batch(id: Id) -> &'static Batch {
    BATCHES.with_borrow(|b| b.all[usize::from(id)])
}

/// Where a log ends.
pub(super) fn end_of(log: &[Id]) -> LogEnd {
    log.last().map_or(LogEnd::default(), |id| batch(*id).end)
}

fn history_of(log: &[Id]) -> History {
    let mut history = History::default();
    log.iter().map(|id| batch(*id).header).for_each(|h| history.begin(h.term(), h.lsn()));
    history
}

/// The next batch of a term behind a log, as the real builder makes it. What is committed is said beside
/// it, in the frame, so that equal logs hold equal bytes.
fn next_batch(log: &[Id], term: Term) -> Id {
    let end = end_of(log);
    BATCHES.with_borrow_mut(|b| {
        if let Some(id) = b.made.get(&(end.chain, term, end.lsn)) {
            return *id;
        }
        let mut builder = BatchBuilder::new(vec![0; buffer_for(8)]);
        builder.push(&term.0.to_le_bytes());
        let sealed = builder.close(BatchFields {
            system: SYSTEM,
            shard: SHARD,
            term,
            lsn: end.lsn,
            first_seq: end.next_seq,
            record_count: 0,
            timestamp_us: 1,
            prev_chain: end.chain,
            durable_lsn: end.lsn,
            commit_lsn: Lsn::ZERO,
        });
        let header = *BatchView::check(&sealed.buf[..sealed.wire_len]).expect("it was just made").header();
        let end = LogEnd { lsn: header.end_lsn(), chain: header.chain(), next_seq: header.end_seq(), last_term: term };
        let id = Id::try_from(b.all.len()).expect("few batches");
        b.made.insert((header.prev_chain(), term, header.lsn()), id);
        b.all.push(Box::leak(Box::new(Batch { header, end })));
        id
    })
}

/// Five replicas, and the old primary.
pub(super) const NAMES: usize = 6;

/// The names of replicas; the last one is a primary's that has become one.
pub(super) fn name(n: usize) -> NodeName {
    thread_local! {
        static ALL: [NodeName; NAMES] =
            ["r1", "r2", "r3", "r4", "r5", "r6"].map(|name| NodeName::new(name).expect("a name"));
    }
    ALL.with(|all| all[n])
}

/// A primary: a reign over a log, every batch of which is on its device.
#[derive(Clone, Debug)]
pub(super) struct Feeder {
    pub(super) primary: Primary,
    pub(super) log: Vec<Id>,
    /// Batches appended in this reign.
    pub(super) appended: usize,
    /// The highest term heard of.
    pub(super) heard: Term,
    /// Where the last batch ends of which its client was told that it is committed.
    pub(super) told: Lsn,
    /// The slot of each of [`name`]'s, if it has one.
    slots: [Option<usize>; NAMES],
    /// Hashes of what is known of each of them, and of the rest, if nothing has changed since.
    pub(super) hash: Cell<Option<[u64; NAMES + 1]>>,
}

impl Feeder {
    /// A reign begins, as `node/primary.rs` begins it: nothing is known of the replicas.
    pub(super) fn new(log: Vec<Id>, term: Term, need: Requirement, replicas: &[usize], commit: Lsn) -> Self {
        let names: Vec<_> = replicas.iter().map(|n| name(*n)).collect();
        let gate = CommitGate::new(need, replicas.len(), end_of(&log).lsn, commit);
        let primary = Primary::new((SYSTEM, SHARD, 1), term, history_of(&log), gate, Slots::fresh(&names));
        let slots = std::array::from_fn(|n| replicas.iter().position(|r| *r == n));
        Self { primary, log, appended: 0, heard: term, told: commit, slots, hash: Cell::new(None) }
    }

    /// A client's append: a batch is closed, and on the device at once.
    pub(super) fn append(&mut self, need: Requirement) -> Id {
        let start = end_of(&self.log).lsn;
        let id = next_batch(&self.log, self.primary.term);
        self.primary.history.begin(self.primary.term, start);
        self.log.push(id);
        self.appended += 1;
        let end = batch(id).end.lsn;
        let gate = &mut self.primary.gate;
        gate.wait(need, Waiter { end, lane: 0, first: 0, count: 1, since_ns: 0, deadline_ns: u64::MAX });
        gate.on_durable(end);
        self.complete();
        id
    }

    /// Tells clients what is committed.
    pub(super) fn complete(&mut self) {
        let told = &mut self.told;
        self.primary.gate.complete(|w, verdict| match verdict {
            Said::Committed { .. } => *told = (*told).max(w.end),
            Said::TimedOut { .. } => unreachable!("nothing has a deadline"),
        });
    }

    /// Whether a link serves a replica here.
    pub(super) fn serves(&self, n: usize, link: u64) -> bool {
        self.slots[n].is_some_and(|slot| self.primary.slots().is_served_by(slot, link))
    }

    /// A replica's slot.
    pub(super) fn slot(&self, n: usize) -> Option<usize> {
        self.slots[n]
    }

    pub(super) fn detach(&mut self, n: usize, link: u64) {
        if let Some(slot) = self.slots[n] {
            self.primary.detach(slot, link, 0);
        }
    }

    /// A replica's hello; if it is to be streamed to, the link serves its slot when this returns.
    pub(super) fn welcome(&mut self, hello: &Hello, link: u64) -> Welcome {
        let verdict = self.decide(hello);
        if let Verdict::Stream { from } = verdict {
            let slot = self.primary.slots().of(hello.name).expect("the answer has checked it");
            self.primary.attach(slot, (link, hello.process), from, 0).expect("the answer has checked it");
            // The gate may have moved.
            self.complete();
        }
        Welcome {
            protocol: PROTOCOL_VERSION,
            verdict,
            depth: 0,
            shard_count: 1,
            heartbeat_ms: 1000,
            system: SYSTEM,
            features: 0,
            term: self.primary.term,
            tail: end_of(&self.log).lsn,
            commit_lsn: self.primary.gate.commit(),
            segment_bytes: SEGMENT_BYTES,
            time_us: 1,
            record_bytes_max: 1 << 20,
        }
    }

    fn decide(&mut self, hello: &Hello) -> Verdict {
        let end = end_of(&self.log);
        let log = LogEnds { oldest: Lsn::ZERO, tail: end.lsn, chain: end.chain };
        match self.primary.answer(hello, log, 0) {
            HelloAnswer::Verdict(verdict) => verdict,
            HelloAnswer::Deposed => {
                self.heard = self.heard.max(hello.term);
                // Its waiters are told that it is fenced.
                self.primary.gate.drain(|_| {});
                Verdict::Refused(Refusal::StalePrimary)
            }
            HelloAnswer::NeedChain(lsn) => {
                let at = self.log.iter().map(|id| batch(*id)).find(|b| b.header.lsn() == lsn);
                self.primary.answer_with_chain(hello, Lsn::ZERO, at.map(|b| b.header.prev_chain()), 0)
            }
            HelloAnswer::NeedBase(_) | HelloAnswer::Snapshot(_) => unreachable!("no log is let go of"),
        }
    }

    pub(super) fn heartbeat(&self) -> Heartbeat {
        let end = end_of(&self.log);
        let (term, commit_lsn) = (self.primary.term, self.primary.gate.commit());
        Heartbeat { term, tail: end.lsn, tail_seq: end.next_seq, commit_lsn, time_us: 1 }
    }
}

/// A replica: what it receives is on its device at once.
#[derive(Clone, Debug, Hash)]
pub(super) struct Follower {
    pub(super) replica: Replica,
    pub(super) log: Vec<Id>,
}

/// What a welcome came to.
pub(super) enum Came {
    /// It follows from here on.
    Follows,
    /// The connection ends: it was cut, or refused, or refuses.
    Ends {
        /// It has cut its log.
        cut: bool,
    },
}

impl Follower {
    /// A replica over the log that a start finds, of which `commit` is known to be committed.
    pub(super) fn new(log: Vec<Id>, term: Term, commit: Lsn) -> Self {
        let identity = (SYSTEM, SHARD, 1, SEGMENT_BYTES);
        Self { replica: Replica::new(identity, term, history_of(&log), end_of(&log), commit), log }
    }

    pub(super) fn on_batch(&mut self, id: Id, commit: Lsn) -> Result<(), Violation> {
        self.replica.on_batch(&batch(id).header, commit)?;
        self.log.push(id);
        self.replica.on_flushed(self.replica.received());
        Ok(())
    }

    pub(super) fn on_welcome(&mut self, welcome: &Welcome) -> Came {
        match self.replica.on_welcome(welcome) {
            Ok(Plan::Follow { .. }) => {
                self.replica.follow(welcome);
                Came::Follows
            }
            Ok(Plan::Cut { to }) => {
                // Whole batches go, so the end may lie below: as `shard/wal/open.rs` cuts.
                let kept = self.log.iter().take_while(|id| batch(**id).end.lsn <= to).count();
                let cut = self.replica.may_cut(end_of(&self.log[..kept]).lsn).is_ok();
                if cut {
                    self.log.truncate(kept);
                    self.replica.on_cut(end_of(&self.log));
                }
                Came::Ends { cut }
            }
            Ok(Plan::CutAll { .. } | Plan::Begin(_) | Plan::Snapshot { .. } | Plan::NeedSnapshot { .. }) => {
                unreachable!("no log is let go of")
            }
            Ok(Plan::Refused(_)) | Err(_) => Came::Ends { cut: false },
        }
    }
}
