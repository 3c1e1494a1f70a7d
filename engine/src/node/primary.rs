//! Opening and using a primary.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
#[cfg(feature = "backup")]
use std::time::Duration;

use towline_wire::handshake::NodeName;
#[cfg(feature = "backup")]
use towline_wire::superblock::Base;
use towline_wire::{Lsn, ShardId, SystemId};

use super::core::ShardSetup;
use super::status::{ShardStatus, SlotStatus};
use super::{Command, Machine, Running, prepare};
#[cfg(feature = "backup")]
use crate::backup::BackupError;
use crate::config::{ConfigError, PrimaryConfig};
#[cfg(feature = "backup")]
use crate::oneshot;
use crate::protocol::gate::CommitGate;
use crate::protocol::policy::CommitPolicy;
use crate::protocol::primary::Primary as PrimaryState;
use crate::protocol::settings::{SettingChange, Settings, SettingsError};
use crate::protocol::slots::{SlotError, Slots};
use crate::rt;
#[cfg(feature = "sim")]
use crate::rt::world::LocalFuture;
use crate::shard::mesh::handle::Handle;
use crate::shard::mesh::local::LocalShard;
use crate::shard::mesh::ticket::block_on;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::folder;
use crate::shard::wal::open::OpenedSlice;
use crate::shard::{Role, ShardConfig};
use towline_wire::Term;

/// A running primary. Dropping it stops it.
pub struct Primary {
    running: Running,
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Primary({} shards)", self.running.shared.shard_count)
    }
}

impl Primary {
    /// Opens the folder, recovers every shard, bumps the term durably, and starts to serve.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong and what to do; nothing was served then.
    pub fn open(config: PrimaryConfig) -> Result<Self, OpenError> {
        block_on(Self::start(config))
    }

    /// As [`Primary::open`], for a task of a simulated node.
    ///
    /// # Errors
    /// As [`Primary::open`].
    #[cfg(feature = "sim")]
    pub fn open_simulated(config: PrimaryConfig) -> LocalFuture<Result<Self, OpenError>> {
        Box::pin(Self::start(config))
    }

    async fn start(config: PrimaryConfig) -> Result<Self, OpenError> {
        let flags = config.check()?;
        let lock = folder::lock(&config.node.data)?;
        let data = config.node.data.clone();
        let (system, segment_bytes) = match prepare::identity(&data)? {
            None => (prepare::new_system(&data)?, config.node.segment_bytes),
            Some(s) if s.shard_count != config.shards => {
                let (on_disk, configured) = (s.shard_count, config.shards);
                return Err(OpenError::ShardCount { path: data, on_disk, configured });
            }
            Some(s) if s.name != NodeName::NONE && !config.promote => {
                return Err(OpenError::IsReplica { path: data, name: s.name.to_string() });
            }
            Some(s) => (s.system, s.segment_bytes),
        };
        let machine = Machine::take(&config.node, config.shards, config.listen)?;
        let mut slices = prepare::open_shards(&config.node, (system, config.shards, segment_bytes), NodeName::NONE)?;
        for slice in &slices {
            let (own, by) = (slice.superblock.own_term, slice.superblock.term);
            if own < by && slice.superblock.name == NodeName::NONE && !config.promote {
                return Err(OpenError::Deposed { path: data, own, by });
            }
        }
        let newest = slices.iter().map(|s| s.superblock.term).max().unwrap_or(Term::ZERO);
        let term = if config.promote && !canary!(PromotedTermNotUnique) {
            promoted_after(newest.max(config.promote_above), &data)?
        } else {
            let more = u64::from(!canary!(TermNotBumped)).max(u64::from(newest == Term::ZERO));
            let next = newest.0.checked_add(more).map(Term);
            next.ok_or_else(|| OpenError::NoHigherTerm { path: data.clone(), term: newest })?
        };
        let settings = settings_of(&slices, &flags, config.promote);
        let need = settings.need().map_err(ConfigError::from)?;
        let mut slots = Vec::with_capacity(slices.len());
        for slice in &mut slices {
            slots.push(begin_reign(slice, term, &settings, !config.promote)?);
        }
        let configured = settings.replicas.len();
        let setups = slices.into_iter().zip(slots).map(|(slice, slots)| {
            let mut shard = ShardConfig::new(&config.node, config.shards, segment_bytes);
            shard.too_few = config.too_few;
            shard.zero_copy = config.zero_copy;
            shard.flow = config.flow();
            let id = slice.superblock.shard;
            let gate = CommitGate::new(need, configured, slice.end.lsn, slice.commit);
            let identity = (system, id, config.shards);
            let mut role = PrimaryState::new(identity, slice.superblock.term, slice.history.clone(), gate, slots);
            role.makes_snapshots = config.node.snapshot.is_some();
            ShardSetup { id, config: shard, role: Role::Primary(role), slice, follow: None }
        });
        let description =
            super::Description { is_primary: true, name: String::new(), system, settings: Some(settings) };
        let running = Running::start(&config.node, description, setups.collect(), machine, lock).await?;
        Ok(Self { running })
    }

