//! Calls to the machine's disk that fail, for whoever enumerates them. Present with the feature `sim`
//! only; not part of the stable interface.
//!
//! While a folder is watched ([`Watch::on`]), each call to a path in it is counted, and one of them, or every
//! one from there on, fails as it is told to. Everything else is real: runtime, kernel, files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use towline_wire::BLOCK;

/// Which calls are counted for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Calls {
    /// Every one.
    All,
    /// Writes.
    Writes,
    /// Writes that make their file longer: what a full disk refuses.
    Growing,
    /// Writes of two blocks or more: what may be cut short.
    Long,
}

/// What happens to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum With {
    /// It fails with this `errno`. Nothing is done; but of every second write the first half is, as a
    /// device may leave it.
    Error(i32),
    /// The first half of its blocks is written, and it says so.
    Short,
}

/// A failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// What is counted.
    pub of: Calls,
    /// Which of them.
    pub at: u64,
    /// Whether every one of them after it fails too.
    pub forever: bool,
    /// How.
    pub with: With,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A core writes a batch.
    Batch,
    /// A blocking write.
    Write,
    /// Makes bytes or names durable.
    Flush,
    /// Anything else: opens, reads, names, lengths.
    Other,
}

/// The first call that has failed.
#[derive(Clone, Debug)]
pub struct Met {
    /// What it was to do.
    pub call: Call,
    /// On what.
    pub path: PathBuf,
}

/// Calls of each kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub all: u64,
    /// Writes.
    pub writes: u64,
    /// Those that made their file longer.
    pub growing: u64,
    /// Those of two blocks or more.
    pub long: u64,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    failure: Option<Failure>,
    mended: AtomicBool,
    counts: [AtomicU64; 4],
    met: OnceLock<Met>,
}

/// Watched folders of this process, and how many there are.
static WATCHED: Mutex<Vec<Arc<Folder>>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn watched() -> MutexGuard<'static, Vec<Arc<Folder>>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches a folder until it is dropped.
#[derive(Debug)]
pub struct Watch(Arc<Folder>);

impl Watch {
    /// Calls to `folder` and what is in it are counted from now on, and one fails.
    #[must_use]
    pub fn on(folder: impl Into<PathBuf>, failure: Option<Failure>) -> Self {
        let folder = Arc::new(Folder {
            path: folder.into(),
            failure,
            mended: AtomicBool::new(false),
            counts: Default::default(),
            met: OnceLock::new(),
        });
        watched().push(folder.clone());
        COUNT.fetch_add(1, Ordering::SeqCst);
        Self(folder)
    }

    /// The first call that has failed, if one has. Known before whoever made the call hears of it.
    #[must_use]
    pub fn met(&self) -> Option<&Met> {
        self.0.met.get()
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.0.mended.store(true, Ordering::SeqCst);
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let [all, writes, growing, long] = [0, 1, 2, 3].map(|n| self.0.counts[n].load(Ordering::SeqCst));
        Counts { all, writes, growing, long }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Files that are still open fail no more.
        self.mend();
        watched().retain(|f| !Arc::ptr_eq(f, &self.0));
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What becomes of a write.
pub(crate) enum Fate {
    /// So many of its bytes are written, and that is what it says.
    Takes(usize),
    /// So many of its bytes are written, and it fails.
    Fails(usize, i32),
}

/// An open file in a watched folder.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    folder: Arc<Folder>,
    path: PathBuf,
}

impl Watched {
    /// Counts a call, and fails it if it is its turn.
    pub(crate) fn ask(&self, call: Call) -> io::Result<()> {
        self.folder.ask(call, &self.path)
    }

    /// Counts a write of `len` bytes; whether it makes the file longer is only asked for if it matters.
    pub(crate) fn write(&self, call: Call, len: usize, grows: impl FnOnce() -> bool) -> Fate {
        let blocks = len / BLOCK;
        let kinds = [true, true, grows(), blocks > 1 && len.is_multiple_of(BLOCK)];
        let half = blocks / 2 * BLOCK;
        match self.folder.count(kinds) {
            None => Fate::Takes(len),
            Some((with, n)) => {
                self.folder.meet(call, &self.path);
                match with {
                    With::Short => Fate::Takes(half),
                    With::Error(errno) => Fate::Fails(if n % 2 == 0 { 0 } else { half }, errno),
                }
            }
        }
    }
}

impl Folder {
    /// Counts a call that is of these kinds. If it fails: how, and its number.
    fn count(&self, kinds: [bool; 4]) -> Option<(With, u64)> {
        let numbers = [0, 1, 2, 3].map(|n| kinds[n].then(|| self.counts[n].fetch_add(1, Ordering::SeqCst)));
        let failure = self.failure.filter(|_| !self.mended.load(Ordering::SeqCst))?;
        let n = numbers[failure.of as usize]?;
        (n == failure.at || failure.forever && n > failure.at).then_some((failure.with, n))
    }

    fn meet(&self, call: Call, path: &Path) {
        let _ = self.met.set(Met { call, path: path.into() });
    }

    fn ask(&self, call: Call, path: &Path) -> io::Result<()> {
        match self.count([true, false, false, false]) {
            Some((With::Error(errno), _)) => {
                self.meet(call, path);
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a path is in a watched folder.
pub(crate) fn watched_file(path: &Path) -> Option<Watched> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let folder = watched().iter().find(|f| path.starts_with(&f.path)).cloned()?;
    Some(Watched { folder, path: path.into() })
}

/// Counts a call to a path, and fails it if it is its turn.
pub(crate) fn ask(call: Call, path: &Path) -> io::Result<()> {
    watched_file(path).map_or(Ok(()), |file| file.ask(call))
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
