//! One run: the cluster under load and faults, then healed, then checked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use towline::canary::{self, Canary};

use super::checks::Seen;
use super::cluster::{Cluster, Role};
use super::errors::{self, Failing};
use super::handler::lock;
use super::nemesis::Nemesis;
use super::plan::{Fault, Less, Plan};
use super::world::SimWorld;
use super::{judge, last};

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// What is left out.
    pub less: Less,
    /// A deliberate bug.
    pub canary: Option<Canary>,
    /// Whether a readable log is kept.
    pub trace: bool,
    /// A call to a disk that fails.
    pub failing: Option<Failing>,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its seed.
    pub seed: u64,
    /// What is wrong, if anything.
    pub violation: Option<String>,
    /// The faults that could come.
    pub faults: Vec<Fault>,
    /// Faults that came, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// What the engine counted, over all shards and processes.
    pub did: BTreeMap<&'static str, u64>,
    /// A number for everything that happened: two runs with the same one did the same.
    pub hash: u64,
    /// Steps of tasks.
    pub steps: u64,
    /// Virtual time.
    pub virtual_ns: u64,
    /// Commits that were acknowledged.
    pub commits: u64,
    /// Appends.
    pub appends: u64,
    /// Calls of each node to its disk.
    pub calls: Vec<u64>,
    /// The readable log.
    pub trace: Vec<String>,
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are written down and not printed, from now on, in the whole process: a run that ends with
/// one says so itself. With `backtrace`, with the way there.
pub fn record_panics(backtrace: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let trace = if backtrace { std::backtrace::Backtrace::force_capture().to_string() } else { String::new() };
        PANIC.set(format!("{info} {trace}"));
    }));
}

/// What the last panic of this thread said, if panics are recorded.
pub(super) fn last_panic() -> String {
    format!("panic: {}", PANIC.take())
}

/// Steps between two looks at every node.
const LOOK_EVERY: u64 = 24;
/// The most steps of a run: more means that something spins.
const STEPS_MAX: u64 = 3_000_000;
/// How long a healed cluster may take to come together.
const CONVERGE_NS: u64 = 120_000_000_000;

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, how: &How) -> Ran {
    run_plan(Plan::draw(seed, &how.less), how)
}

/// Runs a plan.
#[must_use]
pub fn run_plan(plan: Plan, how: &How) -> Ran {
    let seed = plan.seed;
    let world = SimWorld::new(seed, super::nemesis::rates(&plan));
    world.trace().keep(how.trace);
    let entered = world.enter();
    canary::set(how.canary);
    let mut cluster = Cluster::new(world.clone(), plan);
    let mut steps = 0;
    let went = catch_unwind(AssertUnwindSafe(|| all(&mut cluster, &mut steps, how.failing)));
    if let Err(panic) = went {
        drop(panic);
        let text = last_panic();
        if !lock(&cluster.wrong).contains(&text) {
            cluster.fail(text);
        }
    }
    let violation = lock(&cluster.wrong).first().cloned();
    let oracle = lock(&cluster.oracle);
    let mut ran = Ran {
        seed,
        violation,
        faults: cluster.plan.faults.clone(),
        counts: world.counts(),
        did: BTreeMap::new(),
        hash: world.trace().hash(),
        steps,
        virtual_ns: world.now_ns(),
        commits: oracle.commits,
        appends: oracle.appends.len() as u64,
        calls: cluster.nodes.iter().map(|n| world.calls(n.id)).collect(),
        trace: world.trace().take(),
    };
    drop(oracle);
    for n in 0..cluster.nodes.len() {
        // Drops its tasks while the world is still entered.
        let _ = catch_unwind(AssertUnwindSafe(|| world.kill(cluster.nodes[n].id)));
    }
    ran.did = world.did();
    canary::set(None);
    drop(cluster);
    drop(entered);
    ran
}

