//! A replica's side for one shard: which welcome may be followed, which batch may come next, what
//! may be cut, and what an ack may say.

use thiserror::Error;
use towline_wire::batch::BatchHeader;
use towline_wire::handshake::{Refusal, Welcome};
use towline_wire::message::{Ack, Heartbeat};
use towline_wire::superblock::Base;
use towline_wire::{Chain, Lsn, PROTOCOL_VERSION, Seq, ShardId, SystemId, Term};

use super::history::History;
use cascade::Below;
pub use cascade::Heard;

mod cascade;
mod hello;

/// What to do after a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Make `term` durable if it is new, then take batches from this log's own end.
    Follow {
        /// The primary's term.
        term: Term,
    },
    /// Save the log from `to` on to a side file, cut it there, and say hello again.
    Cut {
        /// The new end: a batch boundary at or below it.
        to: Lsn,
    },
    /// This log was to be cut back to its beginning, and has asked what comes then: it goes on from there, or
    /// may begin anew further on. Cut it there as for [`Plan::Cut`], remember what came before, durably, and
    /// say hello again.
    CutAll {
        /// Where the log that is kept begins.
        to: Lsn,
    },
    /// The log begins anew, further on than it ends now: set it up, durably, and say hello again.
    Begin(Beginning),
    /// Take a snapshot on this connection; then the log begins anew where that stands.
    Snapshot {
        /// The term to promise then.
        term: Term,
        /// What is given up is a part of the primary's log, as far as that remembers.
        known: bool,
    },
    /// The log here is too old to be continued.
    NeedSnapshot {
        /// The oldest position that the primary keeps.
        oldest: Lsn,
    },
    /// The primary refused.
    Refused(Refusal),
}

/// Where a log begins that does not begin at LSN 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Where.
    pub at: Lsn,
    /// What came before.
    pub base: Base,
    /// The term to promise.
    pub term: Term,
    /// What is given up is a part of the primary's log, as far as that remembers.
    pub known: bool,
}

/// Why a replica does not follow a primary, or closes its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The primary speaks another protocol version.
    #[error("the primary speaks protocol {0}, this build speaks {PROTOCOL_VERSION}")]
    Protocol(u16),
    /// The primary belongs to another system.
    #[error("the primary belongs to system {theirs}, this node to {ours}: it is another cluster's")]
    ForeignSystem {
        /// The primary's.
        theirs: SystemId,
        /// This node's.
        ours: SystemId,
    },
    /// The primary has another number of shards.
    #[error("the primary has {theirs} shards, this node {ours}")]
    ShardCount {
        /// The primary's.
        theirs: u32,
        /// This node's.
        ours: u32,
    },
    /// The primary has another segment size.
    #[error("the primary's segments are {theirs} bytes, this node's {ours}")]
    SegmentBytes {
        /// The primary's.
        theirs: u64,
        /// This node's.
        ours: u64,
    },
    /// The primary was deposed.
    #[error("the primary is in term {theirs}, this node follows term {ours}: it has been deposed")]
    StalePrimary {
        /// The primary's.
        theirs: Term,
        /// This node's.
        ours: Term,
    },
    /// It would cut what is known to be committed.
    #[error("the primary asks to cut back to {to}, but {commit} is known to be committed here")]
    CutBelowCommit {
        /// Where to.
        to: Lsn,
        /// What is committed.
        commit: Lsn,
    },
    /// It would have a log begin anew where it knows less to be committed than this node.
    #[error("the primary knows {theirs} to be committed, this node {ours}: the log here is not given up for that one")]
    KnowsLess {
        /// What the primary knows.
        theirs: Lsn,
        /// What this node knows.
        ours: Lsn,
    },
    /// A stream that does not begin at this log's end.
    #[error("the primary streams from {from}, this log ends at {end}")]
    WrongStart {
        /// Where the stream begins.
        from: Lsn,
        /// Where this log ends.
        end: Lsn,
    },
    /// A batch that does not follow.
    #[error("batch at {lsn}: {field} does not follow this log, which ends at {end}")]
    DoesNotFollow {
        /// Where the batch says it starts.
        lsn: Lsn,
        /// Where this log ends.
        end: Lsn,
        /// What does not fit.
        field: &'static str,
    },
    /// Not what a replica is answered.
    #[error("the answer is not one for a replica")]
    NotForReplica,
}

