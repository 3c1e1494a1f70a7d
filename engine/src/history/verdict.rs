//! What the checker found.

use std::fmt;

use towline_wire::{Lsn, Seq, ShardId, Term};

/// Most logs of one shard.
pub const LOGS_MAX: u8 = 64;
/// Violations that are kept in full; of all that follow only the number is.
pub const VIOLATIONS_SHOWN: usize = 100;

/// A record's name in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The history it stands in, counted from 0.
    pub source: u32,
    /// Its number there.
    pub id: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            0 => write!(f, "record {}", self.id),
            n => write!(f, "record {} of history {n}", self.id),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What a violation is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// An acknowledged record is missing where the policy promised it.
    Lost = "lost",
    /// A log holds a record that was never appended.
    Phantom = "phantom",
    /// A log holds a record although its append was refused.
    RefusedWritten = "refused_written",
    /// A log holds a record more often than it was appended.
    Duplicate = "duplicate",
    /// A record is elsewhere than its client was told.
    Misplaced = "misplaced",
    /// Records are in another order than they were appended in.
    WrongOrder = "wrong_order",
    /// Two logs hold different records at one place.
    LogsDiffer = "logs_differ",
    /// A log ends before another one although all should have caught up.
    Behind = "behind",
    /// A commit was reported with less than its policy asks for.
    Degraded = "degraded",
}

/// One violation. Logs are numbered as the caller numbered them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// See [`Kind::Lost`].
    Lost {
        /// The record.
        record: Name,
        /// Its shard.
        shard: ShardId,
        /// Where it was acknowledged.
        lsn: Lsn,
        /// In which reign.
        term: Term,
        /// A bit for each log that holds it.
        held_by: u64,
        /// Nodes that held it by the promise.
        promised: u32,
        /// Nodes lost since.
        lost: u32,
        /// The serving primary's log does not hold it.
        not_served: bool,
    },
    /// See [`Kind::Phantom`].
    Phantom {
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// The record's number there.
        seq: Seq,
        /// The end of its batch.
        lsn: Lsn,
        /// Its length.
        bytes: u32,
    },
    /// See [`Kind::RefusedWritten`].
    RefusedWritten {
        /// The record.
        record: Name,
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// The record's number there.
        seq: Seq,
    },
    /// See [`Kind::Duplicate`].
    Duplicate {
        /// The record.
        record: Name,
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// The number there of the one that is too many.
        seq: Seq,
        /// How often it was appended.
        appended: u32,
    },
    /// See [`Kind::Misplaced`].
    Misplaced {
        /// The record.
        record: Name,
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// Term, end of the batch and number that its client was told.
        told: (Term, Lsn, Option<Seq>),
        /// What the log has.
        found: (Term, Lsn, Seq),
    },
    /// See [`Kind::WrongOrder`].
    WrongOrder {
        /// The record that is too far behind.
        record: Name,
        /// The record in front of it that belongs behind it.
        other: Name,
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// Where the first one is.
        seq: Seq,
        /// Of one client; else of two, the second appended when the first one was acknowledged.
        same_client: bool,
    },
    /// See [`Kind::LogsDiffer`].
    LogsDiffer {
        /// The log that differs from those in front of it.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// The first record that differs.
        seq: Seq,
        /// The end of its batch.
        lsn: Lsn,
    },
    /// See [`Kind::Behind`].
    Behind {
        /// The log.
        log: u8,
        /// Its shard.
        shard: ShardId,
        /// Where it ends.
        end: Lsn,
        /// Where the longest one ends.
        longest: Lsn,
    },
    /// See [`Kind::Degraded`].
    Degraded {
        /// The record.
        record: Name,
        /// Its shard.
        shard: ShardId,
        /// Replicas that had acknowledged.
        acks: u8,
        /// Replicas that the outcome says were wanted.
        wanted: u8,
        /// Replicas that the policy asked for means, if it is known and can hold.
        asked: Option<u8>,
    },
}

