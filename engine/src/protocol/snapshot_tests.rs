use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use towline_wire::superblock::Base;
use towline_wire::{Chain, Seq};

use super::*;

const MAX: u64 = 1 << 20;
const END: Lsn = Lsn(4096);

fn point(id: u8) -> SnapshotPoint {
    SnapshotPoint { id: SnapshotId([id; 16]), at: Lsn(8192), base: Base { chain: Chain(7), seq: Seq(8) } }
}

fn begin(id: u8, total: Option<u64>, offset: u64) -> SnapshotBegin {
    SnapshotBegin { point: point(id), total, offset }
}

fn end(id: u8, chunks: &[&[u8]]) -> SnapshotEnd {
    let checksum = chunks.iter().fold(0, |c, b| snapshot_checksum(c, b));
    let total = chunks.iter().map(|c| c.len() as u64).sum();
    SnapshotEnd { point: point(id), total, chunks: chunks.len() as u64, checksum }
}

/// A replica that has taken these on its first link.
fn taking(chunks: &[&[u8]]) -> Taking {
    let mut taking = Taking::new(MAX);
    assert_eq!(taking.request(), SnapshotRequest { id: SnapshotId::NONE, offset: 0 });
    assert_eq!(taking.on_begin(&begin(1, None, 0), END), Ok(Begun::Anew));
    let mut offset = 0;
    for chunk in chunks {
        taking.on_chunk(offset, chunk).unwrap();
        offset += chunk.len() as u64;
    }
    taking
}

fn sending(chunks: &[&[u8]]) -> Sending {
    let mut sending = Sending::new(point(1), None, MAX).unwrap();
    assert!(sending.resume(&SnapshotRequest { id: SnapshotId::NONE, offset: 0 }, Lsn(8192)));
    chunks.iter().for_each(|c| sending.on_chunk(Some(c.to_vec())).unwrap());
    sending
}

#[test]
fn a_whole_snapshot_is_taken_and_nothing_is_staged_then() {
    let mut t = taking(&[b"one", b"three"]);
    assert_eq!(t.progress(), Some((8, None)));
    assert_eq!(t.on_end(&end(1, &[b"one", b"three"]), Lsn(8192)), Ok(point(1)));
    assert_eq!((t.progress(), t.request().offset), (None, 0));
    let mut empty = taking(&[]);
    assert_eq!(empty.on_end(&end(1, &[]), Lsn(8192)), Ok(point(1)));
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    use SnapshotViolation as V;
    let mut t = Taking::new(MAX);
    assert_eq!(t.on_chunk(0, b"x"), Err(V::NotBegun));
    assert_eq!(t.on_end(&end(1, &[]), Lsn(8192)), Err(V::NotBegun));
    assert_eq!(t.on_begin(&begin(1, None, 0), Lsn(8192)), Err(V::Behind { at: Lsn(8192), end: Lsn(8192) }));
    assert_eq!(t.on_begin(&begin(1, Some(MAX + 1), 0), END), Err(V::TooLarge { bytes: MAX + 1, max: MAX }));
    assert_eq!(t.on_begin(&begin(1, None, 3), END), Err(V::WrongOffset { offset: 3, want: 0 }));
    assert_eq!(t.progress(), None);
    let mut t = taking(&[b"one"]);
    assert_eq!(t.on_begin(&begin(1, None, 0), END), Err(V::BegunTwice));
    assert_eq!(t.on_chunk(3, b""), Err(V::Empty));
    for offset in [0, 2, 4, u64::MAX] {
        assert_eq!(t.on_chunk(offset, b"x"), Err(V::WrongOffset { offset, want: 3 }));
    }
    let large = vec![0; MAX as usize];
    assert_eq!(t.on_chunk(3, &large), Err(V::TooLarge { bytes: MAX + 3, max: MAX }));
    // A new link: what goes on there has begun there.
    assert_eq!(t.request(), SnapshotRequest { id: SnapshotId([1; 16]), offset: 3 });
    assert_eq!(t.on_chunk(3, b"x"), Err(V::NotBegun));
    let mut t = Taking::new(MAX);
    t.on_begin(&begin(1, Some(4), 0), END).unwrap();
    assert_eq!(t.on_chunk(0, b"longer"), Err(V::NotAsDeclared { bytes: 6, total: 4 }));
    t.on_chunk(0, b"one").unwrap();
    assert_eq!(t.on_end(&end(1, &[b"one"]), Lsn(8192)), Err(V::NotAsDeclared { bytes: 3, total: 4 }));
}

