//! A machine park that does not exist: nodes with a disk each, a network between them, one clock, one
//! scheduler, and one seeded source of randomness. The real engine runs in it through
//! [`towline::world`].
//!
//! Comes in: nodes, their main tasks, faults. Goes out: steps. The same seed does the same, bit for
//! bit: nothing here looks at the real clock, at addresses, or at anything that has no order.

mod counts;
mod disk;
mod executor;
mod failed;
pub mod faults;
pub mod images;
mod inside;
mod net;
pub mod rng;
#[cfg(test)]
mod tests;
mod time;
pub mod trace;

use std::cell::{Cell, Ref, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Context, Waker};

use towline::world::{self, LocalFuture, ShardView, TaskId};

use disk::Disk;
pub use disk::Lie;
use executor::{Now, Restore, Tasks};
pub use failed::FailedWrite;
pub use faults::Faults;
use net::Net;
use rng::Rng;
use time::{At, Event, Sleep};
use trace::Trace;

/// A node, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u32);

/// Shows where a shard stands while it lives.
type Look = Box<dyn Fn() -> Option<ShardView>>;

/// A node's process and what it stands on.
#[derive(Default)]
struct Machine {
    /// Its process lives.
    up: bool,
    /// The kernel under it lives: it answers for ports that nobody listens on.
    powered: bool,
    /// Its process has met its end, and is cleared away at the next step; whether the power went.
    doomed: Option<bool>,
    /// Calls until that happens, and whether the power goes then.
    crash_in: Option<(u64, bool)>,
    /// Calls to its disk so far.
    calls: u64,
    /// The call that fails, and whether all after it do too.
    fails_at: Option<(u64, bool)>,
    /// Writes until one is said to be done and is not, and what becomes of it.
    lies: Option<(u64, Lie)>,
    /// Writes and flushes of the process that have failed.
    failed: Vec<FailedWrite>,
    /// Processes so far: what belongs to an earlier one is void.
    process: u64,
    cores: u32,
    paused_until: u64,
    /// Tasks that were ready while it stood still.
    stalled: Vec<TaskId>,
    looks: Vec<Look>,
    /// What they saw, until a task of it runs.
    views: Option<Rc<Vec<ShardView>>>,
}

/// The world.
pub struct SimWorld {
    now_ns: Cell<u64>,
    wall_skew_us: Cell<i64>,
    rng: RefCell<Rng>,
    faults: RefCell<Faults>,
    tasks: RefCell<Tasks>,
    running: Cell<Now>,
    events: RefCell<(BinaryHeap<Reverse<At>>, u64)>,
    machines: RefCell<Vec<Machine>>,
    disks: RefCell<Vec<Disk>>,
    net: RefCell<Net>,
    alarms: RefCell<std::collections::BTreeSet<u64>>,
    pictures: RefCell<Vec<images::Picture>>,
    trace: Trace,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    /// What the shards that have ended had counted.
    did: RefCell<BTreeMap<&'static str, u64>>,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<SimWorld>>> = const { RefCell::new(None) };
}

/// The world of this thread. Files and sockets find it here: they cannot hold it, as the engine's
/// types may cross threads.
pub(super) fn here() -> Option<Rc<SimWorld>> {
    WORLD.try_with(|w| w.borrow().clone()).ok().flatten()
}

