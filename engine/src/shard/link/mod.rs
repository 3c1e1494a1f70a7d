//! Connections: one link for each replica and shard, and clients.
//!
//! Comes in: accepted or made sockets. Goes out: acks to the gate, batches to the slice, outcomes
//! and batches to clients. [`conn`] is bytes on a socket, [`frames`] whole frames, [`feed`] what streams to a replica,
//! [`snapshot_out`] and [`snapshot_in`] what comes before that; the rest are the
//! tasks of each kind of connection.

pub(crate) mod accept;
mod acker;
pub(crate) mod ask;
mod batches_in;
pub(crate) mod client;
pub(crate) mod conn;
mod feed;
pub(crate) mod frames;
pub(crate) mod from_primary;
pub(crate) mod lookahead;
mod packing;
pub(crate) mod snapshot_in;
pub(crate) mod snapshot_out;
pub(crate) mod to_replica;
mod zero_copy;
