//! Settings that change while a primary runs: who is configured, what commits wait for, when appends are
//! refused; and what a restart makes of them.

use std::time::Duration;

use crate::cluster::{ONE, Place, commit, commit_all, of, of_replica, records, until, until_connected, until_same};
use towline::{
    AppendError, AppendOptions, CommitPolicy, Outcome, Primary, PrimaryConfig, Replica, Retain, RetainMax,
    SettingChange, SettingsError, SlotKind, client,
};

fn policy(text: &str) -> CommitPolicy {
    text.parse().unwrap()
}

/// A primary whose commits wait for this.
fn config(place: &Place, replicas: &[&str], commit: &str) -> PrimaryConfig {
    let mut config = place.primary("p", replicas);
    config.commit = policy(commit);
    config
}

fn names(primary: &Primary) -> Vec<String> {
    primary.settings().replicas.iter().map(ToString::to_string).collect()
}

#[test]
fn a_replica_catches_up_first_and_counts_from_where_it_is_once_it_is_configured() {
    let place = Place::new();
    let primary = Primary::open(config(&place, &["r1"], "all")).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    commit_all(&primary.handle(), &records(300, 0));
    primary.create_slot("r2", false).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    assert_eq!(primary.add_replica("r2"), Ok(2));
    let s = of(&primary);
    assert_eq!(s.settings_version, 2);
    assert_eq!(s.slots.iter().map(|s| (s.kind, s.connects)).collect::<Vec<_>>(), [(SlotKind::Configured, 1); 2]);
    let outcome = primary.handle().append(ONE, b"both").unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::Committed { acks: 2, .. }), "{outcome:?}");
    assert_eq!(primary.add_replica("r2").unwrap_err().to_string(), "replica r2 is configured already");
    // Without it, `all` does not hold.
    r2.stop();
    let quick = AppendOptions { deadline: Some(Duration::from_secs(2)), policy: None };
    let outcome = primary.handle().append_with(ONE, b"one", quick).unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::TimedOut { acks: 1, wanted: 2, .. }), "{outcome:?}");
    primary.remove_replica("r2").unwrap();
    until_same(&primary, &r1);
}

/// A folder of a build that knew no settings: its slots stand, and the first start makes the settings.
#[test]
fn a_folder_with_superblocks_of_version_2_is_opened() {
    use towline::wire::superblock::COPY;
    let place = Place::new();
    let primary = Primary::open(config(&place, &["r1"], "local")).unwrap();
    commit_all(&primary.handle(), &records(20, 0));
    primary.create_slot("reader", false).unwrap();
    let end = of(&primary).appended_lsn;
    primary.stop();
    make_older(&place, 2, 172..254);
    let primary = Primary::open(config(&place, &["r1"], "majority")).unwrap();
    let s = of(&primary);
    let slots: Vec<_> = s.slots.iter().map(|s| (s.name.as_str(), s.kind)).collect();
    assert_eq!(slots, [("r1", SlotKind::Configured), ("reader", SlotKind::Made)]);
    assert_eq!((s.appended_lsn, s.settings_version, primary.settings().commit), (end, 1, policy("majority")));
    let written = std::fs::read(place.path("p/shard-0000/superblock")).unwrap();
    assert!(written.chunks_exact(COPY).any(|copy| copy[8] == 4), "it is written as this build's version");
}

/// A folder of a build that knew no settings of links: all others stand, and those are as the node is started.
#[test]
fn a_folder_with_superblocks_of_version_3_is_opened() {
    let place = Place::new();
    let primary = Primary::open(config(&place, &["r1"], "local")).unwrap();
    primary.change_settings(SettingChange::Deadline(Duration::from_millis(1500)), None).unwrap();
    primary.stop();
    make_older(&place, 3, 234..254);
    let mut config = config(&place, &["r1"], "local");
    (config.catch_up_max, config.link_window_bytes, config.lag_target) = (Some(5 << 20), 1 << 20, Some(6 << 20));
    for _ in 0..2 {
        let primary = Primary::open(config.clone()).unwrap();
        let s = primary.settings();
        assert_eq!((s.version, s.deadline), (2, Duration::from_millis(1500)));
        assert_eq!((s.catch_up_max, s.link_window_bytes, s.lag_target), (Some(5 << 20), 1 << 20, Some(6 << 20)));
        primary.stop();
        // It was written: now the folder wins.
        config.catch_up_max = Some(1 << 20);
    }
}

