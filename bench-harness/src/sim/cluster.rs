//! The simulated cluster: nodes that run the real engine, and the operator who starts them, stops
//! them, and makes a replica the primary.

use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use towline::world::LocalFuture;
use towline::{Handle, NodeConfig, OpenError, Primary, PrimaryConfig, Replica, ReplicaConfig, Settings, ShardId, Term};

use super::clients::{self, Client};
use super::handler::{Handler, Kept, lock};
use super::judge::Judge;
use super::operator::{self, Ask};
use super::oracle::Oracle;
use super::plan::Plan;
use super::store::Store;
use super::world::rng::Rng;
use super::world::{NodeId, SimWorld};

/// Where each node listens.
const PORT: u16 = 7000;
/// Where each node's folder is, on its own disk.
pub const DATA: &str = "/data";
/// One of so many seeds is also held before the public history checker.
const JUDGED: u64 = 4;

/// What a node's process is at.
#[derive(Debug, Default)]
pub enum Phase {
    /// It does not run.
    #[default]
    Down,
    /// It opens its folder.
    Opening,
    /// It serves.
    Serving,
    /// It comes to rest.
    Stopping,
    /// It was stopped in order.
    Stopped,
    /// It could not start.
    Refused(OpenError),
}

/// What the operator and a node's process tell each other.
#[derive(Default)]
pub struct Control {
    /// What the process is at.
    pub phase: Mutex<Phase>,
    stop: Mutex<(bool, Option<Waker>)>,
    /// What a primary is to change.
    pub(super) asks: Mutex<Vec<Ask>>,
    /// The settings that are in force on a primary, as it said last.
    pub settings: Mutex<Option<Settings>>,
    /// A primary's handle, for the operator's own appends.
    pub handle: Mutex<Option<Handle>>,
}

impl Control {
    fn set(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// Asks the process to stop in order.
    pub fn stop(&self) {
        let mut stop = lock(&self.stop);
        stop.0 = true;
        if let Some(waker) = stop.1.take() {
            waker.wake();
        }
    }

    /// Has a primary do something.
    pub fn ask(&self, ask: Ask) {
        let mut asks = lock(&self.asks);
        if !asks.contains(&ask) {
            asks.push(ask);
        }
        if let Some(waker) = lock(&self.stop).1.take() {
            waker.wake();
        }
    }

    /// The next thing to do; `None` once the process is to stop.
    async fn next(&self) -> Option<Ask> {
        std::future::poll_fn(|cx| {
            let mut stop = lock(&self.stop);
            stop.1 = Some(cx.waker().clone());
            match (stop.0, lock(&self.asks).first().cloned()) {
                (true, _) => Poll::Ready(None),
                (false, Some(ask)) => Poll::Ready(Some(ask)),
                (false, None) => Poll::Pending,
            }
        })
        .await
    }
}

/// What a node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The primary.
    Primary {
        /// Made from a replica's folder.
        promote: bool,
    },
    /// A replica of another node.
    Replica {
        /// The primary, or for a reader another one that follows it.
        of: usize,
    },
}

/// A node, whether its process runs or not.
pub struct Node {
    /// Its number in the world.
    pub id: NodeId,
    /// What it is to be.
    pub role: Role,
    /// Its process.
    pub control: Arc<Control>,
    /// When the operator starts it next.
    pub start_at: Option<u64>,
    /// Starts that were refused in a row.
    pub refused: u32,
    /// Its disk has lost or changed bytes that it had promised to keep.
    pub tainted: bool,
    /// Processes so far.
    pub incarnation: u64,
    /// How often it was started again because a shard had stopped.
    pub stops: u32,
    /// How often it was seen to follow nobody, as the primary lacks what it knows to be committed.
    pub refuses: u32,
    /// Its slot was lost on the primary since it was made anew.
    pub lost_slot: bool,
    /// It was told to write alone.
    pub alone: bool,
}

