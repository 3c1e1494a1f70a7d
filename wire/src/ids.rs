//! The newtypes of every position and identity, so that none can be mistaken for another.

use core::fmt;

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

position! {
    /// Log sequence number: a byte position in one shard's log. A batch starts on a block boundary,
    /// so an LSN also is the position in the segment files.
    Lsn
}
position! {
    /// The number of a primary's reign: durable, bumped at every promotion and every primary start.
    Term
}
position! {
    /// The number of a record in its shard, counted from 0 without gaps.
    Seq
}

impl Lsn {
    /// The start of every log.
    pub const ZERO: Self = Self(0);

    /// Whether a batch may start here.
    #[must_use]
    pub const fn is_block_aligned(self) -> bool {
        self.0.is_multiple_of(crate::BLOCK as u64)
    }

    /// The position `bytes` further on, or `None` past the end of what a `u64` holds.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(v) => Some(Self(v)),
            None => None,
        }
    }

    /// Bytes from `earlier` to here; 0 if `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Term {
    /// Before any primary.
    pub const ZERO: Self = Self(0);
}

/// Number of a shard: one ordered log plus everything that serves it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Random 128-bit identity of a cluster's log; a node never accepts bytes from another system.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SystemId(pub [u8; 16]);

impl SystemId {
    /// What a node that belongs to no system yet says of itself.
    pub const NONE: Self = Self([0; 16]);

    /// Whether this is [`SystemId::NONE`].
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemId({self})")
    }
}

/// One number for a whole history: each batch's header carries the chain of all batches before it,
/// so two nodes that hold the same chain at the same LSN hold the same bytes up to it.
///
/// A batch's header CRC covers the chain before it and its body CRC, so mixing those two CRCs into
/// the running value links every byte. The mixing is `SplitMix64`'s finaliser (Steele, Lea and
/// Flood, OOPSLA 2014): a bijection, so one different link can never be cancelled by itself. It
/// detects divergence by accident; it is no defence against a forger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Chain(pub u64);

impl Chain {
    /// The chain at the start of every log.
    pub const GENESIS: Self = Self(0);

    /// The chain after a batch with these CRCs.
    #[must_use]
    pub const fn after(self, header_crc: u32, body_crc: u32) -> Self {
        let link = ((header_crc as u64) << 32) | body_crc as u64;
        let mut z = (self.0 ^ link).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(z ^ (z >> 31))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}
