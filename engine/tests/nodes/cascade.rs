//! Replicas that feed replicas: rows of them end with the same log, whoever is killed, restarted, made
//! anew or promoted; what they hold back and what they refuse.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{
    self, ONE, Place, commit, commit_all, of, of_replica, on_disk, records, until, until_let_go, until_same,
};
use towline::{Lsn, Primary, Replica, ReplicaConfig, Retain, RetainMax, SlotError, SlotState, limits};

const SEGMENT: u64 = 64 << 10;

/// An address for a node of this place that feeds others.
fn at(place: &Place, n: u16) -> SocketAddr {
    SocketAddr::new(place.addr.ip(), 7410 + n)
}

/// A replica that listens at one address and follows another.
fn node(place: &Place, name: &str, listens: u16, follows: SocketAddr) -> ReplicaConfig {
    let mut config = place.replica(name);
    (config.listen, config.primary) = (Some(at(place, listens)), follows);
    config
}

/// Opens a replica, with slots for those below it.
fn open(config: ReplicaConfig, below: &[&str]) -> Replica {
    let replica = Replica::open(config).unwrap();
    for name in below {
        replica.create_slot(name, false).unwrap();
    }
    replica
}

/// A primary, and a row of replicas below it: a follows it, b follows a, c follows b.
struct Row {
    primary: Primary,
    a: Replica,
    b: Replica,
    c: Replica,
}

fn row(place: &Place) -> Row {
    let primary = Primary::open(place.primary("p", &["a"])).unwrap();
    let a = open(node(place, "a", 0, place.addr), &["b"]);
    let b = open(node(place, "b", 1, at(place, 0)), &["c"]);
    let c = open(node(place, "c", 2, at(place, 1)), &[]);
    Row { primary, a, b, c }
}

/// Waits until a replica of another one's log has the same, and knows it to be committed.
fn until_below(above: &Replica, below: &Replica) {
    until("the replica below has all that the one above it has", || {
        let (a, b) = (of_replica(above), of_replica(below));
        a.appended_lsn == b.applied_lsn && a.chain == b.chain && a.commit_lsn == b.commit_lsn
    });
}

fn same_everywhere(place: &Place, nodes: &[&str]) {
    let first = on_disk(&place.path(nodes[0]));
    for node in &nodes[1..] {
        assert!(on_disk(&place.path(node)) == first, "{node} holds something else than {}", nodes[0]);
    }
}

#[test]
fn a_row_of_three_replicas_ends_with_the_primarys_log_though_the_middle_is_restarted_under_load() {
    let place = Place::new();
    let Row { primary, a, b, c } = row(&place);
    let handle = primary.handle();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                commit_all(&handle, &records(20, n));
                n += 20;
            }
        });
        let mut b = b;
        for _ in 0..4 {
            let has = of_replica(&c).durable_lsn;
            until("the last one gets more", || of_replica(&c).durable_lsn.0 > has.0 + 30_000);
            b.stop();
            b = open(node(&place, "b", 1, at(&place, 0)), &[]);
        }
        let has = of_replica(&c).durable_lsn;
        until("the last one gets more", || of_replica(&c).durable_lsn > has);
        done.store(true, Ordering::Relaxed);
        load.join().unwrap();
        until_same(&primary, &a);
        until_below(&a, &b);
        until_below(&b, &c);
        assert_eq!([&a, &b, &c].map(|r| of_replica(r).depth), [1, 2, 3]);
        assert_eq!(of_replica(&b).slots[0].name, "c");
        for replica in [c, b, a] {
            replica.stop();
        }
    });
    primary.stop();
    same_everywhere(&place, &["p", "a", "b", "c"]);
}

#[test]
fn those_below_a_replica_that_is_gone_go_on_from_their_own_end_at_the_primary() {
    let place = Place::new();
    let Row { primary, a, b, c } = row(&place);
    let handle = primary.handle();
    commit_all(&handle, &records(50, 0));
    until_same(&primary, &b);
    let had = of_replica(&b).durable_lsn;
    primary.create_slot("b", false).unwrap();
    b.stop();
    a.stop();
    // Commits wait for `a`, which is gone.
    primary.set_commit_policy("local".parse().unwrap()).unwrap();
    commit_all(&handle, &records(50, 0));
    let b = open(node(&place, "b", 1, place.addr), &[]);
    until_same(&primary, &b);
    assert_eq!((of_replica(&b).oldest_lsn, of_replica(&b).depth), (Lsn::ZERO, 1));
    assert!(of_replica(&b).durable_lsn > had);
    until_below(&b, &c);
    until("the one below counts its depth anew", || of_replica(&c).depth == 2);
    for replica in [c, b] {
        replica.stop();
    }
    primary.stop();
    same_everywhere(&place, &["p", "b", "c"]);
}

