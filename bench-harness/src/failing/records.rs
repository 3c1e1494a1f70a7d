//! The records of the workload: each one's bytes follow from its number, so that nothing has to be kept to know
//! them again.

use towline::Lsn;

/// The largest.
pub(super) const LARGEST: usize = 40_000;

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// Nobody knows.
    Unknown,
    /// It was not taken: nothing was written.
    Refused,
    /// It was acknowledged; its batch ends there.
    Committed(Lsn),
}

/// An append. Its number is its place in the list.
#[derive(Clone, Debug)]
pub(super) struct Append {
    /// Which life of the primary it was asked in.
    pub(super) life: usize,
    /// It waits for no replica.
    pub(super) local: bool,
    /// It was asked for after a call had failed under a node that lives.
    pub(super) after: bool,
    /// What became of it.
    pub(super) became: Became,
}

/// Another number, as good as random.
pub(super) const fn mix(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Its bytes: the number, and what follows from that.
pub(super) fn bytes(seed: u64, id: usize) -> Vec<u8> {
    let draw = mix(seed, id as u64);
    let at_most = [200, 200, 4096, 4096, 16 << 10, LARGEST][(draw % 6) as usize] as u64;
    let len = 8 + (draw >> 8) % (at_most - 7);
    let words = (0..len.div_ceil(8)).flat_map(|n| if n == 0 { id as u64 } else { mix(draw, n) }.to_le_bytes());
    words.take(len as usize).collect()
}

/// Whose bytes these are.
pub(super) fn owner(seed: u64, record: &[u8]) -> Option<usize> {
    let id = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
    let id = usize::try_from(id).ok().filter(|id| *id < 1 << 20)?;
    (bytes(seed, id) == record).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_known_again_and_nothing_else_is() {
        let sizes: Vec<usize> = (0..80).map(|id| bytes(3, id).len()).collect();
        assert!(sizes.iter().any(|s| *s < 200) && sizes.iter().any(|s| *s > 16 << 10), "{sizes:?}");
        assert!(sizes.iter().all(|s| (8..=LARGEST).contains(s)));
        let mut record = bytes(3, 7);
        assert_eq!(owner(3, &record), Some(7));
        *record.last_mut().unwrap() ^= 1;
        assert_eq!((owner(3, &record), owner(3, &[7])), (None, None));
    }
}
