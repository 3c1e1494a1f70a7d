//! Remote clients: appends, tails, status.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame::{self, FrameKind};
use towline_wire::handshake::{Refusal, Verdict};
use towline_wire::message::{
    AppendHead, CommitStatus, Committed, ControlRequest, ErrorCode, Goodbye, SlotRequest, TailRequest, TailStart,
};
use towline_wire::{Lsn, Seq, Term, batch, message};

use super::conn::Conn;
use super::frames::{self, FrameReader, LinkError};
use super::to_replica::{heartbeat, send_welcome};
use crate::limits;
use crate::node::NodeShared;
use crate::notify::Changed;
use crate::outcome::{AppendError, Outcome};
use crate::protocol::policy::CommitPolicy;
use crate::protocol::settings::{SettingChange, SettingsError};
use crate::rt;
use crate::shard::Shard;
use crate::shard::append::Payload;
use crate::shard::lanes::Lane;
use crate::shard::slots::SlotChange;
use crate::shard::wal::cursor::{Cursor, CursorError, position_at};
use std::sync::Arc;

/// Serves a client to the end of its connection.
pub(crate) async fn serve(shard: Rc<Shard>, conn: Rc<Conn>, node: Arc<NodeShared>) {
    let session = Rc::new(Session {
        shard: shard.clone(),
        conn: conn.clone(),
        replies: RefCell::default(),
        pending: RefCell::default(),
        window: Cell::new(0),
        blocked_since: Cell::new(None),
        changed: Changed::default(),
        tailing: Cell::new(false),
        ending: Cell::new(false),
        replied: Cell::new(false),
        written: Cell::new(false),
        over: Cell::new(false),
    });
    if let Err(e) = session.clone().run(node).await {
        tracing::debug!(shard = shard.id.0, "client's connection ended: {e}");
        e.end(&conn).await;
    } else {
        conn.drain().await;
    }
    session.over.set(true);
    session.changed.notify();
    shard.moved.notify();
    conn.close();
}

/// Changes the node's settings.
async fn control(node: &NodeShared, request: &ControlRequest) -> Result<(), SettingsError> {
    let change = SettingChange::from_wire(request).ok_or_else(|| SettingsError::NotServing("no policy".into()))?;
    node.change_settings(change, request.if_version).await.map(drop)
}

/// One client's connection.
struct Session {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    /// Replies that wait to be sent, encoded.
    replies: RefCell<Vec<u8>>,
    pending: RefCell<Pending>,
    /// Bytes of appends without an outcome.
    window: Cell<usize>,
    /// Since when nothing could be admitted.
    blocked_since: Cell<Option<u64>>,
    changed: Changed,
    /// The log is being streamed.
    tailing: Cell<bool>,
    /// Nothing is read any more, and the log is streamed no further.
    ending: Cell<bool>,
    /// No reply is to come any more.
    replied: Cell<bool>,
    /// Every reply was sent, or none can be.
    written: Cell<bool>,
    over: Cell<bool>,
}

/// Requests without an outcome, by the lane's numbers.
#[derive(Default)]
struct Pending {
    first: u64,
    requests: VecDeque<Option<Request>>,
}

struct Request {
    number: u64,
    first_seq: Seq,
    records: u32,
    wanted: u8,
    bytes: usize,
}

impl Lane for Session {
    fn complete(&self, first: u64, count: u32, outcome: &Outcome) {
        let pending = &mut *self.pending.borrow_mut();
        for key in first..first + u64::from(count) {
            let Some(request) = pending.requests.get_mut((key - pending.first) as usize).and_then(Option::take) else {
                continue;
            };
            self.window.set(self.window.get() - request.bytes);
            let (mut term, mut lsn, mut acks_then, mut durable) = (Term::ZERO, Lsn::ZERO, 0, false);
            let mut wanted_then = request.wanted;
            let status = match *outcome {
                Outcome::Committed { bookmark, acks } => {
                    (term, lsn, acks_then, durable) = (bookmark.term, bookmark.lsn, acks, true);
                    // A share of the replicas that are configured now, if some left meanwhile.
                    wanted_then = wanted_then.min(acks);
                    CommitStatus::Committed
                }
                Outcome::TimedOut { bookmark, durable_here, acks, wanted } => {
                    wanted_then = wanted;
                    (term, lsn, acks_then, durable) = (bookmark.term, bookmark.lsn, acks, durable_here);
                    CommitStatus::TimedOut
                }
                Outcome::Fenced => CommitStatus::Fenced,
                Outcome::Stopped => CommitStatus::Stopped,
            };
            self.reply(&Committed {
                request: request.number,
                term,
                lsn,
                first_seq: request.first_seq,
                record_count: request.records,
                status,
                acks: acks_then,
                wanted: wanted_then,
                durable_here: durable,
            });
        }
        while pending.requests.front().is_some_and(Option::is_none) {
            pending.requests.pop_front();
            pending.first += 1;
        }
        self.changed.notify();
    }
}

