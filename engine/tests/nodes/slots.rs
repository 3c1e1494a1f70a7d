//! Slots on the machine: what they hold, when they are lost, what their replicas are told, and what a
//! restart remembers of them.

use std::fs;
use std::time::Duration;

use crate::cluster::{ONE, Place, commit, commit_all, copy, of, of_replica, on_disk, records, until, until_same};
use towline::{
    AppendError, AppendOptions, Lsn, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig, Retain, RetainMax,
    SlotError, SlotKind, SlotLoss, SlotState,
};

const SEGMENT: u64 = 64 << 10;
const CAP: u64 = 6 * SEGMENT;

/// A primary that keeps two segments, and six for slots; commits want one replica.
fn capped(place: &Place, replicas: &[&str]) -> PrimaryConfig {
    let mut config = place.primary("p", replicas);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.retain_max = RetainMax::Bytes(CAP);
    config.commit = "ack_n=1".parse().unwrap();
    config
}

fn files(place: &Place, node: &str) -> u64 {
    fs::read_dir(place.path(node).join("shard-0000/wal")).unwrap().count() as u64
}

/// What a replica says of its link, once it says this.
fn until_told(replica: &Replica, words: &[&str]) -> String {
    until(&format!("it is told {words:?}"), || {
        let link = of_replica(replica).link;
        words.iter().all(|w| link.contains(w))
    });
    of_replica(replica).link
}

#[test]
fn a_replica_that_is_away_loses_its_slot_at_the_cap_and_the_disk_stays_bounded() {
    let place = Place::new();
    let primary = Primary::open(capped(&place, &["r1", "r2"])).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    commit_all(&handle, &records(50, 0));
    until_same(&primary, &r2);
    let stood = of(&primary).appended_lsn;
    r2.stop();
    let mut most = 0;
    for n in 0..30 {
        commit_all(&handle, &records(100, n * 100));
        // The cap, what is ready ahead, spare files, and what waits for the keeper, which works beside
        // the load.
        most = most.max(files(&place, "p"));
    }
    let s = of(&primary);
    assert!(s.appended_lsn.0 > 20 * SEGMENT, "{:?}", s.appended_lsn);
    assert!(most <= CAP / SEGMENT + 12, "{most} files for a cap of {} segments", CAP / SEGMENT);
    until("the slot is lost", || of(&primary).slots[1].lost == Some(SlotLoss::RetentionCap));
    let s = of(&primary);
    assert_eq!((s.slots[1].state, s.slots[1].restart_lsn, s.slots[1].flushed_lsn), (SlotState::Lost, stood, Lsn::ZERO));
    assert_eq!((s.telemetry.counters.slots_lost_retention_cap, s.retention_cap_bytes), (1, CAP));
    assert_eq!((s.slots[0].state, s.slots[0].lost), (SlotState::Live, None));
    assert!(primary.status_json().contains("\"state\":\"lost\",\"lost\":\"retention cap\""));
    // Its replica is told, with both positions.
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let told = until_told(&r2, &["retention cap", &format!("log ends at {stood}")]);
    assert!(told.contains("this one goes from"), "{told}");
    // A restart of the primary does not forget it.
    primary.stop();
    let primary = Primary::open(capped(&place, &["r1", "r2"])).unwrap();
    assert_eq!(of(&primary).slots[1].lost, Some(SlotLoss::RetentionCap));
    until_told(&r2, &["retention cap"]);
    assert_eq!(of(&primary).slots[1].connects, 0);
    // Made anew it may come again, but what it needs is gone.
    primary.create_slot("r2", false).unwrap();
    assert_eq!(primary.create_slot("r2", false).unwrap_err().to_string(), "slot r2 is there already");
    until_told(&r2, &["the oldest that the primary keeps", &format!("ends at {stood}")]);
    r2.stop();
    // A copy of the primary has what it takes.
    commit(&primary.handle(), b"more");
    primary.stop();
    fs::remove_dir_all(place.path("r2")).unwrap();
    copy(&place.path("p"), &place.path("r2"));
    let primary = Primary::open(capped(&place, &["r1", "r2"])).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    commit_all(&primary.handle(), &records(50, 0));
    until_same(&primary, &r2);
    until_same(&primary, &r1);
}

