//! Measuring: the limits of this machine, and a load, by the same code in `towline demo` and in
//! `towline-bench`, so that both can put a figure beside its limit from the same run.
//!
//! Histograms are merged and percentiles read from the result; percentiles are never averaged.

mod compare;
mod disk;
mod load;
mod net;
mod picture;

pub use compare::{Compared, compare_logs};
pub use disk::{Content, DiskLimit, copy_limit, disk_limit, read_limit};
pub use load::{Load, LoadReport};
pub use net::{ping_pong, stream};
pub use picture::stages_picture;

use hdrhistogram::Histogram;

/// Overwrites every buffer of the log when nobody holds it any more, from now on in the whole process: a
/// kernel or a link that still reads one sends what no replica takes. It costs a write of each byte.
pub fn poison_released() {
    crate::rt::poison_released();
}

/// How often this process's cores have entered the kernel for their rings so far, and how often of these to
/// sleep: each of those ends with a wake-up.
#[must_use]
pub fn enters_and_sleeps() -> (u64, u64) {
    crate::rt::enters()
}

/// A histogram of nanoseconds up to one minute, with three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}
