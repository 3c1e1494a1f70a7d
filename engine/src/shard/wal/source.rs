//! Reading a slice with blocking direct reads, by LSN: for recovery, verification and dumps.

use std::io;
use std::path::{Path, PathBuf};

use towline_wire::{BLOCK, Lsn};

use super::direct::{self, AlignedBuf};
use super::error::OpenError;
use super::folder;
use crate::limits;
use crate::protocol::recovery::LogSource;
use crate::rt::disk::{self, File, OpenHow};

/// The segments of a slice, in order and without gaps, and a window over them.
#[derive(Debug)]
pub(crate) struct SegmentSource {
    folder: PathBuf,
    segment_bytes: u64,
    /// First LSN of the first segment.
    first: Lsn,
    count: usize,
    /// The file that was read last, and which it is: not all can be open at once.
    current: Option<(usize, File)>,
    window: AlignedBuf,
    window_at: Lsn,
    window_len: usize,
}

impl SegmentSource {
    /// Opens the segments from the one that holds `oldest` on. Everything up to `needed` must be
    /// there. With `sync`, each is made durable first.
    pub(crate) fn open(
        folder: &Path,
        segment_bytes: u64,
        oldest: Lsn,
        needed: Lsn,
        sync: bool,
    ) -> Result<Self, OpenError> {
        let first = Lsn(oldest.0 - oldest.0 % segment_bytes);
        let mut next = first;
        let mut count = 0;
        for start in folder::list_segments(folder)?.into_iter().filter(|s| *s >= first) {
            let path = folder::segment_path(folder, start);
            if start != next {
                return Err(OpenError::MissingSegment { path: folder::segment_path(folder, next), lsn: next });
            }
            let file = open_to_read(&path).map_err(OpenError::io("opening", &path))?;
            let bytes = file.len().map_err(OpenError::io("reading the size of", &path))?;
            if bytes != segment_bytes {
                return Err(OpenError::SegmentSize { path, bytes, expected: segment_bytes });
            }
            if sync {
                file.sync_all().map_err(OpenError::io("flushing", &path))?;
            }
            count += 1;
            next = Lsn(next.0 + segment_bytes);
        }
        if next < needed {
            return Err(OpenError::MissingSegment { path: folder::segment_path(folder, next), lsn: next });
        }
        if sync {
            disk::sync_folder(folder).map_err(OpenError::io("flushing the folder", folder))?;
        }
        Ok(Self {
            folder: folder.into(),
            segment_bytes,
            first,
            count,
            current: None,
            window: AlignedBuf::zeroed(0),
            window_at: Lsn::ZERO,
            window_len: 0,
        })
    }

    /// Segments there are.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Forgets what was read: what is asked for next comes from the files.
    pub(crate) fn forget(&mut self) {
        self.window_len = 0;
    }

    /// First LSN of the first segment.
    pub(crate) const fn first(&self) -> Lsn {
        self.first
    }

    /// The end of the last segment.
    pub(crate) const fn end(&self) -> Lsn {
        Lsn(self.first.0 + self.count as u64 * self.segment_bytes)
    }

    /// The file that holds an LSN, and the position in it.
    pub(crate) fn locate(&self, lsn: Lsn) -> (PathBuf, u64) {
        let offset = lsn.0 % self.segment_bytes;
        (folder::segment_path(&self.folder, Lsn(lsn.0 - offset)), offset)
    }
}

fn open_to_read(path: &Path) -> io::Result<File> {
    match direct::open_to_read(path) {
        // A copy on a file system without direct I/O can still be read.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => File::open(path, OpenHow::default()),
        other => other,
    }
}

impl LogSource for SegmentSource {
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]> {
        let len = len.min(self.end().since(lsn) as usize);
        let from = lsn.since(self.window_at) as usize;
        if lsn < self.window_at || from + len > self.window_len {
            assert!(lsn >= self.first && lsn.is_block_aligned());
            let want = len.next_multiple_of(BLOCK).max(limits::READ_CHUNK_BYTES);
            let want = want.min(self.end().since(lsn) as usize);
            if self.window.as_ref().len() < want {
                self.window = AlignedBuf::zeroed(want);
            }
            (self.window_at, self.window_len) = (lsn, 0);
            while self.window_len < want {
                let at = lsn.0 + self.window_len as u64 - self.first.0;
                let (segment, offset) = ((at / self.segment_bytes) as usize, at % self.segment_bytes);
                let part = (want - self.window_len).min((self.segment_bytes - offset) as usize);
                let file = match self.current.take() {
                    Some((number, file)) if number == segment => file,
                    _ => open_to_read(&self.locate(Lsn(at + self.first.0)).0)?,
                };
                let out = &mut self.window.as_mut()[self.window_len..self.window_len + part];
                let read = file.read_exact_at(out, offset);
                self.current = Some((segment, file));
                read?;
                self.window_len += part;
            }
            return Ok(&self.window.as_ref()[..len]);
        }
        Ok(&self.window.as_ref()[from..from + len])
    }
}