#[test]
fn a_slot_that_was_removed_holds_nothing_and_its_replica_is_told() {
    let place = Place::new();
    let mut config = capped(&place, &["r1", "r2"]);
    config.retain_max = RetainMax::Unlimited;
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    commit_all(&handle, &records(50, 0));
    until_same(&primary, &r2);
    assert!(matches!(primary.drop_slot("nobody"), Err(SlotError::Unknown(_))));
    assert!(matches!(primary.drop_slot("No Name"), Err(SlotError::Name(_))));
    primary.drop_slot("r2").unwrap();
    until_told(&r2, &["the slot was removed"]);
    let [(_, slot)] = &primary.slot("r2")[..] else { panic!("one shard") };
    assert_eq!((slot.state, slot.lost), (SlotState::Lost, Some(SlotLoss::Removed)));
    assert_eq!(of(&primary).telemetry.counters.slots_lost_removed, 1);
    commit_all(&handle, &records(2000, 50));
    until("nothing waits for it", || of(&primary).oldest_lsn > of_replica(&r2).appended_lsn);
    assert_ne!(of(&primary).held_by, "slot r2");
    until_same(&primary, &r1);
    // Removed and made anew while nothing was let go of in between, it goes on from where it is.
    primary.drop_slot("r1").unwrap();
    until_told(&r1, &["the slot was removed"]);
    primary.create_slot("r1", false).unwrap();
    commit_all(&handle, &records(50, 0));
    until_same(&primary, &r1);
}

#[test]
fn a_slot_that_nobody_uses_is_lost_after_its_time_and_one_that_is_used_is_not() {
    let place = Place::new();
    let mut config = capped(&place, &["r1", "r2"]);
    config.slot_idle_max = Some(Duration::from_secs(4));
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"one");
    until("it is lost", || of(&primary).slots[1].lost == Some(SlotLoss::Idle));
    let s = of(&primary);
    assert!(s.slots[0].lost.is_none() && s.slots[0].idle_ms == 0);
    assert_eq!(s.telemetry.counters.slots_lost_idle, 1);
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_told(&r2, &["lost (idle)", "the replica's log ends at 0"]);
    // All of the log is there still: it comes from an empty folder.
    primary.create_slot("r2", false).unwrap();
    commit(&primary.handle(), b"two");
    until_same(&primary, &r2);
    until_same(&primary, &r1);
}

#[test]
fn a_restart_keeps_slots_and_what_they_hold() {
    let place = Place::new();
    let mut config = capped(&place, &["r1", "r2"]);
    config.retain_max = RetainMax::Unlimited;
    let primary = Primary::open(config.clone()).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    primary.create_slot("reader", false).unwrap();
    let reader = Replica::open(place.replica("reader")).unwrap();
    let mut all = records(1500, 0);
    commit_all(&primary.handle(), &all);
    until_same(&primary, &r2);
    until_same(&primary, &reader);
    until("it recycles", || of(&primary).oldest_lsn > Lsn::ZERO);
    // It holds the log, too, for as long as it waits for its link.
    primary.create_slot("guest", true).unwrap();
    reader.stop();
    r2.stop();
    let stood = of(&primary).appended_lsn;
    primary.stop();
    let primary = Primary::open(config.clone()).unwrap();
    let s = of(&primary);
    let slots: Vec<_> = s.slots.iter().map(|s| (s.name.as_str(), s.kind, s.restart_lsn, s.lost)).collect();
    assert_eq!(
        slots,
        [
            ("r1", SlotKind::Configured, stood, None),
            ("r2", SlotKind::Configured, stood, None),
            ("reader", SlotKind::Made, stood, None),
        ],
        "a temporary one is gone"
    );
    // Nobody but r1 is there, and the log goes up to where the others stood.
    let more = records(1500, 1500);
    commit_all(&primary.handle(), &more);
    all.extend(more);
    until("it recycles up to there", || of(&primary).oldest_lsn.0 + SEGMENT >= stood.0);
    assert!(of(&primary).oldest_lsn <= stood);
    assert_eq!(of(&primary).held_by, "slot r2");
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let reader = Replica::open(place.replica("reader")).unwrap();
    for replica in [&r1, &r2, &reader] {
        until_same(&primary, replica);
    }
    r2.stop();
    assert!(on_disk(&place.path("r2")).ends_with(&all[all.len() - 1000..]));
    // A replica that is configured no more holds nothing; one that was made does.
    primary.remove_replica("r2").unwrap();
    primary.stop();
    let primary = Primary::open(config).unwrap();
    let names: Vec<_> = of(&primary).slots.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names, ["r1", "reader"]);
}

#[test]
fn who_has_no_slot_may_not_connect_and_whose_slot_was_made_counts_for_nothing() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.commit = "all".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let guest = Replica::open(place.replica("guest")).unwrap();
    until_told(&guest, &["not configured"]);
    assert!(matches!(primary.create_slot("r1", true), Err(SlotError::NotTemporary(_))));
    primary.create_slot("guest", true).unwrap();
    assert_eq!(primary.slot("guest")[0].1.kind, SlotKind::Temporary);
    commit(&primary.handle(), b"both have it");
    until_same(&primary, &guest);
    // `all` is r1 alone.
    r1.stop();
    let quick = AppendOptions { deadline: Some(Duration::from_millis(300)), policy: None };
    let waiting = primary.handle().append_with(ONE, b"only the guest", quick).unwrap().wait();
    assert!(matches!(waiting, Ok(Outcome::TimedOut { acks: 0, wanted: 1, .. })), "{waiting:?}");
    until("the guest has it", || of_replica(&guest).appended_lsn == of(&primary).appended_lsn);
    guest.stop();
    until("its slot has gone with its link", || primary.slot("guest").is_empty());
}

