//! A commit waits for exactly what its policy names, says truthfully what is known when its deadline
//! comes first, and never becomes weaker by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{self, ONE, Place, commit, of, on_disk, until, until_connected};
use towline::{AppendError, AppendOptions, Appended, CommitPolicy, Lsn, Outcome, Primary, Replica, TooFewReplicas};

fn with(policy: &str, deadline_ms: u64) -> AppendOptions {
    AppendOptions { policy: Some(policy.parse().unwrap()), deadline: Some(Duration::from_millis(deadline_ms)) }
}

fn append(primary: &Primary, record: &[u8], options: AppendOptions) -> Outcome {
    primary.handle().append_with(ONE, record, options).unwrap().wait().unwrap()
}

#[test]
fn each_policy_counts_the_replicas_that_it_names() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1", "r2", "r3"]);
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    let mut replicas = Vec::new();
    for connected in 0..=3u8 {
        for (policy, wanted) in
            [("local", 0), ("ack_n=1", 1), ("ack_n=2", 2), ("majority", 2), ("ack_n=3", 3), ("all", 3)]
        {
            let enough = wanted <= connected;
            // A slow machine must not make it a timeout where there are enough, nor one before it is durable.
            let outcome = append(&primary, policy.as_bytes(), with(policy, if enough { 20_000 } else { 500 }));
            match outcome {
                Outcome::Committed { acks, .. } => assert!(enough && acks >= wanted, "{policy}, {connected}: {acks}"),
                Outcome::TimedOut { durable_here, acks, wanted: w, bookmark } => {
                    assert!(!enough && durable_here, "{policy} with {connected}");
                    assert!(acks <= connected && w == wanted && bookmark.lsn > Lsn::ZERO);
                }
                other => panic!("{other:?}"),
            }
        }
        if connected < 3 {
            replicas.push(Replica::open(place.replica(&format!("r{}", connected + 1))).unwrap());
            until_connected(&primary, connected as usize + 1);
        }
    }
}

#[test]
fn a_timeout_is_never_not_written() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let Outcome::TimedOut { bookmark, durable_here: true, acks: 0, wanted: 1 } =
        append(&primary, b"late", with("ack_n=1", 2_000))
    else {
        panic!("no replica is there")
    };
    assert!(primary.committed(ONE) < bookmark.lsn);
    // It becomes committed once the replica comes, although nobody waits any more.
    let replica = Replica::open(place.replica("r1")).unwrap();
    until("it is committed", || primary.committed(ONE) >= bookmark.lsn);
    primary.stop();
    replica.stop();
    assert!(on_disk(&place.path("r1")) == [b"late".to_vec()]);
}

#[test]
fn a_deadline_is_kept_within_its_tick() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let began = std::time::Instant::now();
    // Later appends may have earlier deadlines.
    let slow = primary.handle().append_with(ONE, b"slow", with("all", 400)).unwrap();
    let fast = primary.handle().append_with(ONE, b"fast", with("all", 50)).unwrap();
    assert!(matches!(fast.wait(), Ok(Outcome::TimedOut { .. })));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(50) && took < Duration::from_millis(350), "{took:?}");
    assert!(matches!(slow.wait(), Ok(Outcome::TimedOut { .. })));
    assert!(began.elapsed() >= Duration::from_millis(400));
    let counters = of(&primary).telemetry.counters;
    assert_eq!((counters.timed_out, counters.committed), (2, 0));
}

#[test]
fn waiters_are_released_when_a_replica_comes_back_or_another_one_takes_its_place() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    commit(&handle, b"first");
    r1.stop();
    until_connected(&primary, 0);
    let waits = handle.append(ONE, b"second").unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    assert!(matches!(waits.wait(), Ok(Outcome::Committed { acks: 1, .. })));
    r2.stop();
    until_connected(&primary, 0);
    let waits = handle.append(ONE, b"third").unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    assert!(matches!(waits.wait(), Ok(Outcome::Committed { acks: 1, .. })));
    r1.stop();
}

