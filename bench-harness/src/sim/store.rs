//! An embedder with state on simulated nodes: every batch so far, which it keeps across crashes. On a primary
//! it follows its own log and lets go of what it has; to replicas that come later it gives what it keeps.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline::{
    LocalShard, Lsn, Primary, Produced, Seq, ShardId, Snapshot, SnapshotError, SnapshotInfo, Snapshots, Stage, offline,
};

use super::cluster::DATA;
use super::handler::{Batch, Kept, lock};
use super::oracle::{Oracle, owner_at_a_glance};
use super::world::rng::Rng;

/// What is left of the log behind what the embedder has.
const BEHIND: u64 = 64 << 10;

/// The embedder of a node.
#[derive(Clone)]
pub struct Store {
    /// The node.
    pub node: usize,
    /// What embedders keep.
    pub kept: Arc<Mutex<Kept>>,
    /// Who knows whose bytes these are.
    pub oracle: Arc<Mutex<Oracle>>,
    /// What went wrong.
    pub wrong: Arc<Mutex<Vec<String>>>,
    /// Where its choices come from.
    pub seed: u64,
}

impl Store {
    /// For the node's configuration.
    #[must_use]
    pub fn snapshots(&self) -> Option<Snapshots> {
        Some(Snapshots::new(Arc::new(self.clone())))
    }

    /// Follows a primary's own log, on every shard.
    pub fn follow(&self, primary: &Primary, shards: u32) {
        for shard in (0..shards).map(ShardId) {
            let mut one = self.clone();
            one.seed = self.seed.wrapping_add(u64::from(shard.0));
            primary.spawn_on(shard, move |local| async move {
                let rng = &mut Rng::new(one.seed);
                loop {
                    local.sleep(Duration::from_millis(20 + rng.below(200))).await;
                    one.take_in(&local);
                }
            });
        }
    }

    /// Takes what is committed into the state, and lets go of the log before it.
    fn take_in(&self, local: &LocalShard) {
        let (shard, commit) = (local.id(), local.commit_lsn());
        let end = lock(&self.kept).get(&(self.node, shard)).and_then(|k| k.last()).map_or(Lsn::ZERO, |last| last.1);
        if end < commit {
            let mut new: Vec<Batch> = Vec::new();
            let oracle = lock(&self.oracle);
            // A disk that fails is tried again.
            let _ = offline::read_log(Path::new(DATA), shard, Some(end), |batch| {
                let h = batch.header();
                if h.end_lsn() > commit {
                    return ControlFlow::Break(());
                }
                let ids = batch.records().filter_map(|bytes| owner_at_a_glance(&oracle, shard, bytes)).collect();
                new.push((h.lsn(), h.end_lsn(), h.first_seq(), ids));
                ControlFlow::Continue(())
            });
            drop(oracle);
            lock(&self.kept).entry((self.node, shard)).or_default().extend(new);
        }
        let end = lock(&self.kept).get(&(self.node, shard)).and_then(|k| k.last()).map_or(Lsn::ZERO, |last| last.1);
        local.trim(Lsn(end.0.saturating_sub(BEHIND)));
    }
}

fn encode(batches: &[Batch]) -> Vec<u8> {
    let mut out = Vec::new();
    for (lsn, end, seq, ids) in batches {
        let numbers = [lsn.0, end.0, seq.0, ids.len() as u64].into_iter().chain(ids.iter().map(|id| *id as u64));
        numbers.for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    }
    out
}

fn decode(bytes: &[u8], into: &mut Vec<Batch>) {
    let mut numbers = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let mut next = || numbers.next();
    while let Some(lsn) = next() {
        let mut field = || next().expect("a chunk has whole batches");
        let (end, seq, count) = (field(), field(), field());
        let ids = (0..count).map(|_| field() as usize).collect();
        into.push((Lsn(lsn), Lsn(end), Seq(seq), ids));
    }
}

impl Snapshot for Store {
    fn produce(&self, shard: ShardId) -> Result<Produced, SnapshotError> {
        let batches = lock(&self.kept).get(&(self.node, shard)).cloned().unwrap_or_default();
        let Some(at) = batches.last().map(|last| last.1) else {
            return Err(SnapshotError("there is no state yet".into()));
        };
        let rng = &mut Rng::new(self.seed ^ at.0);
        let chunks: Vec<Vec<u8>> = batches.chunks(1 + rng.below(3) as usize).map(encode).collect();
        let total = chunks.iter().map(|c| c.len() as u64).sum();
        let total_bytes = rng.chance(0.5).then_some(total);
        Ok(Produced { at, total_bytes, chunks: Box::new(chunks.into_iter().map(Ok)) })
    }

    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError> {
        Ok(Box::new(Staged { store: self.clone(), shard: info.shard, batches: Vec::new() }))
    }
}

struct Staged {
    store: Store,
    shard: ShardId,
    batches: Vec<Batch>,
}

impl Stage for Staged {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        decode(bytes, &mut self.batches);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        let Self { store, shard, batches } = *self;
        if let Err(e) = whole(&batches) {
            lock(&store.wrong)
                .push(format!("node {} shard {shard} installs a snapshot that is not whole: {e}", store.node));
        }
        lock(&store.kept).insert((store.node, shard), batches);
        Ok(())
    }
}

/// Whether these are all batches from the log's start on, each once and in order.
///
/// # Errors
/// Where they are not.
pub fn whole(batches: &[Batch]) -> Result<(), String> {
    let (mut at, mut seq) = (Lsn::ZERO, Seq(0));
    for (lsn, end, first, ids) in batches {
        if (*lsn, *first) != (at, seq) {
            return Err(format!(
                "the batch at {lsn}, of records from {} on, comes where {at} and {} should",
                first.0, seq.0
            ));
        }
        (at, seq) = (*end, Seq(seq.0 + ids.len() as u64));
    }
    Ok(())
}
