//! The slots in a superblock: what a primary remembers of its replicas.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SLOT;
use crate::Lsn;
use crate::handshake::NodeName;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotBytes {
    name: NodeName,
    restart_lsn: U64,
    kind: u8,
    lost: u8,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<SlotBytes>() == SLOT);

/// Why there is a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotKind {
    /// Its replica is configured, and counts.
    Configured = 1,
    /// It was made on request: its replica counts for no commit.
    Made = 2,
}

/// Why a slot is valid no more. The numbers are those of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum SlotLoss {
    /// Its replica was further behind than the log that may be kept.
    RetentionCap = 1,
    /// It had no link for too long.
    Idle = 2,
    /// It was removed.
    Removed = 3,
    /// Its replica held other bytes at the same term and LSN.
    Diverged = 4,
}

impl SlotLoss {
    /// Every cause, in order of their numbers.
    pub const ALL: [Self; 4] = [Self::RetentionCap, Self::Idle, Self::Removed, Self::Diverged];

    /// Its name in logs, in the status, and in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RetentionCap => "retention cap",
            Self::Idle => "idle",
            Self::Removed => "removed",
            Self::Diverged => "diverged",
        }
    }
}

/// What a primary remembers of one replica across a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotEntry {
    /// The replica.
    pub name: NodeName,
    /// The log from here on may be needed: at or below what replica and primary have on their devices.
    pub restart_lsn: Lsn,
    /// Why there is a slot.
    pub kind: SlotKind,
    /// Why it is valid no more, if so.
    pub lost: Option<SlotLoss>,
}

impl SlotEntry {
    /// Checks one slot by itself; says which field is bad.
    pub(super) fn check(bytes: &[u8]) -> Result<Self, &'static str> {
        let Ok(b) = SlotBytes::ref_from_bytes(bytes) else { return Err("slots") };
        let kind = match b.kind {
            1 => SlotKind::Configured,
            2 => SlotKind::Made,
            _ => return Err("slot kind"),
        };
        let lost = match b.lost {
            0 => None,
            n => Some(*SlotLoss::ALL.get(usize::from(n) - 1).ok_or("slot lost")?),
        };
        let restart_lsn = Lsn(b.restart_lsn.get());
        if b.name == NodeName::NONE || !b.name.is_well_formed() {
            return Err("slot name");
        }
        if b.reserved != [0; 6] {
            return Err("reserved");
        }
        if !restart_lsn.is_block_aligned() {
            return Err("slot restart_lsn");
        }
        Ok(Self { name: b.name, restart_lsn, kind, lost })
    }

    pub(super) fn write(&self, out: &mut [u8]) {
        let bytes = SlotBytes {
            name: self.name,
            restart_lsn: U64::new(self.restart_lsn.0),
            kind: self.kind as u8,
            lost: self.lost.map_or(0, |lost| lost as u8),
            reserved: [0; 6],
        };
        out.copy_from_slice(bytes.as_bytes());
    }
}

/// The slots of a superblock as they lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsBytes<'a>(pub(super) &'a [u8]);

impl SlotsBytes<'_> {
    /// The slots.
    pub fn iter(&self) -> impl Iterator<Item = SlotEntry> + '_ {
        self.0.chunks_exact(SLOT).filter_map(|bytes| SlotEntry::check(bytes).ok())
    }
}
