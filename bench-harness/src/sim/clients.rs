//! Those who append: tasks on the shards' cores, and tasks with a handle, as on other threads.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use towline::{AppendError, AppendOptions, CommitPolicy, CrossOutcome, Handle, LocalShard, Primary, ShardId, world};

use super::handler::lock;
use super::oracle::{Oracle, payload};
use super::plan::Plan;
use super::world::rng::Rng;

/// What every client of a node has.
#[derive(Clone)]
pub struct Client {
    /// Where it writes down what it does.
    pub oracle: Arc<Mutex<Oracle>>,
    /// The node it appends to.
    pub node: usize,
    /// The run.
    pub plan: Arc<Plan>,
    /// Where its choices come from.
    pub seed: u64,
}

/// Starts the clients of a primary.
pub fn start(primary: &Primary, client: &Client) {
    for n in 0..client.plan.local_clients {
        let shard = ShardId(n as u32 % client.plan.shards);
        let mut one = client.clone();
        one.seed = client.seed.wrapping_add(n as u64);
        primary.spawn_on(shard, move |local| one.local(local));
    }
    let Some(world) = world::current() else { return };
    for n in 0..client.plan.handle_clients {
        let mut one = client.clone();
        one.seed = client.seed.wrapping_add(100 + n as u64);
        let _ = world.start_core("app", Box::pin(one.handle(primary.handle())));
    }
}

impl Client {
    fn draw(&self, rng: &mut Rng) -> (usize, AppendOptions) {
        let plan = &self.plan;
        let bytes = match rng.below(12) {
            0 => 8,
            1 => plan.record_max,
            2 => 8 + rng.below((plan.record_max - 8) as u64) as usize,
            _ => 8 + rng.below(400.min(plan.record_max as u64 - 8)) as usize,
        };
        let policy = plan.policies[rng.below(plan.policies.len() as u64) as usize];
        let deadline = rng.chance(0.3).then(|| Duration::from_millis(1 + rng.below(400)));
        (bytes, AppendOptions { policy, deadline })
    }

    /// Takes one append from what is left to do.
    fn take(&self) -> bool {
        let mut oracle = lock(&self.oracle);
        oracle.left = oracle.left.saturating_sub(1);
        oracle.left > 0
    }

    async fn local(self, local: LocalShard) {
        let rng = &mut Rng::new(self.seed);
        let Ok(lane) = local.lane() else { return };
        let number = lock(&self.oracle).lane();
        let mut pending: VecDeque<(u64, usize, Option<CommitPolicy>)> = VecDeque::new();
        loop {
            while let Some(done) = lane.try_completed() {
                self.complete(&mut pending, done.first, done.count, &done.outcome);
            }
            if lane.outstanding() >= self.plan.window as u64 {
                let done = lane.completed().await;
                self.complete(&mut pending, done.first, done.count, &done.outcome);
                continue;
            }
            if !self.take() {
                break;
            }
            let (bytes, options) = self.draw(rng);
            let policy = options.policy;
            let id = lock(&self.oracle).ask(self.node, local.id(), number, bytes);
            match lane.try_append(&payload(id, bytes), &options) {
                Ok(appended) => {
                    lock(&self.oracle).appends[id].seq = Some(appended.seq);
                    pending.push_back((appended.index, id, policy));
                }
                Err(e) => {
                    self.refused(id, &e);
                    if matches!(e, AppendError::Stopped(_) | AppendError::Fenced) {
                        break;
                    }
                    local.sleep(Duration::from_millis(1 + rng.below(20))).await;
                }
            }
            if rng.chance(0.5) {
                let most = self.plan.think.as_nanos() as u64;
                local.sleep(Duration::from_nanos(if most == 0 { 0 } else { rng.below(most) })).await;
            }
        }
        while lane.outstanding() > 0 {
            let done = lane.completed().await;
            self.complete(&mut pending, done.first, done.count, &done.outcome);
        }
        // What has an outcome may not have been taken yet.
        while let Some(done) = lane.try_completed() {
            self.complete(&mut pending, done.first, done.count, &done.outcome);
        }
    }

