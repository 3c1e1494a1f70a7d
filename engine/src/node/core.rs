//! One core: an executor thread with its shards' tasks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use towline_wire::ShardId;
use towline_wire::handshake::{Hello, NodeName, Role as PeerRole};

use super::{Command, NodeShared, control, status};
use crate::apply::Apply;
use crate::limits;
use crate::oneshot;
use crate::rt;
use crate::rt::net::{Listener, Socket};
use crate::rt::worker::Worker;
use crate::shard::link::conn::Conn;
use crate::shard::link::from_primary::Follower;
use crate::shard::link::snapshot_in::Incoming;
use crate::shard::link::{accept, client, to_replica};
use crate::shard::mesh::inbox;
use crate::shard::mesh::local::LocalShard;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::keep::{Keeper, LiveSuperblock};
use crate::shard::wal::live::LiveSegments;
use crate::shard::wal::open::OpenedSlice;
use crate::shard::{LogAtOpen, Role, Shard, ShardConfig, applying, settings, slots};

/// Makes a shard's handler, on its core.
pub(crate) type MakeHandler = Arc<dyn Fn(ShardId) -> Box<dyn Apply> + Send + Sync>;

/// Everything a core needs to run a shard.
pub(crate) struct ShardSetup {
    pub(crate) id: ShardId,
    pub(crate) config: ShardConfig,
    pub(crate) role: Role,
    pub(crate) slice: OpenedSlice,
    /// Under which name and number to follow whom, and what to do with records: a replica's.
    pub(crate) follow: Option<((NodeName, u64), SocketAddr, MakeHandler)>,
}

/// Everything a core needs.
pub(crate) struct CoreSetup {
    pub(crate) number: usize,
    pub(crate) shards: Vec<ShardSetup>,
    pub(crate) node: Arc<NodeShared>,
    pub(crate) listener: Option<Listener>,
    /// Superblock writes.
    pub(crate) keeper: Worker,
    /// Zero-fills and renames.
    pub(crate) filler: Worker,
    /// The embedder's snapshots.
    pub(crate) snapshotter: Option<Worker>,
}

/// A shard and what only its core needs of it.
struct Local {
    shard: Rc<Shard>,
    superblock: Rc<LiveSuperblock>,
}

/// Runs a core until the node stops. Says by `ready` when every shard takes appends.
pub(crate) async fn run(setup: CoreSetup, ready: oneshot::Sender<Result<(), OpenError>>) {
    let CoreSetup { number, shards, node, listener, keeper, filler, snapshotter } = setup;
    let mut local = BTreeMap::new();
    for shard in shards {
        let id = shard.id;
        match start(shard, &node, (&keeper, &filler, snapshotter.as_ref())).await {
            Ok(started) => local.insert(id, started),
            Err(e) => return ready.send(Err(e)),
        };
    }
    let accepting = listener.map(|listener| rt::spawn_scoped(accept::run(listener, node.clone())));
    let shards: Vec<Rc<Shard>> = local.values().map(|l| l.shard.clone()).collect();
    rt::spawn(tick(shards, node.clone()));
    ready.send(Ok(()));
    if number == 0 {
        rt::spawn(control::run(node.clone()));
    }
    let mailbox = node.cores[number].clone();
    loop {
        match mailbox.next().await {
            Command::Connection(socket, hello) => match Socket::attach(socket) {
                Ok(socket) => serve(&local, &node, Conn::new(socket), *hello),
                Err(e) => {
                    node.connections.fetch_sub(1, Ordering::Relaxed);
                    tracing::debug!("taking a connection over: {e}");
                }
            },
            Command::Run(shard, task) => task(LocalShard::new(local[&shard].shard.clone())),
            Command::Trim(shard, to) => LocalShard::new(local[&shard].shard.clone()).trim(to),
            Command::Slots(change, reply) => {
                let shards: Vec<_> = local.values().map(|l| (l.shard.clone(), l.superblock.clone())).collect();
                rt::spawn(async move {
                    let mut done = Vec::with_capacity(shards.len());
                    for (shard, superblock) in shards {
                        done.push(slots::change(&shard, &superblock, change).await);
                    }
                    reply.send(done);
                });
            }
            Command::Settings(next, reply) => {
                let shards: Vec<_> = local.values().map(|l| (l.shard.clone(), l.superblock.clone())).collect();
                rt::spawn(async move {
                    let mut done = Ok(());
                    for (shard, superblock) in shards {
                        if done.is_ok() {
                            done = settings::change(&shard, &superblock, &next).await;
                        }
                    }
                    reply.send(done);
                });
            }
            Command::Fence => local.values().for_each(|l| l.shard.fence()),
            Command::Status(reply) => {
                reply.send(local.values().map(|l| status::of(&l.shard)).collect());
            }
            Command::Stop(done) => {
                // Closes the listener.
                drop(accepting);
                stop(&local, &node).await;
                done.send(());
                return;
            }
        }
    }
}

