//! Asking a primary to change its settings.

use towline_wire::ShardId;
use towline_wire::frame::FrameKind;
use towline_wire::message::{ControlAction, ControlRequest};

use super::connection::{self, ConnectOptions};
use super::error::ClientError;
use super::status::read_status;

/// Asks a primary (`host:port`) to change a setting, on every shard; with `if_version` only if the
/// settings have that version. Returns the node's status afterwards, as [`super::status()`] does; the
/// change is durable and in force then.
///
/// # Errors
/// [`ClientError::Server`] with the code `ControlRefused` if the primary does not do it; its `arg` is
/// the settings' version. Whatever keeps the connection from being opened or the answer from arriving:
/// then it may be done or not, which the version tells.
pub fn control(addr: &str, action: ControlAction, if_version: Option<u64>) -> Result<String, ClientError> {
    let mut connection = connection::open(addr, ShardId(0), &ConnectOptions::default())?;
    let request = ControlRequest { action, if_version: if_version.unwrap_or(0) }.to_bytes();
    connection::send(&connection.stream, FrameKind::ControlRequest, 0, &request, "asking for a change")?;
    read_status(&mut connection, "waiting for the change")
}
