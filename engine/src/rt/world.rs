//! The world that a node can run in instead of the machine: a clock, tasks, a disk and a network that
//! the simulator makes up. Present with the feature `sim` only; not part of the stable interface.
//!
//! A thread that has entered a world ([`enter`]) runs everything of this crate in it, with the same
//! code as on the machine from here upwards: the runtime's functions ask [`current`] first.
//!
//! What is `Send` and `Sync` here is so because the engine's types are; a world lives on one thread.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::telemetry::Counters;
use towline_wire::superblock::SlotLoss;
use towline_wire::{Lsn, Seq, ShardId, Term};

pub use super::disk::OpenHow;
pub use super::ring::Held;

/// A future that stays on its thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Bytes that do not change while they are held.
pub type Bytes = Rc<dyn Deref<Target = [u8]>>;

/// A task of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Everything outside of a node. Whatever does not name a node is of the node whose task runs.
pub trait World {
    /// Nanoseconds on a clock that only goes forward. Never 0.
    fn now_ns(&self) -> u64;
    /// Microseconds since 1970; may jump.
    fn wall_us(&self) -> u64;
    /// Fills a buffer with random bytes.
    fn random(&self, out: &mut [u8]);

    /// Starts a core of this node: a group of tasks, of which `main` is the first. Its first step is
    /// not taken before this returns.
    fn start_core(&self, name: &str, main: LocalFuture<()>) -> TaskId;
    /// Starts a task on this core. Its first step is taken before this returns.
    fn spawn(&self, task: LocalFuture<()>) -> TaskId;
    /// Drops a task. One that runs at this moment goes when its step is done.
    fn cancel(&self, task: TaskId);
    /// Drops every task of this core but the one that runs.
    fn cancel_others(&self);
    /// Ready once a task has ended or was dropped, and for a core's main task all others of its core.
    fn poll_ended(&self, task: TaskId, cx: &mut Context<'_>) -> Poll<()>;
    /// How long a job on a thread of this node takes until it has its effect, in nanoseconds.
    fn job_ns(&self) -> u64;
    /// Resolves at `at_ns` or a little later.
    fn sleep_until(&self, at_ns: u64) -> LocalFuture<()>;

    /// This node's disk.
    fn disk(&self) -> Rc<dyn Disk>;

    /// Listens; port 0 asks for any.
    ///
    /// # Errors
    /// As the kernel's.
    fn listen(&self, addr: SocketAddr) -> io::Result<Arc<dyn Listener>>;
    /// Connects.
    fn connect(&self, addr: SocketAddr) -> LocalFuture<io::Result<Arc<dyn Socket>>>;

    /// A shard of this node begins to live: `look` shows where it stands until its node ends
    /// (`None` once the shard is gone).
    fn watch(&self, look: Box<dyn Fn() -> Option<ShardView>>);
    /// A shard of this node has ended, or its process: what it had counted by then.
    fn counted(&self, counters: &Counters);
}

/// One node's disk: folders and files. Blocking calls take no time; what may be lost in a crash is
/// what no call has made durable.
pub trait Disk {
    /// Makes a folder and those above it.
    ///
    /// # Errors
    /// As the kernel's, here and below.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Whether there is such a file or folder.
    fn exists(&self, path: &Path) -> bool;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file over whatever is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Opens a file.
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn DiskFile>>;
}

/// An open file.
#[allow(clippy::len_without_is_empty, reason = "nobody asks that of a file")]
pub trait DiskFile: Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// As the kernel's, here and below.
    fn len(&self) -> io::Result<u64>;
    /// Shortens it, or lengthens it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reads; less at the end.
    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes; may write less than all.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Makes its bytes durable.
    fn sync(&self) -> io::Result<()>;
    /// Locks it for this node; `false` if somebody else holds it. Released when it is closed.
    fn try_lock(&self) -> io::Result<bool>;
    /// Starts a write that takes its time and resolves to the bytes written. Once it resolves, what
    /// was written is on the device if the file is `durable`.
    fn start_write(&self, bytes: Bytes, at: u64) -> LocalFuture<io::Result<usize>>;
    /// Starts a read that takes its time; less at the end.
    fn start_read(&self, at: u64, len: usize) -> LocalFuture<io::Result<Vec<u8>>>;
}

