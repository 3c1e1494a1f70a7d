//! Golden vectors: the bytes of format version 1 and protocol version 1, held fixed.
//!
//! They were computed by a second encoder, not by this crate. `docs/FORMAT.md` shows the same bytes
//! field by field; the last tests hold the document to them.

mod samples;

use samples::{ERROR, ERROR_TEXT, RECORDS, STATUS, SYSTEM, TAILS, VERDICTS};
use towline_wire::frame::{self, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameHead, FrameKind};
use towline_wire::handshake::{self, Hello, Refusal, Welcome};
use towline_wire::message::{
    self, Ack, AppendHead, Committed, ControlRequest, ErrorCode, ErrorHead, Goodbye, Heartbeat, PackedHead,
    SlotRequest, SnapshotBegin, SnapshotEnd, SnapshotRequest, TailRequest,
};
use towline_wire::superblock::{self, SlotLoss, Superblock};
use towline_wire::{BatchView, Chain, Lsn, Records, Seq, ShardId, Term, batch, record};

/// Hex; `00*N` stands for N zero bytes.
const GOLDEN: &[(&str, &str)] = &[
    (
        "preamble",
        "
        544f574c494e4531
    ",
    ),
    (
        "record",
        "
        050000000000000068656c6c6f000000
    ",
    ),
    (
        "batch",
        "
        54574c420100000000112233445566778899aabbccddeeff030000000200000007000000000000000040000000000000
        290000000000000000401e18240a0600efcdab89674523010030000000000000002000000000000028000000a96fd981
        000000000000000000000000000000000000000000000000000000009da829bd050000000000000068656c6c6f000000
        0c0000000000000067726f757020636f6d6d6974
        00*3932
    ",
    ),
    (
        "frame-hello",
        "
        900000000100000000000000000000000c654c8960bdbcac010001000300000000000000000000000011223344556677
        8899aabbccddeeff070000000000000006000000000000000040000000000000efcdab89674523010020000000000000
        88776655443322117265706c6963612d31
        00*55
    ",
    ),
    (
        "frame-welcome-stream",
        "
        700000000200000000000000000000000ab09df3dbf30889010001000000000004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000004000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-welcome-cut",
        "
        7000000002000000000000000000000020bc83287314c530010002000000000004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000003000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-welcome-need-snapshot",
        "
        70000000020000000000000000000000211bd5bd49d857fd010003000000000004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000001000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-welcome-begin",
        "
        70000000020000000000000000000000391f8d8818077d24010006000000010004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000001000000000000000500000000000000020000000000000
        000000040000000000401e18240a06000000000100000000efcdab89674523012900000000000000
    ",
    ),
    (
        "frame-welcome-snapshot",
        "
        7000000002000000000000000000000087d821316c9b5edf010007000000010004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000001000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-welcome-client",
        "
        700000000200000000000000000000001f7de87de58f7845010004000000000004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000000000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-welcome-refused",
        "
        70000000020000000000000000000000a4fc4133210c6474010005000b00000004000000640000000011223344556677
        8899aabbccddeeff00000000000000000700000000000000000000000000000000500000000000000020000000000000
        000000040000000000401e18240a0600000000010000000000000000000000000000000000000000
    ",
    ),
    (
        "frame-batch",
        "
        a80000000302000000200000000000000000000089218e4e54574c420100000000112233445566778899aabbccddeeff
        030000000200000007000000000000000040000000000000290000000000000000401e18240a0600efcdab8967452301
        0030000000000000002000000000000028000000a96fd981000000000000000000000000000000000000000000000000
        000000009da829bd050000000000000068656c6c6f0000000c0000000000000067726f757020636f6d6d697400000000
    ",
    ),
    (
        "frame-ack",
        "
        2800000004000000000000000000000058148dd868dd2a09005000000000000000400000000000000030000000000000
        290000000000000000401e18240a0600
    ",
    ),
    (
        "frame-heartbeat",
        "
        280000000501000000000000000000003066044d6a18afdd070000000000000000500000000000002b00000000000000
        004000000000000000401e18240a0600
    ",
    ),
    (
        "frame-append",
        "
        48000000060000000000000000000000a0fd3508cabe5505630000000000000090d00300000000000200000002010200
        0000000000000000050000000000000068656c6c6f0000000c0000000000000067726f757020636f6d6d697400000000
    ",
    ),
    (
        "frame-committed",
        "
        30000000070000000000000000000000a844925e907f41d3630000000000000007000000000000000050000000000000
        290000000000000002000000020102010000000000000000
    ",
    ),
    (
        "frame-tail-at",
        "
        100000000800000000000000000000000b5884bdac15afec00400000000000000001000000000000
    ",
    ),
    (
        "frame-tail-oldest",
        "
        10000000080000000000000000000000d48c7ce4b62bae4100000000000000000100010000000000
    ",
    ),
    (
        "frame-tail-from-end",
        "
        10000000080000000000000000000000a46008d0432c6ad900000000000000000200000000000000
    ",
    ),
    (
        "frame-tail-end",
        "
        0000000009000000005000000000000000000000db4a12e9
    ",
    ),
    (
        "frame-error",
        "
        200000000a000000000000000000000039461a2e9afc062a06001000000000000010000000000000706f736974696f6e
        20697320676f6e65
    ",
    ),
    (
        "frame-goodbye",
        "
        000000000b0000000200000000000000000000008ab13b44
    ",
    ),
    (
        "frame-status-request",
        "
        000000000c000000000000000000000000000000f2d524f3
    ",
    ),
    (
        "frame-status",
        "
        0c0000000d0000000000000000000000366c60953a56bb3e7b22736861726473223a347d
    ",
    ),
    (
        "frame-slot-request",
        "
        480000000e00000000000000000000007a36dc5dbcb5f1da726561646572
        00*58
        0200000000000000
    ",
    ),
    (
        "frame-control-add-replica",
        "
        600000000f000000000000000000000010781d8cff37f24e7233
        00*62
        0800000000000000000000000000000000000000010000000000000000000000
    ",
    ),
    (
        "frame-control-commit",
        "
        600000000f00000000000000000000003e1080d08033faad
        00*80
        02020300030000000000000000000000
    ",
    ),
    (
        "frame-control-deadline",
        "
        600000000f00000000000000000000003e697028b880445b
        00*73
        65cd1d0000000000000000040000000000000000000000
    ",
    ),
    (
        "frame-packed",
        "
        8a0000001002000000200000000000001cf5eee01e064d3fa800000001000000f01254574c4201000000001122334455
        66778899aabbccddeeff0300000002000000071c0000040010400500320000290700f3040000401e18240a0600efcdab
        896745230100301900122008008228000000a96fd9810e000f060003539da829bd051b009368656c6c6f0000000c1000
        f00167726f757020636f6d6d697400000000
     ",
    ),
    (
        "superblock-begun",
        "
        544f574c494e455304000000030000000c0000000000000000112233445566778899aabbccddeeff0400000000000000
        070000000000000006000000000000000000000400000000005000000000000000500000000000000050000000000000
        00004000000000007265706c6963612d31
        00*104
        0188776655443322115a
        00*32537
        409b1add
    ",
    ),
    (
        "frame-snapshot-request",
        "
        18000000110000000000000000000000b35cafba6e935a38102132435465768798a9bacbdcedfe0f0600000000000000
    ",
    ),
    (
        "frame-snapshot-begin",
        "
        40000000120000000000000000000000321d236aace5d6150100000000000000102132435465768798a9bacbdcedfe0f
        0040000000000000efcdab896745230129000000000000000b000000000000000600000000000000
    ",
    ),
    (
        "frame-snapshot-chunk",
        "
        0b0000001300000006000000000000000d164222ff4eec106164613d3120626f623d32
    ",
    ),
    (
        "frame-snapshot-end",
        "
        40000000140000000050000000000000259cd83514554520010000000d164222102132435465768798a9bacbdcedfe0f
        0040000000000000efcdab896745230129000000000000000b000000000000000100000000000000
    ",
    ),
    (
        "frame-snapshot-ack",
        "
        00000000150000000b0000000000000000000000b5741b43
    ",
    ),
    (
        "superblock",
        "
        544f574c494e455304000000030000000c0000000000000000112233445566778899aabbccddeeff0400000003000000
        070000000000000006000000000000000000000400000000001000000000000000400000000000000030000000000000
        00004000000000007265706c6963612d31
        00*55
        020000000400020009000000000000000094357700000000ffffffffffffffff000000000000000000e40b5402000000
        010000000000000000000000000000000000000040060000000000000000000000000000000200000500000000000000
        00000000000000000600000000000000002000000000000007000000000000000040
        00*8150
        7231
        00*63
        300000000000000100000000000000726561646572
        00*66
        0201
        00*24162
        724d9d6c
    ",
    ),
    (
        "superblock-3",
        "
        544f574c494e455303000000030000000c0000000000000000112233445566778899aabbccddeeff0400000003000000
        070000000000000006000000000000000000000400000000001000000000000000400000000000000030000000000000
        00004000000000007265706c6963612d31
        00*55
        020000000400020009000000000000000094357700000000ffffffffffffffff000000000000000000e40b5402000000
        01
        00*39
        050000000000000000000000000000000600000000000000002000000000000007000000000000000040
        00*8150
        7231
        00*63
        300000000000000100000000000000726561646572
        00*66
        0201
        00*24162
        c9c9be14
    ",
    ),
    (
        "superblock-2",
        "
        544f574c494e455302000000030000000c0000000000000000112233445566778899aabbccddeeff0400000003000000
        070000000000000006000000000000000000000400000000001000000000000000400000000000000030000000000000
        00004000000000007265706c6963612d31
        00*55
        02
        00*87
        050000000000000000000000000000000600000000000000002000000000000007000000000000000040
        00*8150
        7231
        00*63
        300000000000000100000000000000726561646572
        00*66
        0201
        00*24162
        7c5b0ae8
    ",
    ),
];

