//! A batch that is compressed on its way.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::payload;
use crate::frame::{FrameError, FrameKind};
use crate::{BODY_BYTES_MAX, batch};

/// Bytes in front of the compressed ones.
pub const PACKED_HEAD: usize = 8;
/// The most bytes that one compressed byte can stand for: LZ4's block format has no more.
pub const PACKED_RATIO_MAX: usize = 255;
/// The number of LZ4's block format, the only method.
const LZ4: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PackedHeadBytes {
    batch_len: U32,
    method: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<PackedHeadBytes>() == PACKED_HEAD);

/// What stands in front of a compressed batch. The batch is checked by its own CRCs once it is
/// decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedHead {
    /// Bytes of the batch, header and body: it has exactly so many.
    pub batch_len: usize,
}

impl PackedHead {
    /// As it crosses the network.
    ///
    /// # Panics
    /// If no batch is so long.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PACKED_HEAD] {
        assert!(self.batch_len <= batch::HEADER + BODY_BYTES_MAX);
        let batch_len = U32::new(self.batch_len as u32);
        zerocopy::transmute!(PackedHeadBytes { batch_len, method: LZ4, reserved: [0; 3] })
    }

    /// Checks the first [`PACKED_HEAD`] bytes of a payload of `len` bytes, before memory is taken for
    /// what they say.
    ///
    /// # Errors
    /// The field that is outside its bounds: a batch is longer than its compressed form, and no more
    /// than [`PACKED_RATIO_MAX`] times as long.
    pub fn check(head: &[u8], len: usize) -> Result<Self, FrameError> {
        let kind = FrameKind::Packed;
        let b = payload!(PackedHeadBytes, kind, head);
        let bad = |field| Err(FrameError::Field { kind, field });
        let packed = len.saturating_sub(PACKED_HEAD);
        if packed == 0 {
            return Err(FrameError::Size { kind, len });
        }
        let batch_len = b.batch_len.get() as usize;
        let longest = (batch::HEADER + BODY_BYTES_MAX).min(packed.saturating_mul(PACKED_RATIO_MAX));
        if batch_len <= batch::HEADER.max(packed) || batch_len > longest {
            return bad("batch_len");
        }
        if b.method != LZ4 {
            return bad("method");
        }
        if b.reserved != [0; 3] {
            return bad("reserved");
        }
        Ok(Self { batch_len })
    }
}
