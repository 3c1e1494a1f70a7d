//! Where a shard stands, for a simulator's checks between any two steps.

use std::rc::Rc;

use super::append::OpenBatch;
use super::{Role, Shard};
use crate::limits;
use crate::protocol::builder::buffer_for;
use crate::protocol::gate::CommitGate;
use crate::protocol::replica::Replica;
use crate::protocol::slots::Slot;
use crate::protocol::snapshot::Sending;
use crate::rt::world::{self, ShardView, SlotView};
use towline_wire::Lsn;

impl Shard {
    /// Lets the world of this thread look at the shard for as long as it lives.
    pub(super) fn be_watched(self: &Rc<Self>) {
        let Some(world) = world::current() else { return };
        let shard = Rc::downgrade(self);
        world.watch(Box::new(move || shard.upgrade().map(|shard| shard.view())));
    }

    fn view(&self) -> ShardView {
        let inner = self.inner.borrow();
        let (applied, is_deposed, gate) = match &inner.role {
            Role::Primary(p) => (p.gate.commit(), p.is_deposed(), Some(&p.gate)),
            Role::Replica(r) => (r.applied(), false, None),
        };
        let counted = |n: usize| gate.and_then(|g| g.slot(n));
        let slot = |(n, s): (usize, &Slot)| SlotView {
            name: s.name.to_string(),
            connected: s.link.is_some(),
            lost: s.lost,
            restart: s.restart,
            sent: s.sent,
            received: s.at.received,
            flushed: s.at.flushed,
            applied: s.at.applied,
            counts: counted(n).is_some(),
            heard_ns: s.heard_ns(),
            counted: counted(n).map_or(Lsn::ZERO, |at| at.flushed),
        };
        let slots = inner.slots().iter().map(slot).collect();
        ShardView {
            shard: self.id,
            is_primary: matches!(inner.role, Role::Primary(_)),
            depth: inner.replica_if_any().map_or(0, Replica::depth),
            term: inner.term(),
            oldest: inner.oldest,
            begun: inner.replica_if_any().map_or(Lsn::ZERO, Replica::begun),
            commit: inner.committed(),
            durable: inner.pipeline.durable(),
            appended: inner.pipeline.appended(),
            in_flight_bytes: inner.pipeline.appended().since(inner.pipeline.durable()),
            in_flight_bytes_max: self.config.in_flight_bytes_max,
            ring_bytes: inner.ring.bytes(),
            live_window_bytes: self.config.live_window_bytes,
            open_bytes: (inner.open.as_ref().map_or(0, OpenBatch::memory) + inner.spare.bytes()) as u64,
            open_bytes_max: (limits::BUFFER_BATCHES * self.config.batch_bytes
                + buffer_for(self.config.record_bytes_max)) as u64,
            arriving_bytes: self.arriving.get(),
            snapshot_chunks: self.producing.borrow().iter().flat_map(|p| &p.sending).map(Sending::held).sum(),
            ahead_bytes: self.ahead_bytes.get(),
            link_window: self.live.flow.get().link_window,
            applied,
            next_seq: inner.next_seq,
            stopped: inner.stopped.clone(),
            unlinked: Some(self.link.borrow())
                .filter(|l| !l.starts_with("following 10."))
                .map_or(String::new(), |l| l.clone()),
            is_deposed,
            slots,
            settings_version: self.live.version.get(),
            min_replicas: self.live.min_replicas(),
            overdue: matches!(&inner.role, Role::Primary(p) if p.gate.is_overdue()),
            waits_from: gate.and_then(CommitGate::waits_from),
            segment_bytes: self.config.segment_bytes,
            segments_ahead: self.config.segments_ahead,
            cap: self.live.retention.get().cap,
            keep: self.config.keep,
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        if let Some(world) = world::current() {
            world.counted(&self.telemetry.borrow().counters);
        }
    }
}
