//! Round trips: every value that a message can hold comes back as it was.

mod samples;

use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use samples::deterministic;
use towline_wire::frame::{self, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameHead, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, Welcome};
use towline_wire::message::{
    Ack, AckLevel, AppendHead, CommitStatus, Committed, ErrorCode, ErrorHead, Heartbeat, SnapshotBegin, SnapshotEnd,
    SnapshotId, SnapshotPoint, SnapshotRequest, TailRequest, TailStart, WirePolicy,
};
use towline_wire::superblock::{Base, LinksEntry, SettingsEntry, SlotKind, SlotLoss, Superblock};
use towline_wire::{BatchFields, BatchView, Chain, Lsn, Seq, ShardId, SystemId, Term};

fn term_pair() -> impl Strategy<Value = (Term, Term)> {
    any::<(u64, u64)>().prop_map(|(a, b)| (Term(a.min(b)), Term(a.max(b))))
}

fn block_lsn() -> impl Strategy<Value = Lsn> {
    (0..1u64 << 52).prop_map(|n| Lsn(n * 4_096))
}

fn name() -> impl Strategy<Value = NodeName> {
    let characters = b"abcxyz0189_-".to_vec();
    vec(select(characters), 1..=63).prop_map(|n| NodeName::new(&String::from_utf8(n).unwrap()).unwrap())
}

fn level() -> impl Strategy<Value = AckLevel> {
    (1u8..=3).prop_map(|n| AckLevel::from_number(n).unwrap())
}

fn policy() -> impl Strategy<Value = WirePolicy> {
    prop_oneof![
        Just(WirePolicy::Default),
        Just(WirePolicy::Local),
        (1..=u8::MAX, level()).prop_map(|(n, level)| WirePolicy::AckN(n, level)),
        level().prop_map(WirePolicy::All),
        level().prop_map(WirePolicy::Majority),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        block_lsn().prop_map(|from| Verdict::Stream { from }),
        block_lsn().prop_map(|to| Verdict::Cut { to }),
        block_lsn().prop_map(|oldest| Verdict::NeedSnapshot { oldest }),
        (block_lsn(), any::<(u64, u64, bool)>()).prop_map(|(at, (chain, seq, known))| {
            let base = Base { chain: Chain(chain), seq: Seq(seq) };
            Verdict::Begin { at: Lsn(at.0.max(4_096)), base, known }
        }),
        (block_lsn(), any::<bool>()).prop_map(|(at, known)| Verdict::Snapshot { oldest: Lsn(at.0.max(4_096)), known }),
        Just(Verdict::Client),
        select(Refusal::ALL).prop_map(Verdict::Refused),
    ]
}

const STATUSES: [CommitStatus; 9] = [
    CommitStatus::Committed,
    CommitStatus::TimedOut,
    CommitStatus::Fenced,
    CommitStatus::Stopped,
    CommitStatus::TooFewReplicas,
    CommitStatus::PolicyImpossible,
    CommitStatus::RecordTooLarge,
    CommitStatus::NoRoom,
    CommitStatus::MinReplicas,
];

