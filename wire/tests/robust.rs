//! What holds for everything that is read: no damage goes unseen, and no input panics.

mod samples;

use proptest::array::uniform24;
use proptest::collection::vec;
use proptest::prelude::*;
use samples::deterministic;
use towline_wire::frame::{self, FrameError, FrameHead, FrameKind};
use towline_wire::handshake::{Hello, Welcome};
use towline_wire::message::{
    Ack, AppendHead, Committed, ControlRequest, ErrorHead, Heartbeat, SlotRequest, SnapshotBegin, SnapshotEnd,
    SnapshotRequest, TailRequest,
};
use towline_wire::superblock::{self, SlotKind, SlotLoss, Superblock, SuperblockError};
use towline_wire::{BLOCK, BatchError, BatchFields, BatchHeader, BatchView, Lsn, Term, batch};

/// The check of a kind's payload, without its value.
fn check_payload_of(kind: FrameKind, payload: &[u8]) -> Result<(), FrameError> {
    match kind {
        FrameKind::Hello => Hello::check(payload).map(drop),
        FrameKind::Welcome => Welcome::check(payload).map(drop),
        FrameKind::Ack => Ack::check(payload).map(drop),
        FrameKind::Heartbeat => Heartbeat::check(payload).map(drop),
        FrameKind::Append => AppendHead::check(payload).map(drop),
        FrameKind::Committed => Committed::check(payload).map(drop),
        FrameKind::Tail => TailRequest::check(payload).map(drop),
        FrameKind::SlotRequest => SlotRequest::check(payload).map(drop),
        FrameKind::ControlRequest => ControlRequest::check(payload).map(drop),
        FrameKind::SnapshotRequest => SnapshotRequest::check(payload).map(drop),
        FrameKind::SnapshotBegin => SnapshotBegin::check(payload).map(drop),
        FrameKind::SnapshotEnd => SnapshotEnd::check(payload).map(drop),
        FrameKind::Error => ErrorHead::check(payload).map(drop),
        _ => Ok(()),
    }
}

/// Whether a frame's payload is one struct, whose size is fixed.
fn is_one_struct(kind: FrameKind) -> bool {
    use FrameKind::{Ack, Committed, ControlRequest, Heartbeat, Hello, SlotRequest, Tail, Welcome};
    use FrameKind::{SnapshotBegin, SnapshotEnd, SnapshotRequest};
    matches!(kind, Hello | Welcome | Ack | Heartbeat | Committed | ControlRequest | SlotRequest | Tail)
        || matches!(kind, SnapshotBegin | SnapshotEnd | SnapshotRequest)
}

/// 1, but under Miri, which is some thousand times slower, a step that leaves a few places of `len`.
fn stride(len: usize) -> usize {
    if cfg!(miri) { len / 5 + 1 } else { 1 }
}

/// Every copy of `bytes` with one bit changed, with the byte's offset.
fn each_flip(bytes: &[u8], mut see: impl FnMut(usize, &[u8])) {
    let mut bytes = bytes.to_vec();
    for (at, bit) in (0..bytes.len()).step_by(stride(bytes.len())).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        bytes[at] ^= 1 << bit;
        see(at, &bytes);
        bytes[at] ^= 1 << bit;
    }
}

fn split(frame: &[u8]) -> (&[u8; frame::HEADER], &[u8]) {
    frame.split_first_chunk().unwrap()
}

#[test]
fn a_batch_cut_anywhere_is_truncated() {
    let wire = samples::batch_bytes();
    for cut in (0..wire.len()).step_by(stride(wire.len())) {
        let need = if cut < batch::HEADER { batch::HEADER } else { wire.len() };
        assert_eq!(BatchView::check(&wire[..cut]).unwrap_err(), BatchError::Truncated { need, have: cut });
    }
    let disk = samples::on_disk(wire);
    for cut in (0..disk.len()).step_by(stride(disk.len())) {
        let need = if cut < batch::HEADER { batch::HEADER } else { disk.len() };
        assert_eq!(BatchView::check_on_disk(&disk[..cut]).unwrap_err(), BatchError::Truncated { need, have: cut });
    }
}

