//! A snapshot of the embedder's state, from a primary to a replica: what is sent next, what is kept
//! until it is acknowledged, where a link goes on that was cut, and what a replica may take.
//!
//! The primary's side is [`Sending`], for one run of a producer, over as many links as it takes; the
//! replica's is [`Taking`]. Both hold at most [`limits::SNAPSHOT_WINDOW`] chunks.

use std::collections::VecDeque;
use std::rc::Rc;

use thiserror::Error;
use towline_wire::Lsn;
use towline_wire::message::{
    SNAPSHOT_CHUNK_BYTES_MAX, SnapshotBegin, SnapshotEnd, SnapshotId, SnapshotPoint, SnapshotRequest, snapshot_checksum,
};

use crate::limits;

/// What a link sends next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A chunk.
    Chunk {
        /// Where it starts.
        offset: u64,
        /// Its bytes.
        bytes: Rc<[u8]>,
    },
    /// The manifest: all is sent.
    End(SnapshotEnd),
}

/// Why a snapshot cannot be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// It is larger than it may be.
    #[error("the snapshot has more than {max} bytes (snapshot_bytes_max)")]
    TooLarge {
        /// The cap.
        max: u64,
    },
    /// A chunk of a size that none may have.
    #[error("the producer gave a chunk of {bytes} bytes, it must have from 1 to {SNAPSHOT_CHUNK_BYTES_MAX}")]
    Chunk {
        /// Its size.
        bytes: usize,
    },
    /// The producer gave another number of bytes than it had said.
    #[error("the producer said {total} bytes, and gave {given}")]
    NotAsSaid {
        /// What it said.
        total: u64,
        /// What it gave, so far.
        given: u64,
    },
    /// An ack for what was not sent, or not up to the end of a chunk.
    #[error("it acknowledges {acked} bytes of a snapshot, which no chunk that was sent ends at")]
    BadAck {
        /// What it says.
        acked: u64,
    },
}

/// The primary's side of one snapshot.
#[derive(Debug)]
pub struct Sending {
    point: SnapshotPoint,
    total: Option<u64>,
    max: u64,
    /// Chunks that are not acknowledged, the oldest first, and where the first starts.
    held: VecDeque<Rc<[u8]>>,
    acked: u64,
    /// How many of them were sent on this link.
    sent: usize,
    end_sent: bool,
    produced: u64,
    chunks: u64,
    checksum: u32,
    ended: bool,
}

impl Sending {
    /// A snapshot of `total` bytes, if the producer knows; of at most `max`.
    ///
    /// # Errors
    /// If it says that there are more.
    pub fn new(point: SnapshotPoint, total: Option<u64>, max: u64) -> Result<Self, SendError> {
        if total.is_some_and(|total| total > max) {
            return Err(SendError::TooLarge { max });
        }
        Ok(Self {
            point,
            total,
            max,
            held: VecDeque::new(),
            acked: 0,
            sent: 0,
            end_sent: false,
            produced: 0,
            chunks: 0,
            checksum: 0,
            ended: false,
        })
    }

    /// Goes on where a replica asks for it, on a new link. `false`: it cannot, as the replica has another
    /// snapshot, or less than what was let go of, or the log behind the state, of which `oldest` is the first
    /// that is kept, is gone; then a new one is to be made.
    #[must_use]
    pub fn resume(&mut self, request: &SnapshotRequest, oldest: Lsn) -> bool {
        (self.sent, self.end_sent) = (0, false);
        if self.point.at < oldest {
            return false;
        }
        if request.id != self.point.id {
            // Nothing of it was acknowledged yet: any replica may take it.
            return request.id == SnapshotId::NONE && self.acked == 0;
        }
        self.sent = self.held.len();
        let there = self.on_ack(request.offset).is_ok();
        if canary!(SnapshotHoleTaken) {
            let _ = self.on_ack(self.produced);
        }
        self.sent = 0;
        there
    }

    /// What stands in front of the chunks on this link.
    #[must_use]
    pub const fn begin(&self) -> SnapshotBegin {
        SnapshotBegin { point: self.point, total: self.total, offset: self.acked }
    }

    /// Chunks that are held until they are acknowledged.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the producer is to give another chunk.
    #[must_use]
    pub fn wants_chunk(&self) -> bool {
        !self.ended && self.held.len() < limits::SNAPSHOT_WINDOW
    }

