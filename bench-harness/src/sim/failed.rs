//! An I/O error is final (law 8): what a shard must not do any more once a write or a flush has failed under
//! it, however often it is tried again.

use std::path::Path;

use towline::ShardId;
use towline::world::ShardView;

use super::cluster::{Cluster, DATA};
use super::world::FailedWrite;

/// How long a shard may take to see it.
const SEEN_NS: u64 = 1_000_000_000;

/// Whose file it was.
#[must_use]
pub fn shard_of(path: &Path) -> Option<ShardId> {
    let folder = path.strip_prefix(DATA).ok()?.components().next()?.as_os_str().to_str()?;
    folder.strip_prefix("shard-")?.parse().ok().map(ShardId)
}

/// Where in the log a write to a segment was to go.
fn lsn_of(failed: &FailedWrite) -> Option<u64> {
    let is_segment = failed.path.parent()?.ends_with("wal") && failed.path.extension()? == "wal";
    let start = failed.path.file_stem().filter(|_| is_segment)?.to_str()?;
    Some(u64::from_str_radix(start, 16).ok()? + failed.at)
}

/// Looks at the shards of a node's process.
pub fn look(c: &Cluster, n: usize, views: &[ShardView]) {
    let id = c.nodes[n].id;
    for failed in c.world.failed(id) {
        let Some(v) = shard_of(&failed.path).and_then(|shard| views.iter().find(|v| v.shard == shard)) else {
            continue;
        };
        // Of a log that is being cut or begins anew, what is durable is not where that is written.
        let lsn = lsn_of(&failed).filter(|lsn| v.appended.0 > *lsn && v.begun.0 <= *lsn && failed.is_batch);
        if lsn.is_some_and(|lsn| v.durable.0 > lsn) {
            c.fail(format!("node {n} shard {} takes for durable what failed: {failed:?}: {v:?}", v.shard));
        }
        if v.stopped.is_none() && c.world.now_ns() > failed.at_ns.max(c.world.paused_until(id)) + SEEN_NS {
            c.fail(format!("node {n} shard {} goes on after an error of its disk: {failed:?}: {v:?}", v.shard));
        }
    }
}
