//! Whole frames out of bytes as they come: what a link's or a client's connection is read with.
//!
//! A header may announce up to 64 MiB, and whoever connects may send one. So memory follows the
//! bytes that have come, not the ones that were announced: never more than twice as much, beyond a
//! first buffer of [`FIRST_BYTES`].

use towline_wire::frame::{self, FrameError, FrameHead};

/// What a connection's buffer starts with.
pub const START_BYTES: usize = 4096;
/// What it grows to first: enough for many small frames in one receive.
pub const FIRST_BYTES: usize = 64 << 10;

/// Bytes that were received and not taken yet.
#[derive(Debug)]
pub struct FrameBuffer {
    buf: Vec<u8>,
    from: usize,
    to: usize,
    /// No payload may be larger, whatever its kind's cap.
    payload_max: usize,
    /// The next frame's header, once it was checked.
    head: Option<FrameHead>,
}

impl FrameBuffer {
    /// An empty buffer that takes no payload above `payload_max`.
    #[must_use]
    pub fn new(payload_max: usize) -> Self {
        Self { buf: vec![0; START_BYTES], from: 0, to: 0, payload_max, head: None }
    }

    /// Whether nothing is there: the peer may close now without having broken off a frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Bytes that the next frame still lacks, as far as is known; 0 if it is whole.
    ///
    /// # Errors
    /// If no frame starts here, or one that is too large.
    pub fn missing(&mut self) -> Result<usize, FrameError> {
        let there = &self.buf[self.from..self.to];
        let head = match self.head {
            Some(head) => head,
            None => {
                let Some(header) = there.first_chunk() else { return Ok(frame::HEADER - there.len()) };
                let head = FrameHead::check(header)?;
                if head.len > self.payload_max {
                    return Err(FrameError::TooLarge { kind: head.kind, len: head.len, cap: self.payload_max });
                }
                *self.head.insert(head)
            }
        };
        Ok((frame::HEADER + head.len).saturating_sub(there.len()))
    }

    /// Where the next bytes go. Never empty while the next frame lacks any.
    ///
    /// # Errors
    /// As [`FrameBuffer::missing`]'s.
    pub fn room(&mut self) -> Result<&mut [u8], FrameError> {
        let missing = self.missing()?;
        if self.from > 0 {
            self.buf.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.to == self.buf.len() {
            let len = (self.to + missing).min(2 * self.to).max(FIRST_BYTES);
            self.buf.reserve_exact(len - self.to);
            self.buf.resize(len, 0);
        }
        Ok(&mut self.buf[self.to..])
    }

    /// So many bytes were put into the [`FrameBuffer::room`].
    pub fn received(&mut self, bytes: usize) {
        assert!(bytes <= self.buf.len() - self.to);
        self.to += bytes;
    }

    /// Takes the next frame; its payload has passed its CRC.
    ///
    /// # Errors
    /// As [`FrameBuffer::missing`]'s, and what is wrong with the payload.
    ///
    /// # Panics
    /// If it is not whole.
    pub fn take(&mut self) -> Result<(FrameHead, &[u8]), FrameError> {
        assert_eq!(self.missing()?, 0, "the frame is not whole");
        let head = self.head.take().expect("its header was checked");
        let payload = &self.buf[self.from + frame::HEADER..][..head.len];
        head.check_payload(payload)?;
        self.from += frame::HEADER + head.len;
        Ok((head, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_wire::frame::FrameKind;

    fn frame_bytes(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&frame::header(kind, 0, 7, payload), payload].concat()
    }

    /// Puts bytes in, at most `chunk` at a time, and takes every frame that is whole.
    fn feed(frames: &mut FrameBuffer, mut bytes: &[u8], chunk: usize) -> Vec<(FrameKind, usize)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let room = frames.room().unwrap();
            let n = chunk.min(room.len()).min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            frames.received(n);
            bytes = &bytes[n..];
            while frames.missing() == Ok(0) {
                let (head, payload) = frames.take().unwrap();
                assert!(payload.iter().all(|b| *b == 9));
                out.push((head.kind, payload.len()));
            }
        }
        out
    }

    #[test]
    fn frames_come_out_whole_however_their_bytes_come_in() {
        let status = |len| frame_bytes(FrameKind::Status, &vec![9; len]);
        // Miri is some thousand times slower.
        let lens = if cfg!(miri) { [0, 500, 1, 2000, 700] } else { [0, 5000, 1, 200_000, 70_000] };
        let bytes = lens.map(status).concat();
        for chunk in [1, 7, 24, 4096, usize::MAX] {
            let mut frames = FrameBuffer::new(1 << 20);
            assert_eq!(feed(&mut frames, &bytes, chunk).iter().map(|f| f.1).collect::<Vec<_>>(), lens);
            assert!(frames.is_empty());
        }
    }

    /// A client could take 64 MiB of a node's memory with each header of 24 bytes that it sent.
    #[test]
    fn memory_follows_the_bytes_that_came_and_not_those_announced() {
        let whole = frame_bytes(FrameKind::Append, &vec![9; if cfg!(miri) { 100_000 } else { 3 << 20 }]);
        let mut frames = FrameBuffer::new(usize::MAX);
        let mut sent = 0;
        for part in whole.chunks(10_000) {
            assert!(feed(&mut frames, part, usize::MAX).len() <= 1);
            sent += part.len();
            assert!(frames.buf.capacity() <= FIRST_BYTES.max(2 * sent), "{} of {sent}", frames.buf.capacity());
        }
        assert!(frames.is_empty());
    }

    #[test]
    fn a_frame_above_the_readers_own_cap_is_refused_at_its_header() {
        let mut frames = FrameBuffer::new(100);
        feed(&mut frames, &frame::header(FrameKind::Status, 0, 0, &[9; 100]), 24);
        assert_eq!(frames.missing(), Ok(100));
        let mut frames = FrameBuffer::new(100);
        feed(&mut frames, &frame::header(FrameKind::Status, 0, 0, &[9; 101])[..23], 23);
        assert_eq!(frames.missing(), Ok(1));
        frames.room().unwrap()[0] = frame::header(FrameKind::Status, 0, 0, &[9; 101])[23];
        frames.received(1);
        assert_eq!(frames.missing(), Err(FrameError::TooLarge { kind: FrameKind::Status, len: 101, cap: 100 }));
    }
}
