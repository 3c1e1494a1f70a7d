//! A replica whose handler has state, and whose log cannot be continued, gets a snapshot of that state and
//! then the log: nothing is applied twice, nothing is missed, whatever breaks on the way.

use std::fs;
use std::time::Instant;

use crate::cluster::{ONE, Place, of, of_replica, records, until, until_same};
use crate::store::{Store, Wrong};
use towline::{
    Lsn, Primary, PrimaryConfig, Reads, Replica, ReplicaConfig, Retain, RetainMax, SlotState, StaleReads, limits,
    offline,
};

const SEGMENT: u64 = 64 << 10;

/// A primary that keeps two segments, with a store, and commits that wait for nobody.
fn trimming(place: &Place, store: &Store, replicas: &[&str]) -> PrimaryConfig {
    let mut config = place.primary("p", replicas);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.node.snapshot = store.snapshots();
    config.retain_max = RetainMax::Unlimited;
    config.commit = "local".parse().unwrap();
    config
}

/// A primary that has let go of the beginning of its log, with slots that hold nothing of it, and its state.
fn trimmed(place: &Place, names: &[&str]) -> (Primary, Store) {
    let store = Store::default();
    let primary = Primary::open(trimming(place, &store, &[])).unwrap();
    store.trim_above(&primary, Lsn::ZERO);
    names.iter().for_each(|name| primary.create_slot(name, false).unwrap());
    (primary, store)
}

/// The last that a replica does when it has installed a snapshot is to say that it follows again.
fn until_following(replica: &Replica) {
    until("it follows", || replica.reads(ONE) == Ok(Reads::Following));
}

#[test]
fn a_replica_with_state_gets_the_snapshot_and_then_the_log_each_record_once() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1"]);
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    store.write(&primary.handle(), &records(300, 0));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    until_following(&r1);
    let shard = of_replica(&r1);
    assert!(shard.oldest_lsn > Lsn::ZERO && shard.snapshot.is_none(), "{shard:?}");
    assert_eq!((shard.telemetry.counters.snapshots_installed, copy.lock().installed), (1, 1));
    assert_eq!(of(&primary).telemetry.counters.snapshots_made, 1);
    until("the producer has ended", || store.lock().producers_alive == 0);
    // It is a replica like any other: it restarts, and goes on.
    r1.stop();
    assert!(offline::verify(place.path("r1")).unwrap().is_whole());
    store.write(&primary.handle(), &records(50, 0));
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    assert_eq!(copy.lock().installed, 1, "no second one");
    r1.stop();
    primary.stop();
}

#[test]
fn what_is_appended_while_the_snapshot_is_on_its_way_comes_behind_it() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1"]);
    store.lock().chunks_allowed = Some(3);
    let copy = Store::default();
    let mut config = place.replica("r1");
    config.stale_reads = StaleReads::Refuse;
    let r1 = copy.open(config);
    until("it is under way", || of_replica(&r1).snapshot.is_some_and(|s| s.done_bytes > 0));
    let slot = of(&primary).slots.remove(0);
    assert_eq!(slot.state, SlotState::Snapshot);
    let shown = slot.snapshot.unwrap();
    assert!(shown.total_bytes.is_some_and(|total| shown.done_bytes < total), "{shown:?}");
    assert!(primary.status_json().contains("\"state\":\"snapshot\""));
    assert!(r1.reads(ONE).is_err(), "what is here is stale");
    // Far more than is kept otherwise: the slot holds it.
    let at = store.state().at;
    store.write_bytes(&primary, 6 * SEGMENT);
    assert!(of(&primary).oldest_lsn <= at, "from where the state stands");
    store.lock().chunks_allowed = None;
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    until_following(&r1);
    until("the log is let go of again", || of(&primary).oldest_lsn > at);
}

