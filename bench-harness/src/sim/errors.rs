//! I/O errors, enumerated: the same workload again and again, and each time another one of a node's
//! calls to its disk fails, once or for ever.
//!
//! What must hold: from the first failure on nothing is acknowledged that needs that disk; whatever
//! was acknowledged is there when the node starts again on a disk that works, after a power loss too.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use towline::canary::Canary;
use towline::{Compress, Retain, ShardId};

use super::cluster::Cluster;
use super::failed::shard_of;
use super::handler::lock;
use super::oracle::Became;
use super::plan::{Fault, Less, Plan};
use super::run::{How, Ran, run_plan};
use crate::jobs;

/// A call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Whose: 0 is the primary.
    pub node: usize,
    /// Which of its calls.
    pub call: u64,
    /// Whether every one after it fails too.
    pub forever: bool,
}

/// Looks whether the failure is taken as final.
pub(super) struct Watch {
    failing: Option<Failing>,
    /// Appends that had been asked for when the failure was first seen.
    before: Option<usize>,
    /// The process that met it.
    process: u64,
    /// Whose write or flush it was; of no shard's, if it was something else.
    shard: Option<ShardId>,
}

impl Watch {
    /// Arms the failure.
    pub(super) fn new(c: &Cluster, failing: Option<Failing>) -> Self {
        if let Some(f) = failing {
            c.world.fail_call(c.nodes[f.node].id, f.call, f.forever);
        }
        Self { failing, before: None, process: 0, shard: None }
    }

    /// Between two steps.
    pub(super) fn look(&mut self, c: &Cluster) {
        if let (Some(f), None) = (self.failing, self.before)
            && c.world.calls(c.nodes[f.node].id) > f.call
        {
            self.before = Some(lock(&c.oracle).appends.len());
            self.process = c.nodes[f.node].incarnation;
            self.shard = c.world.failed(c.nodes[f.node].id).first().and_then(|failed| shard_of(&failed.path));
        }
        // What failed once goes right the next time. The process that met it must not find out.
        let lives = |f: Failing| c.nodes[f.node].incarnation == self.process;
        if self.failing.is_some_and(|f| !f.forever && lives(f)) && self.shard.is_some() {
            self.nothing_was_told(c, self.shard);
        }
    }

    /// No append that was asked for after the failure was acknowledged on that disk, to this shard or to any.
    fn nothing_was_told(&self, c: &Cluster, shard: Option<ShardId>) {
        let (Some(f), Some(before)) = (self.failing, self.before) else { return };
        let told = lock(&c.oracle).appends[before..].iter().position(|append| match append.became {
            Became::Committed(p) => {
                shard.is_none_or(|shard| shard == append.shard) && (f.node == 0 || p.need.replicas > 0)
            }
            _ => false,
        });
        if let Some(n) = told {
            c.fail(format!("append {} was acknowledged on a disk that had failed", before + n));
        }
    }

    /// Before the disk is whole again: nothing may have been acknowledged on it meanwhile. What was
    /// not made durable is lost then.
    pub(super) fn end(&self, c: &mut Cluster) {
        let (Some(f), true) = (self.failing, self.before.is_some()) else { return };
        if f.forever {
            self.nothing_was_told(c, None);
        }
        if c.is_up(f.node) {
            c.crash(f.node, true, 1_000_000);
        }
    }
}

/// The workload: records of many sizes, segments that are recycled, two shards.
fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed, &Less::default());
    (plan.shards, plan.replicas, plan.readers, plan.cores) = (1 + (seed % 2) as u32, 1, 0, 1);
    (plan.segment_bytes, plan.segments_ahead, plan.batch_bytes) = (64 << 10, 1, 16 << 10);
    plan.min_replicas.0 = 0;
    plan.record_max = 40_000;
    (plan.retain, plan.live_window) = (Retain::Bytes(64 << 10), [0, 64 << 10][(seed % 2) as usize]);
    plan.write_depth = 4;
    // What holds batches back makes them larger and fewer: there would be fewer calls to look at.
    (plan.catch_up_max, plan.link_window, plan.lag_target, plan.compress) = (None, 32 << 20, None, Compress::Off);
    plan.linger = Duration::ZERO;
    (plan.policy, plan.policies) =
        ("ack_n=1".parse().expect("a policy"), vec![None, Some("local".parse().expect("a policy"))]);
    (plan.deadline, plan.too_few) = (Duration::from_millis(300), towline::TooFewReplicas::Wait);
    (plan.local_clients, plan.handle_clients, plan.window) = (2, 0, 6);
    plan.deliver_flushed = false;
    (plan.appends, plan.think, plan.at_most) = (80, Duration::from_micros(3000), Duration::from_millis(1500));
    // A start that fails is tried again, as on disks that fail at random; none does here.
    (plan.faults, plan.intensity) = (vec![Fault::WriteError], 0.0);
    plan
}

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    /// Runs.
    pub runs: u64,
    /// Calls of a run without a failure, of each node.
    pub calls: Vec<u64>,
    /// Commits that were acknowledged in all runs.
    pub commits: u64,
    /// The runs that failed.
    pub failed: Vec<(Failing, Ran)>,
}

/// The same run again, with a readable log.
#[must_use]
pub fn again(seed: u64, failing: Failing, canary: Option<Canary>) -> Ran {
    run_plan(plan(seed), &How { failing: Some(failing), canary, trace: true, ..How::default() })
}

/// Runs the workload of a seed once for each call, or for one in `step`, of each node, for once and for
/// ever, on `jobs` threads.
#[must_use]
pub fn enumerate(seed: u64, step: usize, jobs: usize, canary: Option<Canary>) -> Errors {
    let whole = run_plan(plan(seed), &How { canary, ..How::default() });
    let all: Vec<Failing> = [true, false]
        .into_iter()
        .flat_map(|forever| (0..whole.calls.len()).map(move |node| (forever, node)))
        .flat_map(|(forever, node)| (0..whole.calls[node]).map(move |call| Failing { node, call, forever }))
        .step_by(step.max(1))
        .collect();
    let out = Mutex::new(Errors { calls: whole.calls.clone(), ..Errors::default() });
    jobs::each(jobs, all.len() as u64, |_, n| {
        let failing = all[n as usize];
        let how = How { failing: Some(failing), canary, ..How::default() };
        let ran = run_plan(plan(seed), &how);
        let mut out = lock(&out);
        (out.runs, out.commits) = (out.runs + 1, out.commits + ran.commits);
        if ran.violation.is_some() {
            out.failed.push((failing, ran));
        }
        ControlFlow::Continue(())
    });
    let mut out = out.into_inner().unwrap_or_else(PoisonError::into_inner);
    if whole.violation.is_some() {
        out.failed.push((Failing { node: 0, call: u64::MAX, forever: false }, whole));
    }
    out.failed.sort_by_key(|(f, _)| (f.forever, f.node, f.call));
    out
}
