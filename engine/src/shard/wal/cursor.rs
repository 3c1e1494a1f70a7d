//! Reading the log forward by LSN: from memory where the batches are still there, else from disk
//! with large direct reads, several in flight for a link. Links, tails and the handler use the same cursor, so that the step from
//! disk to live has no gap and no repeat.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use thiserror::Error;
use towline_wire::superblock::Base;
use towline_wire::{BLOCK, BatchHeader, BatchView, Chain, Lsn, Seq};

use super::ahead::{ReadAhead, chunk, read_timed};
use super::ring::Batch;
use crate::limits;
use crate::protocol::pace::Reads;
use crate::rt::SharedBuf;
use crate::shard::Shard;

/// Why reading on is impossible.
#[derive(Debug, Error)]
pub(crate) enum CursorError {
    #[error("LSN {wanted} is older than the oldest kept, {oldest}")]
    TooOld { wanted: Lsn, oldest: Lsn },
    #[error("no batch starts at LSN {at}: {reason}")]
    NoBatch { at: Lsn, reason: String },
    #[error("reading at LSN {at}: {source}")]
    Io { at: Lsn, source: io::Error },
}

/// A reader of one shard's log.
#[derive(Debug)]
pub(crate) struct Cursor {
    shard: Rc<Shard>,
    reader: usize,
    next: Lsn,
    chunk: Option<(Lsn, SharedBuf)>,
    ahead: ReadAhead,
    /// How it reads.
    reads: Reads,
    /// Cuts of the log before the chunk was read.
    cuts: u64,
    on_disk: bool,
    /// What was read from disk since this was taken: bytes, and how long that took.
    was_read: (u64, Duration),
}

impl Cursor {
    /// A cursor whose next batch is the one that starts at `next`.
    pub(crate) fn new(shard: &Rc<Shard>, next: Lsn) -> Self {
        let reader = {
            let readers = &mut shard.inner.borrow_mut().readers;
            let free = readers.iter().position(Option::is_none).unwrap_or_else(|| {
                readers.push(None);
                readers.len() - 1
            });
            readers[free] = Some(next);
            free
        };
        Self {
            shard: shard.clone(),
            reader,
            next,
            chunk: None,
            ahead: ReadAhead::default(),
            reads: Reads { bytes: limits::READ_CHUNK_BYTES, depth: 0 },
            cuts: 0,
            on_disk: false,
            was_read: Default::default(),
        }
    }

    /// How it reads from now on what is taken from disk. Without this, what is asked for and nothing ahead.
    pub(crate) fn read_as(&mut self, reads: Reads) {
        self.reads = reads;
    }

    /// Bytes that were read from disk since this was asked last, and how long the device took for them.
    pub(crate) fn take_read(&mut self) -> (u64, Duration) {
        std::mem::take(&mut self.was_read)
    }

    /// Whether the last batch came from disk.
    pub(crate) const fn is_on_disk(&self) -> bool {
        self.on_disk
    }

    /// Where the next batch starts.
    pub(crate) const fn next(&self) -> Lsn {
        self.next
    }

    fn advance(&mut self, end: Lsn) {
        self.next = end;
        self.shard.inner.borrow_mut().readers[self.reader] = Some(end);
    }

    /// The next batch if it is in memory and ends at or below `limit`.
    pub(crate) fn next_in_memory(&mut self, limit: Lsn) -> Option<Rc<Batch>> {
        let batch = self.shard.inner.borrow().ring.at(self.next)?.clone();
        if batch.end > limit {
            return None;
        }
        if self.on_disk {
            self.on_disk = false;
            self.forget();
        }
        self.advance(batch.end);
        Some(batch)
    }

    fn forget(&mut self) {
        self.chunk = None;
        self.ahead.clear();
    }

