//! The slots of one shard's primary: what it remembers of each replica, which link may serve it,
//! when a slot is lost, and what of it is kept across a restart.
//!
//! A slot is valid or lost. A valid one holds the log from its restart LSN on; a lost one holds
//! nothing, counts for no commit, and its replica is refused with the cause until somebody makes
//! the slot anew. The restart LSN follows what both the replica and the primary have on their
//! devices. It goes back only when a link begins further back, which the log still has.

use std::time::Duration;

use thiserror::Error;
use towline_wire::handshake::{NodeName, Refusal};
use towline_wire::superblock::{SLOTS_MAX, SlotEntry, SlotKind, SlotLoss};
use towline_wire::{Lsn, Seq};

use super::gate::SlotPositions;
use super::progress::Progress;
use crate::limits;

mod members;

/// How long a slot lives, and whether its replica counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub enum Kind {
    /// Its replica is configured: it counts for commits.
    Configured,
    /// Made on request: kept across restarts until it is removed. Its replica only reads.
    Made,
    /// Made on request, for one link: gone when that ends, and not kept across a restart.
    Temporary,
}

impl Kind {
    /// Its name in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Made => "made",
            Self::Temporary => "temporary",
        }
    }
}

/// What a primary remembers of one replica for one shard.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub struct Slot {
    /// The replica's name.
    pub name: NodeName,
    /// Why there is a slot.
    pub kind: Kind,
    /// Why it is valid no more, if so.
    pub lost: Option<SlotLoss>,
    /// Its replica is to be configured no more: it goes once that is on the device.
    pub leaving: bool,
    /// The link that serves it, if one does.
    pub link: Option<u64>,
    /// The end of what was handed to the network on this link.
    pub sent: Lsn,
    /// What the replica has said in this reign, in its hellos and acks.
    pub at: SlotPositions,
    /// What of that counts for commits: what it has said in acks. A hello may be read long after its
    /// process has ended, and its folder is another one by then; who acknowledges has read the answer.
    pub vouched: SlotPositions,
    /// Where the link began.
    pub began: Lsn,
    /// The log from here on may be needed.
    pub restart: Lsn,
    /// The log from here on is needed by those that the replica feeds, as it said last; the highest LSN
    /// if by none. Not kept across a restart: the replica has it too.
    pub below: Lsn,
    /// How it comes along, while it catches up.
    pub progress: Option<Progress>,
    /// Records applied, as the replica said last.
    pub applied_seq: Seq,
    /// Links so far.
    pub connects: u64,
    /// The process at the other end of the link.
    process: u64,
    /// When that acknowledged last, in nanoseconds of the shard's clock.
    heard_ns: u64,
    /// The same, of its hello, and of one that takes a snapshot: those acknowledge nothing.
    greeted_ns: u64,
    /// Since when nobody serves it.
    idle_since_ns: u64,
}

/// What is left of positions in a log that ends at `end`.
fn up_to(at: SlotPositions, end: Lsn) -> SlotPositions {
    let SlotPositions { received, flushed, applied } = at;
    SlotPositions { received: received.min(end), flushed: flushed.min(end), applied: applied.min(end) }
}

impl Slot {
    fn new(name: NodeName, kind: Kind, restart: Lsn, now_ns: u64) -> Self {
        Self {
            name,
            kind,
            lost: None,
            leaving: false,
            link: None,
            sent: Lsn::ZERO,
            at: SlotPositions::default(),
            vouched: SlotPositions::default(),
            began: Lsn::ZERO,
            restart,
            below: Lsn(u64::MAX),
            progress: None,
            applied_seq: Seq(0),
            connects: 0,
            process: 0,
            heard_ns: 0,
            greeted_ns: 0,
            idle_since_ns: now_ns,
        }
    }