impl Violation {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Lost { .. } => Kind::Lost,
            Self::Phantom { .. } => Kind::Phantom,
            Self::RefusedWritten { .. } => Kind::RefusedWritten,
            Self::Duplicate { .. } => Kind::Duplicate,
            Self::Misplaced { .. } => Kind::Misplaced,
            Self::WrongOrder { .. } => Kind::WrongOrder,
            Self::LogsDiffer { .. } => Kind::LogsDiffer,
            Self::Behind { .. } => Kind::Behind,
            Self::Degraded { .. } => Kind::Degraded,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { record, shard, lsn, term, held_by, promised, lost, not_served } => {
                write!(
                    f,
                    "{record} was acknowledged on shard {shard} at LSN {lsn} in term {term} and is lost: promised on \
                     {promised} nodes, {lost} lost since, held by {} of the logs",
                    held_by.count_ones()
                )?;
                for (n, log) in (0..LOGS_MAX).filter(|log| held_by >> log & 1 == 1).enumerate() {
                    write!(f, "{}{log}", if n == 0 { ": " } else { ", " })?;
                }
                if *not_served { write!(f, "; the primary's log does not hold it") } else { Ok(()) }
            }
            Self::Phantom { log, shard, seq, lsn, bytes } => write!(
                f,
                "log {log} of shard {shard} holds a record of {bytes} bytes at seq {seq} (batch up to LSN {lsn}) that \
                 was never appended"
            ),
            Self::RefusedWritten { record, log, shard, seq } => {
                write!(f, "{record} was refused, and log {log} of shard {shard} holds it at seq {seq}")
            }
            Self::Duplicate { record, log, shard, seq, appended } => write!(
                f,
                "log {log} of shard {shard} holds {record} once more at seq {seq}: it was appended {appended} times"
            ),
            Self::Misplaced { record, log, shard, told, found } => {
                write!(f, "{record} was acknowledged at LSN {} of term {}", told.1, told.0)?;
                if let Some(seq) = told.2 {
                    write!(f, " as seq {seq}")?;
                }
                let (term, lsn, seq) = found;
                write!(f, ", log {log} of shard {shard} holds it at LSN {lsn} of term {term} as seq {seq}")
            }
            Self::WrongOrder { record, other, log, shard, seq, same_client } => {
                let why = if *same_client {
                    "which its client appended later"
                } else {
                    "which was appended after the acknowledgement"
                };
                write!(f, "log {log} of shard {shard} holds {record} at seq {seq} behind {other}, {why}")
            }
            Self::LogsDiffer { log, shard, seq, lsn } => {
                write!(
                    f,
                    "log {log} of shard {shard} differs from the others from seq {seq} on (batch up to LSN {lsn})"
                )
            }
            Self::Behind { log, shard, end, longest } => {
                write!(f, "log {log} of shard {shard} ends at LSN {end}, the longest one at LSN {longest}")
            }
            Self::Degraded { record, shard, acks, wanted, asked } => {
                write!(f, "{record} of shard {shard} was reported committed with {acks} of {wanted} replicas")?;
                match asked {
                    Some(asked) => write!(f, ", its policy asks for {asked}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// What became of everything in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that were to be appended.
    pub appends: u64,
    /// Of these: committed.
    pub committed: u64,
    /// Timed out.
    pub timed_out: u64,
    /// Refused.
    pub refused: u64,
    /// Without an outcome, or with one that says nothing.
    pub unknown: u64,
    /// Committed, and still promised by their policy after what was lost.
    pub promised: u64,
    /// Records that the logs hold, all together.
    pub records: u64,
    /// The first of the violations.
    pub violations: Vec<Violation>,
    /// All of them, by kind, in the order of [`Kind::ALL`].
    pub counts: [u64; Kind::ALL.len()],
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.counts.iter().all(|n| *n == 0)
    }

    /// How many violations there are of a kind.
    #[must_use]
    pub const fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    pub(super) fn add(&mut self, violation: Violation) {
        self.counts[violation.kind() as usize] += 1;
        if self.violations.len() < VIOLATIONS_SHOWN {
            self.violations.push(violation);
        }
    }
}
