//! The doorbell of an inbox: a producer rings it after a push, the shard rests only when it has
//! looked at its rings after saying that it rests, and takes everything that was pushed before it
//! was shut.
//!
//! Both halves are Dekker's pattern: each side writes its word, passes a sequentially consistent
//! fence, and then reads the other's. Whichever fence comes first, the other side's read sees what
//! was written before it: at least one of the two sees the other.

use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use crate::sync::{AtomicBool, AtomicWaker, fence};

/// What producers and the shard share of an inbox, but for the rings.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    resting: AtomicBool,
    shut: AtomicBool,
    waker: AtomicWaker,
}

impl Doorbell {
    /// After a push: wakes the shard if it rests. [`Doorbell::is_shut`] called after this is false
    /// only if the shard sees the push, whatever becomes of it.
    pub(crate) fn ring(&self) {
        // The push before the look at either flag.
        fence(Ordering::SeqCst);
        // One ring for a burst: who takes the flag down wakes.
        if self.resting.load(Ordering::Relaxed) && self.resting.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Rests unless there is work, which is looked for after the shard has said that it rests.
    /// `waker` is woken by whoever rings then.
    pub(crate) fn poll_rest(&self, waker: &Waker, has_work: impl FnOnce() -> bool) -> Poll<()> {
        // First, so that who sees the flag finds the waker.
        self.waker.register(waker);
        self.resting.swap(true, Ordering::Relaxed);
        // The flag before the look at the rings.
        fence(Ordering::SeqCst);
        if !has_work() {
            return Poll::Pending;
        }
        self.resting.store(false, Ordering::Relaxed);
        Poll::Ready(())
    }

    /// Whether the shard rests: it has taken everything that was pushed before this call. To be
    /// asked on the shard's core.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Acquire)
    }

    /// The shard takes nothing any more, after what it finds in the rings now.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        // The flag before the last look at the rings: a push that this misses sees the flag.
        fence(Ordering::SeqCst);
    }

    /// Whether the shard takes nothing any more.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }
}
