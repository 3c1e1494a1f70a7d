//! The primary's end of a link, up to where it streams: a hello and its answer.

use std::rc::Rc;

use towline_wire::frame::FrameKind;
use towline_wire::handshake::{Hello, Refusal, Verdict, Welcome};
use towline_wire::message::{ErrorCode, Heartbeat};
use towline_wire::superblock::Base;
use towline_wire::{Lsn, PROTOCOL_VERSION};

use super::conn::Conn;
use super::feed::Link;
use super::frames::{self, LinkError};
use super::snapshot_out;
use crate::limits;
use crate::protocol::primary::{HelloAnswer, LogEnds};
use crate::protocol::replica::Replica;
use crate::protocol::squeeze::{self, Squeeze};
use crate::rt;
use crate::shard::wal::cursor::{Cursor, position_at};
use crate::shard::wal::keep::LiveSuperblock;
use crate::shard::{Role, Shard};

/// The welcome that this shard gives now.
pub(crate) fn welcome(shard: &Shard, verdict: Verdict) -> Welcome {
    let inner = shard.inner.borrow();
    Welcome {
        protocol: PROTOCOL_VERSION,
        verdict,
        depth: inner.replica_if_any().map_or(0, Replica::depth),
        shard_count: shard.config.shard_count,
        heartbeat_ms: limits::HEARTBEAT.as_millis() as u32,
        system: inner.system,
        features: if shard.config.flow.compress { squeeze::features() } else { 0 },
        term: inner.term(),
        tail: inner.tail(),
        commit_lsn: inner.committed(),
        segment_bytes: shard.config.segment_bytes,
        time_us: rt::wall_us(),
        record_bytes_max: shard.config.record_bytes_max as u64,
    }
}

/// The heartbeat that this shard gives those that it feeds: a replica passes on what it heard of the
/// primary, so that they know how far they are behind that.
pub(super) fn heartbeat_below(shard: &Shard) -> Heartbeat {
    let beat = heartbeat(shard);
    match shard.inner.borrow().replica_if_any().map(Replica::heard) {
        None => beat,
        Some(heard) => Heartbeat { tail: heard.tail, tail_seq: heard.tail_seq, time_us: heard.time_us, ..beat },
    }
}

/// The heartbeat that this shard gives now.
pub(crate) fn heartbeat(shard: &Shard) -> Heartbeat {
    let inner = shard.inner.borrow();
    Heartbeat {
        term: inner.term(),
        tail: inner.tail(),
        tail_seq: inner.next_seq,
        commit_lsn: inner.committed(),
        time_us: rt::wall_us(),
    }
}

/// Sends a welcome; a refusal is followed by its reason in words.
pub(crate) async fn send_welcome(
    shard: &Shard,
    conn: &Conn,
    verdict: Verdict,
    hello: Option<&Hello>,
) -> Result<(), LinkError> {
    let mut payload = welcome(shard, verdict);
    payload.features &= hello.map_or(0, |hello| hello.features);
    if hello.is_some() {
        let beat = heartbeat_below(shard);
        (payload.tail, payload.time_us) = (beat.tail, beat.time_us);
    }
    let payload = payload.to_bytes();
    frames::send(conn, FrameKind::Welcome, 0, 0, &payload).await?;
    let (code, arg, text) = match (verdict, hello) {
        (Verdict::Refused(cause), None) => (ErrorCode::Refused, cause as u64, refusal_text(cause).to_string()),
        (Verdict::Refused(cause), Some(hello)) => {
            let (oldest, end) = {
                let inner = shard.inner.borrow();
                (inner.oldest, inner.tail())
            };
            let text = refusal_text(cause);
            let text =
                format!("{text} (the replica's log ends at {}, this one goes from {oldest} to {end})", hello.end_lsn);
            (ErrorCode::Refused, cause as u64, text)
        }
        (Verdict::NeedSnapshot { oldest }, Some(hello)) => {
            let text = format!("the replica's log ends at {}, the oldest kept here is {oldest}", hello.end_lsn);
            (ErrorCode::TooOld, oldest.0, text)
        }
        _ => return Ok(()),
    };
    frames::send_error(conn, code, arg, &text).await;
    Err(LinkError::Refused(text))
}

