//! One shard's slice of the log on disk.
//!
//! Comes in: closed batches, positions to read from. Goes out: completions, bytes by LSN.
//! [`open`](fn@open::open) recovers a slice with plain blocking calls before any executor runs; [`live`] writes and
//! reads it on its core afterwards; what would block a core (zero-filling, renames, superblocks) is
//! done by [`crate::rt::worker`] threads.

pub(crate) mod ahead;
mod begin;
pub(crate) mod cursor;
pub(crate) mod direct;
pub(crate) mod error;
pub(crate) mod folder;
pub(crate) mod installing;
pub(crate) mod keep;
pub(crate) mod live;
pub(crate) mod open;
mod recycle;
pub(crate) mod replaced;
pub(crate) mod ring;
pub(crate) mod source;
pub(crate) mod superblock_file;
