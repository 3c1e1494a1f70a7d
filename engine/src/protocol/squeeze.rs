//! Whether a link compresses its next batch: where it pays, found out by trying.
//!
//! A batch that did not become smaller by an eighth is sent as it is, and so are the next ones without
//! a try: one, then two, four, up to [`limits::SQUEEZE_SKIP_MAX`]. One that did begins anew.

use towline_wire::handshake::{FEATURE_LZ4, FEATURES};

use crate::limits;

/// The features that this build understands.
#[must_use]
pub const fn features() -> u64 {
    if cfg!(feature = "lz4") { FEATURES | FEATURE_LZ4 } else { FEATURES }
}

/// One link's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Squeeze {
    on: bool,
    /// Batches that are sent as they are before the next try,
    left: u32,
    /// and how many that was last.
    skip: u32,
}

impl Squeeze {
    /// For a link to a replica with these features; `wanted` is what is configured.
    #[must_use]
    pub const fn new(wanted: bool, features: u64) -> Self {
        Self { on: wanted && features & self::features() & FEATURE_LZ4 != 0, left: 0, skip: 0 }
    }

    /// Whether to compress a batch of so many bytes.
    #[must_use]
    pub fn tries(&mut self, bytes: usize) -> bool {
        if !self.on || !(limits::SQUEEZE_BYTES_MIN..=limits::SQUEEZE_BYTES_MAX).contains(&bytes) {
            return false;
        }
        match self.left {
            0 => true,
            left => {
                self.left = left - 1;
                false
            }
        }
    }

    /// A batch of `bytes` became `packed`. Says whether to send that.
    #[must_use]
    pub fn pays(&mut self, bytes: usize, packed: usize) -> bool {
        let pays = packed <= bytes - bytes / 8;
        self.skip = if pays { 0 } else { (2 * self.skip).clamp(1, limits::SQUEEZE_SKIP_MAX) };
        self.left = self.skip;
        pays
    }
}

#[cfg(all(test, feature = "lz4"))]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pay_is_tried_less_and_less_and_what_pays_every_time() {
        let mut s = Squeeze::new(true, FEATURE_LZ4);
        let until_next_try = |s: &mut Squeeze| (0..).take_while(|_| !s.tries(4096)).count() as u32;
        for pause in [0, 1, 2, 4, 8, 16, 32, 64, 128, 128] {
            assert_eq!(until_next_try(&mut s), pause.min(limits::SQUEEZE_SKIP_MAX));
            assert!(!s.pays(4096, 3585));
        }
        assert_eq!(until_next_try(&mut s), limits::SQUEEZE_SKIP_MAX);
        assert!(s.pays(4096, 3584));
        assert!(s.tries(4096));
    }

    #[test]
    fn small_and_huge_batches_and_peers_that_cannot_are_left_alone() {
        let mut s = Squeeze::new(true, u64::MAX);
        assert!(!s.tries(limits::SQUEEZE_BYTES_MIN - 1) && s.tries(limits::SQUEEZE_BYTES_MIN));
        assert!(!s.tries(limits::SQUEEZE_BYTES_MAX + 1) && s.tries(limits::SQUEEZE_BYTES_MAX));
        assert!(!Squeeze::new(false, FEATURE_LZ4).tries(4096));
        assert!(!Squeeze::new(true, !FEATURE_LZ4).tries(4096));
    }
}
