//! What was acknowledged is there after a stop and after a crash at any instant; a torn tail is
//! cut, and damage is named and never skipped.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cluster::{
    self, ONE, Order, Place, commit, commit_all, copy, crash, locate, of, on_disk, overwrite, records,
};
use towline::{Lsn, OpenError, Outcome, Primary};

const SEGMENT: u64 = 64 << 10;

#[test]
fn everything_acknowledged_is_there_after_a_stop_and_the_term_goes_up() {
    let place = Place::new();
    let mut all = Vec::new();
    for reign in 1..=4u64 {
        let primary = Primary::open(place.primary("p", &[])).unwrap();
        let s = of(&primary);
        assert_eq!((s.term.0, s.tail_seq.0), (reign, all.len() as u64));
        assert_eq!((s.commit_lsn, primary.committed(ONE)), (s.appended_lsn, s.appended_lsn));
        let some = records(150, all.len());
        commit_all(&primary.handle(), &some);
        all.extend(some);
        if reign % 2 == 0 {
            primary.stop()
        } else {
            drop(primary)
        }
        assert!(on_disk(&place.path("p")) == all);
    }
}

#[test]
fn a_crash_at_any_instant_loses_nothing_that_was_acknowledged() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let done = AtomicBool::new(false);
    let allowed = AtomicUsize::new(0);
    let acknowledged = std::sync::Mutex::new(Vec::new());
    let mut crashes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let handle = primary.handle();
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                // A log that grows without end cannot be copied in one instant on a slow disk.
                if n >= allowed.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                    continue;
                }
                let some = records(20, n);
                n += 20;
                commit_all(&handle, &some);
                acknowledged.lock().unwrap().extend(some);
            }
        });
        for n in 0..12 {
            let before = acknowledged.lock().unwrap().len();
            allowed.store(before + 1000, Ordering::Relaxed);
            cluster::until("the load goes on", || acknowledged.lock().unwrap().len() > before + 40);
            let folder = place.path(&format!("crash-{n}"));
            cluster::until("a copy of one instant", || {
                let known = acknowledged.lock().unwrap().len();
                let copied = crash(Order::NewestFirst, &place.path("p"), &folder);
                if copied {
                    crashes.push((folder.clone(), known));
                }
                copied
            });
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(primary);
    let all = acknowledged.into_inner().unwrap();
    for (folder, known) in crashes {
        let mut config = place.primary("p", &[]);
        config.node.data = folder.clone();
        let again = Primary::open(config).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(of(&again).term.0, 2);
        commit(&again.handle(), b"goes on");
        again.stop();
        let mut found = on_disk(&folder);
        assert_eq!(found.pop().as_deref(), Some(&b"goes on"[..]));
        assert!(found.len() >= known, "{} of {known} acknowledged records are there", found.len());
        // What was appended later than the copy began may be there too: a prefix of all in any case.
        assert!(found.iter().zip(&all).all(|(a, b)| a == b));
    }
}

