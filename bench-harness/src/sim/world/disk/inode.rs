//! A file's bytes, and which of them a loss of power may take.

use std::ops::Range;

use super::super::rng::Rng;
use super::SECTOR;

/// A file's bytes.
#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) data: Vec<u8>,
    /// What unsynced writes have overwritten, oldest first: position, what was there before.
    undo: Vec<(usize, Before)>,
    /// What syncs that failed have dropped, although it still reads as written: position, what the device
    /// has. A later sync does not write it any more, as on Linux after an error of `fsync`.
    stale: Vec<(usize, Vec<u8>)>,
    /// Its length when it was synced last.
    synced_len: usize,
    pub(super) locked: bool,
}

/// What was where a write went.
#[derive(Clone)]
enum Before {
    /// Nothing: the file ended in front of it. So many bytes.
    Nothing(usize),
    Bytes(Vec<u8>),
}

impl Before {
    fn len(&self) -> usize {
        match self {
            Self::Nothing(len) => *len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        if let Self::Nothing(len) = self {
            *self = Self::Bytes(vec![0; *len]);
        }
        let Self::Bytes(bytes) = self else { unreachable!("it was made so") };
        bytes
    }

    /// Where its sectors begin and end.
    fn sectors(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.len();
        (0..len).step_by(SECTOR).map(move |from| from..(from + SECTOR).min(len))
    }

    /// Puts a part of it back into the file, where it was.
    fn restore(&self, at: usize, part: Range<usize>, data: &mut [u8]) {
        let target = &mut data[at + part.start..at + part.end];
        match self {
            Self::Nothing(_) => target.fill(0),
            Self::Bytes(bytes) => target.copy_from_slice(&bytes[part]),
        }
    }
}

impl Inode {
    /// By how many bytes a write lets it grow.
    pub(super) fn grows_by(&self, at: usize, bytes: usize) -> usize {
        (at + bytes).saturating_sub(self.data.len())
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8], durable: bool) {
        let end = at + bytes.len();
        let is_new = at >= self.data.len();
        if durable {
            self.synced_len = self.synced_len.max(end);
            // What is durable now is what a loss goes back to.
            let undo = self.undo.iter_mut().filter(|(from, before)| *from < end && at < *from + before.len());
            let undo = undo.map(|(from, before)| (*from, before.bytes()));
            for (from, before) in undo.chain(self.stale.iter_mut().map(|(from, device)| (*from, &mut device[..]))) {
                let (start, end) = (at.max(from), end.min(from + before.len()));
                if start < end {
                    before[start - from..end - from].copy_from_slice(&bytes[start - at..end - at]);
                }
            }
        } else if is_new {
            self.undo.push((at, Before::Nothing(bytes.len())));
        }
        if is_new {
            self.data.resize(at, 0);
            self.data.extend_from_slice(bytes);
            return;
        }
        if end > self.data.len() {
            self.data.resize(end, 0);
        }
        let target = &mut self.data[at..end];
        if !durable {
            self.undo.push((at, Before::Bytes(target.to_vec())));
        }
        target.copy_from_slice(bytes);
    }

    /// Its length is another, for good, with all that was written.
    pub(super) fn set_len(&mut self, len: usize) {
        self.data.resize(len, 0);
        self.settle();
    }

    /// What is written is on the device.
    pub(super) fn sync(&mut self) {
        for (at, before) in std::mem::take(&mut self.undo) {
            for (from, device) in &mut self.stale {
                let (start, end) = (at.max(*from), (at + before.len()).min(*from + device.len()));
                if start < end {
                    device[start - *from..end - *from].copy_from_slice(&self.data[start..end]);
                }
            }
        }
        self.synced_len = self.data.len();
    }

    /// A sync fails. Of each sector that was to be written anything may have become: it is on the device; it is
    /// gone; it reads as written until the power goes. No later sync knows of it.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        for (at, mut before) in std::mem::take(&mut self.undo).into_iter().rev() {
            for sector in before.sectors() {
                match rng.below(3) {
                    0 => {}
                    1 => before.restore(at, sector, &mut self.data),
                    _ => self.stale.push((at + sector.start, before.bytes()[sector].to_vec())),
                }
            }
        }
    }

    /// What failed syncs have dropped shows.
    fn lose_stale(&mut self) {
        for (at, device) in std::mem::take(&mut self.stale).into_iter().rev() {
            self.data[at..at + device.len()].copy_from_slice(&device);
        }
    }

    /// The power goes: what was not synced survives in part.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        self.locked = false;
        if self.undo.is_empty() && self.stale.is_empty() && self.data.len() == self.synced_len {
            return;
        }
        let undo = std::mem::take(&mut self.undo);
        // Nothing, everything, or any subset.
        let keep = [0.0, 1.0, 0.5, 0.9][rng.below(4) as usize];
        for (at, before) in undo.into_iter().rev() {
            for sector in before.sectors() {
                if !rng.chance(keep) {
                    before.restore(at, sector, &mut self.data);
                }
            }
        }
        self.lose_stale();
        if self.data.len() > self.synced_len && !rng.chance(keep) {
            self.data.truncate(self.synced_len);
        }
        self.synced_len = self.data.len();
    }

    /// The power goes, and nothing survives that was not made durable.
    pub(super) fn lose_all(&mut self) {
        for (at, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            before.restore(at, 0..before.len(), &mut self.data);
        }
        self.lose_stale();
        self.data.truncate(self.synced_len);
    }

    /// What is there now is there for good.
    pub(super) fn settle(&mut self) {
        self.undo.clear();
        self.stale.clear();
        self.synced_len = self.data.len();
    }
}
