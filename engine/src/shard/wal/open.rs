//! Opening a slice: superblock, segments, recovery, and the removal of what a crash left half
//! done. Blocking; runs before any executor.

use std::path::PathBuf;
use std::time::Instant;

use towline_wire::handshake::NodeName;
use towline_wire::superblock::Base;
use towline_wire::{BLOCK, Lsn, ShardId, SystemId, Term};

use super::direct;
use super::error::OpenError;
use super::folder;
use super::installing;
use super::replaced;
use super::source::SegmentSource;
use super::superblock_file::{self, OwnedSuperblock, SuperblockFile};
use crate::limits;
use crate::protocol::history::History;
use crate::protocol::recovery::{Facts, Recovered, RecoveryError, recover};
use crate::protocol::replica::{Beginning, LogEnd};
use crate::rt::disk::{self, File, OpenHow};

/// A slice that is whole and ready to be written.
#[derive(Debug)]
pub(crate) struct OpenedSlice {
    pub(crate) segments_folder: PathBuf,
    pub(crate) superblock: OwnedSuperblock,
    pub(crate) superblock_file: SuperblockFile,
    pub(crate) history: History,
    pub(crate) end: LogEnd,
    pub(crate) last_batch: Lsn,
    /// What is known to be committed.
    pub(crate) commit: Lsn,
    /// First LSN of the first segment, and the end of the last one.
    pub(crate) segments: (Lsn, Lsn),
    /// Segments that hold nothing that is kept.
    pub(crate) spare: Vec<PathBuf>,
    /// A log that was set aside may go once this one has caught up.
    pub(crate) replaced: bool,
    /// Where the log is to begin if a snapshot was installed.
    pub(crate) installing: Option<Beginning>,
}

/// What a shard is to be, if its folder does not say so already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewSlice {
    pub(crate) system: SystemId,
    pub(crate) shard: ShardId,
    pub(crate) shard_count: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) name: NodeName,
}

/// The superblock of a shard that has never held anything.
pub(crate) fn fresh(new: &NewSlice) -> OwnedSuperblock {
    OwnedSuperblock {
        generation: 0,
        system: new.system,
        shard: new.shard,
        shard_count: new.shard_count,
        term: Term::ZERO,
        own_term: Term::ZERO,
        segment_bytes: new.segment_bytes,
        oldest_lsn: Lsn::ZERO,
        base: None,
        floor_lsn: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
        in_flight_bytes_max: 0,
        name: new.name,
        history: Vec::new(),
        slots: Vec::new(),
        settings: None,
    }
}