#[test]
fn a_manifest_that_lies_is_refused_whatever_it_lies_about() {
    use SnapshotViolation as V;
    let good = end(1, &[b"one", b"three"]);
    let said = |lie: fn(&mut SnapshotEnd)| {
        let mut lies = good;
        lie(&mut lies);
        taking(&[b"one", b"three"]).on_end(&lies, Lsn(8192)).unwrap_err()
    };
    assert_eq!(said(|e| e.total = 9), V::NotAsDeclared { bytes: 8, total: 9 });
    assert_eq!(said(|e| e.total = 7), V::NotAsDeclared { bytes: 8, total: 7 });
    assert_eq!(said(|e| e.chunks = 3), V::Manifest("number of chunks"));
    assert_eq!(said(|e| e.checksum ^= 1), V::Manifest("checksum"));
    for lie in [
        (|e| e.point.at = Lsn(12288)) as fn(&mut SnapshotEnd),
        |e| e.point.base.seq = Seq(9),
        |e| e.point.base.chain = Chain(9),
        |e| e.point.id = SnapshotId([2; 16]),
    ] {
        assert_eq!(said(lie), V::Manifest("position"));
    }
    let uncommitted = taking(&[b"one", b"three"]).on_end(&good, Lsn(4096));
    assert_eq!(uncommitted, Err(V::NotCommitted { at: Lsn(8192), commit: Lsn(4096) }));
}

#[test]
fn it_goes_on_where_it_was_and_another_one_begins_anew() {
    let mut t = taking(&[b"one"]);
    let _ = t.request();
    assert_eq!(t.on_begin(&begin(1, None, 2), END), Err(SnapshotViolation::WrongOffset { offset: 2, want: 3 }));
    assert_eq!(t.on_begin(&begin(1, None, 3), END), Ok(Begun::GoesOn));
    t.on_chunk(3, b"three").unwrap();
    let _ = t.request();
    // The same one, which now stands elsewhere.
    let mut moved = begin(1, None, 8);
    moved.point.at = Lsn(12288);
    assert_eq!(t.on_begin(&moved, END), Err(SnapshotViolation::Manifest("beginning")));
    let _ = t.request();
    assert_eq!(t.on_begin(&begin(2, None, 8), END), Err(SnapshotViolation::WrongOffset { offset: 8, want: 0 }));
    let _ = t.request();
    assert_eq!(t.on_begin(&begin(2, None, 0), END), Ok(Begun::Anew));
    assert_eq!(t.progress(), Some((0, None)));
}

#[test]
fn a_primary_holds_a_window_of_chunks_and_no_more() {
    let mut s = sending(&[]);
    for _ in 0..limits::SNAPSHOT_WINDOW {
        assert!(s.wants_chunk());
        s.on_chunk(Some(b"chunk".to_vec())).unwrap();
    }
    assert!(!s.wants_chunk());
    for n in 0..limits::SNAPSHOT_WINDOW as u64 {
        let bytes: Rc<[u8]> = b"chunk"[..].into();
        assert_eq!(s.take_next(), Some(Next::Chunk { offset: 5 * n, bytes }));
    }
    assert_eq!(s.take_next(), None);
    s.on_ack(5).unwrap();
    assert!(s.wants_chunk());
    assert_eq!(s.progress(), (5, None));
}

#[test]
fn an_ack_for_what_was_not_sent_or_is_no_chunks_end_is_refused() {
    let mut s = sending(&[b"one", b"three"]);
    assert_eq!(s.on_ack(3), Err(SendError::BadAck { acked: 3 }), "not sent yet");
    let _ = s.take_next();
    for acked in [1, 4, 8, u64::MAX] {
        assert_eq!(s.on_ack(acked), Err(SendError::BadAck { acked }));
    }
    s.on_ack(3).unwrap();
    s.on_ack(3).unwrap();
    assert_eq!(s.on_ack(0), Err(SendError::BadAck { acked: 0 }), "it is let go of");
}

