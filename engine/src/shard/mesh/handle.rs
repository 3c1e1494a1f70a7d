//! The handle: appends from any thread or runtime.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use towline_wire::ShardId;

use super::inbox::{Outlet, Request, rings};
use super::ticket::{Ticket, TicketSlots};
use crate::limits;
use crate::node::NodeShared;
use crate::outcome::AppendError;
use crate::protocol::policy::CommitPolicy;
use crate::rt;

/// What one append asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendOptions {
    /// What the commit waits for; `None` for what the node is configured with when the shard takes it.
    pub policy: Option<CommitPolicy>,
    /// How long it waits; `None` for what the node is configured with.
    pub deadline: Option<Duration>,
}

/// Appends to a primary's shards from any thread.
///
/// A handle may be shared, but each clone has rings of its own to each shard, so a clone for each
/// thread is faster. An append is in the primary's memory when the call returns; its [`Ticket`]
/// says what became of it.
pub struct Handle {
    node: Arc<NodeShared>,
    /// Made at the first append to each shard.
    lanes: Box<[Mutex<Option<HandleLane>>]>,
}

#[derive(Debug)]
struct HandleLane {
    outlet: Outlet,
    slots: Arc<TicketSlots>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({} shards)", self.lanes.len())
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(self.node.clone())
    }
}

impl Handle {
    pub(crate) fn new(node: Arc<NodeShared>) -> Self {
        let lanes = (0..node.shard_count).map(|_| Mutex::new(None)).collect();
        Self { node, lanes }
    }

    /// Shards of the node.
    #[must_use]
    pub fn shard_count(&self) -> u32 {
        self.node.shard_count
    }

    /// Appends a record with the node's own policy and deadline.
    ///
    /// # Errors
    /// As [`Handle::try_append`].
    pub fn append(&self, shard: ShardId, record: &[u8]) -> Result<Ticket, AppendError> {
        self.append_with(shard, record, AppendOptions::default())
    }

    /// Appends a record, and waits on this thread for room if the shard's buffers are full, or if
    /// [`limits::TICKETS_MAX`] tickets of this handle and shard are open. A ticket is open until its
    /// outcome was taken or it was dropped.
    ///
    /// # Errors
    /// As [`Handle::try_append`], except [`AppendError::WouldBlock`]; and
    /// [`AppendError::TooManyTickets`] only once every open ticket has its outcome and, for
    /// [`limits::TICKETS_PATIENCE`], nobody has taken one: a thread that keeps all of them would wait
    /// for itself.
    pub fn append_with(&self, shard: ShardId, record: &[u8], options: AppendOptions) -> Result<Ticket, AppendError> {
        let mut pause = Duration::from_micros(20);
        let mut kept_since = None;
        loop {
            let result = self.try_append(shard, record, options);
            match &result {
                Err(AppendError::WouldBlock) => kept_since = None,
                Err(AppendError::TooManyTickets) if self.may_free(shard) => kept_since = None,
                Err(AppendError::TooManyTickets) => {
                    if kept_since.get_or_insert_with(Instant::now).elapsed() > limits::TICKETS_PATIENCE {
                        return result;
                    }
                }
                _ => return result,
            }
            // The ring empties at the speed of the disk: some hundred microseconds.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Whether a ticket of this handle and shard may be free without anybody taking an outcome.
    fn may_free(&self, shard: ShardId) -> bool {
        let lane = self.lanes[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner);
        lane.as_ref().is_none_or(|lane| lane.slots.may_free())
    }

    /// Appends a record if there is room now.
    ///
    /// # Errors
    /// What is known at once: no such shard, a record above the limit, a shard that has stopped, or
    /// [`AppendError::WouldBlock`] if the rings are full, or [`AppendError::TooManyTickets`] if
    /// [`limits::TICKETS_MAX`] are open. What the shard finds out later, the ticket says. Nothing was
    /// written where an error is returned.
    pub fn try_append(&self, shard: ShardId, record: &[u8], options: AppendOptions) -> Result<Ticket, AppendError> {
        let Some(lane) = self.lanes.get(shard.0 as usize) else { return Err(AppendError::NoSuchShard(shard)) };
        let max = self.node.record_bytes_max;
        if record.len() > max {
            return Err(AppendError::TooLarge { bytes: record.len(), max });
        }
        let inbox = self.node.inbox_of(shard);
        if inbox.is_closed() {
            return Err(AppendError::Stopped("the node was stopped".into()));
        }
        if self.node.fenced.load(Ordering::Relaxed) {
            return Err(AppendError::Fenced);
        }
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lane.get_or_insert_with(|| {
            let slots = TicketSlots::new(shard);
            let (outlet, intake) = rings(slots.clone());
            inbox.add(intake);
            HandleLane { outlet, slots }
        });
        let inline = record.len() <= limits::INBOX_INLINE_MAX;
        if lane.outlet.requests.is_full() || (inline && lane.outlet.bytes.slots() < record.len()) {
            return Err(AppendError::WouldBlock);
        }
        let Some(slot) = lane.slots.take() else { return Err(AppendError::TooManyTickets) };
        if inline {
            let mut chunk = lane.outlet.bytes.write_chunk(record.len()).expect("room was checked above");
            let (a, b) = chunk.as_mut_slices();
            let (first, second) = record.split_at(a.len());
            a.copy_from_slice(first);
            b[..second.len()].copy_from_slice(second);
            chunk.commit_all();
        }
        let request = Request {
            len: record.len() as u32,
            slot,
            policy: options.policy,
            deadline: options.deadline,
            at_ns: rt::now_ns(),
            large: (!inline).then(|| record.into()),
        };
        lane.outlet.requests.push(request).expect("room was checked above");
        let ticket = Ticket::new(lane.slots.clone(), slot);
        inbox.wake();
        if inbox.is_closed() {
            // It may have closed between the check above and the push; whoever closed it may not
            // have seen the request.
            lane.slots.resolve_if_waiting(slot);
        }
        Ok(ticket)
    }
}