/// The cluster.
pub struct Cluster {
    /// What it runs in.
    pub world: Rc<SimWorld>,
    /// The run.
    pub plan: Arc<Plan>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Which of them is to be the primary.
    pub primary: usize,
    /// Who knows what was promised.
    pub oracle: Arc<Mutex<Oracle>>,
    /// What handlers keep.
    pub kept: Arc<Mutex<Kept>>,
    /// What went wrong.
    pub wrong: Arc<Mutex<Vec<String>>>,
    /// The operator's choices.
    pub rng: Rng,
    /// The highest term that any node has shown.
    pub newest_term: Term,
    /// Since when it was seen that a snapshot waits for a commit.
    pub waits_since: Option<u64>,
    /// No appends but the operator's.
    pub quiet: bool,
}

impl Cluster {
    /// A cluster whose nodes are all down.
    #[must_use]
    pub fn new(world: Rc<SimWorld>, plan: Plan) -> Self {
        let nodes = (0..=plan.replicas + plan.readers).map(|n| Node {
            id: world.add_node(),
            role: match n {
                0 => Role::Primary { promote: false },
                n if n <= plan.replicas => Role::Replica { of: 0 },
                // Readers in a row, until they are told otherwise.
                n => Role::Replica { of: n - 1 },
            },
            control: Arc::default(),
            start_at: Some(0),
            refused: 0,
            tainted: false,
            incarnation: 0,
            stops: 0,
            refuses: 0,
            lost_slot: false,
            alone: false,
        });
        let nodes = nodes.collect();
        // It hashes every record on every node, which is as much work as the run itself.
        let judge = plan.seed.is_multiple_of(JUDGED).then(|| Judge::new(plan.replicas + 1));
        let oracle = Oracle::new(plan.appends + 1, judge);
        Self {
            world,
            nodes,
            primary: 0,
            oracle: Arc::new(Mutex::new(oracle)),
            kept: Arc::default(),
            wrong: Arc::default(),
            rng: Rng::new(plan.seed ^ 0x6F70_6572),
            plan: Arc::new(plan),
            newest_term: Term::ZERO,
            waits_since: None,
            quiet: false,
        }
    }

