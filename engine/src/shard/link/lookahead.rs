//! What has come on a link before its turn: small frames are read whole at once, a large batch goes
//! straight into its own buffer and brings no more than the next frame's header along.

use std::io;

use towline_wire::{BLOCK, frame};

use super::conn::Conn;

/// Bytes that were received and not taken yet.
#[derive(Debug)]
pub(crate) struct Lookahead {
    buf: [u8; BLOCK],
    from: usize,
    to: usize,
}

impl Lookahead {
    pub(crate) const fn new() -> Self {
        Self { buf: [0; BLOCK], from: 0, to: 0 }
    }

    /// The next `len` bytes, at most [`BLOCK`], received if they are not there.
    pub(crate) async fn take(&mut self, conn: &Conn, len: usize) -> io::Result<&[u8]> {
        assert!(len <= BLOCK);
        if self.to - self.from < len {
            self.buf.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        while self.to - self.from < len {
            let n = conn.receive(&mut self.buf[self.to..], &mut []).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.to += n;
        }
        self.from += len;
        Ok(&self.buf[self.from - len..self.from])
    }

    /// Fills `out` with the next bytes: those that are there are copied, the rest is received
    /// straight into it.
    pub(crate) async fn take_into(&mut self, conn: &Conn, out: &mut [u8]) -> io::Result<()> {
        let there = (self.to - self.from).min(out.len());
        out[..there].copy_from_slice(&self.buf[self.from..self.from + there]);
        self.from += there;
        if there < out.len() {
            let next = conn.receive_full(&mut out[there..], &mut self.buf[..frame::HEADER]).await?;
            (self.from, self.to) = (0, next);
        }
        Ok(())
    }
}