    fn complete(
        &self,
        pending: &mut VecDeque<(u64, usize, Option<CommitPolicy>)>,
        first: u64,
        count: u32,
        outcome: &towline::Outcome,
    ) {
        let mut oracle = lock(&self.oracle);
        pending.retain(|(index, id, policy)| {
            let is = (first..first + u64::from(count)).contains(index);
            if is {
                oracle.done(*id, outcome, *policy, self.node);
            }
            !is
        });
    }

    /// An append was not taken.
    fn refused(&self, id: usize, e: &AppendError) {
        lock(&self.oracle).refused(id);
        let why = match e {
            AppendError::LogFull => "refused: LogFull",
            AppendError::DiskFull => "refused: DiskFull",
            AppendError::MinReplicas { .. } => "refused: MinReplicas",
            AppendError::TooFewReplicas { .. } => "refused: TooFewReplicas",
            AppendError::WouldBlock => "refused: WouldBlock",
            _ => "refused: other",
        };
        if let Some(world) = super::world::here() {
            world.happened(why);
        }
    }

    async fn handle(self, handle: Handle) {
        let Some(world) = world::current() else { return };
        let rng = &mut Rng::new(self.seed);
        // A handle's appends are in order on each shard.
        let lanes: Vec<u32> = (0..self.plan.shards).map(|_| lock(&self.oracle).lane()).collect();
        while self.take() {
            let (bytes, options) = self.draw(rng);
            let policy = options.policy;
            if self.plan.shards > 1 && rng.chance(0.5) {
                let mut parts = Vec::new();
                for n in 0..2 {
                    let shard = ShardId(((rng.below(u64::from(self.plan.shards)) as u32) + n) % self.plan.shards);
                    let id = lock(&self.oracle).ask(self.node, shard, lanes[shard.0 as usize], bytes);
                    parts.push((shard, id, payload(id, bytes)));
                }
                let asked: Vec<(ShardId, &[u8])> = parts.iter().map(|(s, _, bytes)| (*s, &bytes[..])).collect();
                let Ok(ticket) = handle.append_across(&asked, options) else { break };
                match ticket.await {
                    CrossOutcome::Committed(bookmark) => {
                        let mut oracle = lock(&self.oracle);
                        for (shard, id, _) in &parts {
                            let position = bookmark.positions().iter().find(|p| p.shard == *shard).copied();
                            let position = position.expect("each part's shard has a position");
                            // The bookmark is at or above the part's own position.
                            oracle.done_by(*id, position, policy, self.node);
                        }
                    }
                    CrossOutcome::Partial(outcomes) => {
                        let mut oracle = lock(&self.oracle);
                        for ((_, id, _), outcome) in parts.iter().zip(outcomes) {
                            match outcome {
                                Ok(outcome) => oracle.done(*id, &outcome, policy, self.node),
                                Err(_) => oracle.refused(*id),
                            }
                        }
                    }
                }
            } else {
                let shard = ShardId(rng.below(u64::from(self.plan.shards)) as u32);
                let id = lock(&self.oracle).ask(self.node, shard, lanes[shard.0 as usize], bytes);
                match handle.try_append(shard, &payload(id, bytes), options) {
                    // Nobody waits for it any more, perhaps after a look: it may be in the log.
                    Ok(mut ticket) if rng.chance(0.05) => {
                        if rng.chance(0.5) {
                            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut ticket).poll(cx).is_ready())).await;
                        }
                    }
                    Ok(ticket) => match ticket.await {
                        Ok(outcome) => lock(&self.oracle).done(id, &outcome, policy, self.node),
                        Err(e) => self.refused(id, &e),
                    },
                    Err(e) => {
                        self.refused(id, &e);
                        if !matches!(e, AppendError::WouldBlock) {
                            break;
                        }
                    }
                }
            }
            world.sleep_until(world.now_ns() + 1000 + rng.below(1 + self.plan.think.as_nanos() as u64)).await;
        }
    }
}