    /// A handle for appends from any thread. Clone it for each thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.running.shared.clone())
    }

    /// Runs a task of the embedder's on the core that owns `shard`: it appends there without a hop.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn spawn_on<F, T>(&self, shard: ShardId, task: F)
    where
        F: FnOnce(LocalShard) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let start = move |local: LocalShard| {
            let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task(local.clone()));
            local.spawn(task);
        };
        assert!(shard.0 < self.running.shared.shard_count, "there is no shard {shard}");
        self.running.shared.core_of(shard).send(Command::Run(shard, Box::new(start)));
    }

    /// What came before `at` in a shard's log, once that is committed.
    #[cfg(feature = "backup")]
    pub(crate) fn base_at(&self, shard: ShardId, at: Lsn, patience: Duration) -> Result<Base, BackupError> {
        let (reply, answer) = oneshot::channel();
        self.spawn_on(shard, move |local| async move {
            reply.send(local.base_at(at, patience).await);
        });
        match block_on(answer).map_err(|gone| BackupError::gone(shard, gone))? {
            Ok(Some(base)) => Ok(base),
            Ok(None) => Err(BackupError::NotCommitted { shard, at, committed: self.committed(shard) }),
            Err(e) => Err(BackupError::of_base(shard, e)),
        }
    }

    /// Shards, and bytes of each segment.
    #[cfg(feature = "backup")]
    pub(crate) fn shape(&self) -> (u32, u64) {
        (self.running.shared.shard_count, self.running.shared.segment_bytes)
    }

    /// Lets go of a shard's log below `to`; see [`LocalShard::trim`].
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn trim(&self, shard: ShardId, to: Lsn) {
        assert!(shard.0 < self.running.shared.shard_count, "there is no shard {shard}");
        self.running.shared.core_of(shard).send(Command::Trim(shard, to));
    }

    /// Makes a slot on every shard, durably: a replica of that name may connect then, and the log is
    /// kept for it. A configured replica has one anyway; one that was lost is made anew, and holds what
    /// the log still has. The replica of any other slot only reads: no commit waits for it. A
    /// `temporary` slot ends with its link, and no restart keeps it.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub fn create_slot(&self, name: &str, temporary: bool) -> Result<(), SlotError> {
        block_on(self.create_slot_soon(name, temporary))
    }

    /// As [`Primary::create_slot`], for a task.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub async fn create_slot_soon(&self, name: &str, temporary: bool) -> Result<(), SlotError> {
        self.running.shared.make_slot(name, temporary).await
    }

    /// A slot as each shard has it; empty if there is none.
    #[must_use]
    pub fn slot(&self, name: &str) -> Vec<(ShardId, SlotStatus)> {
        let of = |s: ShardStatus| s.slots.into_iter().find(|slot| slot.name == name).map(|slot| (s.shard, slot));
        self.status().into_iter().filter_map(of).collect()
    }

    /// Removes a slot on every shard, durably: its link ends, and the log is kept for it no more. A
    /// configured replica is refused from then on, until its slot is made anew.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub fn drop_slot(&self, name: &str) -> Result<(), SlotError> {
        block_on(self.drop_slot_soon(name))
    }

    /// As [`Primary::drop_slot`], for a task.
    ///
    /// # Errors
    /// [`SlotError`] says why not.
    pub async fn drop_slot_soon(&self, name: &str) -> Result<(), SlotError> {
        self.running.shared.remove_slot(name).await
    }

    /// Configures a replica: on every shard, and durable when this returns. It counts for commits from
    /// then on; a slot that was made for it before stays where it is. Returns the settings' version.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub fn add_replica(&self, name: &str) -> Result<u64, SettingsError> {
        block_on(self.add_replica_soon(name))
    }

    /// As [`Primary::add_replica`], for a task.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub async fn add_replica_soon(&self, name: &str) -> Result<u64, SettingsError> {
        let name = NodeName::new(name).ok_or_else(|| SettingsError::Name(name.into()))?;
        self.change_settings_soon(SettingChange::AddReplica(name), None).await
    }

    /// Configures a replica no more: its link ends, its slot goes, and what it has counts for no commit.
    /// Commits that wait are judged by those that are left. Returns the settings' version.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub fn remove_replica(&self, name: &str) -> Result<u64, SettingsError> {
        block_on(self.remove_replica_soon(name))
    }

    /// As [`Primary::remove_replica`], for a task.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub async fn remove_replica_soon(&self, name: &str) -> Result<u64, SettingsError> {
        let name = NodeName::new(name).ok_or_else(|| SettingsError::Name(name.into()))?;
        self.change_settings_soon(SettingChange::RemoveReplica(name), None).await
    }

    /// What a commit waits for unless it says otherwise. Who waits already goes on waiting for what
    /// was said before. Returns the settings' version.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub fn set_commit_policy(&self, policy: CommitPolicy) -> Result<u64, SettingsError> {
        self.change_settings(SettingChange::Commit(policy), None)
    }

    /// Changes one setting on every shard: durable and in force when this returns. With `if_version`
    /// only if they have that version, so that two operators do not overwrite each other. Returns the
    /// new version.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub fn change_settings(&self, change: SettingChange, if_version: Option<u64>) -> Result<u64, SettingsError> {
        block_on(self.change_settings_soon(change, if_version))
    }

    /// As [`Primary::change_settings`], for a task.
    ///
    /// # Errors
    /// [`SettingsError`] says why not.
    pub async fn change_settings_soon(
        &self,
        change: SettingChange,
        if_version: Option<u64>,
    ) -> Result<u64, SettingsError> {
        self.running.shared.change_settings(change, if_version.unwrap_or(0)).await
    }

    /// The settings that are in force on every shard.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.running.shared.settings().map(|s| (*s).clone()).expect("a primary has settings")
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    #[must_use]
    pub fn listening(&self) -> Option<SocketAddr> {
        self.running.listening
    }

    /// The cluster's log.
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.running.shared.system
    }

    /// What is committed on a shard, as its core published last: no message is sent.
    #[must_use]
    pub fn committed(&self, shard: ShardId) -> Lsn {
        self.running.shared.watermarks[shard.0 as usize].read()
    }

    /// Every shard's positions, slots, counters and histograms.
    #[must_use]
    pub fn status(&self) -> Vec<ShardStatus> {
        block_on(self.running.shared.shard_statuses())
    }

    /// The status as the JSON document that `towline status --json` shows.
    #[must_use]
    pub fn status_json(&self) -> String {
        block_on(self.running.shared.status())
    }

    /// Stops: what was appended is written, waiters that are not committed are told, the folder is
    /// left clean. Blocks until all threads have ended.
    pub fn stop(mut self) {
        block_on(self.running.stop());
    }

    /// As `stop`, for a task of a simulated node.
    #[cfg(feature = "sim")]
    pub async fn stop_simulated(mut self) {
        self.running.stop().await;
    }
}

