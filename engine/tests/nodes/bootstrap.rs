//! Replicas without a usable log: they begin at the oldest batch that the primary keeps, by themselves
//! if they are empty, when they are told to if not, and never where a handler would miss records.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{ONE, Place, commit_all, of, of_replica, on_disk, records, until, until_let_go, until_same};
use towline::{ApplyError, ApplyFn, Lsn, Primary, PrimaryConfig, Replica, ReplicaConfig, Retain, RetainMax, offline};

const SEGMENT: u64 = 64 << 10;

/// A primary that keeps two segments, and six for slots; commits want one replica.
fn trimming(place: &Place, replicas: &[&str]) -> PrimaryConfig {
    let mut config = place.primary("p", replicas);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.retain_max = RetainMax::Bytes(6 * SEGMENT);
    config.commit = "local".parse().unwrap();
    config
}

/// Appends until the primary keeps nothing below `lsn`.
fn trim_above(primary: &Primary, lsn: Lsn) {
    let handle = primary.handle();
    until("the log is trimmed", || {
        commit_all(&handle, &records(200, 0));
        of(primary).oldest_lsn > lsn
    });
}

/// Makes the slot anew that is lost, once the primary has let go of what it held: a slot of a log that begins
/// there may need nearly as much again, and would be lost again before its replica has caught up.
fn make_slot_anew(primary: &Primary) {
    until("its slot is lost", || of(primary).slots[0].lost.is_some());
    until_let_go(primary, 3 * SEGMENT);
    primary.create_slot("r1", false).unwrap();
}

fn rebuilding(place: &Place, name: &str) -> ReplicaConfig {
    let mut config = place.replica(name);
    config.rebuild = true;
    config
}

/// A replica of a slot that was lost, stopped, while the primary went on; where its log ends.
fn left_behind(place: &Place) -> (Primary, Lsn) {
    let primary = Primary::open(trimming(place, &["r1"])).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    commit_all(&primary.handle(), &records(100, 0));
    until_same(&primary, &r1);
    let end = of_replica(&r1).durable_lsn;
    r1.stop();
    trim_above(&primary, end);
    make_slot_anew(&primary);
    (primary, end)
}

/// The primary begins another reign, and forgets the one before: it vouches for no log of that.
fn reign_anew(place: &Place, primary: Primary) -> Primary {
    primary.stop();
    let primary = Primary::open(trimming(place, &["r1"])).unwrap();
    let began = of(&primary).appended_lsn;
    trim_above(&primary, Lsn(began.0 + SEGMENT));
    if of(&primary).slots[0].lost.is_some() {
        make_slot_anew(&primary);
    }
    primary
}

fn shard(place: &Place, node: &str, name: &str) -> PathBuf {
    place.path(node).join("shard-0000").join(name)
}

fn set_aside(place: &Place, node: &str) -> usize {
    let names = fs::read_dir(shard(place, node, "wal")).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|n| n.to_string_lossy().ends_with(".replaced")).count()
}

#[test]
fn an_empty_replica_of_a_primary_that_has_let_go_of_its_log_begins_at_the_oldest_and_joins() {
    let place = Place::new();
    let primary = Primary::open(trimming(&place, &["r1"])).unwrap();
    trim_above(&primary, Lsn(SEGMENT));
    // Its configured slot was there from the start, and nobody came: it is lost by now, or nearly.
    until("its slot is lost", || {
        commit_all(&primary.handle(), &records(200, 0));
        of(&primary).slots[0].lost.is_some()
    });
    make_slot_anew(&primary);
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until_same(&primary, &r1);
    commit_all(&primary.handle(), &records(100, 0));
    until_same(&primary, &r1);
    let began = of_replica(&r1).oldest_lsn;
    assert!(began > Lsn::ZERO && began <= of(&primary).oldest_lsn);
    until("it has caught up", || of_replica(&r1).catch_up.is_none());
    // It is a replica like any other: it restarts, and goes on.
    r1.stop();
    assert!(offline::verify(place.path("r1")).unwrap().is_whole());
    commit_all(&primary.handle(), &records(50, 0));
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until_same(&primary, &r1);
    r1.stop();
    primary.stop();
    let (p, r) = (on_disk(&place.path("p")), on_disk(&place.path("r1")));
    assert!(p.ends_with(&r) || r.ends_with(&p), "{} and {} records", p.len(), r.len());
    // It can be promoted.
    let mut config = trimming(&place, &[]);
    config.node.data = place.path("r1");
    config.promote = true;
    let promoted = Primary::open(config).unwrap();
    commit_all(&promoted.handle(), &records(10, 0));
}

