//! Random logs, cut off at random instants and changed at random places: what opens is the longest
//! whole prefix, a crash is never called damage, and damage below what was durable never passes.

use super::*;
use proptest::prelude::*;
use towline_wire::Seq;

/// The most bytes that the writer of these logs had in flight.
const WINDOW: u64 = 6 * BLOCK as u64;

/// One batch as it was written.
#[derive(Clone, Debug)]
struct Written {
    bytes: Vec<u8>,
    /// The log's end after it.
    end: LogEnd,
}

/// A log of one term after another. Each batch says what was durable when it was closed, as the
/// pipeline would: at most [`WINDOW`] behind its end.
fn written(sizes: &[(usize, usize, bool)]) -> Vec<Written> {
    let mut all: Vec<Written> = Vec::new();
    let mut end = LogEnd { last_term: Term(1), ..LogEnd::default() };
    let mut durable = 0;
    for (payload, lag, next_term) in sizes {
        let term = if *next_term { Term((end.last_term.0 + 1).min(3)) } else { end.last_term };
        let mut b = BatchBuilder::new(vec![0; crate::protocol::builder::buffer_for(*payload)]);
        b.push(&vec![all.len() as u8 + 1; *payload]);
        let disk_len = b.disk_len() as u64;
        // Something in flight may have come to its end before this one was closed.
        let ends = || [0].into_iter().chain(all.iter().map(|w| w.end.lsn.0));
        let least = (end.lsn.0 + disk_len).saturating_sub(WINDOW);
        durable = ends().filter(|e| *e >= durable.max(least)).nth(*lag).unwrap_or(end.lsn.0);
        let sealed = b.close(BatchFields {
            system: SYSTEM,
            shard: ShardId(0),
            term,
            lsn: end.lsn,
            first_seq: end.next_seq,
            record_count: 0,
            timestamp_us: 0,
            prev_chain: end.chain,
            durable_lsn: Lsn(durable),
            commit_lsn: Lsn(0),
        });
        let lsn = Lsn(end.lsn.0 + disk_len);
        end = LogEnd { lsn, chain: sealed.chain, next_seq: Seq(end.next_seq.0 + 1), last_term: term };
        all.push(Written { bytes: sealed.buf[..sealed.disk_len].to_vec(), end });
    }
    all
}

fn start(all: &[Written], n: usize) -> usize {
    if n == 0 { 0 } else { all[n - 1].end.lsn.0 as usize }
}

/// The whole log with room behind it.
fn disk(all: &[Written], fill: u8) -> Memory {
    let mut bytes: Vec<u8> = all.iter().flat_map(|w| w.bytes.clone()).collect();
    bytes.resize(bytes.len() + 16 * BLOCK, fill);
    Memory(bytes)
}

fn facts_of_crash() -> Facts {
    Facts { in_flight_bytes_max: WINDOW, ..facts() }
}

/// The first batch whose bytes are not what was written.
fn first_bad(all: &[Written], m: &Memory) -> usize {
    (0..all.len()).find(|n| m.0[start(all, *n)..all[*n].end.lsn.0 as usize] != all[*n].bytes[..]).unwrap_or(all.len())
}

fn end_after(all: &[Written], n: usize) -> LogEnd {
    if n == 0 { LogEnd::default() } else { all[n - 1].end }
}

fn logs() -> impl Strategy<Value = Vec<Written>> {
    let batch = (1usize..9000, 0usize..3, prop::bool::weighted(0.2));
    prop::collection::vec(batch, 1..14).prop_map(|sizes| written(&sizes))
}