    /// The next batch if it lies whole in what was read from disk, and ends at or below `limit`.
    pub(crate) fn next_at_hand(&mut self, limit: Lsn) -> Result<Option<Rc<Batch>>, CursorError> {
        if self.cuts != self.shard.cuts.get() {
            return Ok(None);
        }
        let Found::Whole(batch) = self.look(self.next)? else { return Ok(None) };
        if batch.end > limit {
            return Ok(None);
        }
        self.advance(batch.end);
        Ok(Some(Rc::new(batch)))
    }

    /// The next batch that ends at or below `limit`, or `None` if there is none yet. `limit` is a
    /// batch boundary; what is not in memory must be durable.
    pub(crate) async fn next_batch(&mut self, limit: Lsn) -> Result<Option<Rc<Batch>>, CursorError> {
        if self.next >= limit {
            return Ok(None);
        }
        if let Some(batch) = self.next_in_memory(limit) {
            return Ok(Some(batch));
        }
        let at = self.next;
        let (oldest, durable) = {
            let inner = self.shard.inner.borrow();
            (inner.oldest, inner.pipeline.durable())
        };
        if at < oldest {
            return Err(CursorError::TooOld { wanted: at, oldest });
        }
        if at >= durable {
            return Ok(None);
        }
        if !self.on_disk {
            self.on_disk = true;
            self.shard.count(|c| c.catch_ups += 1);
        }
        let batch = match self.read(at, durable).await {
            Ok(batch) => batch,
            Err(e) => {
                // The segment may have been let go of and used again while it was read.
                let oldest = self.shard.inner.borrow().oldest;
                return Err(if at < oldest { CursorError::TooOld { wanted: at, oldest } } else { e });
            }
        };
        if batch.end > limit {
            return Ok(None);
        }
        self.advance(batch.end);
        Ok(Some(Rc::new(batch)))
    }

