//! How a connection ends: an error that says why, or a goodbye.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{FrameError, FrameKind, TEXT_BYTES_MAX};

/// Bytes in front of an error's text.
pub const ERROR_HEAD: usize = 16;

/// Why an error frame was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The connection was refused; the welcome says why, this says it in words.
    Refused = 1,
    /// A frame could not be understood. The connection is closed.
    BadFrame = 2,
    /// A frame came where the protocol does not allow it. The connection is closed.
    OutOfPlace = 3,
    /// A batch did not follow the one before it, or failed its checks. The connection is closed.
    BadBatch = 4,
    /// An ack that cannot be true. The connection is closed.
    BadAck = 5,
    /// The position asked for is older than the oldest one kept; `arg` is that one.
    TooOld = 6,
    /// The position asked for lies behind the end, or between two batches; `arg` is the end.
    NoSuchPosition = 7,
    /// The shard has stopped. Try again when the node has been started anew.
    Stopped = 8,
    /// The peer was silent for too long.
    Idle = 9,
    /// The slot cannot be made or removed; the text says why.
    SlotRefused = 10,
    /// The settings cannot be changed so; the text says why, `arg` is their version.
    ControlRefused = 11,
    /// A part of a snapshot that cannot be right. The connection is closed.
    BadSnapshot = 12,
}

impl ErrorCode {
    /// The code with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Refused),
            2 => Some(Self::BadFrame),
            3 => Some(Self::OutOfPlace),
            4 => Some(Self::BadBatch),
            5 => Some(Self::BadAck),
            6 => Some(Self::TooOld),
            7 => Some(Self::NoSuchPosition),
            8 => Some(Self::Stopped),
            9 => Some(Self::Idle),
            10 => Some(Self::SlotRefused),
            11 => Some(Self::ControlRefused),
            12 => Some(Self::BadSnapshot),
            _ => None,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ErrorHeadBytes {
    code: U16,
    text_len: U16,
    reserved: [u8; 4],
    arg: U64,
}
const _: () = assert!(size_of::<ErrorHeadBytes>() == ERROR_HEAD);

/// What stands in front of an error's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorHead {
    /// Why.
    pub code: ErrorCode,
    /// A number that belongs to the code, or 0.
    pub arg: u64,
}

impl ErrorHead {
    /// The head for `text`, and as much of the text as an error may carry.
    #[must_use]
    pub fn to_bytes<'a>(&self, text: &'a str) -> ([u8; ERROR_HEAD], &'a str) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let head = ErrorHeadBytes {
            code: U16::new(self.code as u16),
            text_len: U16::new(text.len() as u16),
            reserved: [0; 4],
            arg: U64::new(self.arg),
        };
        (zerocopy::transmute!(head), text)
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<(Self, &str), FrameError> {
        let kind = FrameKind::Error;
        let Ok((b, text)) = ErrorHeadBytes::ref_from_prefix(payload) else {
            return Err(FrameError::Size { kind, len: payload.len() });
        };
        let bad = |field| Err(FrameError::Field { kind, field });
        let Some(code) = ErrorCode::from_number(b.code.get()) else { return bad("code") };
        if b.reserved != [0; 4] {
            return bad("reserved");
        }
        match core::str::from_utf8(text) {
            Ok(text) if text.len() == b.text_len.get() as usize => Ok((Self { code, arg: b.arg.get() }, text)),
            _ => bad("text"),
        }
    }
}

/// Why a connection is closed on purpose: the `arg` of a goodbye frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
#[non_exhaustive]
pub enum Goodbye {
    /// The node is being stopped.
    Stopping = 1,
    /// The sender has all it wanted.
    Done = 2,
    /// A newer connection of the same replica takes over.
    Replaced = 3,
    /// The sender's log or term has changed: say hello again.
    Again = 4,
}
