//! Compressing batches on a link and back, with LZ4's block format.

use towline_wire::message::{PACKED_HEAD, PackedHead};

/// Appends a batch to `out`, compressed and behind its head, and returns the bytes that it took.
#[cfg(feature = "lz4")]
pub(super) fn pack(batch: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let at = out.len();
    out.extend_from_slice(&PackedHead { batch_len: batch.len() }.to_bytes());
    out.resize(at + PACKED_HEAD + lz4_flex::block::get_maximum_output_size(batch.len()), 0);
    let packed = lz4_flex::block::compress_into(batch, &mut out[at + PACKED_HEAD..]).ok();
    out.truncate(at + packed.map_or(0, |n| PACKED_HEAD + n));
    packed.map(|n| PACKED_HEAD + n)
}

/// This build cannot.
#[cfg(not(feature = "lz4"))]
pub(super) fn pack(_batch: &[u8], _out: &mut Vec<u8>) -> Option<usize> {
    let _ = (PACKED_HEAD, PackedHead { batch_len: 0 });
    None
}

/// Decompresses what is behind the head; it must fill `batch` to the last byte.
#[cfg(feature = "lz4")]
pub(super) fn unpack(packed: &[u8], batch: &mut [u8]) -> Result<(), String> {
    let whole = batch.len();
    match lz4_flex::block::decompress_into(packed, batch) {
        Ok(n) if n == whole => Ok(()),
        Ok(n) => Err(format!("{n} bytes instead of {whole}")),
        Err(e) => Err(e.to_string()),
    }
}

/// This build cannot, and said so in its hello.
#[cfg(not(feature = "lz4"))]
pub(super) fn unpack(_packed: &[u8], _batch: &mut [u8]) -> Result<(), String> {
    Err("this build cannot decompress".into())
}

#[cfg(all(test, feature = "lz4"))]
mod tests {
    use super::*;

    #[test]
    fn a_batch_comes_back_whole_and_nothing_else_is_taken_for_it() {
        let batch: Vec<u8> = (0..9000u32).map(|n| (n / 100) as u8).collect();
        let mut out = vec![7; 3];
        let len = pack(&batch, &mut out).unwrap();
        assert_eq!(out.len(), 3 + len);
        let head = PackedHead::check(&out[3..3 + PACKED_HEAD], len).unwrap();
        assert_eq!(head.batch_len, batch.len());
        let packed = &out[3 + PACKED_HEAD..];
        let mut back = vec![0; batch.len()];
        unpack(packed, &mut back).unwrap();
        assert_eq!(back, batch);
        assert!(unpack(packed, &mut vec![0; batch.len() + 1]).is_err(), "too short");
        assert!(unpack(packed, &mut vec![0; batch.len() - 1]).is_err(), "too long");
        for cut in 0..packed.len() {
            assert!(unpack(&packed[..cut], &mut back).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn no_byte_that_changed_makes_it_panic_or_write_elsewhere() {
        let batch: Vec<u8> = (0..600u32).map(|n| (n % 7 * n) as u8).collect();
        let mut out = Vec::new();
        let _ = pack(&batch, &mut out).unwrap();
        for at in PACKED_HEAD..out.len() {
            for bit in 0..8 {
                let mut other = out[PACKED_HEAD..].to_vec();
                other[at - PACKED_HEAD] ^= 1 << bit;
                let _ = unpack(&other, &mut vec![0; batch.len()]);
            }
        }
    }
}