/// A thread's stay in a world; afterwards it is where it was before.
pub struct Entered(Option<Rc<SimWorld>>, #[allow(dead_code, reason = "held for its drop")] world::Entered);

impl Drop for Entered {
    fn drop(&mut self) {
        WORLD.set(self.0.take());
    }
}

impl SimWorld {
    /// A world with nothing in it.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Rc<Self> {
        Rc::new(Self {
            now_ns: Cell::new(1),
            wall_skew_us: Cell::new(0),
            rng: RefCell::new(Rng::new(seed)),
            faults: RefCell::new(faults),
            tasks: RefCell::default(),
            running: Cell::default(),
            events: RefCell::default(),
            machines: RefCell::default(),
            disks: RefCell::default(),
            net: RefCell::default(),
            alarms: RefCell::default(),
            pictures: RefCell::default(),
            trace: Trace::default(),
            counts: RefCell::default(),
            did: RefCell::default(),
        })
    }

    /// This thread is in the world until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Rc<Self>) -> Entered {
        Entered(WORLD.replace(Some(self.clone())), world::enter(self.clone()))
    }

    /// A new node, down, with an empty disk.
    pub fn add_node(&self) -> NodeId {
        let mut machines = self.machines.borrow_mut();
        machines.push(Machine { powered: true, ..Machine::default() });
        self.disks.borrow_mut().push(Disk::default());
        NodeId(machines.len() as u32 - 1)
    }

    /// Where a node is.
    #[must_use]
    pub fn address(&self, node: NodeId, port: u16) -> SocketAddr {
        let [_, b, c, d] = (node.0 + 1).to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, b, c, d)), port)
    }

    fn node_at(&self, addr: SocketAddr) -> Option<NodeId> {
        let IpAddr::V4(v4) = addr.ip() else { return None };
        let [_, b, c, d] = v4.octets();
        let number = u32::from_be_bytes([0, b, c, d]).checked_sub(1)?;
        ((number as usize) < self.machines.borrow().len()).then_some(NodeId(number))
    }

    /// Starts a node's process with its first task. What is left of the one before is gone.
    pub fn start(&self, node: NodeId, name: &str, main: LocalFuture<()>) -> TaskId {
        self.kill(node);
        {
            let machine = &mut self.machines.borrow_mut()[node.0 as usize];
            (machine.up, machine.powered, machine.doomed, machine.crash_in) = (true, true, None, None);
            machine.process += 1;
            (machine.cores, machine.paused_until) = (0, 0);
            machine.failed.clear();
        }
        self.note(|| format!("process {} of node {} starts ({name})", self.process(node), node.0));
        self.add_core(node, main)
    }

    /// Another task in a node's process, on a core of its own.
    pub fn add_task(&self, node: NodeId, task: LocalFuture<()>) -> TaskId {
        self.add_core(node, task)
    }

    fn add_core(&self, node: NodeId, main: LocalFuture<()>) -> TaskId {
        let core = {
            let machine = &mut self.machines.borrow_mut()[node.0 as usize];
            machine.cores += 1;
            machine.cores
        };
        let mut tasks = self.tasks.borrow_mut();
        let id = tasks.add(main, node, core, true);
        tasks.make_ready(id);
        id
    }

    /// Runs `f` as if it were a call of the node's, which must not be up.
    pub fn with_node<R>(&self, node: NodeId, f: impl FnOnce() -> R) -> R {
        let _restore = Restore(&self.running, self.running.replace(Now { node, ..Now::default() }));
        let was = std::mem::replace(&mut self.machines.borrow_mut()[node.0 as usize].up, true);
        let doomed = self.machines.borrow_mut()[node.0 as usize].doomed.take();
        let calm = Faults { net_ns: (1, 1), ..Faults::default() };
        let faults = self.faults.replace(calm);
        let out = f();
        self.faults.replace(faults);
        let machine = &mut self.machines.borrow_mut()[node.0 as usize];
        (machine.up, machine.doomed) = (was, doomed);
        out
    }

    /// Whether a node's process lives.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        let machine = &self.machines.borrow()[node.0 as usize];
        machine.up && machine.doomed.is_none()
    }

    /// Whether a node's process has met its end in the middle of a call.
    #[must_use]
    pub fn is_dead(&self, node: NodeId) -> bool {
        let machine = &self.machines.borrow()[node.0 as usize];
        !machine.up || machine.doomed.is_some()
    }

    fn process(&self, node: NodeId) -> u64 {
        self.machines.borrow()[node.0 as usize].process
    }

    /// Whether calls of a process still have an effect.
    fn lives(&self, node: NodeId, process: u64) -> bool {
        let machine = &self.machines.borrow()[node.0 as usize];
        machine.up && machine.doomed.is_none() && machine.process == process
    }

    /// `kill -9`: its tasks are gone, and what they had not handed to the kernel. Writes that are
    /// under way may end, or not, or in part; peers are told that its connections are closed.
    pub fn kill(&self, node: NodeId) {
        self.end(node, false);
    }

    /// The power goes: also what was handed to the kernel and not made durable may be gone, in part,
    /// and nobody is told.
    pub fn power_loss(&self, node: NodeId) {
        self.end(node, true);
    }

    fn end(&self, node: NodeId, power: bool) {
        let looks = {
            let machine = &mut self.machines.borrow_mut()[node.0 as usize];
            if power {
                machine.powered = false;
            }
            let was_up = std::mem::replace(&mut machine.up, false);
            (machine.doomed, machine.crash_in) = (None, None);
            machine.views = None;
            machine.stalled.clear();
            was_up.then(|| std::mem::take(&mut machine.looks))
        };
        let Some(looks) = looks else {
            if power {
                self.end_disk(node, true);
            }
            return;
        };
        drop(looks);
        self.count(if power { "power loss" } else { "process killed" });
        self.trace.mix(0x6B69_6C6C ^ u64::from(node.0) ^ u64::from(power));
        let _restore = Restore(&self.running, self.running.replace(Now { node, ..Now::default() }));
        let mine = self.tasks.borrow().of(|task| task.node == node);
        for id in mine {
            self.remove(id);
        }
        self.end_disk(node, power);
        self.end_net(node, power);
    }

    /// Removes a task; its future is dropped as if in a step of its own.
    fn remove(&self, id: TaskId) {
        let task = self.tasks.borrow_mut().remove(id);
        let Some(mut task) = task else { return };
        self.may_change(task.node);
        {
            let now = Now { node: task.node, core: task.core, task: id.0 };
            let _restore = Restore(&self.running, self.running.replace(now));
            drop(task.future.take());
        }
        task.joiners.into_iter().for_each(Waker::wake);
        if task.is_main {
            let rest = self.tasks.borrow().of(|t| t.node == task.node && t.core == task.core);
            rest.into_iter().for_each(|id| self.remove(id));
        }
    }

    /// The node's process meets its end at one of its next calls to the disk: the one after `calls`
    /// others. From then on none has an effect.
    pub fn crash_after_ops(&self, node: NodeId, calls: u64, power: bool) {
        self.machines.borrow_mut()[node.0 as usize].crash_in = Some((calls, power));
    }

    /// One of a node's calls to its disk fails, counted from 0 over all its processes; with `forever`,
    /// so does every one after it until [`SimWorld::stop_faults`].
    pub fn fail_call(&self, node: NodeId, call: u64, forever: bool) {
        self.machines.borrow_mut()[node.0 as usize].fails_at = Some((call, forever));
    }

    /// Calls of a node to its disk so far.
    #[must_use]
    pub fn calls(&self, node: NodeId) -> u64 {
        self.machines.borrow()[node.0 as usize].calls
    }

    /// Up to when a node's process stands still.
    #[must_use]
    pub fn paused_until(&self, node: NodeId) -> u64 {
        self.machines.borrow()[node.0 as usize].paused_until
    }

    /// A node's process stands still.
    pub fn pause(&self, node: NodeId, for_ns: u64) {
        self.count("pause");
        self.note(|| format!("node {} stands still for {} ms", node.0, for_ns / 1_000_000));
        let until = self.now_ns() + for_ns;
        self.machines.borrow_mut()[node.0 as usize].paused_until = until;
        self.at(until, Event::Resume(node));
    }

    /// Runs one step of one task, or goes on to the next thing that happens. `false` if nothing can
    /// ever happen again.
    pub fn step(&self) -> bool {
        self.reap();
        loop {
            let next = {
                let random = self.faults.borrow().random_order;
                let rng = &mut *self.rng.borrow_mut();
                self.tasks.borrow_mut().next(|n| if random { rng.below(n) } else { 0 })
            };
            let Some(id) = next else { return self.advance() };
            let Some(node) = self.tasks.borrow_mut().get(id).map(|task| task.node) else { continue };
            let stands = {
                let machine = &mut self.machines.borrow_mut()[node.0 as usize];
                let stands = machine.paused_until > self.now_ns.get();
                if stands {
                    machine.stalled.push(id);
                }
                stands
            };
            if stands {
                continue;
            }
            self.trace.mix(id.0 ^ self.now_ns.get());
            self.now_ns.set(self.now_ns.get() + 200);
            self.poll(id);
            return true;
        }
    }

    fn reap(&self) {
        let machines = self.machines.borrow().len();
        for n in 0..machines {
            let doomed = self.machines.borrow()[n].doomed;
            if let Some(power) = doomed {
                self.note(|| format!("node {n} died in a call"));
                self.end(NodeId(n as u32), power);
            }
        }
    }

    fn poll(&self, id: TaskId) {
        let Some((mut future, waker, node, core)) = self.tasks.borrow_mut().begin(id) else { return };
        self.may_change(node);
        let ended = {
            let _restore = Restore(&self.running, self.running.replace(Now { node, core, task: id.0 }));
            future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        };
        let mut tasks = self.tasks.borrow_mut();
        match tasks.get(id) {
            Some(task) if !ended && !task.cancelled => task.future = Some(future),
            Some(task) => {
                task.future = Some(future);
                drop(tasks);
                self.remove(id);
            }
            // The node was killed meanwhile.
            None => {
                drop(tasks);
                drop(future);
            }
        }
    }

    fn advance(&self) -> bool {
        let next = self.events.borrow_mut().0.pop();
        let Some(Reverse(At(at, _, event))) = next else { return false };
        self.now_ns.set(self.now_ns.get().max(at));
        self.alarms.borrow_mut().remove(&at);
        match event {
            Event::Wake(waker, waits) => {
                if waits.get() {
                    waker.wake();
                }
            }
            Event::Arrive(conn, end) => self.arrive(conn, end),
            Event::Done(op) => self.disk_done(op),
            Event::Alarm => {}
            Event::Resume(node) => {
                let stalled = {
                    let machine = &mut self.machines.borrow_mut()[node.0 as usize];
                    if machine.paused_until > self.now_ns.get() {
                        Vec::new()
                    } else {
                        std::mem::take(&mut machine.stalled)
                    }
                };
                let mut tasks = self.tasks.borrow_mut();
                let mut ready = tasks.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                ready.extend(stalled.iter().map(|id| id.0));
                drop(ready);
                let _ = &mut *tasks;
            }
        }
        true
    }

    /// The clock stops at `at_ns`, although nothing happens then: whoever runs the world may do
    /// something.
    pub fn alarm(&self, at_ns: u64) {
        if !self.alarms.borrow_mut().insert(at_ns) {
            return;
        }
        self.at(at_ns, Event::Alarm);
    }

    fn at(&self, at_ns: u64, event: Event) {
        let events = &mut *self.events.borrow_mut();
        events.1 += 1;
        events.0.push(Reverse(At(at_ns, events.1, event)));
    }

    /// Nanoseconds since the world began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// Where the shards of a node stand.
    #[must_use]
    pub fn views(&self, node: NodeId) -> Rc<Vec<ShardView>> {
        let machine = &mut self.machines.borrow_mut()[node.0 as usize];
        if let Some(views) = &machine.views {
            return views.clone();
        }
        let mut out = Vec::with_capacity(machine.looks.len());
        machine.looks.retain(|look| {
            let view = look();
            let lives = view.is_some();
            out.extend(view);
            lives
        });
        machine.views.insert(Rc::new(out)).clone()
    }

    /// A task of the node runs, or is dropped: its shards may stand elsewhere.
    fn may_change(&self, node: NodeId) {
        self.machines.borrow_mut()[node.0 as usize].views = None;
    }

    /// What happened.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    fn note(&self, text: impl FnOnce() -> String) {
        self.trace.note(self.now_ns(), text);
    }

    fn rng(&self) -> std::cell::RefMut<'_, Rng> {
        self.rng.borrow_mut()
    }

    fn rates(&self) -> Ref<'_, Faults> {
        self.faults.borrow()
    }

    /// A node's files and their lengths, in order of their names.
    #[must_use]
    pub fn files(&self, node: NodeId) -> Vec<(PathBuf, u64)> {
        self.disks.borrow()[node.0 as usize].files()
    }

    /// Empties a node's disk; the node must be down.
    pub fn wipe(&self, node: NodeId) {
        self.count("disk emptied");
        self.machines.borrow_mut()[node.0 as usize].lies = None;
        self.disks.borrow_mut()[node.0 as usize] = Disk::default();
    }

    /// How many bytes more a node's files may grow by; `None`: any.
    pub fn set_space(&self, node: NodeId, bytes: Option<u64>) {
        if bytes.is_some() {
            self.count("disk full");
        }
        self.disks.borrow_mut()[node.0 as usize].space = bytes;
    }
}
