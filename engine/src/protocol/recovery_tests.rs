//! A log in memory, broken in every way that matters.

use super::*;
use crate::protocol::builder::BatchBuilder;
use towline_wire::superblock::Base;
use towline_wire::{BatchFields, Chain, Seq};

struct Memory(Vec<u8>);

impl LogSource for Memory {
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]> {
        let from = (lsn.0 as usize).min(self.0.len());
        let to = (from + len).min(self.0.len());
        Ok(&self.0[from..to])
    }
}

const SYSTEM: SystemId = SystemId([9; 16]);

/// Behind the logs: more than may be in flight. Miri takes a second for a block.
const ROOM: usize = if cfg!(miri) { 7 * BLOCK } else { 16 * BLOCK };

fn facts() -> Facts {
    Facts {
        system: SYSTEM,
        shard: ShardId(0),
        term: Term(3),
        own_term: Term(3),
        oldest: Lsn(0),
        base: None,
        floor: Lsn(0),
        commit: Lsn(0),
        reached: (Term(0), Lsn(0)),
        in_flight_bytes_max: 4 * BLOCK as u64,
    }
}

/// One batch per entry: its payload bytes, and how far the writer says the device had come.
fn log(batches: &[(usize, u64)]) -> (Memory, Vec<Recovered>) {
    let mut bytes = Vec::new();
    let mut ends = vec![Recovered::default()];
    let mut end = LogEnd::default();
    for (payload, durable) in batches {
        let mut b = BatchBuilder::new(vec![0; super::super::builder::buffer_for(*payload)]);
        b.push(&vec![0xab; *payload]);
        let sealed = b.close(BatchFields {
            system: SYSTEM,
            shard: ShardId(0),
            term: Term(3),
            lsn: end.lsn,
            first_seq: end.next_seq,
            record_count: 0,
            timestamp_us: 0,
            prev_chain: end.chain,
            durable_lsn: Lsn(*durable),
            commit_lsn: Lsn(0),
        });
        bytes.extend_from_slice(&sealed.buf);
        end = LogEnd {
            lsn: Lsn(bytes.len() as u64),
            chain: sealed.chain,
            next_seq: Seq(end.next_seq.0 + 1),
            last_term: Term(3),
        };
        ends.push(Recovered { end, ..Recovered::default() });
    }
    bytes.resize(bytes.len() + ROOM, 0);
    (Memory(bytes), ends)
}

/// 1, but under Miri, which is some thousand times slower, a step that leaves a few places of `len`.
fn stride(len: usize) -> usize {
    if cfg!(miri) { len / 5 + 1 } else { 1 }
}

fn run(memory: &mut Memory, facts: &Facts) -> Result<Recovered, RecoveryError> {
    recover(memory, facts, |_| {})
}

#[test]
fn an_empty_log_and_a_whole_log_open_to_their_ends() {
    let (mut m, _) = log(&[]);
    assert_eq!(run(&mut m, &facts()).unwrap(), Recovered::default());
    let (mut m, ends) = log(&[(10, 0), (5000, 0), (10, 4096)]);
    let r = run(&mut m, &facts()).unwrap();
    assert_eq!((r.end, r.batches, r.records, &r.tear), (ends[3].end, 3, 3, &None));
    assert_eq!(r.terms, [(Term(3), Lsn(0))]);
    assert_eq!(r.last_batch, Lsn(3 * 4096));
}

#[test]
fn a_log_opens_from_its_floor_without_reading_what_is_before_it() {
    let (mut m, ends) = log(&[(10, 0), (10, 0), (10, 0)]);
    m.0[..BLOCK].fill(0x55);
    let r = run(&mut m, &Facts { floor: Lsn(4096), ..facts() }).unwrap();
    assert_eq!((r.end, r.batches), (ends[3].end, 2));
}

#[test]
fn a_torn_tail_is_cut_at_every_sector_and_with_every_fill() {
    let (whole, ends) = log(&[(10, 0), (9000, 0)]);
    let torn_from = ends[1].end.lsn.0 as usize;
    let torn_to = ends[2].end.lsn.0 as usize;
    for fill in [0, 0xff, 0x5a] {
        for sector in (torn_from..torn_to).step_by(512 * stride((torn_to - torn_from) / 512)) {
            let mut m = Memory(whole.0.clone());
            m.0[sector..torn_to].fill(fill);
            let r = run(&mut m, &facts()).unwrap();
            // A tear inside the last padding with zeros is the batch itself.
            let want = if m.0[..torn_to] == whole.0[..torn_to] { ends[2].end } else { ends[1].end };
            assert_eq!(r.end, want, "fill {fill:#x} from {sector}");
        }
    }
}

