//! The replica's end of a link: connects, says hello, takes batches straight into buffers for the
//! device, acknowledges.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame::{self, FLAG_ACK_APPLIED, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameHead, FrameKind, PREAMBLE};
use towline_wire::handshake::{FEATURE_LZ4, NodeName, Welcome};
use towline_wire::message::{ErrorCode, ErrorHead, Heartbeat, PACKED_HEAD, PackedHead};
use towline_wire::{BLOCK, BatchView, Lsn, Seq, batch, round_up_to_block};

use super::acker::Acker;
use super::conn::Conn;
use super::frames::{self, LinkError};
use super::lookahead::Lookahead;
use super::packing;
use super::snapshot_in::{Incoming, Taken};
use super::to_replica::refusal_text;
use crate::limits;
use crate::protocol::replica::{Beginning, Plan};
use crate::protocol::squeeze;
use crate::rt::worker::Worker;
use crate::rt::{self, DmaBuf};
use crate::shard::Shard;
use crate::shard::wal::keep::LiveSuperblock;
use crate::shard::wal::ring::Batch;
use crate::shard::wal::{folder, open, replaced};

/// Follows the primary until the shard stops.
pub(crate) struct Follower {
    pub(crate) shard: Rc<Shard>,
    pub(crate) superblock: Rc<LiveSuperblock>,
    pub(crate) filler: Worker,
    pub(crate) name: NodeName,
    /// This process's number.
    pub(crate) process: u64,
    pub(crate) primary: SocketAddr,
    /// What it has of a snapshot.
    pub(crate) incoming: Incoming,
}

/// What a session came to.
pub(super) enum Ended {
    /// The tail was cut: say hello again at once.
    Cut,
    /// The link ended after it had begun to stream.
    Streamed(LinkError),
}