#[test]
fn a_producer_that_does_not_do_as_it_said_is_stopped() {
    assert_eq!(Sending::new(point(1), Some(MAX + 1), MAX).unwrap_err(), SendError::TooLarge { max: MAX });
    let of = |total| Sending::new(point(1), total, 6).unwrap();
    assert_eq!(of(None).on_chunk(Some(vec![0; 7])), Err(SendError::TooLarge { max: 6 }));
    assert_eq!(of(Some(3)).on_chunk(Some(vec![0; 4])), Err(SendError::NotAsSaid { total: 3, given: 4 }));
    assert_eq!(of(Some(3)).on_chunk(None), Err(SendError::NotAsSaid { total: 3, given: 0 }));
    assert_eq!(of(None).on_chunk(Some(Vec::new())), Err(SendError::Chunk { bytes: 0 }));
    let large = SNAPSHOT_CHUNK_BYTES_MAX + 1;
    let mut s = Sending::new(point(1), None, MAX).unwrap();
    assert_eq!(s.on_chunk(Some(vec![0; large])), Err(SendError::Chunk { bytes: large }));
}

#[test]
fn what_was_let_go_of_cannot_be_asked_for_again() {
    let mut s = sending(&[b"one", b"three"]);
    let (_, _) = (s.take_next(), s.take_next());
    s.on_ack(3).unwrap();
    let ask = |id: u8, offset| SnapshotRequest { id: SnapshotId([id; 16]), offset };
    assert!(!s.resume(&SnapshotRequest { id: SnapshotId::NONE, offset: 0 }, Lsn(8192)));
    assert!(!s.resume(&ask(1, 0), Lsn(8192)) && !s.resume(&ask(2, 3), Lsn(8192)) && !s.resume(&ask(1, 4), Lsn(8192)));
    // The log behind it is gone, with the slot that held it.
    assert!(!s.resume(&ask(1, 3), Lsn(12288)));
    assert!(s.resume(&ask(1, 3), Lsn(8192)));
    assert_eq!(s.begin().offset, 3);
    assert!(matches!(s.take_next(), Some(Next::Chunk { offset: 3, .. })), "what was under way is sent again");
}

proptest! {
    #![proptest_config(Config { cases: 200, rng_seed: RngSeed::Fixed(0x736e_6170), failure_persistence: None, ..Config::default() })]

    /// Links are cut anywhere, acks come late or not at all: what is staged in the end is what was produced,
    /// byte for byte and chunk for chunk, and neither side ever holds more than a window.
    #[test]
    fn a_snapshot_comes_whole_over_any_number_of_links(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..60),
        moves in proptest::collection::vec((0u8..20, any::<bool>()), 1..400),
    ) {
        let mut producer = chunks.iter();
        let mut s = Sending::new(point(1), None, MAX).unwrap();
        let mut t = Taking::new(MAX);
        let mut staged: Vec<Vec<u8>> = Vec::new();
        let mut moves = moves.into_iter();
        let whole = 'links: loop {
            let request = t.request();
            prop_assert!(s.resume(&request, Lsn(8192)), "{request:?}");
            prop_assert!(t.on_begin(&s.begin(), END).is_ok());
            let mut on_the_way = VecDeque::new();
            loop {
                // Once the moves are used up nothing is cut any more.
                let (what, acked) = moves.next().unwrap_or((19, true));
                if what == 0 {
                    break;
                }
                if s.wants_chunk() {
                    s.on_chunk(producer.next().cloned()).unwrap();
                }
                prop_assert!(s.held.len() <= limits::SNAPSHOT_WINDOW);
                on_the_way.extend(s.take_next());
                if what < 6 {
                    continue;
                }
                match on_the_way.pop_front() {
                    None => {}
                    Some(Next::End(end)) => break 'links t.on_end(&end, Lsn(8192)),
                    Some(Next::Chunk { offset, bytes }) => {
                        prop_assert_eq!(t.on_chunk(offset, &bytes), Ok(()));
                        staged.push(bytes.to_vec());
                        if acked {
                            s.on_ack(t.progress().unwrap().0).unwrap();
                        }
                    }
                }
                if s.held.len() == limits::SNAPSHOT_WINDOW && on_the_way.is_empty() {
                    s.on_ack(t.progress().unwrap().0).unwrap();
                }
            }
        };
        prop_assert_eq!(whole, Ok(point(1)));
        prop_assert_eq!(staged, chunks);
    }
}