#[test]
fn a_hole_with_a_later_batch_in_flight_is_a_tear_and_its_remnants_are_named() {
    let (mut m, ends) = log(&[(10, 0), (10, 4096), (10, 4096)]);
    m.0[4096..8192].fill(0);
    let r = run(&mut m, &facts()).unwrap();
    assert_eq!(r.end, ends[1].end);
    let tear = r.tear.unwrap();
    assert_eq!((tear.at, tear.until), (Lsn(4096), Lsn(12288)));
    // Zeroed as it asks, the log opens to the same end: recovery is idempotent.
    m.0[4096..12288].fill(0);
    let again = run(&mut m, &facts()).unwrap();
    assert_eq!((again.end, again.tear), (ends[1].end, None));
}

#[test]
fn a_bad_batch_that_was_durable_is_damage_and_never_skipped() {
    let (whole, _) = log(&[(10, 0), (10, 4096), (10, 8192), (10, 8192)]);
    let damaged = |at: usize| {
        let mut m = Memory(whole.0.clone());
        m.0[at] ^= 1;
        m
    };
    // The batch at 8192 says that 4096..8192 was durable.
    let e = run(&mut damaged(4096 + 140), &facts()).unwrap_err();
    assert!(matches!(e, RecoveryError::Damage { at: Lsn(4096), .. }), "{e}");
    assert!(e.to_string().contains("body CRC") && e.to_string().contains("LSN 4096"), "{e}");
    // On a replica the primary's word on its own device proves nothing.
    let replica = Facts { own_term: Term(0), ..facts() };
    assert!(run(&mut damaged(4096 + 140), &replica).is_ok());
    // But the floor does, and so does what is known to be committed.
    assert!(run(&mut damaged(4096 + 140), &Facts { floor: Lsn(4096), ..replica }).is_err());
    assert!(run(&mut damaged(4096 + 140), &Facts { commit: Lsn(8192), ..replica }).is_err());
    assert!(run(&mut damaged(12288 + 140), &Facts { commit: Lsn(8192), ..replica }).is_ok());
}

#[test]
fn a_live_batch_beyond_what_can_be_in_flight_is_damage() {
    let (mut m, _) = log(&[(10, 0); 8]);
    m.0[4096] ^= 1;
    let narrow = Facts { own_term: Term(0), in_flight_bytes_max: 3 * 4096, ..facts() };
    assert!(matches!(run(&mut m, &narrow), Err(RecoveryError::Damage { at: Lsn(4096), .. })));
}

/// Found by fuzzing: the window was too narrow to see past the bad batch, so that a log whose first
/// batch was damaged opened empty, and the next start found the rest of it.
#[test]
fn a_damaged_batch_larger_than_what_can_be_in_flight_does_not_hide_what_follows() {
    let (mut m, _) = log(&[(9 * 4096, 0), (10, 0)]);
    m.0[0] ^= 1;
    for in_flight_bytes_max in [0, 4 * 4096] {
        let narrow = Facts { own_term: Term(0), in_flight_bytes_max, ..facts() };
        assert!(matches!(run(&mut m, &narrow), Err(RecoveryError::Damage { at: Lsn(0), .. })));
    }
}

/// Found by fuzzing: a superblock beside another copy's segments made the start panic when it put the
/// history together.
#[test]
fn a_log_that_is_older_than_the_superblocks_history_is_damage() {
    let (mut m, ends) = log(&[(10, 0), (10, 0), (10, 0)]);
    let floor = Facts { floor: Lsn(8192), term: Term(9), ..facts() };
    assert_eq!(run(&mut m, &Facts { reached: (Term(3), Lsn(4096)), ..floor }).unwrap().end, ends[3].end);
    let e = run(&mut m, &Facts { reached: (Term(4), Lsn(4096)), ..floor }).unwrap_err();
    assert!(matches!(e, RecoveryError::Damage { at: Lsn(8192), .. }), "{e}");
    assert!(e.to_string().contains("older than the superblock's history"), "{e}");
    // What lies in front of where that term began may be of an older one.
    let r = run(&mut m, &Facts { reached: (Term(4), Lsn(12288)), term: Term(9), ..facts() });
    assert_eq!(r.unwrap().end, ends[3].end);
}

