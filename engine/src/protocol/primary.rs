//! The primary's side of replication for one shard: what a hello is answered, which acks can be
//! true, what lost slots mean for commits, and fencing.

use std::time::Duration;

use thiserror::Error;
use towline_wire::handshake::{FEATURE_BEGIN, FEATURE_SNAPSHOT, Hello, NodeName, Refusal, Role, Verdict};
use towline_wire::message::Ack;
use towline_wire::superblock::{Base, SlotLoss};
use towline_wire::{BLOCK, Chain, Lsn, PROTOCOL_VERSION, ShardId, SystemId, Term};

use super::gate::{CommitGate, SlotPositions};
use super::history::History;
use super::policy::Requirement;
use super::progress::Progress;
use super::slots::{Lost, SlotError, Slots};

/// The ends of the primary's log.
#[derive(Clone, Copy, Debug)]
pub struct LogEnds {
    /// Where the log that is kept begins.
    pub oldest: Lsn,
    /// The end of the last closed batch.
    pub tail: Lsn,
    /// The chain up to there.
    pub chain: Chain,
}

/// What a replica's hello is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloAnswer {
    /// This.
    Verdict(Verdict),
    /// It depends on the chain at this LSN, inside the log: read the batch header there, then call
    /// [`Primary::answer_with_chain`].
    NeedChain(Lsn),
    /// It may begin its log at this LSN, the oldest that is kept, which its slot holds from now on:
    /// read what came before it, then call [`Primary::answer_begin`].
    NeedBase(Lsn),
    /// It is to take a snapshot, with this verdict; its slot holds the log from the oldest batch on from
    /// now on.
    Snapshot(Verdict),
    /// The replica follows a newer term: refuse it, and stop to acknowledge anything.
    Deposed,
}

/// Up to where a link may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaySend {
    /// Where the first batch may end.
    pub first: Lsn,
    /// Where those after it may end.
    pub more: Lsn,
}

/// An ack that cannot be true. The link is closed; the ack counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AckViolation {
    /// The link is not the one that serves the slot.
    #[error("the link does not serve this slot")]
    NotTheLink,
    /// It acknowledges what was never sent.
    #[error("it acknowledges up to {acked}, only {sent} was sent")]
    AboveSent {
        /// What it acknowledges.
        acked: Lsn,
        /// What was sent.
        sent: Lsn,
    },
    /// A position went back.
    #[error("a position went back")]
    WentBack,
}

/// One shard's primary.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub struct Primary {
    /// The cluster's log.
    pub system: SystemId,
    /// The shard.
    pub shard: ShardId,
    /// Shards of the system.
    pub shard_count: u32,
    /// This reign.
    pub term: Term,
    /// Where terms began.
    pub history: History,
    /// The commit gate.
    pub gate: CommitGate,
    /// Whether the embedder makes snapshots.
    pub makes_snapshots: bool,
    slots: Slots,
    /// Slots that were lost, and of which nobody was told yet.
    lost: Vec<Lost>,
    deposed: bool,
}

impl Primary {
    /// A primary with its slots. Those of configured replicas come first, and the gate has as many.
    #[must_use]
    pub fn new(
        (system, shard, shard_count): (SystemId, ShardId, u32),
        term: Term,
        history: History,
        gate: CommitGate,
        slots: Slots,
    ) -> Self {
        Self {
            system,
            shard,
            shard_count,
            term,
            history,
            gate,
            makes_snapshots: false,
            slots,
            lost: Vec::new(),
            deposed: false,
        }
    }

