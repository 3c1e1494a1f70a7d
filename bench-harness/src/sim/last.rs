//! The end of a run: the cluster is mended, must come together, and its logs are read.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use towline::world::ShardView;
use towline::{AppendError, AppendOptions, CommitPolicy, Lsn, Outcome, Seq, SettingChange, ShardId, offline};

use super::checks::is_beyond_cap;
use super::cluster::{Cluster, DATA, Role};
use super::handler::lock;
use super::operator::Ask;
use super::oracle::{check_log, owner, payload};
use super::plan::Fault;
use super::store::whole;

/// Makes lost slots anew, and replicas that cannot go on from where they are. A slot that was never
/// lost has all that its replica needs.
fn mend_slots(c: &mut Cluster) {
    let primary = c.primary;
    if !c.serves(primary) || !(c.plan.slots_anew || c.quiet) {
        return;
    }
    let lost: Vec<String> = c
        .world
        .views(c.nodes[primary].id)
        .iter()
        .filter(|v| v.is_primary)
        .flat_map(|v| v.slots.iter().filter(|s| s.lost.is_some()).map(|s| s.name.clone()))
        .collect();
    for n in 0..c.nodes.len() {
        if n == primary || c.is_reader(n) {
            continue;
        }
        if !c.is_member(n) {
            // Nothing is kept for it, until it is configured again and beyond.
            c.nodes[n].lost_slot = true;
            if c.quiet {
                c.add_replica(n, false);
            }
            continue;
        }
        if lost.contains(&Cluster::name(n)) {
            if !std::mem::replace(&mut c.nodes[n].lost_slot, true) {
                c.world.hit("slot lost");
            }
            c.nodes[primary].control.ask(Ask::Slot(Cluster::name(n)));
            continue;
        }
        if c.nodes[n].role != (Role::Replica { of: primary }) || !c.is_up(n) {
            continue;
        }
        let says = |text| c.world.views(c.nodes[n].id).iter().any(|v: &ShardView| v.unlinked.contains(text));
        // Two logs in a row that the primary cannot vouch for: the operator looks, and takes both away.
        let two = says("another one is set aside already");
        // What is tried again comes right by itself, or the cluster does not come together.
        if !two && (!says("the oldest that the primary keeps") || says("it is tried again")) {
            continue;
        }
        if c.nodes[n].tainted {
            // A bad disk may have taken a tail that was acknowledged.
            c.world.hit("made anew from nothing");
            c.replace(n, 1_000_000);
            return;
        }
        if c.nodes[n].lost_slot {
            if c.plan.rebuild && !two {
                // It begins anew by itself once it knows whether its handler can do without what is left
                // out; else the cluster does not come together.
                continue;
            }
            c.world.hit("made anew from nothing");
            c.replace(n, 1_000_000);
            c.nodes[n].lost_slot = false;
            return;
        }
        if c.plan.has(Fault::Promote) {
            // The one that was promoted had let go of more than the one before.
            c.world.hit("made anew from nothing");
            c.replace(n, 1_000_000);
            return;
        }
        if !matches!(c.plan.retain, towline::Retain::All) {
            let said: Vec<_> = c.world.views(c.nodes[n].id).iter().map(|v| v.unlinked.clone()).collect();
            c.fail(format!("node {n} has a valid slot, and the primary has let go of what it needs: {said:?}"));
        }
    }
}

/// A state that is further than the primary knows to be committed, as it may be after a restart, waits for that.
/// If the default policy wants the very replica that waits for the state, the operator lowers it.
fn mend_policy(c: &mut Cluster) {
    if !(c.quiet && c.plan.snapshots && c.serves(c.primary)) || c.is_asked() {
        return;
    }
    let waits = |n: usize| c.world.views(c.nodes[n].id).iter().any(|v| v.unlinked.contains("taking a snapshot"));
    let uncommitted = c.world.views(c.nodes[c.primary].id).iter().any(|v| v.is_primary && v.commit < v.durable);
    if !uncommitted || !(0..c.nodes.len()).any(|n| n != c.primary && c.is_up(n) && waits(n)) {
        c.waits_since = None;
        return;
    }
    let now = c.world.now_ns();
    if now - *c.waits_since.get_or_insert(now) > 10_000_000_000 {
        c.waits_since = None;
        c.world.hit("policy lowered for a snapshot");
        let policy = "local".parse().expect("a policy of the grammar");
        c.nodes[c.primary].control.ask(Ask::Set(SettingChange::Commit(policy)));
    }
}