    /// Whether it holds log and may be served.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.lost.is_none()
    }

    /// When its replica acknowledged last, in nanoseconds of the shard's clock; 0 if never.
    #[must_use]
    pub const fn heard_ns(&self) -> u64 {
        self.heard_ns
    }

    /// How long nobody has served it, in nanoseconds; 0 while somebody does.
    #[must_use]
    pub fn idle_ns(&self, now_ns: u64) -> u64 {
        if self.link.is_some() { 0 } else { now_ns.saturating_sub(self.idle_since_ns) }
    }

    /// No link serves it since then; what its replica held in memory only is gone with that.
    fn unlink(&mut self, idle_since_ns: u64) {
        (self.link, self.progress, self.idle_since_ns) = (None, None, idle_since_ns);
        (self.at.received, self.vouched.received) = (self.at.flushed, self.vouched.flushed);
    }

    /// What the superblock says of it.
    fn entry(&self) -> Option<SlotEntry> {
        let kind = match self.kind {
            Kind::Configured if self.leaving => return None,
            Kind::Configured => SlotKind::Configured,
            Kind::Made => SlotKind::Made,
            Kind::Temporary => return None,
        };
        Some(SlotEntry { name: self.name, restart_lsn: self.restart, kind, lost: self.lost })
    }
}

/// A slot that is valid no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Lost {
    /// Whose.
    pub name: NodeName,
    /// Why.
    pub cause: SlotLoss,
    /// What it held the log from.
    pub restart: Lsn,
}

/// Why a slot cannot be made or removed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SlotError {
    /// It is no name.
    #[error("{0:?} is no slot name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// There is a valid one of that name.
    #[error("slot {0} is there already")]
    Exists(NodeName),
    /// There is none of that name.
    #[error("there is no slot {0}")]
    Unknown(NodeName),
    /// As many slots as there may be exist.
    #[error("a shard has at most {SLOTS_MAX} slots: remove one")]
    TooMany,
    /// A configured replica's slot cannot be temporary.
    #[error("{0} is a configured replica: its slot cannot be temporary")]
    NotTemporary(NodeName),
    /// The node is a replica, was deposed, or has stopped.
    #[error("slots are a primary's, and this node's shard is none that serves: {0}")]
    NotServing(String),
}

/// The slots of one shard. A slot keeps its number as long as it exists.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(Hash))]
pub struct Slots {
    all: Vec<Option<Slot>>,
}

impl Slots {
    /// The slots of configured replicas over a log that begins at `oldest`, with what an earlier
    /// reign has `saved` of them. `trusted` is whether its positions may still be believed: not
    /// after others have reigned in between. The names of those that are configured no more, and
    /// so are gone, come second.
    #[must_use]
    pub fn new(
        configured: &[NodeName],
        saved: &[SlotEntry],
        trusted: bool,
        oldest: Lsn,
        now_ns: u64,
    ) -> (Self, Vec<NodeName>) {
        let restart = |s: &SlotEntry| if trusted { s.restart_lsn.max(oldest) } else { oldest };
        let load = |name: NodeName, kind: Kind| match saved.iter().find(|s| s.name == name) {
            None => Slot::new(name, kind, oldest, now_ns),
            Some(s @ SlotEntry { lost: None, .. }) => Slot::new(name, kind, restart(s), now_ns),
            Some(s) => Slot { lost: s.lost, ..Slot::new(name, kind, s.restart_lsn, now_ns) },
        };
        let mut all: Vec<_> = configured.iter().map(|name| Some(load(*name, Kind::Configured))).collect();
        let mut gone = Vec::new();
        for s in saved.iter().filter(|s| !configured.contains(&s.name)) {
            match s.kind {
                SlotKind::Made if all.len() < SLOTS_MAX => all.push(Some(load(s.name, Kind::Made))),
                _ => gone.push(s.name),
            }
        }
        (Self { all }, gone)
    }

    /// The slots of configured replicas of whom nothing is known.
    #[must_use]
    pub fn fresh(configured: &[NodeName]) -> Self {
        Self::new(configured, &[], false, Lsn::ZERO, 0).0
    }

