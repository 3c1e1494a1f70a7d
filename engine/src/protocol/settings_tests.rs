use super::*;
use towline_wire::Lsn;
use towline_wire::superblock::SlotLoss;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn settings(replicas: &[&str], commit: &str) -> Settings {
    Settings {
        version: 7,
        replicas: replicas.iter().map(|n| name(n)).collect(),
        commit: commit.parse().unwrap(),
        deadline: Duration::from_secs(10),
        retain_max: RetainMax::Auto,
        slot_idle_max: None,
        min_replicas: 0,
        min_replicas_age: Duration::from_secs(10),
        catch_up_max: None,
        link_window_bytes: 32 << 20,
        lag_target: None,
    }
}

#[test]
fn each_change_makes_the_next_version_and_one_that_could_never_hold_none() {
    use SettingChange as C;
    let s = settings(&["r1", "r2"], "ack_n=2");
    let next = s.with(C::AddReplica(name("r3")), 0, 0).unwrap();
    assert_eq!((next.version, next.replicas.len()), (8, 3));
    assert_eq!(s.with(C::AddReplica(name("r2")), 7, 0), Err(SettingsError::Configured(name("r2"))));
    assert_eq!(s.with(C::RemoveReplica(name("r3")), 7, 0), Err(SettingsError::NotConfigured(name("r3"))));
    let e = s.with(C::RemoveReplica(name("r1")), 0, 0).unwrap_err();
    assert!(matches!(e, SettingsError::Policy(PolicyError::TooMany { wanted: 2, configured: 1, .. })), "{e}");
    let weaker = s.with(C::Commit("ack_n=1".parse().unwrap()), 0, 0).unwrap();
    let one = weaker.with(C::RemoveReplica(name("r1")), 8, 0).unwrap();
    assert_eq!((one.version, one.replicas.as_slice()), (9, &[name("r2")][..]));
    let e = settings(&["r1"], "all").with(C::RemoveReplica(name("r1")), 0, 0).unwrap_err();
    assert!(e.to_string().contains("commit policy all:flushed needs 1 replicas, 0 are configured"), "{e}");
    assert!(settings(&["r1"], "local").with(C::RemoveReplica(name("r1")), 0, 0).is_ok());
    assert!(s.with(C::Commit("ack_n=3".parse().unwrap()), 0, 0).is_err());
}

#[test]
fn a_change_for_another_version_is_refused_with_both() {
    let s = settings(&[], "local");
    let change = SettingChange::Deadline(Duration::from_secs(1));
    assert_eq!(s.with(change, 6, 0), Err(SettingsError::Version { wanted: 6, now: 7 }));
    assert_eq!(s.with(change, 7, 0).unwrap().version, 8);
    assert_eq!(s.with(change, 0, 0).unwrap().version, 8, "0 is any");
}

#[test]
fn values_outside_their_bounds_are_refused_by_name() {
    use SettingChange as C;
    let s = settings(&["r1", "r2"], "local");
    let second = Duration::from_secs(1);
    for (change, field) in [
        (C::Deadline(Duration::ZERO), "deadline"),
        (C::RetainMax(RetainMax::Bytes(99)), "retain-max"),
        (C::SlotIdleMax(Some(second / 2)), "slot-idle-max"),
        (C::SlotIdleMax(Some(limits::SLOT_IDLE_MAX + second)), "slot-idle-max"),
        (C::MinReplicas(3), "min-replicas"),
        (C::MinReplicasAge(limits::MIN_REPLICAS_AGE_MIN - second), "min-replicas-age"),
        (C::MinReplicasAge(limits::MIN_REPLICAS_AGE_MAX + second), "min-replicas-age"),
        (C::CatchUpMax(Some(limits::CATCH_UP_MAX_MIN - 1)), "catch-up-max"),
        (C::LinkWindow(4095), "link-window"),
        (C::LinkWindow(limits::LINK_WINDOW_MAX as u32 + 1), "link-window"),
        (C::LagTarget(Some(limits::LAG_TARGET_MIN - 1)), "lag-target"),
    ] {
        let e = s.with(change, 0, 100).unwrap_err().to_string();
        assert!(e.contains(field), "{e:?} does not name {field}");
    }
    for change in [
        C::RetainMax(RetainMax::Bytes(100)),
        C::SlotIdleMax(Some(second)),
        C::MinReplicas(2),
        C::MinReplicasAge(limits::MIN_REPLICAS_AGE_MAX),
        C::CatchUpMax(Some(limits::CATCH_UP_MAX_MIN)),
        C::CatchUpMax(None),
        C::LinkWindow(4096),
        C::LinkWindow(limits::LINK_WINDOW_MAX as u32),
        C::LagTarget(Some(limits::LAG_TARGET_MIN)),
        C::LagTarget(None),
    ] {
        assert!(s.with(change, 0, 100).is_ok(), "{change:?}");
    }
    let gated = s.with(C::MinReplicas(2), 0, 0).unwrap();
    assert!(matches!(gated.with(C::RemoveReplica(name("r1")), 0, 0), Err(SettingsError::MinReplicas { .. })));
}