    /// Notes something in the run's log.
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.world.trace().note(self.world.now_ns(), text);
    }

    /// Something is wrong.
    pub fn fail(&self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        lock(&self.wrong).push(text);
    }

    /// What every node is configured with.
    #[must_use]
    pub fn node_config(&self) -> NodeConfig {
        let p = &self.plan;
        let mut c = NodeConfig::new(DATA);
        c.cpus = (0..p.cores).map(|_| 0).collect();
        c.segment_bytes = p.segment_bytes;
        c.segments_ahead = p.segments_ahead;
        c.write_depth = p.write_depth;
        c.batch_bytes = p.batch_bytes;
        c.record_bytes_max = p.record_max;
        c.max_linger = p.linger;
        // An embedder with state trims the log itself.
        c.retain = if p.snapshots { towline::Retain::All } else { p.retain };
        c.live_window_bytes = p.live_window;
        c
    }

    /// The name under which a node is configured as a replica.
    #[must_use]
    pub fn name(node: usize) -> String {
        format!("n{node}")
    }

    /// Starts a node's process.
    pub fn start(&mut self, n: usize) {
        let node_config = self.node_config();
        let others: Vec<String> = (0..=self.plan.replicas).filter(|o| *o != n).map(Self::name).collect();
        let plan = self.plan.clone();
        let seed = self.rng.next();
        let node = &mut self.nodes[n];
        node.start_at = None;
        node.incarnation += 1;
        node.alone = false;
        let control = Arc::new(Control::default());
        control.set(Phase::Opening);
        node.control = control.clone();
        let (id, role) = (node.id, node.role);
        let store = plan.snapshots.then(|| Store {
            node: n,
            kept: self.kept.clone(),
            oracle: self.oracle.clone(),
            wrong: self.wrong.clone(),
            seed,
        });
        self.note(|| format!("node {n} starts as {role:?}"));
        let main: LocalFuture<()> = match role {
            Role::Primary { promote } => {
                let mut config = PrimaryConfig::new(DATA);
                config.node = node_config;
                config.node.snapshot = store.as_ref().and_then(Store::snapshots);
                config.shards = plan.shards;
                config.listen = Some(self.world.address(id, PORT));
                config.insecure_no_auth = true;
                config.commit = plan.policy;
                config.deadline = plan.deadline;
                config.too_few = plan.too_few;
                config.promote = promote;
                config.promote_above = self.newest_term;
                config.retain_max = plan.retain_max;
                config.slot_idle_max = plan.slot_idle_max;
                config.zero_copy = plan.zero_copy;
                config.catch_up_max = plan.catch_up_max;
                config.link_window_bytes = plan.link_window;
                config.lag_target = plan.lag_target;
                config.compress = plan.compress;
                config.replicas = others;
                // A run that is made shorter may have fewer replicas.
                config.min_replicas = plan.min_replicas.0.min(config.replicas.len() as u8);
                config.min_replicas_age = plan.min_replicas.1;
                let oracle = self.oracle.clone();
                let shards = plan.shards;
                let client = Client { oracle: oracle.clone(), node: n, plan, seed };
                let quiet = self.quiet;
                Box::pin(async move {
                    match Primary::open_simulated(config).await {
                        Err(e) => control.set(Phase::Refused(e)),
                        Ok(primary) => {
                            operator::in_force(&primary, n, &oracle, &control);
                            if let Some(store) = store {
                                store.follow(&primary, shards);
                            }
                            if !quiet {
                                clients::start(&primary, &client);
                            }
                            *lock(&control.handle) = Some(primary.handle());
                            control.set(Phase::Serving);
                            while let Some(ask) = control.next().await {
                                match ask {
                                    // It may be there, or the shard may have stopped: it is looked at again.
                                    Ask::Slot(slot) => drop(primary.create_slot_soon(&slot, false).await),
                                    Ask::Alone => operator::alone(&primary, n, &oracle, &client.plan).await,
                                    Ask::Drop(slot) => drop(primary.drop_slot_soon(&slot).await),
                                    Ask::Set(change) => operator::set(&primary, n, &oracle, &control, change).await,
                                }
                                lock(&control.asks).remove(0);
                            }
                            control.set(Phase::Stopping);
                            lock(&control.handle).take();
                            primary.stop_simulated().await;
                            control.set(Phase::Stopped);
                        }
                    }
                })
            }
            Role::Replica { of } => {
                let address = self.world.address(self.nodes[of].id, PORT);
                let mut config = ReplicaConfig::new(DATA, Self::name(n), address);
                config.node = node_config;
                config.node.snapshot = store.as_ref().and_then(Store::snapshots);
                config.insecure_no_auth = true;
                config.rebuild = self.plan.rebuild;
                if plan.readers > 0 {
                    config.listen = Some(self.world.address(id, PORT));
                    (config.retain_max, config.slot_idle_max) = (plan.retain_max, plan.slot_idle_max);
                    (config.zero_copy, config.compress) = (plan.zero_copy, plan.compress);
                    (config.catch_up_max, config.link_window_bytes) = (plan.catch_up_max, plan.link_window);
                }
                let handler = {
                    let (kept, oracle, wrong) = (self.kept.clone(), self.oracle.clone(), self.wrong.clone());
                    let flushed = self.plan.deliver_flushed;
                    let gaps = !matches!(self.plan.retain, towline::Retain::All) && !self.plan.snapshots;
                    let forgets = gaps && self.plan.rebuild;
                    move |shard: ShardId| Handler {
                        node: n,
                        kept: kept.clone(),
                        oracle: oracle.clone(),
                        wrong: wrong.clone(),
                        flushed,
                        gaps,
                        forgets,
                        shard,
                    }
                };
                Box::pin(async move {
                    match Replica::open_simulated(config, handler).await {
                        Err(e) => control.set(Phase::Refused(e)),
                        Ok(replica) => {
                            control.set(Phase::Serving);
                            while let Some(ask) = control.next().await {
                                if let Ask::Slot(slot) = ask {
                                    drop(replica.create_slot_soon(&slot, false).await);
                                }
                                lock(&control.asks).remove(0);
                            }
                            control.set(Phase::Stopping);
                            replica.stop_simulated().await;
                            control.set(Phase::Stopped);
                        }
                    }
                })
            }
        };
        self.world.start(id, "main", main);
    }

    /// Whether a node's process lives.
    #[must_use]
    pub fn is_up(&self, n: usize) -> bool {
        self.world.is_up(self.nodes[n].id)
    }

    /// Whether a node serves.
    #[must_use]
    pub fn serves(&self, n: usize) -> bool {
        self.is_up(n) && matches!(*lock(&self.nodes[n].control.phase), Phase::Serving)
    }

    /// A node dies without warning.
    pub fn crash(&mut self, n: usize, power: bool, start_after_ns: u64) {
        self.note(|| format!("node {n} {}", if power { "loses power" } else { "is killed" }));
        let id = self.nodes[n].id;
        if power {
            self.world.power_loss(id);
        } else {
            self.world.kill(id);
        }
        self.nodes[n].control = Arc::default();
        self.nodes[n].start_at = Some(self.world.now_ns() + start_after_ns);
    }

    /// A node's folder is gone, and its process with it.
    pub fn replace(&mut self, n: usize, start_after_ns: u64) {
        self.crash(n, false, start_after_ns);
        self.note(|| format!("node {n} gets an empty folder"));
        self.world.wipe(self.nodes[n].id);
        lock(&self.kept).retain(|(node, _), _| *node != n);
        let mut oracle = lock(&self.oracle);
        match (self.is_reader(n), self.nodes[n].tainted) {
            (true, _) => {}
            (false, false) => oracle.lose_copies(),
            (false, true) => oracle.lose_copies_under_way(),
        }
        self.nodes[n].tainted = false;
        oracle.forget(n);
        // What it holds from now on counts again.
        oracle.tainted.retain(|t| *t != n);
    }

    /// Whether a replica may lose its folder: no disk is bad.
    #[must_use]
    pub fn may_replace(&self) -> bool {
        self.nodes.iter().all(|n| !n.tainted)
    }

    /// A node's disk has changed what it had promised to keep: its copies count no more.
    pub fn taint(&mut self, n: usize) {
        if !std::mem::replace(&mut self.nodes[n].tainted, true) {
            let mut oracle = lock(&self.oracle);
            oracle.lose_copies();
            oracle.tainted.push(n);
        }
    }

    /// What the operator does when time passes: starts what is to be started, clears away what has
    /// ended.
    pub fn tend(&mut self) {
        let now = self.world.now_ns();
        for n in 0..self.nodes.len() {
            if !self.is_up(n) && self.nodes[n].start_at.is_none() {
                let pause = 1_000_000 + self.rng.below(300_000_000);
                self.nodes[n].start_at = Some(now + pause);
            }
            let phase = std::mem::take(&mut *lock(&self.nodes[n].control.phase));
            match phase {
                Phase::Refused(e) => self.refused(n, &e),
                Phase::Stopped => {
                    let pause = 1_000_000 + self.rng.below(100_000_000);
                    self.world.kill(self.nodes[n].id);
                    self.nodes[n].start_at.get_or_insert(now + pause);
                }
                Phase::Serving if self.is_up(n) => {
                    self.nodes[n].refused = 0;
                    if n == self.primary {
                        self.nodes[n].role = Role::Primary { promote: false };
                    }
                    self.leave_alone(n);
                    *lock(&self.nodes[n].control.phase) = Phase::Serving;
                }
                other => *lock(&self.nodes[n].control.phase) = other,
            }
            match self.nodes[n].start_at {
                Some(at) if at <= now && !self.is_up(n) => self.start(n),
                Some(at) if at < u64::MAX => self.world.alarm(at),
                _ => {}
            }
        }
    }

    fn refused(&mut self, n: usize, e: &OpenError) {
        self.note(|| format!("node {n} does not start: {e}"));
        let id = self.nodes[n].id;
        let died = self.world.is_dead(id);
        self.world.kill(id);
        self.nodes[n].start_at = Some(self.world.now_ns() + 50_000_000);
        self.nodes[n].refused += 1;
        if died {
            return;
        }
        let is_replica = matches!(self.nodes[n].role, Role::Replica { .. });
        match e {
            // The disk failed, or is full: it is tried again.
            OpenError::Io { .. } | OpenError::DiskFull { .. } | OpenError::ReadOnly { .. }
                if self.plan.has_disk_errors() => {}
            _ if self.nodes[n].tainted && is_replica => self.replace(n, 10_000_000),
            // The newer term is of a reign that came to nothing: the operator insists.
            OpenError::Deposed { .. } if n == self.primary => self.nodes[n].role = Role::Primary { promote: true },
            OpenError::Deposed { .. } => self.tell(n),
            other => self.fail(format!("node {n} cannot start: {other}")),
        }
    }
}
