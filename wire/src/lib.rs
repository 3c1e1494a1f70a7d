//! Towline's bytes, and nothing else.
//!
//! This crate turns bytes from a disk or a network into checked, typed, borrowed views, and typed
//! values into bytes. It does no I/O, reads no clock, starts no thread and allocates nothing. No
//! input makes it panic: whatever fails a magic number, a bound or a CRC comes back as a typed
//! error that names the field.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | the newtypes of every position: [`Lsn`], [`Term`], [`ShardId`], [`Seq`], [`Chain`], [`SystemId`] |
//! | [`record`] | the header in front of each record, and iteration over a batch's body |
//! | [`batch`] | the batch: the unit that is written, sent, checked and acknowledged |
//! | [`frame`] | the native protocol's frame header and its kinds, with a cap for each |
//! | [`handshake`] | hello and welcome |
//! | [`message`] | the other frames' payloads |
//! | [`superblock`] | the small double-written block that says what a shard is |
//!
//! `docs/FORMAT.md` describes the same bytes one by one; the tests hold both to golden vectors.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic))]

pub mod batch;
pub mod frame;
pub mod handshake;
pub mod ids;
pub mod message;
pub mod record;
pub mod superblock;

pub use batch::{BatchError, BatchFields, BatchHeader, BatchView};
pub use frame::{FrameError, FrameHead, FrameKind};
pub use ids::{Chain, Lsn, Seq, ShardId, SystemId, Term};
pub use record::{RecordError, Records};

/// A batch starts on a multiple of this many bytes, in the log and in its segment file.
///
/// 4,096 satisfies direct I/O on both 512-byte and 4-KiB-sector devices, so that a log can move
/// between them byte for byte.
pub const BLOCK: usize = 4096;

/// The version of the on-disk format that this crate writes, and the newest it reads.
pub const FORMAT_VERSION: u16 = 1;

/// The version of the native protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The largest record any configuration may allow, in bytes.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// The largest body of one batch, in bytes: one record of [`RECORD_BYTES_MAX`] with its header.
pub const BODY_BYTES_MAX: usize = RECORD_BYTES_MAX + record::HEADER;

/// Rounds a length up to whole [`BLOCK`]s.
#[must_use]
pub const fn round_up_to_block(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}

const _: () = assert!(BODY_BYTES_MAX < u32::MAX as usize);