/// The operator starts again what has stopped after an error.
pub fn mend(c: &mut Cluster) {
    mend_slots(c);
    mend_policy(c);
    c.mend_readers();
    for n in 0..c.nodes.len() {
        if !c.is_up(n) {
            continue;
        }
        let views = c.world.views(c.nodes[n].id);
        if n == c.primary && c.serves(n) && views.iter().any(|v| v.is_deposed) {
            // By the term of a reign that came to nothing: the operator insists.
            c.crash(n, false, 1_000_000);
            c.nodes[n].role = Role::Primary { promote: true };
            continue;
        }
        if c.quiet
            && views.iter().any(|v| v.unlinked.contains("committed"))
            && (matches!(c.plan.retain, towline::Retain::All) || c.plan.has(Fault::Promote))
        {
            // A node that was promoted did not have what this one knows to be committed: an operator
            // who wants that takes this one's folder away. What was promised is checked all the same.
            c.nodes[n].refuses += 1;
            if c.nodes[n].refuses > 100 {
                c.replace(n, 1_000_000);
                c.nodes[n].refuses = 0;
            }
            continue;
        }
        let stopped = views.iter().find_map(|v| v.stopped.clone().map(|why| (v.shard, why)));
        let Some((shard, why)) = stopped else { continue };
        if !c.serves(n) {
            continue;
        }
        c.note(|| format!("shard {shard} of node {n} has stopped: {why}"));
        let replica = matches!(c.nodes[n].role, Role::Replica { .. });
        c.nodes[n].stops += u32::from(c.quiet);
        if c.nodes[n].tainted && replica {
            c.replace(n, 1_000_000);
        } else if c.nodes[n].stops > 20 {
            c.fail(format!("shard {shard} of node {n} stops again and again: {why}"));
        } else {
            c.crash(n, false, 1_000_000);
        }
    }
}

/// Whether every node has everything, and knows that it is committed.
#[must_use]
pub fn is_together(c: &Cluster) -> bool {
    if !(0..c.nodes.len()).all(|n| c.serves(n) && (n == c.primary || c.is_reader(n) || c.is_member(n))) || c.is_asked()
    {
        return false;
    }
    let primary = c.world.views(c.nodes[c.primary].id);
    if primary.len() != c.plan.shards as usize {
        return false;
    }
    // The primary knows it, too: else the next append may reach the cap before the last ack does, and take
    // the slot.
    let served =
        |v: &ShardView| v.slots.iter().all(|s| !s.counts || s.connected && s.lost.is_none() && s.restart == v.appended);
    let at_rest = |v: &ShardView| {
        v.is_primary && v.durable == v.appended && v.commit == v.appended && served(v) && !is_beyond_cap(v)
    };
    primary.iter().all(at_rest)
        && (0..c.nodes.len()).filter(|n| *n != c.primary).all(|n| {
            let replica = c.world.views(c.nodes[n].id);
            primary.iter().all(|p| {
                let same = |r: &ShardView| {
                    let same = r.durable == p.appended && r.commit == p.commit && r.applied == p.commit;
                    same && r.term == p.term && r.unlinked.is_empty()
                };
                replica.iter().any(|r| r.shard == p.shard && same(r))
            })
        })
}

/// Where everybody stands, for a report.
#[must_use]
pub fn describe(c: &Cluster) -> String {
    let mut out = String::new();
    for n in 0..c.nodes.len() {
        out += &format!("\n  node {n} {:?} {:?}", c.nodes[n].role, *lock(&c.nodes[n].control.phase));
        for v in c.world.views(c.nodes[n].id).iter() {
            out += &format!("\n    {v:?}");
        }
    }
    out
}

/// The operator's own appends.
#[derive(Default)]
pub struct Probes {
    /// Without an outcome.
    pub left: usize,
    /// What did not commit.
    pub failed: Vec<String>,
}

