//! Opening a node's folder: the lock, what the machine must offer, and every shard's recovery.

use std::path::Path;

use towline_wire::handshake::NodeName;
use towline_wire::{ShardId, SystemId};

use crate::config::NodeConfig;
use crate::rt;
use crate::rt::disk::{self, File, OpenHow};
use crate::shard::wal::direct;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::open::{self, NewSlice, OpenedSlice};
use crate::shard::wal::superblock_file::{self, OwnedSuperblock};
use crate::sys;

/// Written once every shard was made, so that a shard that is missing later is told from one that
/// was never made.
const MADE: &str = "towline.made";

/// Memory that each executor's rings need besides its buffers.
const RINGS_BYTES: u64 = 512 << 10;
/// Least registered memory of an executor.
const IO_MEMORY_MIN: u64 = 64 << 10;

/// Checks what the machine must offer before an executor starts; returns the registered memory that
/// each of them may have.
pub(crate) fn check_machine(config: &NodeConfig, cores: usize) -> Result<usize, OpenError> {
    if !rt::on_machine() {
        return Ok(0);
    }
    sys::probe_io_uring().map_err(|source| OpenError::IoUring { source })?;
    let limit = sys::memlock_limit().map_err(OpenError::io("reading the memlock limit of", "this process"))?;
    io_memory(config.io_memory_bytes as u64, cores, limit)
}

/// The registered memory of each executor under a memlock limit. An arena is registered in each of
/// an executor's three rings, and counts three times.
fn io_memory(wanted: u64, cores: usize, limit: Option<u64>) -> Result<usize, OpenError> {
    let Some(limit) = limit else { return Ok(wanted as usize) };
    let each = (limit / cores as u64).saturating_sub(RINGS_BYTES) / 3;
    let each = each - each % IO_MEMORY_MIN;
    if each < IO_MEMORY_MIN {
        let needed = cores as u64 * (RINGS_BYTES + 3 * IO_MEMORY_MIN);
        return Err(OpenError::Memlock { limit, cores, needed });
    }
    Ok(each.min(wanted) as usize)
}

/// What the folder says it is, from its first shard; `None` if it is new.
pub(crate) fn identity(data: &Path) -> Result<Option<OwnedSuperblock>, OpenError> {
    superblock_file::read(&folder::shard_folder(data, ShardId(0)))
}

/// A new system's identity.
pub(crate) fn new_system(data: &Path) -> Result<SystemId, OpenError> {
    let mut system = SystemId::NONE;
    while system.is_none() {
        rt::random(&mut system.0).map_err(OpenError::io("making a system id for", data))?;
    }
    Ok(system)
}

/// Recovers every shard, several at a time. `rename` gives the folder another name: a replica's for
/// a former primary, none for a promotion.
pub(crate) fn open_shards(
    config: &NodeConfig,
    (system, shard_count, segment_bytes): (SystemId, u32, u64),
    rename: NodeName,
) -> Result<Vec<OpenedSlice>, OpenError> {
    let data = &config.data;
    direct::check_folder(data)?;
    let made = data.join(MADE);
    let is_made = disk::exists(&made);
    if !is_made && identity(data)?.is_some_and(|s| s.floor_lsn.0 > 0 || s.term.0 > 1) {
        // Lost, but the log itself says that the node was whole once.
        tracing::warn!("{} is missing and made anew", made.display());
    }
    if is_made {
        let found = folder::shards(data)?;
        if let Some(shard) = (0..shard_count).map(ShardId).find(|s| !found.contains(s)) {
            return Err(OpenError::MissingShard { path: folder::shard_folder(data, shard), shards: shard_count });
        }
    }
    let open_one = |shard: &ShardId| {
        let new = NewSlice { system, shard: *shard, shard_count, segment_bytes, name: rename };
        if is_made && superblock_file::read(&folder::shard_folder(data, *shard))?.is_none() {
            return Err(OpenError::MissingShard {
                path: folder::shard_folder(data, *shard).join("superblock"),
                shards: shard_count,
            });
        }
        open::open(data, &new, config.in_flight_bytes_max())
    };
    let shards: Vec<ShardId> = (0..shard_count).map(ShardId).collect();
    let opened = if rt::on_machine() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut opened = Vec::with_capacity(shards.len());
        for group in shards.chunks(threads) {
            let results: Vec<_> = std::thread::scope(|scope| {
                let running: Vec<_> = group.iter().map(|shard| scope.spawn(|| open_one(shard))).collect();
                running.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
            });
            for slice in results {
                opened.push(slice?);
            }
        }
        opened
    } else {
        shards.iter().map(open_one).collect::<Result<_, _>>()?
    };
    if !is_made {
        mark_made(data)?;
    }
    Ok(opened)
}

/// Writes down that every shard was made.
pub(crate) fn mark_made(data: &Path) -> Result<(), OpenError> {
    let made = data.join(MADE);
    let how = OpenHow { write: true, create: true, ..OpenHow::default() };
    let file = File::open(&made, how).map_err(OpenError::io("creating", &made))?;
    let text = b"every shard of this node was made\n";
    file.write_all_at(text, 0).map_err(OpenError::io("writing", &made))?;
    file.sync_all().map_err(OpenError::io("flushing", &made))?;
    disk::sync_folder(data).map_err(OpenError::io("flushing the folder", data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_lockable_memory_is_an_error_that_says_how_much_is_needed() {
        assert_eq!(io_memory(32 << 20, 4, None).unwrap(), 32 << 20);
        assert_eq!(io_memory(32 << 20, 1, Some(8 << 20)).unwrap(), 5 << 19);
        let e = io_memory(32 << 20, 16, Some(8 << 20)).unwrap_err().to_string();
        assert!(e.contains("8388608 bytes may be locked, 16 cores need 11534336"), "{e}");
    }
}