/// What became of one write that was in flight when the power went.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Whole,
    Lost,
    /// Some sectors got there; which, by the bits.
    Torn(u32),
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![Just(Fate::Whole), Just(Fate::Lost), any::<u32>().prop_map(Fate::Torn)];
    prop::collection::vec(fate, 14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 600 }, ..ProptestConfig::default() })]

    #[test]
    fn after_a_crash_the_longest_whole_prefix_opens_and_stays(
        all in logs(), fates in fates(), cut in 0usize..14, fill in prop_oneof![Just(0u8), Just(0x5a)], floor in 0usize..14
    ) {
        // The crash comes when `last` batches were closed; those that the newest header calls
        // durable are on the device, of the others anything may be.
        let last = cut % all.len();
        let durable = BatchHeader::check(&all[last].bytes).unwrap().durable_lsn();
        let first_in_flight = (0..=last).find(|n| start(&all, *n) as u64 >= durable.0).unwrap();
        let mut m = disk(&all, fill);
        for (n, w) in all.iter().enumerate().skip(first_in_flight) {
            let fate = if n > last { Fate::Lost } else { fates[n] };
            for (sector, at) in (start(&all, n)..w.end.lsn.0 as usize).step_by(512).enumerate() {
                let keep = match fate {
                    Fate::Whole => true,
                    Fate::Lost => false,
                    Fate::Torn(bits) => bits >> (sector % 32) & 1 == 1,
                };
                if !keep {
                    m.0[at..at + 512].fill(fill);
                }
            }
        }
        let bad = first_bad(&all, &m);
        // Any floor that the superblock can hold: where a batch starts that is durable as a whole.
        let floor = Lsn(start(&all, floor % first_in_flight.max(1)) as u64);
        let facts = Facts { floor, commit: durable, ..facts_of_crash() };
        let r = run(&mut m, &facts).map_err(|e| TestCaseError::fail(format!("a crash was called damage: {e}")))?;
        prop_assert_eq!(r.end, end_after(&all, bad));
        prop_assert!(r.end.lsn >= durable);
        if let Some(tear) = &r.tear {
            prop_assert!(tear.at == r.end.lsn && tear.until > tear.at && tear.until.0 as usize <= m.0.len());
            m.0[tear.at.0 as usize..tear.until.0 as usize].fill(0);
        }
        let again = run(&mut m, &facts).unwrap();
        prop_assert_eq!((again.end, again.tear), (r.end, None));
    }

    #[test]
    fn a_changed_log_never_opens_to_anything_but_a_prefix(
        all in logs(), at in any::<prop::sample::Index>(), len in 1usize..6000, flip in 1u8..=255, zero in any::<bool>(),
        durable in any::<prop::sample::Index>(), by_floor in any::<bool>()
    ) {
        let mut m = disk(&all, 0);
        let whole = all.last().unwrap().end.lsn.0 as usize;
        let at = at.index(whole);
        if zero {
            m.0[at..(at + len).min(whole)].fill(0);
        } else {
            m.0[at] ^= flip;
        }
        let bad = first_bad(&all, &m);
        // How much of it was on the device for certain.
        let n = durable.index(all.len() + 1);
        let known = end_after(&all, n).lsn;
        let facts = match by_floor {
            true => Facts { floor: Lsn(start(&all, n.saturating_sub(1)) as u64), ..facts_of_crash() },
            false => Facts { commit: known, ..facts_of_crash() },
        };
        let mut seen = 0u64;
        let result = recover(&mut m, &facts, |view| {
            assert_eq!(view.as_bytes(), &all[(view.header().first_seq().0) as usize].bytes[..view.as_bytes().len()]);
            seen += 1;
        });
        match result {
            Ok(r) => {
                // From the floor on: what is before it is not read.
                let skipped = (0..all.len()).take_while(|n| (start(&all, *n) as u64) < facts.floor.0).count();
                let bad = bad.max(if bad < skipped { first_bad_from(&all, &m, skipped) } else { bad });
                prop_assert_eq!(r.end, end_after(&all, bad));
                prop_assert_eq!(r.batches, seen);
                prop_assert!(r.end.lsn >= facts.commit, "committed bytes are missing and nobody says so");
                prop_assert!(bad < all.len() || r.tear.is_none());
            }
            Err(RecoveryError::Damage { at, .. }) => {
                let skipped = (0..all.len()).take_while(|n| (start(&all, *n) as u64) < facts.floor.0).count();
                prop_assert_eq!(at.0 as usize, start(&all, first_bad_from(&all, &m, skipped)));
            }
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
        }
    }
}

