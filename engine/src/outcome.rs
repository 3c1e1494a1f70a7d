//! What becomes of an append: typed, never ambiguous. A timeout never reads like "not written".

use thiserror::Error;
use towline_wire::{Lsn, Seq, ShardId, Term};

use crate::limits::{LANES_MAX, TICKETS_MAX};
use crate::protocol::policy::PolicyError;

/// A position to come back to: read-your-writes waits until a node has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bookmark {
    /// The shard.
    pub shard: ShardId,
    /// The reign in which it was appended.
    pub term: Term,
    /// The end of the batch that holds the records.
    pub lsn: Lsn,
}

/// What became of an append that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The policy holds: the primary's copy is on its device, and as many replicas as the policy
    /// wants have acknowledged at its level.
    Committed {
        /// Where.
        bookmark: Bookmark,
        /// Replicas that had acknowledged, at least as many as wanted.
        acks: u8,
    },
    /// The deadline passed first. The records are in the log and are still being replicated; they
    /// may become committed at any time, and nothing takes them back but the loss of this primary.
    TimedOut {
        /// Where.
        bookmark: Bookmark,
        /// Whether the primary's copy is on its device.
        durable_here: bool,
        /// Replicas that have acknowledged at the policy's level.
        acks: u8,
        /// Replicas wanted.
        wanted: u8,
    },
    /// A newer primary reigns. Whether the records survive is for it to say: ask it for the
    /// bookmark's position.
    Fenced,
    /// The shard has stopped: an I/O error, or the node was stopped. Whether the records survive
    /// shows at the next start.
    Stopped,
}

impl Outcome {
    /// The bookmark of a commit.
    #[must_use]
    pub const fn committed(&self) -> Option<Bookmark> {
        match self {
            Self::Committed { bookmark, .. } => Some(*bookmark),
            _ => None,
        }
    }
}

/// Why an append was not accepted. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The shard's buffers are full. Try again after some commits, or use the form that waits.
    #[error("the shard's buffers are full: try again when commits have come through")]
    WouldBlock,
    /// The disk has no space for the next segment, and the shard's buffers are full. Free some
    /// space; the shard goes on by itself.
    #[error("the disk is full: free some space, the shard then goes on by itself")]
    DiskFull,
    /// The log that is not committed has come to the cap (`retain_max`), and the shard's buffers are
    /// full. Bring replicas back; the shard goes on by itself.
    #[error(
        "the log that is not committed fills the retention cap: bring replicas back, the shard then goes on by itself"
    )]
    LogFull,
    /// The record is larger than the configured limit.
    #[error("the record has {bytes} bytes, at most {max} are allowed (record_bytes_max)")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too few replicas are connected, and the node is configured to refuse then.
    #[error("the policy wants {wanted} replicas, {connected} are connected")]
    TooFewReplicas {
        /// Replicas wanted.
        wanted: u8,
        /// Replicas connected.
        connected: usize,
    },
    /// Fewer replicas have acknowledged lately than `min_replicas` asks for.
    #[error("{fresh} replicas have acknowledged within {age:?}, min-replicas is {wanted}: bring replicas back")]
    MinReplicas {
        /// Replicas that must have.
        wanted: u8,
        /// Replicas that have.
        fresh: usize,
        /// What is lately.
        age: std::time::Duration,
    },
    /// The policy can never hold with the configured replicas.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// As many handles, lanes and connections append to the shard as may at one time.
    #[error("the shard has {LANES_MAX} handles, lanes and connections, there cannot be more: share them, or drop some")]
    TooManyLanes,
    /// As many tickets of the handle and shard are open as may be at one time.
    #[error(
        "{TICKETS_MAX} tickets of this handle and shard are open, there cannot be more: take their outcomes, drop them, or clone the handle"
    )]
    TooManyTickets,
    /// There is no such shard.
    #[error("there is no shard {0}")]
    NoSuchShard(ShardId),
    /// A newer primary reigns: append there.
    #[error("this primary was deposed: append to the new one")]
    Fenced,
    /// The shard has stopped: start the node again.
    #[error("the shard has stopped ({0}): start the node again")]
    Stopped(String),
}

/// A record that was accepted into the open batch: it is in the primary's memory, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The lane's number of the append, counted from 0.
    pub index: u64,
    /// The record's number in its shard.
    pub seq: Seq,
}
