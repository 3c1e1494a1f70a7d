//! The superblock: what one shard on one node is. Kept twice (slot A, slot B) in one small file;
//! a writer always overwrites the older copy, a reader takes the newer one that passes its CRC, so
//! a torn write leaves the copy before it.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handshake::NodeName;
use crate::{BLOCK, Chain, Lsn, Seq, ShardId, SystemId, Term};
use settings::{LinksBytes, SettingsBytes};
pub use settings::{LinksEntry, SettingsEntry};
pub use slots::{SlotEntry, SlotKind, SlotLoss, SlotsBytes};

mod settings;
mod slots;

/// The version of the superblock's format; batches have their own.
pub const VERSION: u16 = 4;
/// The oldest version that is read: one without settings. Version 3 knew no settings of links.
pub const VERSION_READ_MIN: u16 = 2;
/// Bytes of one copy.
pub const COPY: usize = 8 * BLOCK;
/// Bytes of the file: two copies.
pub const FILE: usize = 2 * COPY;
/// Bytes in front of the history.
pub const HEAD: usize = 256;
/// The first eight bytes of each copy.
pub const MAGIC: [u8; 8] = *b"TOWLINES";
/// Most entries of a history. A primary that is started more often than this without trimming its
/// log forgets where the oldest terms began; a replica that old goes on if its log is a part of the
/// primary's, and needs a snapshot if it is not.
pub const HISTORY_MAX: usize = 512;

/// Most slots.
pub const SLOTS_MAX: usize = 192;
/// Where the slots begin, behind the history.
pub const SLOTS_AT: usize = HEAD + HISTORY_MAX * ENTRY;
/// Bytes of a slot.
pub const SLOT: usize = 80;

const ENTRY: usize = 16;
const CRC_AT: usize = COPY - 4;
const _: () = assert!(SLOTS_AT + SLOTS_MAX * SLOT <= CRC_AT);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeadBytes {
    magic: [u8; 8],
    version: U16,
    reserved: [u8; 2],
    shard: U32,
    generation: U64,
    system: [u8; 16],
    shard_count: U32,
    history_len: U32,
    term: U64,
    own_term: U64,
    segment_bytes: U64,
    oldest_lsn: U64,
    floor_lsn: U64,
    commit_lsn: U64,
    in_flight_bytes_max: U64,
    name: NodeName,
    slots_len: U32,
    settings: SettingsBytes,
    begun: u8,
    base_chain: U64,
    base_seq: U64,
    links: LinksBytes,
    reserved2: [u8; 2],
}
const _: () = assert!(size_of::<HeadBytes>() == HEAD);

/// What came before a log that did not begin at LSN 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain up to there.
    pub chain: Chain,
    /// The number of the first record.
    pub seq: Seq,
}

/// What one shard on one node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock<H, S> {
    /// Counts the writes of this superblock; the newer copy wins.
    pub generation: u64,
    /// The cluster's log.
    pub system: SystemId,
    /// The shard.
    pub shard: ShardId,
    /// Shards of the system.
    pub shard_count: u32,
    /// The highest term this node has promised to follow, or reigns in.
    pub term: Term,
    /// The last term in which this node itself was the primary; zero if never.
    pub own_term: Term,
    /// The size of a segment file.
    pub segment_bytes: u64,
    /// Where the log that is kept begins: a batch boundary.
    pub oldest_lsn: Lsn,
    /// Set if the log was begun there, as others begin at LSN 0, so that it may be empty. Not set where
    /// a longer log was let go of up to there.
    pub base: Option<Base>,
    /// Everything below was on the device when this was written: a bad batch below it is damage.
    pub floor_lsn: Lsn,
    /// What was known to be committed when this was written: a lower bound.
    pub commit_lsn: Lsn,
    /// The most bytes that may be in flight to the device at once: a tear reaches no further.
    pub in_flight_bytes_max: u64,
    /// The node's name, if it is a replica.
    pub name: NodeName,
    /// Where each term began, oldest first: `(term, first LSN)`.
    pub history: H,
    /// On a primary: its slots. No name is there twice.
    pub slots: S,
    /// On a primary: what its operator has set, if this version of it knows.
    pub settings: Option<SettingsEntry>,
}

