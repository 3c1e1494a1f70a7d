//! Direct files and the buffers that go to and from them.

use std::io;
use std::ops::Deref;
use std::path::Path;
#[cfg(feature = "sim")]
use std::rc::Rc;

use super::ring;
#[cfg(feature = "sim")]
use super::{disk, inject, world};

/// A buffer that the device can read from and write to directly: aligned, from this executor's
/// registered memory where that has room.
#[derive(Debug)]
pub(crate) enum DmaBuf {
    Ring(ring::DmaBuf),
    #[cfg(feature = "sim")]
    World(Vec<u8>),
}

impl DmaBuf {
    /// A buffer of `len` bytes, not zeroed: whoever fills it says what is in it.
    pub(crate) fn new(len: usize) -> Self {
        in_world!(_world => Self::World(vec![0xA5; len]));
        Self::Ring(ring::DmaBuf::new(len))
    }

    /// Shortens it.
    pub(crate) fn trim(&mut self, len: usize) {
        match self {
            Self::Ring(buf) => buf.trim(len),
            #[cfg(feature = "sim")]
            Self::World(bytes) => bytes.truncate(len),
        }
    }

    /// Shares it; from now on it does not change.
    pub(crate) fn share(self) -> SharedBuf {
        match self {
            Self::Ring(buf) => SharedBuf::Ring(buf.share()),
            #[cfg(feature = "sim")]
            Self::World(bytes) => SharedBuf::World(Rc::new(bytes)),
        }
    }
}

impl AsRef<[u8]> for DmaBuf {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Ring(buf) => buf.as_ref(),
            #[cfg(feature = "sim")]
            Self::World(bytes) => bytes,
        }
    }
}

impl AsMut<[u8]> for DmaBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Ring(buf) => buf.as_mut(),
            #[cfg(feature = "sim")]
            Self::World(bytes) => bytes,
        }
    }
}

/// A buffer that the device and any number of links read at the same time.
#[derive(Clone, Debug)]
pub(crate) enum SharedBuf {
    Ring(ring::SharedBuf),
    #[cfg(feature = "sim")]
    World(Rc<Vec<u8>>),
}

impl SharedBuf {
    /// Overwrites it.
    ///
    /// # Panics
    /// If it is shared, or `bytes` are not as long.
    pub(crate) fn refill(&mut self, bytes: &[u8]) {
        match self {
            Self::Ring(buf) => buf.refill(bytes),
            #[cfg(feature = "sim")]
            Self::World(buf) => Rc::get_mut(buf).expect("nobody else reads it").copy_from_slice(bytes),
        }
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Ring(buf) => buf,
            #[cfg(feature = "sim")]
            Self::World(bytes) => bytes,
        }
    }
}

/// Bytes read from a direct file; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum ReadBuf {
    Ring(ring::ReadBuf),
    #[cfg(feature = "sim")]
    World(Rc<Vec<u8>>),
}

impl Deref for ReadBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Ring(buf) => buf,
            #[cfg(feature = "sim")]
            Self::World(bytes) => bytes,
        }
    }
}

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
        match (self, buf) {
            (Self::Ring(file), SharedBuf::Ring(buf)) => file.write(buf, at).await,
            #[cfg(feature = "sim")]
            (Self::World(file), SharedBuf::World(bytes)) => file.start_write(bytes, at).await,
            #[cfg(feature = "sim")]
            (Self::Watched(file, watched), SharedBuf::Ring(buf)) => write_watched(file, watched, buf, at).await,
            #[cfg(feature = "sim")]
            _ => unreachable!("a thread is in a world or it is not"),
        }
    }

    /// Reads `len` bytes at `at`, both aligned. Less at the file's end.
    pub(crate) async fn read(&self, at: u64, len: usize) -> io::Result<ReadBuf> {
        match self {
            Self::Ring(file) => Ok(ReadBuf::Ring(file.read(at, len).await?)),
            #[cfg(feature = "sim")]
            Self::World(file) => Ok(ReadBuf::World(Rc::new(file.start_read(at, len).await?))),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => {
                watched.ask(inject::Call::Other)?;
                Ok(ReadBuf::Ring(file.read(at, len).await?))
            }
        }
    }
}

/// Writes as much as it is told to, for real.
#[cfg(feature = "sim")]
async fn write_watched(
    file: &ring::DirectFile,
    watched: &inject::Watched,
    buf: ring::SharedBuf,
    at: u64,
) -> io::Result<usize> {
    // A segment has its length from the start.
    let (len, error) = match watched.write(inject::Call::Batch, buf.len(), || false) {
        inject::Fate::Takes(len) => (len, None),
        inject::Fate::Fails(len, errno) => (len, Some(io::Error::from_raw_os_error(errno))),
    };
    let mut written = 0;
    if len == buf.len() {
        written = file.write(buf, at).await?;
    } else if len > 0 {
        let mut part = ring::DmaBuf::new(len);
        part.as_mut().copy_from_slice(&buf[..len]);
        written = file.write(part.share(), at).await?;
    }
    error.map_or(Ok(written), Err)
}
