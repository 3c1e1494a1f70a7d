//! What must hold between any two steps of a run, on whatever node lives.

use std::collections::BTreeMap;
use std::rc::Rc;

use towline::world::ShardView;
use towline::{AckLevel, Lsn, ShardId, Term, limits};

use super::cluster::{Cluster, Role};
use super::failed;
use super::handler::lock;
use super::oracle::Became;

/// What was seen last.
#[derive(Default)]
pub struct Seen {
    /// By node, as they were seen last.
    views: BTreeMap<usize, Rc<Vec<ShardView>>>,
    /// By node, process and shard.
    last: BTreeMap<(usize, u64, ShardId), ShardView>,
    /// By node, what was seen last of a log before it was given up and begun anew.
    given_up: Vec<(usize, ShardView)>,
    /// Whose log has begun anew in the process that runs now.
    begun: Vec<(usize, u64, ShardId)>,
    /// The last cap that no more than may be was kept under.
    capped: BTreeMap<(usize, u64, ShardId), Option<u64>>,
    /// By slot, what its link takes to send.
    taken: BTreeMap<(usize, u64, ShardId), BTreeMap<String, Taken>>,
    /// When everybody was looked at last.
    looked_ns: u64,
    /// Who is configured, by node and version of its settings.
    /// A promotion counts versions from the start; it has the upper half of its terms for itself.
    members: BTreeMap<(usize, u64, u64), Vec<String>>,
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
            let views = cluster.world.views(cluster.nodes[n].id);
            failed::look(cluster, n, &views);
            if self.views.get(&n).is_some_and(|seen| Rc::ptr_eq(seen, &views)) {
                continue;
            }
            self.views.insert(n, views.clone());
            for view in views.iter() {
                let before = self.last.get(&(n, process, view.shard));
                if before == Some(view) {
                    continue;
                }
                if let Err(e) = within(view)
                    .and_then(|()| windows(self.taken.entry((n, process, view.shard)).or_default(), before, view))
                    .and_then(|()| before.map_or(Ok(()), |b| between(b, view)))
                {
                    cluster.fail(format!("node {n} shard {}: {e}: {view:?}", view.shard));
                }
                if let Some(e) = before.and_then(|b| accepted(b, view, self.looked_ns)) {
                    cluster.fail(format!("node {n} shard {}: {e}: {view:?}", view.shard));
                }
                // A cap that has become lower is reached before it is held.
                let key = (n, process, view.shard);
                if view.cap.is_none_or(|cap| view.appended.since(view.oldest) <= cap) {
                    self.capped.insert(key, view.cap);
                } else if is_beyond_cap(view) && self.capped.get(&key) == Some(&view.cap) {
                    cluster.fail(format!("node {n}: more log is kept than the cap allows: {view:?}"));
                }
                if let Some(before) = before.filter(|b| b.begun < view.begun) {
                    self.given_up.push((n, before.clone()));
                    cluster.world.hit("log begun anew");
                    if cluster.plan.snapshots {
                        cluster.world.hit("snapshot installed");
                    }
                }
                if view.begun > before.map_or(Lsn::ZERO, |b| b.begun) {
                    self.begins_where_its_primary_does(cluster, n, view);
                }
                if view.begun > Lsn::ZERO && before.is_none_or(|b| b.begun == Lsn::ZERO) {
                    self.begun.push(key);
                }
                if view.depth > 1 && before.is_none_or(|b| b.depth != view.depth) {
                    cluster.world.hit("replica fed by a replica");
                }
                if view.is_primary {
                    let told = lock(&cluster.oracle).told(n);
                    let names = view.slots.iter().filter(|s| s.counts).map(|s| s.name.clone());
                    let mut names: Vec<_> = names.collect();
                    names.sort();
                    let now = view.settings_version;
                    if now < told {
                        cluster.fail(format!("node {n} was at version {told} of its settings, and is at {now}"));
                    }
                    let known = self.members.entry((n, view.term.0 >> 32, now)).or_insert_with(|| names.clone());
                    if *known != names && told > 0 {
                        cluster.fail(format!("version {now} of node {n}'s settings was {known:?}, and is {names:?}"));
                    }
                    if told == 0 {
                        known.clone_from(&names);
                    }
                    let other = *self.reigns.entry((view.shard, view.term)).or_insert(n);
                    if other != n {
                        cluster.fail(format!("nodes {other} and {n} both reign in term {}", view.term));
                    }
                }
                self.last.insert((n, process, view.shard), view.clone());
            }
        }
        self.looked_ns = cluster.world.now_ns();
        self.no_vote_is_of_what_was_given_up(cluster);
        self.count_copies(cluster);
    }

    /// A log that begins without a snapshot has all that its primary has. That one may have let go of more since,
    /// and no process of it goes back.
    fn begins_where_its_primary_does(&self, cluster: &Cluster, n: usize, view: &ShardView) {
        let (Role::Replica { of }, false) = (cluster.nodes[n].role, cluster.plan.snapshots) else { return };
        let oldest = self.processes_of(of, view.shard).map(|v| v.oldest).max().unwrap_or_default();
        if view.begun > oldest {
            cluster.fail(format!("node {n}'s log begins behind {oldest}, which node {of} has: {view:?}"));
        }
    }

    /// What was seen last of each process of a node.
    fn processes_of(&self, n: usize, shard: ShardId) -> impl Iterator<Item = &ShardView> {
        let all = self.last.range((n, 0, ShardId(0))..=(n, u64::MAX, shard)).map(|(_, v)| v);
        all.filter(move |v| v.shard == shard)
    }

    /// A log that has begun anew holds nothing before that: no primary counts it for commits there, nor for
    /// any that somebody waits for.
    fn no_vote_is_of_what_was_given_up(&mut self, cluster: &Cluster) {
        let lives = |n: usize, process: u64| cluster.is_up(n) && cluster.nodes[n].incarnation == process;
        self.begun.retain(|(n, process, _)| lives(*n, *process));
        for key @ (n, _, shard) in &self.begun {
            let (name, replica) = (Cluster::name(*n), &self.last[key]);
            let primaries = self.last.iter().filter(|((p, process, s), v)| {
                s == shard && v.is_primary && v.term == replica.term && lives(*p, *process)
            });
            for (_, p) in primaries {
                let Some(slot) = p.slots.iter().find(|s| s.name == name && s.counted > Lsn::ZERO) else { continue };
                if slot.counted < replica.begun {
                    cluster.fail(format!("{slot:?} counts for commits, and has given that up: {replica:?}"));
                } else if p.waits_from.is_some_and(|end| end <= replica.begun) {
                    cluster.fail(format!("{slot:?} counts for what it never held, and somebody waits for that: {p:?}"));
                }
            }
        }
    }

    /// Counts the copies of commits that were acknowledged since the last look: as many nodes as were
    /// promised must say that they hold them. A node that has died since may have held one.
    fn count_copies(&self, cluster: &Cluster) {
        let mut oracle = lock(&cluster.oracle);
        while let Some(id) = oracle.fresh.pop_front() {
            let append = oracle.appends[id];
            let Became::Committed(p) = append.became else { continue };
            let (mut copies, mut asked) = (0, 0);
            // Only who was configured counts.
            let may_count = |n: &usize| *n == p.by || p.among & (1 << *n) != 0;
            for n in (0..cluster.nodes.len()).filter(may_count) {
                let holds = |v: &ShardView| {
                    let replica_memory = p.least.level == AckLevel::Received && n != p.by;
                    let at = if replica_memory { v.appended } else { v.durable };
                    at >= p.bookmark.lsn && v.term >= p.bookmark.term && v.begun < p.bookmark.lsn
                };
                // Any process of it so far: what it held may have been lost with its memory, or cut since. An
                // outcome of parts is told with the last of them: what it held may also have been given up.
                let given_up = self.given_up.iter().filter(|(of, v)| *of == n && v.shard == append.shard);
                let held = self.processes_of(n, append.shard).chain(given_up.map(|(_, v)| v)).any(holds);
                copies += u8::from(held);
                asked += u8::from(held || cluster.nodes[n].incarnation > 1 || !cluster.serves(n));
            }
            // Who has died, or was stopped in order, may have held it between two looks.
            let wanted = p.least.replicas + 1;
            if copies < wanted && asked < wanted {
                drop(oracle);
                let all = self.last.iter().filter(|((_, _, s), _)| *s == append.shard);
                let stand: Vec<_> =
                    all.map(|((n, process, _), v)| (*n, *process, v.begun, v.durable, v.appended)).collect();
                cluster.fail(format!(
                    "append {id} was committed with {wanted} copies, {copies} nodes have it: {p:?}; node, process, begun, \
                     durable, appended: {stand:?}"
                ));
                return;
            }
        }
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
    // What lies behind the last batch of an allocation is counted with it. What is not on the device cannot
    // be let go of.
    if v.ring_bytes > v.live_window_bytes + limits::BUFFER_BATCHES as u64 * v.in_flight_bytes + v.open_bytes_max {
        return Err("more recent batches are in memory than may be".into());
    }
    if v.open_bytes > v.open_bytes_max || v.arriving_bytes > v.in_flight_bytes_max {
        return Err("the batch that is open, or that comes in, is larger than may be".into());
    }
    if v.snapshot_chunks > limits::SNAPSHOT_WINDOW {
        return Err("more of a snapshot is held than may be".into());
    }
    if v.ahead_bytes > limits::READ_AHEAD_BYTES_MAX {
        return Err("more is read ahead than may be".into());
    }
    for s in &v.slots {
        if s.applied > s.flushed || s.flushed > s.received || s.received > s.sent.max(s.flushed) {
            return Err("a slot's positions are out of order".into());
        }
        if !v.is_primary && s.connected && s.sent > s.flushed.max(v.durable) {
            return Err("a replica feeds others what is not on its device".into());
        }
        if s.lost.is_none() && s.restart < v.oldest {
            return Err("the log was let go of above a valid slot's restart LSN".into());
        }
        if s.lost.is_some() && (s.connected || s.counted > Lsn::ZERO) {
            return Err("a lost slot is served, or counts for commits".into());
        }
    }
    if v.overdue {
        return Err("somebody waits for what holds".into());
    }
    Ok(())
}

