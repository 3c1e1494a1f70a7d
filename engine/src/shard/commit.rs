//! Completions: the device or a replica has come further, the gate moves, waiters are told.

use std::io;
use std::rc::Rc;

use towline_wire::Lsn;
use towline_wire::message::Ack;

use super::wal::ring::Batch;
use super::{Inner, Role, Shard};
use crate::outcome::{Bookmark, Outcome};
use crate::protocol::gate::{Verdict, Waiter};
use crate::protocol::primary::AckViolation;
use crate::rt;
use crate::telemetry::{Stage, Telemetry};
use towline_wire::{ShardId, Term};

impl Shard {
    /// A write has ended. An error is final: nothing above what was durable before is ever
    /// acknowledged by this run.
    pub(crate) fn on_written(self: &Rc<Self>, batch: &Rc<Batch>, closed_ns: u64, written: io::Result<u64>) {
        let writes = match written {
            Ok(writes) => writes,
            Err(_) if canary!(WriteErrorIgnored) => 1,
            Err(e) => {
                self.failed.set(true);
                tracing::error!(shard = self.id.0, lsn = batch.lsn.0, "write failed, the shard stops: {e}");
                self.stop(&format!("writing the batch at LSN {} failed: {e}", batch.lsn));
                return;
            }
        };
        let now = rt::now_ns();
        {
            let inner = &mut *self.inner.borrow_mut();
            if self.failed.get() {
                // An earlier write failed: nothing above it counts any more.
                return;
            }
            let mut telemetry = self.telemetry.borrow_mut();
            telemetry.record(Stage::Write, now - closed_ns, 1);
            telemetry.counters.device_writes += writes;
            telemetry.counters.device_bytes += batch.disk_len();
            if let Some(durable) = inner.pipeline.complete(batch.end) {
                match &mut inner.role {
                    Role::Primary(p) => p.gate.on_durable(durable),
                    Role::Replica(r) => r.on_flushed(durable),
                }
                self.complete(inner, &mut telemetry, now);
                inner.trim_ring(self.config.live_window_bytes);
            }
        }
        if !canary!(LostWakeup) {
            self.work.notify();
        }
        self.moved.notify();
    }

    /// A replica's ack came in, and how much log in front of what it has flushed those below it need.
    pub(crate) fn on_ack(&self, (slot, link): (usize, u64), ack: &Ack, owed: u64) -> Result<(), AckViolation> {
        let now = rt::now_ns();
        let before;
        {
            let inner = &mut *self.inner.borrow_mut();
            before = inner.committed();
            inner.feeding().on_ack(slot, link, ack, now)?;
            inner.feeding().on_owed(slot, link, owed);
            let mut telemetry = self.telemetry.borrow_mut();
            telemetry.counters.acks += 1;
            self.complete(inner, &mut telemetry, now);
            self.weigh_freshness(inner);
        }
        // Links and tails care for the commit LSN only.
        if self.committed() > before {
            self.moved.notify();
        }
        Ok(())
    }

    /// A replica has come back: what it holds may let commits through.
    pub(crate) fn after_attach(&self) {
        {
            let inner = &mut *self.inner.borrow_mut();
            let mut telemetry = self.telemetry.borrow_mut();
            self.complete(inner, &mut telemetry, rt::now_ns());
            self.weigh_freshness(inner);
        }
        self.moved.notify();
    }

    pub(super) fn complete(&self, inner: &mut Inner, telemetry: &mut Telemetry, news_ns: u64) {
        self.watermark.publish(inner.committed());
        let Role::Primary(primary) = &mut inner.role else { return };
        if primary.is_deposed() {
            return;
        }
        let (shard, term, lanes) = (self.id, primary.term, &inner.lanes);
        let mut completed = 0;
        primary.gate.complete(|waiter, verdict| {
            completed += u64::from(waiter.count);
            telemetry.record(Stage::Commit, news_ns - waiter.since_ns.min(news_ns), u64::from(waiter.count));
            lanes.complete(waiter.lane, waiter.first, waiter.count, &outcome(shard, term, waiter, verdict));
        });
        if completed > 0 {
            telemetry.counters.committed += completed;
            telemetry.record(Stage::Gate, rt::now_ns() - news_ns, 1);
        }
    }

    /// Gives up on commits whose deadline has passed, those of the open batch too.
    pub(crate) fn expire(&self) {
        if self.expire_all() {
            // Who waits for room has a deadline too.
            self.room.notify();
        }
    }

    /// Says whether something keeps the open batch from being closed.
    fn expire_all(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.spare.tick();
        let Role::Primary(primary) = &mut inner.role else { return false };
        let (shard, term, lanes) = (self.id, primary.term, &inner.lanes);
        let mut telemetry = self.telemetry.borrow_mut();
        primary.gate.expire(rt::now_ns(), |waiter, verdict| {
            telemetry.counters.timed_out += u64::from(waiter.count);
            lanes.complete(waiter.lane, waiter.first, waiter.count, &outcome(shard, term, waiter, verdict));
        });
        let Some(open) = &mut inner.open else { return false };
        // Where it may end at most: what is committed up to there, these records are too.
        let lsn = Lsn(inner.pipeline.appended().0 + open.capacity() as u64);
        let bookmark = Bookmark { shard, term, lsn };
        open.expire(rt::now_ns(), |lane, first, count, wish| {
            telemetry.counters.timed_out += u64::from(count);
            let wanted = wish.need.replicas;
            lanes.complete(lane, first, count, &Outcome::TimedOut { bookmark, durable_here: false, acks: 0, wanted });
        });
        open.is_stuck()
    }

    /// A newer term was seen: this primary can finish no commit any more.
    pub(crate) fn fence(&self) {
        {
            let inner = &mut *self.inner.borrow_mut();
            let Role::Primary(primary) = &mut inner.role else { return };
            primary.depose();
            inner.fail_waiters(Outcome::Fenced);
        }
        self.room.notify();
        self.moved.notify();
    }
}

fn outcome(shard: ShardId, term: Term, waiter: &Waiter, verdict: Verdict) -> Outcome {
    let bookmark = Bookmark { shard, term, lsn: waiter.end };
    match verdict {
        Verdict::Committed { acks } => Outcome::Committed { bookmark, acks },
        Verdict::TimedOut { durable_here, acks, wanted } => Outcome::TimedOut { bookmark, durable_here, acks, wanted },
    }
}

impl Inner {
    /// Tells every waiter, those of the open batch too, that no commit will come.
    pub(crate) fn fail_waiters(&mut self, outcome: Outcome) {
        let Role::Primary(primary) = &mut self.role else { return };
        let lanes = &self.lanes;
        primary.gate.drain(|w| lanes.complete(w.lane, w.first, w.count, &outcome));
        if let Some(open) = self.open.take() {
            open.each_run(|lane, first, count| lanes.complete(lane, first, count, &outcome));
        }
    }

    /// What a heartbeat says: the log's end, and what is committed.
    pub(crate) fn tail(&self) -> Lsn {
        self.pipeline.appended()
    }
}