async fn start(
    setup: ShardSetup,
    node: &Arc<NodeShared>,
    (keeper, filler, snapshotter): (&Worker, &Worker, Option<&Worker>),
) -> Result<Local, OpenError> {
    let ShardSetup { id, config, role, slice, follow } = setup;
    let (first, end) = slice.segments;
    let segments = LiveSegments::open(&slice.segments_folder, config.segment_bytes, first, end).await;
    let path = folder::segment_path(&slice.segments_folder, first);
    let segments = segments.map_err(OpenError::io("opening segment", path))?;
    let log = LogAtOpen {
        oldest: slice.superblock.oldest_lsn,
        end: slice.end.lsn,
        last_batch: slice.last_batch,
        chain: slice.end.chain,
        next_seq: slice.end.next_seq,
    };
    let superblock = LiveSuperblock::new(slice.superblock, slice.superblock_file, keeper.clone());
    let settings = node.settings();
    let shard =
        Shard::new(id, (config, settings.as_deref()), role, log, segments, node.watermarks[id.0 as usize].clone());
    shard.noted.set(slice.installing);
    if let Some(worker) = snapshotter {
        let _ = shard.snapshotter.set(worker.clone());
    }
    let keep = Keeper {
        shard: shard.clone(),
        superblock: superblock.clone(),
        filler: filler.clone(),
        spare: slice.spare,
        replaced: slice.replaced,
    };
    rt::spawn(keep.run());
    match follow {
        None => {
            rt::spawn(shard.clone().pump());
            rt::spawn(inbox::run(shard.clone(), node.inboxes[id.0 as usize].clone()));
        }
        Some(((name, process), primary, handler)) => {
            rt::spawn(applying::run(shard.clone(), handler(id)));
            let (shard, superblock, filler) = (shard.clone(), superblock.clone(), filler.clone());
            let incoming = Incoming::new(shard.config.snapshot_bytes_max);
            let asks_from = Default::default();
            rt::spawn(Follower { shard, superblock, filler, name, process, primary, incoming, asks_from }.run());
        }
    }
    Ok(Local { shard, superblock })
}

fn serve(local: &BTreeMap<ShardId, Local>, node: &Arc<NodeShared>, conn: Conn, hello: Hello) {
    let Local { shard, superblock } = &local[&hello.shard];
    let (shard, superblock) = (shard.clone(), superblock.clone());
    let (node, conn) = (node.clone(), Rc::new(conn));
    rt::spawn(async move {
        match hello.role {
            PeerRole::Replica => to_replica::serve(shard.clone(), superblock, conn, hello).await,
            PeerRole::Client => client::serve(shard.clone(), conn, node.clone()).await,
        }
        if shard.is_deposed() {
            node.fence();
        }
        node.connections.fetch_sub(1, Ordering::Relaxed);
    });
}

/// What goes by time: deadlines, heartbeats, the superblock's floor.
async fn tick(shards: Vec<Rc<Shard>>, node: Arc<NodeShared>) {
    const IDLE: Duration = Duration::from_millis(50);
    let mut beat_ns = rt::now_ns();
    while !node.is_stopping() {
        let waiting = shards.iter().any(|s| s.has_waiters());
        rt::sleep(if waiting { limits::DEADLINE_TICK } else { IDLE }).await;
        for shard in &shards {
            shard.expire();
        }
        let now = rt::now_ns();
        if Duration::from_nanos(now - beat_ns) >= limits::HEARTBEAT {
            beat_ns = now;
            for shard in &shards {
                shard.moved.notify();
                shard.keep.notify();
            }
        }
    }
}

/// Comes to rest: what was appended is written and, for a moment, may still be acknowledged.
async fn stop(local: &BTreeMap<ShardId, Local>, node: &NodeShared) {
    const GRACE: Duration = Duration::from_millis(500);
    for l in local.values() {
        let shard = l.shard.clone();
        // Appends of other threads that are on their way count as appended.
        let is_taken = || !node.is_primary || node.inbox_of(shard.id).is_taken();
        let at_rest = async {
            loop {
                let seen = shard.moved.seen();
                if shard.is_stopped() || (is_taken() && shard.is_at_rest()) {
                    return;
                }
                // The inbox falls asleep without a word.
                let _ = rt::timeout(Duration::from_millis(1), shard.moved.since(seen)).await;
            }
        };
        let _ = rt::timeout(GRACE, at_rest).await;
    }
    for l in local.values() {
        let failed = l.shard.is_stopped();
        l.shard.stop("the node was stopped");
        if failed || l.shard.cutting.get() {
            continue;
        }
        if let Err(e) = l.superblock.persist_floor(&l.shard).await {
            tracing::error!(shard = l.shard.id.0, "the last superblock: {e}");
        }
    }
    // Writes that are still in flight come to an end before their files close.
    for l in local.values() {
        while l.shard.inner.borrow().pipeline.in_flight() > 0 && !l.shard.write_failed() {
            rt::sleep(Duration::from_millis(1)).await;
        }
    }
    // Links say goodbye.
    rt::sleep(Duration::from_millis(5)).await;
}
