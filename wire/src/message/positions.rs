//! What the two ends of a replica's link tell each other of where they stand.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::payload;
use crate::frame::{FrameError, FrameKind};
use crate::{Lsn, Seq, Term};

/// Bytes of an ack.
pub const ACK: usize = 40;
/// Bytes of a heartbeat.
pub const HEARTBEAT: usize = 40;

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
