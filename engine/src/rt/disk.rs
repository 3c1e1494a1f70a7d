//! Blocking calls on folders and files, for threads that run no executor.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
#[cfg(feature = "sim")]
use std::sync::Arc;

#[cfg(feature = "sim")]
use super::{inject, world};
use crate::sys;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(not(feature = "sim"), allow(unreachable_pub, reason = "public for simulators"))]
pub struct OpenHow {
    /// For writing too.
    pub write: bool,
    /// Made if it is not there.
    pub create: bool,
    /// With `create`: refused if it is there.
    pub must_be_new: bool,
    /// Past the page cache (`O_DIRECT`): lengths and positions are whole blocks of the device.
    pub direct: bool,
    /// A completed write is on the device (`O_DSYNC`).
    pub durable: bool,
}

/// To read and write an existing file directly; a completed write is on the device.
#[cfg(feature = "sim")]
pub(crate) const DIRECT_DURABLE: OpenHow =
    OpenHow { write: true, create: false, must_be_new: false, direct: true, durable: true };

/// An open file.
pub(crate) enum File {
    Os(fs::File),
    #[cfg(feature = "sim")]
    World(Arc<dyn world::DiskFile>),
    /// A real one in a folder that is watched.
    #[cfg(feature = "sim")]
    Watched(Box<Self>, inject::Watched),
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("File")
    }
}

impl File {
    pub(crate) fn open(path: &Path, how: OpenHow) -> io::Result<Self> {
        in_world!(world => Ok(Self::World(world.disk().open(path, how)?)));
        let flags = if how.direct { libc::O_DIRECT } else { 0 } | if how.durable { libc::O_DSYNC } else { 0 };
        let mut options = fs::OpenOptions::new();
        options.read(true).write(how.write).custom_flags(flags);
        options.create(how.create && !how.must_be_new).create_new(how.create && how.must_be_new);
        may_fail!(Other, path);
        let file = Self::Os(options.open(path)?);
        #[cfg(feature = "sim")]
        if let Some(watched) = inject::watched_file(path) {
            return Ok(Self::Watched(Box::new(file), watched));
        }
        Ok(file)
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::Os(file) => Ok(file.metadata()?.len()),
            #[cfg(feature = "sim")]
            Self::World(file) => file.len(),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Other).and_then(|()| file.len()),
        }
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        match self {
            Self::Os(file) => file.set_len(len),
            #[cfg(feature = "sim")]
            Self::World(file) => file.set_len(len),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Other).and_then(|()| file.set_len(len)),
        }
    }

    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            Self::Os(file) => file.read_at(out, at),
            #[cfg(feature = "sim")]
            Self::World(file) => file.read_at(out, at),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Other).and_then(|()| file.read_at(out, at)),
        }
    }

    /// `UnexpectedEof` if the file ends before.
    pub(crate) fn read_exact_at(&self, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
        while !out.is_empty() {
            match self.read_at(out, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => (out, at) = (&mut out[n..], at + n as u64),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        match self {
            Self::Os(file) => file.write_at(bytes, at),
            #[cfg(feature = "sim")]
            Self::World(file) => file.write_at(bytes, at),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => {
                let grows = || file.len().is_ok_and(|len| len < at + bytes.len() as u64);
                match watched.write(inject::Call::Write, bytes.len(), grows) {
                    inject::Fate::Takes(len) => file.write_at(&bytes[..len], at),
                    inject::Fate::Fails(len, errno) => {
                        file.write_at(&bytes[..len], at)?;
                        Err(io::Error::from_raw_os_error(errno))
                    }
                }
            }
        }
    }

    pub(crate) fn write_all_at(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => (bytes, at) = (&bytes[n..], at + n as u64),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Makes its bytes durable.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.sync_once().or_else(|e| if canary!(FlushRetried) { self.sync_once() } else { Err(e) })
    }

    fn sync_once(&self) -> io::Result<()> {
        match self {
            Self::Os(file) => file.sync_all(),
            #[cfg(feature = "sim")]
            Self::World(file) => file.sync(),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Flush).and_then(|()| file.sync_all()),
        }
    }

    /// Locks it; `false` if somebody else holds it. Released when it is closed.
    pub(crate) fn try_lock(&self) -> io::Result<bool> {
        match self {
            Self::Os(file) => match file.try_lock() {
                Ok(()) => Ok(true),
                Err(fs::TryLockError::WouldBlock) => Ok(false),
                Err(fs::TryLockError::Error(e)) => Err(e),
            },
            #[cfg(feature = "sim")]
            Self::World(file) => file.try_lock(),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Other).and_then(|()| file.try_lock()),
        }
    }

    /// What direct I/O on it needs; `None` if its file system does not say.
    pub(crate) fn direct_alignment(&self) -> io::Result<Option<sys::DirectAlignment>> {
        match self {
            Self::Os(file) => sys::direct_alignment(file),
            #[cfg(feature = "sim")]
            Self::World(_) => Ok(None),
            #[cfg(feature = "sim")]
            Self::Watched(file, watched) => watched.ask(inject::Call::Other).and_then(|()| file.direct_alignment()),
        }
    }
}

/// A whole file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    in_world!(world => {
        let file = File::World(world.disk().open(path, OpenHow::default())?);
        let mut out = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        file.read_exact_at(&mut out, 0)?;
        Ok(out)
    });
    may_fail!(Other, path);
    fs::read(path)
}

/// Makes a folder and those above it.
pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    in_world!(world => world.disk().create_dir_all(path));
    may_fail!(Other, path);
    fs::create_dir_all(path)
}

/// The names in a folder that are text, in no order.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    in_world!(world => world.disk().names(folder));
    may_fail!(Other, folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Whether there is such a file or folder.
pub(crate) fn exists(path: &Path) -> bool {
    in_world!(world => world.disk().exists(path));
    path.exists()
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    in_world!(world => world.disk().remove(path));
    may_fail!(Other, path);
    fs::remove_file(path)
}

/// Renames a file over whatever is there.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    in_world!(world => world.disk().rename(from, to));
    may_fail!(Other, to);
    fs::rename(from, to)
}

/// Which folder a path leads to: device and inode.
pub(crate) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    // Nobody moves a folder of a world.
    in_world!(_world => Ok((0, 0)));
    may_fail!(Other, path);
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    in_world!(world => world.disk().sync_folder(path));
    may_fail!(Flush, path);
    fs::File::open(path)?.sync_all()
}