/// The first bad batch at or after the `from`-th.
fn first_bad_from(all: &[Written], m: &Memory, from: usize) -> usize {
    let is_bad = |n: &usize| m.0[start(all, *n)..all[*n].end.lsn.0 as usize] != all[*n].bytes[..];
    (from..all.len()).find(is_bad).unwrap_or(all.len())
}

#[test]
fn an_error_of_the_device_is_no_end_of_the_log() {
    struct Failing;
    impl LogSource for Failing {
        fn bytes(&mut self, _: Lsn, _: usize) -> io::Result<&[u8]> {
            Err(io::Error::other("medium error"))
        }
    }
    let e = recover(&mut Failing, &facts(), |_| {}).unwrap_err();
    assert!(matches!(e, RecoveryError::Io { at: Lsn(0), .. }) && e.to_string().contains("medium error"), "{e}");
}

#[test]
fn terms_are_found_where_they_began() {
    let all = written(&[(10, 0, false), (10, 0, true), (10, 0, false), (10, 0, true)]);
    let r = run(&mut disk(&all, 0), &facts_of_crash()).unwrap();
    assert_eq!(r.terms, [(Term(1), Lsn(0)), (Term(2), Lsn(4096)), (Term(3), Lsn(12288))]);
}

#[test]
fn a_whole_batch_of_another_history_at_the_same_place_is_not_this_logs() {
    let all = written(&[(10, 0, false), (20, 0, false), (30, 0, false)]);
    let end = |m: &mut Memory| run(m, &facts_of_crash()).map(|r| (r.end, r.tear));
    // As a fork with the same sizes would have it: same LSN, same sequence, same term, other bytes before.
    let fork = written(&[(11, 0, false), (20, 0, false), (30, 0, false)]);
    let mut m = disk(&all, 0);
    m.0[start(&all, 2)..all[2].end.lsn.0 as usize].copy_from_slice(&fork[2].bytes);
    let (found, tear) = end(&mut m).unwrap();
    assert_eq!(found, all[1].end);
    let tear = tear.unwrap();
    assert!(tear.reason.contains("chain") && tear.until == all[2].end.lsn, "{tear:?}");
    // The same chain and place, but a sequence or a term that does not go on.
    for (field, change) in
        [("first sequence", (|f| f.first_seq = Seq(7)) as fn(&mut BatchFields)), ("term", |f| f.term = Term(0))]
    {
        let mut fields = BatchFields {
            system: SYSTEM,
            shard: ShardId(0),
            term: Term(1),
            lsn: all[1].end.lsn,
            first_seq: Seq(2),
            record_count: 0,
            timestamp_us: 0,
            prev_chain: all[1].end.chain,
            durable_lsn: Lsn(0),
            commit_lsn: Lsn(0),
        };
        change(&mut fields);
        let mut b = BatchBuilder::new(vec![0; BLOCK]);
        b.push(&[1; 30]);
        let mut m = disk(&all, 0);
        m.0[start(&all, 2)..all[2].end.lsn.0 as usize].copy_from_slice(&b.close(fields).buf);
        let (found, tear) = end(&mut m).unwrap();
        assert_eq!(found, all[1].end, "{field}");
        assert!(tear.is_none_or(|t| t.reason.contains(field)), "{field}");
    }
}

#[test]
fn a_log_whose_first_kept_batch_is_bad_is_damaged_and_one_that_fills_its_files_is_whole() {
    let all = written(&[(10, 0, false), (20, 0, false), (30, 0, false)]);
    let oldest = all[0].end.lsn;
    let mut m = disk(&all, 0);
    m.0[oldest.0 as usize] ^= 1;
    let e = run(&mut m, &Facts { oldest, floor: oldest, ..facts_of_crash() }).unwrap_err();
    assert!(matches!(e, RecoveryError::Damage { at, .. } if at == oldest), "{e}");
    let mut m = disk(&all, 0);
    m.0.truncate(all[2].end.lsn.0 as usize);
    let r = run(&mut m, &facts_of_crash()).unwrap();
    assert_eq!((r.end, r.tear), (all[2].end, None));
}
