//! A primary and its replicas for one run, in this process or in several.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towline::measure::Load;
use towline::{
    AppendOptions, CommitPolicy, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardId, ShardStatus, SlotState,
    ZeroCopy,
};

use crate::remote::{NodeSettings, RemoteReplica, Used};

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) shards: u32,
    pub(crate) replicas: usize,
    pub(crate) policy: CommitPolicy,
    pub(crate) zero_copy: ZeroCopy,
    pub(crate) separate: bool,
    pub(crate) primary: NodeSettings,
    pub(crate) replica: NodeSettings,
}

/// A folder that is removed at the end.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(base: Option<&Path>) -> Result<Self, String> {
        let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let dir = base.join(format!("towline-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| format!("making the folder {}: {e}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where a primary of one shard stands.
pub(crate) fn of_one(primary: &Primary) -> ShardStatus {
    primary.status().remove(0)
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > Duration::from_secs(300) {
            return Err(format!("not within five minutes: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Appends until the log of a primary of one shard is so many bytes longer; returns the bytes of the
/// records, all of them committed.
pub(crate) fn fill(primary: &Primary, record_bytes: usize, log_bytes: u64) -> Result<u64, String> {
    let load = Load::closed(record_bytes, (4 << 20) / record_bytes.max(1) as u64 + 1, AppendOptions::default());
    let running = load.clone();
    let from = of_one(primary).appended_lsn;
    primary.spawn_on(ShardId(0), move |local| running.run(local));
    until("the log is written", || Ok(of_one(primary).appended_lsn.since(from) >= log_bytes))?;
    load.stop();
    load.wait();
    let report = load.take_report();
    match report.error {
        Some(why) => Err(format!("the load ended by itself: {why}")),
        None if report.failed > 0 => Err(format!("{} appends were not committed", report.failed)),
        None => Ok(report.commits * record_bytes as u64),
    }
}

/// Waits until the replica of a slot is connected.
pub(crate) fn connected(primary: &Primary, slot: usize) -> Result<(), String> {
    until("the replica connects", || Ok(of_one(primary).slots[slot].state != SlotState::Down))
}

/// Waits until a connected replica has flushed what the log holds now, within a batch; returns the bytes of
/// log that it was behind, and how long it took.
pub(crate) fn caught_up(primary: &Primary, slot: usize) -> Result<(u64, Duration), String> {
    let now = of_one(primary);
    let (from, to, began) = (now.slots[slot].flushed_lsn, now.appended_lsn, Instant::now());
    until("the replica catches up", || Ok(of_one(primary).slots[slot].flushed_lsn >= to))?;
    Ok((to.since(from), began.elapsed()))
}

/// Running nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    local: Vec<Replica>,
    remote: Vec<RemoteReplica>,
    pub(crate) primary: Primary,
}

impl Cluster {
    /// Starts everything and waits until the replicas follow and the segments are written.
    pub(crate) fn start(dir: &Path, plan: &Plan) -> Result<Self, String> {
        let names: Vec<String> = (1..=plan.replicas).map(|n| format!("r{n}")).collect();
        let mut config = PrimaryConfig::new(dir.join("primary"));
        config.shards = plan.shards;
        config.listen = Some(([127, 0, 0, 1], 0).into());
        config.replicas.clone_from(&names);
        config.commit = plan.policy;
        config.zero_copy = plan.zero_copy;
        plan.primary.apply(&mut config.node);
        let primary = Primary::open(config).map_err(|e| e.to_string())?;
        let addr = primary.listening().ok_or("the primary does not listen")?;
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        for name in &names {
            let data = dir.join(name);
            if plan.separate {
                remote.push(RemoteReplica::start(data, name, addr, &plan.replica)?);
            } else {
                let mut config = ReplicaConfig::new(data, name, addr);
                plan.replica.apply(&mut config.node);
                local.push(Replica::open(config).map_err(|e| e.to_string())?);
            }
        }
        let mut cluster = Self { local, remote, primary };
        let began = Instant::now();
        while !cluster.is_ready(plan)? {
            if began.elapsed() > Duration::from_secs(120) {
                return Err("the nodes were not ready after two minutes".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(cluster)
    }

    /// Ends the last of the replicas that have a process of their own.
    pub(crate) fn end_last_replica(&mut self) {
        self.remote.pop();
    }

    /// Starts the replica that was ended, in the folder that it had.
    pub(crate) fn start_last_replica(&mut self, dir: &Path, settings: &NodeSettings) -> Result<(), String> {
        let addr = self.primary.listening().ok_or("the primary does not listen")?;
        let name = format!("r{}", self.remote.len() + 1);
        self.remote.push(RemoteReplica::start(dir.join(&name), &name, addr, settings)?);
        Ok(())
    }

    fn is_ready(&mut self, plan: &Plan) -> Result<bool, String> {
        let written = |used: Used, settings: &NodeSettings| used.segments >= settings.prefill.div_ceil(64 << 20);
        let status = self.primary.status();
        let live = status.iter().all(|s| s.slots.iter().all(|r| r.state == SlotState::Live));
        let mut ready = live && written(Used::here(&status)?, &plan.primary);
        for replica in &self.local {
            ready &= written(Used::here(&replica.status())?, &plan.replica);
        }
        for replica in &mut self.remote {
            ready &= written(replica.used()?, &plan.replica);
        }
        Ok(ready)
    }

    /// What all nodes have used so far.
    pub(crate) fn used(&mut self) -> Result<Used, String> {
        let mut status = self.primary.status();
        for replica in &self.local {
            status.extend(replica.status());
        }
        let mut sum = Used::here(&status)?;
        for replica in &mut self.remote {
            let used = replica.used()?;
            sum.cpu_ns += used.cpu_ns;
            sum.allocations += used.allocations;
            sum.device_writes += used.device_writes;
            sum.syscalls += used.syscalls;
            sum.peak_rss += used.peak_rss;
            sum.rss += used.rss;
            sum.enters += used.enters;
            sum.sleeps += used.sleeps;
        }
        Ok(sum)
    }

    /// Every stage's measurements, of the primary and of the replicas in this process.
    pub(crate) fn telemetry(&self) -> towline::telemetry::Telemetry {
        let mut sum = towline::telemetry::Telemetry::default();
        for shard in
            self.primary.status().iter().chain(&self.local.iter().flat_map(Replica::status).collect::<Vec<_>>())
        {
            sum.merge(&shard.telemetry);
        }
        sum
    }
}
