//! Crash images, enumerated: a workload without faults is photographed at every boundary of a call to
//! a disk, and each way in which a crash there may leave the disk is opened with the real engine.
//!
//! What must hold for each image: it opens; everything that was acknowledged is there; nothing is
//! there that was not appended, in its place; opening it again finds the same.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline::canary::{self, Canary};
use towline::{Compress, Lsn, Primary, PrimaryConfig, Replica, ReplicaConfig, Retain, Seq, ShardId, offline};

use super::cluster::{Cluster, DATA};
use super::handler::lock;
use super::last;
use super::oracle::{Became, Oracle, owner};
use super::plan::{Less, Plan};
use super::run;
use super::world::images::{Left, Picture};
use super::world::rng::Rng;
use super::world::{Faults, NodeId, SimWorld};

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Boundaries of calls.
    pub boundaries: u64,
    /// Images opened, by the way in which the crash left them.
    pub images: BTreeMap<&'static str, u64>,
    /// Appends of the workload.
    pub appends: u64,
}

impl Images {
    /// All images.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.images.values().sum()
    }
}

/// The fewest appends of the workload: fewer would be another one than is meant.
const APPENDS_MIN: u64 = 300;
/// Random subsets that are looked at of each picture.
const SUBSETS: usize = 2;

/// What a node has promised when a picture was taken: for each shard how many records it must hold.
type Promised = BTreeMap<ShardId, Seq>;

/// The workload: records of all sizes, segments that are recycled, a replica that catches up.
fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed, &Less::default());
    (plan.shards, plan.replicas, plan.readers, plan.cores) = (1 + (seed % 2) as u32, 1, 0, 1);
    (plan.segment_bytes, plan.segments_ahead, plan.batch_bytes) = (64 << 10, 1, 16 << 10);
    plan.min_replicas.0 = 0;
    plan.record_max = 70_000;
    (plan.retain, plan.live_window) = (Retain::Bytes(64 << 10), 64 << 10);
    plan.write_depth = 4;
    // What holds batches back makes them larger and fewer: there would be fewer calls to look at.
    (plan.catch_up_max, plan.link_window, plan.lag_target, plan.compress) = (None, 32 << 20, None, Compress::Off);
    plan.linger = Duration::ZERO;
    (plan.policy, plan.policies) =
        ("ack_n=1".parse().expect("a policy"), vec![None, Some("local".parse().expect("a policy"))]);
    (plan.deadline, plan.too_few) = (Duration::from_secs(5), towline::TooFewReplicas::Wait);
    (plan.local_clients, plan.handle_clients, plan.window) = (2, 0, 6);
    plan.deliver_flushed = false;
    (plan.appends, plan.think, plan.at_most) = (320, Duration::from_micros(300), Duration::from_secs(20));
    plan.faults.clear();
    plan
}

/// Runs the workload of a seed and opens at least `most` images, spread over all boundaries.
///
/// # Errors
/// The first image that is not as it must be; a workload that has become too small.
pub fn enumerate(seed: u64, most: u64, canary: Option<Canary>) -> Result<Images, String> {
    with(canary, || photograph(seed, most))
}

/// Runs a small workload of a seed and reads the log after every tear of the write that began last, at every
/// boundary. Says how many there were.
///
/// # Errors
/// The first image that is not as it must be.
pub fn every_tear(seed: u64, canary: Option<Canary>) -> Result<u64, String> {
    with(canary, || {
        let mut plan = plan(seed);
        (plan.appends, plan.record_max) = (60, 20_000);
        let (mut boundary, mut tears) = (0, 0);
        let rng = &mut Rng::new(seed ^ 0x7465_6172);
        workload(seed, plan, |cluster, picture, promised| {
            boundary += 1;
            for left in picture.tears() {
                let fault = |e: String| format!("node {} at boundary {boundary}, {left:?}: {e}", picture.node.0);
                let world = SimWorld::new(1, Faults::default());
                let _entered = world.enter();
                let id = world.add_node_with(picture.found(left, rng));
                if promised.is_empty() && !(0..cluster.plan.shards).all(|shard| has_superblock(&world, id, shard)) {
                    // It is being made.
                    continue;
                }
                let held = read(cluster, &world, id).map_err(fault)?;
                holds(&lock(&cluster.oracle), &held, promised).map_err(fault)?;
                tears += 1;
            }
            Ok(())
        })?;
        Ok(tears)
    })
}

fn with<R>(
    canary: Option<Canary>,
    f: impl FnOnce() -> Result<R, String> + std::panic::UnwindSafe,
) -> Result<R, String> {
    canary::set(canary);
    let found = catch_unwind(f);
    canary::set(None);
    found.unwrap_or_else(|_| Err(run::last_panic()))
}