/// Goes on until `done`, or until something is wrong or `until_ns` has come. Says whether it is done.
fn go(
    cluster: &mut Cluster,
    seen: &mut Seen,
    steps: &mut u64,
    until_ns: u64,
    mut each: impl FnMut(&mut Cluster),
    mut done: impl FnMut(&Cluster) -> bool,
) -> bool {
    loop {
        if !lock(&cluster.wrong).is_empty() {
            return false;
        }
        for _ in 0..LOOK_EVERY {
            *steps += 1;
            if !cluster.world.step() {
                break;
            }
            if !lock(&cluster.oracle).fresh.is_empty() {
                seen.look(cluster);
            }
        }
        seen.look(cluster);
        cluster.newest_term = cluster.newest_term.max(seen.newest_term());
        each(cluster);
        cluster.tend();
        if done(cluster) {
            return true;
        }
        if cluster.world.now_ns() >= until_ns {
            return false;
        }
        if *steps > STEPS_MAX {
            cluster.fail(format!("{STEPS_MAX} steps are not enough: something spins"));
        }
    }
}

fn act(cluster: &mut Cluster, nemesis: &mut Nemesis) {
    nemesis.act(cluster);
    last::mend(cluster);
}

fn all(cluster: &mut Cluster, steps: &mut u64, failing: Option<Failing>) {
    let mut seen = Seen::default();
    let mut nemesis = Nemesis::new(&cluster.plan);
    let mut watch = errors::Watch::new(cluster, failing);
    let until = cluster.plan.at_most.as_nanos() as u64;
    let each = |c: &mut Cluster| {
        act(c, &mut nemesis);
        watch.look(c);
    };
    go(cluster, &mut seen, steps, until, each, |c| lock(&c.oracle).left == 0);
    // What is under way may come to its end, and a primary that writes alone goes on for longer.
    let more = if cluster.plan.has(Fault::DropSlots) { 1_500_000_000 } else { 300_000_000 };
    let until = cluster.world.now_ns() + more;
    go(cluster, &mut seen, steps, until, |c| act(c, &mut nemesis), |_| false);
    watch.end(cluster);
    nemesis.heal(cluster);
    let until = cluster.world.now_ns() + CONVERGE_NS;
    let together = go(cluster, &mut seen, steps, until, last::mend, last::is_together);
    if !lock(&cluster.wrong).is_empty() {
        return;
    }
    if !together {
        let state = last::describe(cluster);
        cluster.fail(format!("a healed cluster does not come together: {state}"));
        return;
    }
    // With nothing in its way, every commit comes through.
    let tickets = last::probe(cluster);
    let until = cluster.world.now_ns() + 60_000_000_000;
    let all = go(cluster, &mut seen, steps, until, |_| {}, |_| tickets.borrow().left == 0);
    if lock(&cluster.wrong).is_empty() && (!all || !tickets.borrow().failed.is_empty()) {
        let failed = tickets.borrow().failed.clone();
        let state = last::describe(cluster);
        cluster.fail(format!("appends to a whole cluster do not all commit: {failed:?} {state}"));
        return;
    }
    let until = cluster.world.now_ns() + CONVERGE_NS;
    // Nobody waited for readers, which may have fallen behind the cap.
    if !go(cluster, &mut seen, steps, until, Cluster::mend_readers, last::is_together)
        && lock(&cluster.wrong).is_empty()
    {
        cluster.fail(format!("the last appends do not reach everybody: {}", last::describe(cluster)));
        return;
    }
    // Everybody is stopped in order; then their disks are read.
    for n in 0..cluster.nodes.len() {
        cluster.nodes[n].control.stop();
        cluster.nodes[n].start_at = Some(u64::MAX);
    }
    let until = cluster.world.now_ns() + 60_000_000_000;
    let down = |c: &Cluster| (0..c.nodes.len()).all(|n| !c.is_up(n));
    if !go(cluster, &mut seen, steps, until, |_| {}, down) {
        if lock(&cluster.wrong).is_empty() {
            cluster.fail("a node does not stop".into());
        }
        return;
    }
    assert!(matches!(cluster.nodes[cluster.primary].role, Role::Primary { .. }));
    if let Err(e) = last::check(cluster).and_then(|()| judge::judge(cluster)) {
        cluster.fail(e);
    }
}