/// One shard's replica.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub struct Replica {
    /// The cluster's log; none until the first welcome.
    pub system: SystemId,
    /// The shard.
    pub shard: ShardId,
    /// Shards of the system; 0 until the first welcome.
    pub shard_count: u32,
    /// The size of a segment; 0 until the first welcome.
    pub segment_bytes: u64,
    /// The highest term promised.
    pub term: Term,
    /// Where terms began in this log.
    pub history: History,
    last_term: Term,
    received: Lsn,
    chain: Chain,
    next_seq: Seq,
    flushed: Lsn,
    applied: Lsn,
    applied_seq: Seq,
    /// What the primary says is committed; may lie ahead of what is received.
    commit: Lsn,
    /// The primary's end, as heard last,
    primary_tail: Lsn,
    /// the number of the next record there,
    primary_seq: Seq,
    /// and its clock.
    primary_us: u64,
    /// What it is to those that it feeds.
    below: Box<Below>,
    /// Whether the log may begin anew where it is too old.
    may_begin: bool,
    /// The same, with a snapshot.
    may_take: bool,
    /// While it catches up: where this log ended when the link began, and the primary's.
    catching_up: Option<(Lsn, Lsn)>,
    /// It has never caught up since it began anew.
    bootstraps: bool,
    has_caught_up: bool,
    /// Where it began anew, in this process.
    begun: Lsn,
    /// Where the next hello says that this log ends, as if all that is kept were cut.
    asks_from: Option<LogEnd>,
}

/// How far a replica is that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// It takes its log for the first time, not only what it missed.
    pub bootstrap: bool,
    /// Where it began.
    pub from: Lsn,
    /// Where it is.
    pub at: Lsn,
    /// The primary's end, as heard last.
    pub tail: Lsn,
}

/// The end of a recovered log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(test, derive(Hash))]
pub struct LogEnd {
    /// Where it ends.
    pub lsn: Lsn,
    /// The chain up to there.
    pub chain: Chain,
    /// The number of the next record.
    pub next_seq: Seq,
    /// The term of the last batch; zero for an empty log.
    pub last_term: Term,
}

impl Replica {
    /// A replica over a recovered log, of which `commit` is known to be committed.
    #[must_use]
    pub fn new(
        (system, shard, shard_count, segment_bytes): (SystemId, ShardId, u32, u64),
        term: Term,
        history: History,
        end: LogEnd,
        commit: Lsn,
    ) -> Self {
        Self {
            system,
            shard,
            shard_count,
            segment_bytes,
            term,
            history,
            last_term: end.last_term,
            received: end.lsn,
            chain: end.chain,
            next_seq: end.next_seq,
            flushed: end.lsn,
            applied: Lsn::ZERO,
            applied_seq: Seq(0),
            commit,
            primary_tail: end.lsn,
            primary_seq: end.next_seq,
            primary_us: 0,
            below: Box::new(Below::new(system, shard, shard_count)),
            may_begin: false,
            may_take: false,
            catching_up: None,
            bootstraps: false,
            has_caught_up: false,
            begun: Lsn::ZERO,
            asks_from: None,
        }
    }