fn photograph(seed: u64, most: u64) -> Result<Images, String> {
    // The same run twice: at first to see how much there is to look at.
    let (mut plain, mut tears) = (0, 0);
    workload(seed, plan(seed), |_, picture, _| {
        plain += picture.plain_ways(SUBSETS).len() as u64;
        tears += picture.tears().len() as u64;
        Ok(())
    })?;
    // Of the tears some, and all else as long as it is not more than half.
    let plain_share = (most as f64 / 2.0 / plain as f64).min(1.0);
    let rest = most as f64 * 1.02 + 20.0 - plain_share * plain as f64;
    let tears_share = (rest / tears as f64).clamp(0.0, 1.0);
    let mut out = Images::default();
    let rng = &mut Rng::new(seed ^ 0x696D_6167);
    let (mut plain_due, mut tears_due) = (0.0, 0.0);
    out.appends = workload(seed, plan(seed), |cluster, picture, promised| {
        out.boundaries += 1;
        plain_due += plain_share;
        let mut ways = if plain_due >= 1.0 - 1e-9 { picture.plain_ways(SUBSETS) } else { Vec::new() };
        plain_due -= if ways.is_empty() { 0.0 } else { 1.0 };
        let mut tears = picture.tears();
        tears_due += tears_share * tears.len() as f64;
        while tears_due >= 1.0 - 1e-9 && !tears.is_empty() {
            tears_due -= 1.0;
            ways.push(tears.swap_remove(rng.below(tears.len() as u64) as usize));
        }
        look(cluster, picture, promised, ways, rng, &mut out)
    })?;
    match out.total() {
        n if n < most => {
            Err(format!("{n} images were looked at, {most} were asked for: {plain} and {tears} there are"))
        }
        _ if out.appends < APPENDS_MIN => Err(format!("the workload has only {} appends", out.appends)),
        _ => Ok(out),
    }
}

/// Runs a plan to its end and shows every picture, with what its node had promised by then. Says how many
/// appends there were.
fn workload(
    seed: u64,
    plan: Plan,
    mut each: impl FnMut(&Cluster, &Picture, &Promised) -> Result<(), String>,
) -> Result<u64, String> {
    let world = SimWorld::new(seed, super::nemesis::rates(&plan));
    let entered = world.enter();
    let wanted = plan.appends;
    let mut cluster = Cluster::new(world.clone(), plan);
    for node in &cluster.nodes {
        world.take_pictures(node.id);
    }
    let (mut crashed, mut ended) = (false, false);
    while !ended && world.now_ns() < 20_000_000_000 {
        world.step();
        cluster.tend();
        let (promised, done) = promised(&cluster);
        for picture in world.pictures() {
            each(&cluster, &picture, &promised[picture.node.0 as usize])?;
        }
        let left = lock(&cluster.oracle).left;
        if !crashed && left < wanted * 5 / 8 {
            // It comes back and catches up.
            crashed = true;
            cluster.crash(1, false, 30_000_000);
        }
        ended = done && left == 0;
    }
    if let Some(wrong) = lock(&cluster.wrong).first() {
        return Err(wrong.clone());
    }
    let appends = lock(&cluster.oracle).appends.len() as u64;
    if !ended || appends < wanted {
        let state = last::describe(&cluster);
        return Err(format!("the workload does not come to its end: {appends} appends of {wanted}: {state}"));
    }
    for n in 0..cluster.nodes.len() {
        world.kill(cluster.nodes[n].id);
    }
    drop(cluster);
    drop(entered);
    Ok(appends)
}

/// What each node has promised so far, and whether every append has an outcome.
fn promised(cluster: &Cluster) -> (Vec<Promised>, bool) {
    let oracle = lock(&cluster.oracle);
    let views = cluster.world.views(cluster.nodes[0].id);
    let mut out = vec![Promised::new(), Promised::new()];
    let mut done = true;
    for append in &oracle.appends {
        done &= append.became != Became::Unknown;
        let (Became::Committed(promise), Some(seq)) = (append.became, append.seq) else { continue };
        let most = |to: &mut Promised| {
            let count = to.entry(append.shard).or_default();
            *count = (*count).max(Seq(seq.0 + 1));
        };
        most(&mut out[0]);
        let flushed = views.iter().find(|v| v.shard == append.shard).map_or(Lsn::ZERO, |v| v.slots[0].flushed);
        if promise.bookmark.lsn <= flushed {
            most(&mut out[1]);
        }
    }
    (out, done)
}

fn look(
    cluster: &Cluster,
    picture: &Picture,
    promised: &Promised,
    ways: Vec<Left>,
    rng: &mut Rng,
    out: &mut Images,
) -> Result<(), String> {
    for left in ways {
        let found = || picture.found(left, &mut rng.clone());
        let fault = |e: String| format!("node {} at boundary {}, {left:?}: {e}", picture.node.0, out.boundaries);
        let first = open(cluster, picture.node, found()).map_err(fault)?;
        holds(&lock(&cluster.oracle), &first, promised).map_err(fault)?;
        rng.next();
        let kind = match left {
            Left::Nothing => "nothing unflushed",
            Left::Everything => "everything",
            Left::Prefix(_) => "prefix of the writes",
            Left::Subset => "random subset",
            Left::Torn(..) => "torn write",
        };
        *out.images.entry(kind).or_default() += 1;
    }
    Ok(())
}

