//! Hello and welcome: who connects, to which shard, with which log; and what the node answers.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{FrameError, FrameKind};
use crate::superblock::Base;
use crate::{Chain, Lsn, PROTOCOL_VERSION, Seq, ShardId, SystemId, Term};

/// Bytes of a hello.
pub const HELLO: usize = 144;
/// Bytes of a welcome.
pub const WELCOME: usize = 112;
/// The longest node name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Feature bit: a replica takes batches that are compressed with LZ4; a primary sends them.
pub const FEATURE_LZ4: u64 = 1;
/// Feature bit of a replica's hello: where its log ends before the oldest batch that is kept, it would
/// begin there, and wants to be told what came before ([`Verdict::Begin`]).
pub const FEATURE_BEGIN: u64 = 2;
/// Feature bit of a replica's hello: where its log ends before the oldest batch that is kept, its handler
/// would take a snapshot of the primary's state ([`Verdict::Snapshot`]).
pub const FEATURE_SNAPSHOT: u64 = 4;
/// No feature. Unknown bits are ignored by both sides.
pub const FEATURES: u64 = 0;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// A replica that wants a shard's log and acknowledges it.
    Replica = 1,
    /// A client that appends, tails, or asks for the status.
    Client = 2,
}

/// A node's name: 1 to 63 of `[a-z0-9_-]`, zero-padded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NodeName([u8; NAME_BYTES_MAX + 1]);

impl NodeName {
    /// No name: what a client says.
    pub const NONE: Self = Self([0; NAME_BYTES_MAX + 1]);

    /// A name, if it is one: 1 to 63 of `[a-z0-9_-]`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let ok = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(ok) {
            return None;
        }
        let mut bytes = [0; NAME_BYTES_MAX + 1];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// The name, or an empty string for [`NodeName::NONE`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(0);
        core::str::from_utf8(&self.0[..len]).unwrap_or("")
    }

    /// Whether the bytes are [`NodeName::NONE`] or what [`NodeName::new`] would make.
    pub(crate) fn is_well_formed(&self) -> bool {
        *self == Self::NONE || Self::new(self.as_str()).is_some_and(|n| n == *self)
    }
}

impl core::fmt::Display for NodeName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}
impl core::fmt::Debug for NodeName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "NodeName({self})")
    }
}

/// The first frame of the connecting side, as it crosses the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HelloBytes {
    protocol: U16,
    role: u8,
    reserved: [u8; 1],
    shard: U32,
    features: U64,
    system: [u8; 16],
    term: U64,
    last_term: U64,
    end_lsn: U64,
    chain: U64,
    commit_lsn: U64,
    process: U64,
    name: NodeName,
}

const _: () = assert!(size_of::<HelloBytes>() == HELLO);

/// What the connecting side says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version it speaks.
    pub protocol: u16,
    /// Who it is.
    pub role: Role,
    /// The shard it wants.
    pub shard: ShardId,
    /// Feature bits it understands.
    pub features: u64,
    /// Its system, or [`SystemId::NONE`] if it belongs to none yet.
    pub system: SystemId,
    /// The highest term it has promised to follow.
    pub term: Term,
    /// The term of its last batch; zero if its log is empty.
    pub last_term: Term,
    /// Where its log ends.
    pub end_lsn: Lsn,
    /// The chain up to there.
    pub chain: Chain,
    /// What it knows to be committed: it will not cut below this.
    pub commit_lsn: Lsn,
    /// A number that the replica's process drew when it started: a link with the same one replaces
    /// the one before. 0 is nobody's.
    pub process: u64,
    /// A replica's configured name.
    pub name: NodeName,
}

impl Hello {
    /// A client's hello: it holds no log.
    #[must_use]
    pub const fn client(shard: ShardId) -> Self {
        Self {
            protocol: PROTOCOL_VERSION,
            role: Role::Client,
            shard,
            features: FEATURES,
            system: SystemId::NONE,
            term: Term::ZERO,
            last_term: Term::ZERO,
            end_lsn: Lsn::ZERO,
            chain: Chain::GENESIS,
            commit_lsn: Lsn::ZERO,
            process: 0,
            name: NodeName::NONE,
        }
    }

    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HELLO] {
        zerocopy::transmute!(HelloBytes {
            protocol: U16::new(self.protocol),
            role: self.role as u8,
            reserved: [0],
            shard: U32::new(self.shard.0),
            features: U64::new(self.features),
            system: self.system.0,
            term: U64::new(self.term.0),
            last_term: U64::new(self.last_term.0),
            end_lsn: U64::new(self.end_lsn.0),
            chain: U64::new(self.chain.0),
            commit_lsn: U64::new(self.commit_lsn.0),
            process: U64::new(self.process),
            name: self.name,
        })
    }

    /// Checks a payload that already passed its frame's CRC. A protocol version other than this
    /// build's is not an error here: the answer to it is a typed refusal.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::Hello;
        let Ok(b) = HelloBytes::ref_from_bytes(payload) else {
            return Err(FrameError::Size { kind, len: payload.len() });
        };
        let bad = |field| Err(FrameError::Field { kind, field });
        let role = match b.role {
            1 => Role::Replica,
            2 => Role::Client,
            _ => return bad("role"),
        };
        if b.reserved != [0] {
            return bad("reserved");
        }
        if !b.name.is_well_formed() || (role == Role::Replica && b.name == NodeName::NONE) {
            return bad("name");
        }
        let end_lsn = Lsn(b.end_lsn.get());
        if !end_lsn.is_block_aligned() {
            return bad("end_lsn");
        }
        if b.last_term.get() > b.term.get() {
            return bad("last_term");
        }
        Ok(Self {
            protocol: b.protocol.get(),
            role,
            shard: ShardId(b.shard.get()),
            features: b.features.get(),
            system: SystemId(b.system),
            term: Term(b.term.get()),
            last_term: Term(b.last_term.get()),
            end_lsn,
            chain: Chain(b.chain.get()),
            commit_lsn: Lsn(b.commit_lsn.get()),
            process: b.process.get(),
            name: b.name,
        })
    }
}