    /// The producer's next chunk; none: that was all.
    ///
    /// # Errors
    /// If it is none that may be, or the bytes are too many, or not as many as the producer had said.
    pub fn on_chunk(&mut self, chunk: Option<Vec<u8>>) -> Result<(), SendError> {
        assert!(self.wants_chunk());
        let bytes = chunk.as_ref().map_or(0, Vec::len);
        let given = self.produced + bytes as u64;
        let total = self.total.unwrap_or(given);
        if given > total || (chunk.is_none() && given < total) {
            return Err(SendError::NotAsSaid { total, given });
        }
        if given > self.max {
            return Err(SendError::TooLarge { max: self.max });
        }
        let Some(chunk) = chunk else {
            self.ended = true;
            return Ok(());
        };
        if !(1..=SNAPSHOT_CHUNK_BYTES_MAX).contains(&bytes) {
            return Err(SendError::Chunk { bytes });
        }
        (self.produced, self.chunks) = (given, self.chunks + 1);
        self.checksum = snapshot_checksum(self.checksum, &chunk);
        self.held.push_back(chunk.into());
        Ok(())
    }

    /// What to send next on this link, if there is something. It counts as sent.
    pub fn take_next(&mut self) -> Option<Next> {
        if let Some(bytes) = self.held.get(self.sent) {
            let before: usize = self.held.iter().take(self.sent).map(|b| b.len()).sum();
            self.sent += 1;
            return Some(Next::Chunk { offset: self.acked + before as u64, bytes: bytes.clone() });
        }
        if !self.ended || self.end_sent {
            return None;
        }
        self.end_sent = true;
        let (point, total, chunks, checksum) = (self.point, self.produced, self.chunks, self.checksum);
        Some(Next::End(SnapshotEnd { point, total, chunks, checksum }))
    }

    /// The replica has staged everything up to `offset`.
    ///
    /// # Errors
    /// If no chunk that was sent ends there.
    pub fn on_ack(&mut self, offset: u64) -> Result<(), SendError> {
        let (mut at, mut count) = (self.acked, 0);
        while at < offset && count < self.sent {
            at += self.held[count].len() as u64;
            count += 1;
        }
        if at != offset {
            return Err(SendError::BadAck { acked: offset });
        }
        self.held.drain(..count);
        (self.acked, self.sent) = (offset, self.sent - count);
        Ok(())
    }

    /// How many bytes the replica has staged, and of how many, if that is known.
    #[must_use]
    pub const fn progress(&self) -> (u64, Option<u64>) {
        (self.acked, if self.ended { Some(self.produced) } else { self.total })
    }

    /// Where it stands.
    #[must_use]
    pub const fn at(&self) -> Lsn {
        self.point.at
    }
}

/// What a primary sends of a snapshot that cannot be right. What was staged is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotViolation {
    /// Chunks or a manifest with nothing in front of them.
    #[error("a part of a snapshot that has not begun")]
    NotBegun,
    /// It begins twice on one link.
    #[error("the snapshot begins twice")]
    BegunTwice,
    /// It stands where this log, or its committed part, ends anyway.
    #[error("the snapshot stands at {at}, the log here ends at {end}")]
    Behind {
        /// Where it stands.
        at: Lsn,
        /// Where this log ends.
        end: Lsn,
    },
    /// It stands beyond what the primary knows to be committed.
    #[error("the snapshot stands at {at}, the primary knows {commit} to be committed")]
    NotCommitted {
        /// Where it stands.
        at: Lsn,
        /// What the primary knows.
        commit: Lsn,
    },
    /// A chunk, or the beginning, with another offset than what comes next.
    #[error("a chunk of the snapshot starts at {offset}, {want} comes next")]
    WrongOffset {
        /// Where it starts.
        offset: u64,
        /// What comes next.
        want: u64,
    },
    /// It has more bytes than it may have, or says so.
    #[error("the snapshot has {bytes} bytes or more, at most {max} are taken (snapshot_bytes_max)")]
    TooLarge {
        /// Bytes.
        bytes: u64,
        /// The cap.
        max: u64,
    },
    /// More or fewer bytes than were declared.
    #[error("the snapshot has {bytes} bytes, {total} were declared")]
    NotAsDeclared {
        /// Bytes.
        bytes: u64,
        /// What was declared.
        total: u64,
    },
    /// A chunk without bytes.
    #[error("a chunk without bytes")]
    Empty,
    /// The manifest does not fit what came.
    #[error("{0} of the snapshot's manifest is not that of what came")]
    Manifest(&'static str),
}

/// What to do with a snapshot that begins on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Throw away what is staged, and stage it from its start.
    Anew,
    /// Go on with what is staged.
    GoesOn,
}

/// The replica's side: what was staged, and what may come next.
#[derive(Debug)]
pub struct Taking {
    max: u64,
    staged: Option<Staged>,
    /// It has begun on this link.
    begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct Staged {
    point: SnapshotPoint,
    total: Option<u64>,
    offset: u64,
    chunks: u64,
    checksum: u32,
}

impl Taking {
    /// Takes snapshots of at most `max` bytes.
    #[must_use]
    pub const fn new(max: u64) -> Self {
        Self { max, staged: None, begun: false }
    }

