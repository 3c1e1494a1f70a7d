//! What an operator may change while a primary runs: who is configured, what commits wait for, what is
//! kept, how links are served. One version after the other; each is whole, so that a shard that missed one is brought to
//! it by being told the newest.

use std::time::Duration;

use thiserror::Error;
use towline_wire::BLOCK;
use towline_wire::handshake::NodeName;
use towline_wire::message::{ControlAction, ControlRequest};
use towline_wire::superblock::{LinksEntry, SettingsEntry, SlotEntry, SlotKind};

use super::policy::{CommitPolicy, PolicyError, Requirement};
use super::slots::SlotError;
use crate::config::{PrimaryConfig, RetainMax};
use crate::limits;

/// The settings of a primary in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Counts changes, from 1.
    pub version: u64,
    /// The configured replicas: `majority` and `all` are over them, and only they count.
    pub replicas: Vec<NodeName>,
    /// What a commit waits for unless it says otherwise.
    pub commit: CommitPolicy,
    /// How long, unless it says otherwise.
    pub deadline: Duration,
    /// The most log that slots may hold.
    pub retain_max: RetainMax,
    /// How long a slot may be without a link; `None`: for ever.
    pub slot_idle_max: Option<Duration>,
    /// Appends are refused while fewer replicas have acknowledged lately.
    pub min_replicas: u8,
    /// What is lately.
    pub min_replicas_age: Duration,
    /// Bytes in each second that a replica which catches up is sent, all its shards together; `None`: no cap.
    pub catch_up_max: Option<u64>,
    /// Bytes that a link may have sent and not acknowledged as received, or one batch.
    pub link_window_bytes: u32,
    /// How many bytes the replicas that commits wait for may be behind, on each shard, before batches are
    /// held back; `None`: any.
    pub lag_target: Option<u64>,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingChange {
    /// Configure a replica. A slot that is there for it stays where it is.
    AddReplica(NodeName),
    /// Configure it no more: its link ends, and its slot goes.
    RemoveReplica(NodeName),
    /// What a commit waits for unless it says otherwise.
    Commit(CommitPolicy),
    /// How long, unless it says otherwise.
    Deadline(Duration),
    /// The most log that slots may hold.
    RetainMax(RetainMax),
    /// How long a slot may be without a link; `None`: for ever.
    SlotIdleMax(Option<Duration>),
    /// Refuse appends while fewer replicas have acknowledged lately; 0: never.
    MinReplicas(u8),
    /// What is lately.
    MinReplicasAge(Duration),
    /// Bytes in each second that a replica which catches up is sent, all its shards together; `None`: no cap.
    CatchUpMax(Option<u64>),
    /// Bytes that a link may have sent and not acknowledged as received, or one batch.
    LinkWindow(u32),
    /// How many bytes the replicas that commits wait for may be behind before batches are held back;
    /// `None`: any.
    LagTarget(Option<u64>),
}