#[test]
fn while_the_primary_is_gone_those_below_stay_connected_and_see_how_old_its_word_is() {
    let place = Place::new();
    let Row { primary, a, b, c } = row(&place);
    commit(&primary.handle(), b"all have it");
    until_same(&primary, &c);
    let connects = of_replica(&c).telemetry.counters.connects;
    primary.stop();
    for (replica, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        let heard = || of_replica(replica).heard_ms.unwrap();
        let before = heard();
        until(name, || heard() > before + 1200.0);
    }
    assert!(of_replica(&c).link.starts_with("following"), "{}", of_replica(&c).link);
    assert_eq!(of_replica(&c).telemetry.counters.connects, connects);
    assert_eq!(of_replica(&a).slots[0].state, SlotState::Live);
    // It comes back in a new term, which reaches the last one.
    let primary = Primary::open(place.primary("p", &["a"])).unwrap();
    commit(&primary.handle(), b"second reign");
    until_same(&primary, &c);
    assert_eq!(of_replica(&c).term, of(&primary).term);
}

#[test]
fn a_tail_that_a_new_primary_does_not_have_is_cut_from_those_below_too() {
    let place = Place::new();
    let Row { primary, a, b, c } = row(&place);
    let handle = primary.handle();
    commit_all(&handle, &records(30, 0));
    until_same(&primary, &c);
    // The first reign ends here for whoever takes the log now.
    a.stop();
    cluster::copy(&place.path("a"), &place.path("next"));
    let a = open(node(&place, "a", 0, place.addr), &[]);
    // `a` and those below it get what no other node has: it counts as committed nowhere.
    primary.add_replica("nobody").unwrap();
    primary.set_commit_policy("all".parse().unwrap()).unwrap();
    for record in records(30, 0) {
        drop(handle.try_append(ONE, &record, towline::AppendOptions::default()).unwrap());
    }
    for replica in [&a, &c] {
        until("it has them all", || of_replica(replica).tail_seq.0 == 60);
    }
    let ahead = of_replica(&c).appended_lsn;
    drop(handle);
    primary.stop();
    let mut promoted = place.primary("next", &["a"]);
    promoted.promote = true;
    let primary = Primary::open(promoted).unwrap();
    assert!(of(&primary).appended_lsn < ahead);
    commit_all(&primary.handle(), &records(3, 0));
    for replica in [&a, &b, &c] {
        until_same(&primary, replica);
        assert_eq!(of_replica(replica).term, of(&primary).term);
    }
    for replica in [c, b, a] {
        replica.stop();
    }
    primary.stop();
    same_everywhere(&place, &["next", "a", "b", "c"]);
}

#[test]
fn a_replica_that_begins_anew_is_followed_from_there_by_those_below_it() {
    let place = Place::new();
    let mut config = place.primary("p", &["a"]);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.retain_max = RetainMax::Bytes(6 * SEGMENT);
    config.commit = "local".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let rebuilding = |name, listens, follows| {
        let mut config = node(&place, name, listens, follows);
        config.rebuild = true;
        config
    };
    let a = open(rebuilding("a", 0, place.addr), &["b"]);
    let b = open(rebuilding("b", 1, at(&place, 0)), &[]);
    commit_all(&handle, &records(100, 0));
    until_same(&primary, &b);
    let end = of_replica(&a).durable_lsn;
    a.stop();
    until("the slot of the one in the middle is lost", || {
        commit_all(&handle, &records(200, 0));
        of(&primary).slots[0].lost.is_some() && of(&primary).oldest_lsn > end
    });
    until_let_go(&primary, 3 * SEGMENT);
    primary.create_slot("a", false).unwrap();
    let a = open(rebuilding("a", 0, place.addr), &[]);
    until_same(&primary, &a);
    commit_all(&handle, &records(20, 0));
    until_same(&primary, &b);
    assert!(of_replica(&a).oldest_lsn > end && of_replica(&b).oldest_lsn >= of_replica(&a).oldest_lsn);
    assert!(of_replica(&a).slots[0].lost.is_none());
    b.stop();
    a.stop();
    primary.stop();
    let (p, b) = (on_disk(&place.path("p")), on_disk(&place.path("b")));
    assert!(p.ends_with(&b) || b.ends_with(&p));
}