    /// A new link: what to ask for.
    #[must_use]
    pub fn request(&mut self) -> SnapshotRequest {
        self.begun = false;
        let (id, offset) = self.staged.map_or((SnapshotId::NONE, 0), |s| (s.point.id, s.offset));
        SnapshotRequest { id, offset }
    }

    /// Nothing is staged any more.
    pub fn give_up(&mut self) {
        (self.staged, self.begun) = (None, false);
    }

    /// A snapshot begins on this link, at a replica whose log ends at `end`.
    ///
    /// # Errors
    /// What cannot be right.
    pub fn on_begin(&mut self, b: &SnapshotBegin, end: Lsn) -> Result<Begun, SnapshotViolation> {
        if self.begun {
            return Err(SnapshotViolation::BegunTwice);
        }
        if b.point.at <= end {
            return Err(SnapshotViolation::Behind { at: b.point.at, end });
        }
        if let Some(bytes) = b.total.filter(|total| *total > self.max) {
            return Err(SnapshotViolation::TooLarge { bytes, max: self.max });
        }
        let same = self.staged.filter(|s| s.point.id == b.point.id);
        let want = if b.offset == 0 { 0 } else { same.map_or(0, |s| s.offset) };
        if b.offset != want && !canary!(SnapshotHoleTaken) {
            return Err(SnapshotViolation::WrongOffset { offset: b.offset, want });
        }
        self.begun = true;
        match same {
            Some(s) if b.offset == s.offset || canary!(SnapshotHoleTaken) => {
                if s.point != b.point {
                    return Err(SnapshotViolation::Manifest("beginning"));
                }
                Ok(Begun::GoesOn)
            }
            _ => {
                self.staged = Some(Staged { point: b.point, total: b.total, offset: b.offset, chunks: 0, checksum: 0 });
                Ok(Begun::Anew)
            }
        }
    }

    fn begun(&mut self) -> Result<&mut Staged, SnapshotViolation> {
        self.staged.as_mut().filter(|_| self.begun).ok_or(SnapshotViolation::NotBegun)
    }

    /// A chunk that passed its CRC.
    ///
    /// # Errors
    /// What cannot be right.
    pub fn on_chunk(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotViolation> {
        let max = self.max;
        let s = self.begun()?;
        if bytes.is_empty() {
            return Err(SnapshotViolation::Empty);
        }
        if offset != s.offset && !canary!(SnapshotHoleTaken) {
            return Err(SnapshotViolation::WrongOffset { offset, want: s.offset });
        }
        let from = if canary!(SnapshotHoleTaken) { offset } else { s.offset };
        let end = from + bytes.len() as u64;
        if let Some(total) = s.total.filter(|total| end > *total) {
            return Err(SnapshotViolation::NotAsDeclared { bytes: end, total });
        }
        if end > max {
            return Err(SnapshotViolation::TooLarge { bytes: end, max });
        }
        (s.offset, s.chunks) = (end, s.chunks + 1);
        s.checksum = snapshot_checksum(s.checksum, bytes);
        Ok(())
    }

    /// The manifest, with what the primary knows to be committed. If it is right, the snapshot is whole
    /// and may be installed; nothing is staged any more.
    ///
    /// # Errors
    /// What cannot be right.
    pub fn on_end(&mut self, end: &SnapshotEnd, commit: Lsn) -> Result<SnapshotPoint, SnapshotViolation> {
        let s = *self.begun()?;
        if end.point != s.point {
            return Err(SnapshotViolation::Manifest("position"));
        }
        let as_is = canary!(SnapshotHoleTaken);
        if end.total != s.offset && !as_is {
            return Err(SnapshotViolation::NotAsDeclared { bytes: s.offset, total: end.total });
        }
        if let Some(total) = s.total.filter(|total| *total != s.offset && !as_is) {
            return Err(SnapshotViolation::NotAsDeclared { bytes: s.offset, total });
        }
        if end.chunks != s.chunks && !as_is {
            return Err(SnapshotViolation::Manifest("number of chunks"));
        }
        if end.checksum != s.checksum && !as_is {
            return Err(SnapshotViolation::Manifest("checksum"));
        }
        if commit < s.point.at {
            return Err(SnapshotViolation::NotCommitted { at: s.point.at, commit });
        }
        self.give_up();
        Ok(s.point)
    }

    /// How much is staged, and of how much, if that is known.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, Option<u64>)> {
        self.staged.map(|s| (s.offset, s.total))
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