/// What an image holds: for each shard the first record's number and whose the records are.
type Held = BTreeMap<ShardId, (Lsn, Seq, Vec<Option<usize>>)>;

/// Opens an image twice, in a world of its own; both times it must hold the same.
fn open(cluster: &Cluster, node: NodeId, found: super::world::images::Found) -> Result<Held, String> {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let id = world.add_node_with(found);
    let mut before: Option<Held> = None;
    for _ in 0..2 {
        let result: Arc<Mutex<Option<Result<(), String>>>> = Arc::default();
        let told = result.clone();
        let mut config = cluster.node_config();
        config.cpus = vec![0];
        if node.0 == 1 && !has_superblock(&world, id, 0) {
            // A replica that has not heard of its primary yet waits for it.
            return Ok(Held::new());
        }
        let (shards, address) = (cluster.plan.shards, world.address(NodeId(9), 7000));
        world.start(
            id,
            "image",
            Box::pin(async move {
                let went = if node.0 == 0 {
                    let mut primary = PrimaryConfig::new(DATA);
                    (primary.node, primary.shards) = (config, shards);
                    primary.replicas = vec!["n1".into()];
                    match Primary::open_simulated(primary).await {
                        Ok(primary) => {
                            primary.stop_simulated().await;
                            Ok(())
                        }
                        Err(e) => Err(e.to_string()),
                    }
                } else {
                    let mut replica = ReplicaConfig::new(DATA, "n1", address);
                    replica.node = config;
                    match Replica::open_simulated(replica, |_| towline::LogApply).await {
                        Ok(replica) => {
                            replica.stop_simulated().await;
                            Ok(())
                        }
                        Err(e) => Err(e.to_string()),
                    }
                };
                *lock(&told) = Some(went);
            }),
        );
        let until = 60_000_000_000 + world.now_ns();
        while lock(&result).is_none() && world.now_ns() < until {
            world.step();
        }
        let went = lock(&result).take().unwrap_or_else(|| Err("it does not come up and stop".into()));
        world.kill(id);
        went.map_err(|e| format!("it does not open: {e}"))?;
        let held = read(cluster, &world, id)?;
        if before.as_ref().is_some_and(|b| *b != held) {
            return Err("opening it again finds something else".into());
        }
        before = Some(held);
    }
    Ok(before.unwrap_or_default())
}

/// Whether a node knows what a shard of it is.
fn has_superblock(world: &SimWorld, id: NodeId, shard: u32) -> bool {
    let path = Path::new(DATA).join(format!("shard-{shard:04}/superblock"));
    world.with_node(id, || towline::world::current().is_some_and(|w| w.disk().exists(&path)))
}

fn read(cluster: &Cluster, world: &SimWorld, id: NodeId) -> Result<Held, String> {
    let oracle = lock(&cluster.oracle);
    let mut held = Held::new();
    for shard in (0..cluster.plan.shards).map(ShardId) {
        let (mut first, mut ids) = (None, Vec::new());
        let report = world.with_node(id, || {
            offline::read_log(Path::new(DATA), shard, None, |batch| {
                first.get_or_insert(batch.header().first_seq());
                ids.extend(batch.records().map(|bytes| owner(&oracle, shard, bytes)));
                ControlFlow::Continue(())
            })
        });
        let report = report.map_err(|e| format!("it cannot be read: {e}"))?;
        if let Some(damage) = report.damage {
            return Err(format!("it is damaged: {damage:?}"));
        }
        held.insert(shard, (report.oldest, first.unwrap_or_default(), ids));
    }
    Ok(held)
}

/// Everything that was promised is there, and nothing that was not appended, in its place.
fn holds(oracle: &Oracle, held: &Held, promised: &Promised) -> Result<(), String> {
    for (shard, wanted) in promised {
        let Some((_, first, ids)) = held.get(shard) else { return Err("the node is empty".into()) };
        let end = Seq(first.0 + ids.len() as u64);
        if end < *wanted {
            return Err(format!("shard {shard} holds the records up to {end:?}, {wanted:?} were acknowledged"));
        }
    }
    for (shard, (_, first, ids)) in held {
        for (n, id) in ids.iter().enumerate() {
            let seq = Seq(first.0 + n as u64);
            match id.map(|id| oracle.appends[id]) {
                Some(append) if append.seq == Some(seq) && append.shard == *shard => {}
                other => return Err(format!("shard {shard} holds {other:?} as record {seq:?}")),
            }
        }
    }
    Ok(())
}
