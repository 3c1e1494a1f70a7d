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
use crate::rt::disk;

const UNDO: [&str; 2] = ["superblock.undo", "superblock.undo-known"];
const DONE: [&str; 2] = ["superblock.replaced", "superblock.replaced-known"];

/// Whether a log is set aside.
fn is_there(shard_folder: &Path) -> bool {
    DONE.iter().any(|name| disk::exists(&shard_folder.join(name)))
}

/// Whether a log is set aside that stays until somebody removes it: no other one like it is given up meanwhile.
pub(crate) fn stays(shard_folder: &Path) -> bool {
    disk::exists(&shard_folder.join(DONE[0]))
}

/// Makes room for the log that is about to be given up, and says whether it is to be set aside: there is one at
/// a time. One that the primary's log has all of makes room for one that it may not have.
pub(crate) fn make_room(shard_folder: &Path, known: bool) -> Result<bool, OpenError> {
    if !is_there(shard_folder) {
        return Ok(true);
    }
    if known || stays(shard_folder) {
        return Ok(false);
    }
    remove(shard_folder)?;
    Ok(true)
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
        folder::put(shard_folder, "superblock.undo-tmp", UNDO[usize::from(known)], &copy)
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

#[cfg(test)]
mod tests {
    use super::super::open::{NewSlice, open};
    use super::super::superblock_file::SuperblockFile;
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use towline_wire::handshake::NodeName;
    use towline_wire::superblock::Base;
    use towline_wire::{BLOCK, Chain, Seq, ShardId, SystemId};

    const BYTES: u64 = 16 * BLOCK as u64;
    const NEW: NewSlice = NewSlice {
        system: SystemId([4; 16]),
        shard: ShardId(0),
        shard_count: 1,
        segment_bytes: BYTES,
        name: NodeName::NONE,
    };

    /// A shard with an empty log and four segments; its folder, and that of the node.
    fn shard() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), &NEW, 0).unwrap());
        let shard = folder::shard_folder(dir.path(), ShardId(0));
        for n in 0..4 {
            let path = folder::segment_path(&folder::segments_folder(&shard), Lsn(n * BYTES));
            fs::write(path, vec![0; BYTES as usize]).unwrap();
        }
        (dir, shard)
    }

    fn names(shard: &Path) -> BTreeSet<String> {
        let wal = fs::read_dir(folder::segments_folder(shard)).unwrap();
        let top = fs::read_dir(shard).unwrap().filter(|e| e.as_ref().unwrap().path().is_file());
        wal.chain(top).map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn begin(shard: &Path) {
        let mut s = superblock_file::read(shard).unwrap().unwrap();
        let mut file = SuperblockFile::open(shard, &s).unwrap();
        let at = Lsn(9 * BYTES + BLOCK as u64);
        (s.oldest_lsn, s.floor_lsn, s.commit_lsn) = (at, at, at);
        s.base = Some(Base { chain: Chain(7), seq: Seq(8) });
        file.write(&mut s).unwrap();
    }

    #[test]
    fn a_crash_before_the_superblock_is_written_gives_the_segments_their_names_back() {
        for moved in 0..=3 {
            let (dir, shard) = shard();
            let before = names(&shard);
            set_aside(&shard, Lsn(0), Lsn(3 * BYTES), BYTES, true).unwrap();
            // As if the crash had come after fewer renames.
            for n in 0..moved {
                let path = folder::segment_path(&folder::segments_folder(&shard), Lsn(n * BYTES));
                fs::rename(aside(&path), path).unwrap();
            }
            let slice = open(dir.path(), &NEW, 0).unwrap();
            assert_eq!((slice.end.lsn, slice.replaced), (Lsn(0), false));
            let mut after = names(&shard);
            after.insert(format!("{:016x}.wal", 3 * BYTES));
            assert_eq!(after, before, "what was ready ahead is made again when it is needed");
        }
    }

    #[test]
    fn after_the_superblock_is_written_the_new_log_is_opened_empty_and_the_old_one_is_kept() {
        for known in [false, true] {
            let (dir, shard) = shard();
            set_aside(&shard, Lsn(0), Lsn(3 * BYTES), BYTES, known).unwrap();
            assert!(!is_there(&shard));
            begin(&shard);
            // Twice: once it was settled nothing more is done.
            for _ in 0..2 {
                let slice = open(dir.path(), &NEW, 0).unwrap();
                let at = Lsn(9 * BYTES + BLOCK as u64);
                assert_eq!((slice.end.lsn, slice.end.chain, slice.end.next_seq), (at, Chain(7), Seq(8)));
                assert_eq!((slice.segments, slice.replaced), ((Lsn(9 * BYTES), Lsn(9 * BYTES)), known));
            }
            assert!(is_there(&shard) && may_go(&shard) == known);
            assert_eq!(names(&shard).iter().filter(|n| n.ends_with(".replaced")).count(), 3 + usize::from(!known));
            assert_eq!(stays(&shard), !known);
            if known {
                remove(&shard).unwrap();
                assert_eq!(names(&shard).into_iter().collect::<Vec<_>>(), ["superblock"]);
            }
        }
    }

    #[test]
    fn a_log_that_may_go_makes_room_for_one_that_may_not_and_for_no_other() {
        for (was, comes, room) in
            [(true, false, true), (true, true, false), (false, true, false), (false, false, false)]
        {
            let (_dir, shard) = shard();
            assert!(make_room(&shard, comes).unwrap());
            set_aside(&shard, Lsn(0), Lsn(3 * BYTES), BYTES, was).unwrap();
            begin(&shard);
            settle(&shard).unwrap();
            assert_eq!(make_room(&shard, comes).unwrap(), room, "{was} {comes}");
            assert_eq!(
                (is_there(&shard), list(&folder::segments_folder(&shard)).unwrap().len()),
                (!room, 3 - 3 * usize::from(room))
            );
        }
    }
}
