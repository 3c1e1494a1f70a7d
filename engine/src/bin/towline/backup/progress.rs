//! How far a backup or a restore is, for a person.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use towline::units::show_size;

/// Says on stderr how far a long task is, about once a second.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        Self { what, total, done: 0, began: now, said: now }
    }

    pub(super) fn at(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        if self.said.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.said = Instant::now();
        let speed = self.done as f64 / self.began.elapsed().as_secs_f64();
        let left = if speed > 0.0 {
            format!(", {:.0} s left", self.total.saturating_sub(self.done) as f64 / speed)
        } else {
            String::new()
        };
        let (done, total) = (show_size(self.done), show_size(self.total));
        // Nobody need read it.
        let _ = writeln!(io::stderr(), "towline: {}: {done} of {total}, {:.1} MB/s{left}", self.what, speed / 1e6);
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.at(self.done + bytes, self.total);
    }
}
