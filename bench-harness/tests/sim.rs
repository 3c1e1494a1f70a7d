//! A few hundred runs of the simulator: `towline-bench sim`, `images` and `errors` make more of them.
//! Docs: `docs/TESTING.md`.

use std::sync::Once;

use towline::canary::Canary;
use towline::{CommitPolicy, Compress, Retain, RetainMax, limits};
use towline_bench::sim::cluster::Cluster;
use towline_bench::sim::handler::lock;
use towline_bench::sim::many::{Many, many};
use towline_bench::sim::minimise::minimise;
use towline_bench::sim::plan::{Less, Plan};
use towline_bench::sim::run::{How, record_panics, run};
use towline_bench::sim::world::{Faults, SimWorld};
use towline_bench::sim::{errors, images};

/// Threads of a test: tests run beside each other.
const JOBS: usize = 2;

fn runs(from: u64, seeds: u64, how: &How) -> Many {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        record_panics(false);
        let recorded = std::panic::take_hook();
        // A panic of the test itself is printed too.
        std::panic::set_hook(Box::new(move |info| {
            recorded(info);
            if info.location().is_some_and(|at| at.file().contains("tests")) {
                before(info);
            }
        }));
    });
    many((from, seeds), JOBS, how, true, |_, _| {})
}

#[test]
fn whole_clusters_under_drawn_faults_lose_nothing() {
    let all = runs(1, 300, &How::default());
    let first = all.failed.first().map(|ran| (ran.seed, &ran.violation));
    assert!(first.is_none(), "towline-bench sim --seeds 1 --from SEED shows it: {first:?}");
    assert!(all.commits > 10_000 && all.counts.len() > 15, "{} commits, {:?}", all.commits, all.counts);
}

#[test]
fn a_seed_does_the_same_bit_for_bit() {
    for seed in 1..20 {
        let (a, b) = (run(seed, &How::default()), run(seed, &How { trace: true, ..How::default() }));
        assert_eq!((a.hash, a.steps, a.virtual_ns, a.appends), (b.hash, b.steps, b.virtual_ns, b.appends));
        assert_eq!(a.counts, b.counts, "seed {seed}");
    }
}

/// `.ci/run` looks for all of them, which takes longer.
#[test]
fn deliberate_bugs_are_found() {
    for canary in [
        Canary::AckBeforeFlush,
        Canary::ReceivedAsFlushed,
        Canary::WriteErrorIgnored,
        Canary::TermNotBumped,
        Canary::ApplyUncommitted,
        Canary::LostWakeup,
        Canary::PromiseNotDurable,
    ] {
        let how = How { canary: Some(canary), ..How::default() };
        assert!(!runs(1, 200, &how).failed.is_empty(), "{canary:?} is not found");
    }
}

#[test]
fn a_failing_run_that_was_made_shorter_still_fails() {
    let how = How { canary: Some(Canary::AckBeforeFlush), ..How::default() };
    let first = runs(1, 200, &how).failed.remove(0);
    let (shorter, ran) = minimise(&first, &how);
    assert!(ran.violation.is_some() && ran.steps < first.steps);
    assert_ne!(shorter.less, Less::default());
    assert_eq!(run(first.seed, &shorter).hash, ran.hash, "what is printed replays it");
}

#[test]
fn a_crash_at_a_boundary_of_a_call_leaves_what_was_acknowledged() {
    // A workload in which several writes are often under way, so that no way of leaving a disk is rare.
    let found = images::enumerate(2, 1500, None).unwrap();
    assert!(found.total() >= 500 && found.images.len() == 5, "{:?}", found.images);
    let caught = images::enumerate(1, 600, Some(Canary::RecoveryCutsOneMore));
    assert!(caught.is_err(), "a deliberate bug is not found");
}

#[test]
fn a_call_to_a_disk_that_fails_is_final_for_what_is_acknowledged() {
    let all = errors::enumerate(1, 14, JOBS, None);
    let first = all.failed.first().map(|(failing, ran)| (failing, &ran.violation));
    assert!(first.is_none(), "{first:?}");
    assert!(all.runs > 60 && all.commits > 1000, "{} runs, {} commits", all.runs, all.commits);
    let caught = errors::enumerate(1, 14, JOBS, Some(Canary::WriteErrorIgnored));
    assert!(!caught.failed.is_empty(), "a deliberate bug is not found");
}

#[test]
fn replicas_that_catch_up_at_once_read_ahead_up_to_the_cap_together_and_no_further() {
    const REPLICAS: usize = 6;
    let local: CommitPolicy = "local".parse().unwrap();
    let mut plan = Plan::draw(1, &Less::default());
    (plan.shards, plan.replicas, plan.readers, plan.cores) = (1, REPLICAS, 0, 1);
    (plan.segment_bytes, plan.record_max, plan.batch_bytes) = (8 << 20, 900_000, 1 << 20);
    (plan.retain, plan.retain_max, plan.snapshots) = (Retain::All, RetainMax::Unlimited, false);
    (plan.policy, plan.policies, plan.min_replicas.0) = (local, vec![Some(local)], 0);
    (plan.catch_up_max, plan.link_window, plan.lag_target) = (None, 32 << 20, None);
    (plan.compress, plan.live_window) = (Compress::Off, 64 << 10);
    (plan.appends, plan.local_clients, plan.handle_clients) = (240, 2, 0);
    plan.faults.clear();
    // Reads take longer than it takes to ask for the next ones.
    let world = SimWorld::new(1, Faults { disk_ns: (20_000_000, 30_000_000), ..Faults::default() });
    let entered = world.enter();
    let mut cluster = Cluster::new(world.clone(), plan);
    cluster.nodes[1..].iter_mut().for_each(|n| n.start_at = Some(u64::MAX));
    let primary = cluster.nodes[0].id;
    let view = || world.views(primary)[0].clone();
    let goes_well = |c: &Cluster| {
        let wrong = lock(&c.wrong);
        assert!(wrong.is_empty() && world.now_ns() < 600_000_000_000, "{wrong:?}");
    };
    while lock(&cluster.oracle).left > 0 {
        world.step();
        cluster.tend();
        goes_well(&cluster);
    }
    cluster.nodes[1..].iter_mut().for_each(|n| n.start_at = Some(0));
    let (mut most, mut behind) = (0, true);
    while behind {
        world.step();
        cluster.tend();
        let now = view();
        assert!(now.ahead_bytes <= limits::READ_AHEAD_BYTES_MAX, "{now:?}");
        most = most.max(now.ahead_bytes);
        behind = now.slots.iter().any(|s| s.flushed < now.durable);
        goes_well(&cluster);
    }
    let wanted = (REPLICAS * limits::READ_AHEAD * limits::READ_CHUNK_BYTES) as u64;
    assert!(wanted > limits::READ_AHEAD_BYTES_MAX && view().durable.0 > limits::READ_AHEAD_BYTES_MAX);
    // Who found no room read one at a time, and has everything all the same.
    assert!(most + limits::READ_CHUNK_BYTES as u64 > limits::READ_AHEAD_BYTES_MAX, "{most} bytes at most");
    cluster.nodes.iter().for_each(|n| world.kill(n.id));
    drop(cluster);
    drop(entered);
}
