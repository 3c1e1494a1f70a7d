//! Makes CRCs right: random bytes do not get past one, so this is how the checks behind it are
//! reached.

use towline_wire::frame::{self, FrameKind};
use towline_wire::{FORMAT_VERSION, batch, superblock};

/// A batch: magic, version and both CRCs; all other fields stay. False if it is no whole header.
pub fn batch(data: &mut [u8]) -> bool {
    let Some((header, rest)) = data.split_first_chunk_mut::<{ batch::HEADER }>() else { return false };
    header[..4].copy_from_slice(&batch::MAGIC);
    header[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let len = u32::from_le_bytes([header[88], header[89], header[90], header[91]]) as usize;
    if let Some(body) = rest.get(..len) {
        header[92..96].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
    seal(header);
    true
}

fn seal(header: &mut [u8; batch::HEADER]) {
    let crc = crc32c::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
}

/// Every frame's CRCs, and those of the batches in them.
pub fn frames(mut data: &mut [u8]) {
    while let Some((header, rest)) = data.split_first_chunk_mut::<{ frame::HEADER }>() {
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let whole = rest.len() >= len;
        let (payload, rest) = rest.split_at_mut(len.min(rest.len()));
        if header[4] == FrameKind::Batch as u8
            && let Some((head, body)) = payload.split_first_chunk_mut()
            && !body.is_empty()
        {
            head[92..96].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
            seal(head);
        }
        header[16..20].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        if !whole {
            return;
        }
        data = rest;
    }
}

/// One copy of a superblock: magic, version and CRC.
pub fn superblock(copy: &mut [u8]) {
    assert_eq!(copy.len(), superblock::COPY);
    copy[..8].copy_from_slice(&superblock::MAGIC);
    copy[8..10].copy_from_slice(&superblock::VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&copy[..superblock::COPY - 4]);
    copy[superblock::COPY - 4..].copy_from_slice(&crc.to_le_bytes());
}
