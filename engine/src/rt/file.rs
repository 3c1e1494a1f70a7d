//! Direct files.

use std::io;
use std::path::Path;
#[cfg(feature = "sim")]
use std::rc::Rc;

use super::dma::SharedBuf;
use super::ring;
#[cfg(feature = "sim")]
use super::{disk, dma::DmaBuf, inject, world};

/// A file that bypasses the page cache; a completed write is on the device.
pub(crate) enum DirectFile {
    Ring(ring::DirectFile),
    #[cfg(feature = "sim")]
    World(std::sync::Arc<dyn world::DiskFile>),
    /// A real one in a folder that is watched.
    #[cfg(feature = "sim")]
    Watched(ring::DirectFile, inject::Watched),
}

impl std::fmt::Debug for DirectFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectFile")
    }
}

impl DirectFile {
    /// Opens an existing file for direct, durable writes.
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        in_world!(world => Ok(Self::World(world.disk().open(path, disk::DIRECT_DURABLE)?)));
        may_fail!(Other, path);
        let file = ring::DirectFile::open(path).await?;
        #[cfg(feature = "sim")]
        if let Some(watched) = inject::watched_file(path) {
            return Ok(Self::Watched(file, watched));
        }
        Ok(Self::Ring(file))
    }

    /// Writes the whole buffer at `at` and resolves when it is on the device. May write less than
    /// all, as the kernel may.
    pub(crate) async fn write(&self, buf: SharedBuf, at: u64) -> io::Result<usize> {
        match self {
            Self::Ring(file) => file.write(buf, at).await,
            #[cfg(feature = "sim")]
            Self::World(file) => file.start_write(Rc::new(buf), at).await,
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => write_watched(file, watched, buf, at).await,
        }
    }

    /// Reads `len` bytes at `at`, both aligned. Less at the file's end.
    pub(crate) async fn read(&self, at: u64, len: usize) -> io::Result<SharedBuf> {
        match self {
            Self::Ring(file) => file.read(at, len).await,
            #[cfg(feature = "sim")]
            Self::World(file) => Ok(DmaBuf::of_world(file.start_read(at, len).await?).share()),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => {
                watched.ask(inject::Call::Other)?;
                file.read(at, len).await
            }
        }
    }
}

/// Writes as much as it is told to, for real.
#[cfg(feature = "sim")]
async fn write_watched(
    file: &ring::DirectFile,
    watched: &inject::Watched,
    buf: SharedBuf,
    at: u64,
) -> io::Result<usize> {
    // A segment has its length from the start.
    let (len, error) = match watched.write(inject::Call::Batch, buf.len(), || false) {
        inject::Fate::Takes(len) => (len, None),
        inject::Fate::Fails(len, errno) => (len, Some(io::Error::from_raw_os_error(errno))),
    };
    let written = if len > 0 { file.write(buf.part(0..len), at).await? } else { 0 };
    error.map_or(Ok(written), Err)
}