/// The settings that this reign begins with: the newest that any shard has, as a change reaches one
/// shard after the other. Where there are none, or this node is promoted and so may know old ones only,
/// those that it was started with.
fn settings_of(slices: &[OpenedSlice], flags: &Settings, promote: bool) -> Settings {
    let known = slices.iter().map(|s| &s.superblock);
    let known = known.filter_map(|s| Settings::of_superblock(s.settings.as_ref()?, &s.slots, flags.links()));
    let Some(known) = known.max_by_key(|s| s.version) else { return flags.clone() };
    if promote {
        return Settings { version: known.version.saturating_add(1), ..flags.clone() };
    }
    for (what, started, found) in known.differences(flags) {
        tracing::warn!(
            "started with {what} {started}, but the settings of this cluster (version {}) say {found}, and they win: \
             change them with `towline ctl`, and what it is started with accordingly",
            known.version
        );
    }
    known
}

/// A new reign: the term goes up, durably, before anything is served. Slots are those of the reign
/// before; their positions are `trusted` if nobody else can have reigned in between.
fn begin_reign(slice: &mut OpenedSlice, term: Term, settings: &Settings, trusted: bool) -> Result<Slots, OpenError> {
    let superblock = &mut slice.superblock;
    let saved = std::mem::take(&mut superblock.slots);
    let (slots, gone) = Slots::new(&settings.replicas, &saved, trusted, superblock.oldest_lsn, rt::now_ns());
    for replica in gone {
        tracing::warn!(shard = superblock.shard.0, %replica, "slot dropped: its replica is configured no more");
    }
    superblock.slots = slots.entries();
    superblock.settings = Some(settings.entry());
    superblock.term = term;
    superblock.own_term = term;
    superblock.name = NodeName::NONE;
    slice.superblock_file.write(superblock)?;
    Ok(slots)
}

/// The term of a promoted node. It cannot know every start of the primary before it, nor of another
/// node that is promoted at the same time, and no two reigns may share a term: so it goes up by
/// 2^32, which no primary reaches by being started again, and ends in random bits.
fn promoted_after(newest: Term, data: &std::path::Path) -> Result<Term, OpenError> {
    let mut random = [0; 4];
    rt::random(&mut random).map_err(OpenError::io("making a term for", data))?;
    // The upper half of the low bits stays free for starts.
    let low = u64::from(u32::from_le_bytes(random) >> 1);
    let high = u32::try_from((newest.0 >> 32) + 1);
    let high = high.map_err(|_| OpenError::NoHigherTerm { path: data.to_path_buf(), term: newest })?;
    Ok(Term((u64::from(high) << 32) | low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promoted_nodes_term_is_above_every_start_and_its_own() {
        let path = std::path::Path::new("unused");
        let (a, b) = (promoted_after(Term(7), path).unwrap(), promoted_after(Term(7), path).unwrap());
        assert!(a > Term(7 + (1 << 31)) && b > Term(7 + (1 << 31)));
        assert_ne!(a, b);
        assert!(promoted_after(a, path).unwrap() > Term(a.0 + (1 << 31)));
    }

    #[test]
    fn a_term_that_leaves_none_above_it_is_refused() {
        let path = std::path::Path::new("unused");
        let refused = promoted_after(Term(u64::MAX), path).unwrap_err();
        assert!(matches!(refused, OpenError::NoHigherTerm { term: Term(u64::MAX), .. }));
    }
}