proptest! {
    #![proptest_config(deterministic(256))]

    #[test]
    fn any_hello_comes_back(
        (protocol, shard, features, chain, commit) in any::<(u16, u32, u64, u64, u64)>(),
        system in uniform16(any::<u8>()), (last_term, term) in term_pair(), end_lsn in block_lsn(),
        name in name(), replica in any::<bool>(), process in any::<u64>(),
    ) {
        let (role, name) = if replica { (Role::Replica, name) } else { (Role::Client, NodeName::NONE) };
        let (system, shard) = (SystemId(system), ShardId(shard));
        let (chain, commit_lsn) = (Chain(chain), Lsn(commit));
        let value =
            Hello { protocol, role, shard, features, system, term, last_term, end_lsn, chain, commit_lsn, process, name };
        prop_assert_eq!(Hello::check(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn any_welcome_comes_back(
        (protocol, depth, shard_count, heartbeat_ms) in (any::<u16>(), any::<u8>(), 1..=u32::MAX, any::<u32>()),
        (features, term, tail, commit_lsn, time_us, record_bytes_max) in any::<(u64, u64, u64, u64, u64, u64)>(),
        verdict in verdict(), system in uniform16(any::<u8>()), segment_blocks in 1..1u64 << 52,
    ) {
        let value = Welcome {
            protocol, verdict, depth, shard_count, heartbeat_ms, system: SystemId(system), features, term: Term(term),
            tail: Lsn(tail), commit_lsn: Lsn(commit_lsn), segment_bytes: segment_blocks * 4_096, time_us,
            record_bytes_max,
        };
        prop_assert_eq!(Welcome::check(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn any_part_of_a_snapshot_comes_back(
        (chain, seq, total, offset, checksum) in any::<(u64, u64, u64, u64, u32)>(), known in any::<bool>(),
        id in uniform16(1..u8::MAX), at in block_lsn(), total_bytes in any::<u32>(), more in any::<u8>(),
    ) {
        let base = Base { chain: Chain(chain), seq: Seq(seq) };
        let point = SnapshotPoint { id: SnapshotId(id), at: Lsn(at.0.max(4_096)), base };
        let request = SnapshotRequest { id: point.id, offset };
        prop_assert_eq!(SnapshotRequest::check(&request.to_bytes()), Ok(request));
        let total = total.min(u64::MAX - 1);
        let begin = SnapshotBegin { point, total: known.then_some(total), offset: offset.min(total) };
        prop_assert_eq!(SnapshotBegin::check(&begin.to_bytes()), Ok(begin));
        let total = u64::from(total_bytes);
        let chunks = (total.div_ceil(256 << 10) + u64::from(more)).min(total);
        let end = SnapshotEnd { point, total, chunks, checksum };
        prop_assert_eq!(SnapshotEnd::check(&end.to_bytes()), Ok(end));
    }

    #[test]
    fn any_positions_in_order_come_back(mut at in any::<[u64; 3]>(), (seq, us, term) in any::<(u64, u64, u64)>()) {
        at.sort_unstable();
        let [applied, flushed, received] = at.map(Lsn);
        let ack = Ack { received, flushed, applied, applied_seq: Seq(seq), echo_us: us };
        prop_assert_eq!(Ack::check(&ack.to_bytes()), Ok(ack));
        let beat = Heartbeat {
            term: Term(term), tail: received, tail_seq: Seq(seq), commit_lsn: applied, time_us: us,
        };
        prop_assert_eq!(Heartbeat::check(&beat.to_bytes()), Ok(beat));
    }

    #[test]
    fn any_append_comes_back(
        (request, deadline_us) in any::<(u64, u64)>(), policy in policy(),
        payloads in vec(vec(any::<u8>(), 0..40), 1..12),
    ) {
        let payloads: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        let head = AppendHead { request, deadline_us, record_count: payloads.len() as u32, policy };
        let bytes = samples::append_bytes(&head, &payloads);
        let (read, records) = AppendHead::check(&bytes).unwrap();
        prop_assert_eq!(read, head);
        prop_assert_eq!(records.collect::<Vec<_>>(), payloads);
    }

    #[test]
    fn any_outcome_comes_back(
        (request, term, lsn, first_seq) in any::<(u64, u64, u64, u64)>(), status in select(&STATUSES[..]),
        (record_count, acks, wanted, durable_here) in any::<(u32, u8, u8, bool)>(),
    ) {
        let value = Committed {
            request, term: Term(term), lsn: Lsn(lsn), first_seq: Seq(first_seq), record_count, status, acks, wanted,
            durable_here,
        };
        prop_assert_eq!(Committed::check(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn any_tail_request_comes_back(
        start in prop_oneof![block_lsn().prop_map(TailStart::At), Just(TailStart::Oldest), Just(TailStart::End)],
        (flushed, until_end) in any::<(bool, bool)>(),
    ) {
        let value = TailRequest { start, flushed, until_end };
        prop_assert_eq!(TailRequest::check(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn any_error_comes_back_with_as_much_text_as_fits(
        code in 1u16..=9, arg in any::<u64>(), text in vec(any::<char>(), 0..600),
    ) {
        let (head, text) = (ErrorHead { code: ErrorCode::from_number(code).unwrap(), arg }, String::from_iter(text));
        let bytes = samples::error_bytes(&head, &text);
        prop_assert!(bytes.len() <= FrameKind::Error.payload_max());
        let (read, shown) = ErrorHead::check(&bytes).unwrap();
        prop_assert_eq!(read, head);
        prop_assert!(text.starts_with(shown) && (shown.len() == text.len() || shown.len() > frame::TEXT_BYTES_MAX - 4));
    }

    #[test]
    fn any_frame_header_comes_back(
        kind in select(FrameKind::ALL), flags in 0..=(FLAG_REPLY_NOW | FLAG_ACK_RECEIVED), arg in any::<u64>(),
        len in any::<usize>(), crc in any::<u32>(),
    ) {
        let len = len % (kind.payload_max() + 1);
        let head = FrameHead::check(&frame::header_with_crc(kind, flags, arg, len, crc)).unwrap();
        prop_assert_eq!((head.kind, head.flags, head.arg, head.len), (kind, flags, arg, len));
    }

    #[test]
    fn any_batch_comes_back_and_one_flipped_bit_anywhere_is_detected(
        (shard, term, timestamp_us, chain) in any::<(u32, u64, u64, u64)>(), system in uniform16(any::<u8>()),
        (lsn, first_seq) in (block_lsn(), 0..u64::MAX - 12), (durable, commit) in any::<(u64, u64)>(),
        payloads in vec(vec(any::<u8>(), 0..700), 1..12), flip in any::<usize>(),
    ) {
        let payloads: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        let fields = BatchFields {
            system: SystemId(system), shard: ShardId(shard), term: Term(term), lsn, first_seq: Seq(first_seq),
            record_count: payloads.len() as u32, timestamp_us, prev_chain: Chain(chain),
            durable_lsn: Lsn(durable % (lsn.0 + 1)), commit_lsn: Lsn(commit % (lsn.0 + 1)),
        };
        let (wire, chain) = samples::sealed(&fields, &samples::body(&payloads));
        let mut disk = samples::on_disk(wire.clone());
        let view = BatchView::check_on_disk(&disk).unwrap();
        prop_assert_eq!(view.as_bytes(), &wire[..]);
        let h = BatchView::check(&wire).unwrap().header();
        let read = BatchFields {
            system: h.system(), shard: h.shard(), term: h.term(), lsn: h.lsn(), first_seq: h.first_seq(),
            record_count: h.record_count(), timestamp_us: h.timestamp_us(), prev_chain: h.prev_chain(),
            durable_lsn: h.durable_lsn(), commit_lsn: h.commit_lsn(),
        };
        prop_assert_eq!((read, h.chain()), (fields, chain));
        prop_assert_eq!(h.end_lsn().since(h.lsn()), disk.len() as u64);
        prop_assert_eq!(view.records().collect::<Vec<_>>(), payloads);
        let bit = flip % (disk.len() * 8);
        disk[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(BatchView::check_on_disk(&disk).is_err());
    }

    #[test]
    fn any_superblock_comes_back(
        (generation, commit, in_flight_bytes_max) in any::<(u64, u64, u64)>(), system in uniform16(any::<u8>()),
        (shard, more) in (0..1u32 << 31, 1..1u32 << 31), segment_blocks in 1..1u64 << 52, name in name(),
        steps in vec((1..1u64 << 20, 1..1u64 << 20), 0..40), (kept, durable) in (0..1u64 << 40, 0..1u64 << 40),
        slots in vec((0..1u64 << 40, 0..5usize, any::<bool>()), 0..9), begun in any::<Option<(u64, u64)>>(),
        settings in proptest::option::of((1..u64::MAX, any::<u64>(), any::<u64>(), proptest::option::of((any::<u64>(), any::<u64>(), 1..u32::MAX)))),
    ) {
        let mut last = (Term::ZERO, Lsn::ZERO);
        let history: Vec<_> = steps.iter().map(|(terms, blocks)| {
            last = (Term(last.0.0 + terms), Lsn(last.1.0 + blocks * 4_096));
            last
        }).collect();
        let value = Superblock {
            generation, system: SystemId(system), shard: ShardId(shard), shard_count: shard + more, term: last.0,
            own_term: Term(last.0.0 / 2), segment_bytes: segment_blocks * 4_096, oldest_lsn: Lsn(kept * 4_096),
            base: begun.filter(|_| kept > 0).map(|(chain, seq)| Base { chain: Chain(chain), seq: Seq(seq) }),
            floor_lsn: Lsn((kept + durable) * 4_096), commit_lsn: Lsn(commit), in_flight_bytes_max, name,
            history,
            slots: slots.iter().enumerate().map(|(n, (behind, lost, made))| {
                let kind = if *made { SlotKind::Made } else { SlotKind::Configured };
                samples::slot(&format!("s{n}"), (kept + behind) * 4_096, kind, SlotLoss::ALL.get(*lost).copied())
            }).collect(),
            settings: settings.map(|(version, retain_max, deadline_ns, links)| {
                let links = links.map(|(catch_up_max, lag_target, link_window)| LinksEntry { catch_up_max, lag_target, link_window });
                SettingsEntry { version, retain_max, deadline_ns, links, ..samples::settings() }
            }),
        };
        let bytes = samples::superblock_bytes(&value);
        let read = Superblock::check(&bytes).unwrap();
        prop_assert_eq!(read.collect(), value);
    }
}

#[test]
fn positions_and_identities_show_what_they_are() {
    assert_eq!((format!("{:?}", Lsn(5)), Lsn(5).to_string()), ("Lsn(5)".into(), "5".into()));
    assert_eq!((format!("{:?}", Term(5)), Seq(5).to_string()), ("Term(5)".into(), "5".into()));
    assert_eq!(ShardId(3).to_string(), "3");
    let system = "00112233445566778899aabbccddeeff";
    assert_eq!(
        (samples::SYSTEM.to_string(), format!("{:?}", samples::SYSTEM)),
        (system.into(), format!("SystemId({system})"))
    );
    assert_eq!(
        (Chain(10).to_string(), format!("{:?}", Chain(10))),
        ("000000000000000a".into(), "Chain(000000000000000a)".into())
    );
    assert_eq!((Lsn(8).since(Lsn(3)), Lsn(3).since(Lsn(8))), (5, 0));
    assert_eq!((Lsn(8).checked_add(1), Lsn(u64::MAX).checked_add(1)), (Some(Lsn(9)), None));
    assert_eq!(Chain::default(), Chain::GENESIS);
}
