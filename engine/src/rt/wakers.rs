//! Wakers of an executor's tasks, for any thread.
//!
//! On the task's own core a wake-up goes to glommio. From another thread it goes into a queue under a
//! mutex, and an eventfd is written if the core's loop sleeps or is about to: queue and flag are under
//! the same mutex, so that no wake-up falls between them.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

use crate::sync::{AtomicBool, Mutex, MutexGuard};

thread_local! {
    /// Which executor this thread runs: compared, never followed.
    pub(super) static OWNER: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
    /// Times that tasks were polled or woken since the loop looked last. Both count: the runtime takes
    /// steps of its own when it ends a task.
    pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// What other threads see of an executor.
#[derive(Debug)]
pub(super) struct Shared {
    foreign: Mutex<Foreign>,
    /// An eventfd: readable when the loop is to wake up.
    pub(super) bell: OwnedFd,
}

#[derive(Debug, Default)]
pub(super) struct Foreign {
    pub(super) woken: Vec<Arc<TaskWaker>>,
    /// The loop blocks, or is about to: who adds to the queue rings.
    pub(super) asleep: bool,
    pub(super) ended: bool,
}

impl Shared {
    pub(super) fn new(bell: OwnedFd) -> Self {
        Self { foreign: Mutex::new(Foreign::default()), bell }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Foreign> {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on other threads ring, unless there is something to do already.
    pub(super) fn fall_asleep(&self) -> bool {
        let mut foreign = self.lock();
        foreign.asleep = foreign.woken.is_empty();
        foreign.asleep
    }
}

/// Wakes a task, from any thread.
#[derive(Debug)]
pub(super) struct TaskWaker {
    task: Waker,
    executor: Arc<Shared>,
    /// It is in the queue of its executor.
    queued: AtomicBool,
}

impl TaskWaker {
    /// A waker for a task of this executor, from glommio's.
    pub(super) fn of(task: Waker, executor: Arc<Shared>) -> Waker {
        Arc::new(Self { task, executor, queued: AtomicBool::new(false) }).waker()
    }

    /// On the task's own core: what another thread asked for.
    pub(super) fn arrive(&self) {
        // A swap and no store: who wakes right before this, and so adds nothing, has what it wrote seen by
        // the poll.
        self.queued.swap(false, Ordering::AcqRel);
        self.task.wake_by_ref();
    }

    fn wake(self: &Arc<Self>) {
        if OWNER.get() == Arc::as_ptr(&self.executor) {
            STEPS.set(STEPS.get() + 1);
            self.task.wake_by_ref();
            return;
        }
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut foreign = self.executor.lock();
        if foreign.ended {
            return;
        }
        foreign.woken.push(self.clone());
        let ring = std::mem::take(&mut foreign.asleep);
        drop(foreign);
        if ring {
            crate::sys::ring_bell(self.executor.bell.as_raw_fd());
        }
    }

    fn waker(self: Arc<Self>) -> Waker {
        // SAFETY: the functions of `WAKER` take a pointer from `Arc::into_raw`, and count as they say.
        unsafe { Waker::new(Arc::into_raw(self).cast(), &WAKER) }
    }
}

/// One table, so that `Waker::will_wake` knows a task again: what the standard library makes of
/// `Arc<impl Wake>` may be there more than once.
static WAKER: RawWakerVTable = {
    const fn of(data: *const ()) -> *const TaskWaker {
        data.cast()
    }
    unsafe fn clone(data: *const ()) -> RawWaker {
        // SAFETY: `data` comes from `Arc::into_raw` and is counted; now once more.
        unsafe { Arc::increment_strong_count(of(data)) };
        RawWaker::new(data, &WAKER)
    }
    unsafe fn wake(data: *const ()) {
        // SAFETY: as above; this takes the count over.
        unsafe { Arc::from_raw(of(data)) }.wake();
    }
    unsafe fn wake_by_ref(data: *const ()) {
        // SAFETY: as above; the count stays.
        std::mem::ManuallyDrop::new(unsafe { Arc::from_raw(of(data)) }).wake();
    }
    unsafe fn drop(data: *const ()) {
        // SAFETY: as above; this takes the count over.
        std::mem::drop(unsafe { Arc::from_raw(of(data)) });
    }
    RawWakerVTable::new(clone, wake, wake_by_ref, drop)
};