/// The document that shows the same bytes.
const DOC: &str = include_str!("../../docs/FORMAT.md");

/// Bytes of a hex text: pairs of digits, `00*N` or `00 * N` for runs, `#` starts a comment.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line: String = line.split('#').next().unwrap().split_whitespace().collect();
        if let Some(run) = line.strip_prefix("00*") {
            out.resize(out.len() + run.parse::<usize>().unwrap(), 0);
            continue;
        }
        assert!(line.len().is_multiple_of(2), "odd hex line: {line}");
        out.extend((0..line.len()).step_by(2).map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap()));
    }
    out
}

fn golden(name: &str) -> Vec<u8> {
    bytes(GOLDEN.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no golden vector {name}")).1)
}

/// A frame's head and payload, both checked.
fn frame_of(bytes: &[u8]) -> (FrameHead, &[u8]) {
    let (head, payload) = bytes.split_first_chunk().unwrap();
    let head = FrameHead::check(head).unwrap();
    head.check_payload(payload).unwrap();
    (head, payload)
}

fn payload(name: &str) -> Vec<u8> {
    golden(name)[frame::HEADER..].to_vec()
}

#[test]
fn the_preamble_is_eight_fixed_bytes() {
    assert_eq!(golden("preamble"), frame::PREAMBLE);
}

#[test]
fn a_record_is_its_golden_bytes() {
    let golden = golden("record");
    assert_eq!(samples::body(&[b"hello"]), golden);
    record::check(&golden, 1).unwrap();
    assert_eq!(Records::new(&golden).collect::<Vec<_>>(), [b"hello"]);
}

#[test]
fn a_batch_is_its_golden_bytes_on_disk_and_on_the_network() {
    let golden = golden("batch");
    let fields = samples::batch_fields();
    let (wire, chain) = samples::sealed(&fields, &samples::body(&RECORDS));
    assert_eq!(samples::on_disk(wire.clone()), golden);
    assert_eq!(chain, Chain(0xe9fa_419a_b0b3_fbea));

    let on_disk = BatchView::check_on_disk(&golden).unwrap();
    assert_eq!(on_disk.as_bytes(), wire);
    let view = BatchView::check(&wire).unwrap();
    assert_eq!((view.as_bytes(), view.body()), (&wire[..], &wire[batch::HEADER..]));
    assert_eq!(view.records().collect::<Vec<_>>(), RECORDS);
    let header = view.header();
    assert_eq!((header.system(), header.shard(), header.term()), (SYSTEM, ShardId(3), Term(7)));
    assert_eq!((header.lsn(), header.end_lsn()), (Lsn(16_384), Lsn(20_480)));
    assert_eq!((header.first_seq(), header.end_seq(), header.record_count()), (Seq(41), Seq(43), 2));
    assert_eq!(header.timestamp_us(), 1_700_000_000_000_000);
    assert_eq!((header.prev_chain(), header.chain()), (fields.prev_chain, chain));
    assert_eq!((header.durable_lsn(), header.commit_lsn()), (Lsn(12_288), Lsn(8_192)));
    assert_eq!((header.body_len(), header.wire_len(), header.disk_len()), (40, 168, 4_096));
}

#[test]
fn every_frame_is_its_golden_bytes() {
    let mut kinds = Vec::new();
    for (name, kind, encoded) in samples::frames() {
        let golden = golden(name);
        assert_eq!(encoded, golden, "{name}");
        let (head, payload) = frame_of(&golden);
        assert_eq!((head.kind, head.len), (kind, payload.len()), "{name}");
        let (flags, arg) = match name {
            "frame-batch" | "frame-packed" => (FLAG_ACK_RECEIVED, 8_192),
            "frame-heartbeat" => (FLAG_REPLY_NOW, 0),
            "frame-tail-end" => (0, 20_480),
            "frame-goodbye" => (0, Goodbye::Done as u64),
            "frame-snapshot-chunk" => (0, 6),
            "frame-snapshot-end" => (0, 20_480),
            "frame-snapshot-ack" => (0, 11),
            _ => (0, 0),
        };
        assert_eq!((head.flags, head.arg), (flags, arg), "{name}");
        kinds.push(kind);
    }
    kinds.dedup();
    assert_eq!(kinds, FrameKind::ALL, "every kind has a golden vector");
}

#[test]
fn a_batch_frame_carries_the_batch_as_it_lies_on_disk() {
    let golden = golden("frame-batch");
    let (_, batch) = frame_of(&golden);
    assert_eq!(batch, &self::golden("batch")[..batch.len()]);
    assert_eq!(frame::batch_header(FLAG_ACK_RECEIVED, Lsn(8_192), batch.len()), golden[..frame::HEADER]);
}

#[test]
fn golden_payloads_decode_to_their_values() {
    assert_eq!(Hello::check(&payload("frame-hello")).unwrap(), samples::hello());
    for (name, verdict) in VERDICTS {
        assert_eq!(Welcome::check(&payload(name)).unwrap(), samples::welcome(verdict));
    }
    assert_eq!(Ack::check(&payload("frame-ack")).unwrap(), samples::ack());
    assert_eq!(Heartbeat::check(&payload("frame-heartbeat")).unwrap(), samples::heartbeat());
    let append = payload("frame-append");
    let (head, records) = AppendHead::check(&append).unwrap();
    assert_eq!((head, records.collect::<Vec<_>>()), (samples::append_head(), RECORDS.to_vec()));
    assert_eq!(Committed::check(&payload("frame-committed")).unwrap(), samples::committed());
    for (name, tail) in TAILS {
        assert_eq!(TailRequest::check(&payload(name)).unwrap(), tail);
    }
    assert_eq!(ErrorHead::check(&payload("frame-error")).unwrap(), (ERROR, ERROR_TEXT));
    assert_eq!(payload("frame-status"), STATUS);
    assert_eq!(SlotRequest::check(&payload("frame-slot-request")).unwrap(), samples::slot_request());
    let packed = payload("frame-packed");
    let head = PackedHead::check(&packed[..message::PACKED_HEAD], packed.len()).unwrap();
    assert_eq!(head.batch_len, samples::batch_bytes().len());
    assert_eq!(SnapshotRequest::check(&payload("frame-snapshot-request")).unwrap(), samples::snapshot_request());
    assert_eq!(SnapshotBegin::check(&payload("frame-snapshot-begin")).unwrap(), samples::snapshot_begin());
    assert_eq!(SnapshotEnd::check(&payload("frame-snapshot-end")).unwrap(), samples::snapshot_end());
    assert_eq!(payload("frame-snapshot-chunk"), samples::SNAPSHOT_CHUNK);
    for (name, request) in samples::control_requests() {
        assert_eq!(ControlRequest::check(&payload(name)).unwrap(), request);
    }
}

#[test]
fn a_superblock_is_its_golden_bytes() {
    for (name, value) in [("superblock", samples::superblock()), ("superblock-begun", samples::superblock_begun())] {
        let golden = golden(name);
        assert_eq!(samples::superblock_bytes(&value), golden);
        let read = samples::owned(&Superblock::check(&golden).unwrap());
        assert_eq!(read, value);
    }
}

/// What a build wrote that knew no settings: its slots and positions stand, and nothing was ever set.
#[test]
fn a_superblock_of_version_2_is_read_and_written_again_as_version_4() {
    let before = golden("superblock-2");
    assert_eq!(before[8..10], [2, 0]);
    let read = samples::owned(&Superblock::check(&before).unwrap());
    assert_eq!(read, samples::Owned { settings: None, ..samples::superblock() });
    let after = samples::superblock_bytes(&read);
    assert_eq!(after[8..10], [4, 0]);
    assert_eq!(after[10..superblock::COPY - 4], before[10..superblock::COPY - 4]);
    assert_eq!(samples::owned(&Superblock::check(&after).unwrap()), read);
}

/// What a build wrote that knew no settings of links: all others stand.
#[test]
fn a_superblock_of_version_3_is_read_and_written_again_as_version_4() {
    let before = golden("superblock-3");
    assert_eq!(before[8..10], [3, 0]);
    let read = samples::owned(&Superblock::check(&before).unwrap());
    let settings = Some(superblock::SettingsEntry { links: None, ..samples::settings() });
    assert_eq!(read, samples::Owned { settings, ..samples::superblock() });
    let after = samples::superblock_bytes(&read);
    assert_eq!(after[8..10], [4, 0]);
    assert_eq!(after[10..superblock::COPY - 4], before[10..superblock::COPY - 4]);
    assert_eq!(samples::owned(&Superblock::check(&after).unwrap()), read);
}

/// The hex blocks of the document: name and bytes.
fn doc_blocks() -> Vec<(String, Vec<u8>)> {
    let mut blocks = Vec::new();
    let mut lines = DOC.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("```hex ") {
            let text: Vec<_> = lines.by_ref().take_while(|l| *l != "```").collect();
            blocks.push((name.to_owned(), bytes(&text.join("\n"))));
        }
    }
    blocks
}

