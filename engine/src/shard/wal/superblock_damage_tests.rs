//! Damage to a superblock: every bit of both copies, and what the other copy then says.

use std::fs;

use super::*;
use towline_wire::handshake::NodeName;
use towline_wire::superblock::{SLOTS_AT, SlotKind, SlotLoss};
use towline_wire::{ShardId, SystemId};

fn slot(name: &str, restart: u64, lost: Option<SlotLoss>) -> SlotEntry {
    SlotEntry { name: NodeName::new(name).unwrap(), restart_lsn: Lsn(restart), kind: SlotKind::Configured, lost }
}

fn superblock() -> OwnedSuperblock {
    Superblock {
        generation: 0,
        system: SystemId([9; 16]),
        shard: ShardId(2),
        shard_count: 4,
        term: Term(7),
        own_term: Term(5),
        segment_bytes: 1 << 26,
        oldest_lsn: Lsn(4096),
        base: None,
        floor_lsn: Lsn(81920),
        commit_lsn: Lsn(77824),
        in_flight_bytes_max: 1 << 20,
        name: NodeName::new("r1").unwrap(),
        history: vec![(Term(5), Lsn(0)), (Term(7), Lsn(8192))],
        slots: vec![slot("r1", 77824, None), slot("r2", 4096, Some(SlotLoss::Idle))],
        settings: None,
    }
}

/// A file with two copies: the older one first.
fn file() -> (Vec<u8>, [OwnedSuperblock; 2]) {
    let older = OwnedSuperblock { generation: 6, ..superblock() };
    let newer = OwnedSuperblock { generation: 7, floor_lsn: Lsn(90112), ..superblock() };
    let mut bytes = vec![0; FILE];
    older.encode(&mut bytes[..COPY]);
    newer.encode(&mut bytes[COPY..]);
    (bytes, [older, newer])
}

#[test]
fn every_flipped_bit_of_a_superblock_leaves_the_other_copys_word_and_no_third() {
    let (mut bytes, copies) = file();
    let path = Path::new("superblock");
    assert_eq!(newest(path, &bytes).unwrap(), copies[1]);
    let mut flips = 0;
    // Every bit of what is in use, and every seventh of the rest.
    let in_use = |bit: usize| bit / 8 % COPY < 512 || bit / 8 % COPY / 256 == SLOTS_AT / 256;
    for bit in (0..FILE * 8).filter(|bit| in_use(*bit) || bit % 7 == 0) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = bit / 8 / COPY;
        assert_eq!(newest(path, &bytes).unwrap(), copies[1 - hit], "bit {bit}");
        assert!(super::copies(&bytes)[hit].is_err(), "bit {bit}");
        flips += 1;
        if bit % 37 == 0 {
            // And one in the other copy: nothing is left to go by.
            let other = (bit + FILE * 4) % (FILE * 8);
            bytes[other / 8] ^= 1 << (other % 8);
            assert!(matches!(newest(path, &bytes), Err(OpenError::Superblock { .. })), "bits {bit} and {other}");
            bytes[other / 8] ^= 1 << (other % 8);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    println!("{flips} bits of a superblock's file were flipped and found");
}

#[test]
fn a_promise_survives_the_loss_of_either_copy() {
    let dir = tempfile::tempdir().unwrap();
    let mut now = superblock();
    let mut made = SuperblockFile::open(dir.path(), &now).unwrap();
    let mut promised = Vec::new();
    // Another primary's term, an own reign, and what is no promise in between.
    for (term, own_term, floor) in [(7, 5, 81920), (8, 5, 81920), (8, 5, 90112), (9, 9, 90112), (9, 9, 98304)] {
        (now.term, now.own_term, now.floor_lsn) = (Term(term), Term(own_term), Lsn(floor));
        made.write(&mut now).unwrap();
        let bytes = fs::read(path_in(dir.path())).unwrap();
        assert_eq!(newest(dir.path(), &bytes).unwrap(), now);
        for lost in 0..2 {
            let mut bytes = bytes.clone();
            bytes[lost * COPY + 100] ^= 1;
            let left = newest(dir.path(), &bytes).unwrap();
            promised.push((left.term, left.own_term));
            assert_eq!((left.term, left.own_term), (now.term, now.own_term), "without copy {lost}");
        }
    }
    assert_eq!(promised.len(), 10);
}

/// A full disk is waited for, and what could not be written is written again: in the copy that the failed write may
/// have torn, not over the only one that is whole.
#[cfg(feature = "sim")]
#[test]
fn a_write_that_has_failed_is_tried_again_in_the_same_copy() {
    use crate::rt::inject::{Calls, Failure, Watch, With};
    let dir = tempfile::tempdir().unwrap();
    let mut now = superblock();
    SuperblockFile::open(dir.path(), &now).unwrap().write(&mut now).unwrap();
    for at in [0, 1] {
        let with = With::Error(libc::ENOSPC);
        let watch = Watch::on(dir.path(), Some(Failure { of: Calls::Writes, at, forever: true, with }));
        let mut file = SuperblockFile::open(dir.path(), &now).unwrap();
        file.promised = Some((now.term, now.own_term));
        for _ in 0..at {
            file.write(&mut now).unwrap();
        }
        let whole = now.clone();
        now.floor_lsn = Lsn(now.floor_lsn.0 + 4096);
        for _ in 0..3 {
            assert!(matches!(file.write(&mut now.clone()), Err(OpenError::DiskFull { .. })));
        }
        watch.mend();
        file.write(&mut now).unwrap();
        let bytes = fs::read(path_in(dir.path())).unwrap();
        let mut generations: Vec<u64> = copies(&bytes).into_iter().map(|c| c.unwrap().generation).collect();
        generations.sort_unstable();
        assert_eq!(generations, [whole.generation, whole.generation + 1], "the newest whole one was left alone");
        assert_eq!(read(dir.path()).unwrap().unwrap(), now);
    }
}