    /// Whether the log holds no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last_term == Term::ZERO
    }

    /// The welcome is followed and its term durable.
    pub fn follow(&mut self, w: &Welcome) {
        assert!(w.term >= self.term || canary!(TermNotChecked));
        (self.system, self.shard_count, self.segment_bytes) = (w.system, w.shard_count, w.segment_bytes);
        if w.term > self.term {
            // What an older primary announced and this node never got is not this history's.
            self.commit = self.commit.min(self.flushed);
        }
        self.below.on_follow(w.depth, w.term == self.term);
        self.term = w.term;
        self.primary_tail = w.tail.max(self.received);
        (self.primary_seq, self.primary_us) = (self.next_seq, w.time_us);
        self.bootstraps |= self.is_empty();
        self.catching_up = Some((self.flushed, w.tail));
        self.on_flushed(self.flushed);
        // What another primary said of bytes that are not here says nothing about this one's.
        self.commit = self.committed().max(w.commit_lsn);
    }

    /// Whether the log may be cut at `end`, the batch boundary that was found for [`Plan::Cut`].
    ///
    /// # Errors
    /// If what is known to be committed ends behind it. That is inside of a batch then, where no commit
    /// ends: a primary has said what is not so. Nothing is cut on its word.
    pub fn may_cut(&self, end: Lsn) -> Result<(), Violation> {
        let commit = self.committed();
        let below = end < commit && !canary!(CutBelowCommit);
        if below { Err(Violation::CutBelowCommit { to: end, commit }) } else { Ok(()) }
    }

    /// The log was cut, where [`Replica::may_cut`] has allowed it.
    pub fn on_cut(&mut self, end: LogEnd) {
        assert!(self.flushed == self.received && end.lsn <= self.flushed);
        assert!(end.lsn >= self.committed() || canary!(CutBelowCommit));
        self.history.cut(end.lsn);
        (self.received, self.flushed, self.chain) = (end.lsn, end.lsn, end.chain);
        (self.next_seq, self.last_term) = (end.next_seq, end.last_term);
        self.applied = self.applied.min(end.lsn);
        self.applied_seq = self.applied_seq.min(end.next_seq);
        self.below.on_cut(end.lsn);
    }

    /// The log has begun anew, durably, as [`Plan::Begin`] said.
    pub fn on_begin(&mut self, b: &Beginning) {
        assert!(self.flushed == self.received && b.at > self.flushed && b.term >= self.term);
        self.history = History::default();
        (self.received, self.flushed, self.chain) = (b.at, b.at, b.base.chain);
        (self.next_seq, self.last_term, self.term) = (b.base.seq, Term::ZERO, b.term);
        // Nobody lets go of what is not committed.
        self.commit = b.at;
        self.begun = b.at;
        self.has_caught_up = false;
    }

    /// A batch whose header and body passed their CRCs. If it may follow, it counts as received.
    ///
    /// # Errors
    /// What does not follow; nothing has changed then.
    pub fn on_batch(&mut self, h: &BatchHeader, commit: Lsn) -> Result<(), Violation> {
        let no = |field| Err(Violation::DoesNotFollow { lsn: h.lsn(), end: self.received, field });
        if h.system() != self.system {
            return no("system");
        }
        if h.shard() != self.shard {
            return no("shard");
        }
        if h.lsn() != self.received {
            return no("LSN");
        }
        if h.prev_chain() != self.chain {
            return no("chain");
        }
        if h.first_seq() != self.next_seq {
            return no("first sequence");
        }
        if h.term() < self.last_term || h.term() > self.term {
            return no("term");
        }
        self.history.begin(h.term(), h.lsn());
        (self.last_term, self.chain) = (h.term(), h.chain());
        (self.received, self.next_seq) = (h.end_lsn(), h.end_seq());
        self.primary_tail = self.primary_tail.max(self.received);
        self.primary_seq = self.primary_seq.max(self.next_seq);
        self.primary_us = self.primary_us.max(h.timestamp_us());
        self.on_commit(commit.max(h.commit_lsn()));
        Ok(())
    }

    /// A heartbeat.
    ///
    /// # Errors
    /// If it is of another term than the one followed.
    pub fn on_heartbeat(&mut self, beat: &Heartbeat) -> Result<(), Violation> {
        if beat.term != self.term {
            return Err(Violation::StalePrimary { theirs: beat.term, ours: self.term });
        }
        self.primary_tail = self.primary_tail.max(beat.tail);
        self.primary_seq = self.primary_seq.max(beat.tail_seq);
        self.primary_us = self.primary_us.max(beat.time_us);
        self.on_commit(beat.commit_lsn);
        Ok(())
    }

    fn on_commit(&mut self, commit: Lsn) {
        self.commit = self.commit.max(commit);
    }

    /// The link is gone, and with it whatever was received but could not be written.
    pub fn on_link_lost(&mut self) {
        assert!(self.flushed <= self.received);
        self.catching_up = None;
    }

    /// This node's device holds everything below `flushed`.
    pub fn on_flushed(&mut self, flushed: Lsn) {
        assert!(flushed >= self.flushed && flushed <= self.received);
        self.flushed = flushed;
        if self.catching_up.is_some_and(|(_, tail)| flushed >= tail) {
            (self.catching_up, self.bootstraps, self.has_caught_up) = (None, false, true);
        }
    }

    /// How far it is, while it follows a primary and has not what that had when the link began.
    #[must_use]
    pub fn catch_up(&self) -> Option<CatchUp> {
        let (from, _) = self.catching_up?;
        Some(CatchUp { bootstrap: self.bootstraps, from, at: self.flushed, tail: self.primary_tail })
    }

    /// Whether it has had what its primary had when a link began, since it was opened or has begun anew.
    #[must_use]
    pub const fn is_caught_up(&self) -> bool {
        self.has_caught_up
    }

    /// The handler has returned for everything below `applied`.
    pub fn on_applied(&mut self, applied: Lsn, records: Seq) {
        assert!(applied <= self.flushed);
        (self.applied, self.applied_seq) = (applied, records);
    }

    /// The handler, which is given only what is committed, says that it has everything below
    /// `applied` since an earlier run: so that was committed, whatever this run knows of it.
    pub fn on_resumed(&mut self, applied: Lsn) {
        self.on_commit(applied);
    }

    /// What an ack says now.
    #[must_use]
    pub fn ack(&self, echo_us: u64) -> Ack {
        assert!(self.received >= self.flushed && self.flushed >= self.applied);
        Ack {
            received: self.received,
            flushed: if canary!(AckBeforeFlush) { self.received } else { self.flushed },
            applied: self.applied,
            applied_seq: self.applied_seq,
            echo_us,
        }
    }

    /// What is committed and on this node's device.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.commit.min(self.flushed)
    }

    /// Where this log has begun anew, since it was opened: it holds nothing before that.
    #[must_use]
    pub const fn begun(&self) -> Lsn {
        self.begun
    }

    /// Where this log ends in memory.
    #[must_use]
    pub const fn received(&self) -> Lsn {
        self.received
    }
    /// Where this log ends on the device.
    #[must_use]
    pub const fn flushed(&self) -> Lsn {
        self.flushed
    }
    /// What the handler has returned for.
    #[must_use]
    pub const fn applied(&self) -> Lsn {
        self.applied
    }
    /// The number of the next record.
    #[must_use]
    pub const fn next_seq(&self) -> Seq {
        self.next_seq
    }
    /// From what is on this node's device to the primary's end, as heard last, in bytes.
    #[must_use]
    pub const fn lag_bytes(&self) -> u64 {
        self.primary_tail.since(self.flushed)
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
