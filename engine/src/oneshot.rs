//! One value from one thread or core to another, awaited.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

#[derive(Debug)]
struct Slot<T> {
    value: Mutex<Option<T>>,
    waker: AtomicWaker,
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Slot<T>>);

/// The receiving end: resolves to the value. If the sender is dropped it never does.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Slot<T>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot { value: Mutex::new(None), waker: AtomicWaker::new() });
    (Sender(slot.clone()), Receiver(slot))
}

impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) {
        *self.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.0.waker.wake();
    }
}

impl<T> Future for Receiver<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.0.waker.register(cx.waker());
        let value = self.0.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.map_or(Poll::Pending, Poll::Ready)
    }
}
