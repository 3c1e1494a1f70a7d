//! The payloads of the frames that follow a handshake.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{FrameError, FrameKind, TEXT_BYTES_MAX};
use crate::record::{self, Records};
use crate::{Lsn, Seq, Term};

/// Bytes of an ack.
pub const ACK: usize = 40;
/// Bytes of a heartbeat.
pub const HEARTBEAT: usize = 40;
/// Bytes in front of an append request's records.
pub const APPEND_HEAD: usize = 32;
/// Bytes of a commit reply.
pub const COMMITTED: usize = 48;
/// Bytes of a tail request.
pub const TAIL_REQUEST: usize = 16;
/// Bytes in front of an error's text.
pub const ERROR_HEAD: usize = 16;

/// What an acknowledgement vouches for. Ordered: each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AckLevel {
    /// The replica has checked the bytes and holds them in memory.
    Received = 1,
    /// They are on the replica's device.
    Flushed = 2,
    /// The replica's handler has returned for them.
    Applied = 3,
}

impl AckLevel {
    /// The level with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Received),
            2 => Some(Self::Flushed),
            3 => Some(Self::Applied),
            _ => None,
        }
    }
}

/// What a commit waits for, as it crosses the network: four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WirePolicy {
    /// What the shard is configured to wait for.
    Default,
    /// The primary's own device.
    Local,
    /// The primary and this many replicas.
    AckN(u8, AckLevel),
    /// The primary and every configured replica.
    All(AckLevel),
    /// The primary and more than half of the configured replicas.
    Majority(AckLevel),
}

impl WirePolicy {
    const fn to_bytes(self) -> [u8; 4] {
        match self {
            Self::Default => [0, 0, 0, 0],
            Self::Local => [1, 0, 0, 0],
            Self::AckN(n, level) => [2, n, level as u8, 0],
            Self::All(level) => [3, 0, level as u8, 0],
            Self::Majority(level) => [4, 0, level as u8, 0],
        }
    }

    const fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        let level = AckLevel::from_number(bytes[2]);
        match (bytes, level) {
            ([0, 0, 0, 0], _) => Some(Self::Default),
            ([1, 0, 0, 0], _) => Some(Self::Local),
            ([2, n, _, 0], Some(level)) if n > 0 => Some(Self::AckN(n, level)),
            ([3, 0, _, 0], Some(level)) => Some(Self::All(level)),
            ([4, 0, _, 0], Some(level)) => Some(Self::Majority(level)),
            _ => None,
        }
    }
}

macro_rules! payload {
    ($bytes:ident, $kind:expr, $payload:expr) => {
        match $bytes::ref_from_bytes($payload) {
            Ok(b) => b,
            Err(_) => return Err(FrameError::Size { kind: $kind, len: $payload.len() }),
        }
    };
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AckBytes {
    received: U64,
    flushed: U64,
    applied: U64,
    applied_seq: U64,
    echo_us: U64,
}
const _: () = assert!(size_of::<AckBytes>() == ACK);

/// A replica's positions. Each is the end of what the level holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ack {
    /// Checked and in memory up to here.
    pub received: Lsn,
    /// On the device up to here.
    pub flushed: Lsn,
    /// Applied up to here.
    pub applied: Lsn,
    /// Records applied.
    pub applied_seq: Seq,
    /// The time of the heartbeat that this answers, or 0: the round trip is measured by it.
    pub echo_us: u64,
}

