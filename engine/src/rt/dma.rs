//! Memory that goes to and from the device directly: allocated once, filled once, read by the device
//! and any number of links at the same time.
//!
//! Several buffers may lie side by side in one allocation ([`DmaBuf::split_off`]), so that a batch which
//! turns out to be small need not move, and wastes nothing.

use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ring::Allocation;

static POISON: AtomicBool = AtomicBool::new(false);

/// From now on what nobody holds any more is overwritten, in the whole process.
pub(crate) fn poison_released() {
    POISON.store(true, Ordering::Relaxed);
}

/// An allocation, freed with the last buffer in it. Its bytes are reached by `at` only.
#[derive(Debug)]
struct Memory {
    at: NonNull<u8>,
    #[allow(dead_code, reason = "held for its drop")]
    owner: Owner,
}

#[derive(Debug)]
#[allow(dead_code, reason = "held for their drop")]
enum Owner {
    Ring(Allocation),
    #[cfg(feature = "sim")]
    World(Vec<u8>),
}

/// A buffer that the device can read from and write to directly: aligned, from this executor's
/// registered memory where that has room. Nobody else has its bytes.
#[derive(Debug)]
pub(crate) struct DmaBuf {
    memory: Rc<Memory>,
    /// The bytes of the allocation that are this buffer's: no other one has any of them.
    range: Range<usize>,
}

impl DmaBuf {
    /// A buffer of `len` bytes, not zeroed: whoever fills it says what is in it.
    pub(crate) fn new(len: usize) -> Self {
        in_world!(_world => Self::of_world(vec![0xA5; len]));
        let mut allocation = Allocation::new(len);
        let bytes = allocation.bytes();
        let (at, range) = (NonNull::from(&mut *bytes).cast(), 0..bytes.len());
        Self { memory: Rc::new(Memory { at, owner: Owner::Ring(allocation) }), range }
    }

    /// A buffer of a simulated world.
    #[cfg(feature = "sim")]
    pub(super) fn of_world(mut bytes: Vec<u8>) -> Self {
        let (at, range) = (NonNull::from(&mut bytes[..]).cast(), 0..bytes.len());
        Self { memory: Rc::new(Memory { at, owner: Owner::World(bytes) }), range }
    }

    /// Cuts off what lies behind the first `len` bytes: a buffer of its own, in the same memory.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn split_off(&mut self, len: usize) -> Self {
        assert!(len <= self.range.len());
        let cut = self.range.start + len;
        let rest = cut..std::mem::replace(&mut self.range.end, cut);
        Self { memory: self.memory.clone(), range: rest }
    }

    /// Takes back what was cut off from the end of this one.
    ///
    /// # Panics
    /// If it does not lie there.
    pub(crate) fn join(&mut self, behind: Self) {
        assert!(Rc::ptr_eq(&self.memory, &behind.memory) && self.range.end == behind.range.start);
        self.range.end = behind.range.end;
    }

    /// Shares it; from now on it does not change.
    pub(crate) fn share(self) -> SharedBuf {
        let range = 0..self.range.len();
        SharedBuf { lent: Rc::new(Lent(self)), range }
    }
}

impl AsRef<[u8]> for DmaBuf {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range lies within the allocation, which lives as long as this and does not move. Its
        // bytes are this buffer's alone, and who changes them holds it exclusively.
        unsafe { std::slice::from_raw_parts(self.memory.at.as_ptr().add(self.range.start), self.range.len()) }
    }
}

impl AsMut<[u8]> for DmaBuf {
    #[inline]
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; ranges of two buffers never meet, as one is only ever made by cutting another.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at.as_ptr().add(self.range.start), self.range.len()) }
    }
}

/// A buffer that others read until the last of them has let go of it.
#[derive(Debug)]
struct Lent(DmaBuf);

impl Drop for Lent {
    fn drop(&mut self) {
        if POISON.load(Ordering::Relaxed) {
            self.0.as_mut().fill(0xDB);
        }
    }
}

/// A buffer, or a part of one, that the device and any number of links read at the same time; cheap to
/// clone.
#[derive(Clone, Debug)]
pub(crate) struct SharedBuf {
    lent: Rc<Lent>,
    range: Range<usize>,
}

impl SharedBuf {
    /// A part of it.
    ///
    /// # Panics
    /// If it does not have these bytes.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.range.len());
        let range = self.range.start + range.start..self.range.start + range.end;
        Self { lent: self.lent.clone(), range }
    }

    /// Overwrites it.
    ///
    /// # Panics
    /// If it is shared, or `bytes` are not as long.
    pub(crate) fn refill(&mut self, bytes: &[u8]) {
        let lent = Rc::get_mut(&mut self.lent).expect("nobody else reads it");
        lent.0.as_mut()[self.range.clone()].copy_from_slice(bytes);
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.lent.0.as_ref()[self.range.clone()]
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    /// Any memory will do.
    fn buffer(len: usize) -> DmaBuf {
        DmaBuf::of_world(vec![7; len])
    }

    #[test]
    fn buffers_of_one_allocation_have_no_byte_in_common_and_keep_it_alive() {
        let mut first = buffer(100);
        let mut second = first.split_off(30);
        let mut third = second.split_off(70);
        assert_eq!((first.as_ref().len(), second.as_ref().len(), third.as_ref().len()), (30, 70, 0));
        first.as_mut().fill(1);
        second.as_mut().fill(2);
        third.as_mut().fill(3);
        let shared = first.share();
        assert!(shared.iter().all(|b| *b == 1) && second.as_ref().iter().all(|b| *b == 2));
        drop(second);
        drop(third);
        let part = shared.part(10..20);
        drop(shared);
        assert_eq!((&part[..], &part.part(9..10)[..]), (&[1; 10][..], &[1][..]));
        let mut last = part.part(0..10);
        drop(part);
        last.refill(&[9; 10]);
        assert_eq!(last[..], [9; 10]);
    }

    #[test]
    #[should_panic(expected = "range.end")]
    fn a_part_is_never_more_than_what_it_is_a_part_of() {
        let shared = buffer(100).share().part(0..50);
        let _ = shared.part(0..51);
    }

    #[test]
    #[should_panic(expected = "nobody else reads it")]
    fn what_somebody_reads_does_not_change() {
        let mut shared = buffer(10).share();
        let _other = shared.clone();
        shared.refill(&[0; 10]);
    }
}
