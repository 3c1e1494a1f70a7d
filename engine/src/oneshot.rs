//! One value from one thread or core to another, awaited.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use thiserror::Error;

use crate::sync::{AtomicWaker, Mutex};

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    waker: AtomicWaker,
}

#[derive(Debug)]
enum State<T> {
    Empty,
    Value(T),
    /// Nobody is there to send any more.
    Gone,
}

impl<T> Slot<T> {
    fn put(&self, value: State<T>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Empty) {
            *state = value;
        }
        drop(state);
        self.waker.wake();
    }
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Slot<T>>);

/// The receiving end: resolves to the value, or to [`Gone`] if the sender was dropped.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Slot<T>>);

/// Whoever was to answer is gone: its thread has ended, after a panic if the node was not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a thread of the node ended before it answered: if the node was not stopped, its panic is on standard error")]
pub(crate) struct Gone;

/// Tells the receiver when it is dropped, for a sender that may be forgotten instead of dropped.
pub(crate) struct Guard<T>(Arc<Slot<T>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Empty), waker: AtomicWaker::new() });
    (Sender(slot.clone()), Receiver(slot))
}

impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) {
        self.0.put(State::Value(value));
    }

    pub(crate) fn guard(&self) -> Guard<T> {
        Guard(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.put(State::Gone);
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        self.0.put(State::Gone);
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Gone>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Gone>> {
        self.0.waker.register(cx.waker());
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Gone) {
            State::Value(value) => Poll::Ready(Ok(value)),
            State::Gone => Poll::Ready(Err(Gone)),
            State::Empty => {
                *state = State::Empty;
                Poll::Pending
            }
        }
    }
}
