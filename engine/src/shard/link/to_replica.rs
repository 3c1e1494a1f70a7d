//! The primary's end of a link: one task sends batches and heartbeats, one reads acks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use towline_wire::batch;
use towline_wire::frame::{self, FLAG_ACK_APPLIED, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameKind};
use towline_wire::handshake::{FEATURES, Hello, Refusal, Verdict, Welcome};
use towline_wire::message::{Ack, ErrorCode, Goodbye, Heartbeat};
use towline_wire::superblock::Base;
use towline_wire::{Lsn, PROTOCOL_VERSION};

use super::conn::Conn;
use super::frames::{self, FrameReader, LinkError};
use crate::limits;
use crate::protocol::primary::{HelloAnswer, LogEnds};
use crate::rt;
use crate::shard::Shard;
use crate::shard::wal::cursor::{Cursor, CursorError, position_at};
use crate::shard::wal::keep::LiveSuperblock;
use crate::shard::wal::ring::Batch;
use crate::telemetry::Stage;

/// Live batches whose acks are timed; what is further back is not.
const TIMED_MAX: usize = 4096;

/// One link, shared by its two tasks.
struct Link {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    slot: usize,
    number: u64,
    /// Batches sent from memory, for the ack's stages: end, when sent, received already.
    timed: RefCell<VecDeque<(Lsn, u64, bool)>>,
    closed: Cell<bool>,
}

