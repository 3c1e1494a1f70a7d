//! The replica's acks on a link.

use std::cell::Cell;
use std::rc::Rc;

use towline_wire::Lsn;
use towline_wire::frame::FrameKind;

use super::conn::Conn;
use super::frames::{self, LinkError};
use crate::limits;
use crate::shard::Shard;

/// Sends acks; those that come due while one is being sent go out as one.
pub(super) struct Acker {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    /// An ack is due although nothing was flushed or applied; with the time of the heartbeat that
    /// it answers, or 0.
    now: Cell<Option<u64>>,
    /// Somebody waits for what is applied.
    prompt: Cell<bool>,
    over: Cell<bool>,
}

impl Acker {
    pub(super) fn new(shard: &Rc<Shard>, conn: &Rc<Conn>) -> Self {
        Self {
            shard: shard.clone(),
            conn: conn.clone(),
            now: Cell::new(None),
            prompt: Cell::new(false),
            over: Cell::new(false),
        }
    }

    /// An ack is due now; with the time of the heartbeat that it answers, or 0.
    pub(super) fn reply_now(&self, echo_us: u64) {
        self.now.set(Some(echo_us));
    }

    /// Whether somebody waits for what is applied.
    pub(super) fn be_prompt(&self, prompt: bool) {
        self.prompt.set(prompt);
    }

    /// The link ends: who ends the connection is not this task any more.
    pub(super) fn end(&self) {
        self.over.set(true);
    }

    /// Sends acks until the link ends.
    pub(super) async fn run(&self) {
        let e = self.send_all().await;
        tracing::debug!(shard = self.shard.id.0, "acks ended: {e}");
        if !self.over.get() {
            self.conn.close();
        }
    }

    async fn send_all(&self) -> LinkError {
        let mut said = (Lsn(u64::MAX), Lsn::ZERO);
        loop {
            let seen = self.shard.moved.seen();
            if let Some(why) = self.shard.stopped() {
                return LinkError::Stopped(why);
            }
            if self.over.get() {
                return LinkError::Closed;
            }
            let now = self.now.take();
            let (ack, owed) = {
                let inner = &mut *self.shard.inner.borrow_mut();
                (inner.replica().ack(now.unwrap_or(0)), inner.replica().owed())
            };
            let late = self.conn.mute_for() >= limits::PIGGYBACK;
            // So that the primary hears of this node although, while its device is behind, it does
            // not read what would ask it to answer.
            let now = now.or_else(|| (self.conn.mute_for() >= limits::HEARTBEAT).then_some(0));
            let due = now.is_some() || ack.flushed != said.0 || (ack.applied != said.1 && (self.prompt.get() || late));
            if !due {
                if ack.applied != said.1 {
                    // The ack of the next batch carries it for nothing.
                    self.shard.notify_soon();
                }
                self.shard.moved.since(seen).await;
                continue;
            }
            if let Err(e) = frames::send(&self.conn, FrameKind::Ack, 0, owed, &ack.to_bytes()).await {
                return e.into();
            }
            said = (ack.flushed, ack.applied);
            self.shard.count(|c| c.acks += 1);
        }
    }
}