#[test]
fn a_batch_with_bytes_behind_it_is_refused_on_the_network_and_read_on_disk() {
    let mut wire = samples::batch_bytes();
    let mut disk = samples::on_disk(wire.clone());
    disk.extend_from_slice(&[0xff; BLOCK]);
    assert_eq!(BatchView::check_on_disk(&disk).unwrap().as_bytes(), wire);
    wire.push(0);
    assert!(matches!(BatchView::check(&wire), Err(BatchError::Truncated { need: 168, have: 169 })));
}

#[test]
fn a_view_of_bytes_that_were_checked_before_still_ends_where_the_batch_does() {
    let wire = samples::batch_bytes();
    assert_eq!(BatchView::of_checked(&wire).unwrap().as_bytes(), wire);
    let longer = samples::on_disk(wire.clone());
    let e = BatchView::of_checked(&longer).unwrap_err();
    assert_eq!(e, BatchError::Truncated { need: wire.len(), have: longer.len() });
    assert!(BatchView::of_checked(&wire[..batch::HEADER - 1]).is_err());
}

#[test]
fn a_body_of_another_length_than_the_header_says_is_refused() {
    let wire = samples::batch_bytes();
    let (header, body) = wire.split_at(batch::HEADER);
    let header = BatchHeader::check(header).unwrap();
    assert_eq!(header.check_body(body), Ok(()));
    assert_eq!(header.check_body(&body[..32]), Err(BatchError::Truncated { need: 40, have: 32 }));
    assert_eq!(header.check_body(&[body, &[0; 8]].concat()), Err(BatchError::Truncated { need: 40, have: 48 }));
}

#[test]
fn every_bit_flip_in_a_batch_on_disk_is_detected() {
    each_flip(&samples::on_disk(samples::batch_bytes()), |at, bytes| {
        let error = BatchView::check_on_disk(bytes).unwrap_err();
        let expected = match at {
            0..4 => matches!(error, BatchError::Magic(_)),
            4..6 => matches!(error, BatchError::Version(_)),
            6..128 => matches!(error, BatchError::HeaderCrc { .. }),
            128..168 => matches!(error, BatchError::BodyCrc { .. }),
            _ => error == BatchError::Padding { at },
        };
        assert!(expected, "byte {at}: {error}");
    });
}

#[test]
fn every_bit_flip_in_a_batch_on_the_network_is_detected() {
    each_flip(&samples::batch_bytes(), |at, bytes| {
        assert!(BatchView::check(bytes).is_err(), "byte {at}");
    });
}

#[test]
fn a_torn_batch_over_an_older_one_is_detected_at_every_sector() {
    let records = [vec![0x5a; 9_000]];
    let body = samples::body(&[&records[0]]);
    let fields = BatchFields { record_count: 1, ..samples::batch_fields() };
    let new = samples::on_disk(samples::sealed(&fields, &body).0);
    let other = samples::body(&[&vec![0xa5; 9_000]]);
    let old = samples::on_disk(samples::sealed(&BatchFields { term: Term(6), ..fields }, &other).0);
    let last = fields_end(&new);
    for cut in (512..last).step_by(512 * stride(18)) {
        let torn = [&new[..cut], &old[cut..]].concat();
        assert!(matches!(BatchView::check_on_disk(&torn), Err(BatchError::BodyCrc { .. })), "cut at {cut}");
        let torn = [&old[..cut], &new[cut..]].concat();
        assert!(matches!(BatchView::check_on_disk(&torn), Err(BatchError::BodyCrc { .. })), "cut at {cut}");
    }
}

/// Where header and body end.
fn fields_end(disk: &[u8]) -> usize {
    BatchHeader::check(disk).unwrap().wire_len()
}