impl Ack {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ACK] {
        zerocopy::transmute!(AckBytes {
            received: U64::new(self.received.0),
            flushed: U64::new(self.flushed.0),
            applied: U64::new(self.applied.0),
            applied_seq: U64::new(self.applied_seq.0),
            echo_us: U64::new(self.echo_us),
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// Positions out of order.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let b = payload!(AckBytes, FrameKind::Ack, payload);
        let ack = Self {
            received: Lsn(b.received.get()),
            flushed: Lsn(b.flushed.get()),
            applied: Lsn(b.applied.get()),
            applied_seq: Seq(b.applied_seq.get()),
            echo_us: b.echo_us.get(),
        };
        if ack.received >= ack.flushed && ack.flushed >= ack.applied {
            Ok(ack)
        } else {
            Err(FrameError::Field { kind: FrameKind::Ack, field: "received >= flushed >= applied" })
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeartbeatBytes {
    term: U64,
    tail: U64,
    tail_seq: U64,
    commit_lsn: U64,
    time_us: U64,
}
const _: () = assert!(size_of::<HeartbeatBytes>() == HEARTBEAT);

/// The primary's positions and time, sent when nothing else says that it lives or what is
/// committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The primary's term.
    pub term: Term,
    /// Where its log ends.
    pub tail: Lsn,
    /// Records up to there.
    pub tail_seq: Seq,
    /// What is committed.
    pub commit_lsn: Lsn,
    /// Its clock in microseconds since 1970.
    pub time_us: u64,
}

impl Heartbeat {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEARTBEAT] {
        zerocopy::transmute!(HeartbeatBytes {
            term: U64::new(self.term.0),
            tail: U64::new(self.tail.0),
            tail_seq: U64::new(self.tail_seq.0),
            commit_lsn: U64::new(self.commit_lsn.0),
            time_us: U64::new(self.time_us),
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// Positions out of order.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let b = payload!(HeartbeatBytes, FrameKind::Heartbeat, payload);
        let beat = Self {
            term: Term(b.term.get()),
            tail: Lsn(b.tail.get()),
            tail_seq: Seq(b.tail_seq.get()),
            commit_lsn: Lsn(b.commit_lsn.get()),
            time_us: b.time_us.get(),
        };
        if beat.commit_lsn <= beat.tail {
            Ok(beat)
        } else {
            Err(FrameError::Field { kind: FrameKind::Heartbeat, field: "commit_lsn <= tail" })
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AppendHeadBytes {
    request: U64,
    deadline_us: U64,
    record_count: U32,
    policy: [u8; 4],
    reserved: [u8; 8],
}
const _: () = assert!(size_of::<AppendHeadBytes>() == APPEND_HEAD);

/// What stands in front of a remote client's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendHead {
    /// The client's number for the request, returned with the outcome.
    pub request: u64,
    /// Microseconds after which the client wants an answer; 0 for the shard's default.
    pub deadline_us: u64,
    /// Records that follow; they are committed together, in one batch.
    pub record_count: u32,
    /// What the commit waits for.
    pub policy: WirePolicy,
}

impl AppendHead {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; APPEND_HEAD] {
        zerocopy::transmute!(AppendHeadBytes {
            request: U64::new(self.request),
            deadline_us: U64::new(self.deadline_us),
            record_count: U32::new(self.record_count),
            policy: self.policy.to_bytes(),
            reserved: [0; 8],
        })
    }

    /// Checks a payload that already passed its frame's CRC, records included.
    ///
    /// # Errors
    /// The field that is outside its bounds, or records that do not add up.
    pub fn check(payload: &[u8]) -> Result<(Self, Records<'_>), FrameError> {
        let kind = FrameKind::Append;
        let Ok((b, body)) = AppendHeadBytes::ref_from_prefix(payload) else {
            return Err(FrameError::Size { kind, len: payload.len() });
        };
        let bad = |field| Err(FrameError::Field { kind, field });
        let Some(policy) = WirePolicy::from_bytes(b.policy) else { return bad("policy") };
        if b.reserved != [0; 8] {
            return bad("reserved");
        }
        let record_count = b.record_count.get();
        if record_count == 0 || record::check(body, record_count).is_err() {
            return bad("records");
        }
        let head = Self { request: b.request.get(), deadline_us: b.deadline_us.get(), record_count, policy };
        Ok((head, Records::new(body)))
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CommitStatus {
    /// The policy holds for it.
    Committed = 1,
    /// The deadline passed first. It may be durable here and may still be committed later.
    TimedOut = 2,
    /// This primary has been deposed; whether the record survives is the new primary's to say.
    Fenced = 3,
    /// The shard stopped; whether the record survives shows at the next start.
    Stopped = 4,
    /// It was refused before anything was written: too few replicas are connected.
    TooFewReplicas = 5,
    /// It was refused before anything was written: the policy asks for more replicas than are
    /// configured.
    PolicyImpossible = 6,
    /// It was refused before anything was written: a record is larger than the configured limit.
    RecordTooLarge = 7,
    /// It was refused before anything was written: until its deadline there was no room for it,
    /// because the disk is full or the device does not keep up.
    NoRoom = 8,
}

impl CommitStatus {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Committed),
            2 => Some(Self::TimedOut),
            3 => Some(Self::Fenced),
            4 => Some(Self::Stopped),
            5 => Some(Self::TooFewReplicas),
            6 => Some(Self::PolicyImpossible),
            7 => Some(Self::RecordTooLarge),
            8 => Some(Self::NoRoom),
            _ => None,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CommittedBytes {
    request: U64,
    term: U64,
    lsn: U64,
    first_seq: U64,
    record_count: U32,
    status: u8,
    acks: u8,
    wanted: u8,
    durable_here: u8,
    reserved: [u8; 8],
}
const _: () = assert!(size_of::<CommittedBytes>() == COMMITTED);

/// The outcome of one append request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The client's number for the request.
    pub request: u64,
    /// The bookmark's term.
    pub term: Term,
    /// The bookmark's LSN: the end of the batch that holds the records; 0 where nothing was written.
    pub lsn: Lsn,
    /// The number of the first record.
    pub first_seq: Seq,
    /// Records.
    pub record_count: u32,
    /// What became of them.
    pub status: CommitStatus,
    /// Replicas that had acknowledged at the policy's level.
    pub acks: u8,
    /// Replicas that the policy wants.
    pub wanted: u8,
    /// Whether the primary's own copy is on its device.
    pub durable_here: bool,
}

impl Committed {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COMMITTED] {
        zerocopy::transmute!(CommittedBytes {
            request: U64::new(self.request),
            term: U64::new(self.term.0),
            lsn: U64::new(self.lsn.0),
            first_seq: U64::new(self.first_seq.0),
            record_count: U32::new(self.record_count),
            status: self.status as u8,
            acks: self.acks,
            wanted: self.wanted,
            durable_here: u8::from(self.durable_here),
            reserved: [0; 8],
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::Committed;
        let b = payload!(CommittedBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        let Some(status) = CommitStatus::from_number(b.status) else { return bad("status") };
        if b.reserved != [0; 8] || b.durable_here > 1 {
            return bad("reserved");
        }
        Ok(Self {
            request: b.request.get(),
            term: Term(b.term.get()),
            lsn: Lsn(b.lsn.get()),
            first_seq: Seq(b.first_seq.get()),
            record_count: b.record_count.get(),
            status,
            acks: b.acks,
            wanted: b.wanted,
            durable_here: b.durable_here == 1,
        })
    }
}

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
}