#[test]
fn with_too_few_replicas_an_append_waits_or_is_refused_as_configured() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1", "r2"]);
    config.too_few = TooFewReplicas::Refuse;
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let refused = |wanted, connected| Err(AppendError::TooFewReplicas { wanted, connected });
    assert_eq!(handle.append(ONE, b"x").unwrap().wait(), refused(2, 0));
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until_connected(&primary, 1);
    assert_eq!(handle.append(ONE, b"x").unwrap().wait(), refused(2, 1));
    assert!(append(&primary, b"one is enough", with("ack_n=1", 20_000)).committed().is_some());
    assert!(append(&primary, b"none is enough", with("local", 20_000)).committed().is_some());
    assert_eq!(of(&primary).tail_seq.0, 2, "what was refused was not written");
    r1.stop();
}

#[test]
fn a_policy_that_can_never_hold_is_refused_before_anything_is_written() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.commit = "ack_n=2".parse().unwrap();
    assert!(Primary::open(config).unwrap_err().to_string().contains("needs 2 replicas, 1 are configured"));
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let refused = primary.handle().append_with(ONE, b"x", with("ack_n=2", 100)).unwrap().wait();
    assert!(matches!(refused, Err(AppendError::Policy(_))), "{refused:?}");
    assert_eq!(of(&primary).tail_seq.0, 0);
}

struct Opened(Arc<AtomicBool>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn received_and_applied_wait_for_what_they_say() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    // A handler that is held back.
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let replica = Replica::open_with(place.replica("r1"), move |_| {
        let gate = gate.clone();
        towline::ApplyFn(move |_, _, _: &[u8]| {
            // An embedder must not block like this; it stands for one that is slow.
            while !gate.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
    })
    .unwrap();
    // Also where this fails: else the replica's core never ends.
    let _opened = Opened(open.clone());
    until_connected(&primary, 1);
    let applied = primary.handle().append_with(ONE, b"x", with("ack_n=1:applied", 20_000)).unwrap();
    until("it is in the log", || of(&primary).appended_lsn > Lsn::ZERO);
    until("it is flushed on the replica", || of(&primary).slots[0].flushed_lsn == of(&primary).appended_lsn);
    // Applied acknowledgements do not hold the commit LSN back: replicas apply what is committed.
    until("it is committed", || of(&primary).commit_lsn == of(&primary).appended_lsn);
    let s = of(&primary);
    assert!(s.slots[0].applied_lsn < s.appended_lsn && s.telemetry.counters.committed == 0);
    open.store(true, Ordering::Relaxed);
    assert!(matches!(applied.wait(), Ok(Outcome::Committed { acks: 1, .. })));
    let s = of(&primary);
    assert_eq!(s.slots[0].applied_lsn, s.appended_lsn);
    for policy in ["ack_n=1:received", "all:received", "majority:applied"] {
        assert!(append(&primary, b"y", with(policy, 20_000)).committed().is_some(), "{policy}");
    }
    replica.stop();
}

#[test]
fn the_commit_lsn_never_goes_back_while_replicas_come_and_go() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut before = Lsn::ZERO;
            while !done.load(Ordering::Relaxed) {
                let now = primary.committed(ONE);
                assert!(now >= before, "{now} after {before}");
                before = now;
            }
        });
        for round in 0..6u8 {
            let name = ["r1", "r2"][usize::from(round % 2)];
            let replica = Replica::open(place.replica(name)).unwrap();
            for n in 0..20 {
                assert!(append(&primary, &[round, n], AppendOptions::default()).committed().is_some());
            }
            replica.stop();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_an_append_returns_counts_records_without_gaps() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    primary.spawn_on(ONE, move |shard| async move {
        let (a, b) = (shard.lane().unwrap(), shard.lane().unwrap());
        let options = AppendOptions::default();
        for n in 0..100 {
            let (lane, index) = if n % 3 == 0 { (&a, n / 3) } else { (&b, n - n / 3 - 1) };
            let Appended { index: i, seq } = lane.append(b"x", &options).await.unwrap();
            assert_eq!((i, seq.0), (index, n));
        }
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(cluster::LIMIT).unwrap();
}