/// Appends to each shard, and waits for all replicas.
#[must_use]
pub fn probe(c: &Cluster) -> Rc<RefCell<Probes>> {
    const EACH: usize = 12;
    let probes = Rc::new(RefCell::new(Probes { left: EACH * c.plan.shards as usize, failed: Vec::new() }));
    let handle = lock(&c.nodes[c.primary].control.handle).clone();
    let Some(handle) = handle else {
        probes.borrow_mut().failed.push("the primary does not serve".into());
        return probes;
    };
    let policy = if c.plan.replicas == 0 { "local" } else { "all" };
    let policy: CommitPolicy = policy.parse().expect("a policy of the grammar");
    let (oracle, primary, shards) = (c.oracle.clone(), c.primary, c.plan.shards);
    let bytes = (c.plan.batch_bytes / 2).min(c.plan.record_max).max(8);
    // One after the other where a replica may fall behind the cap otherwise, and lose its slot.
    let group = if matches!(c.plan.retain, towline::Retain::All) { EACH } else { 1 };
    let told = probes.clone();
    let task = async move {
        let options = AppendOptions { policy: Some(policy), deadline: Some(std::time::Duration::from_secs(8)) };
        for (shard, _) in (0..shards).flat_map(|s| (0..EACH / group).map(move |n| (ShardId(s), n))) {
            let lane = lock(&oracle).lane();
            let mut tickets = Vec::new();
            for _ in 0..group {
                let id = lock(&oracle).ask(primary, shard, lane, bytes);
                tickets.push((id, handle.try_append(shard, &payload(id, bytes), options)));
            }
            for (id, ticket) in tickets {
                let mut outcome = match ticket {
                    Ok(ticket) => ticket.await,
                    Err(e) => Err(e),
                };
                // Space on the disk, or a replica, may just be coming back.
                let mut tries = 0;
                while let Err(
                    AppendError::DiskFull
                    | AppendError::LogFull
                    | AppendError::TooFewReplicas { .. }
                    | AppendError::MinReplicas { .. }
                    | AppendError::WouldBlock,
                ) = outcome
                {
                    tries += 1;
                    let Some(world) = towline::world::current().filter(|_| tries < 80) else { break };
                    world.sleep_until(world.now_ns() + 100_000_000).await;
                    outcome = match handle.try_append(shard, &payload(id, bytes), options) {
                        Ok(ticket) => ticket.await,
                        Err(e) => Err(e),
                    };
                }
                let mut told = told.borrow_mut();
                told.left -= 1;
                match outcome {
                    Ok(outcome) => {
                        lock(&oracle).done(id, &outcome, Some(policy), primary);
                        if !matches!(outcome, Outcome::Committed { .. }) {
                            told.failed.push(format!("append {id} to shard {shard}: {outcome:?}"));
                        }
                    }
                    Err(e) => {
                        lock(&oracle).refused(id);
                        told.failed.push(format!("append {id} to shard {shard}: {e}"));
                    }
                }
            }
        }
    };
    c.world.add_task(c.nodes[c.primary].id, Box::pin(task));
    probes
}

/// Reads every node's disk: all logs are whole and the same, hold what was promised, and nothing else;
/// handlers were given what the log says.
///
/// # Errors
/// What is wrong.
pub fn check(c: &Cluster) -> Result<(), String> {
    let mut reports = Vec::with_capacity(c.nodes.len());
    for n in 0..c.nodes.len() {
        let report = c.world.with_node(c.nodes[n].id, || offline::verify(Path::new(DATA)));
        let report = report.map_err(|e| format!("node {n} cannot be read: {e}"))?;
        let damage = report.shards.iter().find_map(|s| s.damage.as_ref());
        if let Some(damage) = damage.filter(|_| !c.nodes[n].tainted) {
            return Err(format!("node {n} is damaged: {damage:?}"));
        }
        reports.push(report);
    }
    for shard in (0..c.plan.shards).map(ShardId) {
        let (oldest, first_seq, ids) = records(c, c.primary, shard)?;
        let oracle = lock(&c.oracle);
        check_log(&oracle, shard, oldest, first_seq, &ids)?;
        drop(oracle);
        let end = ids.last().map_or(oldest, |(_, end)| *end);
        for n in (0..c.nodes.len()).filter(|n| *n != c.primary) {
            // What it has let go of it does not read: a bit may have flipped there, and a segment may be on its
            // way to be used again. One that began anew has nothing of what came before.
            let report = reports[n].shards.iter().find(|s| s.shard == shard);
            let own = report.map_or(oldest, |s| s.oldest);
            // A log that ends in front of what was lost is taken up there again at the next start.
            let lies = c.nodes[n].tainted && (c.plan.has(Fault::LostWrite) || c.plan.has(Fault::MisdirectedWrite));
            let end = report.map(|s| s.end).filter(|_| lies && reports[n].is_whole()).map_or(end, |own| end.min(own));
            if let Err(e) = same_bytes(c, n, shard, oldest.max(own), end) {
                // Flipped bits must not go unnoticed.
                if !c.nodes[n].tainted || reports[n].is_whole() {
                    return Err(format!("{e}: {:?}", reports[n]));
                }
                continue;
            }
            applied(c, n, shard, &ids)?;
        }
    }
    Ok(())
}

