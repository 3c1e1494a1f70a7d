//! The log that a replica gave up for one that begins further on: its segments stay beside the new ones
//! under other names until the new log is there.
//!
//! The superblock's write is what makes the new log count. Until then a copy of the old superblock is
//! named `superblock.undo`: a start that finds it, and the old superblock still in force, gives the
//! segments their names back. Once the new one is in force the copy is named `superblock.replaced`, so that
//! the old log can be used by hand; or `superblock.replaced-known` if the primary's log has all of it: then
//! it goes once the new log has caught up.

use std::io;
use std::path::{Path, PathBuf};

use towline_wire::Lsn;

use super::error::OpenError;
use super::folder;
use super::superblock_file;
use crate::rt::disk::{self, File, OpenHow};

const UNDO: [&str; 2] = ["superblock.undo", "superblock.undo-known"];
const DONE: [&str; 2] = ["superblock.replaced", "superblock.replaced-known"];

/// Whether a log is set aside.
pub(crate) fn is_there(shard_folder: &Path) -> bool {
    DONE.iter().any(|name| disk::exists(&shard_folder.join(name)))
}

/// Whether the one that is may go.
pub(crate) fn may_go(shard_folder: &Path) -> bool {
    disk::exists(&shard_folder.join(DONE[1]))
}

/// Sets the segments aside that hold the log up to `end`; those that are ready or spare go. The
/// superblock must not change meanwhile, and must change before anything else is done.
pub(crate) fn set_aside(shard_folder: &Path, oldest: Lsn, end: Lsn, bytes: u64, known: bool) -> Result<(), OpenError> {
    let segments = folder::segments_folder(shard_folder);
    let making = shard_folder.join("superblock.undo-tmp");
    let remember = || -> io::Result<()> {
        let copy = disk::read(&superblock_file::path_in(shard_folder))?;
        let file = File::open(&making, OpenHow { write: true, create: true, ..OpenHow::default() })?;
        file.set_len(0)?;
        file.write_all_at(&copy, 0)?;
        file.sync_all()?;
        disk::rename(&making, &shard_folder.join(UNDO[usize::from(known)]))?;
        disk::sync_folder(shard_folder)
    };
    remember().map_err(OpenError::io("copying the superblock to", &making))?;
    let first = Lsn(oldest.0 - oldest.0 % bytes);
    // From the last one down: what is left is without gaps at every moment.
    for start in folder::list_segments(&segments)?.into_iter().rev() {
        let path = folder::segment_path(&segments, start);
        let done = match start >= first && start < end {
            true => disk::rename(&path, &aside(&path)),
            false => disk::remove(&path),
        };
        done.map_err(OpenError::io("setting aside", &path))?;
    }
    disk::sync_folder(&segments).map_err(OpenError::io("flushing the folder", &segments))
}

fn aside(segment: &Path) -> PathBuf {
    segment.with_extension("replaced")
}

/// Ends what [`set_aside`] began, also after a crash: if the superblock that was in force then still
/// is, the segments get their names back.
pub(crate) fn settle(shard_folder: &Path) -> Result<(), OpenError> {
    let segments = folder::segments_folder(shard_folder);
    for (undo, done) in UNDO.iter().zip(DONE) {
        let undo = shard_folder.join(undo);
        if !disk::exists(&undo) {
            continue;
        }
        let bytes = disk::read(&undo).map_err(OpenError::io("reading", &undo))?;
        let old = superblock_file::newest(&undo, &bytes)?;
        let current = superblock_file::read(shard_folder)?;
        if current.is_some_and(|now| now.generation == old.generation) {
            for path in list(&segments)? {
                let back = disk::rename(&path, &path.with_extension("wal"));
                back.map_err(OpenError::io("putting back", &path))?;
            }
            disk::sync_folder(&segments).map_err(OpenError::io("flushing the folder", &segments))?;
            disk::remove(&undo).map_err(OpenError::io("removing", &undo))?;
        } else {
            disk::rename(&undo, &shard_folder.join(done)).map_err(OpenError::io("renaming", &undo))?;
        }
        disk::sync_folder(shard_folder).map_err(OpenError::io("flushing the folder", shard_folder))?;
    }
    Ok(())
}

/// The segments that are set aside.
fn list(segments: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let names = disk::names(segments).map_err(OpenError::io("reading the folder", segments))?;
    Ok(names.into_iter().filter(|n| n.ends_with(".replaced")).map(|n| segments.join(n)).collect())
}

/// Removes a log that may go.
pub(crate) fn remove(shard_folder: &Path) -> Result<(), OpenError> {
    let segments = folder::segments_folder(shard_folder);
    for path in list(&segments)? {
        disk::remove(&path).map_err(OpenError::io("removing", &path))?;
    }
    disk::sync_folder(&segments).map_err(OpenError::io("flushing the folder", &segments))?;
    let known = shard_folder.join(DONE[1]);
    disk::remove(&known).map_err(OpenError::io("removing", &known))?;
    disk::sync_folder(shard_folder).map_err(OpenError::io("flushing the folder", shard_folder))
}
