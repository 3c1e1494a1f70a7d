//! A remote client's append, and what became of it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{WirePolicy, payload};
use crate::frame::{FrameError, FrameKind};
use crate::record::{self, Records};
use crate::{Lsn, Seq, Term};

/// Bytes in front of an append request's records.
pub const APPEND_HEAD: usize = 32;
/// Bytes of a commit reply.
pub const COMMITTED: usize = 48;

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
    /// It was refused before anything was written: fewer replicas have acknowledged lately than
    /// `min-replicas` asks for; `acks` have, `wanted` are asked for.
    MinReplicas = 9,
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
            9 => Some(Self::MinReplicas),
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
