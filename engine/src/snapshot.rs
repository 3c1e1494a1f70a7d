//! The embedder's state as a snapshot: made on a primary, installed on a replica whose log cannot be
//! continued.
//!
//! A replica without a usable log whose handler has state ([`Apply::takes_gaps`](crate::Apply::takes_gaps)
//! is `false`) gets that state first and then the log from there on. The calls here run on a thread of
//! their own, one for all shards of a node, and may block; a node that is stopped waits for the call that
//! is under way.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use towline_wire::{Lsn, Seq, ShardId};

pub use towline_wire::message::SNAPSHOT_CHUNK_BYTES_MAX;

/// What the embedder's own part could not do, in words.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SnapshotError(pub String);

/// The chunks of a snapshot in order: each of 1 to [`SNAPSHOT_CHUNK_BYTES_MAX`] bytes. The replica gets
/// them as they are, neither split nor joined. Dropped when the snapshot is over, whole or not.
pub type Chunks = Box<dyn Iterator<Item = Result<Vec<u8>, SnapshotError>> + Send>;

/// A snapshot that is being made.
pub struct Produced {
    /// Where the state stands: every record below is in it, none from there on. The end of a batch, as a
    /// [`Bookmark`](crate::Bookmark) or [`AppliedBatch::end_lsn`](crate::AppliedBatch::end_lsn) has it.
    /// Records of one batch have the same bookmark: it holds only once all of them are in. The log from
    /// there on must still be kept. What is not committed is waited for.
    pub at: Lsn,
    /// Bytes of all chunks together, if that is known: it is held to, and shown.
    pub total_bytes: Option<u64>,
    /// The chunks.
    pub chunks: Chunks,
}

impl fmt::Debug for Produced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Produced(at {}, {:?} bytes)", self.at, self.total_bytes)
    }
}

/// What a snapshot says of itself before it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The shard.
    pub shard: ShardId,
    /// Where the state stands: the log goes on there.
    pub at: Lsn,
    /// The number of the first record that is not in it.
    pub next_seq: Seq,
    /// Bytes of all chunks together, if the producer knew.
    pub total_bytes: Option<u64>,
}

/// An embedder with state that it can give and take.
pub trait Snapshot: Send + Sync {
    /// On a primary: begins a snapshot of a shard's state as it is now. It must not change while the
    /// chunks are taken, whatever is appended meanwhile. There is one at a time for each shard, beside those
    /// that the embedder exports itself; one whose replica is cut off waits for it for
    /// [`limits::SNAPSHOT_PAUSE_MAX`](crate::limits::SNAPSHOT_PAUSE_MAX).
    ///
    /// # Errors
    /// Why not now; the replica asks again.
    fn produce(&self, shard: ShardId) -> Result<Produced, SnapshotError>;

    /// On a replica: begins to stage one. The state itself stays what it is, and so does what the handler
    /// stands on. What an earlier process has staged is of no use any more.
    ///
    /// # Errors
    /// Why not now; it is tried again.
    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError>;
}

/// A snapshot that is being staged. Dropping it without [`Stage::finish`] gives it up.
pub trait Stage: Send {
    /// The next chunk, as [`Produced::chunks`] gave it.
    ///
    /// # Errors
    /// What is staged is given up, and it is tried again from the start.
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError>;

    /// All chunks were there and are what the primary sent. When this returns, the state is the new one,
    /// at once and durably: a crash leaves the old state or the new one, and
    /// [`Apply::resume_at`](crate::Apply::resume_at) says which. No batch is applied meanwhile.
    ///
    /// # Errors
    /// The shard stops: which state there is shows at the next start.
    fn finish(self: Box<Self>) -> Result<(), SnapshotError>;
}

/// An embedder's [`Snapshot`], as it is configured.
#[derive(Clone)]
pub struct Snapshots(pub(crate) Arc<dyn Snapshot>);

impl Snapshots {
    /// Takes it.
    pub fn new(snapshot: Arc<dyn Snapshot>) -> Self {
        Self(snapshot)
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshots")
    }
}