/// A refusal in words that say what to do.
pub(crate) const fn refusal_text(cause: Refusal) -> &'static str {
    match cause {
        Refusal::Protocol => "the node speaks another protocol version: use the same release on both sides",
        Refusal::ForeignSystem => "the peer belongs to another system: its folder is another cluster's",
        Refusal::NoSuchShard => "there is no such shard",
        Refusal::UnknownReplica => {
            "the replica's name is not configured on the primary: see `towline ctl replica add` and `towline slot create`, \
             the latter also where a replica is to feed it; or start it with `towline serve --join`"
        }
        Refusal::StalePrimary => "this primary was deposed by a newer one: connect to that one",
        Refusal::Future => {
            "the replica's log is ahead of this primary's in the same term: one of the folders is not what it was"
        }
        Refusal::Diverged => "both logs hold other bytes at the same term and LSN: rebuild the replica from scratch",
        Refusal::Busy => {
            "a limit on connections is reached, a commit is awaited in front of where the replica begins, or a snapshot is made for another replica: try again later"
        }
        Refusal::Stopping => "the node is stopping, or the shard has stopped after an error",
        Refusal::NotPrimary => "the node is a replica: connect to the primary",
        Refusal::CutBelowCommit => {
            "following would cut what the replica knows to be committed: this primary misses acknowledged data"
        }
        Refusal::SlotInUse => {
            "another process serves this replica's name and lives: give each replica a name of its own"
        }
        Refusal::SlotRetentionCap => {
            "the slot was lost (retention cap): the replica was further behind than the primary keeps log for it"
        }
        Refusal::SlotIdle => "the slot was lost (idle): the replica was away for longer than a slot may wait",
        Refusal::SlotRemoved => "the slot was removed",
        Refusal::SlotDiverged => {
            "the slot was lost (diverged): the replica's log held other bytes at the same term and LSN"
        }
        Refusal::Behind => {
            "that replica cannot tell yet: it has not followed its own upstream since it was started, or is behind this one; it is tried again"
        }
        Refusal::TooDeep => {
            "too many replicas feed each other in a row, or they do so in a circle: follow one that is nearer to the primary"
        }
        _ => "refused",
    }
}

/// Serves a replica from its hello to the end of its link.
pub(crate) async fn serve(shard: Rc<Shard>, superblock: Rc<LiveSuperblock>, conn: Rc<Conn>, hello: Hello) {
    let served = run(&shard, &superblock, &conn, &hello).await;
    if shard.is_deposed() && superblock.current().term < hello.term {
        // Remembered, so that this node does not reign again by being started again.
        if let Err(e) = superblock.persist(|s| s.term = s.term.max(hello.term)).await {
            shard.stop(&e.to_string());
        }
    }
    let Err(e) = served else { return };
    tracing::info!(shard = shard.id.0, replica = %hello.name, "link ended: {e}");
    e.end(&conn).await;
}

async fn run(shard: &Rc<Shard>, superblock: &LiveSuperblock, conn: &Rc<Conn>, hello: &Hello) -> Result<(), LinkError> {
    let verdict = decide(shard, superblock, hello).await?;
    if matches!(verdict, Verdict::Snapshot { .. }) {
        return snapshot_out::serve(shard, conn, hello, verdict).await;
    }
    let Verdict::Stream { from } = verdict else {
        // The replica does what it has to and comes back.
        return send_welcome(shard, conn, verdict, Some(hello)).await;
    };
    let number = shard.number_link();
    let (slot, cursor) = match attach(shard, hello, number, from) {
        Ok(attached) => attached,
        Err(instead) => return send_welcome(shard, conn, instead, Some(hello)).await,
    };
    // What the replica holds may let commits through, and a link that it replaces ends: at once, for
    // this one may end before it has begun.
    shard.after_attach();
    if let Err(e) = begin(shard, superblock, conn, hello, (slot, number, from)).await {
        shard.inner.borrow_mut().feeding().detach(slot, number, rt::now_ns());
        return Err(e);
    }
    shard.count(|c| c.connects += 1);
    shard.follows(hello.name);
    tracing::info!(shard = shard.id.0, replica = %hello.name, from = from.0, "link begins");
    let squeeze = Squeeze::new(shard.config.flow.compress, hello.features);
    Link::new(shard, conn, hello.name, (slot, number)).run(cursor, squeeze).await
}

/// Has a link serve its slot, if it still may: the log may have moved on, and the slot may be lost,
/// since the hello was answered. Else returns what to answer instead.
fn attach(shard: &Rc<Shard>, hello: &Hello, number: u64, from: Lsn) -> Result<(usize, Cursor), Verdict> {
    let slot = {
        let mut inner = shard.inner.borrow_mut();
        let oldest = inner.oldest;
        if from < oldest {
            return Err(Verdict::NeedSnapshot { oldest });
        }
        let primary = inner.feeding();
        let slot = primary.slots().of(hello.name).ok_or(Verdict::Refused(Refusal::UnknownReplica))?;
        primary.attach(slot, (number, hello.process), from, rt::now_ns()).map_err(Verdict::Refused)?;
        slot
    };
    Ok((slot, Cursor::new(shard, from)))
}

