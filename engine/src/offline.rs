//! Reading a node's folder without opening the node: to check every byte of it, and to look into it.
//!
//! Comes in: a folder, of a node that runs or of one that is stopped. Goes out: a [`VerifyReport`],
//! or the batches from a position on. Nothing is written and nothing is locked. While the node
//! runs, its log's end is wherever the reader finds it: what is being written there looks like a
//! torn tail, which is no damage.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use towline_wire::handshake::NodeName;
use towline_wire::superblock::SuperblockError;
use towline_wire::{BatchView, Chain, Lsn, Seq, ShardId, SystemId, Term};

use crate::limits;
use crate::node::mark_made;
use crate::protocol::recovery::{Facts, Recovered, RecoveryError, next_batch, read_on};
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::source::SegmentSource;
use crate::shard::wal::superblock_file::{self, OwnedSuperblock, SuperblockFile};

/// How often a shard is read anew because its node has changed the folder meanwhile.
const ATTEMPTS: usize = 5;

/// A place in a shard's files where something is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// The position in the log, where the finding is about one.
    pub lsn: Option<Lsn>,
    /// What is wrong there.
    pub reason: String,
}

/// What one copy of a superblock is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Whole, the write with this number.
    Whole(u64),
    /// Never written: a new shard has one copy.
    Unused,
    /// Not whole. One such copy is what a crash while it was written leaves.
    Bad(SuperblockError),
}

/// What was found in one shard's folder. What a damage in front of it hid is zero.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// The cluster's log.
    pub system: SystemId,
    /// The replica's name; empty for a primary.
    pub name: String,
    /// The highest term that the node has promised to follow, or reigns in.
    pub term: Term,
    /// Where the log that is kept begins.
    pub oldest: Lsn,
    /// What was known to be committed, a lower bound.
    pub commit: Lsn,
    /// The end of the whole log.
    pub end: Lsn,
    /// The number of the record that follows the last one.
    pub next_seq: Seq,
    /// The chain up to the end: two nodes with the same one at the same LSN hold the same bytes.
    pub chain: Chain,
    /// Where terms began in what is kept.
    pub terms: Vec<(Term, Lsn)>,
    /// Batches read and checked.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of them on disk.
    pub bytes: u64,
    /// Segments that hold the log, or are ready for it.
    pub segments: u64,
    /// Segments that hold nothing any more and wait to be used again.
    pub spare_segments: u64,
    /// Bytes of each.
    pub segment_bytes: u64,
    /// Both copies of the superblock.
    pub superblock: Vec<CopyState>,
    /// Where the log tore, if remnants lie behind its end: the next start cuts them.
    pub tear: Option<Finding>,
    /// What must not be.
    pub damage: Option<Finding>,
}

/// Keeps a folder from being served for as long as it is held.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "held for its drop")] folder::FolderLock);

/// Holds the folder of a stopped node.
///
/// # Errors
/// There is no node in it, or it runs.
pub fn hold(data: impl AsRef<Path>) -> Result<Held, OpenError> {
    let data = data.as_ref();
    if folder::shards(data)?.is_empty() {
        return Err(no_node(data));
    }
    folder::lock(data).map(Held)
}

fn no_node(data: &Path) -> OpenError {
    let none = io::Error::new(io::ErrorKind::NotFound, "no shard is in it");
    OpenError::io("looking for a node in", data)(none)
}

/// Whose log a folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's log.
    pub system: SystemId,
    /// The replica's name; empty for a primary.
    pub name: String,
}

/// What a node's folder says it is; `None` if there is no node in it yet.
///
/// # Errors
/// What cannot be read.
pub fn identity(data: impl AsRef<Path>) -> Result<Option<Identity>, OpenError> {
    let superblock = superblock_file::read(&folder::shard_folder(data.as_ref(), ShardId(0)))?;
    Ok(superblock.map(|s| Identity { system: s.system, name: s.name.to_string() }))
}

