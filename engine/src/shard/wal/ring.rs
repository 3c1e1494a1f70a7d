//! Recent batches in memory, for links, tails and the handler: who is further behind reads from
//! disk.

use std::collections::VecDeque;
use std::rc::Rc;

use towline_wire::{BatchHeader, Lsn, Seq, Term};

use crate::rt::SharedBuf;

/// A whole batch that can be sent, applied and read by anybody on this core.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    bytes: Bytes,
    wire_len: usize,
    /// What a live one takes, which may be more than it has.
    memory: u64,
    pub(crate) lsn: Lsn,
    pub(crate) end: Lsn,
    pub(crate) end_seq: Seq,
    pub(crate) term: Term,
    /// Somebody waits for the `received` level.
    pub(crate) ack_received: bool,
}

#[derive(Clone, Debug)]
enum Bytes {
    /// The buffer that also goes to the device.
    Live(SharedBuf),
    /// A part of a large read.
    Read(SharedBuf),
    /// Put together from two reads.
    Joined(Rc<Vec<u8>>),
}

impl Batch {
    /// From the buffer that goes to the device.
    /// It takes `memory` bytes.
    pub(crate) fn live(buf: SharedBuf, memory: u64, ack_received: bool) -> Self {
        Self { memory, ..Self::new(Bytes::Live(buf), ack_received) }
    }

    /// From a part of a large read, which may hold more behind it.
    pub(crate) fn read(buf: SharedBuf) -> Self {
        Self::new(Bytes::Read(buf), false)
    }

    /// From two reads or more.
    pub(crate) fn joined(bytes: Vec<u8>) -> Self {
        Self::new(Bytes::Joined(Rc::new(bytes)), false)
    }

    /// Every caller has checked the bytes, or sealed them itself.
    fn new(bytes: Bytes, ack_received: bool) -> Self {
        let mut batch = Self {
            bytes,
            wire_len: 0,
            memory: 0,
            lsn: Lsn::ZERO,
            end: Lsn::ZERO,
            end_seq: Seq(0),
            term: Term::ZERO,
            ack_received,
        };
        let h = *batch.header();
        (batch.wire_len, batch.lsn, batch.end) = (h.wire_len(), h.lsn(), h.end_lsn());
        (batch.end_seq, batch.term) = (h.end_seq(), h.term());
        batch
    }

    fn all(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Live(buf) | Bytes::Read(buf) => buf,
            Bytes::Joined(bytes) => bytes,
        }
    }

    /// Header and body, as they cross the network.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.all()[..self.wire_len]
    }

    /// The buffer as it goes to the device, padding and all.
    ///
    /// # Panics
    /// If the batch was read and not closed or received here.
    pub(crate) fn disk(&self) -> &SharedBuf {
        match &self.bytes {
            Bytes::Live(buf) => buf,
            _ => unreachable!("only batches that are new here are written"),
        }
    }

    /// The header.
    pub(crate) fn header(&self) -> &BatchHeader {
        BatchHeader::check(self.all()).expect("a batch was checked when it was made")
    }

    /// Bytes on disk.
    pub(crate) fn disk_len(&self) -> u64 {
        self.end.since(self.lsn)
    }
}

/// Batches that follow each other without a gap, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    batches: VecDeque<Rc<Batch>>,
    bytes: u64,
}

impl Ring {
    /// Adds the newest batch.
    pub(crate) fn push(&mut self, batch: Rc<Batch>) {
        assert!(self.batches.back().is_none_or(|b| b.end == batch.lsn));
        self.bytes += batch.memory;
        self.batches.push_back(batch);
    }

    /// The batch that starts at `lsn`, if it is here.
    pub(crate) fn at(&self, lsn: Lsn) -> Option<&Rc<Batch>> {
        // Most ask for the newest.
        if let Some(last) = self.batches.back().filter(|b| b.lsn == lsn) {
            return Some(last);
        }
        let at = self.batches.partition_point(|b| b.lsn < lsn);
        self.batches.get(at).filter(|b| b.lsn == lsn)
    }

    /// Where the oldest batch begins.
    pub(crate) fn first(&self) -> Option<Lsn> {
        self.batches.front().map(|b| b.lsn)
    }

    /// Lets go of batches below `durable` that nobody needs (`needed` and above is) or that do not
    /// fit into `bytes_max`.
    pub(crate) fn trim(&mut self, durable: Lsn, needed: Lsn, bytes_max: u64) {
        while let Some(first) = self.batches.front() {
            if first.end > durable || (first.end > needed && self.bytes <= bytes_max) {
                break;
            }
            self.bytes -= first.memory;
            self.batches.pop_front();
        }
    }

    /// Lets go of everything, after a cut.
    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    /// Memory held, in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}
