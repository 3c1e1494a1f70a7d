//! A file's bytes, and which of them a loss of power may take.

use std::ops::Range;

use super::super::rng::Rng;
use super::SECTOR;

/// A file's bytes.
#[derive(Clone, Default)]
pub(super) struct Inode {
    /// Up to the last that was ever anything but zero. Files are filled with zeros before they are used.
    data: Vec<u8>,
    len: usize,
    /// What unsynced writes have overwritten, oldest first: position, what was there before.
    undo: Vec<(usize, Before)>,
    /// What syncs that failed have dropped, although it still reads as written: position, what the device
    /// has. A later sync does not write it any more, as on Linux after an error of `fsync`.
    stale: Vec<(usize, Before)>,
    /// Its length when it was synced last.
    synced_len: usize,
    pub(super) locked: bool,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn are_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}

/// What was where a write went, or is on the device there.
#[derive(Clone)]
enum Before {
    /// So many zeros, or the file ended in front of it.
    Zeros(usize),
    Bytes(Vec<u8>),
}

impl Before {
    fn len(&self) -> usize {
        match self {
            Self::Zeros(len) => *len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        if let Self::Zeros(len) = self {
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

    /// A part of it.
    fn part(&self, part: Range<usize>) -> Self {
        match self {
            Self::Zeros(_) => Self::Zeros(part.len()),
            Self::Bytes(bytes) => Self::Bytes(bytes[part].to_vec()),
        }
    }

    /// Puts a part of it back into the file, where it was.
    fn restore(&self, at: usize, part: Range<usize>, file: &mut Inode) {
        match self {
            Self::Zeros(_) => file.clear(at + part.start..at + part.end),
            Self::Bytes(bytes) => file.write(at + part.start, &bytes[part]),
        }
    }
}

impl Inode {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// By how many bytes a write lets it grow.
    pub(super) fn grows_by(&self, at: usize, bytes: usize) -> usize {
        (at + bytes).saturating_sub(self.len)
    }

    /// Reads as many bytes as there are from there on; says how many.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len.saturating_sub(at));
        let known = self.data.get(at..).unwrap_or_default();
        let (bytes, zeros) = out[..n].split_at_mut(n.min(known.len()));
        bytes.copy_from_slice(&known[..bytes.len()]);
        zeros.fill(0);
        n
    }

    /// The bytes of a part, or of what there is of it.
    pub(super) fn bytes(&self, part: Range<usize>) -> Vec<u8> {
        let mut out = vec![0; part.end.min(self.len).saturating_sub(part.start)];
        self.read(part.start, &mut out);
        out
    }

    pub(super) fn flip_bit(&mut self, at: usize, bit: u8) {
        if at < self.len {
            let byte = self.bytes(at..at + 1)[0] ^ 1 << (bit & 7);
            self.write(at, &[byte]);
        }
    }

    /// Writes within its length.
    fn write(&mut self, at: usize, bytes: &[u8]) {
        if at < self.data.len() {
            let inside = bytes.len().min(self.data.len() - at);
            self.data[at..at + inside].copy_from_slice(&bytes[..inside]);
            self.data.extend_from_slice(&bytes[inside..]);
        } else if !are_zero(bytes) {
            self.data.resize(at, 0);
            self.data.extend_from_slice(bytes);
        }
    }

    /// Makes a part of it zeros.
    fn clear(&mut self, part: Range<usize>) {
        let end = part.end.min(self.data.len());
        if part.start < end {
            self.data[part.start..end].fill(0);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.data.truncate(len);
        self.len = self.len.min(len);
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8], durable: bool) {
        let end = at + bytes.len();
        if durable {
            self.synced_len = self.synced_len.max(end);
            // What is durable now is what a loss goes back to.
            for (from, before) in self.undo.iter_mut().chain(&mut self.stale) {
                let (start, end) = (at.max(*from), end.min(*from + before.len()));
                if start < end {
                    before.bytes()[start - *from..end - *from].copy_from_slice(&bytes[start - at..end - at]);
                }
            }
        } else if at >= self.data.len() {
            self.undo.push((at, Before::Zeros(bytes.len())));
        } else {
            let mut before = vec![0; bytes.len()];
            self.read(at, &mut before);
            self.undo.push((at, Before::Bytes(before)));
        }
        self.len = self.len.max(end);
        self.write(at, bytes);
    }

    /// Its length is another, for good, with all that was written.
    pub(super) fn set_len(&mut self, len: usize) {
        self.truncate(len);
        self.len = len;
        self.settle();
    }

    /// What is written is on the device.
    pub(super) fn sync(&mut self) {
        let mut stale = std::mem::take(&mut self.stale);
        for (at, before) in std::mem::take(&mut self.undo) {
            for (from, device) in &mut stale {
                let (start, end) = (at.max(*from), (at + before.len()).min(*from + device.len()));
                if start < end {
                    self.read(start, &mut device.bytes()[start - *from..end - *from]);
                }
            }
        }
        self.stale = stale;
        self.synced_len = self.len;
    }

    /// A sync fails. Of each sector that was to be written anything may have become: it is on the device; it is
    /// gone; it reads as written until the power goes. No later sync knows of it.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        for (at, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            for sector in before.sectors() {
                match rng.below(3) {
                    0 => {}
                    1 => before.restore(at, sector, self),
                    _ => self.stale.push((at + sector.start, before.part(sector))),
                }
            }
        }
    }

    /// What failed syncs have dropped shows.
    fn lose_stale(&mut self) {
        for (at, device) in std::mem::take(&mut self.stale).into_iter().rev() {
            device.restore(at, 0..device.len(), self);
        }
    }

    /// The power goes: what was not synced survives in part.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        self.locked = false;
        if self.undo.is_empty() && self.stale.is_empty() && self.len == self.synced_len {
            return;
        }
        let undo = std::mem::take(&mut self.undo);
        // Nothing, everything, or any subset.
        let keep = [0.0, 1.0, 0.5, 0.9][rng.below(4) as usize];
        for (at, before) in undo.into_iter().rev() {
            for sector in before.sectors() {
                if !rng.chance(keep) {
                    before.restore(at, sector, self);
                }
            }
        }
        self.lose_stale();
        if self.len > self.synced_len && !rng.chance(keep) {
            self.truncate(self.synced_len);
        }
        self.synced_len = self.len;
    }

    /// The power goes, and nothing survives that was not made durable.
    pub(super) fn lose_all(&mut self) {
        for (at, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            before.restore(at, 0..before.len(), self);
        }
        self.lose_stale();
        self.truncate(self.synced_len);
    }

    /// What is there now is there for good.
    pub(super) fn settle(&mut self) {
        self.undo.clear();
        self.stale.clear();
        self.synced_len = self.len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two plain copies: what reads, and what a loss of power goes back to.
    #[derive(Default)]
    struct Plain {
        now: Vec<u8>,
        durable: Vec<u8>,
    }

    fn write(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
        to.resize(to.len().max(at + bytes.len()), 0);
        to[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn a_file_that_keeps_no_zeros_is_as_one_that_does() {
        let mut rng = Rng::new(7);
        let (mut file, mut plain) = (Inode::default(), Plain::default());
        for step in 0..20_000 {
            match rng.below(16) {
                0 => {
                    file.sync();
                    plain.durable.clone_from(&plain.now);
                }
                1 => {
                    file.lose_all();
                    plain.now.clone_from(&plain.durable);
                }
                2 => {
                    let len = rng.below(40) as usize * SECTOR;
                    file.set_len(len);
                    plain.now.resize(len, 0);
                    plain.durable.clone_from(&plain.now);
                }
                3 if file.len() > 0 => {
                    file.settle();
                    plain.durable.clone_from(&plain.now);
                    let (at, bit) = (rng.below(file.len() as u64) as usize, rng.below(8) as u8);
                    file.flip_bit(at, bit);
                    plain.now[at] ^= 1 << bit;
                    plain.durable[at] ^= 1 << bit;
                }
                _ => {
                    let (at, len) = (rng.below(60) as usize * SECTOR, rng.below(6) as usize * SECTOR);
                    let fill = if rng.chance(0.5) { 0 } else { rng.below(256) as u8 };
                    let (bytes, durable) = (vec![fill; len], rng.chance(0.3));
                    file.put(at, &bytes, durable);
                    write(&mut plain.now, at, &bytes);
                    if durable {
                        write(&mut plain.durable, at, &bytes);
                    }
                }
            }
            assert_eq!(file.bytes(0..usize::MAX), plain.now, "step {step}");
            let (at, mut out) = (rng.below(70) as usize * SECTOR, [1; 3 * SECTOR]);
            let n = file.read(at, &mut out);
            assert_eq!(out[..n], plain.now[at.min(plain.now.len())..][..n], "step {step}");
            assert!(n == out.len() || at + n >= plain.now.len(), "step {step}");
        }
    }
}
