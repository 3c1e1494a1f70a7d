//! Bytes from a peer as a connection: header, cap, payload, message, and so on to the first error.
//! What passes is what the encoder would have sent.
//!
//! Random bytes do not get past a CRC, so each input is tried a second time with its CRCs made right:
//! that is how the messages' fields are reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline_wire::handshake::{Hello, Welcome};
use towline_wire::message::{Ack, AppendHead, Committed, ErrorHead, Heartbeat, TailRequest};
use towline_wire::{BatchView, Records, batch, record};

fuzz_target!(|data: &[u8]| {
    let data = data.strip_prefix(&PREAMBLE).unwrap_or(data);
    connection(data);
    let mut data = data.to_vec();
    make_crcs_right(&mut data);
    connection(&data);
});

/// Reads frames until one is refused or the input ends.
fn connection(mut data: &[u8]) {
    while let Some((header, rest)) = data.split_first_chunk() {
        let Ok(head) = FrameHead::check(header) else { return };
        assert!(head.len <= head.kind.payload_max(), "a length is bounded before memory is taken for it");
        let Some((payload, rest)) = rest.split_at_checked(head.len) else { return };
        if head.check_payload(payload).is_err() {
            return;
        }
        if let Some(again) = encoded_again(head.kind, payload) {
            assert_eq!(again, payload, "{:?}", head.kind);
            let again = frame::header(head.kind, head.flags, head.arg, &again);
            // A batch frame's payload CRC is not looked at: its bytes 16 to 24 may differ.
            let compared = if head.kind == FrameKind::Batch { 16 } else { frame::HEADER };
            assert_eq!(again[..compared], header[..compared]);
        }
        data = rest;
    }
}

/// Decodes a payload and encodes what came out; nothing if the payload is refused.
fn encoded_again(kind: FrameKind, payload: &[u8]) -> Option<Vec<u8>> {
    Some(match kind {
        FrameKind::Hello => Hello::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Welcome => Welcome::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Batch => BatchView::check(payload).ok()?.as_bytes().to_vec(),
        FrameKind::Ack => Ack::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Heartbeat => Heartbeat::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Append => {
            let (head, records) = AppendHead::check(payload).ok()?;
            assert_eq!(records.clone().count(), head.record_count as usize);
            [head.to_bytes().to_vec(), encoded(records)].concat()
        }
        FrameKind::Committed => Committed::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Tail => TailRequest::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Error => {
            let (head, text) = ErrorHead::check(payload).ok()?;
            let (head, shown) = head.to_bytes(text);
            [&head, shown.as_bytes()].concat()
        }
        _ => payload.to_vec(),
    })
}

fn encoded(records: Records<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for payload in records {
        let at = body.len();
        body.resize(at + record::encoded_len(payload.len()), 0xa5);
        record::encode(payload, &mut body[at..]);
    }
    body
}

/// Puts every frame's CRCs right, and those of the batches in them.
fn make_crcs_right(mut data: &mut [u8]) {
    while let Some((header, rest)) = data.split_first_chunk_mut::<{ frame::HEADER }>() {
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let whole = rest.len() >= len;
        let (payload, rest) = rest.split_at_mut(len.min(rest.len()));
        if header[4] == FrameKind::Batch as u8 && payload.len() > batch::HEADER {
            let (head, body) = payload.split_at_mut(batch::HEADER);
            head[92..96].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
            let crc = crc32c::crc32c(&head[..124]);
            head[124..].copy_from_slice(&crc.to_le_bytes());
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