#[test]
fn an_embedder_that_takes_its_time_is_waited_for_on_the_same_link() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1"]);
    let produced = store.hold_produce();
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    until("it is asked", || store.lock().asked == 1);
    let began = Instant::now();
    until("longer than a silent peer is borne", || began.elapsed() > 4 * limits::HEARTBEAT);
    drop(produced);
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    until("one link, then that of the log", || of(&primary).slots[0].connects == 2);
    assert_eq!(store.lock().asked, 1);
}

#[test]
fn a_log_that_is_too_old_is_given_up_for_a_snapshot_only_if_that_is_wanted() {
    let place = Place::new();
    let store = Store::default();
    let mut config = trimming(&place, &store, &["r1"]);
    config.retain_max = RetainMax::Bytes(6 * SEGMENT);
    let primary = Primary::open(config).unwrap();
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    store.write(&primary.handle(), &records(100, 0));
    until_same(&primary, &r1);
    let end = of_replica(&r1).durable_lsn;
    r1.stop();
    store.trim_above(&primary, end);
    until("its slot is lost", || {
        store.write(&primary.handle(), &records(200, 0));
        of(&primary).slots[0].lost.is_some()
    });
    primary.create_slot("r1", false).unwrap();
    let r1 = copy.open(place.replica("r1"));
    until("it says what to do", || of_replica(&r1).link.contains("--rebuild"));
    assert_eq!((of_replica(&r1).durable_lsn, copy.lock().staged), (end, 0), "nothing was touched");
    r1.stop();
    let rebuilding = || -> ReplicaConfig {
        let mut config = place.replica("r1");
        config.rebuild = true;
        config
    };
    let r1 = copy.open(rebuilding());
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    assert!(of_replica(&r1).oldest_lsn > end);
    r1.stop();
    assert!(offline::verify(place.path("r1")).unwrap().is_whole());
}

/// A replica that has died between a snapshot's state and its log: its primary, that one's store, and its own.
fn dies_between(place: &Place) -> (Primary, Store, Store) {
    let (primary, store) = trimmed(place, &["r1"]);
    let copy = Store::default();
    copy.fail(Wrong::DieInstalled);
    let r1 = copy.open(place.replica("r1"));
    until("it is installed, and the shard stops", || of_replica(&r1).stopped.is_some());
    assert_eq!(copy.state(), store.state(), "the new state");
    assert_eq!(of_replica(&r1).durable_lsn, Lsn::ZERO, "and the old log");
    r1.stop();
    (primary, store, copy)
}

#[test]
fn a_node_that_dies_between_the_state_and_the_log_comes_to_both() {
    let place = Place::new();
    let (primary, store, copy) = dies_between(&place);
    let stands = copy.state().at;
    let note = place.path("r1").join("shard-0000/superblock.installing");
    let bytes = fs::read(&note).unwrap();
    store.write(&primary.handle(), &records(100, 0));
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    let now = of_replica(&r1);
    assert_eq!((now.oldest_lsn, copy.lock().installed), (stands, 1), "the log begins where its state stands");
    assert!(!note.exists());
    r1.stop();
    // One that is not so, and one that nobody can read, are removed.
    for bytes in [&bytes[..], b"torn"] {
        fs::write(&note, bytes).unwrap();
        store.write(&primary.handle(), &records(20, 0));
        let r1 = copy.open(place.replica("r1"));
        until_same(&primary, &r1);
        assert_eq!((copy.state(), copy.lock().installed), (store.state(), 1));
        r1.stop();
        assert!(!note.exists());
    }
}

/// As of a build that made no note.
#[test]
fn a_state_in_front_of_its_log_of_which_there_is_no_note_is_replaced_by_the_next_snapshot() {
    let place = Place::new();
    let (primary, store, copy) = dies_between(&place);
    fs::remove_file(place.path("r1").join("shard-0000/superblock.installing")).unwrap();
    store.write(&primary.handle(), &records(100, 0));
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!((copy.state(), copy.lock().installed), (store.state(), 2));
}

