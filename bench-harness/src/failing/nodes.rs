//! The nodes of a run: their configuration, their folders, and the replica's handler.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towline::{
    AppliedBatch, Apply, ApplyError, Lsn, NodeConfig, OpenError, Primary, PrimaryConfig, Replica, ReplicaConfig,
    Retain, ShardId, SlotState,
};

use super::lock;
use super::records::{LARGEST, owner};

/// How long anything may take that must come about.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Names of the folders.
pub(super) const NAMES: [&str; 2] = ["primary", "r1"];

/// Where the nodes of a run are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) seed: u64,
    /// Which of the runs beside each other.
    pub(super) job: usize,
}

impl Place {
    pub(super) fn folder(&self, node: usize) -> PathBuf {
        self.dir.join(NAMES[node])
    }

    fn configure(&self, node: usize, config: &mut NodeConfig) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        config.cpus = vec![(self.job + node) % cores];
        (config.segment_bytes, config.segments_ahead, config.batch_bytes) = (64 << 10, 1, 16 << 10);
        (config.write_depth, config.record_bytes_max) = (4, LARGEST);
        (config.retain, config.live_window_bytes) = (Retain::Bytes(64 << 10), 64 << 10);
        config.io_memory_bytes = 256 << 10;
    }

    /// Whether the replica has a folder already, and knows whose it is.
    pub(super) fn has_replica(&self) -> bool {
        self.folder(1).join("shard-0000/superblock").exists()
    }

    /// Opens the primary, on any port if none is given.
    pub(super) fn primary(&self, listen: Option<SocketAddr>) -> Result<Primary, OpenError> {
        let mut config = PrimaryConfig::new(self.folder(0));
        self.configure(0, &mut config.node);
        config.listen = Some(listen.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()));
        config.replicas = vec![NAMES[1].into()];
        config.commit = "ack_n=1".parse().expect("a policy");
        Primary::open(config)
    }

    pub(super) fn replica(&self, primary: SocketAddr, kept: &Arc<Mutex<Kept>>) -> Result<Replica, OpenError> {
        let mut config = ReplicaConfig::new(self.folder(1), NAMES[1], primary);
        self.configure(1, &mut config.node);
        config.reconnect_max = Duration::from_millis(50);
        let (kept, seed) = (kept.clone(), self.seed);
        Replica::open_with(config, move |_| Handler { kept: kept.clone(), seed })
    }
}

/// Removes what an earlier run left.
pub(super) fn clear(dir: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("removing {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

/// Waits until something holds; says whether it came about.
pub(super) fn until(mut holds: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Whether the replica follows and is fed from memory.
pub(super) fn is_live(primary: &Primary) -> bool {
    primary.status().iter().all(|s| s.slots.iter().all(|r| r.state == SlotState::Live))
}

/// Why the shard of a primary has stopped, if it has.
pub(super) fn primary_stopped(primary: &Primary) -> Option<String> {
    primary.status().into_iter().find_map(|s| s.stopped)
}

/// The same of a replica.
pub(super) fn replica_stopped(replica: &Replica) -> Option<String> {
    replica.status().into_iter().find_map(|s| s.stopped)
}

/// What the replica's handler was given, over all lives of the replica.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) end: Lsn,
    /// The numbers of the records, in order.
    pub(super) ids: Vec<usize>,
    pub(super) wrong: Option<String>,
}

struct Handler {
    kept: Arc<Mutex<Kept>>,
    seed: u64,
}

impl Apply for Handler {
    fn resume_at(&mut self, _: ShardId) -> Lsn {
        lock(&self.kept).end
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let kept = &mut *lock(&self.kept);
        if batch.lsn() != kept.end {
            kept.wrong = Some(format!("the handler was given {} after {}", batch.lsn(), kept.end));
        }
        for record in batch.records() {
            match owner(self.seed, record) {
                Some(id) => kept.ids.push(id),
                None => kept.wrong = Some(format!("the handler was given what nobody appended, at {}", batch.lsn())),
            }
        }
        kept.end = batch.end_lsn();
        Ok(())
    }
}
