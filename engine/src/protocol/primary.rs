//! The primary's side of replication for one shard: slots, what a hello is answered, which acks
//! can be true, and fencing.

use thiserror::Error;
use towline_wire::handshake::{Hello, NodeName, Refusal, Role, Verdict};
use towline_wire::message::Ack;
use towline_wire::{Chain, Lsn, PROTOCOL_VERSION, Seq, ShardId, SystemId, Term};

use super::gate::{CommitGate, SlotPositions};
use super::history::History;

/// What a primary remembers of one configured replica for one shard.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The replica's configured name.
    pub name: NodeName,
    /// The link that serves it, if one does.
    pub link: Option<u64>,
    /// The end of what was handed to the network on this link.
    pub sent: Lsn,
    /// Records applied, as the replica said last.
    pub applied_seq: Seq,
    /// Links so far.
    pub connects: u64,
}

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
    /// The replica follows a newer term: refuse it, and stop to acknowledge anything.
    Deposed,
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
    slots: Vec<Slot>,
    deposed: bool,
}

impl Primary {
    /// A primary with its configured replicas. The gate has as many slots, in the same order.
    #[must_use]
    pub fn new(
        (system, shard, shard_count): (SystemId, ShardId, u32),
        term: Term,
        history: History,
        gate: CommitGate,
        replicas: &[NodeName],
    ) -> Self {
        let slot =
            |name: &NodeName| Slot { name: *name, link: None, sent: Lsn::ZERO, applied_seq: Seq(0), connects: 0 };
        let slots = replicas.iter().map(slot).collect();
        Self { system, shard, shard_count, term, history, gate, slots, deposed: false }
    }

