//! The run's history before the public checker: the same code that judges storms of real processes and
//! `towline verify --history`. It knows less than the [`oracle`](super::oracle), which counts copies at
//! the moment of an acknowledgement, and shares nothing with it.

use std::ops::ControlFlow;
use std::path::Path;

use towline::history::{Append, Checker, Commit, Event, LogHead, Outcome, Print, Scope, Source, Status};
use towline::protocol::policy::Requirement;
use towline::wire::handshake::NodeName;
use towline::{Bookmark, ShardId, offline, world};

use super::cluster::{Cluster, DATA};
use super::handler::lock;

/// A history that is being written.
#[derive(Debug)]
pub struct Judge {
    checker: Checker,
    source: Source,
}

fn now_us() -> u64 {
    world::current().map_or(0, |world| world.now_ns() / 1000)
}

impl Judge {
    /// For a cluster of so many nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let mut checker = Checker::new(nodes as u8);
        let source = checker.source();
        let mut judge = Self { checker, source };
        judge.push(&Event::Begin { nodes: nodes as u8 });
        judge
    }

    fn push(&mut self, event: &Event) {
        self.checker.push(self.source, event).expect("the oracle lets nothing happen twice");
    }

    /// A record is about to be appended.
    pub fn append(&mut self, id: usize, client: u32, shard: ShardId, record: &[u8]) {
        let print = Print::of(record);
        self.push(&Event::Append(Append { id: id as u64, client, shard, print, policy: None, at_us: now_us() }));
    }

    /// It was refused.
    pub fn refused(&mut self, id: usize) {
        self.outcome(id, Status::Refused);
    }

    /// It was committed; `exact` if the bookmark is its own.
    pub fn committed(&mut self, id: usize, at: Bookmark, need: Requirement) {
        let (level, wanted, acks) = (need.level, need.replicas, need.replicas);
        self.outcome(
            id,
            Status::Committed(Commit { term: at.term, lsn: at.lsn, first_seq: None, level, wanted, acks }),
        );
    }

    fn outcome(&mut self, id: usize, status: Status) {
        self.push(&Event::Outcome(Outcome { id: id as u64, records: 1, status, at_us: now_us() }));
    }

    /// A node's copies are gone.
    pub fn lost(&mut self) {
        let node = NodeName::new("lost").expect("a name");
        self.push(&Event::Lost { node, at_us: now_us() });
    }

    /// Holds the logs of nodes that have caught up against the history.
    ///
    /// # Errors
    /// What does not fit.
    pub fn verdict(&self, c: &Cluster, nodes: &[usize]) -> Result<(), String> {
        let scope = Scope { logs: nodes.len() as u8, partial: false, converged: true };
        let mut examination = self.checker.examine(scope);
        for shard in (0..c.plan.shards).map(ShardId) {
            for n in nodes {
                let head = |start| LogHead { log: *n as u8, shard, start, authority: *n == c.primary };
                let mut begun = false;
                let report = c.world.with_node(c.nodes[*n].id, || {
                    offline::read_log(Path::new(DATA), shard, None, |batch| {
                        if !std::mem::replace(&mut begun, true) {
                            examination.begin_log(head(batch.header().lsn()));
                        }
                        examination.view(batch);
                        ControlFlow::Continue(())
                    })
                });
                let report = report.map_err(|e| format!("node {n} shard {shard} cannot be read: {e}"))?;
                if !begun {
                    examination.begin_log(head(report.oldest));
                }
                examination.end_log(report.end);
            }
        }
        let verdict = examination.finish();
        let first = verdict.violations.first().map(ToString::to_string).unwrap_or_default();
        if verdict.holds() { Ok(()) } else { Err(format!("the history checker says: {first}")) }
    }
}

/// Has the run's history judged.
///
/// # Errors
/// What does not fit.
pub fn judge(c: &Cluster) -> Result<(), String> {
    let nodes: Vec<usize> = (0..=c.plan.replicas).filter(|n| !c.nodes[*n].tainted).collect();
    lock(&c.oracle).judge.as_ref().map_or(Ok(()), |judge| judge.verdict(c, &nodes))
}