/// Welcomes a replica whose link serves its slot.
async fn begin(
    shard: &Shard,
    superblock: &LiveSuperblock,
    conn: &Conn,
    hello: &Hello,
    (slot, number, from): (usize, u64, Lsn),
) -> Result<(), LinkError> {
    let saved = superblock.current().slots.iter().find(|s| s.name == hello.name).map(|s| s.restart_lsn);
    if saved.is_some_and(|restart| restart > from) {
        // It needs more than the next start would keep for it.
        if let Err(e) = superblock.persist(|s| s.slots = shard.slot_entries()).await {
            shard.stop(&e.to_string());
            return Err(LinkError::Stopped(e.to_string()));
        }
    }
    // The log may have been cut meanwhile, on a replica: nobody follows a term with what that has not.
    let serves = shard.inner.borrow().slots().is_served_by(slot, number) || !shard.is_replica();
    let verdict = if serves { Verdict::Stream { from } } else { Verdict::Refused(Refusal::Behind) };
    send_welcome(shard, conn, verdict, Some(hello)).await
}

/// Decides about a hello; reads the chain inside the log if the decision needs it.
async fn decide(shard: &Rc<Shard>, superblock: &LiveSuperblock, hello: &Hello) -> Result<Verdict, LinkError> {
    if shard.is_stopped() {
        return Ok(Verdict::Refused(Refusal::Stopping));
    }
    let log_now = (shard.cuts.get(), shard.cutting.get());
    if log_now.1 {
        return Ok(Verdict::Refused(Refusal::Behind));
    }
    let answer = {
        let inner = &mut *shard.inner.borrow_mut();
        let log = LogEnds { oldest: inner.oldest, tail: inner.pipeline.appended(), chain: inner.chain };
        match &mut inner.role {
            Role::Primary(p) => p.answer(hello, log, rt::now_ns()),
            Role::Replica(r) => r.answer(hello, log, rt::now_ns()),
        }
    };
    // The replica's link before this one, if it was still there, is over.
    shard.moved.notify();
    if matches!(answer, HelloAnswer::NeedBase(_) | HelloAnswer::Snapshot(_)) {
        // What the slot holds from now on is what the next start would hold too.
        if let Err(e) = superblock.persist(|s| s.slots = shard.slot_entries()).await {
            shard.stop(&e.to_string());
            return Err(LinkError::Stopped(e.to_string()));
        }
    }
    let decided = match answer {
        HelloAnswer::Verdict(verdict) => Ok(verdict),
        HelloAnswer::Snapshot(_) if !shard.may_produce_for(hello.name) => Ok(Verdict::Refused(Refusal::Busy)),
        HelloAnswer::Snapshot(verdict) => Ok(verdict),
        HelloAnswer::Deposed => {
            tracing::error!(shard = shard.id.0, replica = %hello.name, term = hello.term.0, "deposed: a replica follows a newer term");
            shard.fence();
            Ok(Verdict::Refused(Refusal::StalePrimary))
        }
        HelloAnswer::NeedBase(at) => {
            let at = late_by_one_batch(shard, at).await;
            let position = position_at(shard, at).await.map_err(|e| LinkError::Refused(e.to_string()))?;
            if log_now != (shard.cuts.get(), shard.cutting.get()) {
                return Ok(Verdict::Refused(Refusal::Behind));
            }
            let inner = &mut *shard.inner.borrow_mut();
            // A log without a batch, as it is after the promotion of one.
            let at_end = at == inner.pipeline.appended() && inner.open.is_none();
            let position = position.or(at_end.then_some((inner.chain, inner.next_seq)));
            let base = position.map(|(chain, seq)| Base { chain, seq });
            let oldest = inner.oldest;
            Ok(inner.answering().answer_begin(hello, oldest, at, base))
        }
        HelloAnswer::NeedChain(lsn) => {
            let position = position_at(shard, lsn).await.map_err(|e| LinkError::Refused(e.to_string()))?;
            if log_now != (shard.cuts.get(), shard.cutting.get()) {
                return Ok(Verdict::Refused(Refusal::Behind));
            }
            let chain = position.map(|(chain, _)| chain);
            let inner = &mut *shard.inner.borrow_mut();
            let oldest = inner.oldest;
            Ok(inner.answering().answer_with_chain(hello, oldest, chain, rt::now_ns()))
        }
    };
    // A log that has diverged loses its slot.
    shard.tell_lost();
    decided
}

/// A deliberate bug: a log is begun one batch too late.
async fn late_by_one_batch(shard: &Rc<Shard>, at: Lsn) -> Lsn {
    if !canary!(BeginsTooLate) {
        return at;
    }
    let (mut cursor, limit) = (Cursor::new(shard, at), shard.durable());
    let batch = cursor.next_batch(limit).await.ok().flatten();
    batch.map(|b| b.end).filter(|end| *end < limit).unwrap_or(at)
}