    /// The slots, in the order of configuration.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
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
        self.slots.iter_mut().for_each(|s| s.link = None);
    }

    /// Replicas with a link.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.slots.iter().filter(|s| s.link.is_some()).count()
    }

    /// The slot of a replica.
    #[must_use]
    pub fn slot_of(&self, name: NodeName) -> Option<usize> {
        self.slots.iter().position(|s| s.name == name)
    }

    /// Answers a replica's hello.
    ///
    /// Checks in this order: protocol, system, shard, name, term; then where the two histories
    /// part. The last step compares chains, so that nothing is streamed onto other bytes.
    #[must_use]
    pub fn answer(&mut self, hello: &Hello, log: LogEnds) -> HelloAnswer {
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
        if self.slot_of(hello.name).is_none() {
            return refuse(Refusal::UnknownReplica);
        }
        if hello.term > self.term && !canary!(TermNotChecked) {
            self.depose();
            return HelloAnswer::Deposed;
        }
        if self.deposed {
            return refuse(Refusal::StalePrimary);
        }
        let too_old = HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: log.oldest });
        if hello.end_lsn < log.oldest {
            return too_old;
        }
        if canary!(ChainNotCompared) && hello.end_lsn <= log.tail {
            return HelloAnswer::Verdict(Verdict::Stream { from: hello.end_lsn });
        }
        let Some(common) = self.history.common_end(hello.last_term, log.tail) else {
            // Its last term may be one that ended where this log now begins: the chain tells.
            return if hello.end_lsn == log.oldest { HelloAnswer::NeedChain(hello.end_lsn) } else { too_old };
        };
        if hello.end_lsn > common {
            return match hello.last_term == self.term {
                true => refuse(Refusal::Future),
                false if common < hello.commit_lsn => refuse(Refusal::CutBelowCommit),
                false => HelloAnswer::Verdict(Verdict::Cut { to: common }),
            };
        }
        match hello.end_lsn == log.tail {
            true => HelloAnswer::Verdict(self.answer_with_chain(hello, log.oldest, Some(log.chain))),
            false => HelloAnswer::NeedChain(hello.end_lsn),
        }
    }

    /// The end of [`Primary::answer`]: `chain` is this log's chain at the replica's end, or `None`
    /// if no batch starts there, and `oldest` where the log that is kept begins now.
    #[must_use]
    pub fn answer_with_chain(&self, hello: &Hello, oldest: Lsn, chain: Option<Chain>) -> Verdict {
        if hello.end_lsn < oldest {
            return Verdict::NeedSnapshot { oldest };
        }
        if chain == Some(hello.chain) {
            return Verdict::Stream { from: hello.end_lsn };
        }
        if self.history.may_have_forgotten(hello.last_term) {
            // Where that term ended here is not known, so what both share is not either. Cutting all
            // of it could take what was acknowledged.
            return Verdict::NeedSnapshot { oldest };
        }
        // A term that this history does not have wrote these bytes: all of it must go. That the
        // position is the replica's own end tells it so.
        match self.history.end_of(hello.last_term, Lsn(u64::MAX)) {
            None if hello.end_lsn > Lsn::ZERO => Verdict::Cut { to: hello.end_lsn },
            _ => Verdict::Refused(Refusal::Diverged),
        }
    }

    /// A link begins to serve a slot from the replica's end, which its own recovery made durable:
    /// so that is received and flushed there. Returns the link that it replaces.
    pub fn attach(&mut self, slot: usize, link: u64, from: Lsn) -> Option<u64> {
        let s = &mut self.slots[slot];
        let replaced = s.link.replace(link);
        s.sent = from;
        s.connects += 1;
        let applied = self.gate.slot(slot).applied.min(from);
        self.gate.on_ack(slot, SlotPositions { received: from, flushed: from, applied });
        replaced
    }

    /// The link is gone. What the replica held in memory only counts no more; what it flushed does.
    pub fn detach(&mut self, slot: usize, link: u64) {
        if self.slots[slot].link != Some(link) {
            return;
        }
        self.slots[slot].link = None;
        let at = self.gate.slot(slot);
        self.gate.on_ack(slot, SlotPositions { received: at.flushed, ..at });
    }

    /// Bytes up to `sent` were handed to the network.
    pub fn on_sent(&mut self, slot: usize, link: u64, sent: Lsn) {
        let s = &mut self.slots[slot];
        if s.link == Some(link) {
            assert!(sent >= s.sent, "sent went back");
            s.sent = sent;
        }
    }

    /// A replica's ack. Moves the gate if it can be true.
    ///
    /// # Errors
    /// Why it cannot be true.
    pub fn on_ack(&mut self, slot: usize, link: u64, ack: &Ack) -> Result<(), AckViolation> {
        let s = &mut self.slots[slot];
        if s.link != Some(link) {
            return Err(AckViolation::NotTheLink);
        }
        if ack.received > s.sent && !canary!(AckAboveSentTaken) {
            return Err(AckViolation::AboveSent { acked: ack.received, sent: s.sent });
        }
        let before = self.gate.slot(slot);
        // `applied` may begin anywhere on a new link: the handler says where it stands.
        if ack.received < before.received || ack.flushed < before.flushed {
            return Err(AckViolation::WentBack);
        }
        assert!(s.sent >= ack.received || canary!(AckAboveSentTaken));
        assert!(ack.received >= ack.flushed && ack.flushed >= ack.applied);
        s.applied_seq = ack.applied_seq;
        let now = SlotPositions { received: ack.received, flushed: ack.flushed, applied: ack.applied };
        self.gate.on_ack(slot, now);
        Ok(())
    }

    /// The lowest position that a configured replica still needs.
    #[must_use]
    pub fn lowest_slot(&self) -> Option<Lsn> {
        (0..self.slots.len()).map(|s| self.gate.slot(s).flushed).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::policy::Requirement;
    use towline_wire::handshake::FEATURES;
    use towline_wire::message::AckLevel;

    const SYSTEM: SystemId = SystemId([5; 16]);

    fn primary() -> Primary {
        let mut history = History::default();
        history.begin(Term(1), Lsn(0));
        history.begin(Term(3), Lsn(8192));
        history.begin(Term(4), Lsn(20480));
        let need = Requirement { replicas: 1, level: AckLevel::Flushed };
        let gate = CommitGate::new(need, 2, Lsn(40960), Lsn(0));
        let names = [NodeName::new("r1").unwrap(), NodeName::new("r2").unwrap()];
        Primary::new((SYSTEM, ShardId(0), 1), Term(4), history, gate, &names)
    }

    fn log() -> LogEnds {
        LogEnds { oldest: Lsn(4096), tail: Lsn(40960), chain: Chain(77) }
    }

    fn hello(last_term: u64, end: u64, chain: u64) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            role: Role::Replica,
            shard: ShardId(0),
            features: FEATURES,
            system: SYSTEM,
            term: Term(last_term),
            last_term: Term(last_term),
            end_lsn: Lsn(end),
            chain: Chain(chain),
            commit_lsn: Lsn(0),
            name: NodeName::new("r1").unwrap(),
        }
    }

    fn refused(cause: Refusal) -> HelloAnswer {
        HelloAnswer::Verdict(Verdict::Refused(cause))
    }

    #[test]
    fn a_hello_that_does_not_belong_is_refused_with_its_cause() {
        let mut p = primary();
        let ask = |p: &mut Primary, h: Hello| p.answer(&h, log());
        let h = hello(4, 40960, 77);
        assert_eq!(ask(&mut p, Hello { protocol: 2, ..h }), refused(Refusal::Protocol));
        assert_eq!(ask(&mut p, Hello { system: SystemId([6; 16]), ..h }), refused(Refusal::ForeignSystem));
        assert_eq!(ask(&mut p, Hello { system: SystemId::NONE, ..h }), refused(Refusal::ForeignSystem));
        assert_eq!(ask(&mut p, Hello { shard: ShardId(1), ..h }), refused(Refusal::NoSuchShard));
        let stranger = NodeName::new("r3").unwrap();
        assert_eq!(ask(&mut p, Hello { name: stranger, ..h }), refused(Refusal::UnknownReplica));
        assert_eq!(ask(&mut p, hello(4, 45056, 1)), refused(Refusal::Future));
        assert_eq!(ask(&mut p, hello(4, 40960, 78)), refused(Refusal::Diverged));
        assert!(!p.is_deposed());
    }

    #[test]
    fn a_newer_term_deposes_the_primary_for_good() {
        let mut p = primary();
        let newer = Hello { term: Term(5), ..hello(4, 40960, 77) };
        assert_eq!(p.answer(&newer, log()), HelloAnswer::Deposed);
        assert!(p.is_deposed());
        assert_eq!(p.connected(), 0);
        // Acks of links that are still open move nothing any more.
        let committed = p.gate.commit();
        p.attach(1, 1, Lsn(40960));
        p.gate.on_durable(Lsn(45056));
        p.gate.complete(|_, _| panic!("a deposed primary finishes no commit"));
        assert_eq!(p.gate.commit(), committed);
        assert_eq!(p.answer(&hello(4, 40960, 77), log()), refused(Refusal::StalePrimary));
    }

    #[test]
    fn too_old_and_in_the_future_are_different_answers() {
        let mut p = primary();
        let oldest = Lsn(4096);
        assert_eq!(p.answer(&hello(0, 0, 0), log()), HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest }));
        assert_eq!(p.answer(&hello(4, 45056, 0), log()), refused(Refusal::Future));
    }

    #[test]
    fn a_replica_that_ends_where_the_kept_log_begins_is_served_although_its_term_is_forgotten() {
        let mut p = primary();
        p.history.trim(Lsn(20480));
        let log = LogEnds { oldest: Lsn(20480), ..log() };
        let h = hello(3, 20480, 9);
        assert_eq!(p.answer(&h, log), HelloAnswer::NeedChain(Lsn(20480)));
        assert_eq!(p.answer_with_chain(&h, log.oldest, Some(Chain(9))), Verdict::Stream { from: Lsn(20480) });
        let h = hello(3, 16384, 9);
        assert_eq!(p.answer(&h, log), HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: Lsn(20480) }));
    }

    #[test]
    fn a_term_that_may_be_forgotten_is_not_taken_for_one_that_never_was() {
        let mut p = primary();
        p.history.trim(Lsn(20480));
        let snapshot = Verdict::NeedSnapshot { oldest: Lsn(20480) };
        // Term 3 was here, and the replica's log parts from this one's somewhere in it.
        let h = hello(3, 20480, 10);
        assert_eq!(p.answer_with_chain(&h, Lsn(20480), Some(Chain(9))), snapshot);
        // After a restart, which reads only what is kept, all the same.
        p.history = History::from_entries(p.history.entries().to_vec());
        assert_eq!(p.answer_with_chain(&h, Lsn(20480), Some(Chain(9))), snapshot);
        // What was let go of while the chain was read is not kept either.
        assert_eq!(
            p.answer_with_chain(&hello(4, 24576, 1), Lsn(28672), None),
            Verdict::NeedSnapshot { oldest: Lsn(28672) }
        );
    }

    #[test]
    fn a_tail_that_only_the_replica_has_is_cut_where_the_histories_part() {
        let mut p = primary();
        let cut = |to| HelloAnswer::Verdict(Verdict::Cut { to: Lsn(to) });
        assert_eq!(p.answer(&hello(3, 24576, 0), log()), cut(20480));
        assert_eq!(p.answer(&hello(1, 12288, 0), log()), cut(8192));
        // Known to be committed on the replica: never cut.
        let h = Hello { commit_lsn: Lsn(24576), ..hello(3, 24576, 0) };
        assert_eq!(p.answer(&h, log()), refused(Refusal::CutBelowCommit));
        // Term 2 never was: its bytes go, although the position is inside this log.
        let h = hello(2, 8192, 5);
        assert_eq!(p.answer(&h, log()), HelloAnswer::NeedChain(Lsn(8192)));
        assert_eq!(p.answer_with_chain(&h, log().oldest, Some(Chain(6))), Verdict::Cut { to: Lsn(8192) });
        assert_eq!(p.answer_with_chain(&h, log().oldest, Some(Chain(5))), Verdict::Stream { from: Lsn(8192) });
        // Same term, same LSN, other bytes: laws are broken somewhere; refuse.
        let h = hello(3, 12288, 5);
        assert_eq!(p.answer_with_chain(&h, log().oldest, None), Verdict::Refused(Refusal::Diverged));
    }

    #[test]
    fn an_ack_above_sent_or_from_another_link_never_counts() {
        let mut p = primary();
        assert_eq!(p.attach(0, 1, Lsn(20480)), None);
        assert_eq!(p.gate.commit(), Lsn(20480));
        let ack = |received, flushed| Ack { received: Lsn(received), flushed: Lsn(flushed), ..Ack::default() };
        assert_eq!(
            p.on_ack(0, 1, &ack(24576, 24576)),
            Err(AckViolation::AboveSent { acked: Lsn(24576), sent: Lsn(20480) })
        );
        p.on_sent(0, 1, Lsn(28672));
        assert_eq!(p.on_ack(0, 2, &ack(24576, 24576)), Err(AckViolation::NotTheLink));
        assert_eq!(p.on_ack(0, 1, &ack(24576, 24576)), Ok(()));
        assert_eq!(p.on_ack(0, 1, &ack(24576, 20480)), Err(AckViolation::WentBack));
        assert_eq!(p.gate.commit(), Lsn(24576));
        assert_eq!(p.attach(0, 2, Lsn(24576)), Some(1), "a newer link replaces the one before");
    }

    #[test]
    fn what_a_lost_replica_had_only_received_counts_no_more() {
        let mut p = primary();
        p.attach(0, 1, Lsn(20480));
        p.on_sent(0, 1, Lsn(40960));
        let ack = Ack { received: Lsn(40960), flushed: Lsn(24576), ..Ack::default() };
        p.on_ack(0, 1, &ack).unwrap();
        assert_eq!(p.gate.acks(AckLevel::Received, Lsn(40960)), 1);
        p.detach(0, 1);
        assert_eq!(p.gate.acks(AckLevel::Received, Lsn(40960)), 0);
        assert_eq!(p.gate.acks(AckLevel::Flushed, Lsn(24576)), 1);
        assert_eq!(p.lowest_slot(), Some(Lsn(0)));
    }
}
