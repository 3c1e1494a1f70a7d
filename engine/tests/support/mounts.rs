//! File systems for one test. They need root; a test that cannot have one says so and is skipped.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says that a case cannot be had here.
pub fn skip(case: &str, why: impl std::fmt::Display) {
    println!("SKIPPED: {case}: {why}");
}

fn c_string(text: impl AsRef<std::ffi::OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).unwrap()
}

fn mount(from: &Path, at: &Path, kind: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    let (from, at, kind, options) = (c_string(from), c_string(at), c_string(kind), c_string(options));
    // SAFETY: all four are C strings that outlive the call.
    let done = unsafe { libc::mount(from.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Something mounted, gone when this is dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// A file system without a device.
    pub fn new(at: &Path, kind: &str, options: &str) -> io::Result<Self> {
        fs::create_dir_all(at)?;
        mount(Path::new(kind), at, kind, 0, options)?;
        Ok(Self(at.into()))
    }

    /// A folder over itself, read-only: files that are open stay as they are, whoever opens one now
    /// cannot write.
    pub fn read_only(at: &Path) -> io::Result<Self> {
        mount(at, at, "", libc::MS_BIND, "")?;
        let mounted = Self(at.into());
        mount(at, at, "", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "")?;
        Ok(mounted)
    }

    /// An ext4 of its own in the file `image`.
    pub fn ext4(image: &Path, at: &Path, bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(at)?;
        fs::File::create(image)?.set_len(bytes)?;
        // Without a journal: what a test does to the file is to reach the log, not the journal.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(image))?;
        Self::image(image, at)
    }

    /// The ext4 in the file `image`, once more.
    pub fn image(image: &Path, at: &Path) -> io::Result<Self> {
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self(at.into()))
    }

    /// Takes the space from everything in the image that is zero; it reads as before.
    pub fn sparse(&self, image: &Path) {
        run(Command::new("sync").arg("-f").arg(&self.0)).unwrap();
        run(Command::new("fallocate").arg("-d").arg(image)).unwrap();
    }

    /// From here on writes do not come back, until this is dropped.
    pub fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("-f").arg(&self.0)).unwrap();
        Frozen(self.0.clone())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = c_string(&self.0);
        // SAFETY: the path is a C string that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A file system that takes no writes. It is to be dropped before whoever writes there is waited for.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0)).unwrap();
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr))))
}