/// The superblocks of a primary with one shard, as a build of an older version of the format wrote them.
fn make_older(place: &Place, version: u8, unknown: std::ops::Range<usize>) {
    use towline::wire::superblock::COPY;
    let file = place.path("p/shard-0000/superblock");
    let mut bytes = std::fs::read(&file).unwrap();
    for copy in bytes.chunks_exact_mut(COPY).filter(|copy| copy[8] == 4) {
        copy[8] = version;
        copy[unknown.clone()].fill(0);
        let crc = crc32c::crc32c(&copy[..COPY - 4]);
        copy[COPY - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    std::fs::write(&file, bytes).unwrap();
}

#[test]
fn commits_that_wait_for_a_replica_go_through_at_once_when_it_is_removed_and_it_is_told_why() {
    let place = Place::new();
    let primary = Primary::open(config(&place, &["r1", "r2"], "all")).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    until_connected(&primary, 1);
    let waits = handle.append(ONE, b"waits for both").unwrap();
    until("the one has it", || of(&primary).slots[0].flushed_lsn == of(&primary).appended_lsn);
    assert_eq!(of(&primary).commit_lsn.0, 0);
    assert_eq!(primary.remove_replica("r2"), Ok(2));
    let outcome = waits.wait().unwrap();
    assert!(matches!(outcome, Outcome::Committed { acks: 1, .. }), "{outcome:?}");
    assert_eq!(of(&primary).commit_lsn, of(&primary).appended_lsn);
    assert_eq!((names(&primary), primary.slot("r2").len()), (vec!["r1".to_string()], 0));
    // The last one cannot go: nothing would ever be committed.
    let e = primary.remove_replica("r1").unwrap_err();
    assert!(matches!(e, SettingsError::Policy(_)) && e.to_string().contains("1 replicas, 0 are configured"), "{e}");
    assert_eq!(primary.settings().version, 2);
    // Under another policy it can, and its link ends.
    assert_eq!(primary.set_commit_policy(CommitPolicy::Local), Ok(3));
    assert_eq!(primary.remove_replica("r1"), Ok(4));
    until("it is told", || {
        let link = of_replica(&r1).link;
        link.contains("the slot was removed") || link.contains("not configured")
    });
    commit(&handle, b"alone");
    assert!(matches!(primary.remove_replica("r1"), Err(SettingsError::NotConfigured(_))));
    assert!(matches!(primary.add_replica("No Name"), Err(SettingsError::Name(_))));
}

#[test]
fn settings_survive_restarts_and_win_over_what_a_start_says() {
    let place = Place::new();
    let mut config = config(&place, &["r1", "r2"], "ack_n=1");
    config.shards = 3;
    let open = |config: &PrimaryConfig| Primary::open(config.clone()).unwrap();
    let primary = open(&config);
    primary.add_replica("r3").unwrap();
    primary.remove_replica("r1").unwrap();
    primary.set_commit_policy(policy("majority")).unwrap();
    primary.change_settings(SettingChange::Deadline(Duration::from_millis(1500)), Some(4)).unwrap();
    primary.change_settings(SettingChange::RetainMax(RetainMax::Bytes(8 << 20)), None).unwrap();
    primary.change_settings(SettingChange::SlotIdleMax(Some(Duration::from_secs(60))), None).unwrap();
    primary.change_settings(SettingChange::MinReplicas(1), None).unwrap();
    primary.change_settings(SettingChange::CatchUpMax(Some(7 << 20)), None).unwrap();
    primary.change_settings(SettingChange::LinkWindow(1 << 20), None).unwrap();
    primary.change_settings(SettingChange::LagTarget(Some(9 << 20)), None).unwrap();
    let version = primary.change_settings(SettingChange::MinReplicasAge(Duration::from_secs(3)), None).unwrap();
    let set = primary.settings();
    assert_eq!((version, set.version, names(&primary)), (12, 12, vec!["r2".to_string(), "r3".to_string()]));
    assert!(primary.status().iter().all(|s| s.settings_version == 12 && s.retention_cap_bytes == 8 << 20));
    primary.stop();
    // It says what it said the first time.
    let primary = open(&config);
    assert_eq!(primary.settings(), set);
    for shard in primary.status() {
        assert_eq!((shard.settings_version, shard.lag_target_bytes), (12, 9 << 20));
        assert_eq!(shard.slots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["r2", "r3"]);
    }
    assert!(
        primary.status_json().contains("\"settings\":{\"version\":12,\"deadline_ms\":1500.000,\"retain_max\":8388608")
    );
    primary.stop();
    // A promotion is another reign: it knows only what it is told.
    config.promote = true;
    let primary = open(&config);
    assert_eq!((primary.settings().version, names(&primary)), (13, vec!["r1".to_string(), "r2".to_string()]));
}

#[test]
fn a_crash_between_shards_is_finished_at_the_next_start() {
    let place = Place::new();
    let mut config = config(&place, &["r1", "r2"], "all");
    config.shards = 2;
    let primary = Primary::open(config.clone()).unwrap();
    primary.create_slot("r3", false).unwrap();
    primary.stop();
    // As if only one of them had come to the next version, whichever it is.
    for first in [0, 1] {
        let superblock = |shard: u32| place.path("p").join(format!("shard-{shard:04}/superblock"));
        let before = std::fs::read(superblock(1 - first)).unwrap();
        let primary = Primary::open(config.clone()).unwrap();
        let version = primary.settings().version;
        if first == 0 {
            primary.add_replica("r3").unwrap()
        } else {
            primary.remove_replica("r2").unwrap()
        };
        let set = primary.settings();
        assert_eq!(set.version, version + 1);
        primary.stop();
        std::fs::write(superblock(1 - first), before).unwrap();
        let primary = Primary::open(config.clone()).unwrap();
        assert_eq!(primary.settings(), set);
        for s in primary.status() {
            let slots: Vec<_> = s.slots.iter().map(|s| s.kind).collect();
            assert_eq!((s.settings_version, slots), (set.version, vec![SlotKind::Configured; set.replicas.len()]));
        }
        primary.stop();
    }
}

#[test]
fn who_waits_keeps_what_was_asked_for_when_the_policy_changes() {
    let place = Place::new();
    let primary = Primary::open(config(&place, &["r1"], "ack_n=1")).unwrap();
    let handle = primary.handle();
    let waits = handle.append(ONE, b"for one").unwrap();
    until("it is here", || of(&primary).durable_lsn.0 > 0);
    primary.set_commit_policy(CommitPolicy::Local).unwrap();
    commit(&handle, b"for none");
    let r1 = Replica::open(place.replica("r1")).unwrap();
    assert!(matches!(waits.wait(), Ok(Outcome::Committed { acks: 1, .. })));
    primary.change_settings(SettingChange::Deadline(Duration::from_millis(50)), None).unwrap();
    primary.set_commit_policy(policy("ack_n=1")).unwrap();
    r1.stop();
    until("it is gone", || of(&primary).slots[0].state == towline::SlotState::Down);
    let outcome = handle.append(ONE, b"a short while").unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::TimedOut { acks: 0, wanted: 1, .. }), "{outcome:?}");
    assert!(primary.set_commit_policy(policy("ack_n=2")).is_err());
}

