//! Tickets: what an append from another thread returns. A ticket is a future for any executor, and
//! can be waited on by a thread.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use towline_wire::{Lsn, ShardId, Term};

use super::wake_times::WakeTimes;
use crate::limits;
use crate::outcome::{AppendError, Bookmark, Outcome};
use crate::rt;
use crate::sync::{AtomicU32, AtomicU64, AtomicWaker, Mutex, OnceLock};

const FREE: u32 = 0;
const WAITING: u32 = 1;
const COMMITTED: u32 = 2;
const TIMED_OUT: u32 = 3;
const FENCED: u32 = 4;
const STOPPED: u32 = 5;
const REFUSED: u32 = 6;
/// Its ticket was dropped before the outcome came.
const ABANDONED: u32 = 7;

/// Where one ticket's outcome is put.
#[derive(Debug, Default)]
struct Slot {
    state: AtomicU32,
    /// `durable_here`, acks and wanted, a byte each.
    detail: AtomicU32,
    lsn: AtomicU64,
    term: AtomicU64,
    resolved_ns: AtomicU64,
    waker: AtomicWaker,
}

/// So many blocks have room for [`limits::TICKETS_MAX`].
const BLOCKS: usize = (limits::TICKETS_MAX / limits::TICKETS_FIRST).ilog2() as usize + 1;
const _: () = assert!(limits::TICKETS_FIRST << (BLOCKS - 1) == limits::TICKETS_MAX);

/// Slots, made when they are needed: the first block has [`limits::TICKETS_FIRST`], and each further one as many as
/// all before it. A slot stays where it is.
#[derive(Debug)]
struct Slots([OnceLock<Box<[Slot]>>; BLOCKS]);

impl Slots {
    /// Which block has a slot, and where.
    fn place(n: u32) -> (usize, usize) {
        let n = n as usize;
        match (n / limits::TICKETS_FIRST).checked_ilog2() {
            None => (0, n),
            Some(k) => (k as usize + 1, n - (limits::TICKETS_FIRST << k)),
        }
    }

    fn get(&self, n: u32) -> &Slot {
        let (block, at) = Self::place(n);
        &self.0[block].get().expect("a slot is made before its number is given out")[at]
    }

    /// How many there are.
    fn made(&self) -> usize {
        self.0.iter().map_while(OnceLock::get).map(|block| block.len()).sum()
    }

    /// Makes the next block, if there may be more; says which numbers its slots have. For one caller at a time.
    fn make_more(&self) -> Range<u32> {
        let made = self.made();
        if made == limits::TICKETS_MAX {
            return 0..0;
        }
        let more = made.max(limits::TICKETS_FIRST);
        let (block, _) = Self::place(made as u32);
        self.0[block].set((0..more).map(|_| Slot::default()).collect()).expect("one caller at a time makes it");
        made as u32..(made + more) as u32
    }

    /// All that there are.
    fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().map_while(OnceLock::get).flatten()
    }
}

/// The tickets of one handle and one shard: up to [`limits::TICKETS_MAX`] slots.
#[derive(Debug)]
pub(crate) struct TicketSlots {
    shard: ShardId,
    slots: Slots,
    /// Slots that are free. The one that is free for longest is taken first, so that appends in a
    /// row have slots in a row and are one run.
    free: Mutex<VecDeque<u32>>,
    refusals: Mutex<Vec<(u32, AppendError)>>,
    /// From an outcome until it is taken.
    pub(crate) wake_times: WakeTimes,
}

impl TicketSlots {
    pub(crate) fn new(shard: ShardId) -> Arc<Self> {
        Arc::new(Self {
            shard,
            slots: Slots(std::array::from_fn(|_| OnceLock::new())),
            free: Mutex::default(),
            refusals: Mutex::default(),
            wake_times: WakeTimes::default(),
        })
    }

