//! Which batches are sent from where they are, without a copy; and what is held until the kernel has
//! let go of it.
//!
//! A send without a copy pins pages and is told later that they are free: that pays for large sends on
//! a network card, and costs on a path where the kernel copies after all (loopback, virtual pairs). The
//! kernel says which it was (`IORING_SEND_ZC_REPORT_USAGE`), so a link tries, and changes its mind.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame;

use crate::config::ZeroCopy;
use crate::limits;
use crate::rt::net::Held;
use crate::shard::wal::ring::Batch;

/// What one link does, by what the kernel has reported. Time is in nanoseconds of the shard's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adaptive {
    mode: ZeroCopy,
    /// Sends in a row that were copied.
    copied: u32,
    /// Not before then again.
    not_before_ns: u64,
    /// How long it waits after the next disappointment.
    pause: Duration,
}

impl Adaptive {
    pub(crate) const fn new(mode: ZeroCopy) -> Self {
        Self { mode, copied: 0, not_before_ns: 0, pause: limits::ZERO_COPY_PAUSE_MIN }
    }

    /// Whether so many bytes are to be sent without a copy now.
    pub(crate) fn wants(&self, bytes: usize, now_ns: u64) -> bool {
        match self.mode {
            ZeroCopy::Off => false,
            ZeroCopy::Always => true,
            ZeroCopy::Auto => bytes >= limits::ZERO_COPY_BYTES_MIN && now_ns >= self.not_before_ns,
        }
    }

    /// The kernel has let go of a send.
    pub(crate) fn on_released(&mut self, copied: bool, now_ns: u64) {
        if !copied {
            (self.copied, self.pause) = (0, limits::ZERO_COPY_PAUSE_MIN);
            return;
        }
        self.copied += 1;
        if self.copied >= limits::ZERO_COPY_TRIES {
            self.give_up(now_ns);
        }
    }

    /// It does not work here: the kernel refused, or copied.
    pub(crate) fn give_up(&mut self, now_ns: u64) {
        self.copied = 0;
        self.not_before_ns = now_ns.saturating_add(self.pause.as_nanos() as u64);
        self.pause = (self.pause * 2).min(limits::ZERO_COPY_PAUSE_MAX);
    }
}

/// What the kernel has reported of a link's sends, and nobody has looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pub(crate) copied: Cell<u64>,
    pub(crate) not_copied: Cell<u64>,
}

/// Batches with their frames' headers, held until the kernel has let go of them.
#[derive(Debug)]
pub(crate) struct Outgoing {
    headers: Vec<[u8; frame::HEADER]>,
    batches: Vec<Rc<Batch>>,
    reports: Rc<Reports>,
}

impl Outgoing {
    pub(crate) fn new(headers: &[[u8; frame::HEADER]], batches: &[Rc<Batch>], reports: Rc<Reports>) -> Rc<Self> {
        assert_eq!(headers.len(), batches.len());
        Rc::new(Self { headers: headers.into(), batches: batches.into(), reports })
    }
}

impl Held for Outgoing {
    fn pieces(&self) -> Vec<&[u8]> {
        self.headers.iter().zip(&self.batches).flat_map(|(header, batch)| [&header[..], batch.wire()]).collect()
    }

    fn released(&self, copied: bool) {
        let count = if copied { &self.reports.copied } else { &self.reports.not_copied };
        count.set(count.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = limits::ZERO_COPY_BYTES_MIN;

    #[test]
    fn small_sends_are_copied_and_large_ones_are_tried() {
        let link = Adaptive::new(ZeroCopy::Auto);
        assert!(!link.wants(LARGE - 1, 0) && link.wants(LARGE, 0));
        assert!(!Adaptive::new(ZeroCopy::Off).wants(usize::MAX, u64::MAX));
        assert!(Adaptive::new(ZeroCopy::Always).wants(1, 0));
    }

    #[test]
    fn a_link_whose_sends_are_copied_anyway_stops_trying_for_longer_and_longer() {
        let mut link = Adaptive::new(ZeroCopy::Auto);
        let (mut now, mut pause) = (5, limits::ZERO_COPY_PAUSE_MIN);
        for _ in 0..20 {
            for _ in 0..limits::ZERO_COPY_TRIES {
                assert!(link.wants(LARGE, now));
                link.on_released(true, now);
            }
            let ns = pause.as_nanos() as u64;
            assert!(!link.wants(LARGE, now) && !link.wants(LARGE, now + ns - 1) && link.wants(LARGE, now + ns));
            now += ns;
            pause = (2 * pause).min(limits::ZERO_COPY_PAUSE_MAX);
        }
        assert_eq!(pause, limits::ZERO_COPY_PAUSE_MAX);
    }

    #[test]
    fn one_send_that_was_not_copied_is_reason_enough_to_go_on() {
        let mut link = Adaptive::new(ZeroCopy::Auto);
        for _ in 0..100 {
            for _ in 1..limits::ZERO_COPY_TRIES {
                link.on_released(true, 9);
            }
            link.on_released(false, 9);
            assert!(link.wants(LARGE, 9));
        }
        link.give_up(9);
        assert!(!link.wants(LARGE, 9) && Adaptive { mode: ZeroCopy::Always, ..link }.wants(LARGE, 9));
    }
}