/// A link's window while it takes what it sends next: up to there something was sent, and since then this was
/// the largest. And what it had under way.
#[derive(Clone, Copy, Default)]
struct Taken {
    sent: Lsn,
    window: u64,
    under_way: u64,
}

/// What links have under way: no more than their window, or than they had when it became smaller. What a link
/// has taken under a larger window it sends after that.
fn windows(taken: &mut BTreeMap<String, Taken>, before: Option<&ShardView>, now: &ShardView) -> Result<(), String> {
    let window = before.map_or(0, |b| b.link_window).max(now.link_window);
    for s in &now.slots {
        let last = taken.entry(s.name.clone()).or_default();
        let under_way = s.sent.since(s.received);
        // One batch may always be under way.
        let most = last.window.max(window).max(now.in_flight_bytes_max);
        if s.connected && under_way > most.max(last.under_way) {
            return Err("a link has more under way than its window".into());
        }
        let since = if s.sent == last.sent { last.window } else { 0 };
        *last = Taken { sent: s.sent, window: window.max(since), under_way };
    }
    Ok(())
}

/// Whether more log is kept than the cap allows.
#[must_use]
pub fn is_beyond_cap(v: &ShardView) -> bool {
    let (true, Some(cap), Some(_)) = (v.is_primary, v.cap, v.keep) else { return false };
    // What the keeper has made ready may fill up, and a batch in the way keeps what is before it.
    let more = (v.segments_ahead + 6) * v.segment_bytes + 3 * v.in_flight_bytes_max;
    v.appended.since(v.oldest) > cap + more
}