/// Recovers a slice, or makes it. `in_flight_bytes_max` is what this run may have in flight.
pub(crate) fn open(data: &std::path::Path, new: &NewSlice, in_flight_bytes_max: u64) -> Result<OpenedSlice, OpenError> {
    let shard_folder = folder::shard_folder(data, new.shard);
    let segments_folder = folder::segments_folder(&shard_folder);
    disk::create_dir_all(&segments_folder).map_err(OpenError::io("making the folder", &segments_folder))?;
    for path in [data, &shard_folder] {
        disk::sync_folder(path).map_err(OpenError::io("flushing the folder", path))?;
    }
    folder::remove_half_made(&segments_folder)?;
    replaced::settle(&shard_folder)?;
    let mut superblock = superblock_file::read(&shard_folder)?.unwrap_or_else(|| fresh(new));
    if superblock.shard != new.shard || superblock.system != new.system {
        return Err(OpenError::Foreign {
            path: shard_folder.join("superblock"),
            shard: superblock.shard.0,
            system: superblock.system,
            expected_shard: new.shard.0,
            expected_system: new.system,
        });
    }
    if superblock.shard_count != new.shard_count {
        let (on_disk, configured) = (superblock.shard_count, new.shard_count);
        return Err(OpenError::ShardCount { path: data.into(), on_disk, configured });
    }
    let mut superblock_file = SuperblockFile::open(&shard_folder, &superblock)?;
    let (oldest, floor) = (superblock.oldest_lsn, superblock.floor_lsn);
    let needed = superblock.needed();
    let segment_bytes = superblock.segment_bytes;
    let mut source = SegmentSource::open(&segments_folder, segment_bytes, oldest, needed, true)?;
    let facts = Facts::of(&superblock);
    let recovered = read_all(&mut source, &facts)?;
    let mut history = History::from_entries(superblock.history.clone());
    // What was read counts: after a cut the superblock may still name terms whose batches are gone.
    history.cut(floor.max(oldest));
    for (term, first) in &recovered.terms {
        history.begin(*term, *first);
    }
    // A term that was begun and lost its tail is not part of this history.
    history.cut(recovered.end.lsn);
    if let Some(tear) = &recovered.tear {
        zero(&source, tear.at, tear.until)?;
        tracing::warn!(shard = new.shard.0, at = tear.at.0, until = tear.until.0, reason = %tear.reason, "cut a torn tail");
    }
    let first = source.first();
    let spare = folder::list_segments(&segments_folder)?.into_iter().filter(|s| *s < first);
    let spare = spare.map(|s| folder::segment_path(&segments_folder, s)).collect();
    superblock.in_flight_bytes_max = in_flight_bytes_max;
    superblock.commit_lsn = superblock.commit_lsn.max(recovered.commit.min(recovered.end.lsn));
    superblock.floor_lsn = recovered.last_batch;
    superblock.history = history.entries().to_vec();
    // Durable before the first write: recovery rests on what may be in flight.
    superblock_file.write(&mut superblock)?;
    Ok(OpenedSlice {
        segments_folder,
        commit: superblock.commit_lsn,
        history,
        end: recovered.end,
        last_batch: recovered.last_batch,
        segments: (first, source.end()),
        spare,
        replaced: replaced::may_go(&shard_folder),
        installing: installing::noted(&shard_folder)?,
        superblock,
        superblock_file,
    })
}

/// Runs recovery, says how far it is if it takes long, and puts file and offset into its errors.
fn read_all(source: &mut SegmentSource, facts: &Facts) -> Result<Recovered, OpenError> {
    let began = Instant::now();
    let mut said = 0;
    let (first, end) = (facts.floor.max(facts.oldest), source.end());
    let recovered = recover(source, facts, |view| {
        let seconds = began.elapsed().as_secs();
        if seconds > said {
            said = seconds;
            let read = view.header().end_lsn().since(first);
            tracing::info!(shard = facts.shard.0, read_bytes = read, at_most_bytes = end.since(first), "recovering");
        }
    });
    recovered.map_err(|e| match e {
        RecoveryError::Damage { at, reason, evidence } => {
            let (path, offset) = source.locate(at);
            OpenError::Damage { path, offset, lsn: at, reason, evidence }
        }
        RecoveryError::Io { at, source: e } => OpenError::io("reading", source.locate(at).0)(e),
    })
}

/// Overwrites a torn or cut range with zeros, so that nothing in it is ever taken for live.
///
/// From its end downwards: after a crash halfway the log simply ends further on, and no batch lies
/// behind a hole.
fn zero(source: &SegmentSource, from: Lsn, until: Lsn) -> Result<(), OpenError> {
    let mut until = until.min(source.end());
    while until > from {
        let (path, offset) = source.locate(Lsn(until.0 - BLOCK as u64));
        let file = direct::open(&path, false, true).map_err(OpenError::io("opening", &path))?;
        let end = offset + BLOCK as u64;
        let len = until.since(from).min(end).min(limits::READ_CHUNK_BYTES as u64);
        direct::write_zeros(&file, end - len, len).map_err(OpenError::io("writing", &path))?;
        until = Lsn(until.0 - len);
    }
    Ok(())
}

/// Where a log is to be cut.
#[derive(Clone, Debug)]
pub(crate) struct CutPlace {
    /// The end that is left.
    pub(crate) end: LogEnd,
    /// The last batch that is left.
    pub(crate) last_batch: Lsn,
    /// What came before, if nothing is left of a log that began at LSN 0 and has let go of its beginning:
    /// without a batch only the superblock can say that.
    pub(crate) base: Option<Base>,
    /// The batches that go.
    gone: Vec<Lsn>,
}

