//! Golden vectors: the bytes of format version 1 and protocol version 1, held fixed.
//!
//! They were computed by a second encoder, not by this crate. `docs/FORMAT.md` shows the same bytes
//! field by field; the last tests hold the document to them.

mod samples;
mod vectors;

use samples::{ERROR, ERROR_TEXT, RECORDS, STATUS, SYSTEM, TAILS, VERDICTS};
use towline_wire::frame::{self, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameHead, FrameKind};
use towline_wire::handshake::{self, Hello, Refusal, Welcome};
use towline_wire::message::{
    self, Ack, AppendHead, Committed, ControlRequest, ErrorCode, ErrorHead, Goodbye, Heartbeat, PackedHead,
    SlotRequest, SnapshotBegin, SnapshotEnd, SnapshotRequest, TailRequest,
};
use towline_wire::superblock::{self, SlotLoss, Superblock};
use towline_wire::{BatchView, Chain, Lsn, Records, Seq, ShardId, Term, batch, record};
use vectors::GOLDEN;

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
        let read = Superblock::check(&golden).unwrap().collect();
        assert_eq!(read, value);
    }
}

/// What a build wrote that knew no settings: its slots and positions stand, and nothing was ever set.
#[test]
fn a_superblock_of_version_2_is_read_and_written_again_as_version_4() {
    let before = golden("superblock-2");
    assert_eq!(before[8..10], [2, 0]);
    let read = Superblock::check(&before).unwrap().collect();
    assert_eq!(read, samples::Owned { settings: None, ..samples::superblock() });
    let after = samples::superblock_bytes(&read);
    assert_eq!(after[8..10], [4, 0]);
    assert_eq!(after[10..superblock::COPY - 4], before[10..superblock::COPY - 4]);
    assert_eq!(Superblock::check(&after).unwrap().collect(), read);
}

/// What a build wrote that knew no settings of links: all others stand.
#[test]
fn a_superblock_of_version_3_is_read_and_written_again_as_version_4() {
    let before = golden("superblock-3");
    assert_eq!(before[8..10], [3, 0]);
    let read = Superblock::check(&before).unwrap().collect();
    let settings = Some(superblock::SettingsEntry { links: None, ..samples::settings() });
    assert_eq!(read, samples::Owned { settings, ..samples::superblock() });
    let after = samples::superblock_bytes(&read);
    assert_eq!(after[8..10], [4, 0]);
    assert_eq!(after[10..superblock::COPY - 4], before[10..superblock::COPY - 4]);
    assert_eq!(Superblock::check(&after).unwrap().collect(), read);
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