#[test]
fn a_log_that_is_too_old_is_given_up_only_if_that_is_wanted_and_set_aside_until_the_new_one_is_there() {
    let place = Place::new();
    let (primary, end) = left_behind(&place);
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until("it says what to do", || {
        let link = of_replica(&r1).link;
        link.contains("the oldest that the primary keeps") && link.contains("--rebuild")
    });
    assert_eq!(of_replica(&r1).durable_lsn, end, "nothing was touched");
    r1.stop();
    let r1 = Replica::open(rebuilding(&place, "r1")).unwrap();
    until_same(&primary, &r1);
    commit_all(&primary.handle(), &records(100, 0));
    until_same(&primary, &r1);
    assert!(of_replica(&r1).oldest_lsn > end);
    // The primary has not been started since: its log has all that the old one had.
    until("the old log is removed", || {
        set_aside(&place, "r1") == 0 && !shard(&place, "r1", "superblock.replaced-known").exists()
    });
    r1.stop();
    assert!(offline::verify(place.path("r1")).unwrap().is_whole());
}

#[test]
fn a_log_that_the_primary_cannot_vouch_for_stays_beside_the_new_one_and_can_be_taken_back() {
    let place = Place::new();
    let (primary, end) = left_behind(&place);
    let primary = reign_anew(&place, primary);
    let was = on_disk(&place.path("r1"));
    let r1 = Replica::open(rebuilding(&place, "r1")).unwrap();
    until_same(&primary, &r1);
    commit_all(&primary.handle(), &records(100, 0));
    until_same(&primary, &r1);
    until("it has caught up", || of_replica(&r1).catch_up.is_none());
    r1.stop();
    assert!(set_aside(&place, "r1") > 0);
    assert!(offline::verify(place.path("r1")).unwrap().is_whole());
    // By hand, as the document says.
    let wal = shard(&place, "r1", "wal");
    for entry in fs::read_dir(&wal).unwrap() {
        let path = entry.unwrap().path();
        match path.extension().is_some_and(|e| e == "replaced") {
            true => fs::rename(&path, path.with_extension("wal")).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
    }
    fs::rename(shard(&place, "r1", "superblock.replaced"), shard(&place, "r1", "superblock")).unwrap();
    let report = offline::verify(place.path("r1")).unwrap();
    assert!(report.is_whole() && report.shards[0].end == end);
    assert_eq!(on_disk(&place.path("r1")), was);
}

#[test]
fn a_log_that_may_go_does_not_keep_one_that_may_not_from_being_set_aside() {
    let place = Place::new();
    let (primary, _) = left_behind(&place);
    // As if the replica had been stopped before it had removed one that the primary had all of.
    fs::copy(shard(&place, "r1", "superblock"), shard(&place, "r1", "superblock.replaced-known")).unwrap();
    fs::write(shard(&place, "r1", "wal/00000000000f0000.replaced"), b"old").unwrap();
    let primary = reign_anew(&place, primary);
    let r1 = Replica::open(rebuilding(&place, "r1")).unwrap();
    until_same(&primary, &r1);
    until("it has caught up", || of_replica(&r1).catch_up.is_none());
    r1.stop();
    assert!(set_aside(&place, "r1") > 0 && !shard(&place, "r1", "wal/00000000000f0000.replaced").exists());
    assert!(shard(&place, "r1", "superblock.replaced").exists());
    assert!(!shard(&place, "r1", "superblock.replaced-known").exists());
}

#[test]
fn a_handler_with_state_is_refused_rather_than_left_without_records() {
    let place = Place::new();
    let (primary, end) = left_behind(&place);
    let open = |name| {
        Replica::open_with(rebuilding(&place, name), |_| ApplyFn(|_, _, _: &[u8]| Ok::<(), ApplyError>(()))).unwrap()
    };
    let r1 = open("r1");
    until("it is refused", || of_replica(&r1).link.contains("its handler has state"));
    assert_eq!(of_replica(&r1).durable_lsn, end);
    r1.stop();
    fs::remove_dir_all(place.path("r1")).unwrap();
    let r1 = open("r1");
    until("it is refused", || of_replica(&r1).link.contains("its handler has state"));
    assert_eq!(of_replica(&r1).durable_lsn, Lsn::ZERO);
    assert!(primary.slot("r1").iter().all(|(shard, _)| *shard == ONE));
}
