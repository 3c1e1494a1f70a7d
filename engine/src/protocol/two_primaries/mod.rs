//! Two primaries, every interleaving: an old one that goes on, and a replica that was promoted beside it.
//!
//! It is the code of [`super`] that runs: gate, slots, primary, replica, histories, put together as the
//! shell does it (`nodes.rs`), with links in between (`cluster.rs`). From the start all states that can be
//! reached in so many steps are looked at, breadth first (`explore.rs`), each once, and each is judged
//! (`laws.rs`):
//!
//! - A replica that has seen the new term acknowledges the old one no more.
//! - Once so many replicas have seen the new term that no commit of the old one's can do without one of
//!   them, the old primary commits nothing but what one of them had acknowledged before it saw it. (It may
//!   still commit that: acknowledgements that were given before may arrive, and be joined by others'.)
//! - No two contents are committed at one LSN, and the new primary has what the old one has committed,
//!   also what that commits later, if who is promoted was chosen as docs/OPERATING.md says.
//! - A deposed primary finishes no commit; what is committed stays so.
//! - A replica holds a prefix of the log that it follows, and takes for committed only what is.
//!
//! A step is an append, a message that arrives, a connection made or given up, a promotion, or the old
//! primary's start as a replica. A message that is lost is one that never arrives: what follows it on its
//! connection does not either. What is written is on the device at once, and there is no clock: crashes and
//! time are the simulator's. Replicas are alike, so states that differ in their names only are one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use towline_wire::message::AckLevel;

use super::policy::CommitPolicy;
use crate::canary::{self, Canary};

mod cluster;
mod explore;
mod laws;
mod nodes;

use explore::{Counts, explore, keys_tell_all};

/// What is explored.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// The old primary's replicas; the new one has as many.
    replicas: usize,
    policy: CommitPolicy,
    /// Batches that each primary appends at most.
    appends: [usize; 2],
    /// The old primary has committed one when it begins.
    begins_committed: bool,
    /// Who is promoted is chosen as docs/OPERATING.md has it; else it is any replica.
    careful: bool,
    /// Primaries say what is committed on their own too, not with batches and welcomes only.
    beats: bool,
}

impl Shape {
    /// `n` of so many replicas; a majority is asked for as such.
    fn new(replicas: usize, n: usize) -> Self {
        let level = AckLevel::Flushed;
        let policy = match n == replicas / 2 + 1 {
            true => CommitPolicy::Majority { level },
            false => CommitPolicy::AckN { n: u8::try_from(n).expect("few"), level },
        };
        let appends = if replicas > 3 { [1, 1] } else { [2, 1] };
        Self { replicas, policy, appends, begins_committed: false, careful: true, beats: replicas < 3 }
    }

    /// One to five replicas, and each number of them that a commit can wait for.
    fn all() -> Vec<Self> {
        (1..=5).flat_map(|replicas| (1..=replicas).map(move |n| Self::new(replicas, n))).collect()
    }
}

/// Explores shapes on as many threads as there are processors.
fn explore_all(shapes: &[(Shape, usize)]) -> Counts {
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Counts::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(shapes.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((shape, depth)) = shapes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let counts = explore(*shape, *depth).unwrap_or_else(|b| panic!("{shape:?}: {b}"));
                    println!("{} of {}, {} steps: {counts:?}", shape.policy, shape.replicas, depth);
                    sum.lock().expect("nobody panicked").add(&counts);
                }
            });
        }
    });
    sum.into_inner().expect("nobody panicked")
}

#[test]
fn two_primaries_keep_every_promise_in_all_interleavings_of_nine_steps() {
    let shapes: Vec<_> = Shape::all().into_iter().map(|shape| (shape, if cfg!(miri) { 3 } else { 9 })).collect();
    let counts = explore_all(&shapes);
    println!("{counts:?}");
    let Counts { states, both_reign, both_committed, deposed, cuts, late, .. } = counts;
    assert!(cfg!(miri) || states > 300_000);
    assert!(cfg!(miri) || [both_reign, both_committed, deposed, cuts, late].iter().all(|n| *n > 0), "{counts:?}");
}

#[test]
#[ignore = "half a minute on two processors; .ci/run does it"]
fn two_primaries_keep_every_promise_in_all_interleavings_of_twelve_steps() {
    let mut shapes: Vec<_> = Shape::all().into_iter().map(|shape| (shape, 12)).collect();
    // Two reigns that both commit, under a majority of many, take more steps than that from the beginning.
    for replicas in 2..=5 {
        let shape = Shape::new(replicas, replicas / 2 + 1);
        shapes.push((Shape { begins_committed: true, appends: [2, 1], ..shape }, 12));
    }
    // The largest ones are the last.
    shapes.reverse();
    let counts = explore_all(&shapes);
    println!("{counts:?}");
    let Counts { states, both_reign, both_committed, deposed, cuts, late, .. } = counts;
    assert!(states >= 1_000_000, "{counts:?}");
    assert!([both_reign, both_committed, deposed, cuts, late].iter().all(|n| *n > 1000), "{counts:?}");
}

/// What stands for several states is chosen without care: so it must not matter.
#[test]
#[cfg_attr(miri, ignore)]
fn states_that_count_as_one_go_on_alike() {
    let later = Shape { begins_committed: true, appends: [2, 1], ..Shape::new(3, 2) };
    for (shape, depth) in [(Shape::new(1, 1), 10), (Shape::new(2, 2), 8), (Shape::new(3, 2), 7), (later, 7)] {
        let again = keys_tell_all(shape, depth);
        println!("{} of {}, {depth} steps: {again} times", shape.policy, shape.replicas);
        assert!(again > 500);
    }
}

/// The promise that is broken by a deliberate bug.
fn broken_by(bug: Option<Canary>, shape: Shape, depth: usize) -> String {
    canary::set(bug);
    let found = explore(shape, depth);
    canary::set(None);
    let broken = found.expect_err("nothing was found");
    println!("{broken}");
    broken.what
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_term_that_is_not_checked_is_found() {
    let what = broken_by(Some(Canary::TermNotChecked), Shape::new(2, 2), 11);
    assert!(what.contains("has seen the new term and acknowledges the old one"), "{what}");
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_chain_that_is_not_compared_is_found() {
    let what = broken_by(Some(Canary::ChainNotCompared), Shape::new(1, 1), 9);
    assert!(what.contains("follows a primary and holds other bytes"), "{what}");
}

/// What the operator has to see to is no formality: any replica will not do.
#[test]
#[cfg_attr(miri, ignore)]
fn a_promotion_without_care_commits_two_contents_at_one_lsn() {
    let shape = Shape { careful: false, appends: [1, 1], beats: false, ..Shape::new(2, 1) };
    let what = broken_by(None, shape, 14);
    assert!(what.contains("two different contents are committed at one LSN"), "{what}");
}
