//! Opening and using a replica.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use thiserror::Error;
use towline_wire::handshake::NodeName;
use towline_wire::{Lsn, ShardId, SystemId};

use super::core::{MakeHandler, ShardSetup};
use super::status::ShardStatus;
use super::{Machine, Running, prepare};
use crate::apply::{Apply, LogApply};
use crate::config::{ReplicaConfig, StaleReads};
use crate::oneshot;
use crate::protocol::replica::Replica as ReplicaState;
use crate::protocol::slots::{SlotError, Slots};
use crate::rt;
#[cfg(feature = "sim")]
use crate::rt::world::LocalFuture;
use crate::shard::link::ask;
use crate::shard::mesh::ticket::block_on;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::open::OpenedSlice;
use crate::shard::wal::superblock_file::SuperblockFile;
use crate::shard::{Role, ShardConfig};

/// Registered memory of the executor that asks a primary.
const ASK_IO_MEMORY: usize = 64 << 10;

/// A running replica. Dropping it stops it.
pub struct Replica {
    running: Running,
    stale_reads: StaleReads,
}

/// What the embedder may answer reads of a shard from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Its state, which follows the log.
    Following,
    /// Its old state, which follows nothing any more: a snapshot is about to replace it.
    Stale,
}

/// Reads of a shard are refused while a snapshot replaces its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("shard {0} takes a snapshot: what is here is stale, read elsewhere or later")]
pub struct StaleError(pub ShardId);

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replica({})", self.running.shared.name)
    }
}

impl Replica {
    /// Opens a replica that only keeps the log.
    ///
    /// # Errors
    /// As [`Replica::open_with`].
    pub fn open(config: ReplicaConfig) -> Result<Self, OpenError> {
        Self::open_with(config, |_| LogApply)
    }

    /// Opens a replica whose shards give their records to handlers; `handler` makes one for each
    /// shard, on the shard's core.
    ///
    /// A new folder takes its system, shards and segment size from the primary, so the first start
    /// waits until the primary answers. Later starts do not need it.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong and what to do.
    pub fn open_with<H, F>(config: ReplicaConfig, handler: F) -> Result<Self, OpenError>
    where
        H: Apply + 'static,
        F: Fn(ShardId) -> H + Send + Sync + 'static,
    {
        block_on(Self::start_boxed(config, boxed(handler)))
    }

    /// As [`Replica::open_with`], for a task of a simulated node.
    ///
    /// # Errors
    /// As [`Replica::open_with`].
    #[cfg(feature = "sim")]
    pub fn open_simulated<H, F>(config: ReplicaConfig, handler: F) -> LocalFuture<Result<Self, OpenError>>
    where
        H: Apply + 'static,
        F: Fn(ShardId) -> H + Send + Sync + 'static,
    {
        Self::start_boxed(config, boxed(handler))
    }

    /// The same for all handlers: else every crate that opens a replica would compile the engine's tasks once more.
    fn start_boxed(config: ReplicaConfig, make: MakeHandler) -> Pin<Box<dyn Future<Output = Result<Self, OpenError>>>> {
        Box::pin(Self::start(config, make))
    }

    async fn start(config: ReplicaConfig, make: MakeHandler) -> Result<Self, OpenError> {
        let name = config.check()?;
        let stale_reads = config.stale_reads;
        let lock = folder::lock(&config.node.data)?;
        let data = config.node.data.clone();
        let (system, shards, segment_bytes) = match prepare::identity(&data)? {
            None => ask_primary(config.primary).await?,
            Some(s) if s.name != name && s.name != NodeName::NONE => {
                let (on_disk, configured) = (s.name.to_string(), config.name);
                return Err(OpenError::ReplicaName { path: data, on_disk, configured });
            }
            Some(s) => (s.system, s.shard_count, s.segment_bytes),
        };
        let machine = Machine::take(&config.node, shards, config.listen)?;
        let mut slices = prepare::open_shards(&config.node, (system, shards, segment_bytes), name)?;
        for slice in &mut slices {
            // A former primary's folder becomes a replica's.
            if slice.superblock.name != name {
                slice.superblock.name = name;
                slice.superblock.slots.clear();
                let file: &mut SuperblockFile = &mut slice.superblock_file;
                file.write(&mut slice.superblock)?;
            }
        }
        let mut process = [0; 8];
        rt::random(&mut process).map_err(OpenError::io("drawing a number for", &data))?;
        let process = u64::from_le_bytes(process).max(1);
        let setups = slices.into_iter().map(|slice| {
            let id = slice.superblock.shard;
            let identity = (system, id, shards, segment_bytes);
            let (term, history) = (slice.superblock.term, slice.history.clone());
            let slots = slots_of(&slice);
            let role = ReplicaState::new(identity, term, history, slice.end, slice.commit).feeding(slots);
            let mut config_of_shard = ShardConfig::new(&config.node, shards, segment_bytes);
            config_of_shard.cap = config.retain_max.cap(config.node.retain.keep(), segment_bytes);
            config_of_shard.slot_idle_max = config.slot_idle_max;
            config_of_shard.flow = config.flow(shards);
            config_of_shard.zero_copy = config.zero_copy;
            config_of_shard.reconnect_max = config.reconnect_max;
            config_of_shard.rebuild = config.rebuild;
            let follow = Some(((name, process), config.primary, make.clone()));
            ShardSetup { id, config: config_of_shard, role: Role::Replica(role), slice, follow }
        });
        let description = super::Description { is_primary: false, name: config.name.clone(), system, settings: None };
        let running = Running::start(&config.node, description, setups.collect(), machine, lock).await?;
        Ok(Self { running, stale_reads })
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    #[must_use]
    pub fn listening(&self) -> Option<SocketAddr> {
        self.running.listening
    }

    /// The cluster's log.
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.running.shared.system
    }

