//! The superblock: what one shard on one node is. Kept twice (slot A, slot B) in one small file;
//! a writer always overwrites the older copy, a reader takes the newer one that passes its CRC, so
//! a torn write leaves the copy before it.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handshake::NodeName;
use crate::message::WirePolicy;
use crate::{BLOCK, Chain, Lsn, Seq, ShardId, SystemId, Term};

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
/// log forgets where the oldest terms began; a replica that old needs a snapshot.
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

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SettingsBytes {
    policy: [u8; 4],
    version: U64,
    deadline_ns: U64,
    retain_max: U64,
    slot_idle_max_ns: U64,
    min_replicas_age_ns: U64,
    min_replicas: u8,
}
const _: () = assert!(size_of::<SettingsBytes>() == 45);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LinksBytes {
    catch_up_max: U64,
    lag_target: U64,
    link_window: U32,
}
const _: () = assert!(size_of::<LinksBytes>() == 20);

/// How links to replicas are served, as an operator has set it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinksEntry {
    /// Bytes in each second that a replica which catches up is sent; 0 for no cap.
    pub catch_up_max: u64,
    /// How many bytes the replicas that commits wait for may be behind before batches are held back; 0
    /// for never.
    pub lag_target: u64,
    /// Bytes that a link may have sent and not acknowledged as received; never 0.
    pub link_window: u32,
}

impl LinksEntry {
    fn to_bytes(self) -> LinksBytes {
        LinksBytes {
            catch_up_max: U64::new(self.catch_up_max),
            lag_target: U64::new(self.lag_target),
            link_window: U32::new(self.link_window),
        }
    }

    /// `None` where it was never set: everything is 0 there.
    fn check(b: &LinksBytes) -> Result<Option<Self>, &'static str> {
        if b.link_window.get() == 0 {
            return if b.as_bytes().iter().all(|b| *b == 0) { Ok(None) } else { Err("settings link_window") };
        }
        let (catch_up_max, lag_target) = (b.catch_up_max.get(), b.lag_target.get());
        Ok(Some(Self { catch_up_max, lag_target, link_window: b.link_window.get() }))
    }
}

/// What a primary's operator has set last, beside the slots of kind [`SlotKind::Configured`], which
/// are the configured replicas of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingsEntry {
    /// Counts changes; never 0.
    pub version: u64,
    /// What a commit waits for that does not say; never [`WirePolicy::Default`].
    pub policy: WirePolicy,
    /// How long a commit waits that does not say, in nanoseconds.
    pub deadline_ns: u64,
    /// The most log that slots may hold: 0 for what follows from what is kept, [`u64::MAX`] for no cap.
    pub retain_max: u64,
    /// How long a slot may be without a link, in nanoseconds; 0 for ever.
    pub slot_idle_max_ns: u64,
    /// What is lately for `min_replicas`, in nanoseconds.
    pub min_replicas_age_ns: u64,
    /// Appends are refused while fewer replicas have acknowledged lately.
    pub min_replicas: u8,
    /// How links are served; `None` in a superblock of a version that did not say.
    pub links: Option<LinksEntry>,
}

impl SettingsEntry {
    fn to_bytes(self) -> SettingsBytes {
        SettingsBytes {
            policy: self.policy.to_bytes(),
            version: U64::new(self.version),
            deadline_ns: U64::new(self.deadline_ns),
            retain_max: U64::new(self.retain_max),
            slot_idle_max_ns: U64::new(self.slot_idle_max_ns),
            min_replicas_age_ns: U64::new(self.min_replicas_age_ns),
            min_replicas: self.min_replicas,
        }
    }

    /// `None` where nothing was ever set: everything is 0 there.
    fn check(b: &SettingsBytes, links: &LinksBytes) -> Result<Option<Self>, &'static str> {
        let links = LinksEntry::check(links)?;
        if b.version.get() == 0 {
            let none = links.is_none() && b.as_bytes().iter().all(|b| *b == 0);
            return if none { Ok(None) } else { Err("settings version") };
        }
        let policy = WirePolicy::from_bytes(b.policy).filter(|p| *p != WirePolicy::Default);
        Ok(Some(Self {
            version: b.version.get(),
            policy: policy.ok_or("settings policy")?,
            deadline_ns: b.deadline_ns.get(),
            retain_max: b.retain_max.get(),
            slot_idle_max_ns: b.slot_idle_max_ns.get(),
            min_replicas_age_ns: b.min_replicas_age_ns.get(),
            min_replicas: b.min_replicas,
            links,
        }))
    }
}

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

/// What came before a log that did not begin at LSN 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain up to there.
    pub chain: Chain,
    /// The number of the first record.
    pub seq: Seq,
}

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

/// The slots of a superblock as they lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsBytes<'a>(&'a [u8]);

impl SlotsBytes<'_> {
    /// The slots.
    pub fn iter(&self) -> impl Iterator<Item = SlotEntry> + '_ {
        self.0.chunks_exact(SLOT).filter_map(|bytes| slot(bytes).ok())
    }
}

/// Checks one slot by itself; says which field is bad.
fn slot(bytes: &[u8]) -> Result<SlotEntry, &'static str> {
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
    Ok(SlotEntry { name: b.name, restart_lsn, kind, lost })
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
            let slot = SlotBytes {
                name: slot.name,
                restart_lsn: U64::new(slot.restart_lsn.0),
                kind: slot.kind as u8,
                lost: slot.lost.map_or(0, |lost| lost as u8),
                reserved: [0; 6],
            };
            bytes.copy_from_slice(slot.as_bytes());
        }
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

impl<'a> Superblock<HistoryBytes<'a>, SlotsBytes<'a>> {
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
            let (one, before) = (slot(bytes).map_err(SuperblockError::Field)?, SlotsBytes(&slots[..n * SLOT]));
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
