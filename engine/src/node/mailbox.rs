//! A core's mailbox: what other threads tell it, in order, until it has ended.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::PoisonError;
use std::task::Poll;

use crate::sync::{AtomicWaker, Mutex};

/// A queue from any thread to one core.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    /// `None` once the core has ended.
    queue: Mutex<Option<VecDeque<T>>>,
    waker: AtomicWaker,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { queue: Mutex::new(Some(VecDeque::new())), waker: AtomicWaker::new() }
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn send(&self, message: T) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *queue {
            Some(queue) => queue.push_back(message),
            // Dropping it tells whoever waits for its answer.
            None => return drop((queue, message)),
        }
        drop(queue);
        self.waker.wake();
    }

    /// The core has ended: who waits for an answer is told.
    pub(crate) fn close(&self) {
        let left = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(left);
    }

    /// The next message. For one task.
    pub(crate) fn next(&self) -> impl Future<Output = T> + '_ {
        std::future::poll_fn(|cx| {
            // Before the look: a message that comes after it wakes.
            self.waker.register(cx.waker());
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(VecDeque::pop_front);
            next.map_or(Poll::Pending, Poll::Ready)
        })
    }
}
