//! Large direct reads of the log in flight ahead of a reader, in the order of the log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::Lsn;

use crate::limits;
use crate::notify::Changed;
use crate::protocol::pace::Reads;
use crate::rt::{self, SharedBuf};
use crate::shard::Shard;

/// What a read gave, and how long it took.
pub(crate) type Read = (io::Result<SharedBuf>, Duration);

/// One read, shared with the task that makes it: a reader that goes away leaves it to end by itself.
struct Reading {
    shard: Rc<Shard>,
    at: Lsn,
    len: usize,
    over: Changed,
    read: RefCell<Option<Read>>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let bytes = &self.shard.ahead_bytes;
        bytes.set(bytes.get() - self.len as u64);
    }
}

/// The reads of one reader.
#[derive(Default)]
pub(crate) struct ReadAhead(VecDeque<Rc<Reading>>);

impl std::fmt::Debug for ReadAhead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadAhead({})", self.0.len())
    }
}

impl ReadAhead {
    /// Keeps reads in flight from `at` on, to `until` at most, as many as `reads` says and the shard has room for.
    pub(crate) fn fill(&mut self, shard: &Rc<Shard>, at: Lsn, until: Lsn, reads: Reads) {
        let mut at = self.0.back().map_or(at, |r| Lsn(r.at.0 + r.len as u64));
        while self.0.len() < reads.depth && at < until {
            let len = chunk(shard, at, until, reads.bytes);
            if shard.ahead_bytes.get() + len as u64 > limits::READ_AHEAD_BYTES_MAX {
                return;
            }
            shard.ahead_bytes.set(shard.ahead_bytes.get() + len as u64);
            let (over, read) = (Changed::default(), RefCell::default());
            let reading = Rc::new(Reading { shard: shard.clone(), at, len, over, read });
            self.0.push_back(reading.clone());
            rt::spawn(async move {
                let read = read_timed(&reading.shard, reading.at, reading.len).await;
                *reading.read.borrow_mut() = Some(read);
                reading.over.notify();
            });
            at = Lsn(at.0 + len as u64);
        }
    }

    /// What was read from `at` on, if that is the next read; whatever else there is is forgotten.
    pub(crate) async fn take(&mut self, at: Lsn) -> Option<Read> {
        if self.0.front().is_none_or(|r| r.at != at) {
            self.0.clear();
            return None;
        }
        let reading = self.0.pop_front()?;
        loop {
            let seen = reading.over.seen();
            if let Some(read) = reading.read.borrow_mut().take() {
                return Some(read);
            }
            reading.over.since(seen).await;
        }
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Reads `len` bytes at `at`.
pub(crate) async fn read_timed(shard: &Shard, at: Lsn, len: usize) -> Read {
    let began = rt::now_ns();
    let read = shard.segments.read(at, len).await;
    (read, Duration::from_nanos(rt::now_ns() - began))
}

/// Bytes of one read at `at`: at most so many, to `until` at most, and to the segment's end.
pub(crate) fn chunk(shard: &Shard, at: Lsn, until: Lsn, bytes: usize) -> usize {
    let segment = shard.config.segment_bytes;
    let most = (segment - at.0 % segment).min(bytes as u64);
    until.since(at).min(most) as usize
}