/// Makes a folder that was copied file by file a replica's, of this name: it serves nobody's slots, and is
/// no primary's unless it is promoted.
///
/// # Errors
/// What cannot be read or written.
pub fn adopt(data: impl AsRef<Path>, name: NodeName) -> Result<(), OpenError> {
    let data = data.as_ref();
    for shard in folder::shards(data)? {
        let shard_folder = folder::shard_folder(data, shard);
        let Some(mut superblock) = superblock_file::read(&shard_folder)? else { return Err(no_node(&shard_folder)) };
        let mut file = SuperblockFile::open(&shard_folder, &superblock)?;
        superblock.name = name;
        superblock.slots.clear();
        // Into both copies: it is the first write of this file.
        file.write(&mut superblock)?;
    }
    mark_made(data)
}

/// What was found in a node's folder.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Each shard, in order.
    pub shards: Vec<ShardReport>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shards.iter().all(|s| s.damage.is_none())
    }
}

/// How far [`verify_with`] is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The shard it reads.
    pub shard: ShardId,
    /// Bytes of its log read.
    pub read_bytes: u64,
    /// There are no more than this.
    pub at_most_bytes: u64,
}

/// Reads every byte of every shard's log and checks it: CRCs, chain, sequence, padding, terms, the
/// superblock's copies. Never writes; the node may be running.
///
/// # Errors
/// What cannot be read, or is of a newer format. Damage is no error: the report names it.
pub fn verify(data: impl AsRef<Path>) -> Result<VerifyReport, OpenError> {
    verify_with(data, |_| {})
}

/// As [`verify`], and tells after each batch how far it is.
///
/// # Errors
/// As there.
pub fn verify_with(data: impl AsRef<Path>, mut progress: impl FnMut(Progress)) -> Result<VerifyReport, OpenError> {
    let data = data.as_ref();
    let found = folder::shards(data)?;
    if found.is_empty() {
        return Err(no_node(data));
    }
    let mut report = VerifyReport::default();
    let mut known: Option<OwnedSuperblock> = None;
    for shard in found {
        report.shards.push(verify_shard(data, shard, &mut known, &mut progress)?);
    }
    let shards = known.map_or(0, |k| k.shard_count);
    for missing in (0..shards.min(limits::SHARDS_MAX)).map(ShardId) {
        if report.shards.iter().any(|s| s.shard == missing) {
            continue;
        }
        let path = folder::shard_folder(data, missing);
        let reason = format!("it is missing although the node has {shards} shards");
        let damage = Some(Finding { path, offset: 0, lsn: None, reason });
        report.shards.push(ShardReport { shard: missing, damage, ..ShardReport::default() });
    }
    report.shards.sort_by_key(|s| s.shard);
    Ok(report)
}

/// Gives the batches from `start` on, or from the oldest one, to `each`, until it breaks off or the
/// log ends. Every batch is checked as [`verify`] does. Returns what was read; a damage in it ended
/// the reading.
///
/// # Errors
/// What cannot be read, and a `start` at which no batch begins.
pub fn read_log(
    data: impl AsRef<Path>,
    shard: ShardId,
    start: Option<Lsn>,
    mut each: impl FnMut(&BatchView<'_>) -> ControlFlow<()>,
) -> Result<ShardReport, OpenError> {
    let shard_folder = folder::shard_folder(data.as_ref(), shard);
    let (superblock, mut report) = read_superblock(&shard_folder, shard)?;
    let Some(superblock) = superblock else { return Ok(report) };
    scan(&shard_folder, &superblock, start, &mut report, &mut |view, _| each(view))?;
    Ok(report)
}

fn verify_shard(
    data: &Path,
    shard: ShardId,
    known: &mut Option<OwnedSuperblock>,
    progress: &mut impl FnMut(Progress),
) -> Result<ShardReport, OpenError> {
    let shard_folder = folder::shard_folder(data, shard);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (superblock, mut report) = read_superblock(&shard_folder, shard)?;
        let Some(superblock) = superblock else { return Ok(report) };
        if let Some(first) = known {
            if (first.system, first.shard_count) != (superblock.system, superblock.shard_count) {
                let reason = format!(
                    "it is of system {} with {} shards, shard {} beside it of {} with {}: folders were mixed up",
                    superblock.system, superblock.shard_count, first.shard, first.system, first.shard_count
                );
                report.damage = Some(in_superblock(&shard_folder, reason));
                return Ok(report);
            }
        } else {
            *known = Some(superblock.clone());
        }
        let scanned = scan(&shard_folder, &superblock, None, &mut report, &mut |view, end| {
            let read_bytes = view.header().end_lsn().since(superblock.oldest_lsn);
            progress(Progress { shard, read_bytes, at_most_bytes: end.since(superblock.oldest_lsn) });
            ControlFlow::Continue(())
        });
        if report.damage.is_none() && scanned.is_ok() {
            report.damage = history_differs(&shard_folder, &superblock, &report);
        }
        if report.damage.is_none() && scanned.is_ok() || attempt == ATTEMPTS {
            return scanned.map(|()| report);
        }
        // A running node lets go of old segments and cuts tails: then the superblock has changed,
        // and what was found is not what is there.
        let changed = superblock_file::read(&shard_folder)?.is_none_or(|now| now.generation != superblock.generation);
        if !changed {
            return scanned.map(|()| report);
        }
    }
}

