//! What a commit waits for, as it crosses the network.

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
    pub(crate) const fn to_bytes(self) -> [u8; 4] {
        match self {
            Self::Default => [0, 0, 0, 0],
            Self::Local => [1, 0, 0, 0],
            Self::AckN(n, level) => [2, n, level as u8, 0],
            Self::All(level) => [3, 0, level as u8, 0],
            Self::Majority(level) => [4, 0, level as u8, 0],
        }
    }

    pub(crate) const fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
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
