//! An embedder's state in a backup: written by a primary that runs, installed where a replica is to be, and
//! followed by the log. What is not whole is refused by name, and nothing is installed of it.

use crate::processes;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use crate::cluster::{self, ONE, Place, of, of_replica, on_disk, records, until, until_same};
use crate::store::{State, Store, Wrong};
use towline::backup::manifest::{Manifest, hex};
use towline::backup::{self, BackupError, ManifestError, StateError};
use towline::wire::Chain;
use towline::wire::frame::{self, FrameKind};
use towline::wire::message::{SnapshotBegin, SnapshotId, SnapshotPoint};
use towline::wire::superblock::Base;
use towline::{
    Lsn, Primary, PrimaryConfig, Produced, Retain, RetainMax, Seq, ShardId, Snapshot, SnapshotError, SnapshotInfo,
    Stage, offline,
};

const SEGMENT: u64 = 64 << 10;
const MAX: u64 = 1 << 30;

/// A primary that keeps two segments, with a store, and commits that wait for nobody.
fn trimming(place: &Place, folder: &str, store: &Store) -> PrimaryConfig {
    let mut config = place.primary(folder, &[]);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.node.snapshot = store.snapshots();
    config.retain_max = RetainMax::Unlimited;
    config
}

/// A primary that has let go of the beginning of its log, its state, and a slot for `r1`.
fn trimmed(place: &Place) -> (Primary, Store) {
    let store = Store::default();
    let primary = Primary::open(trimming(place, "p", &store)).unwrap();
    store.trim_above(&primary, Lsn::ZERO);
    primary.create_slot("r1", false).unwrap();
    (primary, store)
}

/// A whole backup of one, and a store that is to have it.
fn exported(place: &Place) -> (PathBuf, Store) {
    let (primary, store) = trimmed(place);
    let b = place.path("b");
    backup::export(&primary, &store, &b, MAX).unwrap();
    primary.stop();
    (b, Store::default())
}

#[test]
fn a_state_that_was_exported_is_installed_and_the_log_follows_from_there() {
    let place = Place::new();
    let (primary, store) = trimmed(&place);
    let (b, r1) = (place.path("b"), place.path("r1"));
    let told = backup::export(&primary, &store, &b, MAX).unwrap();
    let then = store.state();
    assert_eq!((told.len(), told[0].at, told[0].next_seq), (1, then.at, Seq(then.records.len() as u64)));
    // The slot that was made before it keeps what comes.
    store.write_bytes(&primary, 6 * SEGMENT);

    let copy = Store::default();
    assert_eq!(backup::restore(&b, &r1, "r1", &copy, MAX).unwrap(), told);
    assert_eq!(copy.state(), then);
    assert_eq!(offline::identity(&r1).unwrap().unwrap().name, "r1");
    let report = offline::verify(&r1).unwrap();
    assert!(report.is_whole());
    assert_eq!((report.shards[0].oldest, report.shards[0].end), (then.at, then.at));

    let replica = copy.open(place.replica("r1"));
    until_same(&primary, &replica);
    assert_eq!(copy.state(), store.state());
    assert_eq!(of_replica(&replica).oldest_lsn, then.at);
    assert_eq!((copy.lock().installed, of(&primary).telemetry.counters.snapshots_made), (1, 0), "no second one");
    replica.stop();
    let replica = copy.open(place.replica("r1"));
    store.write(&primary.handle(), &records(20, 0));
    until_same(&primary, &replica);
    assert_eq!(copy.state(), store.state());
    until("nothing is left of the producer", || store.lock().producers_alive == 0);
}

#[test]
fn where_all_nodes_are_lost_a_state_is_where_a_new_primary_goes_on() {
    let place = Place::new();
    let (b, copy) = exported(&place);
    backup::restore(&b, place.path("p2"), "r1", &copy, MAX).unwrap();
    let then = copy.state();
    let mut config = trimming(&place, "p2", &copy);
    assert!(Primary::open(config.clone()).is_err(), "it is a replica's until it is promoted");
    config.promote = true;
    let primary = Primary::open(config).unwrap();
    // Less than is kept.
    let more = records(100, 7);
    copy.write(&primary.handle(), &more);
    assert_eq!(copy.state().records.len(), then.records.len() + more.len());
    assert_eq!(on_disk(&place.path("p2")), more);
    primary.create_slot("r1", false).unwrap();
    let other = Store::default();
    let r1 = other.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(other.state(), copy.state());
}