fn in_superblock(shard_folder: &Path, reason: String) -> Finding {
    Finding { path: superblock_file::path_in(shard_folder), offset: 0, lsn: None, reason }
}

/// The superblock, and a report with what it says; without one, the report says why.
fn read_superblock(shard_folder: &Path, shard: ShardId) -> Result<(Option<OwnedSuperblock>, ShardReport), OpenError> {
    let path = superblock_file::path_in(shard_folder);
    let mut report = ShardReport { shard, ..ShardReport::default() };
    let mut bytes = Vec::new();
    // A running node may be writing a copy just now; it is whole a moment later.
    for _ in 0..ATTEMPTS {
        bytes = match crate::rt::disk::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                report.damage = Some(in_superblock(shard_folder, "the shard has no superblock".into()));
                return Ok((None, report));
            }
            other => other.map_err(OpenError::io("reading", &path))?,
        };
        report.superblock = copy_states(&bytes);
        if !report.superblock.iter().any(|c| matches!(c, CopyState::Bad(_))) {
            break;
        }
    }
    let superblock = match superblock_file::newest(&path, &bytes) {
        Ok(superblock) => superblock,
        Err(e @ OpenError::Superblock { .. }) => {
            report.damage = Some(in_superblock(shard_folder, e.to_string()));
            return Ok((None, report));
        }
        Err(e) => return Err(e),
    };
    (report.system, report.term) = (superblock.system, superblock.term);
    (report.oldest, report.end) = (superblock.oldest_lsn, superblock.oldest_lsn);
    (report.commit, report.segment_bytes) = (superblock.commit_lsn, superblock.segment_bytes);
    report.name = superblock.name.to_string();
    if superblock.shard != shard {
        let reason = format!("it is shard {}'s: folders were mixed up", superblock.shard);
        report.damage = Some(in_superblock(shard_folder, reason));
        return Ok((None, report));
    }
    Ok((Some(superblock), report))
}

fn copy_states(bytes: &[u8]) -> Vec<CopyState> {
    let copies = superblock_file::copies(bytes).into_iter().enumerate();
    let state = |(n, copy): (usize, Result<OwnedSuperblock, SuperblockError>)| match copy {
        Ok(whole) => CopyState::Whole(whole.generation),
        Err(_) if superblock_file::copy_bytes(bytes, n).iter().all(|b| *b == 0) => CopyState::Unused,
        Err(e) => CopyState::Bad(e),
    };
    copies.map(state).collect()
}

