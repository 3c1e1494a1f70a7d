//! A replica that was away catches up from the primary's disk and joins the live stream, without a
//! gap, a repeat or a pause for anybody else.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{ONE, Place, commit, commit_all, of, of_replica, on_disk, records, until, until_same};
use towline::{Primary, PrimaryConfig, Replica, SlotState};

fn tiny_window(place: &Place) -> PrimaryConfig {
    let mut config = place.primary("p", &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    config.node.live_window_bytes = 0;
    config
}

#[test]
fn a_replica_that_was_away_catches_up_while_the_load_goes_on() {
    let place = Place::new();
    let config = tiny_window(&place);
    let bound = config.node.in_flight_bytes_max();
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    commit(&handle, b"both have it");
    until_same(&primary, &r2);
    r2.stop();
    let mut all = vec![b"both have it".to_vec()];
    for n in 0..20 {
        let some = records(100, n * 100);
        commit_all(&handle, &some);
        all.extend(some);
    }
    let before = of(&primary);
    assert_eq!(before.slots[1].state, SlotState::Down);
    assert!(before.slots[1].lag_bytes > 500_000, "{:?}", before.slots[1]);
    // The load goes on while it catches up, and r1 keeps acknowledging it.
    let caught_up = AtomicBool::new(false);
    let mut more = Vec::new();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut all = Vec::new();
            while !caught_up.load(Ordering::Relaxed) {
                let some = records(20, 2000 + all.len());
                commit_all(&handle, &some);
                all.extend(some);
                let held = of(&primary).memory_bytes;
                assert!(held <= bound, "{held} bytes are held for a replica that is behind");
            }
            all
        });
        let r2 = Replica::open(place.replica("r2")).unwrap();
        until("it is near the end", || of(&primary).slots[1].lag_bytes < 100_000);
        caught_up.store(true, Ordering::Relaxed);
        more = load.join().unwrap();
        until_same(&primary, &r2);
        r2.stop();
    });
    all.extend(more);
    assert!(of(&primary).telemetry.counters.catch_ups > before.telemetry.counters.catch_ups);
    until_same(&primary, &r1);
    r1.stop();
    primary.stop();
    for node in ["p", "r1", "r2"] {
        assert!(on_disk(&place.path(node)) == all, "{node} holds something else");
    }
}

#[test]
fn a_new_replica_gets_the_whole_log_from_disk() {
    let place = Place::new();
    let primary = Primary::open(tiny_window(&place)).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    let all = records(500, 0);
    commit_all(&handle, &all);
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    assert_eq!(of_replica(&r2).tail_seq.0, 500);
    r1.stop();
    r2.stop();
    primary.stop();
    assert!(on_disk(&place.path("r2")) == all);
}

#[test]
fn a_replica_that_comes_and_goes_all_the_time_ends_with_the_same_log() {
    let place = Place::new();
    let primary = Primary::open(tiny_window(&place)).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                commit_all(&handle, &records(30, n));
                n += 30;
            }
        });
        let mut at = 0;
        for _ in 0..8 {
            let r2 = Replica::open(place.replica("r2")).unwrap();
            until("it has got some more", || of_replica(&r2).durable_lsn.0 > at + 50_000);
            at = of_replica(&r2).durable_lsn.0;
            r2.stop();
        }
        done.store(true, Ordering::Relaxed);
    });
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    until_same(&primary, &r1);
    for node in [&r1, &r2] {
        assert!(node.status()[0].stopped.is_none());
    }
    r1.stop();
    r2.stop();
    primary.stop();
    assert!(on_disk(&place.path("p")) == on_disk(&place.path("r2")));
}

#[test]
fn a_primary_that_comes_back_finds_its_replicas_again() {
    let place = Place::new();
    let config = place.primary("p", &["r1"]);
    let replica = {
        let primary = Primary::open(config.clone()).unwrap();
        let replica = Replica::open(place.replica("r1")).unwrap();
        commit(&primary.handle(), b"first reign");
        primary.stop();
        replica
    };
    let primary = Primary::open(config).unwrap();
    commit(&primary.handle(), b"second reign");
    until_same(&primary, &replica);
    assert_eq!((of(&primary).term.0, of_replica(&replica).term.0), (2, 2));
    assert_eq!(of(&primary).slots[0].connects, 1);
    let committed = of(&primary).commit_lsn;
    assert_eq!((primary.committed(ONE), committed), (committed, of(&primary).appended_lsn));
    until("the replica knows what is committed", || replica.committed(ONE) == committed);
}
