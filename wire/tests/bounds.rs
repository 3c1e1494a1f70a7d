//! Fields outside their bounds: bytes whose CRC is right and which are refused all the same, with
//! the field's name. A CRC says that the bytes are what the sender wrote, not that they make sense.

mod samples;

use samples::{SYSTEM, VERDICTS};
use towline_wire::frame::{self, FrameError, FrameHead, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Verdict, Welcome};
use towline_wire::message::{
    Ack, AckLevel, AppendHead, CommitStatus, Committed, ControlAction, ControlRequest, ErrorCode, ErrorHead, Heartbeat,
    PACKED_HEAD, PackedHead, SlotAction, SlotRequest, SnapshotBegin, SnapshotEnd, SnapshotRequest, TailRequest,
    WirePolicy,
};
use towline_wire::superblock::{self, Superblock, SuperblockError};
use towline_wire::{BODY_BYTES_MAX, BatchError, BatchHeader, BatchView, Lsn, RecordError, Term, batch};

/// The sample with some bytes replaced.
fn patched(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Makes the last four bytes the CRC of what is before them.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What the check of a batch header says when one field is replaced and the CRC is right.
fn batch_with(at: usize, with: &[u8]) -> Result<(), BatchError> {
    let header = with_crc(patched(&samples::batch_bytes()[..batch::HEADER], at, with));
    BatchHeader::check(&header).map(|_| ())
}

#[test]
fn a_batch_header_outside_its_bounds_is_refused_by_name() {
    assert_eq!(batch_with(0, b"TWLA"), Err(BatchError::Magic(*b"TWLA")));
    for version in [0, 2, u16::MAX] {
        assert_eq!(batch_with(4, &version.to_le_bytes()), Err(BatchError::Version(version)));
    }
    for bit in 0..16 {
        assert_eq!(batch_with(6, &(1u16 << bit).to_le_bytes()), Err(BatchError::Field("flags")));
    }
    for at in 96..124 {
        assert_eq!(batch_with(at, &[1]), Err(BatchError::Field("reserved")));
    }
    for lsn in [1, 4_095, 16_385, 16_384 + 512] {
        assert_eq!(batch_with(40, &u64::to_le_bytes(lsn)), Err(BatchError::Field("lsn")));
    }
    for len in [39, 41, 44, BODY_BYTES_MAX as u32 + 8, u32::MAX - 7, u32::MAX] {
        assert_eq!(batch_with(88, &len.to_le_bytes()), Err(BatchError::Field("body_len")));
    }
    assert_eq!(batch_with(88, &(BODY_BYTES_MAX as u32).to_le_bytes()), Ok(()), "the largest body is allowed");
    for count in [0, 6, u32::MAX] {
        assert_eq!(batch_with(28, &count.to_le_bytes()), Err(BatchError::Field("record_count")));
    }
    assert_eq!(batch_with(28, &5u32.to_le_bytes()), Ok(()), "as many records as have room, were all empty");
    assert_eq!(batch_with(88, &[0; 4]), Err(BatchError::Field("record_count")), "an empty body has no record");
    assert_eq!(batch_with(48, &(u64::MAX - 1).to_le_bytes()), Err(BatchError::Field("first_seq")));
    assert_eq!(batch_with(48, &(u64::MAX - 2).to_le_bytes()), Ok(()));
    assert_eq!(batch_with(40, &(u64::MAX - 4_095).to_le_bytes()), Err(BatchError::Field("lsn")));
    assert_eq!(batch_with(40, &(u64::MAX - 8_191).to_le_bytes()), Ok(()));
    for at in [72, 80] {
        let error = Err(BatchError::Field("durable_lsn or commit_lsn"));
        assert_eq!(batch_with(at, &16_385u64.to_le_bytes()), error);
        assert_eq!(batch_with(at, &16_384u64.to_le_bytes()), Ok(()));
    }
}

#[test]
fn a_batch_whose_records_do_not_add_up_is_refused_although_its_crcs_match() {
    let mut fields = samples::batch_fields();
    fields.record_count = 3;
    let (bytes, _) = samples::sealed(&fields, &samples::body(&samples::RECORDS));
    let error = BatchError::Record(RecordError::Count { found: 2, expected: 3 });
    assert_eq!(BatchView::check(&bytes).unwrap_err(), error);
    assert_eq!(BatchView::check_on_disk(&samples::on_disk(bytes)).unwrap_err(), error);
}

#[test]
#[should_panic(expected = "body.is_empty()")]
fn sealing_an_empty_body_panics() {
    batch::seal(&samples::batch_fields(), &mut [0; batch::HEADER]);
}

#[test]
fn a_frame_header_outside_its_bounds_is_refused_by_name() {
    let with = |at, bytes: &[u8]| {
        let header =
            with_crc(patched(&samples::framed(FrameKind::Ack, 0, 0, &samples::ack().to_bytes())[..24], at, bytes));
        FrameHead::check(&header.try_into().unwrap())
    };
    let bad = |field| Err(FrameError::Field { kind: FrameKind::Ack, field });
    for kind in (0..=u8::MAX).filter(|k| !(1..=21).contains(k)) {
        assert_eq!(with(4, &[kind]), Err(FrameError::Kind(kind)));
    }
    for bit in 3..8 {
        assert_eq!(with(5, &[1 << bit]), bad("reserved or flags"));
    }
    for bit in 0..16 {
        assert_eq!(with(6, &(1u16 << bit).to_le_bytes()), bad("reserved or flags"));
    }
}

#[test]
fn a_length_over_its_kinds_cap_is_refused_from_the_header_alone() {
    for kind in FrameKind::ALL.iter().copied() {
        let cap = kind.payload_max();
        let with_len = |len: u32| {
            let header = frame::header_with_crc(kind, 0, 0, 0, 0);
            FrameHead::check(&with_crc(patched(&header, 0, &len.to_le_bytes())).try_into().unwrap())
        };
        assert_eq!(with_len(cap as u32).map(|head| head.len), Ok(cap));
        for len in [cap as u32 + 1, cap as u32 * 2 + 1, u32::MAX] {
            assert_eq!(with_len(len), Err(FrameError::TooLarge { kind, len: len as usize, cap }));
        }
    }
}

#[test]
#[should_panic(expected = "a Ack frame of 41 bytes is over its cap")]
fn writing_a_header_over_the_cap_panics() {
    let _ = frame::header(FrameKind::Ack, 0, 0, &[0; 41]);
}

/// Replaces bytes of a payload, and expects the named field to be refused.
fn refused<T>(
    kind: FrameKind,
    payload: &[u8],
    check: impl Fn(&[u8]) -> Result<T, FrameError>,
    cases: &[(usize, &[u8], &'static str)],
) {
    assert!(check(payload).is_ok(), "the sample passes");
    for (at, with, field) in cases {
        let result = check(&patched(payload, *at, with)).map(|_| ());
        assert_eq!(result, Err(FrameError::Field { kind, field }), "{with:02x?} at {at}");
    }
}

#[test]
fn a_hello_outside_its_bounds_is_refused_by_name() {
    let cases: &[(usize, &[u8], _)] = &[
        (2, &[0], "role"),
        (2, &[3], "role"),
        (3, &[1], "reserved"),
        (40, &8u64.to_le_bytes(), "last_term"),
        (48, &16_385u64.to_le_bytes(), "end_lsn"),
        (80, b"Replica", "name"),
        (80, &[0xff], "name"),
        (80, &[0], "name"),
        (80, &[0; 64], "name"),
        (143, b"x", "name"),
        (80, &[b'x'; 64], "name"),
    ];
    refused(FrameKind::Hello, &samples::hello().to_bytes(), Hello::check, cases);
}

#[test]
fn a_hello_of_another_protocol_version_or_with_unknown_features_is_understood() {
    let hello = patched(&samples::hello().to_bytes(), 0, &[2, 0]);
    let hello = Hello::check(&patched(&hello, 8, &[0xff; 8])).unwrap();
    assert_eq!((hello.protocol, hello.features), (2, u64::MAX));
}

#[test]
fn a_welcome_outside_its_bounds_is_refused_by_name() {
    for (_, verdict) in VERDICTS {
        let cases: &[(usize, &[u8], _)] = &[
            (2, &[0], "verdict"),
            (2, &[8], "verdict"),
            (7, &[1], "reserved"),
            (8, &[0; 4], "shard_count"),
            (48, &1u64.to_le_bytes(), "at"),
            (72, &[0; 8], "segment_bytes"),
            (72, &4_097u64.to_le_bytes(), "segment_bytes"),
        ];
        let welcome = samples::welcome(verdict).to_bytes();
        refused(FrameKind::Welcome, &welcome, Welcome::check, cases);
        let cases: &[(usize, &[u8], _)] = match verdict {
            Verdict::Snapshot { .. } => {
                &[(6, &[2], "verdict"), (48, &[0; 8], "verdict"), (96, &[1], "reserved"), (111, &[1], "reserved")]
            }
            Verdict::Begin { .. } => &[(6, &[2], "verdict"), (48, &[0; 8], "verdict")],
            _ => &[(6, &[1], "reserved"), (96, &[1], "reserved"), (111, &[1], "reserved")],
        };
        refused(FrameKind::Welcome, &welcome, Welcome::check, cases);
        let unused: (_, &[u8], _) = match verdict {
            Verdict::Refused(_) => (4, &[19, 0], "cause"),
            _ => (4, &[1, 0], "verdict"),
        };
        refused(FrameKind::Welcome, &welcome, Welcome::check, &[unused]);
        if matches!(verdict, Verdict::Client | Verdict::Refused(_)) {
            let cases: &[(usize, &[u8], _)] = &[(48, &4_096u64.to_le_bytes(), "verdict")];
            refused(FrameKind::Welcome, &welcome, Welcome::check, cases);
        }
    }
}

#[test]
fn every_refusal_crosses_the_network() {
    for cause in Refusal::ALL.iter().copied() {
        let welcome = samples::welcome(Verdict::Refused(cause));
        assert_eq!(Welcome::check(&welcome.to_bytes()), Ok(welcome));
        assert_eq!(Refusal::from_number(cause as u16), Some(cause));
    }
    assert_eq!(Refusal::from_number(0), None);
}

#[test]
fn positions_out_of_order_are_refused() {
    let cases: &[(usize, &[u8], _)] = &[
        (0, &16_383u64.to_le_bytes(), "received >= flushed >= applied"),
        (8, &12_287u64.to_le_bytes(), "received >= flushed >= applied"),
        (16, &16_385u64.to_le_bytes(), "received >= flushed >= applied"),
    ];
    refused(FrameKind::Ack, &samples::ack().to_bytes(), Ack::check, cases);
    let level = Ack { received: Lsn(5), flushed: Lsn(5), applied: Lsn(5), ..samples::ack() };
    assert_eq!(Ack::check(&level.to_bytes()), Ok(level), "equal positions are in order");
    let cases: &[(usize, &[u8], _)] = &[(24, &20_481u64.to_le_bytes(), "commit_lsn <= tail")];
    refused(FrameKind::Heartbeat, &samples::heartbeat().to_bytes(), Heartbeat::check, cases);
    let level = Heartbeat { commit_lsn: Lsn(20_480), ..samples::heartbeat() };
    assert_eq!(Heartbeat::check(&level.to_bytes()), Ok(level), "all may be committed");
}

#[test]
fn an_append_outside_its_bounds_is_refused_by_name() {
    let payload = samples::append_bytes(&samples::append_head(), &samples::RECORDS);
    let cases: &[(usize, &[u8], _)] = &[
        (16, &[0], "records"),
        (16, &[3], "records"),
        (20, &[5], "policy"),
        (21, &[0], "policy"),
        (22, &[0], "policy"),
        (22, &[4], "policy"),
        (23, &[1], "policy"),
        (20, &[0, 1], "policy"),
        (20, &[1, 0, 1], "policy"),
        (20, &[3, 1, 1], "policy"),
        (20, &[4, 0, 0], "policy"),
        (24, &[1], "reserved"),
        (31, &[1], "reserved"),
        (32, &[0xff], "records"),
        (36, &[1], "records"),
    ];
    refused(FrameKind::Append, &payload, |p| AppendHead::check(p).map(|(head, _)| head), cases);
}

#[test]
fn every_policy_is_four_fixed_bytes() {
    for (policy, bytes) in [
        (WirePolicy::Default, [0, 0, 0, 0]),
        (WirePolicy::Local, [1, 0, 0, 0]),
        (WirePolicy::AckN(1, AckLevel::Received), [2, 1, 1, 0]),
        (WirePolicy::AckN(255, AckLevel::Applied), [2, 255, 3, 0]),
        (WirePolicy::All(AckLevel::Flushed), [3, 0, 2, 0]),
        (WirePolicy::Majority(AckLevel::Applied), [4, 0, 3, 0]),
    ] {
        let head = AppendHead { policy, ..samples::append_head() };
        assert_eq!(head.to_bytes()[20..24], bytes);
        let payload = samples::append_bytes(&head, &samples::RECORDS);
        assert_eq!(AppendHead::check(&payload).unwrap().0, head);
    }
    assert!(AckLevel::Received < AckLevel::Flushed && AckLevel::Flushed < AckLevel::Applied);
}

#[test]
fn a_commit_reply_outside_its_bounds_is_refused_by_name() {
    let cases: &[(usize, &[u8], _)] = &[
        (36, &[0], "status"),
        (36, &[10], "status"),
        (39, &[2], "reserved"),
        (40, &[1], "reserved"),
        (47, &[1], "reserved"),
    ];
    refused(FrameKind::Committed, &samples::committed().to_bytes(), Committed::check, cases);
    for number in 1..=9 {
        let bytes = patched(&samples::committed().to_bytes(), 36, &[number]);
        let committed = Committed::check(&bytes).unwrap();
        assert_eq!((committed.status as u8, committed.to_bytes().to_vec()), (number, bytes));
    }
    assert_eq!(CommitStatus::NoRoom as u8, 8);
}

#[test]
fn a_tail_request_outside_its_bounds_is_refused_by_name() {
    for (_, tail) in samples::TAILS {
        let cases: &[(usize, &[u8], _)] = &[
            (0, &[1], "start"),
            (8, &[3], "start"),
            (9, &[2], "reserved"),
            (10, &[2], "reserved"),
            (11, &[1], "reserved"),
            (15, &[1], "reserved"),
        ];
        refused(FrameKind::Tail, &tail.to_bytes(), TailRequest::check, cases);
    }
}

#[test]
fn an_error_outside_its_bounds_is_refused_by_name() {
    let payload = samples::error_bytes(&samples::ERROR, samples::ERROR_TEXT);
    let cases: &[(usize, &[u8], _)] = &[
        (0, &[0], "code"),
        (0, &[13], "code"),
        (2, &[15], "text"),
        (2, &[17], "text"),
        (4, &[1], "reserved"),
        (7, &[1], "reserved"),
        (16, &[0xff], "text"),
    ];
    refused(FrameKind::Error, &payload, |p| ErrorHead::check(p).map(|(head, _)| head), cases);
    for code in (1..=12).filter_map(ErrorCode::from_number) {
        let head = ErrorHead { code, arg: 1 };
        assert_eq!(ErrorHead::check(&samples::error_bytes(&head, "")), Ok((head, "")));
    }
}

#[test]
fn an_error_text_is_cut_between_characters_at_its_cap() {
    let long = "x".repeat(frame::TEXT_BYTES_MAX - 1) + "\u{20ac}";
    let payload = samples::error_bytes(&samples::ERROR, &long);
    assert!(payload.len() <= FrameKind::Error.payload_max());
    let (_, text) = ErrorHead::check(&payload).unwrap();
    assert_eq!(text, &long[..frame::TEXT_BYTES_MAX - 1]);
}

#[test]
fn a_node_name_is_one_to_63_plain_characters() {
    let longest = "z".repeat(63);
    for name in ["a", "0", "replica-1", "a_b-c", &longest] {
        let name_ = NodeName::new(name).unwrap();
        assert_eq!(
            (name_.as_str(), name_.to_string(), format!("{name_:?}")),
            (name, name.into(), format!("NodeName({name})"))
        );
    }
    for name in ["", "A", "a b", "a.b", "\u{e4}", "a\0", &"z".repeat(64)] {
        assert_eq!(NodeName::new(name), None, "{name:?}");
    }
    assert_eq!(NodeName::NONE.as_str(), "");
}

#[test]
fn a_clients_hello_holds_no_log() {
    let hello = Hello::check(&Hello::client(towline_wire::ShardId(3)).to_bytes()).unwrap();
    assert_eq!(hello, Hello::client(towline_wire::ShardId(3)));
    assert!(hello.system.is_none() && !SYSTEM.is_none());
    assert_eq!((hello.end_lsn, hello.term, hello.name), (Lsn::ZERO, Term::ZERO, NodeName::NONE));
}

#[test]
fn a_superblock_outside_its_bounds_is_refused_by_name() {
    let sample = samples::superblock_bytes(&samples::superblock());
    let with = |at, bytes: &[u8]| Superblock::check(&with_crc(patched(&sample, at, bytes))).map(|_| ());
    assert_eq!(with(0, b"TOWLINEX"), Err(SuperblockError::Magic));
    assert_eq!(with(8, &[1]), Err(SuperblockError::Version(1)));
    assert_eq!(with(8, &[5]), Err(SuperblockError::Version(5)));
    assert_eq!(with(8, &[3]), Err(SuperblockError::Field("reserved")), "settings of links are newer than that");
    assert_eq!(with(8, &[2]), Err(SuperblockError::Field("reserved")), "settings are newer than that");
    let older = patched(&patched(&patched(&sample, 8, &[2]), 172, &[0; 45]), 234, &[0; 20]);
    let older = with_crc(older);
    assert_eq!(Superblock::check(&older).unwrap().settings, None);
    let begun = samples::superblock_bytes(&samples::superblock_begun());
    let older = Superblock::check(&with_crc(patched(&begun, 8, &[2]))).map(|_| ());
    assert_eq!(older, Err(SuperblockError::Field("reserved")), "so is a log that was begun in the middle");
    const SLOT: usize = superblock::SLOTS_AT;
    let cases: &[(usize, &[u8], _)] = &[
        (10, &[1], "reserved"),
        (168, &193u32.to_le_bytes(), "slots_len"),
        (168, &u32::MAX.to_le_bytes(), "slots_len"),
        (172, &[0; 4], "settings policy"),
        (172, &[9], "settings policy"),
        (176, &[0; 8], "settings version"),
        (217, &[2], "begun"),
        (218, &[1], "begun"),
        (226, &[1], "begun"),
        (250, &[0; 4], "settings link_window"),
        (254, &[1], "reserved"),
        (255, &[1], "reserved"),
        (256 + 3 * 16, &[1], "reserved"),
        (superblock::COPY - 5, &[1], "reserved"),
        (44, &513u32.to_le_bytes(), "history_len"),
        (44, &u32::MAX.to_le_bytes(), "history_len"),
        (12, &[4], "shard or shard_count"),
        (40, &[0], "shard or shard_count"),
        (48, &[6], "history"),
        (56, &[8], "own_term"),
        (64, &[0; 8], "segment_bytes"),
        (64, &[1], "segment_bytes"),
        (72, &[1], "oldest_lsn or floor_lsn"),
        (80, &[1], "oldest_lsn or floor_lsn"),
        (72, &20_480u64.to_le_bytes(), "oldest_lsn or floor_lsn"),
        (104, &[0], "name"),
        (104, b"R", "name"),
        (167, b"r", "name"),
        (256, &[6], "history"),
        (256 + 8, &8_192u64.to_le_bytes(), "history"),
        (256 + 16 + 8, &[1], "history"),
        (256 + 16, &[8], "history"),
        (SLOT, &[0; 64], "slot name"),
        (SLOT, b"R", "slot name"),
        (SLOT + 63, b"r", "slot name"),
        (SLOT + 80, b"r1\0\0\0\0", "slot name"),
        (SLOT + 64, &[1], "slot restart_lsn"),
        (SLOT + 64, &0u64.to_le_bytes(), "slot restart_lsn"),
        (SLOT + 72, &[0], "slot kind"),
        (SLOT + 72, &[3], "slot kind"),
        (SLOT + 73, &[5], "slot lost"),
        (SLOT + 74, &[1], "reserved"),
        (SLOT + 79, &[1], "reserved"),
        (SLOT + 2 * 80, &[1], "reserved"),
    ];
    for (at, bytes, field) in cases {
        assert_eq!(with(*at, bytes), Err(SuperblockError::Field(field)), "{bytes:02x?} at {at}");
    }
    assert_eq!(with(72, &12_288u64.to_le_bytes()), Ok(()), "less may be kept than the floor says");
    let nameless = patched(&sample, 104, &[0; 64]);
    assert_eq!(Superblock::check(&with_crc(nameless)).unwrap().name, NodeName::NONE);
}

#[test]
fn a_slot_request_outside_its_bounds_is_refused_by_name() {
    let cases: &[(usize, &[u8], _)] = &[
        (0, &[0; 64], "name"),
        (0, b"R", "name"),
        (63, b"r", "name"),
        (64, &[0], "action"),
        (64, &[4], "action"),
        (65, &[1], "reserved"),
        (71, &[1], "reserved"),
    ];
    let sample = samples::slot_request();
    refused(FrameKind::SlotRequest, &sample.to_bytes(), SlotRequest::check, cases);
    for action in [SlotAction::Create, SlotAction::CreateTemporary, SlotAction::Drop] {
        let request = SlotRequest { action, ..sample };
        assert_eq!(SlotRequest::check(&request.to_bytes()), Ok(request));
    }
}

#[test]
fn a_snapshots_frames_outside_their_bounds_are_refused_by_name() {
    let (none, all) = ([0; 16], [0xff; 8]);
    let cases: &[(usize, &[u8], _)] = &[(0, &none, "offset")];
    refused(FrameKind::SnapshotRequest, &samples::snapshot_request().to_bytes(), SnapshotRequest::check, cases);
    let shared: &[(usize, &[u8], _)] = &[
        (0, &[0], "version"),
        (0, &[2], "version"),
        (1, &[1], "version"),
        (2, &[1], "reserved"),
        (3, &[1], "reserved"),
        (8, &none, "id"),
        (24, &[0; 8], "at"),
        (24, &[1], "at"),
    ];
    let begin = samples::snapshot_begin();
    refused(FrameKind::SnapshotBegin, &begin.to_bytes(), SnapshotBegin::check, shared);
    let cases: &[(usize, &[u8], _)] =
        &[(7, &[1], "reserved"), (48, &[5], "offset"), (56, &[12], "offset"), (56, &all, "offset")];
    refused(FrameKind::SnapshotBegin, &begin.to_bytes(), SnapshotBegin::check, cases);
    for (total, offset) in [(None, 0), (None, u64::MAX - 1), (Some(0), 0), (Some(9), 9)] {
        let other = SnapshotBegin { total, offset, ..begin };
        assert_eq!(SnapshotBegin::check(&other.to_bytes()), Ok(other));
    }
    let end = samples::snapshot_end();
    refused(FrameKind::SnapshotEnd, &end.to_bytes(), SnapshotEnd::check, shared);
    let cases: &[(usize, &[u8], _)] =
        &[(48, &all, "total"), (56, &[0], "chunks"), (56, &[12], "chunks"), (50, &[4], "chunks"), (56, &all, "chunks")];
    refused(FrameKind::SnapshotEnd, &end.to_bytes(), SnapshotEnd::check, cases);
    for (total, chunks) in [(0, 0), (11, 11), (256 << 10, 1), ((256 << 10) + 1, 2)] {
        let other = SnapshotEnd { total, chunks, ..end };
        assert_eq!(SnapshotEnd::check(&other.to_bytes()), Ok(other));
    }
}

#[test]
fn a_packed_head_is_checked_against_the_bytes_that_follow_it() {
    let kind = FrameKind::Packed;
    let check = |batch_len: usize, packed: usize| {
        PackedHead::check(&PackedHead { batch_len }.to_bytes(), PACKED_HEAD + packed).map(|h| h.batch_len)
    };
    let bad = |field| Err(FrameError::Field { kind, field });
    assert_eq!(check(4096, 100), Ok(4096));
    assert_eq!(check(255 * 100, 100), Ok(25_500));
    assert_eq!(check(255 * 100 + 1, 100), bad("batch_len"), "nothing stands for so much");
    assert_eq!(check(batch::HEADER, 100), bad("batch_len"), "a batch has a body");
    assert_eq!(check(4096, 4096), bad("batch_len"), "it is not smaller");
    assert_eq!(check(batch::HEADER + BODY_BYTES_MAX, 1 << 20), Ok(batch::HEADER + BODY_BYTES_MAX));
    assert_eq!(check(4096, 0), Err(FrameError::Size { kind, len: PACKED_HEAD }));
    let bytes = PackedHead { batch_len: 4096 }.to_bytes();
    for len in 0..PACKED_HEAD {
        assert_eq!(PackedHead::check(&bytes[..len], 108), Err(FrameError::Size { kind, len }));
    }
    for (at, byte, field) in
        [(3, 0xff, "batch_len"), (4, 0, "method"), (4, 2, "method"), (5, 1, "reserved"), (7, 1, "reserved")]
    {
        let mut other = bytes;
        other[at] = byte;
        assert_eq!(PackedHead::check(&other, 108).map(|h| h.batch_len), bad(field), "byte {at}");
    }
}

#[test]
fn a_control_request_outside_its_bounds_is_refused_by_name() {
    let [(_, add), (_, commit), (_, deadline)] = samples::control_requests();
    let check = ControlRequest::check;
    let cases: &[(usize, &[u8], _)] = &[
        (0, &[0; 64], "name"),
        (0, b"R", "name"),
        (63, b"r", "name"),
        (72, &[1], "value"),
        (80, &[1], "policy"),
        (80, &[9], "policy"),
        (84, &[0], "name"),
        (84, &[9], "name"),
        (84, &[4], "name"),
        (85, &[1], "reserved"),
        (95, &[1], "reserved"),
    ];
    refused(FrameKind::ControlRequest, &add.to_bytes(), check, cases);
    let cases: &[(usize, &[u8], _)] =
        &[(0, b"r", "name"), (72, &[1], "value"), (80, &[0; 4], "policy"), (81, &[0], "policy"), (84, &[4], "policy")];
    refused(FrameKind::ControlRequest, &commit.to_bytes(), check, cases);
    let cases: &[(usize, &[u8], _)] =
        &[(72, &[0; 8], "value"), (84, &[7], "value"), (84, &[0], "action"), (84, &[12], "action"), (84, &[1], "name")];
    refused(FrameKind::ControlRequest, &deadline.to_bytes(), check, cases);
    let window = ControlRequest { action: ControlAction::LinkWindow(7), if_version: 0 };
    let cases: &[(usize, &[u8], _)] = &[(72, &[0; 8], "value"), (76, &[1], "value")];
    refused(FrameKind::ControlRequest, &window.to_bytes(), check, cases);
    use ControlAction as A;
    let name = NodeName::new("r1").unwrap();
    for action in [
        A::AddReplica(name),
        A::RemoveReplica(name),
        A::Commit(WirePolicy::Local),
        A::Deadline(1),
        A::RetainMax(0),
        A::RetainMax(u64::MAX),
        A::SlotIdleMax(0),
        A::MinReplicas(0),
        A::MinReplicas(255),
        A::MinReplicasAge(u64::MAX),
        A::CatchUpMax(0),
        A::CatchUpMax(u64::MAX),
        A::LinkWindow(1),
        A::LinkWindow(u32::MAX),
        A::LagTarget(0),
    ] {
        for if_version in [0, u64::MAX] {
            let request = ControlRequest { action, if_version };
            assert_eq!(ControlRequest::check(&request.to_bytes()), Ok(request));
        }
    }
}