#[test]
fn as_many_replicas_as_may_be_are_configured_and_no_more() {
    let names: Vec<String> = (0..limits::REPLICAS_MAX).map(|n| format!("r{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let most = settings(&names[1..], "majority").with(SettingChange::AddReplica(name("r0")), 0, 0).unwrap();
    assert_eq!(most.with(SettingChange::AddReplica(name("more")), 0, 0), Err(SettingsError::TooMany));
    assert_eq!(most.need().unwrap().replicas, 65);
}

#[test]
fn settings_come_back_from_a_superblock_and_changes_from_the_network() {
    use SettingChange as C;
    let mut s = settings(&["r1", "r2"], "ack_n=1:applied");
    (s.retain_max, s.min_replicas) = (RetainMax::Unlimited, 2);
    s.slot_idle_max = Some(Duration::from_secs(5));
    let slot = |n: &str, kind, lost| SlotEntry { name: name(n), restart_lsn: Lsn(0), kind, lost };
    let slots = [
        slot("r1", SlotKind::Configured, None),
        slot("reader", SlotKind::Made, None),
        slot("r2", SlotKind::Configured, Some(SlotLoss::Removed)),
    ];
    (s.catch_up_max, s.link_window_bytes, s.lag_target) = (Some(1 << 20), 1 << 20, Some(9 << 20));
    let started = settings(&[], "local").links();
    assert_eq!(Settings::of_superblock(&s.entry(), &slots, started), Some(s.clone()));
    // A build that knew no settings of links wrote it: they are as the node was started.
    let older = SettingsEntry { links: None, ..s.entry() };
    (s.catch_up_max, s.link_window_bytes, s.lag_target) = (None, 32 << 20, None);
    assert_eq!(Settings::of_superblock(&older, &slots, started), Some(s));
    for change in [
        C::AddReplica(name("r9")),
        C::RemoveReplica(name("r9")),
        C::Commit("majority:received".parse().unwrap()),
        C::Deadline(Duration::from_millis(3)),
        C::RetainMax(RetainMax::Auto),
        C::RetainMax(RetainMax::Unlimited),
        C::RetainMax(RetainMax::Bytes(5)),
        C::SlotIdleMax(None),
        C::SlotIdleMax(Some(Duration::from_secs(1))),
        C::MinReplicas(0),
        C::MinReplicasAge(Duration::from_secs(2)),
        C::CatchUpMax(None),
        C::CatchUpMax(Some(1 << 40)),
        C::LinkWindow(1 << 30),
        C::LagTarget(None),
        C::LagTarget(Some(7)),
    ] {
        let request = ControlRequest { action: change.to_wire(), if_version: 0 };
        let read = ControlRequest::check(&request.to_bytes()).unwrap();
        assert_eq!(SettingChange::from_wire(&read), Some(change));
    }
}

#[test]
fn what_a_start_says_otherwise_is_named_and_what_it_leaves_out_is_not() {
    let found = settings(&["r1", "r3"], "majority");
    assert_eq!(found.differences(&settings(&["r3", "r1"], "local")), []);
    let started = settings(&["r1", "r2"], "ack_n=1");
    let told = found.differences(&started);
    assert_eq!(told[0], ("--replicas", "r1,r2".into(), "r1,r3".into()));
    assert_eq!(told[1], ("--commit", "ack_n=1:flushed".into(), "majority:flushed".into()));
    assert_eq!(told.len(), 2);
}
