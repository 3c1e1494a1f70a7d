//! How a node stands: for the embedder as values, for `towline status` as one JSON document.

use std::fmt::Write;

use towline_wire::{Lsn, Seq, ShardId, Term};

use towline_wire::superblock::SlotLoss;

use super::{NodeShared, SlotKind};
use crate::config::RetainMax;
use crate::protocol::progress::Shown;
use crate::protocol::replica::Replica;
use crate::protocol::retention::Holder;
use crate::protocol::settings::Settings;
use crate::shard::{Role, Shard};
use crate::telemetry::{Percentiles, Stage, Telemetry};

/// How a replica's slot is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// From memory.
    Live,
    /// From disk: it is behind.
    CatchUp,
    /// With a snapshot of the embedder's state, before its log.
    Snapshot,
    /// Not at all: no link.
    Down,
    /// Not any more: the slot was lost.
    Lost,
}

impl SlotState {
    const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::CatchUp => "catch-up",
            Self::Snapshot => "snapshot",
            Self::Down => "down",
            Self::Lost => "lost",
        }
    }
}

/// One replica, as the primary knows it, for one shard.
#[derive(Clone, Debug)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// Why there is a slot.
    pub kind: SlotKind,
    /// Why the slot was lost, if it was.
    pub lost: Option<SlotLoss>,
    /// How it is served.
    pub state: SlotState,
    /// Handed to the network.
    pub sent_lsn: Lsn,
    /// In its memory.
    pub received_lsn: Lsn,
    /// On its device.
    pub flushed_lsn: Lsn,
    /// Through its handler.
    pub applied_lsn: Lsn,
    /// The log from here on is kept for it; where that was, if the slot is lost.
    pub restart_lsn: Lsn,
    /// If those that it feeds need more: from where on. That is kept too, as far as the cap allows.
    pub below_lsn: Option<Lsn>,
    /// From there to this log's end, in bytes.
    pub retained_bytes: u64,
    /// How long it has had no link, in milliseconds.
    pub idle_ms: u64,
    /// From what it has on its device to this log's end, in bytes.
    pub lag_bytes: u64,
    /// From what it has applied to this log's end, in records.
    pub lag_records: u64,
    /// How long ago, in milliseconds, the oldest batch was closed that it has not flushed; while it
    /// catches up, the last one that was sent. 0 if there is none, or nothing is known of it.
    pub lag_ms: f64,
    /// Sent and not acknowledged as received, in bytes: what the link's window bounds.
    pub in_flight_bytes: u64,
    /// How it comes along, while it catches up.
    pub catch_up: Option<Shown>,
    /// How far the snapshot is that is made for it.
    pub snapshot: Option<SnapshotStatus>,
    /// Links so far.
    pub connects: u64,
    /// From the send of a live batch until this replica had it in memory.
    pub ack_received: Percentiles,
    /// From the send of a live batch until this replica had it on its device.
    pub ack_flushed: Percentiles,
}

/// How far a replica is that has not yet what its primary had when the link began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CatchUpStatus {
    /// It takes its log for the first time, not only what it missed.
    pub bootstrap: bool,
    /// Bytes of log taken on this link.
    pub done_bytes: u64,
    /// From where it began to the primary's end, as heard last.
    pub total_bytes: u64,
    /// Bytes in a second, over this link so far.
    pub bytes_per_s: f64,
    /// Seconds left at that speed; `None` before anything came.
    pub eta_s: Option<f64>,
}

/// How far a snapshot is that is sent or taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SnapshotStatus {
    /// Bytes that the replica has staged.
    pub done_bytes: u64,
    /// Of how many, if the producer knows.
    pub total_bytes: Option<u64>,
    /// Bytes in a second so far; on a replica, over this link.
    pub bytes_per_s: f64,
    /// Seconds left at that speed, if that can be told.
    pub eta_s: Option<f64>,
}

impl SnapshotStatus {
    fn new(from: u64, done_bytes: u64, total_bytes: Option<u64>, since_ns: u64) -> Self {
        let left = total_bytes.map(|total| total.saturating_sub(done_bytes));
        let (bytes_per_s, eta_s) = speed(done_bytes.saturating_sub(from), left, since_ns);
        Self { done_bytes, total_bytes, bytes_per_s, eta_s }
    }
}

