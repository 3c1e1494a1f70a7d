//! Bytes from a peer as a connection: header, cap, payload, message, and so on to the first error.
//! What passes is what the encoder would have sent.

use towline::protocol::snapshot::Taking;
use towline_wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline_wire::handshake::{Hello, Welcome};
use towline_wire::message::{
    Ack, AppendHead, Committed, ControlRequest, ErrorHead, Heartbeat, PACKED_HEAD, PACKED_RATIO_MAX, PackedHead,
    SlotRequest, SnapshotBegin, SnapshotEnd, SnapshotRequest, TailRequest,
};
use towline_wire::{BatchView, Lsn};

use crate::alloc::nothing;
use crate::batch::encoded;
use crate::mend;

/// The input as it is, then with its CRCs made right.
pub fn run(data: &[u8]) {
    let data = data.strip_prefix(&PREAMBLE).unwrap_or(data);
    connection(data);
    let mut data = data.to_vec();
    mend::frames(&mut data);
    connection(&data);
}

/// The most bytes of a snapshot that are taken here.
const SNAPSHOT_MAX: u64 = 1 << 16;

/// What a replica takes of a snapshot: never more than it may, and nothing that does not follow.
fn taken(taking: &mut Taking, head: FrameHead, payload: &[u8]) {
    let before = taking.progress().map_or(0, |p| p.0);
    let went = match head.kind {
        FrameKind::SnapshotBegin => {
            let Ok(begin) = SnapshotBegin::check(payload) else { return };
            taking.on_begin(&begin, Lsn(4096)).is_ok()
        }
        FrameKind::SnapshotChunk => {
            let went = taking.on_chunk(head.arg, payload).is_ok();
            assert!(!went || taking.progress().unwrap().0 == before + payload.len() as u64);
            went
        }
        FrameKind::SnapshotEnd => {
            let Ok(end) = SnapshotEnd::check(payload) else { return };
            let whole = taking.on_end(&end, Lsn(head.arg));
            assert!(whole.is_err() || (end.total == before && taking.progress().is_none()));
            whole.is_ok()
        }
        // A new link.
        FrameKind::Hello => {
            let _ = taking.request();
            return;
        }
        _ => return,
    };
    assert!(taking.progress().is_none_or(|(done, _)| done <= SNAPSHOT_MAX));
    if !went {
        taking.give_up();
    }
}

/// Reads frames until one is refused or the input ends.
fn connection(mut data: &[u8]) {
    let mut taking = Taking::new(SNAPSHOT_MAX);
    while let Some((header, rest)) = data.split_first_chunk() {
        let Ok(head) = nothing(|| FrameHead::check(header)) else { return };
        assert!(head.len <= head.kind.payload_max(), "a length is bounded before memory is taken for it");
        let Some((payload, rest)) = rest.split_at_checked(head.len) else { return };
        if nothing(|| head.check_payload(payload)).is_err() {
            return;
        }
        nothing(|| checked(head.kind, payload));
        taken(&mut taking, head, payload);
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
        FrameKind::SlotRequest => SlotRequest::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Packed => {
            let (head, block) = payload.split_at_checked(PACKED_HEAD)?;
            let head = PackedHead::check(head, payload.len()).ok()?;
            unpacked(head, block);
            [&head.to_bytes(), block].concat()
        }
        FrameKind::ControlRequest => ControlRequest::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::SnapshotRequest => SnapshotRequest::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::SnapshotBegin => SnapshotBegin::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::SnapshotEnd => SnapshotEnd::check(payload).ok()?.to_bytes().to_vec(),
        FrameKind::Error => {
            let (head, text) = ErrorHead::check(payload).ok()?;
            let (head, shown) = head.to_bytes(text);
            [&head, shown.as_bytes()].concat()
        }
        _ => payload.to_vec(),
    })
}

/// Every check of a payload, without its value.
fn checked(kind: FrameKind, payload: &[u8]) -> bool {
    match kind {
        FrameKind::Hello => Hello::check(payload).is_ok(),
        FrameKind::Welcome => Welcome::check(payload).is_ok(),
        FrameKind::Batch => BatchView::check(payload).is_ok(),
        FrameKind::Ack => Ack::check(payload).is_ok(),
        FrameKind::Heartbeat => Heartbeat::check(payload).is_ok(),
        FrameKind::Append => AppendHead::check(payload).is_ok(),
        FrameKind::Committed => Committed::check(payload).is_ok(),
        FrameKind::Tail => TailRequest::check(payload).is_ok(),
        FrameKind::SlotRequest => SlotRequest::check(payload).is_ok(),
        FrameKind::Packed => {
            let head = payload.split_at_checked(PACKED_HEAD);
            head.is_some_and(|(head, _)| PackedHead::check(head, payload.len()).is_ok())
        }
        FrameKind::ControlRequest => ControlRequest::check(payload).is_ok(),
        FrameKind::SnapshotRequest => SnapshotRequest::check(payload).is_ok(),
        FrameKind::SnapshotBegin => SnapshotBegin::check(payload).is_ok(),
        FrameKind::SnapshotEnd => SnapshotEnd::check(payload).is_ok(),
        FrameKind::Error => ErrorHead::check(payload).is_ok(),
        _ => true,
    }
}

/// Decompresses as a replica does: into as much memory as the head says, which the input's length
/// bounds.
fn unpacked(head: PackedHead, block: &[u8]) {
    assert!(head.batch_len <= block.len() * PACKED_RATIO_MAX);
    let mut batch = vec![0; head.batch_len];
    if lz4_flex::block::decompress_into(block, &mut batch).is_ok_and(|n| n == head.batch_len) {
        let _ = BatchView::check(&batch);
    }
}