/// A node of two shards, of which only the first is used.
struct OneOfTwo(Store);

impl Snapshot for OneOfTwo {
    fn produce(&self, shard: ShardId) -> Result<Produced, SnapshotError> {
        if shard == ONE {
            return self.0.produce(shard);
        }
        Ok(Produced { at: Lsn::ZERO, total_bytes: None, chunks: Box::new(std::iter::empty()) })
    }

    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError> {
        self.0.stage(info)
    }
}

#[test]
fn a_shard_that_stands_at_the_beginning_has_no_state() {
    let place = Place::new();
    let store = Store::default();
    let mut config = trimming(&place, "p", &store);
    config.shards = 2;
    let primary = Primary::open(config).unwrap();
    store.write(&primary.handle(), &records(100, 0));
    let told = backup::export(&primary, &OneOfTwo(store.clone()), place.path("b"), MAX).unwrap();
    assert_eq!((told.len(), told[1].at, told[1].total_bytes), (2, Lsn::ZERO, Some(0)));
    primary.stop();
    let copy = Store::default();
    let restored = backup::restore(place.path("b"), place.path("p2"), "r1", &OneOfTwo(copy.clone()), MAX).unwrap();
    assert_eq!(restored, told);
    assert_eq!(copy.state(), store.state());
    let mut config = trimming(&place, "p2", &copy);
    (config.shards, config.promote) = (2, true);
    let primary = Primary::open(config).unwrap();
    copy.write(&primary.handle(), &records(10, 0));
    cluster::commit_all(&primary.handle(), &records(10, 0));
    let second = primary.handle().append(ShardId(1), b"one").unwrap();
    assert!(second.wait().unwrap().committed().is_some());
}

#[test]
fn a_state_that_is_not_committed_yet_is_waited_for() {
    let place = Place::new();
    let store = Store::default();
    let mut config = trimming(&place, "p", &store);
    (config.replicas, config.commit) = (vec!["r1".into()], "ack_n=1".parse().unwrap());
    let primary = Primary::open(config).unwrap();
    let ticket = primary.handle().append(ONE, b"not yet").unwrap();
    until("it is in the log", || of(&primary).durable_lsn > Lsn::ZERO);
    store.lock().state = State { records: vec![b"not yet".to_vec()], at: of(&primary).durable_lsn };
    thread::scope(|scope| {
        let exporting = scope.spawn(|| backup::export(&primary, &store, place.path("b"), MAX));
        until("it has asked", || store.lock().produced == 1);
        assert!(!place.path("b").join("manifest.json").exists());
        let copy = Store::default();
        let r1 = copy.open(place.replica("r1"));
        assert_eq!(exporting.join().unwrap().unwrap()[0].at, store.state().at);
        assert!(ticket.wait().unwrap().committed().is_some());
        r1.stop();
    });
}

#[test]
fn what_cannot_be_exported_is_said_and_leaves_no_manifest() {
    let place = Place::new();
    let (primary, store) = trimmed(&place);
    fs::create_dir(place.path("mine")).unwrap();
    fs::write(place.path("mine").join("file"), b"1").unwrap();
    let refused = backup::export(&primary, &store, place.path("mine"), MAX);
    assert!(matches!(refused, Err(BackupError::Io { .. })), "{refused:?}");
    let refused = backup::export(&primary, &store, place.path("small"), 100);
    assert!(matches!(refused, Err(BackupError::Produced { .. })), "{refused:?}");
    for (n, wrong) in Wrong::produced(Lsn(4096)).into_iter().enumerate() {
        store.fail(wrong);
        let b = place.path(&format!("b{n}"));
        let refused = backup::export(&primary, &store, &b, MAX).unwrap_err();
        let as_expected = match wrong {
            Wrong::Produce | Wrong::MakeChunk(_) => matches!(refused, BackupError::Embedder { shard: ONE, .. }),
            Wrong::At(at) => matches!(refused, BackupError::Outside { at: found, .. } if found == at),
            _ => matches!(refused, BackupError::Produced { shard: ONE, .. }),
        };
        assert!(as_expected, "{wrong:?}: {refused:?}");
        assert!(!b.join("manifest.json").exists());
        let copy = Store::default();
        let refused = backup::restore(&b, place.path("r1"), "r1", &copy, MAX);
        assert!(matches!(refused, Err(BackupError::Manifest { source: ManifestError::Unfinished, .. })), "{refused:?}");
    }
    assert_eq!(store.lock().producers_alive, 0);
    backup::export(&primary, &store, place.path("good"), MAX).unwrap();
}