    /// The slots of configured replicas.
    pub fn configured(&self) -> impl Iterator<Item = (usize, &Slot)> + Clone {
        self.iter().filter(|(_, s)| s.kind == Kind::Configured)
    }

    /// A slot.
    #[must_use]
    pub fn get(&self, slot: usize) -> Option<&Slot> {
        self.all.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.all.get_mut(slot)?.as_mut()
    }

    /// Every slot with its number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Slot)> + Clone {
        self.all.iter().enumerate().filter_map(|(n, s)| Some((n, s.as_ref()?)))
    }

    /// The slot of a replica.
    #[must_use]
    pub fn of(&self, name: NodeName) -> Option<usize> {
        self.iter().find(|(_, s)| s.name == name).map(|(n, _)| n)
    }

    /// Configured replicas with a link.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.configured().filter(|(_, s)| s.link.is_some()).count()
    }

    /// Whether a link serves a slot.
    #[must_use]
    pub fn is_served_by(&self, slot: usize, link: u64) -> bool {
        self.get(slot).is_some_and(|s| s.link == Some(link))
    }

    /// Why a process may not serve a slot now, if so. A link of the same process is replaced; one
    /// of another process only if that is dead: it has said nothing for three heartbeats.
    #[must_use]
    pub fn refusal(&self, slot: usize, process: u64, now_ns: u64) -> Option<Refusal> {
        let Some(s) = self.get(slot) else { return Some(Refusal::SlotRemoved) };
        if let Some(cause) = s.lost {
            return Some(refusal_of(cause));
        }
        let same = process != 0 && process == s.process;
        let silent = now_ns.saturating_sub(s.heard_ns.max(s.greeted_ns)) > 3 * limits::HEARTBEAT.as_nanos() as u64;
        (s.link.is_some() && !same && !silent).then_some(Refusal::SlotInUse)
    }

    /// A link begins to serve a slot from `from`, where the replica's device ends. `durable` is what
    /// the primary's own device holds. Returns the link that it replaces.
    ///
    /// # Panics
    /// If there is no such slot, or it is lost.
    pub(super) fn attach(
        &mut self,
        slot: usize,
        (link, process): (u64, u64),
        from: Lsn,
        durable: Lsn,
        now_ns: u64,
    ) -> Option<u64> {
        let s = self.all[slot].as_mut().expect("a link serves a slot that is there");
        assert!(s.is_valid(), "a link serves a lost slot");
        (s.sent, s.restart, s.process, s.greeted_ns) = (from, from.min(durable), process, now_ns);
        (s.began, s.progress) = (from, None);
        s.connects += 1;
        s.at = SlotPositions { received: from, flushed: from, applied: s.at.applied.min(from) };
        s.vouched = up_to(s.vouched, from);
        s.vouched.received = s.vouched.flushed;
        s.link.replace(link)
    }

    /// A link begins to send a snapshot: the slot is in use, and no position of it changes.
    pub(super) fn stage(&mut self, slot: usize, (link, process): (u64, u64), now_ns: u64) {
        if let Some(s) = self.get_mut(slot) {
            (s.link, s.process, s.greeted_ns, s.progress) = (Some(link), process, now_ns, None);
            // No log is under way.
            (s.at.received, s.sent) = (s.at.flushed, s.at.flushed);
            s.connects += 1;
        }
    }

    /// The snapshot that is made for it may stand here: what comes after that is needed.
    pub(super) fn may_go_on_at(&mut self, slot: usize, link: u64, at: Lsn) {
        if let Some(s) = self.get_mut(slot).filter(|s| s.link == Some(link) && s.is_valid()) {
            s.restart = s.restart.min(at);
        }
    }

    /// Where the log goes on behind the snapshot that it sends: nothing before that is needed.
    pub(super) fn goes_on_at(&mut self, slot: usize, link: u64, at: Lsn) {
        if let Some(s) = self.get_mut(slot).filter(|s| s.link == Some(link)) {
            s.restart = s.restart.max(at);
        }
    }

    /// Its replica was heard.
    pub(super) fn on_staged(&mut self, slot: usize, link: u64, now_ns: u64) {
        if let Some(s) = self.get_mut(slot).filter(|s| s.link == Some(link)) {
            s.greeted_ns = now_ns;
        }
    }

    /// It has ended: a slot for one link waits for that link still.
    pub(super) fn unstage(&mut self, slot: usize, link: u64, now_ns: u64) {
        if let Some(s) = self.get_mut(slot).filter(|s| s.link == Some(link)) {
            (s.link, s.idle_since_ns) = (None, now_ns);
        }
    }

    /// The link is gone, and what its replica held in memory only. Says whether it served the slot.
    pub(super) fn detach(&mut self, slot: usize, link: u64, now_ns: u64) -> bool {
        if !self.is_served_by(slot, link) {
            return false;
        }
        let Some(s) = self.get_mut(slot) else { return false };
        s.unlink(now_ns);
        if s.kind == Kind::Temporary {
            self.all[slot] = None;
        }
        true
    }

    /// Its replica asks for a link and may have to ask again: it is not away.
    pub(super) fn is_there(&mut self, slot: usize, now_ns: u64) {
        if let Some(s) = self.get_mut(slot) {
            s.idle_since_ns = now_ns;
        }
    }

    /// Its replica asks for a link anew and has nothing from `end` on, whatever it said on the link before:
    /// that is over.
    pub(super) fn begins_again(&mut self, slot: usize, end: Lsn, now_ns: u64) {
        let Some(s) = self.get_mut(slot) else { return };
        (s.at, s.vouched) = (up_to(s.at, end), up_to(s.vouched, end));
        if s.link.is_some() {
            s.unlink(now_ns);
        }
    }

    /// A replica that asks for a link is going to need the log from `from` on.
    pub(super) fn hold(&mut self, slot: usize, from: Lsn, now_ns: u64) {
        if let Some(s) = self.get_mut(slot).filter(|s| s.is_valid()) {
            s.restart = s.restart.min(from);
        }
        self.is_there(slot, now_ns);
    }

    /// What the link's replica says now, checked by the caller.
    ///
    /// What the primary's own device does not hold yet may be gone after a crash of the primary: the
    /// replica is then cut back to before it, and needs the log from there. So `durable` bounds the
    /// restart LSN.
    pub(super) fn on_ack(&mut self, slot: usize, at: SlotPositions, applied_seq: Seq, durable: Lsn, now_ns: u64) {
        if let Some(s) = self.get_mut(slot) {
            (s.at, s.vouched, s.applied_seq, s.heard_ns) = (at, at, applied_seq, now_ns);
            s.restart = s.restart.max(at.flushed.min(durable));
        }
    }

    /// No link is served any more.
    pub(super) fn let_go_of_links(&mut self) {
        for s in self.all.iter_mut().flatten().filter(|s| s.link.is_some()) {
            // It was served until now, or nearly.
            s.unlink(s.heard_ns.max(s.idle_since_ns));
        }
    }

    /// The log ends at `end` now, on a replica that feeds others: what they have above it may go too,
    /// and then they need the log from there.
    pub(super) fn rewind(&mut self, end: Lsn) {
        self.let_go_of_links();
        self.all.iter_mut().flatten().filter(|s| s.is_valid()).for_each(|s| s.restart = s.restart.min(end));
    }

    /// The log begins at `at` now, on a replica that feeds others, and cannot hold what came before.
    pub(super) fn begin(&mut self, at: Lsn) {
        self.let_go_of_links();
        self.all.iter_mut().flatten().filter(|s| s.is_valid()).for_each(|s| s.restart = s.restart.max(at));
    }

    /// A slot is lost: nothing is kept for it, and its link serves it no more.
    pub(super) fn lose(&mut self, slot: usize, cause: SlotLoss, now_ns: u64) -> Option<Lost> {
        let s = self.get_mut(slot).filter(|s| s.is_valid())?;
        let lost = Lost { name: s.name, cause, restart: s.restart };
        if s.kind == Kind::Temporary {
            self.all[slot] = None;
            return Some(lost);
        }
        (s.lost, s.link, s.progress, s.idle_since_ns) = (Some(cause), None, None, now_ns);
        (s.at, s.vouched, s.below) = (SlotPositions::default(), SlotPositions::default(), Lsn(u64::MAX));
        Some(lost)
    }

    /// Until when at least `n` configured replicas will have acknowledged within `age`: then nothing
    /// more having been heard, it is fewer. 0: it is fewer already, whatever the time.
    #[must_use]
    pub fn fresh_until(&self, n: usize, age: Duration) -> u64 {
        let heard = |(_, s): (usize, &Slot)| (s.is_valid() && s.heard_ns > 0).then_some(s.heard_ns);
        let mut heard: Vec<u64> = self.configured().filter_map(heard).collect();
        if n == 0 {
            return u64::MAX;
        }
        if heard.len() < n {
            return 0;
        }
        let (_, nth, _) = heard.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        // The highest number says that nothing is asked for.
        nth.saturating_add(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)).min(u64::MAX - 1)
    }

    /// Configured replicas that have acknowledged within `age`.
    #[must_use]
    pub fn heard_within(&self, age: Duration, now_ns: u64) -> usize {
        let is_fresh = |s: &Slot| {
            let since = now_ns.saturating_sub(s.heard_ns);
            s.is_valid() && s.heard_ns > 0 && u128::from(since) < age.as_nanos()
        };
        self.configured().filter(|(_, s)| is_fresh(s)).count()
    }

    /// The valid slots that nobody has served for longer than they may wait.
    #[must_use]
    pub fn idle(&self, idle_max: Option<Duration>, now_ns: u64) -> Vec<usize> {
        let is_late = |s: &Slot| {
            let most = match s.kind {
                Kind::Temporary => Some(limits::TEMPORARY_SLOT_WAIT.min(idle_max.unwrap_or(Duration::MAX))),
                _ => idle_max,
            };
            most.is_some_and(|most| u128::from(s.idle_ns(now_ns)) >= most.as_nanos())
        };
        self.iter().filter(|(_, s)| s.is_valid() && s.link.is_none() && is_late(s)).map(|(n, _)| n).collect()
    }

    /// Each valid slot and where it holds the log from: one byte before its restart LSN, so that the
    /// batch before that stays. With it stays the knowledge of the term that ends there, which the
    /// replica may have more of than this log: that is cut, and need not begin anew.
    pub fn holding(&self) -> impl Iterator<Item = (usize, Lsn)> + Clone {
        self.iter().filter(|(_, s)| s.is_valid()).map(|(n, s)| (n, Lsn(s.restart.0.saturating_sub(1))))
    }

    /// Each valid slot whose replica feeds others, and where those need the log from, in the same way.
    pub fn holding_below(&self) -> impl Iterator<Item = (usize, Lsn)> + Clone {
        let fed = self.iter().filter(|(_, s)| s.is_valid() && s.below < Lsn(u64::MAX));
        fed.map(|(n, s)| (n, Lsn(s.below.0.saturating_sub(1))))
    }

    /// What the superblock is to say.
    #[must_use]
    pub fn entries(&self) -> Vec<SlotEntry> {
        self.iter().filter_map(|(_, s)| s.entry()).collect()
    }
}

/// How a replica is refused whose slot was lost.
#[must_use]
pub const fn refusal_of(cause: SlotLoss) -> Refusal {
    match cause {
        SlotLoss::RetentionCap => Refusal::SlotRetentionCap,
        SlotLoss::Idle => Refusal::SlotIdle,
        SlotLoss::Removed => Refusal::SlotRemoved,
        SlotLoss::Diverged => Refusal::SlotDiverged,
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
