//! The primary's end of a link while it streams: one task sends batches and heartbeats, one reads acks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame::{self, FLAG_ACK_APPLIED, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameKind};
use towline_wire::handshake::{NodeName, Refusal};
use towline_wire::message::{Ack, ErrorCode, Goodbye};
use towline_wire::{Lsn, batch};

use super::conn::Conn;
use super::frames::{self, FrameReader, LinkError};
use super::packing;
use super::to_replica::{heartbeat_below, refusal_text};
use super::zero_copy::{Adaptive, Outgoing, Reports};
use crate::limits;
use crate::protocol::pace::Pace;
use crate::protocol::squeeze::Squeeze;
use crate::rt;
use crate::shard::Shard;
use crate::shard::wal::cursor::{Cursor, CursorError};
use crate::shard::wal::ring::Batch;
use crate::telemetry::Stage;

/// Live batches whose acks are timed; what is further back is not.
const TIMED_MAX: usize = 4096;

/// One link, shared by its two tasks.
pub(super) struct Link {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    name: NodeName,
    slot: usize,
    number: u64,
    /// Batches sent from memory, for the ack's stages: end, when sent, received already.
    timed: RefCell<VecDeque<(Lsn, u64, bool)>>,
    /// The window is full: an ack is waited for.
    waits: Cell<bool>,
    /// What was sent last came from disk.
    catching_up: Cell<bool>,
    zero_copy: Cell<Adaptive>,
    /// What the kernel reported of sends without a copy.
    reports: Rc<Reports>,
    closed: Cell<bool>,
}

impl Link {
    /// A link that serves a slot.
    pub(super) fn new(shard: &Rc<Shard>, conn: &Rc<Conn>, name: NodeName, (slot, number): (usize, u64)) -> Rc<Self> {
        Rc::new(Self {
            shard: shard.clone(),
            conn: conn.clone(),
            name,
            slot,
            number,
            timed: RefCell::default(),
            waits: Cell::new(false),
            catching_up: Cell::new(false),
            zero_copy: Cell::new(Adaptive::new(shard.config.zero_copy)),
            reports: Rc::default(),
            closed: Cell::new(false),
        })
    }

    /// Streams what `cursor` reads until the link ends.
    pub(super) async fn run(self: Rc<Self>, cursor: Cursor, squeeze: Squeeze) -> Result<(), LinkError> {
        let sender = self.clone();
        rt::spawn(async move {
            if let Err(e) = sender.send_all(cursor, squeeze).await {
                tracing::info!(shard = sender.shard.id.0, slot = sender.slot, "sending ended: {e}");
                if sender.detach() {
                    e.end(&sender.conn).await;
                }
            }
        });
        let read = self.read_acks().await;
        // If the other task was first, it ends the connection.
        if self.detach() { read } else { Ok(()) }
    }

    /// The link serves its slot no more. Says whether it did until now: then the connection is the
    /// caller's to end.
    fn detach(&self) -> bool {
        self.add_counts();
        if self.closed.replace(true) {
            return false;
        }
        self.shard.inner.borrow_mut().feeding().detach(self.slot, self.number, rt::now_ns());
        // The other task of this link, and who watches for lost replicas.
        self.shard.moved.notify();
        true
    }

    fn is_current(&self) -> bool {
        self.shard.inner.borrow_mut().feeding().slots().is_served_by(self.slot, self.number)
    }