#[test]
fn a_second_process_under_the_same_name_is_refused_while_the_first_lives() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let first = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"one");
    let mut config = ReplicaConfig::new(place.path("other"), "r1", place.addr);
    config.node = place.replica("r1").node;
    config.node.data = place.path("other");
    config.reconnect_max = Duration::from_millis(100);
    let second = Replica::open(config).unwrap();
    until_told(&second, &["another process serves this replica's name"]);
    commit(&primary.handle(), b"two");
    assert_eq!(of(&primary).slots[0].connects, 1, "the first was not disturbed");
    until_same(&primary, &first);
    // Once it has gone, the second may.
    first.stop();
    commit(&primary.handle(), b"three");
    until_same(&primary, &second);
}

#[test]
fn log_that_nobody_commits_fills_the_cap_and_no_more() {
    let place = Place::new();
    let mut config = capped(&place, &["r1"]);
    config.deadline = Duration::from_millis(100);
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let quick = AppendOptions { deadline: Some(Duration::from_millis(20)), policy: None };
    let (mut full, mut taken) = (0, 0);
    while full < 20 {
        match handle.try_append(ONE, &[7; 8000], quick).map(|t| t.wait()) {
            Ok(Ok(_)) => taken += 1,
            Err(AppendError::LogFull) | Ok(Err(AppendError::LogFull)) => full += 1,
            Ok(Err(AppendError::WouldBlock)) | Err(AppendError::WouldBlock) => {}
            other => panic!("{other:?}"),
        }
        assert!(taken < 1000, "the log grows without an end");
    }
    let s = of(&primary);
    assert_eq!((s.commit_lsn, s.slots[0].lost), (Lsn::ZERO, None), "what is needed for commits is not lost");
    assert!(s.retained_bytes <= CAP + 4 * SEGMENT && s.telemetry.counters.log_full == 1, "{s:?}");
    assert_eq!(s.held_by, "commit");
    // The replica comes, and it goes on by itself.
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until("all is committed", || of(&primary).commit_lsn == of(&primary).appended_lsn);
    let record = vec![8; 8000];
    until(
        "appends are taken again",
        || matches!(handle.try_append(ONE, &record, AppendOptions::default()).map(|t| t.wait()), Ok(Ok(o)) if o.committed().is_some()),
    );
    until_same(&primary, &r1);
}

/// Two copies of one folder are started as primaries, so both reign in the same term: what operators are told never
/// to do. A replica that goes from one to the other is not mended in silence, and holds nothing meanwhile.
#[test]
fn a_replica_with_other_bytes_at_the_same_term_and_lsn_loses_its_slot_and_keeps_its_log() {
    let place = Place::new();
    let config = |folder: &str| {
        let mut config = place.primary(folder, &["r1"]);
        config.commit = "ack_n=1".parse().unwrap();
        config
    };
    let primary = Primary::open(config("p")).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    commit_all(&primary.handle(), &records(30, 0));
    until_same(&primary, &r1);
    primary.stop();
    copy(&place.path("p"), &place.path("twin"));
    let primary = Primary::open(config("p")).unwrap();
    commit_all(&primary.handle(), &records(30, 100));
    until_same(&primary, &r1);
    primary.stop();
    let before = on_disk(&place.path("r1"));
    // As many bytes in the same term, but others.
    let twin = Primary::open(config("twin")).unwrap();
    let alone = AppendOptions { deadline: None, policy: Some("local".parse().unwrap()) };
    for record in records(60, 200) {
        let _ = twin.handle().append_with(ONE, &record, alone).unwrap().wait().unwrap();
    }
    let link = until_told(&r1, &["diverged"]);
    assert!(link.contains("same term and LSN"), "{link}");
    let s = of(&twin);
    assert_eq!((s.slots[0].state, s.slots[0].lost), (SlotState::Lost, Some(SlotLoss::Diverged)));
    assert_eq!((s.telemetry.counters.slots_lost_diverged, s.commit_lsn < s.appended_lsn), (1, true));
    r1.stop();
    assert!(on_disk(&place.path("r1")) == before, "its log may be the only copy: nothing of it is cut");
    // An operator has looked, and decides for this primary.
    twin.create_slot("r1", false).unwrap();
    fs::rename(place.path("r1"), place.path("saved")).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until_same(&twin, &r1);
    commit(&twin.handle(), b"goes on");
}
