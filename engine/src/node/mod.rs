//! A node: its folder, its cores, its shards, its listener.
//!
//! Comes in: a configuration. Goes out: a running [`Primary`] or [`Replica`]. [`prepare`] opens the
//! folder with plain blocking calls; [`core`] runs shards on an executor; [`status`] makes the
//! document that `towline status` shows.

pub(crate) mod control;
pub(crate) mod core;
pub(crate) mod mailbox;
pub(crate) mod prepare;
mod primary;
mod replica;
pub(crate) mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use towline_wire::handshake::Hello;
use towline_wire::{Lsn, ShardId, SystemId};

use self::control::Job;
use self::core::{CoreSetup, ShardSetup};
use self::mailbox::Mailbox;
use crate::config::{ConfigError, NodeConfig, RetainMax};
use crate::limits;
use crate::oneshot;
use crate::protocol::settings::{Settings, SettingsError};
pub use crate::protocol::slots::Kind as SlotKind;
use crate::protocol::slots::SlotError;
use crate::rt::net::{Detached, Listener};
use crate::rt::worker::{Worker, WorkerThread};
use crate::rt::{self, ExecutorHandle};
use crate::shard::mesh::inbox::Inbox;
use crate::shard::mesh::local::LocalShard;
use crate::shard::mesh::ticket::block_on;
use crate::shard::slots::SlotChange;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder::FolderLock;
use crate::sys;
pub(crate) use prepare::mark_made;
pub use primary::Primary;
pub use replica::{Reads, Replica, StaleError};
pub use status::{CatchUpStatus, ShardStatus, SlotState, SlotStatus, SnapshotStatus};

/// What a core is told.
pub(crate) enum Command {
    /// A connection that is for one of its shards.
    Connection(Detached, Box<Hello>),
    /// A task of the embedder's.
    Run(ShardId, Box<dyn FnOnce(LocalShard) + Send>),
    /// Let go of the log below an LSN.
    Trim(ShardId, Lsn),
    /// Make or remove a slot on every shard.
    Slots(SlotChange, oneshot::Sender<Vec<Result<(), SlotError>>>),
    /// Bring every shard to these settings.
    Settings(Arc<Settings>, oneshot::Sender<Result<(), SettingsError>>),
    /// A newer primary reigns: finish no commit any more.
    Fence,
    /// How do your shards stand?
    Status(oneshot::Sender<Vec<ShardStatus>>),
    /// Come to rest.
    Stop(oneshot::Sender<()>),
}

/// A core's mailbox.
pub(crate) type CoreMailbox = Mailbox<Command>;

/// A shard's commit LSN where other cores read it: on a cache line of its own (two, as the
/// prefetcher takes them in pairs), so that no shard's progress slows another's.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    commit: AtomicU64,
    /// The embedder's state there is about to be replaced.
    stale: AtomicBool,
}

impl Watermark {
    pub(crate) fn publish(&self, lsn: Lsn) {
        self.commit.store(lsn.0, Ordering::Release);
    }

    pub(crate) fn set_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Release);
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    pub(crate) fn read(&self) -> Lsn {
        Lsn(self.commit.load(Ordering::Acquire))
    }
}

/// Tells everybody who waits for a core, once its thread has ended.
struct CoreGuard {
    node: Arc<NodeShared>,
    number: usize,
}

impl Drop for CoreGuard {
    fn drop(&mut self) {
        self.node.cores[self.number].close();
        if self.number == 0 {
            self.node.jobs.close();
        }
        for inbox in self.node.inboxes.iter().skip(self.number).step_by(self.node.cores.len()) {
            inbox.abandon();
        }
    }
}

/// What all cores of a node, its handles and its connections share.
pub(crate) struct NodeShared {
    pub(crate) is_primary: bool,
    pub(crate) name: String,
    pub(crate) system: SystemId,
    pub(crate) shard_count: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) record_bytes_max: usize,
    /// A primary's, as they are in force on every shard.
    settings: Mutex<Option<Arc<Settings>>>,
    /// The least cap on what slots may hold.
    pub(crate) retain_max_min: u64,
    /// Changes of slots and settings.
    pub(crate) jobs: Mailbox<Job>,
    pub(crate) began: Instant,
    pub(crate) cores: Vec<Arc<CoreMailbox>>,
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    pub(crate) watermarks: Vec<Arc<Watermark>>,
    pub(crate) connections: AtomicUsize,
    pub(crate) fenced: AtomicBool,
    pub(crate) stopping: AtomicBool,
}