    /// Bytes of the current chunk from `at` on.
    fn in_chunk(&self, at: Lsn) -> &[u8] {
        match &self.chunk {
            Some((start, buf)) if *start <= at => buf.get(at.since(*start) as usize..).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// What of the batch at `at` is in the chunk.
    fn look(&self, at: Lsn) -> Result<Found, CursorError> {
        let there = self.in_chunk(at);
        if there.len() < BLOCK {
            return Ok(Found::Nothing);
        }
        let no_batch = |reason: String| CursorError::NoBatch { at, reason };
        let header = BatchHeader::check(there).map_err(|e| no_batch(e.to_string()))?;
        if header.lsn() != at || header.shard() != self.shard.id || header.system() != self.shard.inner.borrow().system
        {
            return Err(no_batch("the bytes there belong elsewhere".into()));
        }
        let need = header.disk_len() as usize;
        if there.len() < need {
            return Ok(Found::Part(need));
        }
        BatchView::check_on_disk(there).map_err(|e| no_batch(e.to_string()))?;
        let (start, buf) = self.chunk.as_ref().expect("it holds the batch");
        Ok(Found::Whole(Batch::read(buf.part(at.since(*start) as usize..buf.len()))))
    }

    async fn read(&mut self, at: Lsn, durable: Lsn) -> Result<Batch, CursorError> {
        if self.cuts != self.shard.cuts.get() {
            // What was cut may be in it, whole and of the same LSN.
            self.forget();
        }
        if self.in_chunk(at).len() < BLOCK {
            self.fetch(at, durable).await?;
        }
        match self.look(at)? {
            Found::Whole(batch) => Ok(batch),
            Found::Part(need) => self.join(at, need, durable).await,
            Found::Nothing => Err(CursorError::NoBatch { at, reason: "the file ends before it".into() }),
        }
    }

    /// Makes the chunk the one that starts at `at`.
    async fn fetch(&mut self, at: Lsn, durable: Lsn) -> Result<(), CursorError> {
        let cuts = self.shard.cuts.get();
        if std::mem::replace(&mut self.cuts, cuts) != cuts {
            self.ahead.clear();
        }
        self.chunk = None;
        let (read, took) = match self.ahead.take(at).await {
            Some(read) => read,
            None => read_timed(&self.shard, at, chunk(&self.shard, at, durable, self.reads.bytes)).await,
        };
        let read = read.map_err(|source| CursorError::Io { at, source })?;
        self.was_read = (self.was_read.0 + read.len() as u64, self.was_read.1 + took);
        self.shard.count(|c| c.device_reads += 1);
        let end = Lsn(at.0 + read.len() as u64);
        self.chunk = Some((at, read));
        // What is in memory is not read; that may be less by then.
        let until = self.shard.inner.borrow().ring.first().map_or(durable, |first| first.min(durable));
        self.ahead.fill(&self.shard, end, until, self.reads);
        Ok(())
    }

    /// A batch that begins in this chunk and ends in another one.
    async fn join(&mut self, at: Lsn, need: usize, durable: Lsn) -> Result<Batch, CursorError> {
        let mut bytes = Vec::with_capacity(need);
        loop {
            let part = self.in_chunk(Lsn(at.0 + bytes.len() as u64));
            bytes.extend_from_slice(&part[..part.len().min(need - bytes.len())]);
            if bytes.len() == need {
                break;
            }
            let from = Lsn(at.0 + bytes.len() as u64);
            if from < durable {
                self.fetch(from, durable).await?;
            }
            if self.in_chunk(from).is_empty() {
                return Err(CursorError::NoBatch { at, reason: "what is kept ends before it does".into() });
            }
        }
        BatchView::check_on_disk(&bytes).map_err(|e| CursorError::NoBatch { at, reason: e.to_string() })?;
        Ok(Batch::joined(bytes))
    }
}

/// What of a batch was read already.
enum Found {
    Nothing,
    /// Its header, and that it has so many bytes.
    Part(usize),
    Whole(Batch),
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.shard.inner.borrow_mut().readers[self.reader] = None;
    }
}

/// The chain and the number of the next record at a batch boundary inside the log: what the header
/// of the batch that starts there says came before it. `None` if no batch starts there.
pub(crate) async fn position_at(shard: &Rc<Shard>, lsn: Lsn) -> Result<Option<(Chain, Seq)>, CursorError> {
    let before = |h: &BatchHeader| (h.prev_chain(), h.first_seq());
    if let Some(batch) = shard.inner.borrow().ring.at(lsn) {
        return Ok(Some(before(batch.header())));
    }
    let block = shard.segments.read(lsn, BLOCK).await.map_err(|source| CursorError::Io { at: lsn, source })?;
    let system = shard.inner.borrow().system;
    let header = BatchHeader::check(&block).ok();
    Ok(header.filter(|h| h.lsn() == lsn && h.shard() == shard.id && h.system() == system).map(before))
}

/// Why a state cannot stand where it says.
#[derive(Debug, Error)]
pub(crate) enum BaseError {
    #[error("the state stands at {at}, the log that is kept goes from {oldest} to {tail}")]
    Outside { at: Lsn, oldest: Lsn, tail: Lsn },
    #[error("the state stands at {at}, where no batch starts")]
    NoBatch { at: Lsn },
    #[error(transparent)]
    Log(#[from] CursorError),
}

/// What came before `at`, where a state stands, once that is committed: no replica may have state that could
/// be taken back. `None`: not yet.
pub(crate) async fn base_at(shard: &Rc<Shard>, at: Lsn) -> Result<Option<Base>, BaseError> {
    let (oldest, tail, at_end) = {
        let inner = shard.inner.borrow();
        let tail = inner.pipeline.appended();
        // With an open batch the number of the next record is not that of the end.
        (inner.oldest, tail, inner.open.is_none().then_some((inner.chain, inner.next_seq)))
    };
    if at < oldest || at > tail || !at.is_block_aligned() {
        return Err(BaseError::Outside { at, oldest, tail });
    }
    if shard.committed() < at {
        return Ok(None);
    }
    let position = match at == tail {
        true => at_end,
        false => Some(position_at(shard, at).await?.ok_or(BaseError::NoBatch { at })?),
    };
    Ok(position.map(|(chain, seq)| Base { chain, seq }))
}
