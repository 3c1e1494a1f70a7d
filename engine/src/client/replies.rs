//! The thread that reads an appending connection's replies.
//!
//! Why a thread: a client that only writes while the node only writes replies would stop both once
//! the socket buffers are full. The standard library has no `poll(2)`, so "write, but read when
//! that is possible first" would mean spinning or sleeping; and a bound on replies that "surely
//! fits" a socket buffer is a guess about the kernel's accounting. With a reader that never waits
//! for anybody, the node can always get rid of its replies, so it always comes back to reading
//! requests. It also means that the node's last words are read before a failed write hides them.

use std::net::TcpStream;
use std::sync::Arc;

use towline_wire::frame::FrameKind;
use towline_wire::message::{COMMITTED, Committed, Heartbeat};

use super::connection::FrameReader;
use super::error::ClientError;
use super::window::Window;

const DOING: &str = "reading outcomes";
const ALLOWED: &[FrameKind] = &[FrameKind::Committed, FrameKind::Heartbeat];

/// Reads until the connection ends, however it ends.
pub(super) fn read_all(mut reader: FrameReader<TcpStream>, window: &Arc<Window>) {
    let mut replies = Vec::new();
    let mut payload = Vec::with_capacity(COMMITTED);
    loop {
        if let Err(cause) = read_some(&mut reader, &mut replies, &mut payload, window) {
            // What arrived before the failure counts.
            let delivered = window.answered(&mut replies);
            window.fail(delivered.err().unwrap_or(cause));
            return;
        }
    }
}

/// Reads at least one frame, and every further one that is there already, then hands on the replies
/// together: one lock and one wake-up for all of them.
fn read_some(
    reader: &mut FrameReader<TcpStream>,
    replies: &mut Vec<Committed>,
    payload: &mut Vec<u8>,
    window: &Window,
) -> Result<(), ClientError> {
    loop {
        let head = reader.next(ALLOWED, payload, DOING)?;
        if head.kind == FrameKind::Heartbeat {
            Heartbeat::check(payload).map_err(|source| reader.bad(source))?;
            window.alive();
        } else {
            replies.push(Committed::check(payload).map_err(|source| reader.bad(source))?);
        }
        if !reader.has_frame() {
            break;
        }
    }
    if replies.is_empty() { Ok(()) } else { window.answered(replies) }
}