impl Session {
    fn reply(&self, committed: &Committed) {
        let payload = committed.to_bytes();
        let replies = &mut *self.replies.borrow_mut();
        replies.extend_from_slice(&frame::header(FrameKind::Committed, 0, 0, &payload));
        replies.extend_from_slice(&payload);
    }

    async fn run(self: Rc<Self>, node: Arc<NodeShared>) -> Result<(), LinkError> {
        if self.shard.is_stopped() {
            return send_welcome(&self.shard, &self.conn, Verdict::Refused(Refusal::Stopping), None).await;
        }
        send_welcome(&self.shard, &self.conn, Verdict::Client, None).await?;
        let lane = self.shard.inner.borrow_mut().lanes.add(self.clone());
        let Some(lane) = lane else { return Err(LinkError::Rejected("too many lanes".into())) };
        let writer = rt::spawn_scoped(self.clone().write_replies());
        let mut tail = None;
        let read = self.clone().read(lane, node, &mut tail).await;
        // A batch that is being sent is finished: replies follow it.
        self.ending.set(true);
        self.shard.moved.notify();
        while self.tailing.get() {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
        drop(tail);
        // Late outcomes find an empty list of requests; the number is free once nothing waits.
        while !self.pending.borrow().requests.is_empty() && !self.shard.is_stopped() {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
        self.shard.inner.borrow_mut().lanes.remove(lane);
        // The last replies are sent before the connection ends.
        self.replied.set(true);
        self.changed.notify();
        while !self.written.get() {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
        drop(writer);
        read
    }

    async fn read(
        self: Rc<Self>,
        lane: u32,
        node: Arc<NodeShared>,
        tail: &mut Option<rt::Task>,
    ) -> Result<(), LinkError> {
        let largest = message::APPEND_HEAD + towline_wire::record::encoded_len(self.shard.config.record_bytes_max);
        let mut reader = FrameReader::new(self.conn.clone(), largest.max(limits::CLIENT_WINDOW_BYTES));
        let mut key = 0;
        while let Some((head, payload)) = reader.next().await? {
            match head.kind {
                FrameKind::Append => {
                    self.append(lane, key, payload).await?;
                    key += 1;
                }
                FrameKind::Tail if tail.is_none() => {
                    let request = TailRequest::check(payload)?;
                    self.tailing.set(true);
                    *tail = Some(rt::spawn_scoped(self.clone().tail(request)));
                }
                FrameKind::StatusRequest => {
                    let status = node.status().await;
                    frames::send(&self.conn, FrameKind::Status, 0, 0, status.as_bytes()).await?;
                }
                FrameKind::SlotRequest => {
                    let change = SlotChange::from(SlotRequest::check(payload)?);
                    if let Err(e) = node.change_slots(change).await {
                        frames::send_error(&self.conn, ErrorCode::SlotRefused, 0, &e.to_string()).await;
                        return Err(LinkError::Refused(e.to_string()));
                    }
                    let status = node.status().await;
                    frames::send(&self.conn, FrameKind::Status, 0, 0, status.as_bytes()).await?;
                }
                FrameKind::ControlRequest => {
                    if let Err(e) = control(&node, &ControlRequest::check(payload)?).await {
                        let version = node.settings().map_or(0, |s| s.version);
                        frames::send_error(&self.conn, ErrorCode::ControlRefused, version, &e.to_string()).await;
                        return Err(LinkError::Refused(e.to_string()));
                    }
                    let status = node.status().await;
                    frames::send(&self.conn, FrameKind::Status, 0, 0, status.as_bytes()).await?;
                }
                FrameKind::Goodbye => return Ok(()),
                other => return Err(LinkError::OutOfPlace(other)),
            }
            self.add_counts();
            rt::yield_if_needed().await;
        }
        Ok(())
    }

    fn add_counts(&self) {
        self.shard.count_traffic(&self.conn);
    }

    /// Back-pressure: from a client that does not take its answers, or that has one request open behind very
    /// many that have outcomes, nothing more is read.
    async fn may_go_on(&self) {
        let full = || {
            let many = self.pending.borrow().requests.len() >= limits::CLIENT_REQUESTS_MAX;
            many || self.replies.borrow().len() > limits::CLIENT_ANSWERS_BYTES
        };
        while full() && !self.written.get() {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
    }

    /// Admits one request, or answers why not.
    async fn append(&self, lane: u32, key: u64, payload: &[u8]) -> Result<(), LinkError> {
        let arrived = rt::now_ns();
        let (head, records) = AppendHead::check(payload)?;
        let body = &payload[message::APPEND_HEAD..];
        let refuse = |status, (acks, wanted)| {
            self.reply(&Committed {
                request: head.request,
                term: Term::ZERO,
                lsn: Lsn::ZERO,
                first_seq: Seq(0),
                record_count: head.record_count,
                status,
                acks,
                wanted,
                durable_here: false,
            });
            let mut pending = self.pending.borrow_mut();
            pending.requests.push_back(None);
            while pending.requests.front().is_some_and(Option::is_none) {
                pending.requests.pop_front();
                pending.first += 1;
            }
            self.changed.notify();
        };
        self.may_go_on().await;
        if self.shard.is_replica() {
            return Err(LinkError::Rejected("this node is a replica: append to the primary".into()));
        }
        let deadline = (head.deadline_us > 0).then(|| Duration::from_micros(head.deadline_us));
        let wish = match self.shard.wish(CommitPolicy::from_wire(head.policy), deadline) {
            Ok(wish) => wish,
            Err(_) => {
                refuse(CommitStatus::PolicyImpossible, (0, 0));
                return Ok(());
            }
        };
        if records.clone().any(|r| r.len() > self.shard.config.record_bytes_max) {
            refuse(CommitStatus::RecordTooLarge, (0, wish.need.replicas));
            return Ok(());
        }
        // Back-pressure: while too much waits, nothing more is read from this client.
        while self.window.get() > 0 && self.window.get() + body.len() > limits::CLIENT_WINDOW_BYTES {
            let seen = self.changed.seen();
            self.changed.since(seen).await;
        }
        loop {
            let room = self.shard.room.seen();
            // The request is pending before an outcome can come.
            let request = |first_seq| Request {
                number: head.request,
                first_seq,
                records: head.record_count,
                wanted: wish.need.replicas,
                bytes: body.len(),
            };
            let encoded = Payload::Encoded(body, head.record_count);
            match self.shard.try_append((lane, key), wish, encoded, Some(arrived)) {
                Ok(first_seq) => {
                    self.blocked_since.set(None);
                    self.window.set(self.window.get() + body.len());
                    self.pending.borrow_mut().requests.push_back(Some(request(first_seq)));
                    return Ok(());
                }
                Err(AppendError::WouldBlock | AppendError::DiskFull | AppendError::LogFull) => {
                    let now = rt::now_ns();
                    // Requests behind this one wait unread: their time counts from here too, or
                    // each would wait for those before it.
                    let since = self.blocked_since.get().unwrap_or(arrived);
                    self.blocked_since.set(Some(since));
                    let left = wish.deadline.saturating_sub(Duration::from_nanos(now - since));
                    if left.is_zero() {
                        refuse(CommitStatus::NoRoom, (0, wish.need.replicas));
                        return Ok(());
                    }
                    let _ = rt::timeout(left, self.shard.room.since(room)).await;
                }
                Err(AppendError::TooFewReplicas { .. }) => {
                    refuse(CommitStatus::TooFewReplicas, (0, wish.need.replicas));
                    return Ok(());
                }
                Err(AppendError::MinReplicas { wanted, fresh, .. }) => {
                    refuse(CommitStatus::MinReplicas, (fresh.min(255) as u8, wanted));
                    return Ok(());
                }
                Err(AppendError::Fenced) => {
                    refuse(CommitStatus::Fenced, (0, wish.need.replicas));
                    return Ok(());
                }
                Err(AppendError::Stopped(_)) => {
                    refuse(CommitStatus::Stopped, (0, wish.need.replicas));
                    return Ok(());
                }
                Err(e) => return Err(LinkError::Rejected(e.to_string())),
            }
        }
    }

    async fn write_replies(self: Rc<Self>) {
        let mut sending = Vec::new();
        loop {
            let seen = self.changed.seen();
            std::mem::swap(&mut sending, &mut *self.replies.borrow_mut());
            if sending.is_empty() {
                if self.replied.get() {
                    break;
                }
                self.changed.since(seen).await;
                continue;
            }
            if sending.len() > limits::CLIENT_ANSWERS_BYTES {
                // The reader waits for room.
                self.changed.notify();
            }
            if self.conn.send(&[&sending]).await.is_err() {
                self.conn.close();
                break;
            }
            sending.clear();
        }
        self.written.set(true);
        self.changed.notify();
    }

    /// Streams the log to the client.
    async fn tail(self: Rc<Self>, request: TailRequest) {
        let result = self.stream_tail(&request).await;
        if let Err(e) = result {
            e.end(&self.conn).await;
        }
        self.tailing.set(false);
        self.changed.notify();
    }

    fn limit(&self, request: &TailRequest) -> Lsn {
        if request.flushed { self.shard.durable() } else { self.shard.committed() }
    }

    async fn stream_tail(&self, request: &TailRequest) -> Result<(), LinkError> {
        let (oldest, end) = (self.shard.inner.borrow().oldest, self.limit(request));
        let start = match request.start {
            TailStart::At(lsn) => lsn,
            TailStart::Oldest => oldest,
            TailStart::End => end,
        };
        let refuse = async |code, arg: Lsn, text: String| {
            frames::send_error(&self.conn, code, arg.0, &text).await;
            Err(LinkError::Refused(text))
        };
        if start < oldest {
            let text = format!("LSN {start} is older than the oldest kept, {oldest}");
            return refuse(ErrorCode::TooOld, oldest, text).await;
        }
        let tail = self.shard.inner.borrow().pipeline.durable();
        if start > tail {
            return refuse(ErrorCode::NoSuchPosition, tail, format!("LSN {start} lies behind the end, {tail}")).await;
        }
        let mut cursor = Cursor::new(&self.shard, start);
        let boundary = start == tail || matches!(position_at(&self.shard, start).await, Ok(Some(_)));
        if !boundary {
            return refuse(ErrorCode::NoSuchPosition, tail, format!("no batch starts at LSN {start}")).await;
        }
        let until = request.until_end.then_some(end);
        loop {
            let seen = self.shard.moved.seen();
            if self.ending.get() {
                return Ok(());
            }
            if self.shard.is_stopped() {
                let _ = frames::send(&self.conn, FrameKind::Goodbye, 0, Goodbye::Stopping as u64, &[]).await;
                return Ok(());
            }
            if until.is_some_and(|until| cursor.next() >= until) {
                frames::send(&self.conn, FrameKind::TailEnd, 0, cursor.next().0, &[]).await?;
                return Ok(());
            }
            let limit = until.unwrap_or(Lsn(u64::MAX)).min(self.limit(request));
            match cursor.next_batch(limit).await {
                Ok(Some(batch)) => {
                    let wire = batch.wire();
                    assert!(wire.len() > batch::HEADER);
                    let header = frame::batch_header(0, self.shard.committed(), wire.len());
                    self.conn.send(&[&header, wire]).await?;
                    self.add_counts();
                    rt::yield_if_needed().await;
                }
                Ok(None) => {
                    if self.conn.mute_for() >= limits::HEARTBEAT {
                        self.heartbeat().await?;
                    }
                    self.shard.moved.since(seen).await;
                }
                Err(CursorError::TooOld { wanted, oldest }) => {
                    let text =
                        format!("the log from {wanted} on was let go while it was read, the oldest kept is {oldest}");
                    return refuse(ErrorCode::TooOld, oldest, text).await;
                }
                Err(e) => return Err(LinkError::Stopped(e.to_string())),
            }
        }
    }

    async fn heartbeat(&self) -> Result<(), LinkError> {
        let beat = heartbeat(&self.shard);
        frames::send(&self.conn, FrameKind::Heartbeat, 0, 0, &beat.to_bytes()).await?;
        Ok(())
    }
}
