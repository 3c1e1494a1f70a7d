//! The embedder's handler on simulated replicas: keeps what it was given, with its position, as a
//! store would, and checks that it comes in order and once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline::{AppliedBatch, Apply, ApplyError, Deliver, Lsn, Seq, ShardId};

use super::oracle::{Oracle, owner_at_a_glance};

/// What handlers keep across crashes, by node and shard: the end of each batch and its records.
pub type Kept = BTreeMap<(usize, ShardId), Vec<Batch>>;

/// Where a batch starts and ends, the number of its first record, and whose its records are.
pub type Batch = (Lsn, Lsn, Seq, Vec<usize>);

/// A handler of one shard on one node.
pub struct Handler {
    /// The node.
    pub node: usize,
    /// What it keeps.
    pub kept: Arc<Mutex<Kept>>,
    /// Who knows whose bytes these are.
    pub oracle: Arc<Mutex<Oracle>>,
    /// What went wrong.
    pub wrong: Arc<Mutex<Vec<String>>>,
    /// Whether it takes what is flushed only.
    pub flushed: bool,
    /// Whether it may begin anywhere when it keeps nothing: where the log lets go of its beginning.
    pub gaps: bool,
    /// Whether it may begin anywhere at any time: it forgets what it has then.
    pub forgets: bool,
    /// Its shard.
    pub shard: ShardId,
}

/// A lock, whoever panicked while holding it: a panic is a violation of its own.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apply for Handler {
    fn resume_at(&mut self, shard: ShardId) -> Lsn {
        if self.forgets {
            lock(&self.kept).remove(&(self.node, shard));
        }
        lock(&self.kept).get(&(self.node, shard)).and_then(|k| k.last()).map_or(Lsn::ZERO, |last| last.1)
    }

    fn takes_gaps(&self) -> bool {
        self.forgets || self.gaps && lock(&self.kept).get(&(self.node, self.shard)).is_none_or(Vec::is_empty)
    }

    fn deliver(&self) -> Deliver {
        if self.flushed { Deliver::Flushed } else { Deliver::Committed }
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let oracle = lock(&self.oracle);
        let mut kept = lock(&self.kept);
        let batches = kept.entry((self.node, batch.shard())).or_default();
        let end = batches.last().map_or(Lsn::ZERO, |last| last.1);
        if self.forgets && batch.lsn() > end {
            batches.clear();
        }
        if batch.lsn() != end && !(self.gaps && batches.is_empty()) {
            let text =
                format!("node {} shard {} was given {} to apply after {end}", self.node, batch.shard(), batch.lsn());
            lock(&self.wrong).push(text);
        }
        let mut ids = Vec::with_capacity(batch.record_count() as usize);
        for bytes in batch.records() {
            match owner_at_a_glance(&oracle, batch.shard(), bytes) {
                Some(id) => ids.push(id),
                None => lock(&self.wrong).push(format!(
                    "node {} applied what nobody appended, at {}",
                    self.node,
                    batch.lsn()
                )),
            }
        }
        batches.push((batch.lsn(), batch.end_lsn(), batch.first_seq(), ids));
        Ok(())
    }

    fn cut(&mut self, shard: ShardId, to: Lsn) -> Result<(), ApplyError> {
        if !self.flushed {
            lock(&self.wrong)
                .push(format!("node {} shard {shard} is to take back committed records from {to} on", self.node));
        }
        let mut kept = lock(&self.kept);
        let batches = kept.entry((self.node, shard)).or_default();
        batches.retain(|b| b.1 <= to);
        Ok(())
    }
}
