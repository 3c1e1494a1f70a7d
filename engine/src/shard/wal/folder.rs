//! The layout of a node's folder: names, the lock, and the list of segments.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use towline_wire::{Lsn, ShardId};

use super::error::OpenError;
use crate::limits;

/// Holds the folder for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock(#[allow(dead_code, reason = "held for its drop")] File);

/// Makes the folder if needed and locks it.
///
/// A killed process's `io_uring` operations keep its files open for a moment, so the lock is tried
/// for a second before it counts as held by somebody (as `TigerBeetle` does).
pub(crate) fn lock(data: &Path) -> Result<FolderLock, OpenError> {
    fs::create_dir_all(data).map_err(OpenError::io("making the folder", data))?;
    let path = data.join("towline.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(OpenError::io("opening", &path))?;
    for attempt in 0.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < limits::RELEASE_ATTEMPTS => {
                std::thread::sleep(limits::RELEASE_PAUSE)
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                let by = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
                return Err(OpenError::Locked { path: data.into(), by });
            }
            Err(TryLockError::Error(e)) => return Err(OpenError::io("locking", &path)(e)),
        }
    }
    let write = |file: &mut File| -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(OpenError::io("writing", &path))?;
    Ok(FolderLock(file))
}

/// A shard's folder.
pub(crate) fn shard_folder(data: &Path, shard: ShardId) -> PathBuf {
    data.join(format!("shard-{:04}", shard.0))
}

/// The folder of a shard's segments.
pub(crate) fn segments_folder(shard_folder: &Path) -> PathBuf {
    shard_folder.join("wal")
}

/// A segment's file.
pub(crate) fn segment_path(segments: &Path, start: Lsn) -> PathBuf {
    segments.join(format!("{:016x}.wal", start.0))
}

/// The shards that have a folder here, in order.
pub(crate) fn shards(data: &Path) -> Result<Vec<ShardId>, OpenError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data).map_err(OpenError::io("reading the folder", data))? {
        let entry = entry.map_err(OpenError::io("reading the folder", data))?;
        let name = entry.file_name();
        if let Some(n) = name.to_str().and_then(|n| n.strip_prefix("shard-")?.parse().ok()) {
            found.push(ShardId(n));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The segments that are there, in order of their first LSN.
pub(crate) fn list_segments(segments: &Path) -> Result<Vec<Lsn>, OpenError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(segments).map_err(OpenError::io("reading the folder", segments))? {
        let path = entry.map_err(OpenError::io("reading the folder", segments))?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str())
            && let Some(hex) = name.strip_suffix(".wal").filter(|h| h.len() == 16)
            && let Ok(start) = u64::from_str_radix(hex, 16)
        {
            found.push(Lsn(start));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes files that a crash left half made.
pub(crate) fn remove_half_made(segments: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(segments).map_err(OpenError::io("reading the folder", segments))? {
        let path = entry.map_err(OpenError::io("reading the folder", segments))?.path();
        if path.extension().is_some_and(|e| e == "tmp") {
            fs::remove_file(&path).map_err(OpenError::io("removing", &path))?;
        }
    }
    Ok(())
}