impl NodeShared {
    pub(crate) fn core_of(&self, shard: ShardId) -> &CoreMailbox {
        &self.cores[shard.0 as usize % self.cores.len()]
    }

    pub(crate) fn inbox_of(&self, shard: ShardId) -> &Inbox {
        &self.inboxes[shard.0 as usize]
    }

    /// One shard has seen a newer term: a newer primary reigns, over every shard.
    pub(crate) fn fence(&self) {
        if !self.fenced.swap(true, Ordering::Relaxed) {
            self.cores.iter().for_each(|core| core.send(Command::Fence));
        }
    }

    /// A primary's settings.
    pub(crate) fn settings(&self) -> Option<Arc<Settings>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_settings(&self, settings: Arc<Settings>) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Every shard's status, in order of shards.
    pub(crate) async fn shard_statuses(&self) -> Vec<ShardStatus> {
        let mut all = Vec::new();
        for core in &self.cores {
            let (reply, status) = oneshot::channel();
            core.send(Command::Status(reply));
            match status.await {
                Ok(shards) => all.extend(shards),
                Err(gone) => tracing::error!("a core's shards are missing in the status: {gone}"),
            }
        }
        all.sort_by_key(|s| s.shard);
        all
    }

    /// The status document.
    pub(crate) async fn status(&self) -> String {
        status::to_json(self, &self.shard_statuses().await)
    }
}

/// A node that runs: its threads, until it is stopped.
pub(crate) struct Running {
    pub(crate) shared: Arc<NodeShared>,
    executors: Vec<ExecutorHandle>,
    workers: Vec<(Worker, WorkerThread)>,
    /// Held until everything else is gone.
    lock: Option<FolderLock>,
    pub(crate) listening: Option<SocketAddr>,
}

/// What a node says of itself.
pub(crate) struct Description {
    pub(crate) is_primary: bool,
    pub(crate) name: String,
    pub(crate) system: SystemId,
    /// A primary's.
    pub(crate) settings: Option<Settings>,
}

/// What a node needs of its machine. Taken before anything in its folder changes: a start that is
/// refused leaves no term behind.
pub(crate) struct Machine {
    cpus: Vec<Option<usize>>,
    cores: usize,
    io_memory: usize,
    listener: Option<Listener>,
}

impl Machine {
    pub(crate) fn take(config: &NodeConfig, shards: u32, listen: Option<SocketAddr>) -> Result<Self, OpenError> {
        let cpus = cpus(config);
        let cores = cpus.len().min(shards as usize).max(1);
        if let Err(e) = sys::raise_descriptor_limit() {
            tracing::warn!("raising the limit of open files: {e}");
        }
        if let Some(cpu) = config.cpus.iter().find(|cpu| rt::on_machine() && !may_run_on(**cpu)) {
            return Err(ConfigError::CpuNotAllowed(*cpu).into());
        }
        let io_memory = prepare::check_machine(config, cores)?;
        let listener = match listen {
            None => None,
            Some(addr) => Some(bind(addr).map_err(OpenError::io("listening on", addr.to_string()))?),
        };
        Ok(Self { cpus, cores, io_memory, listener })
    }
}