/// Finds the batch boundary at or below `to` in a replica's log that ends at `end`. Changes nothing.
pub(crate) fn cut_place(
    segments_folder: &std::path::Path,
    superblock: &OwnedSuperblock,
    to: Lsn,
    end: Lsn,
) -> Result<CutPlace, OpenError> {
    let facts = Facts {
        own_term: Term::ZERO,
        // The floor may lie above the cut: find the boundary from the start of what is kept.
        floor: superblock.oldest_lsn,
        commit: Lsn::ZERO,
        in_flight_bytes_max: 0,
        ..Facts::of(superblock)
    };
    let mut source = SegmentSource::open(segments_folder, superblock.segment_bytes, facts.oldest, end, false)?;
    // Where nothing is left of a log that was begun in the middle, its beginning is.
    let base = facts.base.map(|b| LogEnd { lsn: facts.oldest, chain: b.chain, next_seq: b.seq, last_term: Term::ZERO });
    let mut place = CutPlace { end: base.unwrap_or_default(), last_batch: facts.oldest, base: None, gone: Vec::new() };
    let kept = recover(&mut source, &facts, |view| {
        let h = view.header();
        if h.lsn() == facts.oldest {
            let (chain, next_seq) = (h.prev_chain(), h.first_seq());
            place.end = LogEnd { lsn: facts.oldest, chain, next_seq, last_term: Term::ZERO };
        }
        if h.end_lsn() > to {
            place.gone.push(h.lsn());
        } else {
            place.last_batch = h.lsn();
            place.end = LogEnd { lsn: h.end_lsn(), chain: h.chain(), next_seq: h.end_seq(), last_term: h.term() };
        }
    });
    let read =
        kept.map_err(|e| OpenError::io("reading the log to cut in", segments_folder)(std::io::Error::other(e)))?;
    if read.end.lsn != end {
        // All of it was on the device: it has been changed since, and what is left of it is not enough.
        let ((path, offset), lsn) = (source.locate(read.end.lsn), read.end.lsn);
        let reason = "no batch continues the log there".into();
        let evidence = format!("the log was durable up to {end}");
        return Err(OpenError::Damage { path, offset, lsn, reason, evidence });
    }
    if facts.oldest > Lsn::ZERO && facts.base.is_none() && place.end.lsn == facts.oldest {
        place.base = Some(Base { chain: place.end.chain, seq: place.end.next_seq });
    }
    Ok(place)
}

/// Cuts a replica's log, which ends at `end`: saves what goes to a side file in the shard's folder,
/// then zeroes it. Returns the file.
pub(crate) fn cut(
    segments_folder: &std::path::Path,
    superblock: &OwnedSuperblock,
    place: &CutPlace,
    end: Lsn,
) -> Result<PathBuf, OpenError> {
    let new_end = place.end.lsn;
    let oldest = superblock.oldest_lsn;
    let mut source = SegmentSource::open(segments_folder, superblock.segment_bytes, oldest, end, false)?;
    let name = format!("cut-{:016x}-{:016x}.wal", new_end.0, end.0);
    let side = segments_folder.with_file_name(name);
    let mut save = || -> std::io::Result<()> {
        use crate::protocol::recovery::LogSource;
        let file = File::open(&side, OpenHow { write: true, create: true, ..OpenHow::default() })?;
        file.set_len(0)?;
        let mut at = new_end;
        while at < end {
            let len = (end.since(at) as usize).min(limits::READ_CHUNK_BYTES);
            let bytes = source.bytes(at, len)?;
            file.write_all_at(&bytes[..len], at.since(new_end))?;
            at = Lsn(at.0 + len as u64);
        }
        file.sync_all()?;
        disk::sync_folder(side.parent().expect("it has one"))
    };
    save().map_err(OpenError::io("saving the cut tail to", &side))?;
    // From the back, header by header: whenever a crash comes, what is left is a whole log that ends
    // earlier, and no batch lies behind a hole.
    for start in place.gone.iter().rev() {
        zero(&source, *start, Lsn(start.0 + BLOCK as u64))?;
    }
    zero(&source, new_end, end)?;
    Ok(side)
}