#[test]
fn the_document_shows_exactly_the_golden_bytes() {
    let mut shown: Vec<_> = doc_blocks().into_iter().map(|(name, _)| name).collect();
    let mut names: Vec<_> = GOLDEN.iter().map(|(name, _)| (*name).to_owned()).collect();
    shown.sort();
    names.sort();
    assert_eq!(shown, names, "the document and the tests have the same vectors");
    for (name, bytes) in doc_blocks() {
        assert_eq!(bytes, golden(&name), "block {name} of docs/FORMAT.md");
    }
}

/// The cells of the table rows below the heading that ends in `heading`, up to the next heading.
fn doc_table(heading: &str) -> Vec<Vec<&'static str>> {
    let lines = DOC.lines().skip_while(|l| !(l.starts_with('#') && l.ends_with(heading))).skip(1);
    let rows: Vec<_> = lines
        .take_while(|l| !l.starts_with('#'))
        .filter(|l| l.starts_with('|') && !l.starts_with("|-"))
        .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect())
        .skip(1)
        .collect();
    assert!(!rows.is_empty(), "docs/FORMAT.md has no table below {heading}");
    rows
}

#[test]
fn the_documents_offset_tables_have_no_gap_and_the_right_size() {
    for (heading, size) in [
        ("Record header", record::HEADER),
        ("Batch header", batch::HEADER),
        ("Frame header", frame::HEADER),
        ("Hello payload", handshake::HELLO),
        ("Welcome payload", handshake::WELCOME),
        ("Ack payload", message::ACK),
        ("Heartbeat payload", message::HEARTBEAT),
        ("Append head", message::APPEND_HEAD),
        ("Committed payload", message::COMMITTED),
        ("Tail payload", message::TAIL_REQUEST),
        ("Slot request payload", message::SLOT_REQUEST),
        ("Packed head", message::PACKED_HEAD),
        ("Snapshot request payload", message::SNAPSHOT_REQUEST),
        ("Snapshot begin payload", message::SNAPSHOT_BEGIN),
        ("Snapshot end payload", message::SNAPSHOT_END),
        ("Control request payload", message::CONTROL_REQUEST),
        ("Error head", message::ERROR_HEAD),
        ("Superblock copy", superblock::COPY),
        ("Superblock slot", superblock::SLOT),
    ] {
        let mut end = 0;
        for row in doc_table(heading) {
            assert_eq!(row[0].parse(), Ok(end), "{heading}: offset of {}", row[3]);
            let bytes: usize = row[1].parse().unwrap();
            let width = match row[2] {
                "u8" => 1,
                "u16" => 2,
                "u32" => 4,
                "u64" => 8,
                _ => bytes,
            };
            assert_eq!(bytes, width, "{heading}: size of {}", row[3]);
            end += bytes;
        }
        assert_eq!(end, size, "{heading}");
    }
}

