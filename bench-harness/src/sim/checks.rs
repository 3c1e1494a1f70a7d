//! What must hold between any two steps of a run, on whatever node lives.

use std::collections::BTreeMap;

use towline::world::ShardView;
use towline::{AckLevel, Lsn, ShardId, Term};

use super::cluster::Cluster;
use super::handler::lock;
use super::oracle::Became;

/// What was seen last.
#[derive(Default)]
pub struct Seen {
    /// By node, process and shard.
    last: BTreeMap<(usize, u64, ShardId), ShardView>,
    /// Who reigned in a term.
    reigns: BTreeMap<(ShardId, Term), usize>,
}

impl Seen {
    /// The highest term that any node has shown.
    #[must_use]
    pub fn newest_term(&self) -> Term {
        self.reigns.keys().map(|(_, term)| *term).max().unwrap_or_default()
    }

    /// Looks at every node that lives.
    pub fn look(&mut self, cluster: &Cluster) {
        for n in 0..cluster.nodes.len() {
            if !cluster.is_up(n) {
                continue;
            }
            let process = cluster.nodes[n].incarnation;
            for view in cluster.world.views(cluster.nodes[n].id) {
                let before = self.last.get(&(n, process, view.shard));
                if before == Some(&view) {
                    continue;
                }
                if let Err(e) = within(&view).and_then(|()| before.map_or(Ok(()), |b| between(b, &view))) {
                    cluster.fail(format!("node {n} shard {}: {e}: {view:?}", view.shard));
                }
                if before.is_some_and(|b| b.begun < view.begun) {
                    cluster.world.hit("log begun anew");
                }
                if view.is_primary {
                    let other = *self.reigns.entry((view.shard, view.term)).or_insert(n);
                    if other != n {
                        cluster.fail(format!("nodes {other} and {n} both reign in term {}", view.term));
                    }
                }
                self.last.insert((n, process, view.shard), view);
            }
        }
        count_copies(cluster, &self.last);
    }
}

/// One view by itself.
fn within(v: &ShardView) -> Result<(), String> {
    let ordered = v.oldest <= v.durable && v.commit <= v.durable && v.durable <= v.appended;
    if !ordered || (!v.is_primary && v.applied > v.durable) {
        return Err("positions out of order".into());
    }
    if v.in_flight_bytes > v.in_flight_bytes_max {
        return Err("more in flight than may be".into());
    }
    for s in &v.slots {
        if s.applied > s.flushed || s.flushed > s.received || s.received > s.sent.max(s.flushed) {
            return Err("a slot's positions are out of order".into());
        }
        if s.lost.is_none() && s.restart < v.oldest {
            return Err("the log was let go of above a valid slot's restart LSN".into());
        }
        if s.lost.is_some() && (s.connected || s.counted > Lsn::ZERO) {
            return Err("a lost slot is served, or counts for commits".into());
        }
    }
    if let (true, Some(cap), Some(_)) = (v.is_primary, v.cap, v.keep) {
        // What the keeper has made ready may fill up, and a batch in the way keeps what is before it.
        let more = (v.segments_ahead + 6) * v.segment_bytes + 3 * v.in_flight_bytes_max;
        if v.appended.since(v.oldest) > cap + more {
            return Err(format!("more log is kept than the cap of {cap} allows"));
        }
    }
    Ok(())
}

/// Two views of the same process, one after the other.
fn between(before: &ShardView, now: &ShardView) -> Result<(), String> {
    if now.commit < before.commit {
        return Err(format!("commit went back from {}", before.commit));
    }
    if now.term < before.term || now.oldest < before.oldest {
        return Err("term or oldest went back".into());
    }
    if now.is_primary && now.durable < before.durable {
        return Err("durable went back on a primary".into());
    }
    Ok(())
}

/// Counts the copies of commits that were acknowledged since the last look: as many nodes as were
/// promised must say that they hold them. A node that has died since may have held one.
fn count_copies(cluster: &Cluster, last: &BTreeMap<(usize, u64, ShardId), ShardView>) {
    let mut oracle = lock(&cluster.oracle);
    while let Some(id) = oracle.fresh.pop_front() {
        let append = oracle.appends[id];
        let Became::Committed(p) = append.became else { continue };
        let (mut copies, mut asked) = (0, 0);
        for n in 0..cluster.nodes.len() {
            let holds = |v: &ShardView| {
                let replica_memory = p.need.level == AckLevel::Received && n != p.by;
                let at = if replica_memory { v.appended } else { v.durable };
                at >= p.bookmark.lsn && v.term >= p.bookmark.term && v.begun < p.bookmark.lsn
            };
            // Any process of it so far: what it held may have been lost with its memory, or cut since.
            let all = last.range((n, 0, append.shard)..=(n, u64::MAX, append.shard));
            let held = all.filter(|((_, _, s), v)| *s == append.shard && holds(v)).count() > 0;
            copies += u8::from(held);
            asked += u8::from(held || cluster.nodes[n].incarnation > 1 || !cluster.is_up(n));
        }
        // Who has died may have held it between two looks.
        let wanted = p.need.replicas + 1;
        if copies < wanted && asked < wanted {
            drop(oracle);
            cluster.fail(format!("append {id} was committed with {wanted} copies, {copies} nodes have it: {p:?}"));
            return;
        }
    }
}
