//! Another node becomes the primary, by hand; and who has to be told of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use towline::{AckLevel, CommitPolicy, Lsn, SettingChange, Term, offline};

use super::cluster::{Cluster, DATA, Role};
use super::handler::lock;
use super::operator::Ask;
use super::plan::Fault;

impl Cluster {
    /// Looks at a stopped node's log: for each shard its last term and its end.
    #[must_use]
    pub fn ends(&self, n: usize) -> Option<Vec<(Term, Lsn)>> {
        let report = self.world.with_node(self.nodes[n].id, || offline::verify(Path::new(DATA))).ok()?;
        if !report.is_whole() || report.shards.len() != self.plan.shards as usize {
            return None;
        }
        Some(report.shards.iter().map(|s| (s.terms.last().map_or(Term::ZERO, |t| t.0), s.end)).collect())
    }

    /// Makes a replica the primary, as an operator does by hand: every replica is stopped, the one
    /// whose log goes furthest on every shard is taken, the others follow it. The old primary is
    /// either gone or does not know. Says whether it was done.
    pub fn promote(&mut self, old_lives_on: bool) -> bool {
        let old = self.primary;
        if self.nodes[old].role != (Role::Primary { promote: false }) {
            // It has not begun to reign.
            return false;
        }
        let replicas: Vec<usize> = (0..=self.plan.replicas).filter(|n| *n != old).collect();
        let is_ready = |n: &usize| !self.nodes[*n].tainted && (self.serves(*n) || !self.is_up(*n));
        if !replicas.iter().all(is_ready) {
            return false;
        }
        // Whoever is looked at stands still.
        let mut ends = BTreeMap::new();
        for n in &replicas {
            if self.is_up(*n) {
                let pause = 1_000_000 + self.rng.below(50_000_000);
                self.crash(*n, false, pause);
            }
            let Some(end) = self.ends(*n) else { return false };
            ends.insert(*n, end);
        }
        let best = replicas.iter().copied().find(|n| {
            replicas.iter().all(|other| ends[n].iter().zip(&ends[other]).all(|(mine, theirs)| mine >= theirs))
        });
        let Some(best) = best else { return false };
        self.note(|| format!("node {best} becomes the primary, {old} is it no more; ends {ends:?}"));
        lock(&self.oracle).lose_copies();
        self.world.hit(if old_lives_on { "promotion beside a living primary" } else { "promotion" });
        self.primary = best;
        for n in 0..=self.plan.replicas {
            self.nodes[n].role = Role::Replica { of: best };
        }
        self.repoint_some();
        self.nodes[best].control = Arc::default();
        self.nodes[best].role = Role::Primary { promote: true };
        self.nodes[best].start_at = Some(self.world.now_ns() + 1_000_000);
        if !self.plan.snapshots {
            // A handler of a primary's folder does not run: what it kept as a replica is history. An embedder
            // with state goes on with it.
            lock(&self.kept).retain(|(node, _), _| *node != best);
        }
        lock(&self.oracle).deposed.push(old);
        if old_lives_on {
            // It goes on as a primary, and is started as one, until somebody tells it.
            self.nodes[old].role = Role::Primary { promote: false };
        } else {
            self.tell(old);
        }
        true
    }

    /// A primary that does not know it is none any more loses its slots, and writes what nobody else has.
    pub(super) fn leave_alone(&mut self, n: usize) {
        let is_old = n != self.primary && matches!(self.nodes[n].role, Role::Primary { .. });
        if !is_old || !self.plan.has(Fault::DropSlots) || std::mem::replace(&mut self.nodes[n].alone, true) {
            return;
        }
        self.world.hit("slots dropped");
        for other in (0..=self.plan.replicas).filter(|other| *other != n) {
            self.nodes[n].control.ask(Ask::Drop(Self::name(other)));
        }
        let control = &self.nodes[n].control;
        control.ask(Ask::Set(SettingChange::Commit(CommitPolicy::All { level: AckLevel::Flushed })));
        control.ask(Ask::Set(SettingChange::MinReplicas(0)));
        control.ask(Ask::Alone);
    }

    /// Starts a replica that has promised to follow the newest primary with the address of an old one
    /// that does not know. Says whether there is such a pair.
    pub fn give_wrong_address(&mut self, n: usize) -> bool {
        if self.is_reader(n) {
            return false;
        }
        // On every shard: a node that is only being opened shows none of them.
        let all = |n: usize, is: fn(&Term, &Term) -> bool| {
            let views = self.world.views(self.nodes[n].id);
            views.len() == self.plan.shards as usize && views.iter().all(|v| is(&v.term, &self.newest_term))
        };
        // While the new primary has not begun to reign, nobody can have promised anything to it.
        let old = lock(&self.oracle).deposed.first().copied();
        let old = old.filter(|old| *old != n && self.is_up(*old) && all(*old, Term::lt));
        let promised = all(n, Term::eq);
        let (Some(old), true, true) = (old, promised, n != self.primary && self.is_up(n)) else { return false };
        self.note(|| format!("node {n} is given the address of {old}"));
        self.crash(n, false, 1_000_000);
        self.nodes[n].role = Role::Replica { of: old };
        self.world.hit("wrong address");
        true
    }

    /// Tells an old primary that it is a replica now.
    pub fn tell(&mut self, n: usize) {
        let pause = self.rng.below(500_000_000);
        self.note(|| format!("node {n} is told of node {}", self.primary));
        if self.is_up(n) {
            self.crash(n, false, pause);
        }
        self.nodes[n].role = Role::Replica { of: self.primary };
        self.nodes[n].start_at = Some(self.world.now_ns() + pause);
        lock(&self.oracle).deposed.retain(|d| *d != n);
    }
}