/// Where a log begins, its first record's number, and whose each record is and where its batch ends.
type Records = (Lsn, Seq, Vec<(usize, Lsn)>);

/// The records of a shard: where the log begins, the first one's number, and whose each is and where
/// its batch ends.
fn records(c: &Cluster, n: usize, shard: ShardId) -> Result<Records, String> {
    let oracle = lock(&c.oracle);
    let mut ids = Vec::new();
    let mut first = None;
    let mut phantom = None;
    let report = c.world.with_node(c.nodes[n].id, || {
        offline::read_log(Path::new(DATA), shard, None, |batch| {
            first.get_or_insert(batch.header().first_seq());
            for bytes in batch.records() {
                match owner(&oracle, shard, bytes) {
                    Some(id) => ids.push((id, batch.header().end_lsn())),
                    None => phantom = Some(batch.header().lsn()),
                }
            }
            ControlFlow::Continue(())
        })
    });
    let report = report.map_err(|e| format!("node {n} shard {shard} cannot be read: {e}"))?;
    if let Some(at) = phantom {
        return Err(format!("node {n} shard {shard} holds a record that nobody appended, in the batch at {at}"));
    }
    Ok((report.oldest, first.unwrap_or_default(), ids))
}

/// Compares a replica's segments with the primary's, byte for byte, in what both keep.
fn same_bytes(c: &Cluster, n: usize, shard: ShardId, oldest: Lsn, end: Lsn) -> Result<(), String> {
    let segment_bytes = c.plan.segment_bytes;
    let mut at = oldest.0;
    while at < end.0 {
        let segment = at - at % segment_bytes;
        let to = (segment + segment_bytes).min(end.0);
        let path = PathBuf::from(format!("{DATA}/shard-{:04}/wal/{segment:016x}.wal", shard.0));
        let part = (at - segment) as usize..(to - segment) as usize;
        if let Some(same) = c.world.agree([c.primary, n].map(|n| c.nodes[n].id), &path, part) {
            if let Err(first) = same {
                return Err(format!(
                    "node {n}'s shard {shard} differs from the primary's at {}",
                    segment + first as u64
                ));
            }
        } else if matches!(c.plan.retain, towline::Retain::All) {
            return Err(format!("node {n} or the primary has no segment {segment:x} of shard {shard}"));
        }
        at = to;
    }
    Ok(())
}

/// What a handler was given is what the log says, in the same order.
fn applied(c: &Cluster, n: usize, shard: ShardId, ids: &[(usize, Lsn)]) -> Result<(), String> {
    let kept = lock(&c.kept);
    let Some(batches) = kept.get(&(n, shard)) else { return Ok(()) };
    if c.plan.snapshots {
        whole(batches).map_err(|e| format!("node {n}'s handler of shard {shard} has not what it should: {e}"))?;
    }
    let given: Vec<(usize, Lsn)> =
        batches.iter().flat_map(|(_, end, _, ids)| ids.iter().map(|id| (*id, *end))).collect();
    // The log may have let go of its beginning, and the handler may have begun later.
    let skip = given.len().saturating_sub(ids.len());
    let (tail, from) = (&given[skip..], ids.len().saturating_sub(given.len()));
    if *tail != ids[from..] || (from > 0 && matches!(c.plan.retain, towline::Retain::All)) {
        let differ = tail.iter().zip(&ids[from..]).position(|(a, b)| a != b);
        return Err(format!(
            "node {n}'s handler of shard {shard} was given {} records, the log has {}; they differ at {differ:?}",
            given.len(),
            ids.len()
        ));
    }
    Ok(())
}
