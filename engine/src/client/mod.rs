//! The network client: appends to one shard, tails one shard, asks a node for its status.
//!
//! In: an address, a shard and records. Out: typed outcomes ([`Committed`]), checked batches
//! ([`Batch`]), a JSON document. Everything blocks; there is no runtime, and the only thread is the
//! one that reads an [`Appender`]'s replies.
//!
//! | what | where |
//! |---|---|
//! | append, pipelined, over one connection | [`Appender`]; in two threads: [`Submitter`], [`Outcomes`] |
//! | subscribe to a shard's log | [`Tail`] |
//! | ask for a node's status | [`status()`] |
//! | make or remove a slot, change settings | [`change_slot`], [`control()`] |
//! | read a commit policy from text | [`policy`] |
//!
//! A lost connection never reads like "not written": [`Lost`] lists the requests whose outcome is
//! unknown, and [`ClientError::advice`] says what to do about the connection.

mod append;
mod connection;
mod control;
mod error;
pub mod policy;
mod replies;
mod slot;
mod status;
mod tail;
mod window;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_tail;

pub use append::{AppendOptions, Appender, Outcomes, Submitter};
pub use connection::ConnectOptions;
pub use control::control;
pub use error::{Advice, AppendError, ClientError, Lost, OutOfLine, Unknown};
pub use slot::change_slot;
pub use status::{status, status_with};
pub use tail::{Batch, Tail};
pub use towline_wire::message::{
    AckLevel, CommitStatus, Committed, ControlAction, SlotAction, TailRequest, TailStart, WirePolicy,
};