#[test]
fn the_primary_keeps_what_those_below_need_but_no_commit_waits_for_them() {
    let place = Place::new();
    let mut config = place.primary("p", &["a"]);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.retain_max = RetainMax::Bytes(40 * SEGMENT);
    let primary = Primary::open(config).unwrap();
    let trims = |mut config: ReplicaConfig| {
        config.node.retain = Retain::Bytes(2 * SEGMENT);
        config
    };
    let a = open(trims(node(&place, "a", 0, place.addr)), &["b"]);
    let b = Replica::open(node(&place, "b", 1, at(&place, 0))).unwrap();
    let handle = primary.handle();
    commit_all(&handle, &records(10, 0));
    until_same(&primary, &b);
    let end = of_replica(&b).durable_lsn;
    b.stop();
    // `all` is `a` alone.
    while of(&primary).appended_lsn.since(end) < 12 * SEGMENT {
        commit_all(&handle, &records(100, 0));
    }
    until("the primary knows", || of(&primary).slots[0].below_lsn.is_some_and(|below| below <= end));
    let status = of(&primary);
    assert!(status.oldest_lsn < end && status.held_by == "below a", "{} {}", status.oldest_lsn, status.held_by);
    assert!(of_replica(&a).oldest_lsn < end && of_replica(&a).held_by == "slot b");
    // Its operator may have it follow the primary: it goes on from where it was.
    primary.create_slot("b", true).unwrap();
    let b = Replica::open(node(&place, "b", 1, place.addr)).unwrap();
    until_same(&primary, &b);
    assert_eq!(of_replica(&b).oldest_lsn, Lsn::ZERO, "it did not begin anew");
    // Who needs it no more does not hold it.
    a.drop_slot("b").unwrap();
    until("nothing is kept for it", || {
        commit_all(&handle, &records(20, 0));
        of(&primary).slots[0].below_lsn.is_none() && of(&primary).oldest_lsn > end
    });
}

#[test]
fn a_dead_replica_below_fills_neither_disk_and_costs_the_middle_nothing() {
    let place = Place::new();
    let mut config = place.primary("p", &["a"]);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.retain_max = RetainMax::Bytes(6 * SEGMENT);
    let primary = Primary::open(config).unwrap();
    let mut config = node(&place, "a", 0, place.addr);
    (config.node.retain, config.retain_max) = (Retain::Bytes(2 * SEGMENT), RetainMax::Bytes(12 * SEGMENT));
    let a = open(config, &["b"]);
    let handle = primary.handle();
    until("the slot below is lost", || {
        commit_all(&handle, &records(100, 0));
        let p = of(&primary);
        // The primary's cap is the lower one: it keeps no more, and the one in the middle keeps its slot.
        assert!(p.slots[0].lost.is_none() && p.retained_bytes < 24 * SEGMENT, "{}", p.retained_bytes);
        of_replica(&a).slots[0].lost.is_some()
    });
    let status = of_replica(&a);
    assert_eq!(status.telemetry.counters.slots_lost_retention_cap, 1);
    let b = Replica::open(node(&place, "b", 1, at(&place, 0))).unwrap();
    until("it is refused with the cause", || of_replica(&b).link.contains("retention cap"));
    a.create_slot("b", false).unwrap();
    until_same(&primary, &b);
}

#[test]
fn a_replica_without_a_slot_is_refused_and_slots_survive_a_restart_of_the_middle() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["a"])).unwrap();
    let a = open(node(&place, "a", 0, place.addr), &[]);
    let b = Replica::open(node(&place, "b", 1, at(&place, 0))).unwrap();
    until("it is told what to do", || of_replica(&b).link.contains("towline slot create"));
    a.create_slot("b", false).unwrap();
    assert_eq!(
        a.create_slot("b", false),
        Err(SlotError::Exists(towline::wire::handshake::NodeName::new("b").unwrap()))
    );
    commit(&primary.handle(), b"it has it");
    until_same(&primary, &b);
    a.stop();
    let a = open(node(&place, "a", 0, place.addr), &[]);
    assert_eq!(of_replica(&a).slots[0].restart_lsn, of_replica(&b).durable_lsn);
    commit(&primary.handle(), b"this too");
    until_same(&primary, &b);
    a.drop_slot("b").unwrap();
    until("its slot is gone", || of_replica(&b).link.contains("towline slot create"));
}

#[test]
fn replicas_that_feed_each_other_in_a_circle_or_themselves_are_refused() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["a"])).unwrap();
    commit_local(&primary);
    let a = open(node(&place, "a", 0, place.addr), &["b", "c"]);
    let b = open(node(&place, "b", 1, at(&place, 0)), &["a", "c"]);
    let c = open(node(&place, "c", 2, at(&place, 1)), &["a"]);
    until_same(&primary, &c);
    // The first one is given the last one's address: c -> b -> a -> c.
    a.stop();
    let a = open(node(&place, "a", 0, at(&place, 2)), &[]);
    until("one of them is refused", || [&a, &b, &c].iter().any(|r| of_replica(r).link.contains("in a circle")));
    assert!([&a, &b, &c].iter().all(|r| of_replica(r).depth <= limits::CASCADE_DEPTH_MAX));
    a.stop();
    let a = open(node(&place, "a", 0, at(&place, 0)), &["a"]);
    until("it does not follow itself", || of_replica(&a).link.contains("has not followed its own upstream"));
    a.stop();
    // The right address mends it.
    let a = open(node(&place, "a", 0, place.addr), &[]);
    commit(&primary.handle(), b"all is well");
    until_same(&primary, &a);
    until_same(&primary, &c);
}

fn commit_local(primary: &Primary) {
    let options = towline::AppendOptions { policy: Some("local".parse().unwrap()), deadline: None };
    let outcome = primary.handle().try_append(ONE, b"before", options).unwrap().wait().unwrap();
    assert!(outcome.committed().is_some());
}