/// A primary's folder with some records, and where its batches start.
fn written(place: &Place) -> (Vec<Vec<u8>>, Vec<Lsn>) {
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let superblock = fs::read(place.path("p/shard-0000/superblock")).unwrap();
    let all = records(60, 0);
    for record in &all {
        commit(&primary.handle(), record);
    }
    // With the superblock of a moment ago: its floor lies below all of this, however long it took.
    copy(&place.path("p"), &place.path("crash"));
    fs::write(place.path("crash/shard-0000/superblock"), superblock).unwrap();
    primary.stop();
    let mut starts = Vec::new();
    towline::offline::read_log(place.path("crash"), ONE, None, |batch| {
        starts.push(batch.header().lsn());
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    (all, starts)
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on_there() {
    let place = Place::new();
    let (all, starts) = written(&place);
    let last = *starts.last().unwrap();
    let (file, offset) = locate(&place.path("crash"), last, SEGMENT);
    overwrite(&file, offset + 20, &[0xff; 100]);
    let mut config = place.primary("p", &[]);
    config.node.data = place.path("crash");
    for reign in 0..2 {
        let again = Primary::open(config.clone()).unwrap();
        assert_eq!(of(&again).durable_lsn.0, last.0 + reign * 4096);
        commit(&again.handle(), b"new");
        again.stop();
    }
    let mut want = all[..all.len() - 1].to_vec();
    want.extend([b"new".to_vec(), b"new".to_vec()]);
    assert!(on_disk(&place.path("crash")) == want);
}

#[test]
fn damage_in_the_middle_is_refused_with_file_and_offset() {
    let place = Place::new();
    let (all, starts) = written(&place);
    for n in [0, starts.len() / 2, starts.len() - 10] {
        let at = starts[n];
        let folder = place.path(&format!("damaged-{n}"));
        copy(&place.path("crash"), &folder);
        let (file, offset) = locate(&folder, at, SEGMENT);
        overwrite(&file, offset + 150, &[0xff; 8]);
        let mut config = place.primary("p", &[]);
        config.node.data = folder.clone();
        match Primary::open(config) {
            Err(OpenError::Damage { path, offset: found, lsn, .. }) => {
                assert_eq!((path, found, lsn), (file, offset, at));
            }
            Err(e) => panic!("{e}"),
            // Recovery reads from the floor on: below it nobody looked.
            Ok(again) => {
                assert_eq!(of(&again).tail_seq.0, all.len() as u64, "it opened without saying what is missing");
                again.stop();
                assert!(!towline::offline::verify(&folder).unwrap().is_whole(), "verify sees it all the same");
            }
        }
    }
    // The stopped node's floor is its last batch: damage there is no tear.
    let (file, offset) = locate(&place.path("p"), *starts.last().unwrap(), SEGMENT);
    overwrite(&file, offset + 150, &[0xff; 8]);
    let e = Primary::open(place.primary("p", &[])).unwrap_err();
    assert!(matches!(e, OpenError::Damage { .. }), "{e}");
    let text = e.to_string();
    assert!(text.contains(&file.display().to_string()) && text.contains(&format!("offset {offset}")), "{text}");
}

#[test]
fn recycled_bytes_are_never_read_as_live() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.node.retain = towline::Retain::Bytes(2 * SEGMENT);
    config.node.live_window_bytes = 0;
    for _ in 0..3 {
        let primary = Primary::open(config.clone()).unwrap();
        let handle = primary.handle();
        let was = of(&primary).tail_seq.0;
        commit_all(&handle, &records(1500, 0));
        cluster::until("segments are used again", || of(&primary).telemetry.counters.segments_recycled > 3);
        assert_eq!(of(&primary).tail_seq.0, was + 1500);
        copy(&place.path("p"), &place.path("crash"));
        primary.stop();
        let mut crash = config.clone();
        crash.node.data = place.path("crash");
        let again = Primary::open(crash).unwrap();
        assert_eq!(of(&again).tail_seq.0, was + 1500);
        again.stop();
        fs::remove_dir_all(place.path("crash")).unwrap();
    }
}

#[test]
fn two_nodes_never_share_a_folder() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let e = Primary::open(place.primary("p", &[])).unwrap_err();
    assert!(matches!(e, OpenError::Locked { .. }) && e.to_string().contains(&std::process::id().to_string()), "{e}");
    assert!(matches!(primary.handle().append(ONE, b"x").unwrap().wait(), Ok(Outcome::Committed { .. })));
}

#[test]
fn a_folder_that_is_not_whole_is_refused_by_name() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.shards = 2;
    let primary = Primary::open(config.clone()).unwrap();
    commit_all(&primary.handle(), &records(300, 0));
    primary.stop();
    let open = |change: &dyn Fn(&std::path::Path)| {
        let folder = place.path("broken");
        copy(&place.path("p"), &folder);
        change(&folder);
        let mut config = config.clone();
        config.node.data = folder.clone();
        let refused = Primary::open(config).map(|_| ()).unwrap_err();
        fs::remove_dir_all(folder).unwrap();
        refused
    };
    let missing = open(&|f| fs::remove_dir_all(f.join("shard-0001")).unwrap());
    assert!(matches!(missing, OpenError::MissingShard { .. }), "{missing}");
    let segment = open(&|f| fs::remove_file(f.join("shard-0000/wal/0000000000010000.wal")).unwrap());
    assert!(matches!(segment, OpenError::MissingSegment { lsn: Lsn(SEGMENT), .. }), "{segment}");
    let short = open(&|f| {
        let file = f.join("shard-0000/wal/0000000000000000.wal");
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(4096).unwrap();
    });
    assert!(matches!(short, OpenError::SegmentSize { bytes: 4096, expected: SEGMENT, .. }), "{short}");
    let superblock = open(&|f| overwrite(&f.join("shard-0000/superblock"), 0, &[0; 64 << 10]));
    assert!(matches!(superblock, OpenError::Superblock { .. }), "{superblock}");
    let swapped = open(&|f| {
        fs::rename(f.join("shard-0000"), f.join("x")).unwrap();
        fs::rename(f.join("shard-0001"), f.join("shard-0000")).unwrap();
        fs::rename(f.join("x"), f.join("shard-0001")).unwrap();
    });
    assert!(matches!(swapped, OpenError::Foreign { .. }), "{swapped}");
    let mut config = config.clone();
    config.shards = 3;
    let shards = Primary::open(config).unwrap_err();
    assert!(matches!(shards, OpenError::ShardCount { on_disk: 2, configured: 3, .. }), "{shards}");
}
