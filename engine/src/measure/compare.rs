//! Comparing the logs of several nodes byte for byte, as `cmp` would.

use std::path::Path;

use towline_wire::{BLOCK, Lsn, ShardId};

use crate::limits;
use crate::protocol::recovery::LogSource;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::source::SegmentSource;
use crate::shard::wal::superblock_file;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Bytes of log that every node still keeps and that were compared.
    pub bytes: u64,
    /// The first LSN at which they differ, if they do.
    pub differ_at: Option<Lsn>,
}

/// Compares one shard's segments in several nodes' folders, from the oldest position that all keep
/// up to `end`. The nodes may be running, as long as `end` is durable on all.
///
/// # Errors
/// What cannot be read.
pub fn compare_logs(folders: &[&Path], shard: ShardId, end: Lsn) -> Result<Compared, OpenError> {
    let mut sources = Vec::new();
    let mut oldest = Lsn::ZERO;
    for data in folders {
        let shard_folder = folder::shard_folder(data, shard);
        let superblock = superblock_file::read(&shard_folder)?
            .ok_or_else(|| OpenError::MissingShard { path: shard_folder.clone(), shards: shard.0 + 1 })?;
        let segments = folder::segments_folder(&shard_folder);
        sources.push(SegmentSource::open(&segments, superblock.segment_bytes, superblock.oldest_lsn, end, false)?);
        oldest = oldest.max(superblock.oldest_lsn);
    }
    let mut at = oldest;
    while at < end {
        let len = (end.since(at) as usize).min(limits::READ_CHUNK_BYTES);
        let mut chunks = Vec::new();
        for (source, data) in sources.iter_mut().zip(folders) {
            chunks.push(source.bytes(at, len).map_err(OpenError::io("reading the log in", *data))?);
        }
        for other in &chunks[1..] {
            if other != &chunks[0] {
                let differ = chunks[0].iter().zip(*other).position(|(a, b)| a != b).unwrap_or(0);
                let differ_at = Lsn(at.0 + (differ - differ % BLOCK) as u64);
                return Ok(Compared { bytes: at.since(oldest), differ_at: Some(differ_at) });
            }
        }
        at = Lsn(at.0 + len as u64);
    }
    Ok(Compared { bytes: end.since(oldest), differ_at: None })
}