fn state_file(b: &Path) -> PathBuf {
    b.join("data/shard-0000/state")
}

/// Changes the manifest, whose own CRC is right then.
fn reseal(b: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::read(b).unwrap();
    change(&mut manifest);
    manifest.write(b).unwrap();
}

/// Changes the state's file, and has the manifest fit it.
fn refit(b: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(state_file(b)).unwrap();
    change(&mut bytes);
    fs::write(state_file(b), &bytes).unwrap();
    reseal(b, |m| {
        (m.shards[0].files[1].bytes, m.shards[0].files[1].crc32c) = (bytes.len() as u64, hex(crc32c::crc32c(&bytes)));
    });
}

/// Where the frames of a state's file start.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        starts.push(at);
        at += frame::HEADER + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    }
    starts
}

fn overwrite(path: &Path, at: u64, change: impl Fn(u8) -> u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[change(byte[0])], at).unwrap();
}

type Expected = fn(&BackupError) -> bool;
type Harm = Box<dyn Fn(&Path)>;

fn cases() -> Vec<(&'static str, Harm, Expected)> {
    fn manifest(change: impl Fn(&mut Manifest) + 'static) -> Harm {
        Box::new(move |b| reseal(b, &change))
    }
    fn state(change: impl Fn(&mut Vec<u8>) + 'static) -> Harm {
        Box::new(move |b| refit(b, &change))
    }
    let wrong: Expected = |e| matches!(e, BackupError::Manifest { source: ManifestError::Wrong(_), .. });
    let damaged: Expected = |e| matches!(e, BackupError::Manifest { source: ManifestError::Damaged(_), .. });
    let violation: Expected = |e| matches!(e, BackupError::State { source: StateError::Violation(_), .. });
    let framing: Expected = |e| matches!(e, BackupError::State { source: StateError::Frame(_), .. });
    let cut: Expected = |e| matches!(e, BackupError::State { source: StateError::Cut, .. });
    let io: Expected = |e| matches!(e, BackupError::Io { .. });
    let crc: Expected = |e| matches!(e, BackupError::Crc { .. });
    let other: Expected = |e| matches!(e, BackupError::OtherLog { .. });
    vec![
        ("no manifest", Box::new(|b| fs::remove_file(b.join("manifest.json")).unwrap()), |e| {
            matches!(e, BackupError::Manifest { source: ManifestError::Unfinished, .. })
        }),
        ("a changed manifest", Box::new(|b| overwrite(&b.join("manifest.json"), 30, |c| c ^ 1)), damaged),
        ("a version to come", manifest(|m| m.version = 3), |e| {
            matches!(e, BackupError::Manifest { source: ManifestError::Version { .. }, .. })
        }),
        ("a path that leads out", manifest(|m| m.shards[0].files[1].path = "../../../r1/x".into()), wrong),
        ("an absolute path", manifest(|m| m.shards[0].files[1].path = "/etc/passwd".into()), wrong),
        ("the superblock as the state", manifest(|m| m.shards[0].files[1] = m.shards[0].files[0].clone()), wrong),
        ("another superblock's path", manifest(|m| m.shards[0].files[0].path = "shard-0000/../x".into()), wrong),
        ("a state of no size", manifest(|m| m.shards[0].files[1].bytes = 0), wrong),
        ("a state out of this world", manifest(|m| m.shards[0].files[1].bytes = u64::MAX), wrong),
        ("no state", manifest(|m| m.shards[0].files.truncate(1)), wrong),
        (
            "a file more",
            manifest(|m| {
                let more = m.shards[0].files[1].clone();
                m.shards[0].files.push(more)
            }),
            wrong,
        ),
        ("a state with a log", manifest(|m| m.shards[0].end_lsn += 4096), wrong),
        ("a log with a state", manifest(|m| m.version = 1), wrong),
        ("another size of the state", manifest(|m| m.shards[0].files[1].bytes += 1), io),
        ("another CRC of the state", manifest(|m| m.shards[0].files[1].crc32c = hex(1)), crc),
        ("no CRC at all", manifest(|m| m.shards[0].files[1].crc32c = "+1".into()), crc),
        ("another CRC of the superblock", manifest(|m| m.shards[0].files[0].crc32c = hex(1)), crc),
        ("another term", manifest(|m| m.shards[0].term += 1), other),
        ("another place", manifest(|m| (m.shards[0].oldest_lsn, m.shards[0].end_lsn) = (4096, 4096)), other),
        ("another system", manifest(|m| m.system = "00".repeat(16)), other),
        ("a missing state", Box::new(|b| fs::remove_file(state_file(b)).unwrap()), |e| {
            matches!(e, BackupError::Missing { .. })
        }),
        ("a file that nobody knows", Box::new(|b| fs::write(b.join("data/shard-0000/more"), b"1").unwrap()), |e| {
            matches!(e, BackupError::Unknown { .. })
        }),
        (
            "a link as the state",
            Box::new(|b| {
                fs::rename(state_file(b), b.with_extension("moved")).unwrap();
                symlink(b.with_extension("moved"), state_file(b)).unwrap();
            }),
            io,
        ),
        ("a shorter state", Box::new(|b| fs::write(state_file(b), b"").unwrap()), io),
        ("a state that was changed", Box::new(|b| overwrite(&state_file(b), 200, |c| c ^ 1)), framing),
        ("a state that is cut in a frame", state(|s| s.truncate(s.len() - 1)), cut),
        ("a state without an end", state(|s| s.truncate(*frames(s).last().unwrap())), cut),
        ("a state without a beginning", state(|s| drop(s.drain(..frames(s)[1]))), violation),
        ("two beginnings", state(|s| s.splice(0..0, s[..frames(s)[1]].to_vec()).for_each(drop)), violation),
        ("a chunk left out", state(|s| drop(s.drain(frames(s)[2]..frames(s)[3]))), violation),
        (
            "a chunk twice",
            state(|s| {
                let twice = s[frames(s)[2]..frames(s)[3]].to_vec();
                s.splice(frames(s)[2]..frames(s)[2], twice).for_each(drop);
            }),
            violation,
        ),
        ("something behind the end", state(|s| s.extend_from_within(frames(s)[1]..frames(s)[2])), |e| {
            matches!(e, BackupError::State { source: StateError::More, .. })
        }),
        (
            "a frame of another kind",
            state(|s| s.splice(0..0, frame::header(FrameKind::Goodbye, 0, 0, &[])).for_each(drop)),
            |e| matches!(e, BackupError::State { offset: 0, source: StateError::Kind(FrameKind::Goodbye), .. }),
        ),
        ("a length beyond every cap", state(|s| s[..4].copy_from_slice(&(1u32 << 30).to_le_bytes())), framing),
        (
            "a state of another place",
            state(|s| {
                let base = Base { chain: Chain(1), seq: Seq(2) };
                let point = SnapshotPoint { id: SnapshotId([1; 16]), at: Lsn(4096), base };
                let begin = SnapshotBegin { point, total: None, offset: 0 }.to_bytes();
                let begin = [&frame::header(FrameKind::SnapshotBegin, 0, 0, &begin)[..], &begin].concat();
                s[..begin.len()].copy_from_slice(&begin);
            }),
            other,
        ),
    ]
}