#[test]
fn every_bit_flip_in_every_frame_header_is_detected() {
    for (name, _, bytes) in samples::frames() {
        let (header, _) = split(&bytes);
        each_flip(header, |at, flipped| {
            let result = FrameHead::check(flipped.try_into().unwrap());
            assert!(matches!(result, Err(FrameError::HeaderCrc { .. })), "{name} byte {at}");
        });
    }
}

#[test]
fn every_bit_flip_in_every_frame_payload_is_detected() {
    for (name, kind, bytes) in samples::frames() {
        let (header, payload) = split(&bytes);
        let head = FrameHead::check(header).unwrap();
        each_flip(payload, |at, flipped| {
            if kind == FrameKind::Batch {
                assert_eq!(head.check_payload(flipped), Ok(()), "left to the batch's own CRCs");
                assert!(BatchView::check(flipped).is_err(), "{name} byte {at}");
            } else {
                let result = head.check_payload(flipped);
                assert!(matches!(result, Err(FrameError::PayloadCrc { .. })), "{name} byte {at}");
            }
        });
    }
}

#[test]
fn a_payload_of_another_length_than_announced_is_refused() {
    for (name, kind, bytes) in samples::frames() {
        let (header, payload) = split(&bytes);
        let head = FrameHead::check(header).unwrap();
        assert_eq!(head.check_payload(payload), Ok(()), "{name}");
        for len in (0..payload.len()).step_by(stride(payload.len())).chain([payload.len() + 1]) {
            let mut other = payload.to_vec();
            other.resize(len, 0);
            assert_eq!(head.check_payload(&other), Err(FrameError::Size { kind, len }), "{name}");
        }
    }
}

#[test]
fn a_message_cut_anywhere_or_one_byte_too_long_is_a_typed_error() {
    for (name, kind, bytes) in samples::frames() {
        let (_, payload) = split(&bytes);
        use FrameKind::{Batch, Packed, SnapshotChunk, Status};
        if matches!(kind, Batch | Packed | Status | SnapshotChunk) || payload.is_empty() {
            continue;
        }
        assert_eq!(check_payload_of(kind, payload), Ok(()), "{name}");
        for len in (0..payload.len()).step_by(stride(payload.len())).chain([payload.len() + 1]) {
            let mut other = payload.to_vec();
            other.resize(len, 0);
            let error = check_payload_of(kind, &other).unwrap_err();
            match error {
                FrameError::Size { kind: k, len: l } => assert_eq!((k, l), (kind, len), "{name}"),
                FrameError::Field { kind: k, field } => {
                    assert!(
                        !is_one_struct(kind) && k == kind && matches!(field, "records" | "text"),
                        "{name}: {error}"
                    );
                }
                _ => panic!("{name} cut at {len}: {error}"),
            }
        }
    }
}

#[test]
fn every_bit_flip_in_a_superblock_is_detected() {
    each_flip(&samples::superblock_bytes(&samples::superblock()), |at, bytes| {
        let error = Superblock::check(bytes).unwrap_err();
        let expected = match at {
            0..8 => error == SuperblockError::Magic,
            _ => matches!(error, SuperblockError::Crc { .. }),
        };
        assert!(expected, "byte {at}: {error}");
    });
}

#[test]
fn a_superblock_of_any_other_size_is_refused() {
    let bytes = samples::superblock_bytes(&samples::superblock());
    for cut in (0..bytes.len()).step_by(stride(bytes.len())) {
        assert_eq!(Superblock::check(&bytes[..cut]), Err(SuperblockError::Size(cut)));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Superblock::check(&longer), Err(SuperblockError::Size(superblock::COPY + 1)));
}

#[test]
fn a_torn_superblock_is_detected_at_every_sector() {
    let old = samples::superblock();
    let mut new = old.clone();
    new.generation += 2;
    let (old, new) = (samples::superblock_bytes(&old), samples::superblock_bytes(&new));
    for cut in (512..superblock::COPY).step_by(512 * stride(32)) {
        let torn = [&new[..cut], &old[cut..]].concat();
        assert!(matches!(Superblock::check(&torn), Err(SuperblockError::Crc { .. })), "cut at {cut}");
    }
}