/// Bytes in a second so far, and seconds for what is left at that speed, if both can be told.
fn speed(done_bytes: u64, left_bytes: Option<u64>, since_ns: u64) -> (f64, Option<f64>) {
    let seconds = crate::rt::now_ns().saturating_sub(since_ns) as f64 / 1e9;
    let bytes_per_s = if seconds > 0.0 { done_bytes as f64 / seconds } else { 0.0 };
    (bytes_per_s, left_bytes.filter(|_| bytes_per_s > 0.0).map(|left| left as f64 / bytes_per_s))
}

fn catch_up(r: &Replica, since_ns: u64) -> Option<CatchUpStatus> {
    let c = r.catch_up()?;
    let done_bytes = c.at.since(c.from);
    let (bytes_per_s, eta_s) = speed(done_bytes, Some(c.tail.since(c.at)), since_ns);
    Some(CatchUpStatus { bootstrap: c.bootstrap, done_bytes, total_bytes: c.tail.since(c.from), bytes_per_s, eta_s })
}

/// One shard of this node.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
    /// The reign it is in or follows.
    pub term: Term,
    /// Where the log that is kept begins.
    pub oldest_lsn: Lsn,
    /// The end of the last closed batch.
    pub appended_lsn: Lsn,
    /// Handed to the device.
    pub written_lsn: Lsn,
    /// On the device.
    pub durable_lsn: Lsn,
    /// Committed.
    pub commit_lsn: Lsn,
    /// Through the handler, on a replica; what is committed, on a primary.
    pub applied_lsn: Lsn,
    /// The number of the next record.
    pub tail_seq: Seq,
    /// The chain up to the end of the last closed batch: two nodes with the same chain at the same
    /// LSN hold the same bytes.
    pub chain: towline_wire::Chain,
    /// Bytes of recent batches in memory.
    pub memory_bytes: u64,
    /// On a replica: `following ADDR`, or why it follows nobody now. Empty on a primary.
    pub link: String,
    /// On a replica: whether it follows nobody as its log is too old, and would follow with
    /// [`crate::ReplicaConfig::rebuild`].
    pub needs_rebuild: bool,
    /// On a replica: from what it has on its device to the primary's end, as it heard of that last, in
    /// bytes. 0 on a primary, and before a primary was heard.
    pub lag_bytes: u64,
    /// On a replica: links between it and the primary, 1 where it follows that itself; 0 before it has
    /// followed anybody, and on a primary.
    pub depth: u8,
    /// On a replica: how long ago, by both clocks, the primary said what was heard of it last, in
    /// milliseconds. `None` on a primary, and before one was heard.
    pub heard_ms: Option<f64>,
    /// On a replica that catches up: how far it is.
    pub catch_up: Option<CatchUpStatus>,
    /// On a replica that takes a snapshot: how far that is.
    pub snapshot: Option<SnapshotStatus>,
    /// Bytes of log that are kept.
    pub retained_bytes: u64,
    /// The most that may be kept for slots and not committed; 0 if there is no cap.
    pub retention_cap_bytes: u64,
    /// By how much the replicas that commits wait for are behind this log's end, in bytes; 0 if commits
    /// wait for none.
    pub quorum_lag_bytes: u64,
    /// Beyond which lag of theirs batches are held back; 0 if they never are.
    pub lag_target_bytes: u64,
    /// For how long the next batch is still held back, in microseconds.
    pub throttle_us: u64,
    /// How many bytes of batches one byte stood for of those that were compressed on links; 0 if none
    /// was.
    pub packed_ratio: f64,
    /// Tasks of the core that the shard runs on, all its shards together.
    pub core_tasks: u64,
    /// What keeps the oldest log: `keep size`, `commit`, `archive`, `last batch`, `slot NAME`, or
    /// `below NAME`: those that the replica feeds.
    pub held_by: String,
    /// The version of the settings that are in force; 0 on a replica.
    pub settings_version: u64,
    /// Whether appends are refused as too few replicas have acknowledged lately.
    pub too_few_fresh: bool,
    /// The slots of those that this node feeds.
    pub slots: Vec<SlotStatus>,
    /// Histograms and counters.
    pub telemetry: Telemetry,
}

