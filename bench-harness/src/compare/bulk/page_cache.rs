//! Files out of the system's page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::files::files_below;

fn named(path: &Path, e: &io::Error) -> String {
    format!("dropping {} from the page cache: {e}", path.display())
}

/// What lies in a folder, and below, is on the device and in no page cache. Links are not followed, and what is
/// gone meanwhile is nobody's concern.
///
/// # Errors
/// What cannot be read, and a file system that has its files in memory only.
pub(super) fn drop_files(folder: &Path) -> Result<(), String> {
    if is_memory(folder).map_err(|e| named(folder, &e))? {
        return Err(format!(
            "{} is in memory: its files are nowhere else (choose another with --dir)",
            folder.display()
        ));
    }
    let files = files_below(folder).map_err(|e| named(folder, &e))?;
    for (path, _) in files.into_iter().filter(|(_, m)| m.is_file()) {
        match drop_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(&path, &e)),
            _ => {}
        }
    }
    Ok(())
}

fn is_memory(folder: &Path) -> io::Result<bool> {
    let folder = File::open(folder)?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and the kernel writes one whole `statfs`.
    match unsafe { libc::fstatfs(folder.as_raw_fd(), about.as_mut_ptr()) } {
        // SAFETY: it was written.
        0 => Ok(unsafe { about.assume_init() }.f_type == libc::TMPFS_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

fn drop_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Pages that are not written stay.
    file.sync_data()?;
    // SAFETY: the descriptor is open; no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// How many pages of a file are in the page cache.
    fn cached(file: &File, bytes: usize) -> usize {
        let mut pages = vec![0_u8; bytes / 4096];
        // SAFETY: the mapping is of an open file with so many bytes, is only asked about, and is gone before the file.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(libc::mincore(at, bytes, pages.as_mut_ptr()), 0);
            libc::munmap(at, bytes);
        }
        pages.iter().filter(|p| **p & 1 == 1).count()
    }

    #[test]
    fn what_was_written_a_moment_ago_has_to_come_from_the_device() {
        let scratch = crate::cluster::Scratch::new(None).unwrap();
        let (folder, bytes) = (scratch.0.join("a/b"), 64 << 12);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("log"), vec![7; bytes]).unwrap();
        let file = File::open(folder.join("log")).unwrap();
        assert_eq!(cached(&file, bytes), 64);
        if is_memory(&scratch.0).unwrap() {
            assert!(drop_files(&scratch.0).unwrap_err().contains("--dir"));
            return;
        }
        drop_files(&scratch.0).unwrap();
        assert_eq!(cached(&file, bytes), 0);
        assert_eq!(fs::read(folder.join("log")).unwrap(), vec![7; bytes]);
    }
}
