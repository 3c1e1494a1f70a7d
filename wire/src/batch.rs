//! The batch: records closed together by group commit. The same bytes lie on the primary's disk,
//! cross the network and lie on every replica's disk.
//!
//! A batch is a 128-byte header and a body of records, padded on disk (never on the network) with
//! zeros to a whole number of blocks. Nothing in it is believed before both CRCs, its own position
//! and the chain agree.

use core::ops::Range;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::record::{self, RecordError, Records};
use crate::{BODY_BYTES_MAX, Chain, FORMAT_VERSION, Lsn, Seq, ShardId, SystemId, Term, round_up_to_block};

/// Bytes of a batch's header.
pub const HEADER: usize = 128;
/// The first four bytes of every batch.
pub const MAGIC: [u8; 4] = *b"TWLB";

const CRC_COVERS: Range<usize> = 0..HEADER - 4;

/// The header, as it lies on disk and on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchHeader {
    magic: [u8; 4],
    version: U16,
    flags: U16,
    system: [u8; 16],
    shard: U32,
    record_count: U32,
    term: U64,
    lsn: U64,
    first_seq: U64,
    timestamp_us: U64,
    prev_chain: U64,
    durable_lsn: U64,
    commit_lsn: U64,
    body_len: U32,
    body_crc: U32,
    reserved: [u8; 28],
    header_crc: U32,
}

const _: () = assert!(size_of::<BatchHeader>() == HEADER);

/// What a writer says of a batch; lengths and CRCs are computed when it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFields {
    /// The cluster's log.
    pub system: SystemId,
    /// The shard.
    pub shard: ShardId,
    /// The reign of the primary that closed the batch.
    pub term: Term,
    /// Where the batch starts.
    pub lsn: Lsn,
    /// Number of the first record.
    pub first_seq: Seq,
    /// Records in the body.
    pub record_count: u32,
    /// Microseconds since 1970 on the primary's clock when the batch was closed. Never compared.
    pub timestamp_us: u64,
    /// The chain of everything before this batch.
    pub prev_chain: Chain,
    /// What was on the primary's own device when the batch was closed: recovery tells a torn tail
    /// from damage by it.
    pub durable_lsn: Lsn,
    /// What was committed when the batch was closed: a durable lower bound.
    pub commit_lsn: Lsn,
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than a header, or than the header and its body.
    #[error("batch needs {need} bytes, {have} are there")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes present.
        have: usize,
    },
    /// The first bytes are not a batch's.
    #[error("no batch starts here (magic is {0:02x?})")]
    Magic([u8; 4]),
    /// A newer or unknown format.
    #[error("batch has format version {0}, this build reads {FORMAT_VERSION}")]
    Version(u16),
    /// The header's own CRC does not match.
    #[error("header CRC is {stored:08x}, its bytes give {computed:08x}")]
    HeaderCrc {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The body's CRC does not match.
    #[error("body CRC is {stored:08x}, its bytes give {computed:08x}")]
    BodyCrc {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A field is outside its bounds, although the CRC matches.
    #[error("field {0} is outside its bounds")]
    Field(&'static str),
    /// Padding after the body that is not zero.
    #[error("padding after the body is not zero at byte {at}")]
    Padding {
        /// Offset from the batch's start.
        at: usize,
    },
    /// The body's records do not add up.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl BatchHeader {
    /// Checks a header: length, magic, version, CRC and bounds, in that order.
    ///
    /// # Errors
    /// The first check that fails. Trailing bytes are not looked at.
    pub fn check(bytes: &[u8]) -> Result<&Self, BatchError> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else {
            return Err(BatchError::Truncated { need: HEADER, have: bytes.len() });
        };
        if header.magic != MAGIC {
            return Err(BatchError::Magic(header.magic));
        }
        let computed = crc32c::crc32c(&bytes[CRC_COVERS]);
        if header.version.get() != FORMAT_VERSION {
            return Err(BatchError::Version(header.version.get()));
        }
        let stored = header.header_crc.get();
        if stored != computed {
            return Err(BatchError::HeaderCrc { stored, computed });
        }
        let bad = |field| Err(BatchError::Field(field));
        if header.flags.get() != 0 {
            return bad("flags");
        }
        if header.reserved != [0; 28] {
            return bad("reserved");
        }
        if !header.lsn().is_block_aligned() {
            return bad("lsn");
        }
        let body = header.body_len();
        if body > BODY_BYTES_MAX || !body.is_multiple_of(record::ALIGN) {
            return bad("body_len");
        }
        let count = header.record_count() as usize;
        if count == 0 || count > body / record::HEADER {
            return bad("record_count");
        }
        if header.first_seq.get().checked_add(count as u64).is_none() {
            return bad("first_seq");
        }
        if header.lsn().checked_add(header.disk_len()).is_none() {
            return bad("lsn");
        }
        if header.durable_lsn() > header.lsn() || header.commit_lsn() > header.lsn() {
            return bad("durable_lsn or commit_lsn");
        }
        Ok(header)
    }

    /// The identity of the cluster's log.
    #[must_use]
    pub const fn system(&self) -> SystemId {
        SystemId(self.system)
    }
    /// The shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        ShardId(self.shard.get())
    }
    /// The reign of the primary that closed the batch.
    #[must_use]
    pub const fn term(&self) -> Term {
        Term(self.term.get())
    }
    /// Where the batch starts.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        Lsn(self.lsn.get())
    }
    /// Where the next batch starts.
    #[must_use]
    pub const fn end_lsn(&self) -> Lsn {
        Lsn(self.lsn.get() + self.disk_len())
    }
    /// Number of the first record.
    #[must_use]
    pub const fn first_seq(&self) -> Seq {
        Seq(self.first_seq.get())
    }
    /// Number of the record that follows the last one.
    #[must_use]
    pub const fn end_seq(&self) -> Seq {
        Seq(self.first_seq.get() + self.record_count.get() as u64)
    }
    /// Records in the body.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count.get()
    }
    /// Microseconds since 1970 on the primary's clock when it closed the batch.
    #[must_use]
    pub const fn timestamp_us(&self) -> u64 {
        self.timestamp_us.get()
    }
    /// The chain of everything before this batch.
    #[must_use]
    pub const fn prev_chain(&self) -> Chain {
        Chain(self.prev_chain.get())
    }
    /// The chain up to the end of this batch.
    #[must_use]
    pub const fn chain(&self) -> Chain {
        self.prev_chain().after(self.header_crc.get(), self.body_crc.get())
    }
    /// What was on the primary's own device when the batch was closed.
    #[must_use]
    pub const fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable_lsn.get())
    }
    /// What was committed when the batch was closed.
    #[must_use]
    pub const fn commit_lsn(&self) -> Lsn {
        Lsn(self.commit_lsn.get())
    }
    /// Bytes of the body.
    #[must_use]
    pub const fn body_len(&self) -> usize {
        self.body_len.get() as usize
    }
    /// Bytes of header and body: what crosses the network.
    #[must_use]
    pub const fn wire_len(&self) -> usize {
        HEADER + self.body_len()
    }
    /// Bytes on disk: header, body and padding up to a whole block.
    #[must_use]
    pub const fn disk_len(&self) -> u64 {
        round_up_to_block(self.wire_len() as u64)
    }

    /// Checks the body against the header and its records against each other.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub fn check_body(&self, body: &[u8]) -> Result<(), BatchError> {
        if body.len() != self.body_len() {
            return Err(BatchError::Truncated { need: self.body_len(), have: body.len() });
        }
        let (stored, computed) = (self.body_crc.get(), crc32c::crc32c(body));
        if stored != computed {
            return Err(BatchError::BodyCrc { stored, computed });
        }
        record::check(body, self.record_count())?;
        Ok(())
    }
}