/// Why settings were not changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// It is no name.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// Somebody else was first.
    #[error("the settings have version {now}, the change was for version {wanted}: look at them, then decide again")]
    Version {
        /// What the caller asked for.
        wanted: u64,
        /// What they have.
        now: u64,
    },
    /// It is configured already.
    #[error("replica {0} is configured already")]
    Configured(NodeName),
    /// It is not configured.
    #[error("replica {0} is not configured")]
    NotConfigured(NodeName),
    /// As many replicas as there may be are configured.
    #[error("{} replicas are configured, there cannot be more", limits::REPLICAS_MAX)]
    TooMany,
    /// The default commit policy could never hold.
    #[error("nothing would ever be committed: {0}")]
    Policy(#[from] PolicyError),
    /// The write gate could never open.
    #[error("no append would ever be taken: min-replicas is {wanted}, {configured} replicas would be configured")]
    MinReplicas {
        /// Replicas that must have acknowledged.
        wanted: u8,
        /// Replicas that would be configured.
        configured: usize,
    },
    /// A value outside its bounds.
    #[error("{field} is {value}, it must be from {min} to {max}")]
    Bounds {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A shard has no room for another slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The node is a replica, was deposed, or has stopped. Where a change was under way, a start of the
    /// node finishes it, or it is not there: look at the version.
    #[error("settings are a primary's, and this node does not serve as one: {0}")]
    NotServing(String),
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const fn retain_max_to_wire(max: RetainMax) -> u64 {
    match max {
        RetainMax::Auto => 0,
        RetainMax::Bytes(bytes) => bytes,
        RetainMax::Unlimited => u64::MAX,
    }
}

const fn retain_max_of(wire: u64) -> RetainMax {
    match wire {
        0 => RetainMax::Auto,
        u64::MAX => RetainMax::Unlimited,
        bytes => RetainMax::Bytes(bytes),
    }
}

/// Bytes, of which 0 stands for no bound.
const fn most_of(wire: u64) -> Option<u64> {
    if wire == 0 { None } else { Some(wire) }
}

fn most_to_wire(most: Option<u64>) -> u64 {
    most.map_or(0, |bytes| bytes.max(1))
}

impl SettingChange {
    /// From the network; `None` for what no decoder lets through.
    #[must_use]
    pub fn from_wire(request: &ControlRequest) -> Option<Self> {
        let time = Duration::from_nanos;
        Some(match request.action {
            ControlAction::AddReplica(name) => Self::AddReplica(name),
            ControlAction::RemoveReplica(name) => Self::RemoveReplica(name),
            ControlAction::Commit(policy) => Self::Commit(CommitPolicy::from_wire(policy)?),
            ControlAction::Deadline(ns) => Self::Deadline(time(ns)),
            ControlAction::RetainMax(bytes) => Self::RetainMax(retain_max_of(bytes)),
            ControlAction::SlotIdleMax(ns) => Self::SlotIdleMax((ns > 0).then(|| time(ns))),
            ControlAction::MinReplicas(n) => Self::MinReplicas(n),
            ControlAction::MinReplicasAge(ns) => Self::MinReplicasAge(time(ns)),
            ControlAction::CatchUpMax(bytes) => Self::CatchUpMax(most_of(bytes)),
            ControlAction::LinkWindow(bytes) => Self::LinkWindow(bytes),
            ControlAction::LagTarget(bytes) => Self::LagTarget(most_of(bytes)),
        })
    }

    /// As it crosses the network. A time, a rate or a window of nothing crosses as the least there is.
    #[must_use]
    pub fn to_wire(self) -> ControlAction {
        match self {
            Self::AddReplica(name) => ControlAction::AddReplica(name),
            Self::RemoveReplica(name) => ControlAction::RemoveReplica(name),
            Self::Commit(policy) => ControlAction::Commit(policy.to_wire()),
            Self::Deadline(time) => ControlAction::Deadline(ns(time).max(1)),
            Self::RetainMax(max) => ControlAction::RetainMax(retain_max_to_wire(max)),
            Self::SlotIdleMax(time) => ControlAction::SlotIdleMax(time.map_or(0, |t| ns(t).max(1))),
            Self::MinReplicas(n) => ControlAction::MinReplicas(n),
            Self::MinReplicasAge(time) => ControlAction::MinReplicasAge(ns(time).max(1)),
            Self::CatchUpMax(most) => ControlAction::CatchUpMax(most_to_wire(most)),
            Self::LinkWindow(bytes) => ControlAction::LinkWindow(bytes.max(1)),
            Self::LagTarget(most) => ControlAction::LagTarget(most_to_wire(most)),
        }
    }
}

impl Settings {
    /// What the default policy needs of these replicas.
    ///
    /// # Errors
    /// It can never hold.
    pub fn need(&self) -> Result<Requirement, PolicyError> {
        self.commit.requirement(self.replicas.len())
    }

    /// The next version, with a change. `retain_max_min` is the least cap in bytes. `if_version` 0
    /// stands for any version.
    ///
    /// # Errors
    /// Why not.
    pub fn with(&self, change: SettingChange, if_version: u64, retain_max_min: u64) -> Result<Self, SettingsError> {
        if if_version != 0 && if_version != self.version {
            return Err(SettingsError::Version { wanted: if_version, now: self.version });
        }
        let mut next = Self { version: self.version.saturating_add(1), ..self.clone() };
        match change {
            SettingChange::AddReplica(name) if self.replicas.contains(&name) => {
                return Err(SettingsError::Configured(name));
            }
            SettingChange::AddReplica(_) if self.replicas.len() >= limits::REPLICAS_MAX => {
                return Err(SettingsError::TooMany);
            }
            SettingChange::AddReplica(name) => next.replicas.push(name),
            SettingChange::RemoveReplica(name) if !self.replicas.contains(&name) => {
                return Err(SettingsError::NotConfigured(name));
            }
            SettingChange::RemoveReplica(name) => next.replicas.retain(|n| *n != name),
            SettingChange::Commit(policy) => next.commit = policy,
            SettingChange::Deadline(time) => next.deadline = time,
            SettingChange::RetainMax(max) => next.retain_max = max,
            SettingChange::SlotIdleMax(time) => next.slot_idle_max = time,
            SettingChange::MinReplicas(n) => next.min_replicas = n,
            SettingChange::MinReplicasAge(age) => next.min_replicas_age = age,
            SettingChange::CatchUpMax(most) => next.catch_up_max = most,
            SettingChange::LinkWindow(bytes) => next.link_window_bytes = bytes,
            SettingChange::LagTarget(most) => next.lag_target = most,
        }
        next.check(retain_max_min)?;
        Ok(next)
    }

    /// Whether they can be in force.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, retain_max_min: u64) -> Result<(), SettingsError> {
        self.need()?;
        let configured = self.replicas.len();
        if usize::from(self.min_replicas) > configured {
            return Err(SettingsError::MinReplicas { wanted: self.min_replicas, configured });
        }
        let bounds = |field, value: u64, min: u64, max: u64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(SettingsError::Bounds { field, value, min, max }),
        };
        bounds("deadline in ns", ns(self.deadline), 1, u64::MAX)?;
        if let RetainMax::Bytes(bytes) = self.retain_max {
            bounds("retain-max in bytes", bytes, retain_max_min, u64::MAX)?;
        }
        let ms = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
        if let Some(idle) = self.slot_idle_max {
            bounds("slot-idle-max in ms", ms(idle), ms(limits::SLOT_IDLE_MIN), ms(limits::SLOT_IDLE_MAX))?;
        }
        let (min, max) = (limits::MIN_REPLICAS_AGE_MIN, limits::MIN_REPLICAS_AGE_MAX);
        bounds("min-replicas-age in ms", ms(self.min_replicas_age), ms(min), ms(max))?;
        let window = u64::from(self.link_window_bytes);
        bounds("link-window in bytes", window, BLOCK as u64, limits::LINK_WINDOW_MAX)?;
        if let Some(rate) = self.catch_up_max {
            bounds("catch-up-max in bytes", rate, limits::CATCH_UP_MAX_MIN, u64::MAX)?;
        }
        self.lag_target.map_or(Ok(()), |lag| bounds("lag-target in bytes", lag, limits::LAG_TARGET_MIN, u64::MAX))
    }

    /// What `started`, which a node was started with, says otherwise: its name on the command line, what
    /// it says, and what is in force. What is left at its default says nothing.
    #[must_use]
    pub fn differences(&self, started: &Self) -> Vec<(&'static str, String, String)> {
        let mut out = Vec::new();
        let mut hold = |what, says: bool, started: String, found: String| {
            if says && started != found {
                out.push((what, started, found));
            }
        };
        let names = |s: &Self| {
            let mut names: Vec<String> = s.replicas.iter().map(ToString::to_string).collect();
            names.sort();
            if names.is_empty() { "none".into() } else { names.join(",") }
        };
        let time = |t: Option<Duration>| t.map_or_else(|| "none".into(), |t| format!("{t:?}"));
        let default = PrimaryConfig::new("");
        hold("--replicas", !started.replicas.is_empty(), names(started), names(self));
        hold("--commit", started.commit != default.commit, started.commit.to_string(), self.commit.to_string());
        let says = started.deadline != default.deadline;
        hold("--deadline", says, time(Some(started.deadline)), time(Some(self.deadline)));
        let cap = |max: RetainMax| match max {
            RetainMax::Auto => "auto".into(),
            RetainMax::Unlimited => "none".into(),
            RetainMax::Bytes(bytes) => bytes.to_string(),
        };
        hold("--retain-max", started.retain_max != default.retain_max, cap(started.retain_max), cap(self.retain_max));
        let says = started.slot_idle_max != default.slot_idle_max;
        hold("--slot-idle-max", says, time(started.slot_idle_max), time(self.slot_idle_max));
        let (a, b) = (started.min_replicas.to_string(), self.min_replicas.to_string());
        hold("--min-replicas", started.min_replicas != default.min_replicas, a, b);
        let says = started.min_replicas_age != default.min_replicas_age;
        hold("--min-replicas-age", says, time(Some(started.min_replicas_age)), time(Some(self.min_replicas_age)));
        let most = |bytes: Option<u64>| bytes.map_or_else(|| "none".into(), |b| b.to_string());
        let (a, b) = (most(started.catch_up_max), most(self.catch_up_max));
        hold("--catch-up-max", started.catch_up_max != default.catch_up_max, a, b);
        let (a, b) = (started.link_window_bytes.to_string(), self.link_window_bytes.to_string());
        hold("--link-window", started.link_window_bytes as usize != default.link_window_bytes, a, b);
        let (a, b) = (most(started.lag_target), most(self.lag_target));
        hold("--lag-target", started.lag_target != default.lag_target, a, b);
        out
    }

    /// What the superblock says of them, beside the slots of configured replicas.
    #[must_use]
    pub fn entry(&self) -> SettingsEntry {
        SettingsEntry {
            version: self.version,
            policy: self.commit.to_wire(),
            deadline_ns: ns(self.deadline),
            retain_max: retain_max_to_wire(self.retain_max),
            slot_idle_max_ns: self.slot_idle_max.map_or(0, ns),
            min_replicas_age_ns: ns(self.min_replicas_age),
            min_replicas: self.min_replicas,
            links: Some(self.links()),
        }
    }

    /// How links are served, as the superblock says it.
    #[must_use]
    pub fn links(&self) -> LinksEntry {
        LinksEntry {
            catch_up_max: most_to_wire(self.catch_up_max),
            lag_target: most_to_wire(self.lag_target),
            link_window: self.link_window_bytes,
        }
    }

    /// What a superblock says; what one of an older version leaves out is as a node was `started`. The newest of all shards' is in force: each version reached one shard
    /// after the other, and a crash in between is finished at the next start.
    #[must_use]
    pub fn of_superblock(entry: &SettingsEntry, slots: &[SlotEntry], started: LinksEntry) -> Option<Self> {
        let links = entry.links.unwrap_or(started);
        let replicas = slots.iter().filter(|s| s.kind == SlotKind::Configured).map(|s| s.name);
        Some(Self {
            version: entry.version,
            replicas: replicas.collect(),
            commit: CommitPolicy::from_wire(entry.policy)?,
            deadline: Duration::from_nanos(entry.deadline_ns),
            retain_max: retain_max_of(entry.retain_max),
            slot_idle_max: (entry.slot_idle_max_ns > 0).then(|| Duration::from_nanos(entry.slot_idle_max_ns)),
            min_replicas: entry.min_replicas,
            min_replicas_age: Duration::from_nanos(entry.min_replicas_age_ns),
            catch_up_max: most_of(links.catch_up_max),
            link_window_bytes: links.link_window,
            lag_target: most_of(links.lag_target),
        })
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
