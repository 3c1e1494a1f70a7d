//! The slice while it is written: direct writes by LSN, direct reads by LSN.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use towline_wire::{BLOCK, Lsn};

use super::folder;
use super::ring::Batch;
use crate::limits;
use crate::rt::disk;
use crate::rt::{DirectFile, SharedBuf};

/// The segments of a slice, in order and without gaps, written with zeros or used before.
///
/// A log may have more segments than a process may have files open, so a bounded number of files is
/// kept open: the newest, and those that were opened last.
#[derive(Debug)]
pub(crate) struct LiveSegments {
    folder: PathBuf,
    /// Which folder that was when it was opened.
    identity: (u64, u64),
    segment_bytes: u64,
    first: Cell<Lsn>,
    files: RefCell<VecDeque<Option<Rc<DirectFile>>>>,
    /// The starts of those that are open, in the order in which they were opened.
    opened: RefCell<VecDeque<Lsn>>,
}

impl LiveSegments {
    /// The segments from `first` to `end`.
    pub(crate) async fn open(folder: &Path, segment_bytes: u64, first: Lsn, end: Lsn) -> io::Result<Self> {
        let files = (0..end.since(first) / segment_bytes).map(|_| None).collect();
        let (files, opened) = (RefCell::new(files), RefCell::default());
        let identity = disk::identity(folder)?;
        let segments = Self { folder: folder.into(), identity, segment_bytes, first: Cell::new(first), files, opened };
        // What is written next need not be opened on the way, and what cannot be opened shows here.
        let newest = segments.files.borrow().len().min(limits::SEGMENTS_OPEN_NEWEST) as u64;
        for back in (1..=newest).rev() {
            segments.open_file(Lsn(end.0 - back * segment_bytes)).await?;
        }
        Ok(segments)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails if another folder has taken its place. Blocking.
    pub(crate) fn same_folder(folder: &Path, identity: (u64, u64)) -> io::Result<()> {
        match disk::identity(folder) {
            Ok(now) if now == identity => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Err(io::Error::other(
                "it was moved away or replaced while the node ran. Put it back and start the node again",
            )),
        }
    }

    /// What [`LiveSegments::same_folder`] wants.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
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
        let start = self.end();
        let file = DirectFile::open(&folder::segment_path(&self.folder, start)).await?;
        self.files.borrow_mut().push_back(None);
        self.keep_open(start, Rc::new(file));
        Ok(())
    }

    /// Takes the first segment out; its file may be used again once this returns. A reader may still
    /// hold it: then it closes when that reader is done.
    pub(crate) fn pop(&self) {
        let first = self.first.get();
        self.files.borrow_mut().pop_front();
        self.opened.borrow_mut().retain(|start| *start != first);
        self.first.set(Lsn(first.0 + self.segment_bytes));
    }

    /// The log begins anew at `at`, further on. The segments before that are taken out and returned; with
    /// `none`, no segment is there any more.
    pub(crate) fn begin(&self, at: Lsn, none: bool) -> Vec<Lsn> {
        let begin = Lsn(at.0 - at.0 % self.segment_bytes);
        let mut left = Vec::new();
        let mut files = self.files.borrow_mut();
        if none {
            files.clear();
            self.opened.borrow_mut().clear();
        }
        while self.first.get() < begin && files.pop_front().is_some() {
            left.push(self.first.get());
            self.first.set(Lsn(self.first.get().0 + self.segment_bytes));
        }
        if files.is_empty() {
            self.first.set(begin);
        }
        self.opened.borrow_mut().retain(|start| *start >= begin);
        left
    }

    fn index(&self, start: Lsn) -> Option<usize> {
        let at = start.0.checked_sub(self.first.get().0)? / self.segment_bytes;
        Some(at as usize).filter(|at| *at < self.files.borrow().len())
    }

    /// The file that holds an LSN, and the position in it.
    async fn locate(&self, lsn: Lsn) -> io::Result<(Rc<DirectFile>, u64)> {
        let offset = lsn.0 % self.segment_bytes;
        let start = Lsn(lsn.0 - offset);
        let index = self.index(start).ok_or_else(|| io::Error::other(format!("no segment holds LSN {lsn}")))?;
        let open = self.files.borrow()[index].clone();
        let file = match open {
            Some(file) => file,
            None => self.open_file(start).await?,
        };
        Ok((file, offset))
    }

    async fn open_file(&self, start: Lsn) -> io::Result<Rc<DirectFile>> {
        let file = Rc::new(DirectFile::open(&folder::segment_path(&self.folder, start)).await?);
        self.keep_open(start, file.clone());
        Ok(file)
    }

    /// Keeps a file open, and lets go of the one that was opened first if there are too many. Who
    /// reads or writes there holds it until that is done.
    fn keep_open(&self, start: Lsn, file: Rc<DirectFile>) {
        // It may have been let go of while it was opened.
        let Some(index) = self.index(start) else { return };
        let mut opened = self.opened.borrow_mut();
        if self.files.borrow_mut()[index].replace(file).is_none() {
            opened.push_back(start);
        }
        for _ in 0..opened.len() {
            if opened.len() <= limits::SEGMENTS_OPEN_MAX {
                break;
            }
            let Some(oldest) = opened.pop_front() else { break };
            let Some(index) = self.index(oldest) else { continue };
            let mut files = self.files.borrow_mut();
            if index + limits::SEGMENTS_OPEN_NEWEST >= files.len() {
                opened.push_back(oldest);
            } else {
                files[index] = None;
            }
        }
    }

    /// Writes a batch at its LSN; it is on the device when this returns. Returns the number of
    /// writes it took.
    ///
    /// A batch that crosses into the next segment takes two.
    pub(crate) async fn write(&self, batch: &Batch) -> io::Result<u64> {
        let buf = batch.disk();
        let mut done = 0;
        let mut writes = 0;
        while done < buf.len() {
            let at = Lsn(batch.lsn.0 + done as u64);
            let (file, offset) = self.locate(at).await?;
            let part = (buf.len() - done).min((self.segment_bytes - offset) as usize);
            let piece = || buf.part(done..done + part);
            let written = match file.write(piece(), offset).await {
                Err(_) if canary!(FlushRetried) => file.write(piece(), offset).await?,
                written => written?,
            };
            // Whole blocks only: the rest of a cut block is written again.
            let whole = if canary!(ShortWriteIgnored) { part } else { written - written % BLOCK };
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
    pub(crate) async fn read(&self, lsn: Lsn, len: usize) -> io::Result<SharedBuf> {
        let (file, offset) = self.locate(lsn).await?;
        let len = len.next_multiple_of(BLOCK).min((self.segment_bytes - offset) as usize);
        file.read(offset, len).await
    }
}
