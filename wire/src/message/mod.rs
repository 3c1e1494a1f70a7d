//! The payloads of the frames that follow a handshake.

mod append;
mod control;
mod error;
mod packed;
mod policy;
mod positions;
mod slot;
mod snapshot;
mod tail;

/// A payload that is one struct, whose size is fixed.
macro_rules! payload {
    ($bytes:ident, $kind:expr, $payload:expr) => {
        match $bytes::ref_from_bytes($payload) {
            Ok(b) => b,
            Err(_) => return Err(FrameError::Size { kind: $kind, len: $payload.len() }),
        }
    };
}
use payload;

pub use append::{APPEND_HEAD, AppendHead, COMMITTED, CommitStatus, Committed};
pub use control::{CONTROL_REQUEST, ControlAction, ControlRequest};
pub use error::{ERROR_HEAD, ErrorCode, ErrorHead, Goodbye};
pub use packed::{PACKED_HEAD, PACKED_RATIO_MAX, PackedHead};
pub use policy::{AckLevel, WirePolicy};
pub use positions::{ACK, Ack, HEARTBEAT, Heartbeat};
pub use slot::{SLOT_REQUEST, SlotAction, SlotRequest};
pub use snapshot::{
    SNAPSHOT_ALIVE, SNAPSHOT_BEGIN, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_END, SNAPSHOT_REQUEST, SnapshotBegin,
    SnapshotEnd, SnapshotId, SnapshotPoint, SnapshotRequest, snapshot_checksum,
};
pub use tail::{TAIL_REQUEST, TailRequest, TailStart};
