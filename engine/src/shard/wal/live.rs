//! The slice while it is written: direct writes by LSN, direct reads by LSN.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use towline_wire::{BLOCK, Lsn};

use super::folder;
use super::ring::Batch;
use crate::rt::{DirectFile, DmaBuf, ReadBuf, SharedBuf};

/// The segments of a slice, in order and without gaps, written with zeros or used before.
#[derive(Debug)]
pub(crate) struct LiveSegments {
    folder: PathBuf,
    segment_bytes: u64,
    first: Cell<Lsn>,
    files: RefCell<VecDeque<Rc<DirectFile>>>,
}

impl LiveSegments {
    /// Opens the segments from `first` to `end`.
    pub(crate) async fn open(folder: &Path, segment_bytes: u64, first: Lsn, end: Lsn) -> io::Result<Self> {
        let mut files = VecDeque::new();
        let mut at = first;
        while at < end {
            files.push_back(Rc::new(DirectFile::open(&folder::segment_path(folder, at)).await?));
            at = Lsn(at.0 + segment_bytes);
        }
        Ok(Self { folder: folder.into(), segment_bytes, first: Cell::new(first), files: RefCell::new(files) })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// First LSN of the first segment.
    pub(crate) fn first(&self) -> Lsn {
        self.first.get()
    }

    /// The end of the last segment.
    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.first.get().0 + self.files.borrow().len() as u64 * self.segment_bytes)
    }

    /// Adds the segment that starts at the end.
    pub(crate) async fn push(&self) -> io::Result<()> {
        let file = DirectFile::open(&folder::segment_path(&self.folder, self.end())).await?;
        self.files.borrow_mut().push_back(Rc::new(file));
        Ok(())
    }

    /// Takes the first segment out; its file may be used again once this returns.
    pub(crate) async fn pop(&self) {
        let file = self.files.borrow_mut().pop_front();
        self.first.set(Lsn(self.first.get().0 + self.segment_bytes));
        // A reader may still hold it: then it closes when that reader is done.
        if let Some(Ok(file)) = file.map(Rc::try_unwrap) {
            file.close().await;
        }
    }

    fn locate(&self, lsn: Lsn) -> Option<(Rc<DirectFile>, u64)> {
        let at = lsn.0.checked_sub(self.first.get().0)?;
        let file = self.files.borrow().get((at / self.segment_bytes) as usize)?.clone();
        Some((file, at % self.segment_bytes))
    }

    /// Writes a batch at its LSN; it is on the device when this returns. Returns the number of
    /// writes it took.
    ///
    /// A batch that crosses into the next segment, and the rest after a short write, go through
    /// buffers of their own: one batch in each 64 MiB.
    pub(crate) async fn write(&self, batch: &Batch) -> io::Result<u64> {
        let buf = batch.disk();
        let mut done = 0;
        let mut writes = 0;
        while done < buf.len() {
            let at = Lsn(batch.lsn.0 + done as u64);
            let (file, offset) =
                self.locate(at).ok_or_else(|| io::Error::other(format!("no segment holds LSN {at}")))?;
            let part = (buf.len() - done).min((self.segment_bytes - offset) as usize);
            let piece = if part == buf.len() { buf.clone() } else { copy(&buf[done..done + part]) };
            let written = file.write(piece, offset).await?;
            // Whole blocks only: the rest of a cut block is written again.
            let whole = written - written % BLOCK;
            if whole == 0 {
                let e = format!("the device took {written} of {part} bytes at LSN {at}");
                return Err(io::Error::new(io::ErrorKind::WriteZero, e));
            }
            done += whole;
            writes += 1;
        }
        Ok(writes)
    }

    /// Reads up to `len` bytes at a block boundary, at most to the segment's end.
    pub(crate) async fn read(&self, lsn: Lsn, len: usize) -> io::Result<ReadBuf> {
        let (file, offset) = self.locate(lsn).ok_or_else(|| io::Error::other(format!("no segment holds LSN {lsn}")))?;
        let len = len.next_multiple_of(BLOCK).min((self.segment_bytes - offset) as usize);
        file.read(offset, len).await
    }
}

fn copy(bytes: &[u8]) -> SharedBuf {
    let mut buf = DmaBuf::new(bytes.len());
    buf.as_mut().copy_from_slice(bytes);
    buf.share()
}