    /// Takes a free slot; `None` if [`limits::TICKETS_MAX`] are taken.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() {
            free.extend(self.slots.make_more());
        }
        let slot = free.pop_front()?;
        self.slots.get(slot).state.store(WAITING, Ordering::Relaxed);
        Some(slot)
    }

    #[cfg(test)]
    pub(crate) fn made(&self) -> usize {
        self.slots.made()
    }

    /// Gives a slot back.
    pub(crate) fn give_back(&self, slot: u32) {
        self.slots.get(slot).state.store(FREE, Ordering::Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(slot);
    }

    /// Whether a slot is free or can be made, or one may become free without anybody taking an outcome that is there.
    pub(crate) fn may_free(&self) -> bool {
        self.slots.made() < limits::TICKETS_MAX
            || self.slots.iter().any(|s| matches!(s.state.load(Ordering::Relaxed), FREE | WAITING | ABANDONED))
    }

    /// Whether no ticket is open or waits for an outcome.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() == self.slots.made()
    }

    /// Puts an outcome in, from the shard's core. What belongs to it is written before the state
    /// (release), and read after it (acquire).
    pub(crate) fn resolve(&self, n: u32, result: Result<Outcome, AppendError>) {
        let slot = self.slots.get(n);
        let set = |bookmark: Bookmark, durable: bool, acks: u8, wanted: u8| {
            slot.lsn.store(bookmark.lsn.0, Ordering::Relaxed);
            slot.term.store(bookmark.term.0, Ordering::Relaxed);
            slot.detail.store(u32::from_le_bytes([u8::from(durable), acks, wanted, 0]), Ordering::Relaxed);
        };
        let state = match result {
            Ok(Outcome::Committed { bookmark, acks }) => {
                set(bookmark, true, acks, 0);
                COMMITTED
            }
            Ok(Outcome::TimedOut { bookmark, durable_here, acks, wanted }) => {
                set(bookmark, durable_here, acks, wanted);
                TIMED_OUT
            }
            Ok(Outcome::Fenced) => FENCED,
            Ok(Outcome::Stopped) => STOPPED,
            Err(e) => {
                self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push((n, e));
                REFUSED
            }
        };
        slot.resolved_ns.store(rt::now_ns(), Ordering::Relaxed);
        if slot.state.compare_exchange(WAITING, state, Ordering::Release, Ordering::Relaxed).is_ok() {
            slot.waker.wake();
        } else if slot.state.load(Ordering::Acquire) == ABANDONED {
            // The ticket was dropped: nobody else gives the slot back.
            self.take_refusal(n);
            self.give_back(n);
        }
    }

    /// For a shard that stopped at the same moment: both ends may say so, the first counts.
    pub(crate) fn resolve_if_waiting(&self, n: u32) {
        self.resolve(n, Ok(Outcome::Stopped));
    }

    /// For a shard whose core has died: nothing of it resolves any ticket.
    pub(crate) fn resolve_all(&self) {
        for (n, slot) in self.slots.iter().enumerate() {
            if slot.state.load(Ordering::Acquire) == WAITING {
                self.resolve(n as u32, Ok(Outcome::Stopped));
            }
        }
    }

    fn take_refusal(&self, n: u32) -> Option<AppendError> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let at = refusals.iter().position(|r| r.0 == n)?;
        Some(refusals.swap_remove(at).1)
    }

    /// The outcome, if it is there.
    fn outcome(&self, n: u32) -> Option<Result<Outcome, AppendError>> {
        let slot = self.slots.get(n);
        let state = slot.state.load(Ordering::Acquire);
        let bookmark = || Bookmark {
            shard: self.shard,
            term: Term(slot.term.load(Ordering::Relaxed)),
            lsn: Lsn(slot.lsn.load(Ordering::Relaxed)),
        };
        let [durable, acks, wanted, _] = slot.detail.load(Ordering::Relaxed).to_le_bytes();
        Some(Ok(match state {
            COMMITTED => Outcome::Committed { bookmark: bookmark(), acks },
            TIMED_OUT => Outcome::TimedOut { bookmark: bookmark(), durable_here: durable == 1, acks, wanted },
            FENCED => Outcome::Fenced,
            STOPPED => Outcome::Stopped,
            REFUSED => return Some(Err(self.take_refusal(n).unwrap_or(AppendError::WouldBlock))),
            _ => return None,
        }))
    }
}

/// An append on its way: resolves to what became of it. Dropping a ticket changes nothing for the
/// record; only nobody is told.
#[derive(Debug)]
#[must_use = "a record is not committed before its ticket says so"]
pub struct Ticket {
    slots: Arc<TicketSlots>,
    slot: u32,
    /// The outcome was taken and the slot given back.
    done: bool,
}

impl Ticket {
    pub(crate) fn new(slots: Arc<TicketSlots>, slot: u32) -> Self {
        Self { slots, slot, done: false }
    }

    /// The outcome, if it is known.
    ///
    /// # Errors
    /// Why the append was not accepted. Nothing was written then.
    ///
    /// # Panics
    /// If the outcome was taken before.
    pub fn try_outcome(&mut self) -> Option<Result<Outcome, AppendError>> {
        assert!(!self.done, "the outcome was taken before");
        let outcome = self.slots.outcome(self.slot)?;
        self.done = true;
        let resolved_ns = self.slots.slots.get(self.slot).resolved_ns.load(Ordering::Relaxed);
        self.slots.wake_times.record(rt::now_ns().saturating_sub(resolved_ns));
        self.slots.give_back(self.slot);
        Some(outcome)
    }

    /// Waits on this thread for the outcome. Ends: every append has a deadline.
    ///
    /// # Errors
    /// Why the append was not accepted. Nothing was written then.
    pub fn wait(self) -> Result<Outcome, AppendError> {
        block_on(self)
    }
}

impl Future for Ticket {
    type Output = Result<Outcome, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.try_outcome() {
            return Poll::Ready(outcome);
        }
        self.slots.slots.get(self.slot).waker.register(cx.waker());
        // It may have come between the look and the registration.
        self.try_outcome().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let slot = self.slots.slots.get(self.slot);
        slot.waker.take();
        if slot.state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // The outcome is there: this end gives the slot back.
            self.slots.take_refusal(self.slot);
            self.slots.give_back(self.slot);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which parks in between.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        std::thread::park();
    }
}