#[test]
fn a_change_for_a_version_that_is_gone_is_refused_and_changes_at_once_are_all_made() {
    let place = Place::new();
    let mut config = config(&place, &[], "local");
    config.shards = 4;
    let primary = Primary::open(config).unwrap();
    let add = |name: &str, version| {
        let name = towline::wire::handshake::NodeName::new(name).unwrap();
        primary.change_settings(SettingChange::AddReplica(name), version)
    };
    assert_eq!(add("a", Some(1)), Ok(2));
    assert_eq!(add("b", Some(1)), Err(SettingsError::Version { wanted: 1, now: 2 }));
    let mut versions: Vec<u64> = std::thread::scope(|scope| {
        let adding: Vec<_> =
            (0..8).map(|n| (format!("r{n}"), &add)).map(|(name, add)| scope.spawn(move || add(&name, None))).collect();
        adding.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
    });
    versions.sort_unstable();
    assert_eq!(versions, (3..11).collect::<Vec<_>>());
    assert!(primary.status().iter().all(|s| s.settings_version == 10 && s.slots.len() == 9));
}

#[test]
fn a_smaller_cap_holds_at_once() {
    let place = Place::new();
    let mut config = config(&place, &["r1"], "local");
    config.node.retain = Retain::Bytes(2 * 65536);
    config.retain_max = RetainMax::Unlimited;
    let primary = Primary::open(config).unwrap();
    commit_all(&primary.handle(), &records(2000, 0));
    assert_eq!((of(&primary).oldest_lsn.0, of(&primary).slots[0].lost), (0, None));
    let least = 4 * 65536;
    let e = primary.change_settings(SettingChange::RetainMax(RetainMax::Bytes(least - 1)), None).unwrap_err();
    assert!(e.to_string().contains("retain-max in bytes is 262143, it must be from 262144"), "{e}");
    primary.change_settings(SettingChange::RetainMax(RetainMax::Bytes(least)), None).unwrap();
    until("the slot is lost", || of(&primary).slots[0].lost.is_some());
    until("the log is let go of", || of(&primary).oldest_lsn.0 > 0);
}