/// How a shard stands, from its core.
pub(crate) fn of(shard: &Shard) -> ShardStatus {
    shard.tickets.borrow().iter().for_each(|t| t.wake_times.collect(&mut shard.telemetry.borrow_mut()));
    let holder = shard.recyclable().holder;
    let inner = shard.inner.borrow();
    let (tail, durable) = (inner.pipeline.appended(), inner.pipeline.durable());
    let mut slots = Vec::new();
    let deposed = matches!(&inner.role, Role::Primary(p) if p.is_deposed());
    let (term, applied_lsn, lag_bytes) = match &inner.role {
        Role::Replica(r) => (r.term, r.applied(), r.lag_bytes()),
        Role::Primary(p) => (p.term, p.gate.commit(), 0),
    };
    let (now, wall_us) = (crate::rt::now_ns(), crate::rt::wall_us());
    let producing = shard.producing.borrow();
    for (n, slot) in inner.slots().iter() {
        let at = slot.at;
        // After a restart nothing was heard yet, but this is known.
        let has = at.flushed.max(slot.restart);
        let behind = inner.ring.at(at.flushed).map(|b| b.header().timestamp_us());
        let catch_up = slot.progress.map(|p| p.shown(has, tail, wall_us));
        let producing = producing.as_ref().filter(|p| p.name == slot.name);
        let snapshot = producing.map(|p| {
            let (done, total) = p.sending.as_ref().map_or((0, None), |s| s.progress());
            SnapshotStatus::new(0, done, total, p.began_ns)
        });
        let state = match slot.link {
            _ if !slot.is_valid() => SlotState::Lost,
            None => SlotState::Down,
            Some(link) if producing.is_some_and(|p| p.is_sent_by(link)) => SlotState::Snapshot,
            Some(_) if slot.sent >= durable || inner.ring.at(slot.sent).is_some() => SlotState::Live,
            Some(_) => SlotState::CatchUp,
        };
        slots.push(SlotStatus {
            name: slot.name.to_string(),
            kind: slot.kind,
            lost: slot.lost,
            state,
            sent_lsn: slot.sent,
            received_lsn: at.received,
            flushed_lsn: at.flushed,
            applied_lsn: at.applied,
            restart_lsn: slot.restart,
            below_lsn: Some(slot.below).filter(|below| *below < Lsn(u64::MAX)),
            retained_bytes: tail.since(slot.restart.min(slot.below)),
            idle_ms: slot.idle_ns(now) / 1_000_000,
            lag_bytes: tail.since(has),
            lag_records: inner.next_seq.0.saturating_sub(slot.applied_seq.0),
            lag_ms: match (behind, catch_up) {
                (Some(us), _) => wall_us.saturating_sub(us) as f64 / 1000.0,
                (None, shown) => shown.map_or(0.0, |s| s.behind_ms),
            },
            in_flight_bytes: slot.link.map_or(0, |_| slot.sent.since(at.received)),
            catch_up,
            snapshot,
            connects: slot.connects,
            ack_received: Percentiles::of(&shard.ack_times.borrow()[n][0]),
            ack_flushed: Percentiles::of(&shard.ack_times.borrow()[n][1]),
        });
    }
    ShardStatus {
        shard: shard.id,
        stopped: inner.stopped.clone().or_else(|| deposed.then(|| "deposed: a newer primary reigns".into())),
        term,
        oldest_lsn: inner.oldest,
        appended_lsn: tail,
        written_lsn: inner.pipeline.written(),
        durable_lsn: durable,
        commit_lsn: inner.committed(),
        applied_lsn,
        tail_seq: inner.next_seq,
        chain: inner.chain,
        memory_bytes: inner.ring.bytes(),
        link: shard.link.borrow().clone(),
        needs_rebuild: shard.needs_rebuild.get(),
        lag_bytes,
        depth: inner.replica_if_any().map_or(0, Replica::depth),
        heard_ms: inner
            .replica_if_any()
            .map(|r| r.heard().time_us)
            .filter(|us| *us > 0)
            .map(|us| wall_us.saturating_sub(us) as f64 / 1000.0),
        catch_up: inner.replica_if_any().and_then(|r| catch_up(r, shard.linked_ns.get())),
        snapshot: shard.taking.get().map(|t| SnapshotStatus::new(t.from, t.done, t.total, t.since_ns)),
        retained_bytes: tail.since(inner.oldest),
        quorum_lag_bytes: match &inner.role {
            Role::Primary(p) => p.gate.quorum_lag(tail),
            Role::Replica(_) => 0,
        },
        lag_target_bytes: shard.live.flow.get().lag_target.unwrap_or(0),
        throttle_us: shard.throttled_ns.get().saturating_sub(crate::rt::now_ns()) / 1000,
        packed_ratio: {
            let c = &shard.telemetry.borrow().counters;
            if c.packed_to_bytes == 0 { 0.0 } else { c.packed_from_bytes as f64 / c.packed_to_bytes as f64 }
        },
        core_tasks: crate::rt::tasks(),
        retention_cap_bytes: shard.live.retention.get().cap.unwrap_or(0),
        settings_version: shard.live.version.get(),
        too_few_fresh: matches!(shard.live.open_until_ns.get(), until if until < u64::MAX && crate::rt::now_ns() >= until),
        held_by: match holder {
            Holder::Slot(n) | Holder::Below(n) => {
                inner.slots().get(n).map_or_else(String::new, |s| format!("{} {}", holder.name(), s.name))
            }
            holder => holder.name().into(),
        },
        slots,
        telemetry: shard.telemetry.borrow().clone(),
    }
}