/// A listening socket.
pub trait Listener: Send + Sync {
    /// Where.
    fn local_addr(&self) -> SocketAddr;
    /// The next connection, or `WouldBlock`.
    ///
    /// # Errors
    /// As the kernel's.
    fn accept(&self) -> io::Result<Arc<dyn Socket>>;
    /// Ready when there may be one.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// One end of a connection; closed when the last reference is dropped.
pub trait Socket: Send + Sync {
    /// Takes as many bytes as it has room for, or `WouldBlock`.
    ///
    /// # Errors
    /// As the kernel's, here and below.
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
    /// As [`Socket::send`], of pieces that are `held`, and kept until the kernel says that it has let go of
    /// them: at any time, in any order, after the connection has ended too.
    fn send_held(&self, pieces: &[IoSlice<'_>], held: &Rc<dyn Held>) -> io::Result<usize>;
    /// What has come, or `WouldBlock`; 0 if the peer has closed.
    fn receive(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize>;
    /// Ready when as many bytes as the low water mark have come, or the connection has ended.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when there is room, or the connection has ended.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// See [`Socket::poll_readable`]; 1 at first.
    fn set_low_water(&self, bytes: usize);
    /// Ends both directions.
    fn shutdown(&self);
    /// Ends the sending direction.
    fn shutdown_send(&self);
}

/// Where a shard stands, for checks between any two steps.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ShardView {
    /// The shard.
    pub shard: ShardId,
    /// Whether it is a primary's.
    pub is_primary: bool,
    /// On a replica: links between it and the primary, once it has followed.
    pub depth: u8,
    /// The term of the primary that it is or follows.
    pub term: Term,
    /// Where what is kept begins.
    pub oldest: Lsn,
    /// Where a replica's log has begun anew in this process: it holds nothing before that.
    pub begun: Lsn,
    /// Committed, as far as it knows.
    pub commit: Lsn,
    /// On this node's device.
    pub durable: Lsn,
    /// In this node's memory.
    pub appended: Lsn,
    /// Bytes in flight to the device.
    pub in_flight_bytes: u64,
    /// The most of that.
    pub in_flight_bytes_max: u64,
    /// Bytes of recent batches in memory.
    pub ring_bytes: u64,
    /// The most of that which may be on the device already.
    pub live_window_bytes: u64,
    /// Memory of the batch that is open, and of what lies behind it.
    pub open_bytes: u64,
    /// The most that a batch may take.
    pub open_bytes_max: u64,
    /// Bytes of a batch that comes in and waits for segments.
    pub arriving_bytes: u64,
    /// Chunks of a snapshot that are held to be sent.
    pub snapshot_chunks: usize,
    /// Bytes read, or being read, ahead of links that catch up.
    pub ahead_bytes: u64,
    /// Bytes that a link may have under way.
    pub link_window: u64,
    /// A replica's handler has returned up to here.
    pub applied: Lsn,
    /// The number of the next record.
    pub next_seq: Seq,
    /// Why it takes nothing any more.
    pub stopped: Option<String>,
    /// Why it follows nobody, if it is a replica that does not.
    pub unlinked: String,
    /// A newer term was seen.
    pub is_deposed: bool,
    /// A primary's slots.
    pub slots: Vec<SlotView>,
    /// The version of a primary's settings that is in force.
    pub settings_version: u64,
    /// How many replicas must have been heard lately for an append, and what is lately in nanoseconds.
    pub min_replicas: (u8, u64),
    /// Somebody waits for what holds.
    pub overdue: bool,
    /// The lowest end of a commit that somebody waits for.
    pub waits_from: Option<Lsn>,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments that are kept ready.
    pub segments_ahead: u64,
    /// Bytes of log that may be kept for slots and not committed, if that is bounded.
    pub cap: Option<u64>,
    /// Bytes of log that are kept in any case; `None`: all.
    pub keep: Option<u64>,
}

/// Where a primary's slot stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Whose it is.
    pub name: String,
    /// A link serves it.
    pub connected: bool,
    /// Why it was lost, if it was.
    pub lost: Option<SlotLoss>,
    /// The log is kept from here on.
    pub restart: Lsn,
    /// Handed to the network.
    pub sent: Lsn,
    /// In the replica's memory.
    pub received: Lsn,
    /// On its device.
    pub flushed: Lsn,
    /// Through its handler.
    pub applied: Lsn,
    /// What counts as flushed for commits.
    pub counted: Lsn,
    /// Whether it counts for commits.
    pub counts: bool,
    /// When its replica was heard last.
    pub heard_ns: u64,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// The world of this thread, if it has entered one.
pub fn current() -> Option<Rc<dyn World>> {
    // A thread that ends may drop what asks after this.
    CURRENT.try_with(|world| world.borrow().clone()).ok().flatten()
}

/// This thread is in `world` until the guard is dropped.
#[must_use]
pub fn enter(world: Rc<dyn World>) -> Entered {
    Entered(CURRENT.replace(Some(world)))
}

/// A stay in a world.
pub struct Entered(Option<Rc<dyn World>>);

impl std::fmt::Debug for Entered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entered")
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
