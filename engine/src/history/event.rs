//! What a history is made of.

use towline_wire::handshake::NodeName;
use towline_wire::message::AckLevel;
use towline_wire::{Lsn, Seq, ShardId, Term};

use crate::protocol::policy::CommitPolicy;

/// Version of the lines.
pub const VERSION: u64 = 1;

/// What is kept of a record: enough to know it again, not enough to rebuild it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Print {
    /// Its length.
    pub bytes: u32,
    /// FNV-1a, 64 bits, of its bytes: a few lines in any language.
    pub hash: u64,
}

impl Print {
    /// Of a record.
    #[must_use]
    pub fn of(record: &[u8]) -> Self {
        // http://www.isthe.com/chongo/tech/comp/fnv/
        let hash = record
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        // No record is as long as 4 GiB; one that were would only be known again less surely.
        Self { bytes: record.len() as u32, hash }
    }
}

/// One step of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The history begins: always the first line.
    Begin {
        /// The primary and its configured replicas, together.
        nodes: u8,
    },
    /// A record is about to be appended: it stands in the history before it can be in a log.
    Append(Append),
    /// What became of records.
    Outcome(Outcome),
    /// From here on a node's copy is gone: its disk, or its tail because another node was promoted.
    /// It takes one copy away from what was promised before.
    Lost {
        /// Which one, for people.
        node: NodeName,
        /// When, on the history's clock.
        at_us: u64,
    },
}

/// A record that is about to be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// Its number in this history.
    pub id: u64,
    /// Who appends it: what one client appends to a shard is in its log in the order of the history.
    pub client: u32,
    /// To which shard.
    pub shard: ShardId,
    /// What the record is.
    pub print: Print,
    /// The policy that was asked for, if it is known: a commit may not fall short of it.
    pub policy: Option<CommitPolicy>,
    /// When, in microseconds on the history's clock.
    pub at_us: u64,
}

/// What became of records. Records without an outcome count as [`Status::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The first record's number.
    pub id: u64,
    /// How many records it tells of: those with the numbers from `id` on.
    pub records: u64,
    /// What became of them.
    pub status: Status,
    /// When it was known, on the history's clock.
    pub at_us: u64,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Committed: the policy's promise holds from here on.
    Committed(Commit),
    /// The deadline passed first: it may be in the logs.
    TimedOut,
    /// Nothing is known: it may be in the logs.
    Unknown,
    /// Nothing was written: it may be in no log.
    Refused,
}

/// What a commit promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The reign.
    pub term: Term,
    /// The end of the batch that holds the records.
    pub lsn: Lsn,
    /// The first record's number in its shard, if the client was told.
    pub first_seq: Option<Seq>,
    /// What each replica vouched for.
    pub level: AckLevel,
    /// Replicas that the policy wanted.
    pub wanted: u8,
    /// Replicas that had acknowledged.
    pub acks: u8,
}

impl Commit {
    /// How many nodes hold the records on their devices, by this promise.
    #[must_use]
    pub const fn copies(&self) -> u32 {
        match self.level {
            // In memory only: a crash of the replica loses it.
            AckLevel::Received => 1,
            AckLevel::Flushed | AckLevel::Applied => 1 + self.wanted as u32,
        }
    }
}