impl Running {
    /// Starts the listener, the worker threads and an executor for each core, and waits until
    /// every shard takes appends.
    pub(crate) async fn start(
        config: &NodeConfig,
        description: Description,
        setups: Vec<ShardSetup>,
        machine: Machine,
        lock: FolderLock,
    ) -> Result<Self, OpenError> {
        let Machine { cpus, cores, io_memory, listener } = machine;
        let listening = listener.as_ref().and_then(|l| l.local_addr().ok());
        let shard_count = setups.len() as u32;
        let spin = config.spin;
        let segment_bytes = setups.first().map_or(config.segment_bytes, |s| s.config.segment_bytes);
        let shared = Arc::new(NodeShared {
            is_primary: description.is_primary,
            name: description.name,
            system: description.system,
            shard_count,
            segment_bytes,
            record_bytes_max: config.record_bytes_max,
            settings: Mutex::new(description.settings.map(Arc::new)),
            retain_max_min: RetainMax::least(config.retain.keep(), segment_bytes),
            jobs: Mailbox::default(),
            began: Instant::now(),
            cores: (0..cores).map(|_| Arc::default()).collect(),
            inboxes: setups.iter().map(|_| Arc::default()).collect(),
            watermarks: setups.iter().map(|_| Arc::default()).collect(),
            connections: AtomicUsize::new(0),
            fenced: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        });
        let thread = |name| Worker::start(name).map_err(OpenError::io("starting a thread for", &config.data));
        let (keeper, keeper_thread) = thread("towline-keep")?;
        let (filler, filler_thread) = thread("towline-fill")?;
        let mut workers = vec![(keeper.clone(), keeper_thread), (filler.clone(), filler_thread)];
        let mut snapshotter = None;
        if config.snapshot.is_some() {
            let (worker, running) = thread("towline-snap")?;
            workers.push((worker.clone(), running));
            snapshotter = Some(worker);
        }
        let mut running = Self { shared, executors: Vec::new(), workers, lock: Some(lock), listening };
        let mut by_core: Vec<Vec<ShardSetup>> = (0..cores).map(|_| Vec::new()).collect();
        for setup in setups {
            by_core[setup.id.0 as usize % cores].push(setup);
        }
        let mut starting = Vec::new();
        let mut listener = listener;
        for (number, shards) in by_core.into_iter().enumerate() {
            let (ready, started) = oneshot::channel();
            let setup = CoreSetup {
                number,
                shards,
                node: running.shared.clone(),
                listener: listener.take(),
                keeper: keeper.clone(),
                filler: filler.clone(),
                snapshotter: snapshotter.clone(),
            };
            let executor = rt::start_executor(&format!("towline-{number}"), cpus[number], io_memory, move || {
                rt::keep_until_executor_ends(CoreGuard { node: setup.node.clone(), number });
                rt::keep_until_executor_ends(ready.guard());
                async move {
                    rt::spin_for(spin);
                    core::run(setup, ready).await;
                    rt::end_all().await;
                }
            });
            running.executors.push(executor.map_err(|source| OpenError::IoUring { source })?);
            starting.push(started);
        }
        drop((keeper, filler, snapshotter));
        for started in starting {
            started.await??;
        }
        Ok(running)
    }

    /// Stops: what was appended is written, waiters that are not committed are told so, the
    /// folder is left clean. Resolves when all threads have ended, for which it blocks on the machine.
    pub(crate) async fn stop(&mut self) {
        if self.shared.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut waits = Vec::new();
        for core in &self.shared.cores {
            let (done, wait) = oneshot::channel();
            core.send(Command::Stop(done));
            waits.push(wait);
        }
        for executor in self.executors.drain(..) {
            if let Err(e) = executor.join().await {
                tracing::error!("a core ended badly: {e}");
            }
        }
        drop(waits);
        for (worker, thread) in self.workers.drain(..) {
            worker.end();
            thread.join().await;
        }
        self.lock = None;
    }
}

/// Listens. A killed process's `io_uring` operations keep its listener open for a moment, as they do
/// its files (see [`folder::lock`](crate::shard::wal::folder::lock)): a restart on the same port waits
/// for that.
fn bind(addr: SocketAddr) -> io::Result<Listener> {
    let mut attempt = 0;
    loop {
        match Listener::bind(addr) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && attempt < limits::PORT_RELEASE_ATTEMPTS => {
                if attempt == 0 {
                    tracing::info!("{addr} is in use: waiting for a process that ends");
                }
                attempt += 1;
                rt::block_for(limits::RELEASE_PAUSE);
            }
            other => return other,
        }
    }
}

/// Whether this process may run on a core: tried by a thread that ends then.
fn may_run_on(id: usize) -> bool {
    let thread = std::thread::spawn(move || core_affinity::set_for_current(core_affinity::CoreId { id }));
    thread.join().unwrap_or(false)
}

/// The cores to run on: those configured, else every one of the machine; `None` where they cannot
/// be told.
fn cpus(config: &NodeConfig) -> Vec<Option<usize>> {
    if !config.cpus.is_empty() {
        return config.cpus.iter().copied().map(Some).collect();
    }
    let all = core_affinity::get_core_ids().unwrap_or_default();
    if all.is_empty() { vec![None] } else { all.into_iter().map(|c| Some(c.id)).collect() }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A simulated process that is gone takes its tasks with it.
        if rt::on_machine() {
            block_on(self.stop());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_is_there_is_told_from_one_that_is_not() {
        assert!(core_affinity::get_core_ids().unwrap().iter().all(|core| may_run_on(core.id)));
        assert!(!may_run_on(1023) || sys::cpus() > 1023);
    }
}