#[test]
fn a_full_history_and_every_slot_fit_and_come_back() {
    let history: Vec<_> = (1..=superblock::HISTORY_MAX as u64).map(|n| (Term(n), Lsn(n * 4_096))).collect();
    let lost = |n: usize| SlotLoss::ALL.get(n % 5).copied();
    let slot = |n| samples::slot(&format!("slot-{n}"), (n as u64 + 1) << 12, SlotKind::Made, lost(n));
    let slots = (0..superblock::SLOTS_MAX).map(slot).collect();
    let value = Superblock { history, slots, term: Term(600), ..samples::superblock() };
    let bytes = samples::superblock_bytes(&value);
    assert_eq!(Superblock::check(&bytes).unwrap().collect(), value);
}

#[test]
fn a_change_in_any_batch_changes_the_chain_behind_all_later_ones() {
    let log = |changed: Option<u64>| {
        let mut fields = samples::batch_fields();
        let mut chains = Vec::new();
        for n in 0..8u64 {
            let body = samples::body(&[&n.to_le_bytes(), if changed == Some(n) { b"x" } else { b"y" }]);
            let (bytes, chain) = samples::sealed(&fields, &body);
            let header = BatchHeader::check(&bytes).unwrap();
            (fields.lsn, fields.first_seq, fields.prev_chain) = (header.end_lsn(), header.end_seq(), chain);
            chains.push(chain);
        }
        chains
    };
    let same = log(None);
    for changed in 0..8 {
        for (n, (a, b)) in same.iter().zip(log(Some(changed))).enumerate() {
            assert_eq!(*a == b, (n as u64) < changed, "batch {changed} changed, chain behind batch {n}");
        }
    }
}

/// Puts the right CRC behind everything but the last four bytes, so that the fields are reached.
fn with_crc(bytes: &mut [u8]) {
    let (covered, crc) = bytes.split_last_chunk_mut().unwrap();
    *crc = crc32c::crc32c(covered).to_le_bytes();
}

proptest! {
    #![proptest_config(deterministic(2_000))]

    #[test]
    fn arbitrary_bytes_are_no_batch_and_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        prop_assert!(BatchView::check(&bytes).is_err());
        prop_assert!(BatchView::check_on_disk(&bytes).is_err());
    }

    #[test]
    fn an_arbitrary_header_with_a_right_crc_never_panics(
        start in prop_oneof![Just(0usize), 6..124usize], noise in vec(any::<u8>(), 1..24),
    ) {
        let mut bytes = samples::on_disk(samples::batch_bytes());
        let end = (start + noise.len()).min(124);
        bytes[start..end].copy_from_slice(&noise[..end - start]);
        with_crc(&mut bytes[..batch::HEADER]);
        if let Ok(header) = BatchHeader::check(&bytes) {
            prop_assert!(header.end_lsn() > header.lsn() && header.end_seq() > header.first_seq());
            let same_body = bytes[88..96] == samples::batch_bytes()[88..96];
            let whole = BatchView::check_on_disk(&bytes).is_ok();
            prop_assert_eq!(whole, same_body && header.record_count() == 2);
        }
    }

    #[test]
    fn an_arbitrary_frame_header_never_panics_and_keeps_its_cap(bytes in uniform24(any::<u8>()), kind in 0u8..16) {
        let refused = matches!(FrameHead::check(&bytes), Err(FrameError::HeaderCrc { .. }));
        prop_assert!(refused);
        let mut bytes = bytes;
        bytes[4] = kind;
        bytes[3] = 0;
        with_crc(&mut bytes);
        if let Ok(head) = FrameHead::check(&bytes) {
            prop_assert!(head.len <= head.kind.payload_max());
        }
        bytes[5..8].fill(0);
        with_crc(&mut bytes);
        if let Ok(head) = FrameHead::check(&bytes) {
            prop_assert!(head.len <= head.kind.payload_max());
        }
    }

    #[test]
    fn an_arbitrary_payload_never_panics(
        at in 0usize..160, noise in vec(any::<u8>(), 1..16), bytes in vec(any::<u8>(), 0..200), zeros in 0usize..200,
    ) {
        for (_, kind, frame) in samples::frames() {
            let _ = check_payload_of(kind, &bytes);
            let _ = check_payload_of(kind, &vec![0; zeros]);
            let mut payload = split(&frame).1.to_vec();
            for (to, from) in payload.iter_mut().skip(at).zip(&noise) {
                *to = *from;
            }
            let _ = check_payload_of(kind, &payload);
        }
    }
}