/// Fills in the header in front of a body that already lies behind it: `buf` is header room and
/// body, as they will be sent. Returns the chain after the batch.
///
/// # Panics
/// If `buf` is no longer than a header, or its body is longer than [`BODY_BYTES_MAX`]: the caller
/// has bounded both.
pub fn seal(fields: &BatchFields, buf: &mut [u8]) -> Chain {
    let (head, body) = buf.split_at_mut(HEADER);
    assert!(!body.is_empty() && body.len() <= BODY_BYTES_MAX);
    let mut header = BatchHeader {
        magic: MAGIC,
        version: U16::new(FORMAT_VERSION),
        flags: U16::ZERO,
        system: fields.system.0,
        shard: U32::new(fields.shard.0),
        record_count: U32::new(fields.record_count),
        term: U64::new(fields.term.0),
        lsn: U64::new(fields.lsn.0),
        first_seq: U64::new(fields.first_seq.0),
        timestamp_us: U64::new(fields.timestamp_us),
        prev_chain: U64::new(fields.prev_chain.0),
        durable_lsn: U64::new(fields.durable_lsn.0),
        commit_lsn: U64::new(fields.commit_lsn.0),
        body_len: U32::new(body.len() as u32),
        body_crc: U32::new(crc32c::crc32c(body)),
        reserved: [0; 28],
        header_crc: U32::ZERO,
    };
    header.header_crc = U32::new(crc32c::crc32c(&header.as_bytes()[CRC_COVERS]));
    head.copy_from_slice(header.as_bytes());
    header.chain()
}

/// A batch whose every byte has been checked.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    header: &'a BatchHeader,
    bytes: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Checks a batch as it crosses the network: header and body, nothing after them.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::check(bytes)?;
        if bytes.len() != header.wire_len() {
            return Err(BatchError::Truncated { need: header.wire_len(), have: bytes.len() });
        }
        header.check_body(&bytes[HEADER..])?;
        Ok(Self { header, bytes })
    }

    /// Checks a batch as it lies on disk: header, body, and zeros up to the block's end. Bytes
    /// behind that are the next batch's and are not looked at.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check_on_disk(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::check(bytes)?;
        let need = header.disk_len() as usize;
        if bytes.len() < need {
            return Err(BatchError::Truncated { need, have: bytes.len() });
        }
        let end = header.wire_len();
        header.check_body(&bytes[HEADER..end])?;
        if let Some(at) = bytes[end..need].iter().position(|b| *b != 0) {
            return Err(BatchError::Padding { at: end + at });
        }
        Ok(Self { header, bytes: &bytes[..end] })
    }

    /// A view of bytes that have passed [`BatchView::check`] before and not changed since: checks
    /// header and length again, but not the body.
    ///
    /// # Errors
    /// What is wrong with the header or the length.
    pub fn of_checked(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::check(bytes)?;
        if bytes.len() != header.wire_len() {
            return Err(BatchError::Truncated { need: header.wire_len(), have: bytes.len() });
        }
        Ok(Self { header, bytes })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &'a BatchHeader {
        self.header
    }
    /// Header and body, as they cross the network.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// The body.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER..]
    }
    /// The payloads in order.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        Records::new(self.body())
    }
}