/// The status document. Every name and text in it is written here or was checked to be plain,
/// except a shard's reason to have stopped, which is escaped.
pub(crate) fn to_json(node: &NodeShared, shards: &[ShardStatus]) -> String {
    let mut out = String::new();
    let settings = node.settings();
    let replicas = settings.iter().flat_map(|s| &s.replicas).map(|r| format!("\"{r}\""));
    let replicas: Vec<String> = replicas.collect();
    let role = if node.is_primary { "primary" } else { "replica" };
    let _ = write!(
        out,
        "{{\"node\":{{\"role\":\"{role}\",\"name\":\"{}\",\"system\":\"{}\",\"version\":\"{}\",\"uptime_s\":{:.1},\
         \"policy\":\"{}\",\"replicas\":[{}],\"segment_bytes\":{},\"settings\":{}}},\"shards\":[",
        node.name,
        node.system,
        env!("CARGO_PKG_VERSION"),
        node.began.elapsed().as_secs_f64(),
        settings.as_ref().map_or_else(String::new, |s| s.commit.to_string()),
        replicas.join(","),
        node.segment_bytes,
        settings.as_ref().map_or_else(|| "null".into(), |s| settings_json(s)),
    );
    for (n, s) in shards.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        shard_json(&mut out, s);
    }
    out.push_str("]}");
    out
}

/// The settings of a primary; times in milliseconds. A cap is `auto`, `none`, or bytes.
fn settings_json(s: &Settings) -> String {
    let cap = match s.retain_max {
        RetainMax::Auto => "\"auto\"".into(),
        RetainMax::Unlimited => "\"none\"".into(),
        RetainMax::Bytes(bytes) => bytes.to_string(),
    };
    let idle = s.slot_idle_max.map_or_else(|| "null".into(), |t| t.as_millis().to_string());
    let most = |bytes: Option<u64>| bytes.map_or_else(|| "null".into(), |b| b.to_string());
    format!(
        "{{\"version\":{},\"deadline_ms\":{:.3},\"retain_max\":{cap},\"slot_idle_max_ms\":{idle},\
         \"min_replicas\":{},\"min_replicas_age_ms\":{},\"catch_up_max\":{},\"link_window_bytes\":{},\
         \"lag_target_bytes\":{}}}",
        s.version,
        s.deadline.as_secs_f64() * 1000.0,
        s.min_replicas,
        s.min_replicas_age.as_millis(),
        most(s.catch_up_max),
        s.link_window_bytes,
        most(s.lag_target),
    )
}

