//! Backups: folders with a manifest that names each file, its size and its CRC, and is written last.
//!
//! `towline backup` saves the log that a node keeps, `towline restore` makes a replica's folder of it. An
//! embedder with state whose primary trims its log needs its state too: its program writes it, with the place
//! in the log where it stands, with [`export`] on a primary, and installs it with [`restore`] where a replica
//! is to be. Both use what the embedder has for replicas that come over the network, its
//! [`Snapshot`](crate::Snapshot). `docs/BACKUP.md` has the format and the steps.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use towline_wire::frame::{FrameError, FrameKind};
use towline_wire::{Lsn, ShardId};

use crate::oneshot;
use crate::protocol::snapshot::{SendError, SnapshotViolation};
use crate::shard::wal::cursor::BaseError;
use crate::shard::wal::error::OpenError;
use crate::snapshot::SnapshotError;

mod export;
mod restoring;
mod states;

// For the command; not for embedders.
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod manifest;

pub use export::export;
pub use manifest::ManifestError;
pub use restoring::restore;
#[doc(hidden)]
pub use restoring::restore_log;

/// Why there is no backup, or why nothing is in the place of what was to be restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file or a folder cannot be read or written, or is not what it should be.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A node's folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no manifest, or it cannot be used.
    #[error("{}: {source}", backup.display())]
    Manifest {
        /// The backup.
        backup: PathBuf,
        /// Why not.
        source: ManifestError,
    },
    /// The manifest names a file that is not there.
    #[error("{}: {file} is missing", backup.display())]
    Missing {
        /// The backup.
        backup: PathBuf,
        /// The file.
        file: String,
    },
    /// There is a file that the manifest does not name.
    #[error("{}: {file} is not in the manifest", backup.display())]
    Unknown {
        /// The backup.
        backup: PathBuf,
        /// The file.
        file: String,
    },
    /// A file's bytes are not those that were saved.
    #[error("{}: its CRC is not the manifest's", path.display())]
    Crc {
        /// The file.
        path: PathBuf,
    },
    /// The log in the backup is damaged.
    #[error("{}: {reason} at {offset}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The log, or the place in it, is whole, but another one than the manifest tells of.
    #[error("{}: the log is not the one that the manifest tells of", path.display())]
    OtherLog {
        /// The folder or the file.
        path: PathBuf,
    },
    /// A name that no replica can have.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// A path that does not end with a folder's name.
    #[error("{} is no folder's name", .0.display())]
    NoFolder(PathBuf),
    /// There is something in the place already.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A restore was interrupted, or another one runs.
    #[error("{} is there: a restore was not finished, or runs. Remove it first", .0.display())]
    Unfinished(PathBuf),
    /// It holds an embedder's state, which only that embedder's program can install.
    #[error("{}: it holds the state of an embedder: its own program restores it", .0.display())]
    HoldsState(PathBuf),
    /// It holds a log and no state.
    #[error("{}: it holds a log and no embedder's state: use `towline restore`", .0.display())]
    HoldsLog(PathBuf),
    /// A file of a state is not what was exported.
    #[error("{} at {offset}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        source: StateError,
    },
    /// The embedder's own part could not do it.
    #[error("shard {shard}, {doing} its state: {source}")]
    Embedder {
        /// The shard.
        shard: ShardId,
        /// Making, staging or installing.
        doing: &'static str,
        /// In its words.
        source: SnapshotError,
    },
    /// The embedder's state is larger than it may be, or not as large as it says, or in chunks of a wrong size.
    #[error("shard {shard}: {source}")]
    Produced {
        /// The shard.
        shard: ShardId,
        /// What it is.
        source: SendError,
    },
    /// The embedder's state stands in front of what the log keeps, or behind its end, or at no block's start.
    #[error("shard {shard}: its state stands at {at}, the log that is kept goes from {oldest} to {end}")]
    Outside {
        /// The shard.
        shard: ShardId,
        /// Where it says that it stands.
        at: Lsn,
        /// The oldest that is kept.
        oldest: Lsn,
        /// The log's end.
        end: Lsn,
    },
    /// The embedder's state stands in the middle of a batch.
    #[error("shard {shard}: its state stands at {at}, where no batch starts")]
    NoBatch {
        /// The shard.
        shard: ShardId,
        /// Where it says that it stands.
        at: Lsn,
    },
    /// What the embedder's state stands on was not committed for as long as was waited.
    #[error("shard {shard}: its state stands at {at}, only {committed} is committed")]
    NotCommitted {
        /// The shard.
        shard: ShardId,
        /// Where it says that it stands.
        at: Lsn,
        /// What is committed.
        committed: Lsn,
    },
    /// The primary's log cannot be read, or the primary was stopped.
    #[error("shard {shard}: {reason}")]
    Primary {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
}

/// What is wrong in the file of a state.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// A part of it is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It ends in the middle of a part.
    #[error("it ends in the middle")]
    Cut,
    /// A part that no state has.
    #[error("a {0:?} has no place in it")]
    Kind(FrameKind),
    /// Its parts do not fit each other, or are too many.
    #[error(transparent)]
    Violation(#[from] SnapshotViolation),
    /// There is more behind its end.
    #[error("there is something behind its end")]
    More,
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    |source| BackupError::Io { path: path.into(), source }
}

impl BackupError {
    pub(crate) fn of_base(shard: ShardId, e: BaseError) -> Self {
        match e {
            BaseError::Outside { at, oldest, tail } => Self::Outside { shard, at, oldest, end: tail },
            BaseError::NoBatch { at } => Self::NoBatch { shard, at },
            BaseError::Log(e) => Self::Primary { shard, reason: e.to_string() },
        }
    }

    pub(crate) fn gone(shard: ShardId, gone: oneshot::Gone) -> Self {
        Self::Primary { shard, reason: gone.to_string() }
    }
}