    /// Tells the replica why the link serves its slot no more.
    async fn end_of_service(&self) -> LinkError {
        let cause = {
            let inner = &mut *self.shard.inner.borrow_mut();
            // Its number may be another one's by now.
            match inner.slots().of(self.name) {
                None => Err(Refusal::SlotRemoved),
                Some(slot) => match inner.slots().refusal(slot, 0, rt::now_ns()) {
                    Some(Refusal::SlotInUse) => Ok((Goodbye::Replaced, "a newer link serves the replica")),
                    Some(cause) => Err(cause),
                    None => Ok((Goodbye::Again, "the log or the term here has changed: it is to say hello again")),
                },
            }
        };
        let cause = match cause {
            Err(cause) => cause,
            Ok((goodbye, text)) => {
                let _ = frames::send(&self.conn, FrameKind::Goodbye, 0, goodbye as u64, &[]).await;
                return LinkError::Refused(text.into());
            }
        };
        frames::send_error(&self.conn, ErrorCode::Refused, cause as u64, refusal_text(cause)).await;
        LinkError::Refused(refusal_text(cause).into())
    }

    fn add_counts(&self) {
        let sends = self.shard.count_traffic(&self.conn);
        let (copied, not_copied) = (self.reports.copied.take(), self.reports.not_copied.take());
        if copied + not_copied > 0 {
            let mut adaptive = self.zero_copy.get();
            (0..copied).for_each(|_| adaptive.on_released(true, rt::now_ns()));
            (0..not_copied).for_each(|_| adaptive.on_released(false, rt::now_ns()));
            self.zero_copy.set(adaptive);
        }
        self.shard.count(|c| {
            c.copied_sends += sends + copied;
            c.zero_copy_sends += not_copied;
        });
    }

    async fn send_all(&self, mut cursor: Cursor, squeeze: Squeeze) -> Result<(), LinkError> {
        let mut commit_said = Lsn::ZERO;
        let mut batches: Vec<Rc<Batch>> = Vec::with_capacity(limits::SEND_BATCHES_MAX);
        let mut pace = Pace::default();
        let mut packer = Packer { squeeze, packed: Vec::new() };
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
            let now = rt::now_ns();
            pace.cap(self.shard.live.flow.get().catch_up_max);
            let others_live = pace.look(self.shard.inner.borrow().sendable(), now);
            if pace.pause(now).is_zero() {
                cursor.read_as(Pace::reads(others_live));
                self.gather(&mut cursor, &mut batches, Pace::slice(others_live)).await?;
                if let (Some(first), Some(last)) = (batches.first(), batches.last()) {
                    let bytes = last.end.since(first.lsn);
                    let time_us = cursor.is_on_disk().then(|| last.header().timestamp_us());
                    self.note_progress(time_us);
                    commit_said = {
                        let politely = time_us.is_some() && others_live;
                        self.send_batches(&mut batches, &mut packer, (time_us.is_some(), politely)).await?
                    };
                    if time_us.is_some() {
                        let (read, took) = cursor.take_read();
                        pace.read(read, took);
                        if pace.sent(bytes, rt::now_ns()) {
                            self.shard.count(|c| c.polite_pauses += 1);
                        }
                    }
                    rt::yield_if_needed().await;
                    continue;
                }
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
            match pace.pause(rt::now_ns()) {
                Duration::ZERO => self.shard.moved.since(seen).await,
                pause => drop(rt::timeout(pause, self.shard.moved.since(seen)).await),
            }
        }
    }