/// What the node decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The log follows from `from`, which is the replica's own end.
    Stream {
        /// Where the first batch starts.
        from: Lsn,
    },
    /// The replica holds a tail that this history does not have: cut back to `to` and say hello
    /// again.
    Cut {
        /// Where the common history ends at the latest.
        to: Lsn,
    },
    /// The replica's position, or what both logs share, is older than the oldest batch kept here.
    NeedSnapshot {
        /// The oldest position kept.
        oldest: Lsn,
    },
    /// As [`Verdict::NeedSnapshot`], to a replica that would begin its log at the oldest batch: the log
    /// from there on is held for it. It sets its slice up and says hello again.
    Begin {
        /// The oldest position kept.
        at: Lsn,
        /// What came before.
        base: Base,
        /// The replica's log is a part of this one, as far as this one remembers.
        known: bool,
    },
    /// As [`Verdict::NeedSnapshot`], to a replica that would take a snapshot: the log from the oldest
    /// batch on is held for it. It sends a snapshot request on this connection.
    Snapshot {
        /// The oldest position kept.
        oldest: Lsn,
        /// The replica's log is a part of this one, as far as this one remembers.
        known: bool,
    },
    /// A client is welcome.
    Client,
    /// The connection is refused; an error frame with the text follows.
    Refused(Refusal),
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// Why a connection is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Refusal { $($(#[$doc])* $name = $number,)* }

        impl Refusal {
            /// Every cause, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The cause with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

refusals! {
    /// The protocol version is not spoken here.
    Protocol = 1;
    /// The peer belongs to another system.
    ForeignSystem = 2;
    /// There is no such shard.
    NoSuchShard = 3;
    /// The replica's name is not configured here.
    UnknownReplica = 4;
    /// This primary's term is older than the replica's: it has been deposed.
    StalePrimary = 5;
    /// The replica's position lies in the future of this history.
    Future = 6;
    /// Both hold other bytes at the same term and LSN.
    Diverged = 7;
    /// A limit on connections is reached, or the node cannot answer just now: try again later.
    Busy = 8;
    /// The node is stopping, or the shard has stopped after an I/O error.
    Stopping = 9;
    /// The node is not a primary, and what was asked needs one.
    NotPrimary = 10;
    /// Following would need to cut what is known to be committed.
    CutBelowCommit = 11;
    /// Another process serves this name, and lives.
    SlotInUse = 12;
    /// The replica's slot was lost: it fell further behind than the primary keeps log for it.
    SlotRetentionCap = 13;
    /// The replica's slot was lost: nobody used it for too long.
    SlotIdle = 14;
    /// The replica's slot was removed.
    SlotRemoved = 15;
    /// The replica's slot was lost: its log held other bytes at the same term and LSN.
    SlotDiverged = 16;
    /// The node is a replica that cannot tell yet: it has not followed its own upstream since it was
    /// started, or its log ends before the asking replica's. Try again later.
    Behind = 17;
    /// As many replicas feed each other in a row as may, or they do so in a circle.
    TooDeep = 18;
}

/// The answer to a hello, as it crosses the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WelcomeBytes {
    protocol: U16,
    verdict: u8,
    depth: u8,
    cause: U16,
    known: u8,
    reserved: [u8; 1],
    shard_count: U32,
    heartbeat_ms: U32,
    system: [u8; 16],
    features: U64,
    term: U64,
    at: U64,
    tail: U64,
    commit_lsn: U64,
    segment_bytes: U64,
    time_us: U64,
    record_bytes_max: U64,
    base_chain: U64,
    base_seq: U64,
}

const _: () = assert!(size_of::<WelcomeBytes>() == WELCOME);

const NO_BASE: Base = Base { chain: Chain(0), seq: Seq(0) };

