//! Whole frames on a connection, except batches, which a replica reads straight into a buffer for
//! the device.

use std::io;
use std::rc::Rc;

use thiserror::Error;
use towline_wire::frame::{self, FrameError, FrameHead, FrameKind};
use towline_wire::message::{ErrorCode, ErrorHead};

use super::conn::Conn;
use crate::protocol::framing::FrameBuffer;

/// Why a connection ends.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer was silent for too long")]
    Idle,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a {0:?} frame is out of place here")]
    OutOfPlace(FrameKind),
    /// The peer was told already.
    #[error("{0}")]
    Refused(String),
    /// The peer is still to be told.
    #[error("{0}")]
    Rejected(String),
    #[error("the shard has stopped: {0}")]
    Stopped(String),
}

/// Reads frames with small payloads; memory grows with what has come of them.
#[derive(Debug)]
pub(crate) struct FrameReader {
    conn: Rc<Conn>,
    frames: FrameBuffer,
}

impl FrameReader {
    /// A reader that takes no payload above `payload_max`.
    pub(crate) fn new(conn: Rc<Conn>, payload_max: usize) -> Self {
        Self { conn, frames: FrameBuffer::new(payload_max) }
    }

    /// The next frame, checked. `None` if the peer closed between two frames.
    pub(crate) async fn next(&mut self) -> Result<Option<(FrameHead, &[u8])>, LinkError> {
        while self.frames.missing()? > 0 {
            let n = self.conn.receive(self.frames.room()?, &mut []).await?;
            if n == 0 {
                return if self.frames.is_empty() { Ok(None) } else { Err(LinkError::Closed) };
            }
            self.frames.received(n);
        }
        Ok(Some(self.frames.take()?))
    }

    /// Whether a whole frame is there without reading.
    pub(crate) fn has_next(&mut self) -> bool {
        self.frames.missing() == Ok(0)
    }
}

/// Sends one frame.
pub(crate) async fn send(conn: &Conn, kind: FrameKind, flags: u8, arg: u64, payload: &[u8]) -> io::Result<()> {
    conn.send(&[&frame::header(kind, flags, arg, payload), payload]).await
}

/// Sends an error; whether it arrives is no matter, the connection ends anyhow.
pub(crate) async fn send_error(conn: &Conn, code: ErrorCode, arg: u64, text: &str) {
    let (head, text) = ErrorHead { code, arg }.to_bytes(text);
    let mut payload = Vec::with_capacity(head.len() + text.len());
    payload.extend_from_slice(&head);
    payload.extend_from_slice(text.as_bytes());
    let _ = send(conn, FrameKind::Error, 0, 0, &payload).await;
}

impl LinkError {
    /// What the peer is told, if it should be told anything.
    async fn tell(&self, conn: &Conn) {
        let code = match self {
            Self::Closed | Self::Io(_) | Self::Refused(_) => return,
            Self::Idle => ErrorCode::Idle,
            Self::Frame(_) => ErrorCode::BadFrame,
            Self::OutOfPlace(_) => ErrorCode::OutOfPlace,
            Self::Stopped(_) => ErrorCode::Stopped,
            Self::Rejected(_) => ErrorCode::Refused,
        };
        send_error(conn, code, 0, &self.to_string()).await;
    }

    /// Ends the connection: tells the peer why, where it should be told, and gives it a moment to
    /// read that.
    pub(crate) async fn end(&self, conn: &Conn) {
        if !matches!(self, Self::Closed | Self::Io(_)) {
            self.tell(conn).await;
            // What the peer has sent meanwhile must not make the kernel reset the connection, which
            // would take the last frames with it.
            conn.drain().await;
        }
        conn.close();
    }
}
