//! Changes of slots and settings: one after the other, each on every shard. A task on the first core
//! does them, so that all shards see the same order and one version is only ever one thing.

use std::sync::Arc;

use towline_wire::handshake::NodeName;
use towline_wire::superblock::SLOTS_MAX;

use super::{Command, NodeShared};
use crate::oneshot;
use crate::protocol::settings::{SettingChange, Settings, SettingsError};
use crate::protocol::slots::SlotError;
use crate::shard::slots::SlotChange;

/// What somebody asks for.
pub(crate) enum Job {
    /// Make or remove a slot.
    Slot(SlotChange, oneshot::Sender<Result<(), SlotError>>),
    /// Change a setting, if the settings have this version (0: any). The answer is the new version.
    Setting(SettingChange, u64, oneshot::Sender<Result<u64, SettingsError>>),
}

/// Does jobs until the core ends.
pub(crate) async fn run(node: Arc<NodeShared>) {
    loop {
        match node.jobs.next().await {
            Job::Slot(change, reply) => reply.send(change_slots(&node, change).await),
            Job::Setting(change, if_version, reply) => reply.send(change_settings(&node, change, if_version).await),
        }
    }
}

impl NodeShared {
    /// Makes or removes a slot on every shard; durable on all of them when this resolves. Again after
    /// a failure, it does what is left to do.
    pub(crate) async fn change_slots(&self, change: SlotChange) -> Result<(), SlotError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Slot(change, reply));
        answer.await.map_err(|gone| SlotError::NotServing(gone.to_string()))?
    }

    /// Makes a slot of this name.
    pub(crate) async fn make_slot(&self, name: &str, temporary: bool) -> Result<(), SlotError> {
        self.change_slots(SlotChange::Make { name: slot_name(name)?, temporary }).await
    }

    /// Removes the slot of this name.
    pub(crate) async fn remove_slot(&self, name: &str) -> Result<(), SlotError> {
        self.change_slots(SlotChange::Remove { name: slot_name(name)? }).await
    }

    /// Changes a setting on every shard; durable and in force on all of them when this resolves.
    pub(crate) async fn change_settings(&self, change: SettingChange, if_version: u64) -> Result<u64, SettingsError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Setting(change, if_version, reply));
        answer.await.map_err(|gone| SettingsError::NotServing(gone.to_string()))?
    }
}

fn slot_name(name: &str) -> Result<NodeName, SlotError> {
    NodeName::new(name).ok_or_else(|| SlotError::Name(name.into()))
}

async fn change_slots(node: &NodeShared, change: SlotChange) -> Result<(), SlotError> {
    let (mut done, mut not) = (false, None);
    for core in &node.cores {
        let (reply, answer) = oneshot::channel();
        core.send(Command::Slots(change, reply));
        let answers = answer.await.map_err(|gone| SlotError::NotServing(gone.to_string()))?;
        for result in answers {
            match result {
                Ok(()) => done = true,
                Err(e @ (SlotError::Exists(_) | SlotError::Unknown(_))) => not = Some(e),
                Err(e) => return Err(e),
            }
        }
    }
    match not {
        Some(e) if !done => Err(e),
        _ => Ok(()),
    }
}

async fn change_settings(node: &NodeShared, change: SettingChange, if_version: u64) -> Result<u64, SettingsError> {
    let Some(now) = node.settings() else {
        return Err(SettingsError::NotServing("it is a replica".into()));
    };
    let next = Arc::new(now.with(change, if_version, node.retain_max_min)?);
    may_change(node, &next).await?;
    for core in &node.cores {
        let (reply, answer) = oneshot::channel();
        core.send(Command::Settings(next.clone(), reply));
        answer.await.map_err(|gone| SettingsError::NotServing(gone.to_string()))??;
    }
    let version = next.version;
    node.set_settings(next);
    Ok(version)
}

/// Before one shard changes, all must be able to. A shard that fails after this has stopped for good:
/// then nothing is changed any more, and the next start brings every shard to the newest version.
async fn may_change(node: &NodeShared, next: &Settings) -> Result<(), SettingsError> {
    let shards = node.shard_statuses().await;
    if shards.len() < node.shard_count as usize {
        return Err(SettingsError::NotServing("a core has ended".into()));
    }
    for shard in shards {
        if let Some(why) = shard.stopped {
            return Err(SettingsError::NotServing(why));
        }
        let has = |name: &str| shard.slots.iter().any(|s| s.name == name);
        let new = next.replicas.iter().filter(|name| !has(&name.to_string())).count();
        if shard.slots.len() + new > SLOTS_MAX {
            return Err(SlotError::TooMany.into());
        }
    }
    Ok(())
}