/// The answer to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version the node speaks.
    pub protocol: u16,
    /// What it decided.
    pub verdict: Verdict,
    /// Links between this node and the primary: 0 on the primary itself.
    pub depth: u8,
    /// Shards of this system.
    pub shard_count: u32,
    /// Milliseconds between heartbeats: three missed ones end the connection.
    pub heartbeat_ms: u32,
    /// The system.
    pub system: SystemId,
    /// Feature bits that both sides understand.
    pub features: u64,
    /// The node's term.
    pub term: Term,
    /// Where its log ends; from a replica that feeds others, where the primary's does, as heard last.
    pub tail: Lsn,
    /// What is committed.
    pub commit_lsn: Lsn,
    /// The size of a segment, the same on every node of a system.
    pub segment_bytes: u64,
    /// The node's clock, in microseconds since 1970; from a replica that feeds others, the primary's, as
    /// heard last.
    pub time_us: u64,
    /// The largest record that is accepted, in bytes.
    pub record_bytes_max: u64,
}

impl Welcome {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; WELCOME] {
        let (verdict, cause, at) = match self.verdict {
            Verdict::Stream { from } => (1, 0, from.0),
            Verdict::Cut { to } => (2, 0, to.0),
            Verdict::NeedSnapshot { oldest } => (3, 0, oldest.0),
            Verdict::Client => (4, 0, 0),
            Verdict::Refused(cause) => (5, cause as u16, 0),
            Verdict::Begin { at, .. } => (6, 0, at.0),
            Verdict::Snapshot { oldest, .. } => (7, 0, oldest.0),
        };
        let (base, known) = match self.verdict {
            Verdict::Begin { base, known, .. } => (base, known),
            Verdict::Snapshot { known, .. } => (NO_BASE, known),
            _ => (NO_BASE, false),
        };
        zerocopy::transmute!(WelcomeBytes {
            protocol: U16::new(self.protocol),
            verdict,
            depth: self.depth,
            cause: U16::new(cause),
            known: known.into(),
            reserved: [0],
            shard_count: U32::new(self.shard_count),
            heartbeat_ms: U32::new(self.heartbeat_ms),
            system: self.system.0,
            features: U64::new(self.features),
            term: U64::new(self.term.0),
            at: U64::new(at),
            tail: U64::new(self.tail.0),
            commit_lsn: U64::new(self.commit_lsn.0),
            segment_bytes: U64::new(self.segment_bytes),
            time_us: U64::new(self.time_us),
            record_bytes_max: U64::new(self.record_bytes_max),
            base_chain: U64::new(base.chain.0),
            base_seq: U64::new(base.seq.0),
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::Welcome;
        let Ok(b) = WelcomeBytes::ref_from_bytes(payload) else {
            return Err(FrameError::Size { kind, len: payload.len() });
        };
        let bad = |field| Err(FrameError::Field { kind, field });
        let base = Base { chain: Chain(b.base_chain.get()), seq: Seq(b.base_seq.get()) };
        if b.reserved != [0] {
            return bad("reserved");
        }
        let at = Lsn(b.at.get());
        if !at.is_block_aligned() {
            return bad("at");
        }
        let verdict = match (b.verdict, b.cause.get()) {
            (1, 0) => Verdict::Stream { from: at },
            (2, 0) => Verdict::Cut { to: at },
            (3, 0) => Verdict::NeedSnapshot { oldest: at },
            (4, 0) if at == Lsn::ZERO => Verdict::Client,
            (5, cause) if at == Lsn::ZERO => match Refusal::from_number(cause) {
                Some(cause) => Verdict::Refused(cause),
                None => return bad("cause"),
            },
            (6, 0) if at > Lsn::ZERO && b.known < 2 => Verdict::Begin { at, base, known: b.known == 1 },
            (7, 0) if at > Lsn::ZERO && b.known < 2 => Verdict::Snapshot { oldest: at, known: b.known == 1 },
            _ => return bad("verdict"),
        };
        let (has_base, has_known) = match verdict {
            Verdict::Begin { .. } => (true, true),
            Verdict::Snapshot { .. } => (false, true),
            _ => (false, false),
        };
        if (base != NO_BASE && !has_base) || (b.known != 0 && !has_known) {
            return bad("reserved");
        }
        if b.shard_count.get() == 0 {
            return bad("shard_count");
        }
        let segment_bytes = b.segment_bytes.get();
        if segment_bytes == 0 || !segment_bytes.is_multiple_of(crate::BLOCK as u64) {
            return bad("segment_bytes");
        }
        Ok(Self {
            protocol: b.protocol.get(),
            verdict,
            depth: b.depth,
            shard_count: b.shard_count.get(),
            heartbeat_ms: b.heartbeat_ms.get(),
            system: SystemId(b.system),
            features: b.features.get(),
            term: Term(b.term.get()),
            tail: Lsn(b.tail.get()),
            commit_lsn: Lsn(b.commit_lsn.get()),
            segment_bytes,
            time_us: b.time_us.get(),
            record_bytes_max: b.record_bytes_max.get(),
        })
    }
}
