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

/// How often this process's cores have entered the kernel for their rings, and how often of these to sleep: each
/// of those ends with a wake-up. Both are counted from the first time that this is asked: take the difference
/// of two answers.
#[must_use]
pub fn enters_and_sleeps() -> (u64, u64) {
    crate::rt::enters()
}

/// The record that a load appends again and again: bytes that nobody can compress, the same in each run.
#[must_use]
pub fn record(bytes: usize) -> Vec<u8> {
    // Xorshift: Marsaglia, "Xorshift RNGs", 2003.
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A histogram of nanoseconds up to one minute, with three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_record_is_the_same_each_time_and_holds_every_byte_as_often() {
        let record = super::record(1 << 16);
        assert_eq!(record[..256], super::record(256));
        let mut counts = [0; 256];
        record.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|n| (128..=384).contains(n)), "256 of each on average: {counts:?}");
    }
}