    /// What is committed and on this replica's device, as the shard's core published last.
    #[must_use]
    pub fn committed(&self, shard: ShardId) -> Lsn {
        self.running.shared.watermarks[shard.0 as usize].read()
    }

    /// Whether the embedder may answer reads of a shard, and whether what it reads is stale: that is from when
    /// the primary has offered a snapshot until it is installed, whatever links break meanwhile. Costs one
    /// load.
    ///
    /// # Errors
    /// If stale reads are to be refused ([`StaleReads::Refuse`]).
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn reads(&self, shard: ShardId) -> Result<Reads, StaleError> {
        match (self.running.shared.watermarks[shard.0 as usize].is_stale(), self.stale_reads) {
            (false, _) => Ok(Reads::Following),
            (true, StaleReads::Answer) => Ok(Reads::Stale),
            (true, StaleReads::Refuse) => Err(StaleError(shard)),
        }
    }

    /// Makes a slot on every shard, durably: a replica of that name may follow this one then, and the log
    /// is kept for it here. It only reads: no commit waits for it. A `temporary` slot ends with its link,
    /// and no restart keeps it. One that was lost is made anew.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub fn create_slot(&self, name: &str, temporary: bool) -> Result<(), SlotError> {
        block_on(self.create_slot_soon(name, temporary))
    }

    /// As [`Replica::create_slot`], for a task.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub async fn create_slot_soon(&self, name: &str, temporary: bool) -> Result<(), SlotError> {
        self.running.shared.make_slot(name, temporary).await
    }

    /// Removes a slot on every shard, durably: its link ends, and the log is kept for it here no more.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub fn drop_slot(&self, name: &str) -> Result<(), SlotError> {
        block_on(self.drop_slot_soon(name))
    }

    /// As [`Replica::drop_slot`], for a task.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub async fn drop_slot_soon(&self, name: &str) -> Result<(), SlotError> {
        self.running.shared.remove_slot(name).await
    }

    /// Every shard's positions, slots, counters and histograms.
    #[must_use]
    pub fn status(&self) -> Vec<ShardStatus> {
        block_on(self.running.shared.shard_statuses())
    }

    /// The status as the JSON document that `towline status --json` shows.
    #[must_use]
    pub fn status_json(&self) -> String {
        block_on(self.running.shared.status())
    }

    /// Stops: what was received is written, the folder is left clean. Blocks until all threads have
    /// ended.
    pub fn stop(mut self) {
        block_on(self.running.stop());
    }

    /// As `stop`, for a task of a simulated node.
    #[cfg(feature = "sim")]
    pub async fn stop_simulated(mut self) {
        self.running.stop().await;
    }
}

fn boxed<H, F>(handler: F) -> MakeHandler
where
    H: Apply + 'static,
    F: Fn(ShardId) -> H + Send + Sync + 'static,
{
    Arc::new(move |shard| Box::new(handler(shard)))
}

/// The slots of those that a replica feeds, as its folder has them.
fn slots_of(slice: &OpenedSlice) -> Slots {
    let superblock = &slice.superblock;
    let mut saved = superblock.slots.clone();
    // A tail may have been cut off, with what was known of those below.
    saved.iter_mut().for_each(|s| s.restart_lsn = s.restart_lsn.min(slice.end.lsn));
    Slots::new(&[], &saved, true, superblock.oldest_lsn, rt::now_ns()).0
}

/// Asks a primary for its system, shards and segment size, until it answers.
async fn ask_primary(primary: SocketAddr) -> Result<(SystemId, u32, u64), OpenError> {
    let (reply, answer) = oneshot::channel();
    let asking = rt::start_executor("towline-ask", None, ASK_IO_MEMORY, move || async move {
        reply.send(ask::ask(primary).await);
    });
    let asking = asking.map_err(|source| OpenError::IoUring { source })?;
    let answer = answer.await?;
    asking.join().await.map_err(OpenError::io("asking", primary.to_string()))?;
    Ok(answer)
}