#[test]
fn the_documents_numbers_are_the_codes_numbers() {
    let kinds: Vec<_> = FrameKind::ALL.iter().map(|k| [(*k as u8).to_string(), format!("{k:?}")]).collect();
    let caps: Vec<_> = FrameKind::ALL.iter().map(|k| k.payload_max().to_string()).collect();
    let shown = doc_table("Frame kinds");
    assert_eq!(shown.iter().map(|r| [r[0], r[1]]).collect::<Vec<_>>(), kinds);
    assert_eq!(shown.iter().map(|r| r[2]).collect::<Vec<_>>(), caps);

    let pairs =
        |heading| doc_table(heading).iter().map(|r| (r[0].parse().unwrap(), r[1].to_owned())).collect::<Vec<_>>();
    let refusals: Vec<_> = Refusal::ALL.iter().map(|r| (*r as u64, format!("{r:?}"))).collect();
    assert_eq!(pairs("Refusal causes"), refusals);
    let losses: Vec<_> = SlotLoss::ALL.iter().map(|l| (*l as u64, l.name().to_owned())).collect();
    assert_eq!(pairs("Slot losses"), losses);
    let errors: Vec<_> = (0..=u16::MAX).filter_map(ErrorCode::from_number).collect();
    let errors: Vec<_> = errors.iter().map(|e| (*e as u64, format!("{e:?}"))).collect();
    assert_eq!(pairs("Error codes"), errors);
    let goodbyes = [Goodbye::Stopping, Goodbye::Done, Goodbye::Replaced, Goodbye::Again];
    let goodbyes: Vec<_> = goodbyes.iter().map(|g| (*g as u64, format!("{g:?}"))).collect();
    assert_eq!(pairs("Goodbye reasons"), goodbyes);
    let mut statuses = Vec::new();
    for number in 0..=u8::MAX {
        let mut bytes = samples::committed().to_bytes();
        bytes[36] = number;
        statuses.extend(Committed::check(&bytes).ok().map(|c| (u64::from(number), format!("{:?}", c.status))));
    }
    assert_eq!(pairs("Commit statuses"), statuses);
}
