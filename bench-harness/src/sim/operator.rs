//! The operator who changes settings while all goes on, and what the oracle is told of it.

use std::sync::Mutex;
use std::time::Duration;

use towline::wire::handshake::NodeName;
use towline::{AckLevel, AppendOptions, CommitPolicy, Primary, SettingChange, Settings, SettingsError, ShardId};

use super::cluster::{Cluster, Control};
use super::handler::lock;
use super::oracle::{Force, Oracle, payload};
use super::plan::Plan;

/// What an operator asks of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Make a slot, or a lost one anew.
    Slot(String),
    /// Drop a slot.
    Drop(String),
    /// Append alone, until the log may have let go of what others have of it.
    Alone,
    /// Change the settings.
    Set(SettingChange),
}

impl Cluster {
    /// The settings of the primary that is to be, if it serves.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        if !self.serves(self.primary) {
            return None;
        }
        lock(&self.nodes[self.primary].control.settings).clone()
    }

    /// Whether a node is a configured replica of the primary, as far as is known.
    #[must_use]
    pub fn is_member(&self, n: usize) -> bool {
        let name = Self::name(n);
        self.settings().is_none_or(|s| s.replicas.iter().any(|r| r.to_string() == name))
    }

    /// Whether the primary has something to do for the operator.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !lock(&self.nodes[self.primary].control.asks).is_empty()
    }

    /// Configures a node that is not; `slot_first`: it may catch up before it counts.
    pub fn add_replica(&mut self, n: usize, slot_first: bool) {
        let Some(name) = NodeName::new(&Self::name(n)) else { return };
        let control = &self.nodes[self.primary].control;
        if slot_first {
            control.ask(Ask::Slot(Self::name(n)));
        }
        control.ask(Ask::Set(SettingChange::AddReplica(name)));
    }

    /// Configures a node no more.
    pub fn remove_replica(&mut self, n: usize) {
        let Some(name) = NodeName::new(&Self::name(n)) else { return };
        // The log is not kept for it any more.
        self.nodes[n].lost_slot = true;
        self.nodes[self.primary].control.ask(Ask::Set(SettingChange::RemoveReplica(name)));
    }
}

/// What the oracle is told of settings.
fn force(settings: &Settings) -> Force {
    let number = |name: &NodeName| name.to_string()[1..].parse::<u32>().expect("a node's name");
    Force { members: settings.replicas.iter().fold(0, |all, name| all | 1 << number(name)), commit: settings.commit }
}

/// The settings of a primary are known.
pub(super) fn in_force(primary: &Primary, n: usize, oracle: &Mutex<Oracle>, control: &Control) {
    let settings = primary.settings();
    lock(oracle).is(n, force(&settings), settings.version);
    *lock(&control.settings) = Some(settings);
}

/// Changes a setting, as an operator does: until there is an answer, both may be in force.
pub(super) async fn set(primary: &Primary, n: usize, oracle: &Mutex<Oracle>, control: &Control, change: SettingChange) {
    let mut next = force(&primary.settings());
    let bit = |name: NodeName| 1 << name.to_string()[1..].parse::<u32>().expect("a node's name");
    match change {
        SettingChange::AddReplica(name) => next.members |= bit(name),
        SettingChange::RemoveReplica(name) => next.members &= !bit(name),
        SettingChange::Commit(policy) => next.commit = policy,
        _ => {}
    }
    lock(oracle).may_be(n, next);
    match primary.change_settings_soon(change, None).await {
        // Some shards may have come to it.
        Err(SettingsError::NotServing(_)) => {}
        _ => in_force(primary, n, oracle, control),
    }
}

/// Appends on a primary that has no replica any more, for all of them: it is not committed, and all the same
/// too much to be kept beside what is.
pub(super) async fn alone(primary: &Primary, n: usize, oracle: &Mutex<Oracle>, plan: &Plan) {
    const MOST: u64 = 40;
    let bytes = plan.record_max.min(plan.segment_bytes as usize);
    let number = (3 * plan.segment_bytes / bytes as u64).min(MOST);
    let handle = primary.handle();
    let policy = Some(CommitPolicy::All { level: AckLevel::Flushed });
    let options = AppendOptions { policy, deadline: Some(Duration::from_millis(100)) };
    for shard in (0..plan.shards).map(ShardId) {
        let lane = lock(oracle).lane();
        let mut tickets = Vec::new();
        for _ in 0..number {
            let id = lock(oracle).ask(n, shard, lane, bytes);
            match handle.try_append(shard, &payload(id, bytes), options) {
                Ok(ticket) => tickets.push((id, ticket)),
                Err(_) => lock(oracle).refused(id),
            }
        }
        for (id, ticket) in tickets {
            match ticket.await {
                Ok(outcome) => lock(oracle).done(id, &outcome, policy, n),
                Err(_) => lock(oracle).refused(id),
            }
        }
    }
}
