//! An allocator that counts, and limits on what a piece of code may take from it.
//!
//! Counted for each thread, so that tests can run side by side. Only the code inside a limit counts:
//! what a target needs for its own comparisons is taken outside.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[derive(Clone, Copy)]
struct Counts {
    live: isize,
    peak: isize,
    /// All bytes ever taken, freed or not: stands for time where nothing else can be counted.
    total: usize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { live: 0, peak: 0, total: 0 }) };
}

fn count(taken: usize, freed: usize) {
    // A thread that ends frees after its counts are gone.
    let _ = COUNTS.try_with(|counts| {
        let mut c = counts.get();
        c.live += taken as isize - freed as isize;
        c.peak = c.peak.max(c.live);
        c.total += taken;
        counts.set(c);
    });
}

/// The system's allocator, with counts.
pub struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is the system allocator's own, with the same arguments; counting touches only a
// thread's own cell, which needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as this function's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as this function's.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as this function's.
        unsafe { System.realloc(at, layout, new_size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as this function's.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs `f` and returns, beside its result, the most bytes it held at a time and all it took.
pub fn measured<T>(f: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = COUNTS.get();
    COUNTS.set(Counts { peak: before.live, ..before });
    let out = f();
    let after = COUNTS.get();
    COUNTS.set(Counts { peak: before.peak.max(after.peak), ..after });
    (out, (after.peak - before.live).max(0) as usize, after.total - before.total)
}

/// Decoding that takes no memory at all.
pub fn nothing<T>(f: impl FnOnce() -> T) -> T {
    let (out, peak, _) = measured(f);
    assert_eq!(peak, 0, "it took memory");
    out
}

/// Law 5 and law 6 for bytes from a peer: at most twice what was received, and a constant.
pub fn bounded<T>(received: usize, constant: usize, f: impl FnOnce() -> T) -> T {
    let (out, peak, _) = measured(f);
    assert!(peak <= 2 * received + constant, "{peak} bytes taken for {received} received (constant {constant})");
    out
}

/// What this thread holds now.
#[must_use]
pub fn live() -> usize {
    COUNTS.get().live.max(0) as usize
}