impl Follower {
    pub(crate) async fn run(self) {
        let longest = self.shard.config.reconnect_max;
        let mut pause = limits::RECONNECT_MIN.min(longest);
        let mut said = String::new();
        while !self.shard.is_stopped() {
            match self.session().await {
                Ok(Ended::Cut) => continue,
                Ok(Ended::Streamed(e)) => {
                    tracing::info!(shard = self.shard.id.0, "link to the primary ended: {e}");
                    *self.shard.link.borrow_mut() = format!("the link ended: {e}");
                    pause = limits::RECONNECT_MIN.min(longest);
                }
                Err(e) => {
                    // The same reason again and again is said once.
                    let text = e.to_string();
                    self.shard.link.borrow_mut().clone_from(&text);
                    if text != said {
                        tracing::warn!(shard = self.shard.id.0, primary = %self.primary, "no link to the primary: {text}");
                        said = text;
                    }
                }
            }
            self.pause(jitter(pause)).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Waits, unless the shard stops.
    async fn pause(&self, pause: Duration) {
        let stops = async {
            loop {
                let seen = self.shard.moved.seen();
                if self.shard.is_stopped() {
                    return;
                }
                self.shard.moved.since(seen).await;
            }
        };
        let _ = rt::timeout(pause, stops).await;
    }

    async fn session(&self) -> Result<Ended, LinkError> {
        // The hello says what the handler has, and whether it could begin further on.
        self.wait_until(|shard| shard.takes_gaps.get().is_some()).await?;
        let conn = Rc::new(Conn::connect(&self.primary).await?);
        let (gaps, rebuild) = (self.shard.takes_gaps.get() == Some(true), self.shard.config.rebuild);
        let (hello, is_empty) = {
            let inner = &mut *self.shard.inner.borrow_mut();
            let replica = inner.replica();
            replica.allow_begin(gaps, rebuild);
            replica.allow_snapshot(self.shard.takes_snapshots.get(), rebuild);
            (replica.hello(self.name, self.process).to_bytes(), replica.is_empty())
        };
        conn.send(&[&PREAMBLE, &frame::header(FrameKind::Hello, 0, 0, &hello), &hello]).await?;
        let welcome =
            rt::timeout(limits::HANDSHAKE_TIMEOUT, read_welcome(&conn)).await.unwrap_or(Err(LinkError::Idle))?;
        let plan = self.shard.inner.borrow_mut().replica().on_welcome(&welcome);
        let plan = match plan {
            Ok(plan) => plan,
            Err(violation) => {
                frames::send_error(&conn, ErrorCode::Refused, 0, &violation.to_string()).await;
                return Err(LinkError::Refused(violation.to_string()));
            }
        };
        match plan {
            Plan::Follow { term } => {
                if self.superblock.current().term < term && !canary!(PromiseNotDurable) {
                    // The promise to follow nobody older is durable before anything is taken.
                    let promised = self.superblock.persist(|s| s.term = term).await;
                    self.must(promised)?;
                }
                self.shard.inner.borrow_mut().replica().follow(&welcome);
                self.needs_no_snapshot();
                self.shard.linked_ns.set(rt::now_ns());
                self.shard.publish_commit();
                self.shard.count(|c| c.connects += 1);
                *self.shard.link.borrow_mut() = format!("following {}", self.primary);
                tracing::info!(shard = self.shard.id.0, primary = %self.primary, term = term.0, "following");
                Ok(Ended::Streamed(self.stream(conn, welcome.features & squeeze::features()).await))
            }
            Plan::Cut { to } => {
                drop(conn);
                self.cut(to).await?;
                Ok(Ended::Cut)
            }
            Plan::Begin(beginning) => {
                drop(conn);
                self.may_set_aside(beginning.known, is_empty).await?;
                self.begin(beginning).await?;
                Ok(Ended::Cut)
            }
            Plan::Snapshot { term, known } => {
                self.may_set_aside(known, is_empty).await?;
                self.take_snapshot(&conn, Taken { term, known }).await
            }
            Plan::NeedSnapshot { oldest } => {
                let what = match (gaps || self.shard.takes_snapshots.get(), is_empty || rebuild) {
                    (true, false) => {
                        "start the replica with --rebuild to have it begin anew there, or from an empty folder"
                    }
                    (true, true) if !gaps => "the node that it follows makes no snapshots, as no replica does",
                    (true, true) => "it is tried again",
                    (false, _) => {
                        "its handler has state, and would miss what came before: start the replica anew from a copy"
                    }
                };
                Err(LinkError::Refused(format!(
                    "this log, which ends at {}, ends or parts from the primary's before {oldest}, the oldest that the primary keeps: {what}",
                    self.shard.durable()
                )))
            }
            // The primary's own words name its positions too.
            Plan::Refused(cause) => Err(match rt::timeout(limits::DRAIN_TIMEOUT, read_reason(&conn)).await {
                Some(Ok(reason)) => reason,
                _ => LinkError::Refused(refusal_text(cause).into()),
            }),
        }
    }

    /// Whether the old log may be given up: no other one is set aside that somebody may need.
    async fn may_set_aside(&self, known: bool, is_empty: bool) -> Result<(), LinkError> {
        let folder = folder::shard_of(self.shard.segments.folder());
        let is_there = self.filler.call(move || replaced::is_there(&folder)).await;
        if self.must(is_there)? && !is_empty && !known {
            return Err(LinkError::Refused(
                "this log is too old, and may hold what the primary has not; another one is set aside already: \
                 look at `superblock.replaced` and `wal/*.replaced` in the shard's folder, and remove them"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Has the log begin anew where the primary's begins, or a snapshot stands.
    pub(super) async fn begin(&self, beginning: Beginning) -> Result<(), LinkError> {
        self.shard.cutting.set(true);
        self.shard.begin.set(Some(beginning));
        self.shard.keep.notify();
        let begun = self.wait_until(|shard| shard.begin.get().is_none() && shard.durable() == beginning.at).await;
        self.shard.cutting.set(false);
        self.shard.moved.notify();
        begun?;
        // The first hello after it says what the handler is given.
        self.wait_until(|shard| shard.begun.get().is_none()).await
    }

    /// Waits for something that is told by `moved`.
    async fn wait_until(&self, is: impl Fn(&Shard) -> bool) -> Result<(), LinkError> {
        loop {
            let seen = self.shard.moved.seen();
            if let Some(why) = self.shard.stopped() {
                return Err(LinkError::Stopped(why));
            }
            if is(&self.shard) {
                return Ok(());
            }
            self.shard.moved.since(seen).await;
        }
    }

    /// An error on the device is final (law 8).
    pub(super) fn must<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, LinkError> {
        result.map_err(|e| {
            self.shard.stop(&e.to_string());
            LinkError::Stopped(e.to_string())
        })
    }

    /// Cuts a tail that only this node has, after it is saved to a side file.
    async fn cut(&self, to: Lsn) -> Result<(), LinkError> {
        self.shard.cutting.set(true);
        let cut = self.cut_at_rest(to).await;
        self.shard.cutting.set(false);
        self.shard.moved.notify();
        cut
    }

    async fn cut_at_rest(&self, to: Lsn) -> Result<(), LinkError> {
        // What is in flight first comes to rest.
        while self.shard.inner.borrow().pipeline.in_flight() > 0 {
            let seen = self.shard.moved.seen();
            if let Some(why) = self.shard.stopped() {
                return Err(LinkError::Stopped(why));
            }
            self.shard.moved.since(seen).await;
        }
        let end = self.shard.durable();
        let folder = self.shard.segments.folder().to_path_buf();
        let place = self.filler.call({
            let (folder, superblock) = (folder.clone(), self.superblock.current());
            move || open::cut_place(&folder, &superblock, to, end)
        });
        let place = place.await.unwrap_or_else(|gone| Err(gone.into()));
        let place = self.must(place)?;
        let may = self.shard.inner.borrow_mut().replica().may_cut(place.end.lsn);
        may.map_err(|v| LinkError::Refused(v.to_string()))?;
        self.take_back(place.end.lsn, place.end.next_seq).await?;
        // The floor goes down first: a crash in between must find a log that may end early.
        let lowered = self.superblock.persist(|s| {
            s.floor_lsn = s.oldest_lsn;
            s.history.retain(|(_, first)| *first < to);
        });
        self.must(lowered.await)?;
        let superblock = self.superblock.current();
        let (new_end, last_batch) = (place.end, place.last_batch);
        let done = self.filler.call(move || open::cut(&folder, &superblock, &place, end)).await;
        let done = done.unwrap_or_else(|gone| Err(gone.into()));
        let side = self.must(done)?;
        {
            let inner = &mut *self.shard.inner.borrow_mut();
            inner.replica().on_cut(new_end);
            inner.pipeline.cut(new_end.lsn, last_batch);
            inner.ring.clear();
            (inner.chain, inner.next_seq) = (new_end.chain, new_end.next_seq);
            self.shard.cuts.set(self.shard.cuts.get() + 1);
        }
        self.shard.keep.notify();
        let (_, _, history) = self.shard.floor();
        let remembered = self.superblock.persist(|s| (s.history, s.slots) = (history, self.shard.slot_entries())).await;
        self.must(remembered)?;
        tracing::warn!(
            shard = self.shard.id.0,
            from = new_end.lsn.0,
            to = end.0,
            saved = %side.file_name().unwrap_or_default().display(),
            "cut a tail that the primary's history does not have"
        );
        self.shard.moved.notify();
        Ok(())
    }

    /// Has the handler take back everything from `to` on, before the log loses it.
    async fn take_back(&self, to: Lsn, seq: Seq) -> Result<(), LinkError> {
        self.shard.take_back.set(Some((to, seq)));
        self.shard.moved.notify();
        let is_back =
            |shard: &Shard| shard.take_back.get().is_none() && shard.inner.borrow_mut().replica().applied() <= to;
        self.wait_until(is_back).await
    }

    async fn stream(&self, conn: Rc<Conn>, features: u64) -> LinkError {
        let acker = Rc::new(Acker::new(&self.shard, &conn));
        let sending = rt::spawn_scoped({
            let acker = acker.clone();
            async move {
                acker.run().await;
            }
        });
        let watching = rt::spawn_scoped(watch_idle(conn.clone()));
        let e = match self.receive(&conn, &acker, features).await {
            Ok(()) => LinkError::Closed,
            Err(e) => e,
        };
        acker.end();
        drop(watching);
        // An ack that is being sent is finished first.
        e.end(&conn).await;
        drop(sending);
        self.shard.inner.borrow_mut().replica().on_link_lost();
        self.settle().await;
        e
    }

    /// Waits until everything received is on the device, so that the next hello says so.
    async fn settle(&self) {
        loop {
            let seen = self.shard.moved.seen();
            if self.shard.is_stopped() || self.shard.inner.borrow().pipeline.in_flight() == 0 {
                return;
            }
            self.shard.moved.since(seen).await;
        }
    }

    async fn receive(&self, conn: &Rc<Conn>, acker: &Acker, features: u64) -> Result<(), LinkError> {
        let mut ahead = Lookahead::new();
        let mut packed = Vec::new();
        loop {
            let header = ahead.take(conn, frame::HEADER).await.map_err(closed)?;
            let head = FrameHead::check(header.try_into().expect("a header's length"))?;
            acker.be_prompt(head.flags & FLAG_ACK_APPLIED != 0);
            match head.kind {
                FrameKind::Batch => {
                    let bytes = self.read_batch(conn, &head, &mut ahead).await?;
                    self.take_batch(conn, &head, bytes, acker).await?;
                }
                FrameKind::Packed if features & FEATURE_LZ4 != 0 => {
                    let bytes = self.read_packed(conn, &head, &mut ahead, &mut packed).await?;
                    self.take_batch(conn, &head, bytes, acker).await?;
                }
                FrameKind::Heartbeat => {
                    let payload = ahead.take(conn, head.len).await.map_err(closed)?;
                    head.check_payload(payload)?;
                    let beat = Heartbeat::check(payload)?;
                    let heard = self.shard.inner.borrow_mut().replica().on_heartbeat(&beat);
                    heard.map_err(|v| LinkError::Refused(v.to_string()))?;
                    self.shard.publish_commit();
                    if head.flags & FLAG_REPLY_NOW != 0 {
                        acker.reply_now(beat.time_us);
                    }
                    self.shard.moved.notify();
                }
                FrameKind::Goodbye => return Ok(()),
                FrameKind::Error => {
                    let payload = ahead.take(conn, head.len).await.map_err(closed)?;
                    return Err(error_of(&head, payload)?);
                }
                other => return Err(LinkError::OutOfPlace(other)),
            }
            self.shard.count_traffic(conn);
            rt::yield_if_needed().await;
        }
    }

    /// Reads a batch into a buffer for the device; also says how many bytes it has.
    async fn read_batch(
        &self,
        conn: &Conn,
        head: &FrameHead,
        ahead: &mut Lookahead,
    ) -> Result<(DmaBuf, usize), LinkError> {
        let wire_len = head.len;
        if wire_len <= batch::HEADER {
            return Err(LinkError::OutOfPlace(head.kind));
        }
        let mut buf = self.buffer(wire_len).await?;
        ahead.take_into(conn, &mut buf.as_mut()[..wire_len]).await.map_err(closed)?;
        Ok((buf, wire_len))
    }

    /// As [`Follower::read_batch`], for one that is compressed: `packed` is kept for the next one.
    async fn read_packed(
        &self,
        conn: &Conn,
        head: &FrameHead,
        ahead: &mut Lookahead,
        packed: &mut Vec<u8>,
    ) -> Result<(DmaBuf, usize), LinkError> {
        if head.len <= PACKED_HEAD {
            return Err(LinkError::OutOfPlace(head.kind));
        }
        // What it says is checked before memory is taken for it, and its CRC before it is used.
        let first: [u8; PACKED_HEAD] =
            ahead.take(conn, PACKED_HEAD).await.map_err(closed)?.try_into().expect("as asked");
        let wire_len = PackedHead::check(&first, head.len)?.batch_len;
        let mut buf = self.buffer(wire_len).await?;
        packed.clear();
        packed.extend_from_slice(&first);
        packed.resize(head.len, 0);
        ahead.take_into(conn, &mut packed[PACKED_HEAD..]).await.map_err(closed)?;
        head.check_payload(packed)?;
        if let Err(e) = packing::unpack(&packed[PACKED_HEAD..], &mut buf.as_mut()[..wire_len]) {
            return Err(self.bad_batch(conn, &format!("it cannot be decompressed: {e}")).await);
        }
        self.shard.count(|c| {
            c.packed_batches += 1;
            c.packed_from_bytes += wire_len as u64;
            c.packed_to_bytes += head.len as u64;
        });
        packed.shrink_to(limits::SQUEEZE_BYTES_MAX);
        Ok((buf, wire_len))
    }

    /// A buffer for a batch. Back-pressure: no memory is taken, and nothing is read, while the device
    /// is behind.
    async fn buffer(&self, wire_len: usize) -> Result<DmaBuf, LinkError> {
        let disk_len = round_up_to_block(wire_len as u64);
        self.wait_for_room(disk_len).await?;
        Ok(DmaBuf::new(disk_len as usize))
    }

    async fn bad_batch(&self, conn: &Conn, why: &str) -> LinkError {
        frames::send_error(conn, ErrorCode::BadBatch, 0, why).await;
        LinkError::Refused(format!("the primary sent a bad batch: {why}"))
    }

    /// Checks a batch and hands it to the device.
    async fn take_batch(
        &self,
        conn: &Conn,
        head: &FrameHead,
        (mut buf, wire_len): (DmaBuf, usize),
        acker: &Acker,
    ) -> Result<(), LinkError> {
        let received_ns = rt::now_ns();
        let bytes = buf.as_mut();
        bytes[wire_len..].fill(0);
        let view = match BatchView::check(&bytes[..wire_len]) {
            Ok(view) => view,
            Err(e) => return Err(self.bad_batch(conn, &e.to_string()).await),
        };
        {
            let h = *view.header();
            let inner = &mut *self.shard.inner.borrow_mut();
            let follows = inner.replica().on_batch(&h, Lsn(head.arg));
            follows.map_err(|v| LinkError::Refused(v.to_string()))?;
            (inner.chain, inner.next_seq) = (h.chain(), h.end_seq());
            self.shard.count(|c| {
                c.records += u64::from(h.record_count());
                c.body_bytes += h.body_len() as u64;
                c.batches += 1;
            });
            let ack_received = head.flags & FLAG_ACK_RECEIVED != 0;
            if ack_received {
                acker.reply_now(0);
            }
            let batch = Rc::new(Batch::live(buf.share(), round_up_to_block(wire_len as u64), ack_received));
            // Wakes the acker too.
            self.shard.submit(inner, batch, received_ns);
        }
        self.shard.publish_commit();
        Ok(())
    }

    async fn wait_for_room(&self, bytes: u64) -> Result<(), LinkError> {
        loop {
            let (work, room) = (self.shard.work.seen(), self.shard.room.seen());
            if let Some(why) = self.shard.stopped() {
                return Err(LinkError::Stopped(why));
            }
            let (may_write, end) = {
                let inner = self.shard.inner.borrow();
                (inner.pipeline.may_write(bytes), inner.pipeline.appended())
            };
            let has_segments = self.shard.segments.end().since(end) >= bytes;
            if may_write && has_segments {
                self.shard.arriving.set(0);
                return Ok(());
            }
            if !has_segments {
                // It may be larger than what is kept ready ahead.
                self.shard.arriving.set(bytes);
                self.shard.keep.notify();
            }
            if may_write { self.shard.room.since(room).await } else { self.shard.work.since(work).await }
        }
    }
}

pub(super) fn closed(e: io::Error) -> LinkError {
    if e.kind() == io::ErrorKind::UnexpectedEof { LinkError::Closed } else { LinkError::Io(e) }
}

fn jitter(pause: Duration) -> Duration {
    let mut random = [0];
    // Without randomness every replica comes back at the same moment, no worse.
    let _ = rt::random(&mut random);
    pause.mul_f64(0.5 + f64::from(random[0]) / 256.0)
}

/// Reads an error frame's payload: always an error, which one it says.
pub(super) async fn read_error(conn: &Conn, head: &FrameHead) -> Result<LinkError, LinkError> {
    let mut payload = vec![0; head.len];
    conn.receive_all(&mut payload, &mut []).await.map_err(closed)?;
    error_of(head, &payload)
}

fn error_of(head: &FrameHead, payload: &[u8]) -> Result<LinkError, LinkError> {
    head.check_payload(payload)?;
    let (_, text) = ErrorHead::check(payload)?;
    Ok(LinkError::Refused(format!("the primary says: {text}")))
}

pub(crate) async fn read_welcome(conn: &Conn) -> Result<Welcome, LinkError> {
    let mut header = [0; frame::HEADER];
    conn.receive_all(&mut header, &mut []).await.map_err(closed)?;
    let head = FrameHead::check(&header)?;
    match head.kind {
        FrameKind::Welcome => {
            let mut payload = vec![0; head.len];
            conn.receive_all(&mut payload, &mut []).await.map_err(closed)?;
            head.check_payload(&payload)?;
            Ok(Welcome::check(&payload)?)
        }
        FrameKind::Error => Err(read_error(conn, &head).await?),
        other => Err(LinkError::OutOfPlace(other)),
    }
}

/// The error frame that follows a refusal.
async fn read_reason(conn: &Conn) -> Result<LinkError, LinkError> {
    let mut header = [0; frame::HEADER];
    conn.receive_all(&mut header, &mut []).await.map_err(closed)?;
    let head = FrameHead::check(&header)?;
    match head.kind {
        FrameKind::Error => read_error(conn, &head).await,
        other => Err(LinkError::OutOfPlace(other)),
    }
}

/// Ends a connection whose peer has missed three heartbeats.
pub(super) async fn watch_idle(conn: Rc<Conn>) {
    loop {
        rt::sleep(limits::HEARTBEAT).await;
        if conn.silent_for() > 3 * limits::HEARTBEAT {
            conn.close();
            return;
        }
    }
}

const _: () = assert!(BLOCK > batch::HEADER);
