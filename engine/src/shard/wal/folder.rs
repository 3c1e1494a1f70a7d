//! The layout of a node's folder: names, the lock, and the list of segments.

use std::io;
use std::path::{Path, PathBuf};

use towline_wire::{Lsn, ShardId};

use super::error::OpenError;
use crate::limits;
use crate::rt;
use crate::rt::disk::{self, File, OpenHow};

/// Holds the folder for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock(#[allow(dead_code, reason = "held for its drop")] File);

/// Makes the folder if needed and locks it.
///
/// A killed process's `io_uring` operations keep its files open for a moment, so the lock is tried
/// for a second before it counts as held by somebody (as `TigerBeetle` does).
pub(crate) fn lock(data: &Path) -> Result<FolderLock, OpenError> {
    make(data)?;
    let path = data.join("towline.lock");
    let how = OpenHow { write: true, create: true, ..OpenHow::default() };
    let file = File::open(&path, how).map_err(OpenError::io("opening", &path))?;
    for attempt in 0.. {
        if file.try_lock().map_err(OpenError::io("locking", &path))? {
            break;
        }
        if attempt == limits::RELEASE_ATTEMPTS {
            let pid = disk::read(&path).ok().and_then(|pid| String::from_utf8(pid).ok()).unwrap_or_default();
            let pid = pid.trim();
            let by = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
            return Err(OpenError::Locked { path: data.into(), by });
        }
        rt::block_for(limits::RELEASE_PAUSE);
    }
    let write = || -> io::Result<()> {
        file.set_len(0)?;
        file.write_all_at(format!("{}\n", rt::process_id()).as_bytes(), 0)
    };
    write().map_err(OpenError::io("writing", &path))?;
    Ok(FolderLock(file))
}

/// Makes the folder and those above it that are not there; their names are on the device when this returns.
fn make(data: &Path) -> Result<(), OpenError> {
    let missing: Vec<&Path> =
        data.ancestors().take_while(|path| !path.as_os_str().is_empty() && !disk::exists(path)).collect();
    disk::create_dir_all(data).map_err(OpenError::io("making the folder", data))?;
    // A simulated disk has nothing above the folder.
    for path in missing.into_iter().filter(|_| rt::on_machine()) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk::sync_folder(parent).map_err(OpenError::io("flushing the folder", parent))?;
    }
    Ok(())
}

/// Writes a small file of a shard's folder as a whole: durable with its name when this returns, or not there.
/// `making` is the name that it has until then.
pub(crate) fn put(shard_folder: &Path, making: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let making = shard_folder.join(making);
    let file = File::open(&making, OpenHow { write: true, create: true, ..OpenHow::default() })?;
    file.set_len(0)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    disk::rename(&making, &shard_folder.join(name))?;
    disk::sync_folder(shard_folder)
}

/// A shard's folder.
pub(crate) fn shard_folder(data: &Path, shard: ShardId) -> PathBuf {
    data.join(format!("shard-{:04}", shard.0))
}

/// The folder of a shard's segments.
pub(crate) fn segments_folder(shard_folder: &Path) -> PathBuf {
    shard_folder.join("wal")
}

/// The folder of the shard whose segments are there.
pub(crate) fn shard_of(segments: &Path) -> PathBuf {
    segments.parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// A segment's file.
pub(crate) fn segment_path(segments: &Path, start: Lsn) -> PathBuf {
    segments.join(format!("{:016x}.wal", start.0))
}

/// The shards that have a folder here, in order.
pub(crate) fn shards(data: &Path) -> Result<Vec<ShardId>, OpenError> {
    let mut found = Vec::new();
    for name in disk::names(data).map_err(OpenError::io("reading the folder", data))? {
        found.extend(name.strip_prefix("shard-").and_then(|n| n.parse().ok()).map(ShardId));
    }
    found.sort_unstable();
    Ok(found)
}

/// The segments that are there, in order of their first LSN.
pub(crate) fn list_segments(segments: &Path) -> Result<Vec<Lsn>, OpenError> {
    let mut found = Vec::new();
    for name in disk::names(segments).map_err(OpenError::io("reading the folder", segments))? {
        if let Some(hex) = name.strip_suffix(".wal").filter(|h| h.len() == 16)
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
    for name in disk::names(segments).map_err(OpenError::io("reading the folder", segments))? {
        if name.ends_with(".tmp") {
            let path = segments.join(name);
            disk::remove(&path).map_err(OpenError::io("removing", &path))?;
        }
    }
    Ok(())
}
