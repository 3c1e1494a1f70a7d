//! What may happen to bytes on a device: zeros, ones, noise, a copy from elsewhere.

/// Bytes of one edit in an input.
pub const EDIT: usize = 5;

/// One edit: a place, a length, and what is done there.
pub fn edit(bytes: &mut [u8], [a, b, len, what, with]: [u8; EDIT]) {
    if bytes.is_empty() {
        return;
    }
    let at = usize::from(u16::from_le_bytes([a, b])) * 13 % bytes.len();
    let len = (usize::from(len) * 61 + 1).min(bytes.len() - at);
    match what % 4 {
        0 => bytes[at..at + len].fill(0),
        1 => bytes[at..at + len].fill(with),
        2 => bytes[at] ^= with,
        _ => {
            let from = usize::from(with) * 4096 % (bytes.len() - len + 1);
            bytes.copy_within(from..from + len, at);
        }
    }
}

/// As many edits as the input holds.
pub fn all(bytes: &mut [u8], input: &[u8]) {
    let (edits, _) = input.as_chunks();
    edits.iter().for_each(|e| edit(bytes, *e));
}
