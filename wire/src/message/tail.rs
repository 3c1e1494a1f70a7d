//! A subscription to a shard's log.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::payload;
use crate::Lsn;
use crate::frame::{FrameError, FrameKind};

/// Bytes of a tail request.
pub const TAIL_REQUEST: usize = 16;

/// Where a tail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailStart {
    /// At this batch boundary.
    At(Lsn),
    /// At the oldest batch that is kept.
    Oldest,
    /// At the end: only what comes from now on.
    End,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TailRequestBytes {
    start: U64,
    start_kind: u8,
    level: u8,
    until_end: u8,
    reserved: [u8; 5],
}
const _: () = assert!(size_of::<TailRequestBytes>() == TAIL_REQUEST);

/// A subscription to a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailRequest {
    /// Where to begin.
    pub start: TailStart,
    /// Deliver what is on the node's device although it is not known to be committed.
    pub flushed: bool,
    /// Stop at the position that is the end when the request arrives.
    pub until_end: bool,
}

impl TailRequest {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; TAIL_REQUEST] {
        let (start_kind, start) = match self.start {
            TailStart::At(lsn) => (0, lsn.0),
            TailStart::Oldest => (1, 0),
            TailStart::End => (2, 0),
        };
        zerocopy::transmute!(TailRequestBytes {
            start: U64::new(start),
            start_kind,
            level: u8::from(self.flushed),
            until_end: u8::from(self.until_end),
            reserved: [0; 5],
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::Tail;
        let b = payload!(TailRequestBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        let start = match (b.start_kind, b.start.get()) {
            (0, lsn) if Lsn(lsn).is_block_aligned() => TailStart::At(Lsn(lsn)),
            (1, 0) => TailStart::Oldest,
            (2, 0) => TailStart::End,
            _ => return bad("start"),
        };
        if b.level > 1 || b.until_end > 1 || b.reserved != [0; 5] {
            return bad("reserved");
        }
        Ok(Self { start, flushed: b.level == 1, until_end: b.until_end == 1 })
    }
}
