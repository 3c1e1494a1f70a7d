//! Whole frames on a connection, except batches, which a replica reads straight into a buffer for
//! the device.

use std::io;
use std::rc::Rc;

use thiserror::Error;
use towline_wire::frame::{self, FrameError, FrameHead, FrameKind};
use towline_wire::message::{ErrorCode, ErrorHead};

use super::conn::Conn;

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

/// Reads frames with small payloads; memory grows to the largest frame that was announced and
/// allowed.
#[derive(Debug)]
pub(crate) struct FrameReader {
    conn: Rc<Conn>,
    buf: Vec<u8>,
    /// What is read and not taken yet.
    from: usize,
    to: usize,
    /// No payload may be larger, whatever its kind's cap.
    payload_max: usize,
}

impl FrameReader {
    /// A reader that takes no payload above `payload_max`.
    pub(crate) fn new(conn: Rc<Conn>, payload_max: usize) -> Self {
        Self { conn, buf: vec![0; 4096], from: 0, to: 0, payload_max }
    }

    /// The next frame, checked. `None` if the peer closed between two frames.
    pub(crate) async fn next(&mut self) -> Result<Option<(FrameHead, &[u8])>, LinkError> {
        if !self.fill(frame::HEADER).await? {
            return if self.to == self.from { Ok(None) } else { Err(LinkError::Closed) };
        }
        let header = self.buf[self.from..self.from + frame::HEADER].try_into().expect("a header's length");
        let head = FrameHead::check(header)?;
        if head.len > self.payload_max {
            return Err(FrameError::TooLarge { kind: head.kind, len: head.len, cap: self.payload_max }.into());
        }
        if !self.fill(frame::HEADER + head.len).await? {
            return Err(LinkError::Closed);
        }
        let payload = &self.buf[self.from + frame::HEADER..self.from + frame::HEADER + head.len];
        head.check_payload(payload)?;
        self.from += frame::HEADER + head.len;
        Ok(Some((head, payload)))
    }

    /// Whether a whole frame is there without reading.
    pub(crate) fn has_next(&self) -> bool {
        let rest = &self.buf[self.from..self.to];
        let head = rest.get(..frame::HEADER).and_then(|h| FrameHead::check(h.try_into().ok()?).ok());
        head.is_some_and(|h| rest.len() >= frame::HEADER + h.len)
    }

    /// Reads until `need` bytes are there. `false` if the peer closes before.
    async fn fill(&mut self, need: usize) -> Result<bool, LinkError> {
        if self.to - self.from >= need {
            return Ok(true);
        }
        if self.from > 0 {
            self.buf.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.buf.len() < need {
            self.buf.resize(need.max(64 << 10), 0);
        }
        while self.to < need {
            let n = self.conn.receive(&mut self.buf[self.to..], &mut []).await?;
            if n == 0 {
                return Ok(false);
            }
            self.to += n;
        }
        Ok(true)
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
