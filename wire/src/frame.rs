//! The native protocol's frames: a connection is a preamble and then frames, each a 24-byte header
//! and a payload whose length was checked against its kind's cap before memory is taken for it.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{BODY_BYTES_MAX, batch, handshake, message};

/// What the connecting side sends before its first frame, so that one port can tell dialects apart.
pub const PREAMBLE: [u8; 8] = *b"TOWLINE1";
/// Bytes of a frame's header.
pub const HEADER: usize = 24;
/// The largest request of records a client may send in one frame: the head and one largest record,
/// or as many smaller ones as fit into it.
pub const APPEND_BYTES_MAX: usize = message::APPEND_HEAD + BODY_BYTES_MAX;
/// The largest text in an error, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// The largest status document, in bytes.
pub const STATUS_BYTES_MAX: usize = 4 << 20;

/// Set in a heartbeat: answer now with an ack.
pub const FLAG_REPLY_NOW: u8 = 1;
/// Set on a batch: somebody waits for the `received` level, so acknowledge before the write ends.
pub const FLAG_ACK_RECEIVED: u8 = 2;
/// Set on a batch or a heartbeat: somebody waits for the `applied` level, so acknowledge as soon as
/// something is applied.
pub const FLAG_ACK_APPLIED: u8 = 4;

const FLAGS: u8 = FLAG_REPLY_NOW | FLAG_ACK_RECEIVED | FLAG_ACK_APPLIED;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $cap:expr;)*) => {
        /// What a frame is. The number is its byte in the header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum FrameKind { $($(#[$doc])* $name = $number,)* }

        impl FrameKind {
            /// Every kind, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The largest payload of this kind, in bytes.
            #[must_use]
            pub const fn payload_max(self) -> usize {
                match self { $(Self::$name => $cap,)* }
            }
        }
    };
}

kinds! {
    /// First frame of the connecting side: [`handshake::Hello`].
    Hello = 1, handshake::HELLO;
    /// The answer: [`handshake::Welcome`].
    Welcome = 2, handshake::WELCOME;
    /// A batch, as [`batch::BatchView::as_bytes`] gives it; `arg` is the primary's commit LSN.
    Batch = 3, batch::HEADER + BODY_BYTES_MAX;
    /// A replica's positions: [`message::Ack`].
    Ack = 4, message::ACK;
    /// The primary's positions and time: [`message::Heartbeat`].
    Heartbeat = 5, message::HEARTBEAT;
    /// Records from a remote client: [`message::AppendHead`], then encoded records.
    Append = 6, APPEND_BYTES_MAX;
    /// What became of them: [`message::Committed`].
    Committed = 7, message::COMMITTED;
    /// Subscribe to a shard's log: [`message::TailRequest`].
    Tail = 8, message::TAIL_REQUEST;
    /// A tail that was to stop at the end has reached it; `arg` is that LSN.
    TailEnd = 9, 0;
    /// A typed error: [`message::ErrorHead`], then text.
    Error = 10, message::ERROR_HEAD + TEXT_BYTES_MAX;
    /// The sender will close the connection on purpose; `arg` is a [`message::Goodbye`] number.
    Goodbye = 11, 0;
    /// Asks for the node's status.
    StatusRequest = 12, 0;
    /// The status: a JSON document.
    Status = 13, STATUS_BYTES_MAX;
    /// Make or remove a slot: [`message::SlotRequest`]. The answer is a status, or an error.
    SlotRequest = 14, message::SLOT_REQUEST;
    /// Change a primary's settings: [`message::ControlRequest`]. The answer is a status, or an error.
    ControlRequest = 15, message::CONTROL_REQUEST;
    /// A batch, compressed: [`message::PackedHead`], then an LZ4 block; flags and `arg` are a batch's.
    /// Only to a replica whose hello had [`handshake::FEATURE_LZ4`].
    Packed = 16, message::PACKED_HEAD + batch::HEADER + BODY_BYTES_MAX;
    /// A replica that is to take a snapshot says where to go on: [`message::SnapshotRequest`].
    SnapshotRequest = 17, message::SNAPSHOT_REQUEST;
    /// What stands in front of a snapshot's chunks: [`message::SnapshotBegin`].
    SnapshotBegin = 18, message::SNAPSHOT_BEGIN;
    /// A part of the embedder's state, at least one byte; `arg` is its offset in the snapshot.
    SnapshotChunk = 19, message::SNAPSHOT_CHUNK_BYTES_MAX;
    /// The manifest behind the chunks: [`message::SnapshotEnd`]; `arg` is the primary's commit LSN.
    SnapshotEnd = 20, message::SNAPSHOT_END;
    /// A replica has staged a snapshot up to `arg`, an offset; or it lives ([`message::SNAPSHOT_ALIVE`]).
    SnapshotAck = 21, 0;
}

/// A frame's header as it crosses the network.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    len: U32,
    kind: u8,
    flags: u8,
    reserved: U16,
    arg: U64,
    payload_crc: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<FrameHeader>() == HEADER);

