//! Direct files for blocking threads: aligned buffers, whole writes, and the check that a folder
//! can do direct I/O at all.

use std::io;
use std::path::Path;

use towline_wire::BLOCK;

use super::error::OpenError;
use crate::rt::disk::{self, File, OpenHow};

/// Bytes on an aligned address, without unsafe code: a little more is taken and the front skipped.
#[derive(Debug)]
pub(crate) struct AlignedBuf {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let skip = bytes.as_ptr().align_offset(BLOCK);
        assert!(skip <= BLOCK);
        Self { bytes, skip, len }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.skip..self.skip + self.len]
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

/// Opens for direct I/O. With `durable`, a completed write is on the device.
pub(crate) fn open(path: &Path, create: bool, durable: bool) -> io::Result<File> {
    File::open(path, OpenHow { write: true, create, must_be_new: true, direct: true, durable })
}

/// Opens for direct reading.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    File::open(path, OpenHow { direct: true, ..OpenHow::default() })
}

/// Makes a file of `len` zeros that is on the device, blocks and all.
pub(crate) fn write_zeros(file: &File, from: u64, len: u64) -> io::Result<()> {
    let zeros = AlignedBuf::zeroed(len.min(1 << 20) as usize);
    let mut at = from;
    while at < from + len {
        let now = (from + len - at).min(1 << 20) as usize;
        file.write_all_at(&zeros.as_ref()[..now], at)?;
        at += now as u64;
    }
    Ok(())
}

/// Checks that a folder's file system can do what the log needs.
pub(crate) fn check_folder(path: &Path) -> Result<(), OpenError> {
    let probe = path.join("direct-io-probe.tmp");
    // A probe that a crash left behind is of no use to anybody.
    let _ = disk::remove(&probe);
    let result = probe_file(path, &probe);
    let _ = disk::remove(&probe);
    result
}

fn probe_file(path: &Path, probe: &Path) -> Result<(), OpenError> {
    let file = match open(probe, true, true) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            return Err(OpenError::NoDirectIo { path: path.into(), source: e });
        }
        other => other.map_err(OpenError::io("creating", probe))?,
    };
    if let Some(a) = file.direct_alignment().map_err(OpenError::io("asking for the alignment of", path))? {
        if a.offset == 0 || a.memory == 0 {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            return Err(OpenError::NoDirectIo { path: path.into(), source });
        }
        let needed = a.offset.max(a.memory);
        if !(BLOCK as u32).is_multiple_of(needed) {
            return Err(OpenError::Alignment { path: path.into(), needed });
        }
    }
    write_zeros(&file, 0, BLOCK as u64).map_err(OpenError::io("writing", probe))
}