fn shard_json(out: &mut String, s: &ShardStatus) {
    let state = s.stopped.as_ref().map_or_else(|| "running".into(), |why| format!("stopped: {}", escape(why)));
    let _ = write!(
        out,
        "{{\"shard\":{},\"state\":\"{state}\",\"term\":{},\"oldest_lsn\":{},\"appended_lsn\":{},\"written_lsn\":{},\
         \"durable_lsn\":{},\"commit_lsn\":{},\"applied_lsn\":{},\"tail_seq\":{},\"chain\":\"{}\",\"memory_bytes\":{},\
         \"link\":\"{}\",\"needs_rebuild\":{},\"lag_bytes\":{},\"depth\":{},\"heard_ms\":{},\"catch_up\":{},\"snapshot\":{},\"retained_bytes\":{},\"retention_cap_bytes\":{},\"quorum_lag_bytes\":{},\
         \"lag_target_bytes\":{},\"throttle_us\":{},\"packed_ratio\":{:.3},\"core_tasks\":{},\"held_by\":\"{}\",\"settings_version\":{},\
         \"too_few_fresh\":{},\"slots\":[",
        s.shard,
        s.term,
        s.oldest_lsn,
        s.appended_lsn,
        s.written_lsn,
        s.durable_lsn,
        s.commit_lsn,
        s.applied_lsn,
        s.tail_seq,
        s.chain,
        s.memory_bytes,
        escape(&s.link),
        s.needs_rebuild,
        s.lag_bytes,
        s.depth,
        s.heard_ms.map_or_else(|| "null".into(), |ms| format!("{ms:.3}")),
        s.catch_up.as_ref().map_or_else(|| "null".into(), own_catch_up_json),
        s.snapshot.as_ref().map_or_else(|| "null".into(), snapshot_json),
        s.retained_bytes,
        s.retention_cap_bytes,
        s.quorum_lag_bytes,
        s.lag_target_bytes,
        s.throttle_us,
        s.packed_ratio,
        s.core_tasks,
        s.held_by,
        s.settings_version,
        s.too_few_fresh,
    );
    for (n, slot) in s.slots.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        let _ = write!(
            out,
            "{comma}{{\"name\":\"{}\",\"kind\":\"{}\",\"state\":\"{}\",\"lost\":\"{}\",\"sent_lsn\":{},\"received_lsn\":{},\"flushed_lsn\":{},\
             \"applied_lsn\":{},\"restart_lsn\":{},\"below_lsn\":{},\"retained_bytes\":{},\"idle_ms\":{},\"lag_bytes\":{},\"lag_records\":{},\"lag_ms\":{:.3},\"connects\":{},\
             \"in_flight_bytes\":{},\"catch_up\":{},\"snapshot\":{},\"ack_received\":{},\"ack_flushed\":{}}}",
            slot.name,
            slot.kind.name(),
            slot.state.name(),
            slot.lost.map_or("", SlotLoss::name),
            slot.sent_lsn,
            slot.received_lsn,
            slot.flushed_lsn,
            slot.applied_lsn,
            slot.restart_lsn,
            slot.below_lsn.map_or_else(|| "null".into(), |lsn| lsn.0.to_string()),
            slot.retained_bytes,
            slot.idle_ms,
            slot.lag_bytes,
            slot.lag_records,
            slot.lag_ms,
            slot.connects,
            slot.in_flight_bytes,
            slot.catch_up.map_or_else(|| "null".into(), |c| catch_up_json(&c)),
            slot.snapshot.as_ref().map_or_else(|| "null".into(), snapshot_json),
            percentiles_json(&slot.ack_received),
            percentiles_json(&slot.ack_flushed),
        );
    }
    out.push_str("],\"counters\":{");
    for (n, (name, value)) in s.telemetry.counters.all().into_iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        let _ = write!(out, "{comma}\"{name}\":{value}");
    }
    out.push_str("},\"stages\":{");
    for (n, stage) in Stage::ALL.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        let p = Percentiles::of(s.telemetry.stage(*stage));
        let _ = write!(out, "{comma}\"{}\":{}", stage.name(), percentiles_json(&p));
    }
    out.push_str("}}");
}

fn catch_up_json(c: &Shown) -> String {
    let left = c.left_ms.map_or_else(|| "null".into(), |ms| ms.to_string());
    format!("{{\"bytes_per_s\":{},\"percent\":{:.2},\"left_ms\":{left}}}", c.bytes_per_s, c.percent)
}

fn snapshot_json(s: &SnapshotStatus) -> String {
    let total = s.total_bytes.map_or_else(|| "null".into(), |t| t.to_string());
    let eta = s.eta_s.map_or_else(|| "null".into(), |s| format!("{s:.1}"));
    format!(
        "{{\"done_bytes\":{},\"total_bytes\":{total},\"bytes_per_s\":{:.0},\"eta_s\":{eta}}}",
        s.done_bytes, s.bytes_per_s
    )
}

fn own_catch_up_json(c: &CatchUpStatus) -> String {
    let eta = c.eta_s.map_or_else(|| "null".into(), |s| format!("{s:.1}"));
    format!(
        "{{\"state\":\"{}\",\"done_bytes\":{},\"total_bytes\":{},\"bytes_per_s\":{:.0},\"eta_s\":{eta}}}",
        if c.bootstrap { "bootstrap" } else { "catch-up" },
        c.done_bytes,
        c.total_bytes,
        c.bytes_per_s,
    )
}

fn percentiles_json(p: &Percentiles) -> String {
    format!(
        "{{\"count\":{},\"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"max_us\":{:.1}}}",
        p.count, p.p50_us, p.p90_us, p.p99_us, p.p999_us, p.max_us,
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