#[test]
fn the_superblock_says_which_term_the_log_had_reached_at_its_floor() {
    let mut s = Superblock {
        generation: 1,
        system: SYSTEM,
        shard: ShardId(0),
        shard_count: 1,
        term: Term(9),
        own_term: Term(0),
        segment_bytes: 1 << 16,
        oldest_lsn: Lsn(0),
        base: None,
        floor_lsn: Lsn(8192),
        slots: (),
        settings: None,
        commit_lsn: Lsn(0),
        in_flight_bytes_max: 0,
        name: towline_wire::handshake::NodeName::NONE,
        history: vec![(Term(2), Lsn(0)), (Term(5), Lsn(4096)), (Term(9), Lsn(8192))],
    };
    assert_eq!(Facts::of(&s).reached, (Term(5), Lsn(4096)));
    s.floor_lsn = Lsn(0);
    assert_eq!(Facts::of(&s).reached, (Term(0), Lsn(0)));
}

#[test]
fn recycled_and_foreign_bytes_are_never_live() {
    let (m, ends) = log(&[(10, 0), (10, 0), (10, 0)]);
    // The first two batches again where the log ends: right in themselves, at the wrong LSN.
    let mut recycled = Memory(m.0.clone());
    recycled.0.copy_within(..8192, 12288);
    let r = run(&mut recycled, &facts()).unwrap();
    assert_eq!((r.end, r.tear), (ends[3].end, None));
    // Another system's, another shard's.
    let mut m = m;
    for other in [Facts { system: SystemId([8; 16]), ..facts() }, Facts { shard: ShardId(1), ..facts() }] {
        assert_eq!(run(&mut m, &other).unwrap().end.lsn, Lsn(0));
    }
}

#[test]
fn a_superblock_that_has_lost_its_newest_promise_cuts_nothing() {
    // As an older copy says it when the newer one has gone bad: the log is of a term that it does
    // not know, and short enough to be in flight as a whole.
    let stale = Facts { term: Term(2), own_term: Term(2), ..facts() };
    let (mut m, _) = log(&[(10, 0), (10, 0), (10, 0)]);
    let e = run(&mut m, &stale).unwrap_err();
    assert!(matches!(e, RecoveryError::Damage { at: Lsn(0), .. }) && e.to_string().contains("of term 3"), "{e}");
    // Also where the first of that term's batches is bad itself.
    m.0[140] ^= 1;
    let e = run(&mut m, &stale).unwrap_err();
    assert!(
        matches!(e, RecoveryError::Damage { at: Lsn(0), .. }) && e.to_string().contains("at 0 is of term 3"),
        "{e}"
    );
    m.0[40] ^= 1;
    assert!(run(&mut m, &stale).unwrap_err().to_string().contains("at 4096 is of term 3"));
}

#[path = "recovery_crash_tests.rs"]
mod crash;

#[path = "recovery_damage_tests.rs"]
mod damage;

#[test]
fn a_log_that_was_begun_in_the_middle_may_be_empty_there_and_one_that_was_trimmed_may_not() {
    let (m, ends) = log(&[(100, 0), (100, 0), (100, 0)]);
    let at = ends[1].end;
    let base = Some(Base { chain: at.chain, seq: at.next_seq });
    let begun = Facts { oldest: at.lsn, floor: at.lsn, commit: at.lsn, base, ..facts() };
    let mut m = m;
    assert_eq!(run(&mut m, &begun).unwrap().end, ends[3].end);
    // What is there does not follow what came before: it is none of this log's.
    let other = Some(Base { chain: Chain(1), seq: at.next_seq });
    assert_eq!(run(&mut m, &Facts { base: other, in_flight_bytes_max: 1 << 20, ..begun }).unwrap().end.lsn, at.lsn);
    m.0[at.lsn.0 as usize..].fill(0);
    let empty = run(&mut m, &begun).unwrap();
    assert_eq!((empty.end.lsn, empty.end.chain, empty.end.next_seq), (at.lsn, at.chain, at.next_seq));
    assert_eq!((empty.end.last_term, empty.last_batch, empty.batches), (Term::ZERO, at.lsn, 0));
    assert!(run(&mut m, &Facts { base: None, ..begun }).is_err(), "something was there");
    // Once something is known to be committed there, it is damage.
    let known = Facts { commit: Lsn(at.lsn.0 + 1), ..begun };
    assert!(run(&mut m, &known).is_err());
}