    /// The slots.
    #[must_use]
    pub const fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) const fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Whether a newer term was seen: nothing is acknowledged any more.
    #[must_use]
    pub const fn is_deposed(&self) -> bool {
        self.deposed
    }

    /// A newer term was seen: no commit is finished any more, and no link is served.
    pub fn depose(&mut self) {
        self.deposed = true;
        self.gate.freeze();
        self.slots.let_go_of_links();
    }

    /// Answers a replica's hello.
    ///
    /// Checks in this order: protocol, system, shard, name, term, slot; then where the two histories
    /// part. The last step compares chains, so that nothing is streamed onto other bytes.
    #[must_use]
    pub fn answer(&mut self, hello: &Hello, log: LogEnds, now_ns: u64) -> HelloAnswer {
        let refuse = |cause| HelloAnswer::Verdict(Verdict::Refused(cause));
        assert!(hello.role == Role::Replica);
        if hello.protocol != PROTOCOL_VERSION {
            return refuse(Refusal::Protocol);
        }
        let fresh = hello.system.is_none() && hello.end_lsn == Lsn::ZERO;
        if hello.system != self.system && !fresh {
            return refuse(Refusal::ForeignSystem);
        }
        if hello.shard.0 >= self.shard_count {
            return refuse(Refusal::NoSuchShard);
        }
        let Some(slot) = self.slots.of(hello.name) else { return refuse(Refusal::UnknownReplica) };
        if hello.term > self.term && !canary!(TermNotChecked) {
            self.depose();
            return HelloAnswer::Deposed;
        }
        if self.deposed {
            return refuse(Refusal::StalePrimary);
        }
        if let Some(cause) = self.slots.refusal(slot, hello.process, now_ns) {
            return refuse(cause);
        }
        // Its folder may be another one by now, or its log one that it is going to give up.
        let begins = hello.end_lsn < log.oldest || has_begun_empty(hello);
        if !canary!(GoneStillCounts) {
            self.slots.begins_again(slot, if begins { Lsn::ZERO } else { hello.end_lsn }, now_ns);
            self.tell_gate(slot);
        }
        // From where a newer term began on this log has nothing of the replica's last term.
        if self.history.newer_begins(hello.last_term) < hello.commit_lsn && hello.last_term > Term::ZERO {
            self.slots.is_there(slot, now_ns);
            return refuse(Refusal::CutBelowCommit);
        }
        if hello.end_lsn < log.oldest && hello.features & FEATURE_BEGIN != 0 {
            self.slots.hold(slot, log.oldest, now_ns);
            return HelloAnswer::NeedBase(log.oldest);
        }
        if hello.end_lsn < log.oldest && hello.features & FEATURE_SNAPSHOT != 0 && self.makes_snapshots {
            // Where the state is going to stand. All that is kept may be more than the cap lets one slot hold.
            self.slots.hold(slot, self.gate.commit().max(log.oldest), now_ns);
            return HelloAnswer::Snapshot(Verdict::Snapshot { oldest: log.oldest, known: self.knows(hello) });
        }
        if hello.end_lsn < log.oldest {
            return HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: log.oldest });
        }
        if has_begun_empty(hello) {
            // It vouches for what it never held: nobody may be waiting for that.
            return match hello.end_lsn {
                end if end > log.tail => refuse(Refusal::CutBelowCommit),
                end if self.gate.waits_up_to(end) && !canary!(BegunCountsForAll) => {
                    self.slots.is_there(slot, now_ns);
                    refuse(Refusal::Busy)
                }
                end if end == log.tail => {
                    HelloAnswer::Verdict(self.answer_with_chain(hello, log.oldest, Some(log.chain), now_ns))
                }
                end => HelloAnswer::NeedChain(end),
            };
        }
        if canary!(ChainNotCompared) && hello.end_lsn <= log.tail {
            return HelloAnswer::Verdict(Verdict::Stream { from: hello.end_lsn });
        }
        let common = match self.history.common_end(hello.last_term, log.tail) {
            Some(common) => common,
            // What is kept from `newer` on is of newer terms: the replica's tail behind it is not in this log.
            // In front of that its last term may be one that is forgotten: the chain tells.
            None => match self.history.newer_begins(hello.last_term).max(log.oldest) {
                newer if hello.end_lsn <= newer => return HelloAnswer::NeedChain(hello.end_lsn),
                newer => newer,
            },
        };
        if hello.end_lsn > common {
            return match hello.last_term == self.term {
                true => refuse(Refusal::Future),
                false if common < hello.commit_lsn => refuse(Refusal::CutBelowCommit),
                false => HelloAnswer::Verdict(Verdict::Cut { to: common }),
            };
        }
        match hello.end_lsn == log.tail {
            true => HelloAnswer::Verdict(self.answer_with_chain(hello, log.oldest, Some(log.chain), now_ns)),
            false => HelloAnswer::NeedChain(hello.end_lsn),
        }
    }

    /// The end of [`Primary::answer`]: `chain` is this log's chain at the replica's end, or `None`
    /// if no batch starts there, and `oldest` where the log that is kept begins now.
    #[must_use]
    pub fn answer_with_chain(&mut self, hello: &Hello, oldest: Lsn, chain: Option<Chain>, now_ns: u64) -> Verdict {
        if hello.end_lsn < oldest {
            // The log was let go of up to there since it was asked: who comes again is told what to do.
            return Verdict::Refused(Refusal::Busy);
        }
        if chain == Some(hello.chain) {
            return Verdict::Stream { from: hello.end_lsn };
        }
        if has_begun_empty(hello) {
            // What is before its beginning was committed once.
            return Verdict::Refused(Refusal::CutBelowCommit);
        }
        if self.history.may_have_forgotten(hello.last_term, oldest) {
            // It knows its last batch to be committed, and this log holds other bytes there.
            if hello.commit_lsn >= hello.end_lsn {
                return Verdict::Refused(Refusal::CutBelowCommit);
            }
            // Where that term ended here is not known, so what both share is not either. Cutting all
            // of it could take what was acknowledged. Its last batch is not in this log, and goes; at the
            // oldest only if the replica can begin anew, as it ends before that then.
            let to = Lsn(hello.end_lsn.0.saturating_sub(BLOCK as u64));
            let begins = hello.features & (FEATURE_BEGIN | FEATURE_SNAPSHOT) != 0;
            return match (begins || hello.end_lsn > oldest) && to >= hello.commit_lsn {
                true => Verdict::Cut { to },
                false => Verdict::NeedSnapshot { oldest },
            };
        }
        // A term that this history does not have wrote these bytes: all of it must go. That the
        // position is the replica's own end tells it so.
        match self.history.end_of(hello.last_term, Lsn(u64::MAX)) {
            None if hello.end_lsn > Lsn::ZERO => Verdict::Cut { to: hello.end_lsn },
            _ => {
                // It can never go on from there: nothing is to be kept for it.
                if let Some(slot) = self.slots.of(hello.name).filter(|s| !self.is_served(*s)) {
                    self.lose(slot, SlotLoss::Diverged, now_ns);
                }
                Verdict::Refused(Refusal::Diverged)
            }
        }
    }

    /// The end of [`Primary::answer`] for a replica that begins its log at `at`: `base` is what came before
    /// there, or `None` if that cannot be told now. Of a log that is now kept from further on, it cannot.
    #[must_use]
    pub fn answer_begin(&self, hello: &Hello, oldest: Lsn, at: Lsn, base: Option<Base>) -> Verdict {
        let Some(base) = base.filter(|_| at >= oldest) else { return Verdict::Refused(Refusal::Busy) };
        Verdict::Begin { at, base, known: self.knows(hello) }
    }

    /// Whether a replica's log is a part of this one, as far as this one remembers.
    fn knows(&self, hello: &Hello) -> bool {
        // One node wrote that term, and went on to where it ended here: so both hold the same up to there.
        let ended = self.history.end_of(hello.last_term, Lsn(u64::MAX));
        ended.is_some_and(|end| hello.end_lsn <= end)
    }

    /// A link begins to send a slot's replica a snapshot. What the replica has stays what it was.
    ///
    /// # Errors
    /// Why it may not.
    pub fn stage(&mut self, slot: usize, link: u64, process: u64, now_ns: u64) -> Result<(), Refusal> {
        if self.deposed {
            return Err(Refusal::StalePrimary);
        }
        if let Some(cause) = self.slots.refusal(slot, process, now_ns) {
            return Err(cause);
        }
        self.slots.stage(slot, (link, process), now_ns);
        Ok(())
    }

    /// The embedder's state that this link is going to send stands at `at`, which may not be committed yet, in
    /// a log that is kept from `oldest` on: the slot holds what comes after it.
    pub fn may_go_on_at(&mut self, slot: usize, link: u64, at: Lsn, oldest: Lsn) {
        self.slots.may_go_on_at(slot, link, at.max(oldest));
    }

    /// The snapshot that this link sends stands at `at`, which is committed: the slot holds the log from there.
    pub fn goes_on_at(&mut self, slot: usize, link: u64, at: Lsn) {
        self.slots.goes_on_at(slot, link, at);
    }

    /// The replica that takes a snapshot on this link was heard.
    pub fn on_staged(&mut self, slot: usize, link: u64, now_ns: u64) {
        self.slots.on_staged(slot, link, now_ns);
    }

    /// The link sends a snapshot no more.
    pub fn unstage(&mut self, slot: usize, link: u64, now_ns: u64) {
        self.slots.unstage(slot, link, now_ns);
    }

    fn is_served(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|s| s.link.is_some())
    }

    /// Tells the gate what a slot's replica has, if it counts.
    fn tell_gate(&mut self, slot: usize) {
        let at = self.slots.get(slot).map_or(SlotPositions::default(), |s| s.vouched);
        self.gate.on_ack(slot, at);
    }

    /// These replicas are to be configured; the log goes back to `oldest` for those that are new. The
    /// superblock is to say so before [`Primary::configure`], and commits are judged by those that
    /// were configured until then.
    ///
    /// # Errors
    /// Why not.
    pub fn prepare(&mut self, names: &[NodeName], oldest: Lsn, now_ns: u64) -> Result<(), SlotError> {
        if self.deposed {
            return Err(SlotError::NotServing("it was deposed".into()));
        }
        self.slots.prepare(names, oldest, now_ns)
    }

    /// What was prepared is on the device: from now on every commit is judged by these replicas,
    /// those that wait already too, and `default` is what a commit waits for that does not say. Who
    /// left is served no more.
    pub fn configure(&mut self, default: Requirement, now_ns: u64) {
        self.lost.extend(self.slots.configure(now_ns));
        self.gate.configure(default, self.slots.configured().map(|(n, s)| (n, s.vouched)));
    }

    /// A link begins to serve a slot from the replica's end, which its own recovery made durable:
    /// so that is received and flushed there. It counts for commits once the replica has said so on this
    /// link, which it does at once: its hello may be of a process that has ended meanwhile. Returns the
    /// link that is replaced.
    ///
    /// # Errors
    /// Why it may not: the slot may have been lost, or served by another, since the hello was
    /// answered.
    pub fn attach(
        &mut self,
        slot: usize,
        (link, process): (u64, u64),
        from: Lsn,
        now_ns: u64,
    ) -> Result<Option<u64>, Refusal> {
        if self.deposed {
            return Err(Refusal::StalePrimary);
        }
        if let Some(cause) = self.slots.refusal(slot, process, now_ns) {
            return Err(cause);
        }
        let replaced = self.slots.attach(slot, (link, process), from, self.gate.durable(), now_ns);
        self.tell_gate(slot);
        Ok(replaced)
    }

    /// The link is gone. What the replica held in memory only counts no more; what it flushed does.
    pub fn detach(&mut self, slot: usize, link: u64, now_ns: u64) {
        if self.slots.detach(slot, link, now_ns) {
            self.tell_gate(slot);
        }
    }

    /// A slot is lost: what its replica has counts no more, and its link serves it no more.
    fn lose(&mut self, slot: usize, cause: SlotLoss, now_ns: u64) {
        if let Some(lost) = self.slots.lose(slot, cause, now_ns) {
            self.lost.push(lost);
            if !canary!(LostSlotCounts) {
                self.tell_gate(slot);
            }
        }
    }

    /// Slots are lost that hold more log than may be kept: what [`Limits::recycle`] says.
    ///
    /// [`Limits::recycle`]: super::retention::Limits::recycle
    pub fn lose_for_cap(&mut self, slots: &[usize], now_ns: u64) {
        for slot in slots {
            self.lose(*slot, SlotLoss::RetentionCap, now_ns);
        }
    }

    /// Slots are lost that nobody has served for longer than they may wait.
    pub fn expire_slots(&mut self, idle_max: Option<Duration>, now_ns: u64) {
        for slot in self.slots.idle(idle_max, now_ns) {
            self.lose(slot, SlotLoss::Idle, now_ns);
        }
    }

    /// Makes a slot, or a lost one anew; it holds the log from `oldest` on, and no batch before that is
    /// sure to stay.
    ///
    /// # Errors
    /// Why not.
    pub fn make_slot(&mut self, name: NodeName, temporary: bool, oldest: Lsn, now_ns: u64) -> Result<usize, SlotError> {
        if self.deposed {
            return Err(SlotError::NotServing("it was deposed".into()));
        }
        self.slots.make(name, temporary, oldest, now_ns)
    }

    /// Removes a slot. A configured replica's is refused from then on, until its slot is made anew.
    ///
    /// # Errors
    /// Why not.
    pub fn remove_slot(&mut self, name: NodeName, now_ns: u64) -> Result<(), SlotError> {
        let (slot, lost) = self.slots.remove(name, now_ns)?;
        self.lost.extend(lost);
        self.tell_gate(slot);
        Ok(())
    }

    /// The slots that were lost since this was asked last: to be told, counted, and remembered.
    #[must_use]
    pub fn take_lost(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.lost)
    }

    /// Up to where a slot's link may send now, of a log that ends at `tail`: what was sent and not
    /// acknowledged as received stays within `window` bytes, or is one batch.
    #[must_use]
    pub fn may_send(&self, slot: usize, tail: Lsn, window: u64) -> MaySend {
        let Some(s) = self.slots.get(slot) else { return MaySend { first: Lsn::ZERO, more: Lsn::ZERO } };
        let received = if canary!(WindowNotReturned) { s.began } else { s.at.received };
        let more = tail.min(Lsn(received.0.saturating_add(window)));
        MaySend { first: if s.sent <= received { tail } else { more }, more }
    }

    /// A slot's link sends what it read from disk, which was closed at `time_us`; or, without a time,
    /// from memory again. The log ends at `tail`.
    pub fn on_catch_up(&mut self, slot: usize, time_us: Option<u64>, tail: Lsn, now_ns: u64) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        let has = s.at.flushed;
        match time_us {
            None => s.progress = None,
            Some(at) => {
                s.progress.get_or_insert_with(|| Progress::new(has, tail, now_ns)).on_sent(has, tail, at, now_ns);
            }
        }
    }

    /// Bytes up to `sent` were handed to the network.
    pub fn on_sent(&mut self, slot: usize, link: u64, sent: Lsn) {
        if let Some(s) = self.slots.get_mut(slot).filter(|s| s.link == Some(link)) {
            assert!(sent >= s.sent, "sent went back");
            s.sent = sent;
        }
    }

    /// A replica's ack. Moves the gate if it can be true.
    ///
    /// # Errors
    /// Why it cannot be true.
    pub fn on_ack(&mut self, slot: usize, link: u64, ack: &Ack, now_ns: u64) -> Result<(), AckViolation> {
        let Some(s) = self.slots.get(slot).filter(|s| s.link == Some(link)) else {
            return Err(AckViolation::NotTheLink);
        };
        if ack.received > s.sent && !canary!(AckAboveSentTaken) {
            return Err(AckViolation::AboveSent { acked: ack.received, sent: s.sent });
        }
        // `applied` may begin anywhere on a new link: the handler says where it stands.
        if ack.received < s.at.received || ack.flushed < s.at.flushed {
            return Err(AckViolation::WentBack);
        }
        assert!(s.sent >= ack.received || canary!(AckAboveSentTaken));
        assert!(ack.received >= ack.flushed && ack.flushed >= ack.applied);
        let now = SlotPositions { received: ack.received, flushed: ack.flushed, applied: ack.applied };
        self.slots.on_ack(slot, now, ack.applied_seq, self.gate.durable(), now_ns);
        self.tell_gate(slot);
        Ok(())
    }

    /// With its ack a replica says that those it feeds need the log from so many bytes in front of what
    /// it has flushed. That is kept as far as the cap allows, and moves no commit.
    pub fn on_owed(&mut self, slot: usize, link: u64, bytes: u64) {
        if let Some(s) = self.slots.get_mut(slot).filter(|s| s.link == Some(link)) {
            let from = Lsn(s.at.flushed.0.saturating_sub(bytes));
            s.below = if bytes > 0 { from } else { Lsn(u64::MAX) };
        }
    }
}

/// Whether a replica's log was begun in the middle of the primary's, and has nothing in it yet.
fn has_begun_empty(hello: &Hello) -> bool {
    hello.last_term == Term::ZERO && hello.end_lsn > Lsn::ZERO
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