#[test]
fn what_was_changed_is_refused_by_name_and_nothing_is_installed() {
    let place = Place::new();
    let (whole, copy) = exported(&place);
    let (b, r1) = (place.path("harmed"), place.path("r1"));
    let refuse = |what: &str, max: u64, expected: Expected| {
        let refused = backup::restore(&b, &r1, "r1", &copy, max).expect_err(what);
        assert!(expected(&refused), "{what}: {refused:?}");
        assert!(!r1.exists() && !r1.with_extension("restoring").exists(), "{what}");
        assert_eq!((copy.state(), copy.lock().stages_alive), (State::default(), 0), "{what}");
    };
    for (what, harm, expected) in cases() {
        cluster::copy(&whole, &b);
        harm(&b);
        refuse(what, MAX, expected);
        fs::remove_dir_all(&b).unwrap();
    }
    cluster::copy(&whole, &b);
    refuse("a state that is larger than it may be", 1000, |e| {
        matches!(e, BackupError::State { source: StateError::Violation(_), .. })
    });
    copy.fail(Wrong::StageChunk(4));
    refuse("an embedder that cannot stage it", MAX, |e| matches!(e, BackupError::Embedder { doing: "staging", .. }));
    // Bytes of the first frames, of each field, and some of the others.
    let path = state_file(&b);
    let bytes = fs::metadata(&path).unwrap().len();
    for at in (0..300).step_by(7).chain((300..bytes).step_by(19_997)) {
        overwrite(&path, at, |c| c ^ 0x10);
        refuse(&format!("byte {at}"), MAX, |e| matches!(e, BackupError::State { source: StateError::Frame(_), .. }));
        overwrite(&path, at, |c| c ^ 0x10);
    }
    backup::restore(&b, &r1, "r1", &copy, MAX).unwrap();
}

