//! The replica's end of a link: connects, says hello, takes batches straight into buffers for the
//! device, acknowledges.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline_wire::handshake::{NodeName, Welcome};
use towline_wire::message::{ErrorCode, ErrorHead};
use towline_wire::{BLOCK, Lsn, Seq, batch};

use super::acker::Acker;
use super::conn::Conn;
use super::frames::{self, LinkError};
use super::snapshot_in::{Incoming, Taken};
use super::to_replica::refusal_text;
use crate::limits;
use crate::protocol::replica::{Beginning, LogEnd, Plan};
use crate::protocol::squeeze;
use crate::rt;
use crate::rt::worker::Worker;
use crate::shard::Shard;
use crate::shard::wal::keep::LiveSuperblock;
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
    /// Where the log that is kept begins, if a cut would take all of it: the next hello asks what comes then.
    pub(crate) asks_from: Cell<Option<LogEnd>>,
}

/// What a session came to.
pub(super) enum Ended {
    /// The tail was cut, or all of the log would have been: say hello again at once.
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
        let asks_from = self.asks_from.take();
        let conn = Rc::new(Conn::connect(&self.primary).await?);
        let (gaps, rebuild) = (self.shard.takes_gaps.get() == Some(true), self.shard.config.rebuild);
        let (hello, is_empty) = {
            let inner = &mut *self.shard.inner.borrow_mut();
            let replica = inner.replica();
            replica.allow_begin(gaps, rebuild);
            replica.allow_snapshot(self.shard.takes_snapshots.get(), rebuild);
            replica.ask_from(asks_from);
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
                self.shard.needs_rebuild.set(false);
                self.shard.linked_ns.set(rt::now_ns());
                self.shard.publish_commit();
                self.shard.count(|c| c.connects += 1);
                *self.shard.link.borrow_mut() = format!("following {}", self.primary);
                tracing::info!(shard = self.shard.id.0, primary = %self.primary, term = term.0, "following");
                Ok(Ended::Streamed(self.stream(conn, welcome.features & squeeze::features()).await))
            }
            Plan::Cut { to } => {
                drop(conn);
                self.cut(to, false).await?;
                Ok(Ended::Cut)
            }
            Plan::CutAll { to } => {
                drop(conn);
                self.cut(to, true).await?;
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
                let (could, may) = (gaps || self.shard.takes_snapshots.get(), is_empty || rebuild);
                self.shard.needs_rebuild.set(could && !may);
                let what = match (could, may) {
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
        let stays = self.filler.call(move || replaced::stays(&folder)).await;
        if self.must(stays)? && !is_empty && !known {
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
        self.shard.begin_anew(beginning).await.map_err(LinkError::Stopped)?;
        // The first hello after it says what the handler is given.
        self.wait_until(|shard| shard.begun.get().is_none()).await
    }

    /// Waits for something that is told by `moved`.
    async fn wait_until(&self, is: impl Fn(&Shard) -> bool) -> Result<(), LinkError> {
        self.shard.wait_until(is).await.map_err(LinkError::Stopped)
    }

    /// An error on the device is final (law 8).
    pub(super) fn must<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, LinkError> {
        result.map_err(|e| {
            self.shard.stop(&e.to_string());
            LinkError::Stopped(e.to_string())
        })
    }

    /// Cuts a tail that only this node has, after it is saved to a side file. If that is `all` of a log that
    /// has let go of its beginning, it is done only if the primary was asked what comes then.
    async fn cut(&self, to: Lsn, all: bool) -> Result<(), LinkError> {
        self.shard.cutting.set(true);
        let cut = self.cut_at_rest(to, all).await;
        self.shard.cutting.set(false);
        self.shard.moved.notify();
        cut
    }

    async fn cut_at_rest(&self, to: Lsn, all: bool) -> Result<(), LinkError> {
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
        if place.base.is_some() && !all {
            self.asks_from.set(Some(place.end));
            return Ok(());
        }
        self.take_back(place.end.lsn, place.end.next_seq).await?;
        // The floor goes down first: a crash in between must find a log that may end early.
        let lowered = self.superblock.persist(|s| {
            s.floor_lsn = s.oldest_lsn;
            s.base = s.base.or(place.base);
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
        self.shard.count(|c| {
            c.cuts += 1;
            c.whole_cuts += u64::from(all);
        });
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

pub(super) fn error_of(head: &FrameHead, payload: &[u8]) -> Result<LinkError, LinkError> {
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