/// Reads a shard's log and puts what is found into the report.
fn scan(
    shard_folder: &Path,
    superblock: &OwnedSuperblock,
    start: Option<Lsn>,
    report: &mut ShardReport,
    each: &mut dyn FnMut(&BatchView<'_>, Lsn) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    let segments_folder = folder::segments_folder(shard_folder);
    let (oldest, floor, segment_bytes) = (superblock.oldest_lsn, superblock.floor_lsn, superblock.segment_bytes);
    let needed = superblock.needed();
    let mut source = match SegmentSource::open(&segments_folder, segment_bytes, oldest, needed, false) {
        Ok(source) => source,
        Err(OpenError::MissingSegment { path, lsn }) => {
            let reason = "the segment is missing, or one before it".into();
            report.damage = Some(Finding { path, offset: 0, lsn: Some(lsn), reason });
            return Ok(());
        }
        Err(OpenError::SegmentSize { path, bytes, expected }) => {
            let reason = format!("the segment has {bytes} bytes, {expected} are expected");
            report.damage = Some(Finding { path, offset: bytes.min(expected), lsn: None, reason });
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    report.segments = source.count() as u64;
    let first = source.first();
    report.spare_segments = folder::list_segments(&segments_folder)?.iter().filter(|s| **s < first).count() as u64;
    let facts = Facts {
        // Everything is read, not only what a start has to: what the floor vouches for is asked below.
        floor: start.unwrap_or(oldest),
        ..Facts::of(superblock)
    };
    if let Some(start) = start {
        let no_batch = |reason: String| OpenError::NoBatch { lsn: start, oldest, reason };
        if start < oldest || start > source.end() || !start.is_block_aligned() {
            return Err(no_batch("it lies outside of what is kept, or is no multiple of a block".into()));
        }
        let path = source.locate(start).0;
        match next_batch(&mut source, start).map_err(|e| OpenError::io("reading", path)(io::Error::other(e)))? {
            Ok(view) if view.header().lsn() == start => {}
            Ok(_) => return Err(no_batch("the bytes there belong elsewhere".into())),
            Err(reason) => return Err(no_batch(reason)),
        }
    }
    let mut found = Recovered::at(facts.floor);
    let end = source.end();
    let mut doubted = None;
    let ended = loop {
        match read_on(&mut source, &facts, &mut found, |view| each(view, end)) {
            Ok(flow) => break Ok(flow),
            Err(RecoveryError::Io { at, source: e }) => {
                return Err(OpenError::io("reading", source.locate(at).0)(e));
            }
            Err(RecoveryError::Damage { at, reason, evidence }) if doubted == Some(at) => {
                break Err((at, format!("{reason}; {evidence}")));
            }
            // The evidence was read later than the place itself, and on a running node that may
            // have been written in between: it is read again.
            Err(RecoveryError::Damage { at, .. }) => {
                doubted = Some(at);
                source.forget();
            }
        }
    };
    (report.end, report.chain, report.next_seq) = (found.end.lsn, found.end.chain, found.end.next_seq);
    (report.batches, report.records) = (found.batches, found.records);
    report.bytes = found.end.lsn.since(facts.floor);
    report.commit = report.commit.max(found.commit.min(found.end.lsn));
    report.terms = found.terms;
    let at_place = |lsn: Lsn, reason: String| {
        let (path, offset) = source.locate(lsn);
        Finding { path, offset, lsn: Some(lsn), reason }
    };
    match ended {
        Err((lsn, reason)) => report.damage = Some(at_place(lsn, reason)),
        Ok(ControlFlow::Break(())) => {}
        Ok(ControlFlow::Continue(())) if floor > oldest && report.end <= floor => {
            let why = found.tear.map_or_else(|| "no batch starts there".into(), |t| t.reason);
            let reason = format!("{why}; the superblock says that the log was durable there (floor {floor})");
            report.damage = Some(at_place(report.end, reason));
        }
        Ok(ControlFlow::Continue(())) => report.tear = found.tear.map(|t| at_place(t.at, t.reason)),
    }
    Ok(())
}

/// Holds the superblock's history against the terms that were found.
fn history_differs(shard_folder: &Path, superblock: &OwnedSuperblock, report: &ShardReport) -> Option<Finding> {
    let history = &superblock.history;
    let differs = |reason: String| Some(in_superblock(shard_folder, reason));
    // A term that begins at the end or behind it has lost what it wrote; the next start drops it.
    for (term, first) in history.iter().filter(|e| e.1 >= report.oldest && e.1 < report.end) {
        if !report.terms.contains(&(*term, *first)) {
            return differs(format!("it says that term {term} began at LSN {first}, the log says otherwise"));
        }
    }
    let (Some(oldest), Some(newest)) = (history.first(), history.last()) else { return None };
    for (term, first) in &report.terms {
        let begins_before = history.iter().any(|e| e.0 == *term && e.1 <= *first && *first == report.oldest);
        if *term >= oldest.0 && *term <= newest.0 && !begins_before && !history.contains(&(*term, *first)) {
            return differs(format!("the log has term {term} from LSN {first} on, which it does not know of"));
        }
    }
    None
}