/// A checked frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// What the frame is.
    pub kind: FrameKind,
    /// [`FLAG_REPLY_NOW`], [`FLAG_ACK_RECEIVED`], [`FLAG_ACK_APPLIED`].
    pub flags: u8,
    /// Bytes of payload that follow.
    pub len: usize,
    /// A number whose meaning depends on the kind; 0 where it has none.
    pub arg: u64,
    payload_crc: u32,
}

/// Why bytes are not a frame. The connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The header's CRC does not match.
    #[error("frame header CRC is {stored:08x}, its bytes give {computed:08x}")]
    HeaderCrc {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A kind this build does not know.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// A payload above its kind's cap.
    #[error("a {kind:?} frame of {len} bytes is over its cap of {cap}")]
    TooLarge {
        /// What the frame is.
        kind: FrameKind,
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// The payload's CRC does not match.
    #[error("{kind:?} payload CRC is {stored:08x}, its bytes give {computed:08x}")]
    PayloadCrc {
        /// What the frame is.
        kind: FrameKind,
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A payload of another size than its kind has.
    #[error("a {kind:?} payload of {len} bytes is not whole")]
    Size {
        /// What the frame is.
        kind: FrameKind,
        /// Bytes it has.
        len: usize,
    },
    /// A field is outside its bounds, although the CRC matches.
    #[error("field {field} of a {kind:?} frame is outside its bounds")]
    Field {
        /// What the frame is.
        kind: FrameKind,
        /// Which field.
        field: &'static str,
    },
    /// The connection did not begin with [`PREAMBLE`].
    #[error("the peer does not speak Towline's protocol (it sent {0:02x?})")]
    Preamble([u8; 8]),
}

impl FrameHead {
    /// Checks a header: CRC, kind, reserved bits and the kind's cap, before any payload is read.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let header: &FrameHeader = zerocopy::transmute_ref!(bytes);
        let (stored, computed) = (header.header_crc.get(), crc32c::crc32c(&bytes[..HEADER - 4]));
        if stored != computed {
            return Err(FrameError::HeaderCrc { stored, computed });
        }
        let kind = FrameKind::from_number(header.kind).ok_or(FrameError::Kind(header.kind))?;
        let (len, cap) = (header.len.get() as usize, kind.payload_max());
        if len > cap {
            return Err(FrameError::TooLarge { kind, len, cap });
        }
        if header.reserved.get() != 0 || header.flags & !FLAGS != 0 {
            return Err(FrameError::Field { kind, field: "reserved or flags" });
        }
        Ok(Self { kind, flags: header.flags, len, arg: header.arg.get(), payload_crc: header.payload_crc.get() })
    }

    /// Checks a payload's length and CRC. A batch carries its own CRCs and is checked by
    /// [`batch::BatchView::check`] instead.
    ///
    /// # Errors
    /// What does not match.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() != self.len {
            return Err(FrameError::Size { kind: self.kind, len: payload.len() });
        }
        if self.kind == FrameKind::Batch {
            return Ok(());
        }
        let (stored, computed) = (self.payload_crc, crc32c::crc32c(payload));
        if stored == computed { Ok(()) } else { Err(FrameError::PayloadCrc { kind: self.kind, stored, computed }) }
    }
}

/// The header for a payload in one piece. A [`FrameKind::Batch`] payload's CRC is left to the batch.
///
/// # Panics
/// If the payload is over its kind's cap.
#[must_use]
pub fn header(kind: FrameKind, flags: u8, arg: u64, payload: &[u8]) -> [u8; HEADER] {
    let crc = if kind == FrameKind::Batch { 0 } else { crc32c::crc32c(payload) };
    header_with_crc(kind, flags, arg, payload.len(), crc)
}

/// The header for a batch of `len` bytes.
///
/// # Panics
/// If `len` is over the cap.
#[must_use]
pub fn batch_header(flags: u8, commit: crate::Lsn, len: usize) -> [u8; HEADER] {
    header_with_crc(FrameKind::Batch, flags, commit.0, len, 0)
}

/// The header for a payload in several pieces whose CRC the caller has computed over all of them.
///
/// # Panics
/// If `len` is over the kind's cap.
#[must_use]
pub fn header_with_crc(kind: FrameKind, flags: u8, arg: u64, len: usize, payload_crc: u32) -> [u8; HEADER] {
    assert!(len <= kind.payload_max(), "a {kind:?} frame of {len} bytes is over its cap");
    let mut header = FrameHeader {
        len: U32::new(len as u32),
        kind: kind as u8,
        flags,
        reserved: U16::ZERO,
        arg: U64::new(arg),
        payload_crc: U32::new(payload_crc),
        header_crc: U32::ZERO,
    };
    header.header_crc = U32::new(crc32c::crc32c(&header.as_bytes()[..HEADER - 4]));
    zerocopy::transmute!(header)
}
