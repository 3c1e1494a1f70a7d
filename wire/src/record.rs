//! Records: opaque byte strings, each behind a small fixed header, packed into a batch's body.
//!
//! A header is 8 bytes: the payload's length (u32 little-endian), a kind, flags, and two zero
//! bytes. Payloads start on a multiple of 8 bytes from the body's start and are padded with zeros
//! to a multiple of 8, so an embedder can lay typed views over them.

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a record's header.
pub const HEADER: usize = 8;
/// Payloads start and end on multiples of this.
pub const ALIGN: usize = 8;

/// A record that the embedder appended.
pub const KIND_DATA: u8 = 0;

/// The bytes in front of each record's payload.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    /// Bytes of payload, without header and padding.
    pub len: U32,
    /// [`KIND_DATA`]; every other value is reserved.
    pub kind: u8,
    /// Reserved: zero.
    pub flags: u8,
    /// Reserved: zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<RecordHeader>() == HEADER);

/// Bytes that a record of `payload` bytes takes in a body: header, payload and padding.
#[must_use]
pub const fn encoded_len(payload: usize) -> usize {
    HEADER + payload.next_multiple_of(ALIGN)
}

/// Writes a record at the start of `out` and returns how many bytes it took.
///
/// # Panics
/// If `out` is shorter than [`encoded_len`] of the payload, or the payload is longer than a `u32`
/// counts: the caller has checked both when it admitted the record.
#[inline]
pub fn encode(payload: &[u8], out: &mut [u8]) -> usize {
    let total = encoded_len(payload.len());
    let out = &mut out[..total];
    assert!(payload.len() <= crate::RECORD_BYTES_MAX);
    out[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    out[4..HEADER].fill(0);
    out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    out[HEADER + payload.len()..].fill(0);
    total
}

/// What is wrong with a body's records. `at` counts bytes from the body's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A header or a payload reaches past the body's end.
    #[error("record at body offset {at} needs {need} bytes, {left} are left")]
    Truncated {
        /// Where the record starts.
        at: usize,
        /// Bytes it needs.
        need: u64,
        /// Bytes left in the body.
        left: usize,
    },
    /// A reserved field, an unknown kind, or padding that is not zero.
    #[error("record at body offset {at} has a reserved bit set, an unknown kind or padding that is not zero")]
    Reserved {
        /// Where the record starts.
        at: usize,
    },
    /// The header counts other records than the body holds.
    #[error("the body holds {found} records where {expected} are declared")]
    Count {
        /// Records found.
        found: u64,
        /// Records declared.
        expected: u32,
    },
}

/// Reads the record at `at`: its payload, and where the next one starts.
#[inline]
fn record_at(body: &[u8], at: usize) -> Result<(&[u8], usize), RecordError> {
    let left = body.len() - at;
    let Ok((header, rest)) = RecordHeader::ref_from_prefix(&body[at..]) else {
        return Err(RecordError::Truncated { at, need: HEADER as u64, left });
    };
    let len = header.len.get() as usize;
    let padded = (len as u64).next_multiple_of(ALIGN as u64);
    if padded > rest.len() as u64 {
        return Err(RecordError::Truncated { at, need: HEADER as u64 + padded, left });
    }
    let padded = padded as usize;
    let padding_is_zero = rest[len..padded].iter().all(|b| *b == 0);
    if header.kind != KIND_DATA || header.flags != 0 || header.reserved != [0; 2] || !padding_is_zero {
        return Err(RecordError::Reserved { at });
    }
    Ok((&rest[..len], at + HEADER + padded))
}

/// Walks the whole body once, so that [`Records`] over it cannot fail.
///
/// # Errors
/// The first thing that is wrong, with its offset.
pub fn check(body: &[u8], expected: u32) -> Result<(), RecordError> {
    let (mut at, mut found) = (0, 0u64);
    while at < body.len() {
        (_, at) = record_at(body, at)?;
        found += 1;
    }
    if found == u64::from(expected) { Ok(()) } else { Err(RecordError::Count { found, expected }) }
}

/// Iterates over the payloads of a body in order. Stops at the first record that is not whole,
/// which cannot happen in a body that [`check`] has passed.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Iterates over a body.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.at >= self.body.len() {
            return None;
        }
        if let Ok((payload, next)) = record_at(self.body, self.at) {
            self.at = next;
            Some(payload)
        } else {
            self.at = self.body.len();
            None
        }
    }
}
