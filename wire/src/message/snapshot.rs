//! A snapshot of the embedder's state on its way to a replica: the question where to go on, what
//! stands in front of the chunks, and the manifest behind them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::payload;
use crate::frame::{FrameError, FrameKind};
use crate::superblock::Base;
use crate::{Chain, Lsn, Seq};

/// Bytes of a snapshot request.
pub const SNAPSHOT_REQUEST: usize = 24;
/// Bytes of what stands in front of the chunks.
pub const SNAPSHOT_BEGIN: usize = 64;
/// Bytes of the manifest.
pub const SNAPSHOT_END: usize = 64;
/// The largest chunk, in bytes.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 256 << 10;
/// The `arg` of a snapshot ack that says only that the replica lives.
pub const SNAPSHOT_ALIVE: u64 = u64::MAX;
/// The version of the manifest, and of what it describes.
const VERSION: u16 = 1;
/// Says that the length is not known before the end.
const UNKNOWN: u64 = u64::MAX;

/// One run of one producer: drawn at random when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// No snapshot: what a replica says that has nothing of one.
    pub const NONE: Self = Self([0; 16]);
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SnapshotRequestBytes {
    id: SnapshotId,
    offset: U64,
}
const _: () = assert!(size_of::<SnapshotRequestBytes>() == SNAPSHOT_REQUEST);

/// What a replica asks for that is to take a snapshot: to go on with the one that it has a part of,
/// or for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Which one it has a part of, or [`SnapshotId::NONE`].
    pub id: SnapshotId,
    /// How much of it.
    pub offset: u64,
}

impl SnapshotRequest {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SNAPSHOT_REQUEST] {
        zerocopy::transmute!(SnapshotRequestBytes { id: self.id, offset: U64::new(self.offset) })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::SnapshotRequest;
        let b = payload!(SnapshotRequestBytes, kind, payload);
        let request = Self { id: b.id, offset: b.offset.get() };
        if request.id == SnapshotId::NONE && request.offset != 0 {
            return Err(FrameError::Field { kind, field: "offset" });
        }
        Ok(request)
    }
}

/// Which snapshot it is, and where the log goes on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPoint {
    /// The producer's run.
    pub id: SnapshotId,
    /// Everything below is in it, and nothing from there on: the end of a batch.
    pub at: Lsn,
    /// The chain, and the number of the next record, there.
    pub base: Base,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SnapshotPointBytes {
    id: SnapshotId,
    at: U64,
    base_chain: U64,
    base_seq: U64,
}

impl SnapshotPoint {
    const fn to_wire(self) -> SnapshotPointBytes {
        SnapshotPointBytes {
            id: self.id,
            at: U64::new(self.at.0),
            base_chain: U64::new(self.base.chain.0),
            base_seq: U64::new(self.base.seq.0),
        }
    }

    fn check(kind: FrameKind, b: &SnapshotPointBytes) -> Result<Self, FrameError> {
        let base = Base { chain: Chain(b.base_chain.get()), seq: Seq(b.base_seq.get()) };
        let point = Self { id: b.id, at: Lsn(b.at.get()), base };
        if point.id == SnapshotId::NONE {
            return Err(FrameError::Field { kind, field: "id" });
        }
        if point.at == Lsn::ZERO || !point.at.is_block_aligned() {
            return Err(FrameError::Field { kind, field: "at" });
        }
        Ok(point)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SnapshotBeginBytes {
    version: U16,
    reserved: [u8; 6],
    point: SnapshotPointBytes,
    total: U64,
    offset: U64,
}
const _: () = assert!(size_of::<SnapshotBeginBytes>() == SNAPSHOT_BEGIN);

/// What stands in front of a snapshot's chunks, once on each link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotBegin {
    /// Which one.
    pub point: SnapshotPoint,
    /// Bytes of all chunks together, if the producer knows.
    pub total: Option<u64>,
    /// Where the first chunk on this link starts: 0 unless the replica has asked to go on there.
    pub offset: u64,
}

impl SnapshotBegin {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SNAPSHOT_BEGIN] {
        zerocopy::transmute!(SnapshotBeginBytes {
            version: U16::new(VERSION),
            reserved: [0; 6],
            point: self.point.to_wire(),
            total: U64::new(self.total.unwrap_or(UNKNOWN)),
            offset: U64::new(self.offset),
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::SnapshotBegin;
        let b = payload!(SnapshotBeginBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        if b.version.get() != VERSION {
            return bad("version");
        }
        if b.reserved != [0; 6] {
            return bad("reserved");
        }
        let point = SnapshotPoint::check(kind, &b.point)?;
        if b.offset.get() > b.total.get() || b.offset.get() == UNKNOWN {
            return bad("offset");
        }
        let total = Some(b.total.get()).filter(|total| *total != UNKNOWN);
        Ok(Self { point, total, offset: b.offset.get() })
    }
}

/// The checksum of a snapshot's chunks, one after the other: that of `chunk` and of what came before it,
/// which is 0 in front of the first.
#[must_use]
pub fn snapshot_checksum(before: u32, chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(before, chunk)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SnapshotEndBytes {
    version: U16,
    reserved: [u8; 2],
    checksum: U32,
    point: SnapshotPointBytes,
    total: U64,
    chunks: U64,
}
const _: () = assert!(size_of::<SnapshotEndBytes>() == SNAPSHOT_END);

/// The manifest behind a snapshot's chunks: checked before anything of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotEnd {
    /// Which one: as in front of the chunks.
    pub point: SnapshotPoint,
    /// Bytes of all chunks together.
    pub total: u64,
    /// How many chunks there are.
    pub chunks: u64,
    /// CRC-32C of all bytes of all chunks, in order.
    pub checksum: u32,
}

impl SnapshotEnd {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SNAPSHOT_END] {
        zerocopy::transmute!(SnapshotEndBytes {
            version: U16::new(VERSION),
            reserved: [0; 2],
            checksum: U32::new(self.checksum),
            point: self.point.to_wire(),
            total: U64::new(self.total),
            chunks: U64::new(self.chunks),
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::SnapshotEnd;
        let b = payload!(SnapshotEndBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        if b.version.get() != VERSION {
            return bad("version");
        }
        if b.reserved != [0; 2] {
            return bad("reserved");
        }
        let point = SnapshotPoint::check(kind, &b.point)?;
        let (total, chunks) = (b.total.get(), b.chunks.get());
        if total == UNKNOWN {
            return bad("total");
        }
        // No chunk is empty, and none is larger than its cap.
        if chunks > total || total.div_ceil(SNAPSHOT_CHUNK_BYTES_MAX as u64) > chunks {
            return bad("chunks");
        }
        Ok(Self { point, total, chunks, checksum: b.checksum.get() })
    }
}