/// The welcome that this shard gives now.
pub(crate) fn welcome(shard: &Shard, verdict: Verdict) -> Welcome {
    let inner = shard.inner.borrow();
    Welcome {
        protocol: PROTOCOL_VERSION,
        verdict,
        shard_count: shard.config.shard_count,
        heartbeat_ms: limits::HEARTBEAT.as_millis() as u32,
        system: inner.system,
        features: FEATURES,
        term: inner.term(),
        tail: inner.tail(),
        commit_lsn: inner.committed(),
        segment_bytes: shard.config.segment_bytes,
        time_us: rt::wall_us(),
        record_bytes_max: shard.config.record_bytes_max as u64,
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
    let payload = welcome(shard, verdict).to_bytes();
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
        Refusal::UnknownReplica => "the replica's name is not configured on the primary: add it to --replicas there",
        Refusal::StalePrimary => "this primary was deposed by a newer one: connect to that one",
        Refusal::Future => {
            "the replica's log is ahead of this primary's in the same term: one of the folders is not what it was"
        }
        Refusal::Diverged => "both logs hold other bytes at the same term and LSN: rebuild the replica from scratch",
        Refusal::Busy => {
            "a limit on connections is reached, or a commit is awaited in front of where the replica begins: try again later"
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
    let Verdict::Stream { from } = verdict else {
        // Cut or snapshot: the replica does what it has to and comes back.
        return send_welcome(shard, conn, verdict, Some(hello)).await;
    };
    let number = shard.number_link();
    let (slot, cursor) = match attach(shard, hello, number, from) {
        Ok(attached) => attached,
        Err(instead) => return send_welcome(shard, conn, instead, Some(hello)).await,
    };
    if let Err(e) = begin(shard, superblock, conn, hello, from).await {
        shard.inner.borrow_mut().primary().detach(slot, number, rt::now_ns());
        return Err(e);
    }
    shard.count(|c| c.connects += 1);
    // What the replica holds may let commits through, and a link that it replaces ends.
    shard.after_attach();
    let link = Rc::new(Link {
        shard: shard.clone(),
        conn: conn.clone(),
        slot,
        number,
        timed: RefCell::default(),
        closed: Cell::new(false),
    });
    tracing::info!(shard = shard.id.0, replica = %hello.name, from = from.0, "link begins");
    let sender = link.clone();
    rt::spawn(async move {
        if let Err(e) = sender.send_all(cursor).await {
            tracing::info!(shard = sender.shard.id.0, slot = sender.slot, "sending ended: {e}");
            if sender.detach() {
                e.end(&sender.conn).await;
            }
        }
    });
    let read = link.read_acks().await;
    // If the other task was first, it ends the connection.
    if link.detach() { read } else { Ok(()) }
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
        let primary = inner.primary();
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
    from: Lsn,
) -> Result<(), LinkError> {
    let saved = superblock.current().slots.iter().find(|s| s.name == hello.name).map(|s| s.restart_lsn);
    if saved.is_some_and(|restart| restart > from) {
        // It needs more than the next start would keep for it.
        if let Err(e) = superblock.persist(|s| s.slots = shard.slot_entries()).await {
            shard.stop(&e.to_string());
            return Err(LinkError::Stopped(e.to_string()));
        }
    }
    send_welcome(shard, conn, Verdict::Stream { from }, Some(hello)).await
}

/// Decides about a hello; reads the chain inside the log if the decision needs it.
async fn decide(shard: &Rc<Shard>, superblock: &LiveSuperblock, hello: &Hello) -> Result<Verdict, LinkError> {
    if shard.is_stopped() {
        return Ok(Verdict::Refused(Refusal::Stopping));
    }
    let answer = {
        let inner = &mut *shard.inner.borrow_mut();
        let log = LogEnds { oldest: inner.oldest, tail: inner.pipeline.appended(), chain: inner.chain };
        inner.primary().answer(hello, log, rt::now_ns())
    };
    if matches!(answer, HelloAnswer::NeedBase(_)) {
        // What the slot holds from now on is what the next start would hold too.
        if let Err(e) = superblock.persist(|s| s.slots = shard.slot_entries()).await {
            shard.stop(&e.to_string());
            return Err(LinkError::Stopped(e.to_string()));
        }
    }
    let decided = match answer {
        HelloAnswer::Verdict(verdict) => Ok(verdict),
        HelloAnswer::Deposed => {
            tracing::error!(shard = shard.id.0, replica = %hello.name, term = hello.term.0, "deposed: a replica follows a newer term");
            shard.fence();
            Ok(Verdict::Refused(Refusal::StalePrimary))
        }
        HelloAnswer::NeedBase(at) => {
            let at = late_by_one_batch(shard, at).await;
            let position = position_at(shard, at).await.map_err(|e| LinkError::Refused(e.to_string()))?;
            let inner = &mut *shard.inner.borrow_mut();
            // A log without a batch, as it is after the promotion of one.
            let at_end = at == inner.pipeline.appended() && inner.open.is_none();
            let position = position.or(at_end.then_some((inner.chain, inner.next_seq)));
            let base = position.map(|(chain, seq)| Base { chain, seq });
            let oldest = inner.oldest;
            Ok(inner.primary().answer_begin(hello, oldest, at, base))
        }
        HelloAnswer::NeedChain(lsn) => {
            let position = position_at(shard, lsn).await.map_err(|e| LinkError::Refused(e.to_string()))?;
            let chain = position.map(|(chain, _)| chain);
            let inner = &mut *shard.inner.borrow_mut();
            let oldest = inner.oldest;
            Ok(inner.primary().answer_with_chain(hello, oldest, chain, rt::now_ns()))
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

impl Link {
    /// The link serves its slot no more. Says whether it did until now: then the connection is the
    /// caller's to end.
    fn detach(&self) -> bool {
        self.add_counts();
        if self.closed.replace(true) {
            return false;
        }
        self.shard.inner.borrow_mut().primary().detach(self.slot, self.number, rt::now_ns());
        // The other task of this link, and who watches for lost replicas.
        self.shard.moved.notify();
        true
    }

    fn is_current(&self) -> bool {
        self.shard.inner.borrow_mut().primary().slots().is_served_by(self.slot, self.number)
    }

    /// Tells the replica why the link serves its slot no more.
    async fn end_of_service(&self) -> LinkError {
        let cause = {
            let inner = &mut *self.shard.inner.borrow_mut();
            inner.primary().slots().refusal(self.slot, 0, rt::now_ns()).filter(|c| *c != Refusal::SlotInUse)
        };
        let Some(cause) = cause else {
            let _ = frames::send(&self.conn, FrameKind::Goodbye, 0, Goodbye::Replaced as u64, &[]).await;
            return LinkError::Refused("a newer link serves the replica".into());
        };
        frames::send_error(&self.conn, ErrorCode::Refused, cause as u64, refusal_text(cause)).await;
        LinkError::Refused(refusal_text(cause).into())
    }

    fn add_counts(&self) {
        let sends = self.shard.count_traffic(&self.conn);
        self.shard.count(|c| c.copied_sends += sends);
    }

    async fn send_all(&self, mut cursor: Cursor) -> Result<(), LinkError> {
        let mut commit_said = Lsn::ZERO;
        let mut batches: Vec<Rc<Batch>> = Vec::with_capacity(limits::SEND_BATCHES_MAX);
        loop {
            let seen = self.shard.moved.seen();
            if let Some(why) = self.shard.stopped() {
                let _ = frames::send(&self.conn, FrameKind::Goodbye, 0, Goodbye::Stopping as u64, &[]).await;
                return Err(LinkError::Stopped(why));
            }
            if self.closed.get() {
                return Err(LinkError::Closed);
            }
            if !self.is_current() {
                return Err(self.end_of_service().await);
            }
            if self.conn.silent_for() > 3 * limits::HEARTBEAT {
                return Err(LinkError::Idle);
            }
            let from_disk = self.gather(&mut cursor, &mut batches).await?;
            if !batches.is_empty() {
                commit_said = self.send_batches(&mut batches, from_disk).await?;
                rt::yield_if_needed().await;
                continue;
            }
            let commit = self.shard.committed();
            let beat_due = self.conn.mute_for() >= limits::HEARTBEAT;
            let prompt = self.wants_applied();
            if beat_due || (commit > commit_said && (prompt || self.conn.mute_for() >= limits::PIGGYBACK)) {
                self.send_heartbeat(beat_due, prompt).await?;
                commit_said = commit;
                continue;
            }
            if commit > commit_said {
                // The next batch carries it for nothing.
                self.shard.notify_soon();
            }
            self.shard.moved.since(seen).await;
        }
    }

    /// Takes what there is to send; says whether it came from disk.
    async fn gather(&self, cursor: &mut Cursor, batches: &mut Vec<Rc<Batch>>) -> Result<bool, LinkError> {
        let limit = self.shard.inner.borrow().pipeline.appended();
        let mut bytes = 0;
        while batches.len() < limits::SEND_BATCHES_MAX && bytes < limits::READ_CHUNK_BYTES {
            let Some(batch) = cursor.next_in_memory(limit) else { break };
            bytes += batch.wire().len();
            batches.push(batch);
        }
        if !batches.is_empty() {
            return Ok(false);
        }
        match cursor.next_batch(limit).await {
            Ok(batch) => batches.extend(batch),
            Err(CursorError::TooOld { wanted, oldest }) => {
                let text = format!("the log from {wanted} on is gone, the oldest kept is {oldest}");
                frames::send_error(&self.conn, ErrorCode::TooOld, oldest.0, &text).await;
                return Err(LinkError::Refused(text));
            }
            Err(e) => return Err(LinkError::Stopped(e.to_string())),
        }
        Ok(true)
    }

    async fn send_batches(&self, batches: &mut Vec<Rc<Batch>>, from_disk: bool) -> Result<Lsn, LinkError> {
        let commit = self.shard.committed();
        let mut headers = [[0; frame::HEADER]; limits::SEND_BATCHES_MAX];
        let mut pieces: [&[u8]; 2 * limits::SEND_BATCHES_MAX] = [&[]; 2 * limits::SEND_BATCHES_MAX];
        let applied = if self.wants_applied() { FLAG_ACK_APPLIED } else { 0 };
        let flags = |b: &Batch| applied | if b.ack_received { FLAG_ACK_RECEIVED } else { 0 };
        for (header, batch) in headers.iter_mut().zip(batches.iter()) {
            *header = frame::batch_header(flags(batch), commit, batch.wire().len());
        }
        for ((header, batch), piece) in headers.iter().zip(batches.iter()).zip(pieces.chunks_exact_mut(2)) {
            (piece[0], piece[1]) = (header, batch.wire());
        }
        let end = batches.last().expect("there is something to send").end;
        // Sent counts from the moment the kernel may have taken it: an ack can overtake this task.
        self.shard.inner.borrow_mut().primary().on_sent(self.slot, self.number, end);
        let began = rt::now_ns();
        if !from_disk {
            let mut timed = self.timed.borrow_mut();
            for batch in batches.iter().take(TIMED_MAX - timed.len()) {
                timed.push_back((batch.end, began, false));
            }
        }
        self.conn.send(&pieces[..2 * batches.len()]).await?;
        self.shard.telemetry.borrow_mut().record(Stage::Send, rt::now_ns() - began, batches.len() as u64);
        self.add_counts();
        batches.clear();
        Ok(commit)
    }

    fn wants_applied(&self) -> bool {
        self.shard.inner.borrow_mut().primary().gate.wants_applied()
    }

    async fn send_heartbeat(&self, reply_now: bool, prompt: bool) -> Result<(), LinkError> {
        let beat = heartbeat(&self.shard);
        let flags = if reply_now { FLAG_REPLY_NOW } else { 0 } | if prompt { FLAG_ACK_APPLIED } else { 0 };
        frames::send(&self.conn, FrameKind::Heartbeat, flags, 0, &beat.to_bytes()).await?;
        Ok(())
    }

    async fn read_acks(&self) -> Result<(), LinkError> {
        let mut reader = FrameReader::new(self.conn.clone(), batch::HEADER.max(2048));
        loop {
            let ack = {
                let Some((head, payload)) = reader.next().await? else { return Err(LinkError::Closed) };
                match head.kind {
                    FrameKind::Ack => Ack::check(payload)?,
                    FrameKind::Goodbye => return Err(LinkError::Closed),
                    FrameKind::Error => {
                        let (_, text) = towline_wire::message::ErrorHead::check(payload)?;
                        return Err(LinkError::Refused(format!("the replica says: {text}")));
                    }
                    other => return Err(LinkError::OutOfPlace(other)),
                }
            };
            // Only the newest of the acks that came together matters, and none once the other task
            // ends the connection.
            if reader.has_next() || self.closed.get() {
                continue;
            }
            self.time_ack(&ack);
            if let Err(violation) = self.shard.on_ack(self.slot, self.number, &ack) {
                tracing::error!(shard = self.shard.id.0, slot = self.slot, "ack refused: {violation}");
                frames::send_error(&self.conn, ErrorCode::BadAck, 0, &violation.to_string()).await;
                return Err(LinkError::Refused(violation.to_string()));
            }
        }
    }

    fn time_ack(&self, ack: &Ack) {
        let now = rt::now_ns();
        let mut timed = self.timed.borrow_mut();
        let mut telemetry = self.shard.telemetry.borrow_mut();
        let [of_received, of_flushed] = &mut self.shard.ack_times.borrow_mut()[self.slot];
        for (_, sent_ns, received) in timed.iter_mut().take_while(|t| t.0 <= ack.received) {
            if !std::mem::replace(received, true) {
                telemetry.record(Stage::AckReceived, now - *sent_ns, 1);
                of_received.saturating_record(now - *sent_ns);
            }
        }
        while let Some((_, sent_ns, _)) = timed.front().filter(|t| t.0 <= ack.flushed) {
            telemetry.record(Stage::AckFlushed, now - *sent_ns, 1);
            of_flushed.saturating_record(now - *sent_ns);
            timed.pop_front();
        }
    }
}
