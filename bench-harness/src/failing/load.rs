//! The workload: a task on the primary's core that appends records in bursts and notes what becomes of each.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline::inject::Watch;
use towline::{AppendOptions, CommitPolicy, Completion, LocalLane, LocalShard, Primary, ShardId};

use super::lock;
use super::records::{Append, Became, bytes, mix};

/// Appends that need a disk which has failed, and that came to nothing, before the load gives up.
const MISSES: u32 = 2;

/// What is to be appended.
pub(super) struct Load {
    pub(super) seed: u64,
    /// What was appended so far.
    pub(super) appends: Arc<Mutex<Vec<Append>>>,
    /// Which life of the primary this is.
    pub(super) life: usize,
    /// How many.
    pub(super) count: usize,
    pub(super) deadline: Duration,
    /// Who knows whether a call has failed, if that matters for what is acknowledged.
    pub(super) watch: Option<Arc<Watch>>,
}

/// Runs on the primary's core; says when it has ended.
pub(super) fn start(primary: &Primary, load: Load) -> Receiver<Result<(), String>> {
    let (done, ended) = channel();
    primary.spawn_on(ShardId(0), move |local| async move {
        let result = drive(&local, &load).await;
        let _ = done.send(result);
    });
    ended
}

async fn drive(local: &LocalShard, load: &Load) -> Result<(), String> {
    let lane = match local.lane() {
        Ok(lane) => lane,
        Err(e) => return refused_lane(local, load, &e.to_string()),
    };
    let has_failed = || load.watch.as_ref().is_some_and(|w| w.met().is_some());
    // The number of each append that the lane took.
    let mut taken: Vec<usize> = Vec::new();
    let (mut left, mut misses) = (load.count, 0);
    while left > 0 && misses < MISSES {
        let draw = mix(load.seed, (load.life * 1000 + left) as u64);
        let burst = (1 + draw as usize % 6).min(left);
        for _ in 0..burst {
            let is_local = mix(draw, left as u64).is_multiple_of(4);
            let after = has_failed();
            let id = {
                let mut all = lock(&load.appends);
                all.push(Append { life: load.life, local: is_local, after, became: Became::Unknown });
                all.len() - 1
            };
            let policy = is_local.then_some(CommitPolicy::Local);
            let options = AppendOptions { policy, deadline: Some(load.deadline) };
            left -= 1;
            match lane.append(&bytes(load.seed, id), &options).await {
                Ok(_) => taken.push(id),
                Err(_) => {
                    lock(&load.appends)[id].became = Became::Refused;
                    misses += u32::from(has_failed());
                }
            }
        }
        // A few stay under way.
        misses += settle(&lane, load, &taken, (draw >> 32) % 3).await;
    }
    settle(&lane, load, &taken, 0).await;
    Ok(())
}

/// Takes outcomes until so many are left; returns how many came to nothing after a call had failed.
async fn settle(lane: &LocalLane, load: &Load, taken: &[usize], leave: u64) -> u32 {
    let mut misses = 0;
    while lane.outstanding() > leave {
        let Completion { first, count, outcome } = lane.completed().await;
        let mut all = lock(&load.appends);
        for index in first..first + u64::from(count) {
            let append = &mut all[taken[index as usize]];
            match outcome.committed() {
                Some(bookmark) => append.became = Became::Committed(bookmark.lsn),
                None => misses += u32::from(append.after),
            }
        }
    }
    misses
}

/// A shard that has stopped takes no lanes.
fn refused_lane(local: &LocalShard, load: &Load, why: &str) -> Result<(), String> {
    if load.watch.as_ref().is_none_or(|w| w.met().is_none()) {
        return Err(format!("shard {} takes no appends although no call has failed: {why}", local.id()));
    }
    let refused = Append { life: load.life, local: true, after: true, became: Became::Refused };
    lock(&load.appends).push(refused);
    Ok(())
}
