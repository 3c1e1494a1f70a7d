//! Across cores: appends from other threads come in through a bounded single-producer ring each,
//! outcomes go back through slots that tickets wait on.
//!
//! A producer pushes the record's bytes into a byte ring and a small request into a request ring,
//! then wakes the shard if it sleeps: one wake for a burst. Records above
//! [`crate::limits::INBOX_INLINE_MAX`] cross by pointer.

pub(crate) mod cross;
pub(crate) mod doorbell;
mod given_up;
pub(crate) mod handle;
pub(crate) mod inbox;
pub(crate) mod local;
pub(crate) mod ticket;
pub(crate) mod wake_times;