#[test]
fn a_handler_that_stands_further_on_than_its_log_goes_on_where_it_stands() {
    let place = Place::new();
    let store = Store::default();
    // All of the log is there.
    let mut config = trimming(&place, &store, &["r1"]);
    config.node.retain = Retain::All;
    let primary = Primary::open(config).unwrap();
    store.write(&primary.handle(), &records(200, 0));
    let copy = Store::default();
    copy.lock().state = store.state();
    store.write(&primary.handle(), &records(200, 0));
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
    assert_eq!((of_replica(&r1).oldest_lsn, copy.lock().installed), (Lsn::ZERO, 0), "no snapshot was needed");
    // And where it stands at the very end of it.
    r1.stop();
    fs::remove_dir_all(place.path("r1")).unwrap();
    let r1 = copy.open(place.replica("r1"));
    until_same(&primary, &r1);
    store.write(&primary.handle(), &records(20, 0));
    until_same(&primary, &r1);
    assert_eq!(copy.state(), store.state());
}

#[test]
fn without_snapshots_on_either_side_a_handler_with_state_is_refused() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1"]);
    primary.stop();
    let mut config = trimming(&place, &store, &[]);
    config.node.snapshot = None;
    let primary = Primary::open(config).unwrap();
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    until("it is refused", || of_replica(&r1).link.contains("makes no snapshots"));
    r1.stop();
    primary.stop();
}

#[test]
fn what_the_embedder_cannot_do_is_said_and_tried_again() {
    for wrong in Wrong::produced(Lsn::ZERO) {
        let place = Place::new();
        let (primary, store) = trimmed(&place, &["r1"]);
        store.fail(wrong);
        let copy = Store::default();
        let r1 = copy.open(place.replica("r1"));
        until_same(&primary, &r1);
        assert_eq!(copy.state(), store.state());
        assert_eq!(store.lock().wrong, None, "{wrong:?} came");
        until("nothing is left of it", || store.lock().producers_alive == 0 && copy.lock().stages_alive == 0);
    }
}

#[test]
fn what_cannot_be_staged_is_given_up_and_staged_anew() {
    for chunk in [0, 4] {
        let place = Place::new();
        let (primary, store) = trimmed(&place, &["r1"]);
        let copy = Store::default();
        copy.fail(Wrong::StageChunk(chunk));
        let r1 = copy.open(place.replica("r1"));
        until_same(&primary, &r1);
        assert_eq!(copy.state(), store.state());
        let store = copy.lock();
        assert_eq!((store.staged, store.stages_alive), (2, 0));
    }
}

#[test]
fn a_handler_that_does_not_stand_where_its_snapshot_does_is_not_believed() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1"]);
    store.lock().chunks_allowed = Some(2);
    let copy = Store::default();
    let r1 = copy.open(place.replica("r1"));
    until("it is under way", || of_replica(&r1).snapshot.is_some());
    copy.fail(Wrong::StandAt(Lsn(4096)));
    store.lock().chunks_allowed = None;
    until("the shard stops", || of_replica(&r1).stopped.is_some_and(|why| why.contains("stands at LSN 4096")));
    drop(primary);
}

#[test]
fn one_snapshot_is_made_at_a_time_and_the_next_replica_gets_its_own() {
    let place = Place::new();
    let (primary, store) = trimmed(&place, &["r1", "r2"]);
    store.lock().chunks_allowed = Some(3);
    let (one, two) = (Store::default(), Store::default());
    let r1 = one.open(place.replica("r1"));
    until("the first is under way", || of_replica(&r1).snapshot.is_some());
    let r2 = two.open(place.replica("r2"));
    until("the second waits", || of_replica(&r2).link.contains("a snapshot is made for another replica"));
    store.lock().chunks_allowed = None;
    until_same(&primary, &r1);
    until_same(&primary, &r2);
    assert_eq!(one.state(), store.state());
    assert_eq!(two.state(), store.state());
    assert_eq!(store.lock().produced, 2);
}
