//! A few hundred runs of the simulator: `towline-bench sim`, `images` and `errors` make more of them.
//! Docs: `docs/TESTING.md`.

use std::sync::Once;

use towline::canary::Canary;
use towline_bench::sim::many::{Many, many};
use towline_bench::sim::minimise::minimise;
use towline_bench::sim::plan::Less;
use towline_bench::sim::run::{How, record_panics, run};
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