/// Why bytes are not a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Not [`COPY`] bytes.
    #[error("a superblock has {COPY} bytes, {0} are there")]
    Size(usize),
    /// Not a superblock at all.
    #[error("no superblock starts here")]
    Magic,
    /// A newer or unknown format.
    #[error("superblock has format version {0}, this build reads {VERSION_READ_MIN} to {VERSION}")]
    Version(u16),
    /// The CRC does not match.
    #[error("superblock CRC is {stored:08x}, its bytes give {computed:08x}")]
    Crc {
        /// What it says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A field is outside its bounds, although the CRC matches.
    #[error("superblock field {0} is outside its bounds")]
    Field(&'static str),
}

/// The history of a superblock as it lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBytes<'a>(&'a [u8]);

impl HistoryBytes<'_> {
    /// `(term, first LSN)`, oldest first; both ascend strictly.
    pub fn iter(&self) -> impl Iterator<Item = (Term, Lsn)> + '_ {
        self.0.chunks_exact(ENTRY).filter_map(|e| {
            let (term, rest) = U64::ref_from_prefix(e).ok()?;
            let (lsn, _) = U64::ref_from_prefix(rest).ok()?;
            Some((Term(term.get()), Lsn(lsn.get())))
        })
    }
}

impl<H, S> Superblock<H, S> {
    /// Up to where there must be segments. Where a log was begun, and nothing of it was known to be on the
    /// device, there may be none.
    #[must_use]
    pub fn needed(&self) -> Lsn {
        let needed = self.floor_lsn.max(self.commit_lsn);
        if self.base.is_some() && needed == self.oldest_lsn { Lsn::ZERO } else { needed }
    }
}

