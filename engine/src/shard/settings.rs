//! What an operator may change while a shard runs: in force on this core, and on its way there.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::{BLOCK, Lsn};

use super::wal::keep::LiveSuperblock;
use super::{Flow, Inner, Role, Shard, ShardConfig, ack_histograms};
use crate::outcome::AppendError;
use crate::protocol::policy::{CommitPolicy, Requirement};
use crate::protocol::retention::Limits;
use crate::protocol::settings::{Settings, SettingsError};
use crate::rt;

/// The settings in force, each where it is used: appends read them one by one.
#[derive(Debug)]
pub(crate) struct Live {
    /// Of the settings; 0 on a replica, which has none.
    pub(crate) version: Cell<u64>,
    /// What a commit waits for that does not say.
    pub(crate) need: Cell<Requirement>,
    /// How long, if it does not say.
    pub(crate) deadline: Cell<Duration>,
    /// How much log is kept.
    pub(crate) retention: Cell<Limits>,
    /// How long a slot may be without a link.
    pub(crate) slot_idle_max: Cell<Option<Duration>>,
    /// How many replicas must have acknowledged lately, and what is lately.
    min_replicas: Cell<(u8, Duration)>,
    /// How links are served, and when batches are held back.
    pub(crate) flow: Cell<Flow>,
    /// When appends begin to be refused if no replica is heard until then; [`u64::MAX`] if nothing is
    /// asked for.
    pub(crate) open_until_ns: Cell<u64>,
}

impl Live {
    pub(crate) fn new(config: &ShardConfig, settings: Option<&Settings>) -> Self {
        let local = CommitPolicy::Local.requirement(0).expect("local always holds");
        let limits = Limits { keep: config.keep, cap: config.cap, segment_bytes: config.segment_bytes };
        let live = Self {
            version: Cell::new(0),
            need: Cell::new(local),
            deadline: Cell::new(Duration::MAX),
            retention: Cell::new(limits),
            slot_idle_max: Cell::new(config.slot_idle_max),
            min_replicas: Cell::new((0, Duration::ZERO)),
            flow: Cell::new(config.flow),
            open_until_ns: Cell::new(u64::MAX),
        };
        if let Some(settings) = settings {
            live.set(config, settings);
            // Nobody was heard yet.
            live.open_until_ns.set(if settings.min_replicas > 0 { 0 } else { u64::MAX });
        }
        live
    }

    /// For checks: how many replicas must have been heard lately, and what is lately in nanoseconds.
    #[cfg(feature = "sim")]
    pub(crate) fn min_replicas(&self) -> (u8, u64) {
        let (n, age) = self.min_replicas.get();
        (n, age.as_nanos() as u64)
    }

    fn set(&self, config: &ShardConfig, s: &Settings) {
        let cap = s.retain_max.cap(config.keep, config.segment_bytes);
        self.version.set(s.version);
        self.need.set(s.need().expect("settings that cannot hold are refused"));
        self.deadline.set(s.deadline);
        self.retention.set(Limits { cap, ..self.retention.get() });
        self.slot_idle_max.set(s.slot_idle_max);
        self.min_replicas.set((s.min_replicas, s.min_replicas_age));
        self.flow.set(Flow {
            catch_up_max: s.catch_up_max.map(|rate| Flow::share(rate, config.shard_count)),
            link_window: u64::from(s.link_window_bytes),
            lag_target: s.lag_target,
            ..self.flow.get()
        });
    }
}

impl Shard {
    /// A replica was heard, or is lost: until when appends are taken.
    pub(crate) fn weigh_freshness(&self, inner: &Inner) {
        let (n, age) = self.live.min_replicas.get();
        if let (Role::Primary(p), true) = (&inner.role, n > 0) {
            let until = p.slots().fresh_until(usize::from(n), age);
            let until = if until > 0 && canary!(HeardForEver) { u64::MAX - 1 } else { until };
            self.live.open_until_ns.set(until);
        }
    }

    /// Why an append is refused while too few replicas have acknowledged lately.
    #[cold]
    pub(crate) fn too_few_fresh(&self, inner: &mut Inner) -> AppendError {
        let (wanted, age) = self.live.min_replicas.get();
        AppendError::MinReplicas { wanted, fresh: inner.primary().slots().heard_within(age, rt::now_ns()), age }
    }

    /// Settings that are on the device are in force: what waits is judged by them at once.
    fn enter(&self, next: &Settings) {
        self.live.set(&self.config, next);
        {
            let inner = &mut *self.inner.borrow_mut();
            inner.primary().configure(self.live.need.get(), rt::now_ns());
            if next.min_replicas == 0 {
                self.live.open_until_ns.set(u64::MAX);
            }
            self.weigh_freshness(inner);
            if !canary!(SetNotJudged) {
                self.complete(inner, &mut self.telemetry.borrow_mut(), rt::now_ns());
            }
        }
        self.tell_lost();
        self.moved.notify();
        self.keep.notify();
        self.room.notify();
    }
}

/// Brings a shard to settings that were checked; they are durable and in force when this returns.
///
/// First the superblock says so, then commits are judged by them: so no acknowledgement rests on a set
/// that a crash would take back.
pub(crate) async fn change(
    shard: &Rc<Shard>,
    superblock: &LiveSuperblock,
    next: &Settings,
) -> Result<(), SettingsError> {
    if let Some(why) = shard.stopped() {
        return Err(SettingsError::NotServing(why));
    }
    // What may go anyway, or is about to, is not held for a new slot: else it could be lost at once.
    let going = shard.recyclable().below;
    {
        let inner = &mut *shard.inner.borrow_mut();
        let oldest = inner.oldest.max(Lsn(going.0 - going.0 % BLOCK as u64));
        let Role::Primary(p) = &mut inner.role else {
            return Err(SettingsError::NotServing("the node is a replica".into()));
        };
        p.prepare(&next.replicas, oldest, rt::now_ns())?;
        let slots = p.slots().iter().map(|(n, _)| n + 1).max().unwrap_or(0);
        let mut times = shard.ack_times.borrow_mut();
        while times.len() < slots {
            times.push(ack_histograms());
        }
    }
    shard.count(|c| c.superblock_writes += 1);
    if !canary!(SettingsNotDurable) {
        let written = superblock.persist(|s| (s.settings, s.slots) = (Some(next.entry()), shard.slot_entries()));
        if let Err(e) = written.await {
            shard.stop(&e.to_string());
            return Err(SettingsError::NotServing(e.to_string()));
        }
    }
    shard.enter(next);
    tracing::info!(shard = shard.id.0, version = next.version, "settings in force");
    Ok(())
}
