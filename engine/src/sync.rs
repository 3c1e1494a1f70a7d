//! What hand-written code that crosses threads is made of. It takes its atomics and locks from here
//! and from nowhere else, so that `tests/atomics.rs` can run the same source on a model checker's.

pub(crate) use atomic_waker::AtomicWaker;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock};
