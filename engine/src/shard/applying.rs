//! The task that gives a replica's batches to the embedder's handler, in order.

use std::rc::Rc;

use towline_wire::{BatchView, Lsn, Seq};

use super::Shard;
use super::wal::cursor::{Cursor, position_at};
use crate::apply::{AppliedBatch, Apply, ApplyError, Deliver};
use crate::protocol::replica::Beginning;
use crate::rt;
use crate::telemetry::Stage;

/// Runs until the shard stops; an error stops it.
pub(crate) async fn run(shard: Rc<Shard>, mut handler: Box<dyn Apply>) {
    if let Err(e) = apply_all(&shard, &mut *handler).await {
        tracing::error!(shard = shard.id.0, "applying failed, the shard stops: {e}");
        shard.stop(&format!("applying failed: {e}"));
    }
}

async fn apply_all(shard: &Rc<Shard>, handler: &mut dyn Apply) -> Result<(), ApplyError> {
    let deliver = handler.deliver();
    let resume = handler.resume_at(shard.id);
    let (oldest, end) = {
        let inner = shard.inner.borrow();
        (inner.oldest, inner.pipeline.durable())
    };
    // A handler that stands further on than the log ends has installed a snapshot, and the node has died
    // before the log began there: that is done now. Without a note of where that was, as of an older build, it
    // goes on there, whether the log comes to it batch by batch or with the next snapshot.
    shard.takes_snapshots.set(shard.config.snapshot.is_some() && deliver == Deliver::Committed);
    let mut ahead = resume > end && shard.takes_snapshots.get();
    if resume > end && !ahead {
        return Err(ApplyError(format!("the handler stands at LSN {resume}, the log ends at {end}")));
    }
    if resume < oldest && !handler.takes_gaps() {
        return Err(ApplyError(format!("the handler stands at LSN {resume}, the oldest kept is {oldest}")));
    }
    if deliver == Deliver::Committed {
        // Before anything is awaited: the first hello says it.
        shard.inner.borrow_mut().replica().on_resumed(resume);
        shard.publish_commit();
    }
    // Who keeps nothing need not be given again what was there before.
    let from = if handler.takes_gaps() { resume.max(shard.committed()).max(oldest) } else { resume };
    let mut cursor = Cursor::new(shard, from);
    let next = cursor.next();
    if next > Lsn::ZERO && !ahead {
        let seq = if next == end {
            Some(shard.inner.borrow_mut().replica().next_seq())
        } else {
            position_at(shard, next).await.map_err(|e| ApplyError(e.to_string()))?.map(|(_, seq)| seq)
        };
        let seq = seq.ok_or_else(|| ApplyError(format!("the handler stands at LSN {next}, where no batch starts")))?;
        shard.inner.borrow_mut().replica().on_applied(next, seq);
    }
    if let Some(noted) = shard.noted.take() {
        if ahead && noted.at == resume {
            begin(shard, noted).await;
        } else {
            shard.not_installed.set(true);
            shard.keep.notify();
        }
    }
    loop {
        let seen = shard.moved.seen();
        if shard.is_stopped() {
            return Ok(());
        }
        if let Some((at, seq)) = shard.begun.take() {
            if shard.installed.take() {
                let stands = handler.resume_at(shard.id);
                if stands != at {
                    return Err(ApplyError(format!(
                        "the handler stands at LSN {stands} after a snapshot was installed that stands at {at}"
                    )));
                }
                ahead = false;
            }
            // One that is ahead even of that waits on.
            ahead &= cursor.next() > at;
            if !ahead {
                cursor = Cursor::new(shard, at);
                shard.inner.borrow_mut().replica().on_applied(at, seq);
            }
            shard.moved.notify();
        }
        if ahead && !shard.cutting.get() {
            match reached(shard, cursor.next()).await? {
                Some(seq) if !shard.cutting.get() && cursor.next() <= shard.durable() => {
                    shard.inner.borrow_mut().replica().on_applied(cursor.next(), seq);
                    ahead = false;
                }
                _ => {}
            }
        }
        if !shard.cutting.get() && shard.takes_gaps.replace(Some(handler.takes_gaps())).is_none() {
            shard.moved.notify();
        }
        let limit = match deliver {
            Deliver::Committed if canary!(ApplyUncommitted) => shard.durable(),
            Deliver::Committed => shard.committed(),
            Deliver::Flushed => shard.durable(),
        };
        if shard.cutting.get() {
            // The handler goes back before the log is cut: after a crash in between it is given again
            // what it took back, and never stands on records that the log does not have.
            if let Some((to, seq)) = shard.take_back.take() {
                // One that is ahead has nothing of what is cut.
                if cursor.next() > to && !ahead {
                    if !canary!(ApplyForgetsCut) {
                        handler.cut(shard.id, to)?;
                    }
                    cursor = Cursor::new(shard, to);
                    shard.inner.borrow_mut().replica().on_applied(to, seq);
                }
                shard.moved.notify();
            } else {
                shard.moved.since(seen).await;
            }
            continue;
        }
        let (cuts, at) = (shard.cuts.get(), cursor.next());
        let next = if ahead { Ok(None) } else { cursor.next_batch(limit).await };
        if shard.cutting.get() || shard.cuts.get() != cuts {
            // What was read may be what is cut.
            cursor = Cursor::new(shard, at);
            continue;
        }
        let next = next.map_err(|e| ApplyError(e.to_string()))?;
        let Some(batch) = next else {
            shard.moved.since(seen).await;
            continue;
        };
        let began = rt::now_ns();
        let view = BatchView::of_checked(batch.wire()).map_err(|e| ApplyError(e.to_string()))?;
        handler.apply(&AppliedBatch::new(view))?;
        shard.telemetry.borrow_mut().record(Stage::Apply, rt::now_ns() - began, 1);
        {
            let inner = &mut *shard.inner.borrow_mut();
            // A cut while the batch was read from disk: the next round takes it back.
            if batch.end <= inner.pipeline.durable() {
                inner.replica().on_applied(batch.end, batch.end_seq);
                inner.trim_ring(shard.config.live_window_bytes);
            }
        }
        shard.moved.notify();
        rt::yield_if_needed().await;
    }
}

/// Has the log begin where a snapshot stands that was installed before the node died. There is no link yet.
async fn begin(shard: &Rc<Shard>, noted: Beginning) {
    tracing::warn!(shard = shard.id.0, at = noted.at.0, "a snapshot was installed before the last end of this node");
    let term = shard.inner.borrow().term().max(noted.term);
    shard.installed.set(true);
    // A shard that has stopped meanwhile says so itself.
    let _ = shard.begin_anew(Beginning { term, ..noted }).await;
}

/// The number of the record at `next`, where a handler stands that is ahead of the log, once the log has come
/// there.
async fn reached(shard: &Rc<Shard>, next: Lsn) -> Result<Option<Seq>, ApplyError> {
    let (durable, at_end) = {
        let inner = &mut *shard.inner.borrow_mut();
        let durable = inner.pipeline.durable();
        (durable, (inner.pipeline.appended() == durable).then_some(inner.next_seq))
    };
    if durable == next {
        return Ok(at_end);
    }
    if durable < next {
        return Ok(None);
    }
    let position = position_at(shard, next).await.map_err(|e| ApplyError(e.to_string()))?;
    let seq = position.map(|(_, seq)| seq);
    seq.map(Some).ok_or_else(|| ApplyError(format!("the handler stands at LSN {next}, where no batch starts")))
}