proptest! {
    #![proptest_config(deterministic(200))]

    #[test]
    fn an_arbitrary_superblock_with_a_right_crc_never_panics(
        at in prop_oneof![10..superblock::HEAD + 64, superblock::SLOTS_AT..superblock::SLOTS_AT + 240], noise in vec(any::<u8>(), 1..24), raw in vec(any::<u8>(), superblock::COPY),
    ) {
        prop_assert_eq!(Superblock::check(&raw).err(), Some(SuperblockError::Magic));
        let mut bytes = samples::superblock_bytes(&samples::superblock());
        bytes[at..at + noise.len()].copy_from_slice(&noise);
        with_crc(&mut bytes);
        if let Ok(read) = Superblock::check(&bytes) {
            prop_assert!(read.history.iter().count() <= superblock::HISTORY_MAX);
            prop_assert!(read.slots.iter().count() <= superblock::SLOTS_MAX);
        }
    }
}

#[test]
fn errors_say_what_was_found_and_what_was_expected() {
    let shown = [
        BatchError::Truncated { need: 168, have: 12 }.to_string(),
        BatchError::Magic(*b"abcd").to_string(),
        BatchError::Version(2).to_string(),
        BatchError::HeaderCrc { stored: 1, computed: 2 }.to_string(),
        BatchError::BodyCrc { stored: 1, computed: 2 }.to_string(),
        BatchError::Field("lsn").to_string(),
        BatchError::Padding { at: 168 }.to_string(),
        FrameError::HeaderCrc { stored: 1, computed: 2 }.to_string(),
        FrameError::Kind(14).to_string(),
        FrameError::TooLarge { kind: FrameKind::Ack, len: 41, cap: 40 }.to_string(),
        FrameError::PayloadCrc { kind: FrameKind::Ack, stored: 1, computed: 2 }.to_string(),
        FrameError::Size { kind: FrameKind::Ack, len: 39 }.to_string(),
        FrameError::Field { kind: FrameKind::Hello, field: "name" }.to_string(),
        FrameError::Preamble(*b"GET / HT").to_string(),
        SuperblockError::Size(1).to_string(),
        SuperblockError::Magic.to_string(),
        SuperblockError::Version(9).to_string(),
        SuperblockError::Crc { stored: 1, computed: 2 }.to_string(),
        SuperblockError::Field("name").to_string(),
    ];
    assert_eq!(
        shown.map(|s| s.replace("its bytes give", "->")),
        [
            "batch needs 168 bytes, 12 are there",
            "no batch starts here (magic is [61, 62, 63, 64])",
            "batch has format version 2, this build reads 1",
            "header CRC is 00000001, -> 00000002",
            "body CRC is 00000001, -> 00000002",
            "field lsn is outside its bounds",
            "padding after the body is not zero at byte 168",
            "frame header CRC is 00000001, -> 00000002",
            "frame kind 14 is unknown",
            "a Ack frame of 41 bytes is over its cap of 40",
            "Ack payload CRC is 00000001, -> 00000002",
            "a Ack payload of 39 bytes is not whole",
            "field name of a Hello frame is outside its bounds",
            "the peer does not speak Towline's protocol (it sent [47, 45, 54, 20, 2f, 20, 48, 54])",
            "a superblock has 32768 bytes, 1 are there",
            "no superblock starts here",
            "superblock has format version 9, this build reads 2 to 4",
            "superblock CRC is 00000001, -> 00000002",
            "superblock field name is outside its bounds",
        ]
    );
}