impl<H, S> Superblock<H, S>
where
    H: AsRef<[(Term, Lsn)]>,
    S: AsRef<[SlotEntry]>,
{
    /// Writes one copy.
    ///
    /// # Panics
    /// If `out` is not [`COPY`] bytes, the history is longer than [`HISTORY_MAX`], or there are more
    /// slots than [`SLOTS_MAX`].
    pub fn encode(&self, out: &mut [u8]) {
        assert_eq!(out.len(), COPY);
        let (history, slots) = (self.history.as_ref(), self.slots.as_ref());
        assert!(history.len() <= HISTORY_MAX && slots.len() <= SLOTS_MAX);
        out.fill(0);
        let head = HeadBytes {
            magic: MAGIC,
            version: U16::new(VERSION),
            reserved: [0; 2],
            shard: U32::new(self.shard.0),
            generation: U64::new(self.generation),
            system: self.system.0,
            shard_count: U32::new(self.shard_count),
            history_len: U32::new(history.len() as u32),
            term: U64::new(self.term.0),
            own_term: U64::new(self.own_term.0),
            segment_bytes: U64::new(self.segment_bytes),
            oldest_lsn: U64::new(self.oldest_lsn.0),
            floor_lsn: U64::new(self.floor_lsn.0),
            commit_lsn: U64::new(self.commit_lsn.0),
            in_flight_bytes_max: U64::new(self.in_flight_bytes_max),
            name: self.name,
            slots_len: U32::new(slots.len() as u32),
            settings: self.settings.map_or(SettingsBytes::new_zeroed(), SettingsEntry::to_bytes),
            begun: self.base.is_some().into(),
            base_chain: U64::new(self.base.map_or(0, |b| b.chain.0)),
            base_seq: U64::new(self.base.map_or(0, |b| b.seq.0)),
            links: self.settings.and_then(|s| s.links).map_or(LinksBytes::new_zeroed(), LinksEntry::to_bytes),
            reserved2: [0; 2],
        };
        out[..HEAD].copy_from_slice(head.as_bytes());
        for (entry, (term, lsn)) in out[HEAD..].chunks_exact_mut(ENTRY).zip(history) {
            entry[..8].copy_from_slice(&term.0.to_le_bytes());
            entry[8..].copy_from_slice(&lsn.0.to_le_bytes());
        }
        for (bytes, slot) in out[SLOTS_AT..].chunks_exact_mut(SLOT).zip(slots) {
            slot.write(bytes);
        }
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

impl<'a> Superblock<HistoryBytes<'a>, SlotsBytes<'a>> {
    /// The same with its history and slots in collections of the caller's, to outlive the bytes.
    #[must_use]
    pub fn collect<H, S>(&self) -> Superblock<H, S>
    where
        H: FromIterator<(Term, Lsn)>,
        S: FromIterator<SlotEntry>,
    {
        Superblock {
            generation: self.generation,
            system: self.system,
            shard: self.shard,
            shard_count: self.shard_count,
            term: self.term,
            own_term: self.own_term,
            segment_bytes: self.segment_bytes,
            oldest_lsn: self.oldest_lsn,
            base: self.base,
            floor_lsn: self.floor_lsn,
            commit_lsn: self.commit_lsn,
            in_flight_bytes_max: self.in_flight_bytes_max,
            name: self.name,
            history: self.history.iter().collect(),
            slots: self.slots.iter().collect(),
            settings: self.settings,
        }
    }

    /// Checks one copy.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(bytes: &'a [u8]) -> Result<Self, SuperblockError> {
        if bytes.len() != COPY {
            return Err(SuperblockError::Size(bytes.len()));
        }
        let Ok((b, _)) = HeadBytes::ref_from_prefix(bytes) else {
            return Err(SuperblockError::Size(bytes.len()));
        };
        if b.magic != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let computed = crc32c::crc32c(&bytes[..CRC_AT]);
        let stored = U32::ref_from_bytes(&bytes[CRC_AT..]).map_or(0, |c| c.get());
        if stored != computed {
            return Err(SuperblockError::Crc { stored, computed });
        }
        // After the CRC: a flipped bit in the version must not look like a newer format.
        if !(VERSION_READ_MIN..=VERSION).contains(&b.version.get()) {
            return Err(SuperblockError::Version(b.version.get()));
        }
        let bad = |field| Err(SuperblockError::Field(field));
        let history_len = b.history_len.get() as usize;
        if history_len > HISTORY_MAX {
            return bad("history_len");
        }
        let slots_len = b.slots_len.get() as usize;
        if slots_len > SLOTS_MAX {
            return bad("slots_len");
        }
        let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
        let (history, unused) = bytes[HEAD..SLOTS_AT].split_at(history_len * ENTRY);
        let (slots, unused2) = bytes[SLOTS_AT..CRC_AT].split_at(slots_len * SLOT);
        if b.reserved != [0; 2] || b.reserved2 != [0; 2] || !is_zero(unused) || !is_zero(unused2) {
            return bad("reserved");
        }
        let history = HistoryBytes(history);
        let ascends = history.iter().zip(history.iter().skip(1)).all(|(a, b)| a.0 < b.0 && a.1 < b.1);
        if !ascends || history.iter().any(|(term, lsn)| term > Term(b.term.get()) || !lsn.is_block_aligned()) {
            return bad("history");
        }
        let (oldest_lsn, floor_lsn) = (Lsn(b.oldest_lsn.get()), Lsn(b.floor_lsn.get()));
        if !oldest_lsn.is_block_aligned() || !floor_lsn.is_block_aligned() || oldest_lsn > floor_lsn {
            return bad("oldest_lsn or floor_lsn");
        }
        let base = Base { chain: Chain(b.base_chain.get()), seq: Seq(b.base_seq.get()) };
        let base = match b.begun {
            0 if base == (Base { chain: Chain(0), seq: Seq(0) }) => None,
            1 if oldest_lsn > Lsn::ZERO => Some(base),
            _ => return bad("begun"),
        };
        let segment_bytes = b.segment_bytes.get();
        if segment_bytes == 0 || !segment_bytes.is_multiple_of(BLOCK as u64) {
            return bad("segment_bytes");
        }
        if b.shard_count.get() == 0 || b.shard.get() >= b.shard_count.get() {
            return bad("shard or shard_count");
        }
        if b.own_term.get() > b.term.get() {
            return bad("own_term");
        }
        if !b.name.is_well_formed() {
            return bad("name");
        }
        let settings = SettingsEntry::check(&b.settings, &b.links).map_err(SuperblockError::Field)?;
        let newer = match b.version.get() {
            2 => settings.is_some() || base.is_some(),
            3 => settings.is_some_and(|s| s.links.is_some()),
            _ => false,
        };
        if newer {
            return bad("reserved");
        }
        for (n, bytes) in slots.chunks_exact(SLOT).enumerate() {
            let one = SlotEntry::check(bytes).map_err(SuperblockError::Field)?;
            let before = SlotsBytes(&slots[..n * SLOT]);
            if before.iter().any(|other| other.name == one.name) {
                return bad("slot name");
            }
            // Else the log would have been let go of although it was needed.
            if one.lost.is_none() && one.restart_lsn < oldest_lsn {
                return bad("slot restart_lsn");
            }
        }
        Ok(Self {
            generation: b.generation.get(),
            system: SystemId(b.system),
            shard: ShardId(b.shard.get()),
            shard_count: b.shard_count.get(),
            term: Term(b.term.get()),
            own_term: Term(b.own_term.get()),
            segment_bytes,
            oldest_lsn,
            base,
            floor_lsn,
            commit_lsn: Lsn(b.commit_lsn.get()),
            in_flight_bytes_max: b.in_flight_bytes_max.get(),
            name: b.name,
            history,
            slots: SlotsBytes(slots),
            settings,
        })
    }
}
