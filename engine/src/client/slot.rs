//! Asking a primary to make or remove a slot.

use towline_wire::ShardId;
use towline_wire::frame::FrameKind;
use towline_wire::handshake::NodeName;
use towline_wire::message::{SlotAction, SlotRequest};

use super::connection::{self, ConnectOptions};
use super::error::ClientError;
use super::status::read_status;

/// Asks a primary (`host:port`) to make or remove the slot of a replica, on every shard. Returns the
/// node's status afterwards, as [`super::status()`] does; the change is durable then.
///
/// # Errors
/// [`ClientError::Server`] with the code `SlotRefused` if the primary does not do it; whatever keeps
/// the connection from being opened or the answer from arriving.
pub fn change_slot(addr: &str, name: NodeName, action: SlotAction) -> Result<String, ClientError> {
    let doing = "waiting for the slot";
    let mut connection = connection::open(addr, ShardId(0), &ConnectOptions::default())?;
    let request = SlotRequest { name, action }.to_bytes();
    connection::send(&connection.stream, FrameKind::SlotRequest, 0, &request, "asking for a slot")?;
    read_status(&mut connection, doing)
}