/// Appends that were taken since the last look need as many replicas that were heard lately, at some
/// moment after it. Who is heard later only counts for more.
fn accepted(before: &ShardView, now: &ShardView, looked_ns: u64) -> Option<String> {
    let (wanted, age_ns) = now.min_replicas;
    let same = before.min_replicas == now.min_replicas && before.settings_version == now.settings_version;
    if !same || wanted == 0 || now.next_seq <= before.next_seq || !now.is_primary {
        return None;
    }
    let fresh = now.slots.iter().filter(|s| s.heard_ns > 0 && s.heard_ns + age_ns > looked_ns).count();
    let few = fresh < usize::from(wanted);
    few.then(|| format!("an append was taken while {fresh} replicas were heard lately, {wanted} must be"))
}

/// Two views of the same process, one after the other.
fn between(before: &ShardView, now: &ShardView) -> Result<(), String> {
    if now.commit < before.commit {
        return Err(format!("commit went back from {}", before.commit));
    }
    if now.settings_version < before.settings_version {
        return Err("the settings went back".into());
    }
    if now.term < before.term || now.oldest < before.oldest {
        return Err("term or oldest went back".into());
    }
    if now.is_primary && now.durable < before.durable {
        return Err("durable went back on a primary".into());
    }
    Ok(())
}
