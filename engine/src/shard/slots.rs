//! The shell around slots and retention: asks [`crate::protocol`], tells what was lost, makes changes
//! durable.

use std::rc::Rc;

use towline_wire::handshake::NodeName;
use towline_wire::message::{SlotAction, SlotRequest};
use towline_wire::superblock::{SlotEntry, SlotLoss};
use towline_wire::{BLOCK, Lsn};

use super::wal::keep::LiveSuperblock;
use super::{Inner, Role, Shard, ack_histograms};
use crate::protocol::retention::{Log, Recycling};
use crate::protocol::slots::SlotError;
use crate::rt;

/// A change that somebody asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SlotChange {
    /// Make a slot, or a lost one anew.
    Make { name: NodeName, temporary: bool },
    /// Remove one.
    Remove { name: NodeName },
}

impl From<SlotRequest> for SlotChange {
    fn from(request: SlotRequest) -> Self {
        let name = request.name;
        match request.action {
            SlotAction::Create => Self::Make { name, temporary: false },
            SlotAction::CreateTemporary => Self::Make { name, temporary: true },
            SlotAction::Drop => Self::Remove { name },
        }
    }
}

impl Inner {
    /// Where the log stands, for what may go of it.
    fn log(&self) -> Log {
        let commit = match &self.role {
            Role::Primary(p) => p.gate.commit(),
            // Down to what is committed it may still be cut, and one batch before that must be left
            // to go on from.
            Role::Replica(r) => r.applied().min(Lsn(r.committed().0.saturating_sub(1))),
        };
        Log {
            appended: self.pipeline.appended(),
            durable: self.pipeline.durable(),
            last_durable: self.pipeline.last_durable(),
            commit,
            trim_to: self.trim_to,
            archived: self.archived,
        }
    }
}

impl Shard {
    /// What the superblock is to say of slots.
    pub(crate) fn slot_entries(&self) -> Vec<SlotEntry> {
        self.inner.borrow().slots().entries()
    }

    /// What may go now, and which slots would go before it.
    pub(crate) fn recyclable(&self) -> Recycling {
        let inner = self.inner.borrow();
        let (limits, log, slots) = (self.live.retention.get(), inner.log(), inner.slots());
        limits.keep_below(&log, limits.recycle(&log, slots.holding()), slots.holding_below())
    }

    /// Slots that hold too much are lost. Returns up to where the log may go then.
    pub(crate) fn recycle(&self) -> Lsn {
        let recycling = self.recyclable();
        self.inner.borrow_mut().feeding().lose_for_cap(&recycling.lost, rt::now_ns());
        recycling.below
    }

    /// Whether more than the cap is kept.
    pub(crate) fn is_over_cap(&self) -> bool {
        let inner = self.inner.borrow();
        self.live.retention.get().cap.is_some_and(|cap| inner.pipeline.appended().since(inner.oldest) >= cap)
    }

    /// Whether the log may have another segment.
    pub(crate) fn may_grow(&self) -> bool {
        let inner = self.inner.borrow();
        matches!(inner.role, Role::Replica(_)) || self.live.retention.get().may_grow(&inner.log())
    }

    /// Slots that nobody has used for too long are lost.
    pub(crate) fn expire_slots(&self) {
        self.inner.borrow_mut().feeding().expire_slots(self.live.slot_idle_max.get(), rt::now_ns());
        self.tell_lost();
    }

    /// Says and counts which slots were lost, and ends their links. Says whether there were any.
    pub(crate) fn tell_lost(&self) -> bool {
        let (lost, oldest, end) = {
            let inner = &mut *self.inner.borrow_mut();
            (inner.feeding().take_lost(), inner.oldest, inner.pipeline.appended())
        };
        for slot in &lost {
            tracing::warn!(
                shard = self.id.0,
                replica = %slot.name,
                cause = slot.cause.name(),
                restart = slot.restart.0,
                oldest = oldest.0,
                end = end.0,
                "slot lost: nothing is kept for it, and its replica is refused until the slot is made anew"
            );
            self.count(|c| match slot.cause {
                SlotLoss::RetentionCap => c.slots_lost_retention_cap += 1,
                SlotLoss::Idle => c.slots_lost_idle += 1,
                SlotLoss::Removed => c.slots_lost_removed += 1,
                SlotLoss::Diverged => c.slots_lost_diverged += 1,
            });
        }
        if !lost.is_empty() {
            self.weigh_freshness(&self.inner.borrow());
            self.moved.notify();
            self.keep.notify();
        }
        !lost.is_empty()
    }
}

/// Makes a change; it is durable when this returns.
pub(crate) async fn change(
    shard: &Rc<Shard>,
    superblock: &LiveSuperblock,
    change: SlotChange,
) -> Result<(), SlotError> {
    if let Some(why) = shard.stopped() {
        return Err(SlotError::NotServing(why));
    }
    if shard.cutting.get() {
        return Err(SlotError::NotServing("this replica's log is being cut or begins anew: try again".into()));
    }
    let (now, name) = (
        rt::now_ns(),
        match change {
            SlotChange::Make { name, .. } | SlotChange::Remove { name } => name,
        },
    );
    // What may go anyway, or is about to, is not held: else the slot could be lost at once.
    let going = shard.recyclable().below;
    {
        let inner = &mut *shard.inner.borrow_mut();
        let oldest = inner.oldest.max(Lsn(going.0 - going.0 % BLOCK as u64));
        let p = inner.feeding();
        match change {
            SlotChange::Make { name, temporary } => {
                let slot = p.make_slot(name, temporary, oldest, now)?;
                let mut times = shard.ack_times.borrow_mut();
                while times.len() <= slot {
                    times.push(ack_histograms());
                }
                times[slot] = ack_histograms();
            }
            SlotChange::Remove { .. } => p.remove_slot(name, now)?,
        }
    }
    shard.tell_lost();
    if let SlotChange::Make { temporary, .. } = change {
        tracing::info!(shard = shard.id.0, replica = %name, temporary, "slot made");
    }
    shard.count(|c| c.superblock_writes += 1);
    let written = superblock.persist(|s| s.slots = shard.slot_entries()).await;
    written.map_err(|e| {
        shard.stop(&e.to_string());
        SlotError::NotServing(e.to_string())
    })
}