    /// Takes what there is to send and the window has room for: from memory, or about `slice` bytes
    /// from disk.
    async fn gather(&self, cursor: &mut Cursor, batches: &mut Vec<Rc<Batch>>, slice: usize) -> Result<(), LinkError> {
        let (tail, limits) = {
            let inner = &mut *self.shard.inner.borrow_mut();
            let tail = inner.sendable();
            (tail, inner.feeding().may_send(self.slot, tail, self.shard.live.flow.get().link_window))
        };
        let limit = |batches: &[Rc<Batch>]| if batches.is_empty() { limits.first } else { limits.more };
        let mut bytes = 0;
        while batches.len() < limits::SEND_BATCHES_MAX && bytes < limits::READ_CHUNK_BYTES {
            let Some(batch) = cursor.next_in_memory(limit(batches)) else { break };
            bytes += batch.wire().len();
            batches.push(batch);
        }
        if !batches.is_empty() {
            return Ok(());
        }
        match cursor.next_batch(limits.first).await {
            Ok(batch) => batches.extend(batch),
            Err(e) => return Err(self.unreadable(e).await),
        }
        while let Some(last) = batches.last().filter(|b| b.end < limits.more) {
            bytes += last.wire().len();
            if bytes >= slice || batches.len() == limits::SEND_BATCHES_MAX || !cursor.is_on_disk() {
                break;
            }
            match cursor.next_at_hand(limits.more) {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => break,
                Err(e) => return Err(self.unreadable(e).await),
            }
        }
        if batches.is_empty() && cursor.next() >= tail {
            // All is sent, if only from disk.
            self.note_progress(None);
        } else if batches.is_empty() && limits.first < tail && !self.waits.replace(true) {
            self.shard.count(|c| c.window_waits += 1);
        }
        Ok(())
    }

    async fn unreadable(&self, e: CursorError) -> LinkError {
        let CursorError::TooOld { wanted, oldest } = e else { return LinkError::Stopped(e.to_string()) };
        let text = format!("the log from {wanted} on is gone, the oldest kept is {oldest}");
        frames::send_error(&self.conn, ErrorCode::TooOld, oldest.0, &text).await;
        LinkError::Refused(text)
    }

    /// What is sent now comes from disk and was closed at `time_us`, or it comes from memory.
    fn note_progress(&self, time_us: Option<u64>) {
        if time_us.is_none() && !self.catching_up.get() {
            return;
        }
        self.catching_up.set(time_us.is_some());
        let inner = &mut *self.shard.inner.borrow_mut();
        let tail = inner.sendable();
        inner.feeding().on_catch_up(self.slot, time_us, tail, rt::now_ns());
    }

    async fn send_batches(
        &self,
        batches: &mut Vec<Rc<Batch>>,
        packer: &mut Packer,
        (from_disk, politely): (bool, bool),
    ) -> Result<Lsn, LinkError> {
        let commit = self.shard.committed();
        let mut headers = [[0; frame::HEADER]; limits::SEND_BATCHES_MAX];
        let mut pieces: [&[u8]; 2 * limits::SEND_BATCHES_MAX] = [&[]; 2 * limits::SEND_BATCHES_MAX];
        let applied = if self.wants_applied() { FLAG_ACK_APPLIED } else { 0 };
        let flags = |b: &Batch| applied | if b.ack_received { FLAG_ACK_RECEIVED } else { 0 };
        let packed = packer.pack(batches);
        for (n, batch) in batches.iter().enumerate() {
            let payload = packed.get(n).and_then(Option::as_ref).map(|range| &packer.packed[range.clone()]);
            headers[n] = match payload {
                None => frame::batch_header(flags(batch), commit, batch.wire().len()),
                Some(payload) => frame::header(FrameKind::Packed, flags(batch), commit.0, payload),
            };
            pieces[2 * n + 1] = payload.unwrap_or_else(|| batch.wire());
        }
        for (header, piece) in headers.iter().zip(pieces.chunks_exact_mut(2)) {
            piece[0] = header;
        }
        let end = batches.last().expect("there is something to send").end;
        // Sent counts from the moment the kernel may have taken it: an ack can overtake this task.
        self.shard.inner.borrow_mut().feeding().on_sent(self.slot, self.number, end);
        let began = rt::now_ns();
        if !from_disk {
            let mut timed = self.timed.borrow_mut();
            for batch in batches.iter().take(TIMED_MAX - timed.len()) {
                timed.push_back((batch.end, began, false));
            }
        }
        let pieces = &pieces[..2 * batches.len()];
        if politely {
            self.conn.send_politely(pieces).await?;
        } else if packed.is_empty() {
            self.send_pieces(pieces, &headers[..batches.len()], batches).await?;
        } else {
            self.conn.send(pieces).await?;
        }
        self.shard.telemetry.borrow_mut().record(Stage::Send, rt::now_ns() - began, batches.len() as u64);
        self.add_counts();
        if !packed.is_empty() {
            self.count_packed(batches, &packed);
        }
        batches.clear();
        Ok(commit)
    }

