//! Catch-up keeps to its cap and shows how it comes along; a link never has more under way than its
//! window; nobody else waits for it.

use std::time::Instant;

use crate::cluster::{self, ONE, Place, commit, commit_all, of, on_disk, records, until, until_same};
use towline::{Outcome, Primary, PrimaryConfig, Replica, SettingChange, SlotState};

/// Two replicas, one of which commits wait for; nothing that is durable stays in memory.
fn config(place: &Place) -> PrimaryConfig {
    let mut config = place.primary("p", &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    config.node.live_window_bytes = 0;
    config
}

/// A primary whose second replica was away for about `bytes` of log.
fn with_r2_behind(place: &Place, config: PrimaryConfig, bytes: usize) -> (Primary, Replica) {
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    let record = vec![7; 8000];
    let all: Vec<_> = std::iter::repeat_n(record, bytes.div_ceil(8000)).collect();
    for some in all.chunks(100) {
        commit_all(&handle, some);
    }
    until_same(&primary, &r1);
    (primary, r1)
}

/// How often a catch-up left the disk to others.
fn pauses(primary: &Primary) -> u64 {
    of(primary).telemetry.counters.polite_pauses
}

#[test]
fn a_capped_catch_up_takes_its_time_and_says_how_much_is_left_while_commits_go_on() {
    const BYTES: usize = 2 << 20;
    const RATE: u64 = 1 << 20;
    let place = Place::new();
    let mut config = config(&place);
    config.catch_up_max = Some(RATE);
    let (primary, r1) = with_r2_behind(&place, config, BYTES);
    let began = Instant::now();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    let mut shown = None;
    until("r2 has caught up", || {
        commit(&handle, b"goes on");
        let slot = of(&primary).slots.remove(1);
        // The log may grow faster than the cap: then no time is left to tell.
        if let Some(c) = slot.catch_up.filter(|c| c.bytes_per_s > 0) {
            assert_eq!(slot.state, SlotState::CatchUp);
            assert!(slot.lag_ms > 0.0 && c.percent < 100.0, "{slot:?}");
            shown = Some(c);
        }
        slot.flushed_lsn.0 >= BYTES as u64
    });
    // A burst and the last slice come for nothing.
    let least = 0.8 * (BYTES as f64 / RATE as f64);
    assert!(began.elapsed().as_secs_f64() > least, "it took {:?}", began.elapsed());
    let shown = shown.expect("it was seen on its way");
    assert!(shown.bytes_per_s < 2 * RATE, "{shown:?}");
    until_same(&primary, &r2);
    commit(&handle, b"live again");
    until("it is live", || of(&primary).slots[1].catch_up.is_none());
    until_same(&primary, &r2);
    until_same(&primary, &r1);
}

#[test]
fn a_cap_that_is_lifted_and_a_window_that_shrinks_hold_at_once_for_links_that_are_there() {
    const BYTES: usize = 4 << 20;
    const WINDOW: u32 = 64 << 10;
    let place = Place::new();
    let (primary, r1) = with_r2_behind(&place, config(&place), BYTES);
    // A minute for all of it.
    primary.change_settings(SettingChange::CatchUpMax(Some(64 << 10)), None).unwrap();
    let began = Instant::now();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until("r2 has something, and more is to be paid for", || of(&primary).slots[1].flushed_lsn.0 > 0);
    primary.change_settings(SettingChange::CatchUpMax(None), None).unwrap();
    until_same(&primary, &r2);
    assert!(began.elapsed().as_secs() < 10, "it took {:?}", began.elapsed());
    primary.change_settings(SettingChange::LinkWindow(WINDOW), None).unwrap();
    // What was under way before is there.
    until_same(&primary, &r1);
    let handle = primary.handle();
    let tickets: Vec<_> = (0..400).map(|n| handle.append(ONE, &vec![n as u8; 8000]).unwrap()).collect();
    until("all is committed", || {
        for slot in of(&primary).slots {
            assert!(slot.in_flight_bytes <= WINDOW.into(), "{slot:?}");
        }
        of(&primary).commit_lsn == of(&primary).appended_lsn
    });
    drop(tickets);
    until_same(&primary, &r1);
    until_same(&primary, &r2);
}

#[test]
fn a_catch_up_without_a_cap_leaves_the_disk_to_live_commits() {
    const BYTES: usize = 8 << 20;
    let place = Place::new();
    let (primary, r1) = with_r2_behind(&place, config(&place), BYTES);
    primary.change_settings(SettingChange::CatchUpMax(Some(64 << 10)), None).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    until("r2 has something beside commits", || {
        commit(&handle, b"goes on");
        of(&primary).slots[1].flushed_lsn.0 > 0
    });
    assert_eq!(pauses(&primary), 0, "under a cap that is the pace");
    primary.change_settings(SettingChange::CatchUpMax(None), None).unwrap();
    until("it left the disk to them", || {
        commit(&handle, b"goes on");
        assert!(pauses(&primary) > 0 || of(&primary).slots[1].lag_bytes > 0, "it took all of it at once");
        pauses(&primary) > 0
    });
    until("it comes to its end while they go on", || {
        commit(&handle, b"goes on");
        of(&primary).slots[1].flushed_lsn.0 >= BYTES as u64
    });
    until_same(&primary, &r2);
    until_same(&primary, &r1);
}

#[test]
fn a_catch_up_waits_for_nobody_where_nobody_commits() {
    let place = Place::new();
    let (primary, _r1) = with_r2_behind(&place, config(&place), 8 << 20);
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    assert_eq!(pauses(&primary), 0);
}

#[test]
fn a_link_has_no_more_under_way_than_its_window_or_one_batch() {
    const WINDOW: usize = 64 << 10;
    let place = Place::new();
    let mut config = config(&place);
    config.link_window_bytes = WINDOW;
    let (primary, r1) = with_r2_behind(&place, config, 4 << 20);
    let handle = primary.handle();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let mut n = 0;
    until("r2 has caught up", || {
        commit_all(&handle, &records(20, n));
        n += 20;
        for slot in of(&primary).slots {
            assert!(slot.in_flight_bytes <= WINDOW as u64, "{slot:?}");
        }
        of(&primary).slots[1].lag_bytes < 100_000
    });
    // A batch that is larger than the window goes alone.
    commit(&handle, &vec![9; 300_000]);
    until_same(&primary, &r2);
    until_same(&primary, &r1);
    assert!(of(&primary).telemetry.counters.window_waits > 0);
    r1.stop();
    r2.stop();
    primary.stop();
    assert!(on_disk(&place.path("p")) == on_disk(&place.path("r2")));
}

#[test]
fn beyond_the_lag_target_appends_are_slowed_and_none_is_lost_and_a_reader_never_counts() {
    const TARGET: u64 = 64 << 10;
    let place = Place::new();
    let mut config = config(&place);
    config.replicas = vec!["r1".into()];
    let primary = Primary::open(config).unwrap();
    primary.change_settings(SettingChange::LagTarget(Some(TARGET)), None).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    // A reader that never comes is as far behind as can be.
    primary.create_slot("reader", false).unwrap();
    let handle = primary.handle();
    for n in 0..20 {
        commit(&handle, &vec![n; 9000]);
    }
    let throttled = || of(&primary).telemetry.counters.throttled;
    assert_eq!(throttled(), 0, "nobody whom a commit waits for was behind");
    r1.stop();
    let tickets: Vec<_> = (0..60).map(|n| handle.append(ONE, &vec![n; 15_000]).unwrap()).collect();
    until("batches are held back", || {
        let now = of(&primary);
        now.quorum_lag_bytes > TARGET && now.telemetry.counters.throttled > 0 && now.telemetry.counters.throttled_us > 0
    });
    let r1 = Replica::open(place.replica("r1")).unwrap();
    for ticket in tickets {
        assert!(matches!(ticket.wait(), Ok(Outcome::Committed { .. })));
    }
    until("r1 is near again", || of(&primary).quorum_lag_bytes <= TARGET);
    let before = throttled();
    commit(&handle, b"at once");
    assert_eq!(throttled(), before);
    until_same(&primary, &r1);
    // Without a target nobody is held back, however far behind they are.
    primary.change_settings(SettingChange::LagTarget(None), None).unwrap();
    r1.stop();
    let tickets: Vec<_> = (0..60).map(|n| handle.append(ONE, &vec![n; 15_000]).unwrap()).collect();
    until("all is written", || of(&primary).durable_lsn == of(&primary).appended_lsn);
    assert_eq!(throttled(), before);
    drop(tickets);
}

#[test]
#[cfg(feature = "cli")]
fn a_link_that_compresses_leaves_the_same_bytes_on_both_disks_and_gives_up_where_it_does_not_pay() {
    let place = Place::new();
    let mut config = config(&place);
    config.compress = towline::Compress::Lz4;
    let (primary, r1) = with_r2_behind(&place, config, 1 << 20);
    // Live, and from disk.
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    let squeezed = of(&primary);
    assert!(squeezed.packed_ratio > 4.0, "{}", squeezed.packed_ratio);
    for replica in [&r1, &r2] {
        let c = cluster::of_replica(replica).telemetry.counters;
        assert!(c.packed_batches > 0 && c.packed_from_bytes > 4 * c.packed_to_bytes, "{c:?}");
    }
    // What has no pattern goes as it is, and is tried less and less.
    let handle = primary.handle();
    let mut noise = 88_172_645_463_325_252_u64;
    for _ in 0..40 {
        let record = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()
        });
        commit(&handle, &record.take(1000).flatten().collect::<Vec<u8>>());
    }
    until_same(&primary, &r1);
    until_same(&primary, &r2);
    assert_eq!(of(&primary).telemetry.counters.packed_batches, squeezed.telemetry.counters.packed_batches);
    r1.stop();
    r2.stop();
    primary.stop();
    for node in ["r1", "r2"] {
        assert!(on_disk(&place.path("p")) == on_disk(&place.path(node)), "{node} holds something else");
    }
}