#[test]
fn appends_are_refused_while_too_few_replicas_have_acknowledged_lately() {
    let place = Place::new();
    let mut config = config(&place, &["r1"], "local");
    (config.min_replicas, config.min_replicas_age) = (1, Duration::from_secs(2));
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let append = || handle.append(ONE, b"one").and_then(|t| t.wait());
    let shut = Err(AppendError::MinReplicas { wanted: 1, fresh: 0, age: Duration::from_secs(2) });
    assert_eq!(append(), shut);
    assert!(of(&primary).too_few_fresh);
    let r1 = Replica::open(place.replica("r1")).unwrap();
    until("it is open", || append().is_ok());
    // A commit that waits is not touched when the gate shuts; the handler of this one never comes so far.
    let applied = AppendOptions { policy: Some(policy("ack_n=1:applied")), deadline: None };
    r1.stop();
    until("it is shut", || append() == shut);
    primary.change_settings(SettingChange::MinReplicas(0), None).unwrap();
    let waits = handle.append_with(ONE, b"accepted", applied).unwrap();
    until("it is here", || of(&primary).durable_lsn == of(&primary).appended_lsn);
    primary.change_settings(SettingChange::MinReplicas(1), None).unwrap();
    assert_eq!(append(), shut);
    // A client over the network is told the same.
    let addr = place.addr.to_string();
    let options = (client::AppendOptions::default(), client::ConnectOptions::default());
    let mut appender = client::Appender::open(&addr, 0, options.0, &options.1).unwrap();
    let told = appender.append_one(b"over the network").unwrap();
    assert_eq!((told.status, told.acks, told.wanted), (client::CommitStatus::MinReplicas, 0, 1));
    let _r1 = Replica::open(place.replica("r1")).unwrap();
    assert!(matches!(waits.wait(), Ok(Outcome::Committed { .. })));
    until("it is open again", || append().is_ok());
    assert!(!of(&primary).too_few_fresh);
}