    fn count_packed(&self, batches: &[Rc<Batch>], packed: &[Option<Range<usize>>]) {
        self.shard.count(|c| {
            for (batch, packed) in batches.iter().zip(packed) {
                let Some(packed) = packed else { continue };
                c.packed_batches += 1;
                c.packed_from_bytes += batch.wire().len() as u64;
                c.packed_to_bytes += packed.len() as u64;
            }
        });
    }

    /// Sends frames, without a copy where that pays.
    async fn send_pieces(
        &self,
        pieces: &[&[u8]],
        headers: &[[u8; frame::HEADER]],
        batches: &[Rc<Batch>],
    ) -> Result<(), LinkError> {
        let bytes = pieces.iter().map(|p| p.len()).sum();
        if !self.zero_copy.get().wants(bytes, rt::now_ns()) {
            return Ok(self.conn.send(pieces).await?);
        }
        let held = Outgoing::new(headers, batches, self.reports.clone());
        if !self.conn.send_zero_copy(held).await? {
            let mut adaptive = self.zero_copy.get();
            adaptive.give_up(rt::now_ns());
            self.zero_copy.set(adaptive);
        }
        Ok(())
    }

    fn wants_applied(&self) -> bool {
        self.shard.inner.borrow_mut().feeding().gate.wants_applied()
    }

    async fn send_heartbeat(&self, reply_now: bool, prompt: bool) -> Result<(), LinkError> {
        let beat = heartbeat_below(&self.shard);
        let flags = if reply_now { FLAG_REPLY_NOW } else { 0 } | if prompt { FLAG_ACK_APPLIED } else { 0 };
        frames::send(&self.conn, FrameKind::Heartbeat, flags, 0, &beat.to_bytes()).await?;
        Ok(())
    }

    async fn read_acks(&self) -> Result<(), LinkError> {
        let mut reader = FrameReader::new(self.conn.clone(), batch::HEADER.max(2048));
        loop {
            let (ack, owed) = {
                let Some((head, payload)) = reader.next().await? else { return Err(LinkError::Closed) };
                match head.kind {
                    FrameKind::Ack => (Ack::check(payload)?, head.arg),
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
            let waited = self.waits.take();
            if let Err(violation) = self.shard.on_ack((self.slot, self.number), &ack, owed) {
                tracing::error!(shard = self.shard.id.0, slot = self.slot, "ack refused: {violation}");
                frames::send_error(&self.conn, ErrorCode::BadAck, 0, &violation.to_string()).await;
                return Err(LinkError::Refused(violation.to_string()));
            }
            if waited {
                // The window may have room again.
                self.shard.moved.notify();
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

/// One link's compressing.
struct Packer {
    squeeze: Squeeze,
    /// What is being sent, one behind the other.
    packed: Vec<u8>,
}

impl Packer {
    /// Compresses the batches where that pays; says where each is. Nothing at all if none is.
    fn pack(&mut self, batches: &[Rc<Batch>]) -> Vec<Option<Range<usize>>> {
        let mut all = Vec::new();
        self.packed.clear();
        for (n, batch) in batches.iter().enumerate() {
            let (bytes, at) = (batch.wire(), self.packed.len());
            if !self.squeeze.tries(bytes.len()) {
                continue;
            }
            let packed = packing::pack(bytes, &mut self.packed).unwrap_or(bytes.len());
            if self.squeeze.pays(bytes.len(), packed) {
                all.resize(batches.len(), None);
                all[n] = Some(at..at + packed);
            } else {
                self.packed.truncate(at);
            }
        }
        all
    }
}
