//! A note in a shard's folder of where its log is to begin once a snapshot is installed, written in front of
//! that. The state comes before the log: a node that dies between the two has a handler that stands where the
//! note says, and its log begins there at the next start. The note counts only if the handler says so.
//!
//! It is one copy of the superblock as it is to be.

use std::path::{Path, PathBuf};

use towline_wire::superblock::COPY;

use super::error::OpenError;
use super::folder;
use super::superblock_file::{self, OwnedSuperblock};
use crate::protocol::replica::Beginning;
use crate::rt::disk;

/// The second: what is given up is a part of the primary's log, as [`Beginning::known`] says.
const NOTES: [&str; 2] = ["superblock.installing", "superblock.installing-known"];

/// Makes a superblock one of a log that begins anew and holds nothing yet.
pub(crate) fn begin(s: &mut OwnedSuperblock, b: &Beginning) {
    s.term = s.term.max(b.term);
    (s.oldest_lsn, s.floor_lsn, s.commit_lsn) = (b.at, b.at, b.at);
    s.base = Some(b.base);
    s.history.clear();
}

/// Blocking: notes, durably, that the log is to begin at `b`. `now` is the superblock in force.
pub(crate) fn note(shard_folder: &Path, mut now: OwnedSuperblock, b: &Beginning) -> Result<(), OpenError> {
    remove(shard_folder)?;
    begin(&mut now, b);
    // Its slots are of the log that is given up.
    now.slots.clear();
    let mut copy = vec![0; COPY];
    now.encode(&mut copy);
    let name = NOTES[usize::from(b.known)];
    let noted = folder::put(shard_folder, "superblock.installing-tmp", name, &copy);
    noted.map_err(OpenError::io("noting a snapshot in", shard_folder))
}

/// Blocking: what was noted, if anything. One that is damaged is none: the log here is whole without it.
pub(crate) fn noted(shard_folder: &Path) -> Result<Option<Beginning>, OpenError> {
    let Some((path, known)) = find(shard_folder) else { return Ok(None) };
    let bytes = disk::read(&path).map_err(OpenError::io("reading", &path))?;
    match superblock_file::newest(&path, &bytes) {
        Ok(s) => Ok(s.base.map(|base| Beginning { at: s.oldest_lsn, base, term: s.term, known })),
        Err(e) => {
            tracing::warn!("a note of a snapshot is removed: {e}");
            remove(shard_folder)?;
            Ok(None)
        }
    }
}

/// Blocking: the log has begun, or never will.
pub(crate) fn remove(shard_folder: &Path) -> Result<(), OpenError> {
    let Some((path, _)) = find(shard_folder) else { return Ok(()) };
    disk::remove(&path).map_err(OpenError::io("removing", &path))?;
    disk::sync_folder(shard_folder).map_err(OpenError::io("flushing the folder", shard_folder))
}

fn find(shard_folder: &Path) -> Option<(PathBuf, bool)> {
    let paths = NOTES.map(|name| shard_folder.join(name)).into_iter().zip([false, true]);
    paths.into_iter().find(|(path, _)| disk::exists(path))
}

#[cfg(test)]
mod tests {
    use super::super::open::{NewSlice, fresh};
    use super::*;
    use std::fs;
    use towline_wire::handshake::NodeName;
    use towline_wire::superblock::Base;
    use towline_wire::{Chain, Lsn, Seq, ShardId, SystemId, Term};

    fn superblock() -> OwnedSuperblock {
        let name = NodeName::new("r1").unwrap();
        let new = NewSlice { system: SystemId([4; 16]), shard: ShardId(1), shard_count: 2, segment_bytes: 65536, name };
        OwnedSuperblock { term: Term(7), history: vec![(Term(6), Lsn(0))], ..fresh(&new) }
    }

    fn beginning(at: u64, known: bool) -> Beginning {
        Beginning { at: Lsn(at), base: Base { chain: Chain(at), seq: Seq(9) }, term: Term(8), known }
    }

    #[test]
    fn what_was_noted_last_is_what_counts_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(noted(dir.path()).unwrap(), None);
        for b in [beginning(4096, false), beginning(8192, true), beginning(12288, true), beginning(16384, false)] {
            note(dir.path(), superblock(), &b).unwrap();
            assert_eq!(noted(dir.path()).unwrap(), Some(b));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_note_is_none() {
        let dir = tempfile::tempdir().unwrap();
        note(dir.path(), superblock(), &beginning(4096, true)).unwrap();
        let path = find(dir.path()).unwrap().0;
        let mut bytes = fs::read(&path).unwrap();
        bytes[300] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(noted(dir.path()).unwrap(), None);
        assert!(find(dir.path()).is_none(), "it is removed");
    }

    #[test]
    fn a_log_that_begins_anew_promises_no_older_term_and_has_no_history() {
        let mut s = superblock();
        begin(&mut s, &Beginning { term: Term(3), ..beginning(4096, false) });
        assert_eq!((s.term, s.oldest_lsn, s.floor_lsn, s.commit_lsn), (Term(7), Lsn(4096), Lsn(4096), Lsn(4096)));
        assert!(s.history.is_empty() && s.base.is_some());
    }
}
