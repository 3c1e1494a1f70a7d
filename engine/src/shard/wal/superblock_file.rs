//! The superblock's file: two copies, of which the older one is overwritten.

use std::path::{Path, PathBuf};

use towline_wire::superblock::{COPY, FILE, SlotEntry, Superblock, SuperblockError};
use towline_wire::{Lsn, Term};

use super::direct::{self, AlignedBuf};
use super::error::OpenError;
use crate::rt::disk::{self, File};

/// A superblock with its history and slots in memory.
pub(crate) type OwnedSuperblock = Superblock<Vec<(Term, Lsn)>, Vec<SlotEntry>>;

/// The file.
#[derive(Debug)]
pub(crate) struct SuperblockFile {
    path: PathBuf,
    file: File,
    generation: u64,
    /// The terms that both copies are known to hold: promised, and its own.
    promised: Option<(Term, Term)>,
}

/// Where a shard has it.
pub(crate) fn path_in(shard_folder: &Path) -> PathBuf {
    shard_folder.join("superblock")
}

/// Reads the newer copy that is whole. `None` if there is no file.
pub(crate) fn read(shard_folder: &Path) -> Result<Option<OwnedSuperblock>, OpenError> {
    let path = path_in(shard_folder);
    let bytes = match disk::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(OpenError::io("reading", &path))?,
    };
    newest(&path, &bytes).map(Some)
}

/// The newer copy that is whole, of those in a file's bytes.
pub(crate) fn newest(path: &Path, bytes: &[u8]) -> Result<OwnedSuperblock, OpenError> {
    let path = path.to_path_buf();
    let [a, b] = copies(bytes);
    match (a, b) {
        // A newer format's copy beside an older one's: the newer build's word counts.
        (Err(SuperblockError::Version(version)), _) | (_, Err(SuperblockError::Version(version))) => {
            Err(OpenError::Version { path, version })
        }
        (Ok(a), Ok(b)) => Ok(if a.generation > b.generation { a } else { b }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(a), Err(b)) => Err(OpenError::Superblock { path, a, b }),
    }
}

/// The bytes of one copy, as far as they are there.
pub(crate) fn copy_bytes(bytes: &[u8], n: usize) -> &[u8] {
    bytes.get(n * COPY..(n + 1) * COPY).unwrap_or(&[])
}

/// Both copies in a file's bytes.
pub(crate) fn copies(bytes: &[u8]) -> [Result<OwnedSuperblock, SuperblockError>; 2] {
    [0, 1].map(|n| Superblock::check(copy_bytes(bytes, n)).map(|copy| copy.collect()))
}

impl SuperblockFile {
    /// Opens the file for writing; makes it, with `first` in it, if it is not there.
    pub(crate) fn open(shard_folder: &Path, first: &OwnedSuperblock) -> Result<Self, OpenError> {
        let path = path_in(shard_folder);
        let mut generation = first.generation;
        if !disk::exists(&path) {
            let making = path.with_extension("tmp");
            let _ = disk::remove(&making);
            let file = direct::open(&making, true, true).map_err(OpenError::io("creating", &making))?;
            direct::write_zeros(&file, 0, FILE as u64).map_err(OpenError::io("writing", &making))?;
            let promised = Some((first.term, first.own_term));
            let mut made = Self { path: making.clone(), file, generation: 0, promised };
            made.write(&mut first.clone())?;
            // The next write goes to the other copy: this one is the only one there is.
            if !canary!(OnlyCopyOverwritten) {
                generation = made.generation;
            }
            made.file.sync_all().map_err(OpenError::io("flushing", &making))?;
            disk::rename(&making, &path).map_err(OpenError::io("renaming", &making))?;
            disk::sync_folder(shard_folder).map_err(OpenError::io("flushing the folder", shard_folder))?;
        }
        let file = direct::open(&path, false, true).map_err(OpenError::io("opening", &path))?;
        // What was read may only be in the page cache: make it durable before anything rests on it.
        file.sync_all().map_err(OpenError::io("flushing", &path))?;
        Ok(Self { path, file, generation, promised: None })
    }

    /// Overwrites the older copy; it is on the device when this returns. A new term goes into both:
    /// if one goes bad, the other must not lead back to before the promise.
    pub(crate) fn write(&mut self, superblock: &mut OwnedSuperblock) -> Result<(), OpenError> {
        let promise = Some((superblock.term, superblock.own_term));
        if self.promised != promise {
            self.write_older(superblock)?;
        }
        self.write_older(superblock)?;
        self.promised = promise;
        Ok(())
    }

    /// Only a write that is done counts. One that has failed may have torn its copy: if it is tried again, then
    /// there, and not over the only copy that is whole.
    fn write_older(&mut self, superblock: &mut OwnedSuperblock) -> Result<(), OpenError> {
        superblock.generation = self.generation + 1;
        let mut buf = AlignedBuf::zeroed(COPY);
        superblock.encode(buf.as_mut());
        let at = if canary!(SuperblockInPlace) { 0 } else { (superblock.generation % 2) * COPY as u64 };
        self.file.write_all_at(buf.as_ref(), at).map_err(OpenError::io("writing", &self.path))?;
        self.generation = superblock.generation;
        Ok(())
    }
}

#[cfg(test)]
#[path = "superblock_damage_tests.rs"]
mod tests;
