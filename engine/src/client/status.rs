//! Asking a node how it is.

use towline_wire::ShardId;
use towline_wire::frame::FrameKind;

use super::connection::{self, ConnectOptions, Connection};
use super::error::ClientError;

/// Frames that may come before the answer, at most: a node that only sends heartbeats never answers.
const FRAMES_MAX: usize = 64;

/// Asks a node (`host:port`) for its status: a JSON document of at most
/// [`towline_wire::frame::STATUS_BYTES_MAX`] bytes. It is not parsed here.
///
/// # Errors
/// Whatever keeps the connection from being opened or the answer from arriving.
pub fn status(addr: &str) -> Result<String, ClientError> {
    status_with(addr, &ConnectOptions::default())
}

/// As [`status()`], with other limits on waiting.
///
/// # Errors
/// As there.
pub fn status_with(addr: &str, options: &ConnectOptions) -> Result<String, ClientError> {
    let doing = "waiting for the status";
    let mut connection = connection::open(addr, ShardId(0), options)?;
    connection::send(&connection.stream, FrameKind::StatusRequest, 0, &[], "asking for the status")?;
    read_status(&mut connection, doing)
}

/// The status that answers what was asked.
pub(super) fn read_status(connection: &mut Connection, doing: &'static str) -> Result<String, ClientError> {
    let mut payload = Vec::new();
    for _ in 0..FRAMES_MAX {
        let head = connection.reader.next(&[FrameKind::Status, FrameKind::Heartbeat], &mut payload, doing)?;
        if head.kind == FrameKind::Status {
            return String::from_utf8(payload)
                .map_err(|error| ClientError::StatusText { at: error.utf8_error().valid_up_to() });
        }
    }
    let at = connection.reader.at();
    Err(ClientError::OutOfPlace { kind: FrameKind::Heartbeat, at, doing })
}
