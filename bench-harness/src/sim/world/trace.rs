//! What happened, as one number and, if asked for, in lines to read.

use std::cell::{Cell, RefCell};

/// The record of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Cell<u64>,
    keep: Cell<bool>,
    lines: RefCell<Vec<String>>,
}

impl Trace {
    /// Something happened.
    pub fn mix(&self, what: u64) {
        let h = (self.hash.get() ^ what).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.hash.set(h ^ (h >> 29));
    }

    /// Whether lines are kept.
    pub fn keep(&self, keep: bool) {
        self.keep.set(keep);
    }

    /// A line, if lines are kept.
    pub fn note(&self, now_ns: u64, text: impl FnOnce() -> String) {
        if self.keep.get() {
            self.lines.borrow_mut().push(format!("{:>12.3} ms  {}", now_ns as f64 / 1e6, text()));
        }
    }

    /// The number for everything so far: two runs with the same one did the same.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// The lines.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        self.lines.take()
    }
}
