//! What a replica says when it asks for a link, and what it makes of the answer.

use towline_wire::handshake::{FEATURE_BEGIN, FEATURE_SNAPSHOT, Hello, NodeName, Role, Verdict, Welcome};
use towline_wire::{Lsn, PROTOCOL_VERSION};

use super::{Beginning, LogEnd, Plan, Replica, Violation};
use crate::protocol::squeeze;

impl Replica {
    /// Says, before a hello, whether the log may begin anew where it is too old: `gaps` is whether the
    /// handler can do without what is left out, `rebuild` whether a log that is not empty may be given up.
    pub fn allow_begin(&mut self, gaps: bool, rebuild: bool) {
        self.may_begin = gaps && (rebuild || self.is_empty());
    }

    /// The same, where the handler `takes` snapshots.
    pub fn allow_snapshot(&mut self, takes: bool, rebuild: bool) {
        self.may_take = takes && (rebuild || self.is_empty());
    }

    /// Says, before a hello, whether a cut that the primary has asked for would take all of a log that does
    /// not begin at LSN 0, and if so where that begins and what came before it. Then the hello asks for what
    /// comes there, as if the log were cut already, and nothing goes before there is an answer: where
    /// the primary keeps that no more, this is a log that is too old, and not given up unless that is wanted.
    pub fn ask_from(&mut self, beginning: Option<LogEnd>) {
        // What is known to be committed meanwhile is not asked about.
        self.asks_from = beginning.filter(|b| self.may_cut(b.lsn).is_ok());
    }

    /// The hello for the next connection.
    #[must_use]
    pub fn hello(&self, name: NodeName, process: u64) -> Hello {
        let own = LogEnd { lsn: self.flushed, chain: self.chain, next_seq: self.next_seq, last_term: self.last_term };
        let end = self.asks_from.unwrap_or(own);
        Hello {
            protocol: PROTOCOL_VERSION,
            role: Role::Replica,
            shard: self.shard,
            features: squeeze::features()
                | if self.may_begin { FEATURE_BEGIN } else { 0 }
                | if self.may_take { FEATURE_SNAPSHOT } else { 0 },
            system: self.system,
            term: self.term,
            last_term: end.last_term,
            end_lsn: end.lsn,
            chain: end.chain,
            commit_lsn: self.committed(),
            process,
            name,
        }
    }

    /// Decides about a welcome.
    ///
    /// # Errors
    /// Why this primary cannot be followed.
    pub fn on_welcome(&self, w: &Welcome) -> Result<Plan, Violation> {
        if w.protocol != PROTOCOL_VERSION {
            return Err(Violation::Protocol(w.protocol));
        }
        if let Verdict::Refused(cause) = w.verdict {
            return Ok(Plan::Refused(cause));
        }
        if !self.system.is_none() {
            if w.system != self.system {
                return Err(Violation::ForeignSystem { theirs: w.system, ours: self.system });
            }
            if w.shard_count != self.shard_count {
                return Err(Violation::ShardCount { theirs: w.shard_count, ours: self.shard_count });
            }
            if w.segment_bytes != self.segment_bytes {
                return Err(Violation::SegmentBytes { theirs: w.segment_bytes, ours: self.segment_bytes });
            }
        }
        if w.term < self.term && !canary!(TermNotChecked) {
            return Err(Violation::StalePrimary { theirs: w.term, ours: self.term });
        }
        let (asks, end) = (self.asks_from.is_some(), self.asks_from.map_or(self.flushed, |b| b.lsn));
        match w.verdict {
            Verdict::Stream { from } if from == end && asks => Ok(Plan::CutAll { to: end }),
            Verdict::Stream { from } if from == end => Ok(Plan::Follow { term: w.term }),
            Verdict::Stream { from } => Err(Violation::WrongStart { from, end }),
            // Nobody has let go of what is not committed.
            Verdict::Cut { to } if asks => Err(Violation::CutBelowCommit { to, commit: end }),
            // There is nothing to cut.
            Verdict::Cut { .. } if self.is_empty() => Err(Violation::NotForReplica),
            Verdict::Cut { to } => {
                // A cut to this log's own end says that its last term never was (see
                // `Primary::answer_with_chain`).
                let last_term_began = self.history.entries().last().map_or(Lsn::ZERO, |e| e.1);
                let to = if to >= self.flushed { last_term_began } else { to };
                let commit = self.committed();
                if to < commit && !canary!(CutBelowCommit) {
                    Err(Violation::CutBelowCommit { to, commit })
                } else {
                    Ok(Plan::Cut { to })
                }
            }
            Verdict::NeedSnapshot { oldest } => Ok(Plan::NeedSnapshot { oldest }),
            Verdict::Begin { at, .. } if !self.may_begin || at <= end => Err(Violation::WrongStart { from: at, end }),
            // No primary lets go of what is not committed; one that has lost what it knew is not followed.
            Verdict::Begin { at, .. } if w.commit_lsn < at => {
                Err(Violation::KnowsLess { theirs: w.commit_lsn, ours: self.committed() })
            }
            Verdict::Begin { .. } if asks => Ok(Plan::CutAll { to: end }),
            Verdict::Begin { at, base, known } => Ok(Plan::Begin(Beginning { at, base, term: w.term, known })),
            Verdict::Snapshot { oldest, .. } if !self.may_take || oldest <= end => {
                Err(Violation::WrongStart { from: oldest, end })
            }
            Verdict::Snapshot { .. } if asks => Ok(Plan::CutAll { to: end }),
            Verdict::Snapshot { known, .. } => Ok(Plan::Snapshot { term: w.term, known }),
            Verdict::Client | Verdict::Refused(_) => Err(Violation::NotForReplica),
        }
    }
}