#[test]
fn a_state_is_only_installed_where_nothing_is() {
    let place = Place::new();
    let (b, copy) = exported(&place);
    let r1 = place.path("r1");
    fs::create_dir(&r1).unwrap();
    fs::write(r1.join("mine"), b"1").unwrap();
    let refused = backup::restore(&b, &r1, "r1", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::NotEmpty(_))), "{refused:?}");
    fs::remove_file(r1.join("mine")).unwrap();
    fs::create_dir(r1.with_extension("restoring")).unwrap();
    let refused = backup::restore(&b, &r1, "r1", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::Unfinished(_))), "{refused:?}");
    fs::remove_dir(r1.with_extension("restoring")).unwrap();
    let refused = backup::restore(&b, &r1, "No Name", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::Name(_))), "{refused:?}");
    let refused = backup::restore(&b, "/", "r1", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::NoFolder(_))), "{refused:?}");
    assert_eq!(copy.lock().staged, 0);
    backup::restore(&b, &r1, "r1", &copy, MAX).unwrap();
}

#[test]
fn the_command_says_whose_it_is() {
    let place = Place::new();
    let (b, copy) = exported(&place);
    let r1 = place.path("r1");
    let args = ["restore", b.to_str().unwrap(), r1.to_str().unwrap()];
    processes::run(&args, b"").expect(1, "it holds the state of an embedder");
    assert!(!r1.exists());
    reseal(&b, |m| {
        (m.version, m.shards[0].oldest_lsn, m.shards[0].end_lsn) = (1, 0, 0);
        m.shards[0].files.truncate(1);
    });
    fs::remove_file(state_file(&b)).unwrap();
    let refused = backup::restore(&b, &r1, "r1", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::HoldsLog(_))), "{refused:?}");
}

#[test]
fn a_process_that_dies_when_the_state_is_installed_comes_to_both() {
    let place = Place::new();
    let (primary, store) = trimmed(&place);
    let b = place.path("b");
    backup::export(&primary, &store, &b, MAX).unwrap();
    let copy = Store::default();
    copy.fail(Wrong::DieInstalled);
    let refused = backup::restore(&b, place.path("r1"), "r1", &copy, MAX);
    assert!(matches!(refused, Err(BackupError::Embedder { doing: "installing", .. })), "{refused:?}");
    assert_eq!(copy.state(), store.state());
    store.write(&primary.handle(), &records(100, 0));
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
}
