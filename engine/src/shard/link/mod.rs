//! Connections: one link for each replica and shard, and clients.
//!
//! Comes in: accepted or made sockets. Goes out: acks to the gate, batches to the slice, outcomes
//! and batches to clients. [`conn`] is bytes on a socket, [`frames`] whole frames; the rest are the
//! tasks of each kind of connection.

pub(crate) mod accept;
mod acker;
pub(crate) mod ask;
pub(crate) mod client;
pub(crate) mod conn;
pub(crate) mod frames;
pub(crate) mod from_primary;
pub(crate) mod lookahead;
pub(crate) mod to_replica;
