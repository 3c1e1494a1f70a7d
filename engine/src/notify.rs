//! Waking tasks on the same core: a counter that moves, and the tasks that wait for it to move.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Says that something changed to whoever waits for it on this core.
///
/// Take [`Changed::seen`], look at the state, then await [`Changed::since`]: a change between the
/// look and the wait is never lost, because the counter has moved.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Changed {
    /// The counter now.
    pub(crate) fn seen(&self) -> u64 {
        self.count.get()
    }

    /// Moves the counter and wakes everybody.
    pub(crate) fn notify(&self) {
        self.count.set(self.count.get().wrapping_add(1));
        // Waking only schedules, but a foreign waker may do anything: hold no borrow meanwhile.
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting.drain(..) {
            waker.wake();
        }
        let mut now = self.waiting.borrow_mut();
        if now.is_empty() {
            *now = waiting;
        }
    }

    /// Resolves once the counter is not `seen`.
    pub(crate) fn since(&self, seen: u64) -> impl Future<Output = ()> + '_ {
        Since { changed: self, seen }
    }
}

struct Since<'a> {
    changed: &'a Changed,
    seen: u64,
}

impl Future for Since<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.changed.count.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.changed.waiting.borrow_mut();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
