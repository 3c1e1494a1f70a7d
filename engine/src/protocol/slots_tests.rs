//! Slots: who may serve one, when it is lost, and what is kept of it.

use super::*;

/// All of it is on the primary's device.
const ALL: Lsn = Lsn(u64::MAX);
const BEAT: u64 = limits::HEARTBEAT.as_nanos() as u64;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn slots() -> Slots {
    Slots::fresh(&[name("r1"), name("r2")])
}

fn flushed(lsn: u64) -> SlotPositions {
    SlotPositions { received: Lsn(lsn), flushed: Lsn(lsn), applied: Lsn(0) }
}

#[test]
fn the_restart_lsn_follows_what_is_flushed_and_goes_back_only_with_a_new_link() {
    let mut s = slots();
    s.attach(0, (1, 7), Lsn(8192), ALL, 0);
    let at = SlotPositions { received: Lsn(40960), ..flushed(20480) };
    s.on_ack(0, at, Seq(3), ALL, 0);
    assert_eq!(s.get(0).unwrap().restart, Lsn(20480));
    assert!(s.detach(0, 1, 0) && !s.detach(0, 1, 0));
    let slot = s.get(0).unwrap();
    assert_eq!((slot.restart, slot.at.received), (Lsn(20480), Lsn(20480)), "memory is lost with the link");
    s.attach(0, (2, 7), Lsn(4096), ALL, 0);
    assert_eq!(s.get(0).unwrap().restart, Lsn(4096));
    assert_eq!(s.holding().collect::<Vec<_>>(), [(0, Lsn(4095)), (1, Lsn(0))]);
}

#[test]
fn what_only_the_replica_has_on_its_device_does_not_move_the_restart_lsn() {
    let mut s = slots();
    // The primary may lose it in a crash, and then cut the replica back to 8192.
    s.attach(0, (1, 7), Lsn(12288), Lsn(8192), 0);
    assert_eq!(s.get(0).unwrap().restart, Lsn(8192));
    s.on_ack(0, flushed(20480), Seq(0), Lsn(8192), 0);
    assert_eq!((s.get(0).unwrap().restart, s.get(0).unwrap().at.flushed), (Lsn(8192), Lsn(20480)));
    s.on_ack(0, flushed(20480), Seq(0), Lsn(16384), 0);
    assert_eq!(s.get(0).unwrap().restart, Lsn(16384));
}

#[test]
fn a_second_live_process_is_refused_and_the_same_one_or_a_dead_ones_successor_is_not() {
    let mut s = slots();
    assert_eq!(s.refusal(0, 7, 0), None);
    s.attach(0, (1, 7), Lsn(0), ALL, 5 * BEAT);
    assert_eq!(s.refusal(0, 8, 8 * BEAT), Some(Refusal::SlotInUse));
    assert_eq!(s.refusal(0, 0, 8 * BEAT), Some(Refusal::SlotInUse), "0 is nobody's number");
    assert_eq!(s.refusal(0, 7, 8 * BEAT), None, "the same process comes again");
    assert_eq!(s.refusal(1, 8, 8 * BEAT), None, "another slot");
    s.on_ack(0, flushed(0), Seq(0), ALL, 9 * BEAT);
    assert_eq!(s.refusal(0, 8, 12 * BEAT), Some(Refusal::SlotInUse));
    assert_eq!(s.refusal(0, 8, 12 * BEAT + 1), None, "it has said nothing for three heartbeats");
    assert_eq!(s.attach(0, (2, 8), Lsn(0), ALL, 13 * BEAT), Some(1));
    assert!(s.is_served_by(0, 2) && !s.is_served_by(0, 1));
    assert!(!s.detach(0, 1, 13 * BEAT), "the old link's end is not the new one's");
    assert_eq!(s.connected(), 1);
}

#[test]
fn a_lost_slot_holds_nothing_and_says_why_until_it_is_made_anew() {
    for cause in SlotLoss::ALL {
        let mut s = slots();
        s.attach(0, (1, 7), Lsn(8192), ALL, 0);
        let lost = Lost { name: name("r1"), cause, restart: Lsn(8192) };
        assert_eq!(s.lose(0, cause, 0), Some(lost));
        assert_eq!(s.lose(0, SlotLoss::Idle, 0), None, "it is lost once");
        assert_eq!(s.refusal(0, 7, 0), Some(refusal_of(cause)));
        assert_eq!(s.holding().map(|h| h.0).collect::<Vec<_>>(), [1]);
        let slot = s.get(0).unwrap();
        assert_eq!((slot.at, slot.link, slot.restart), (SlotPositions::default(), None, Lsn(8192)));
        // A restart does not forget it.
        let (mut s, _) = Slots::new(&[name("r1"), name("r2")], &s.entries(), true, Lsn(20480), 0);
        assert_eq!(s.refusal(0, 7, 0), Some(refusal_of(cause)));
        assert_eq!(s.make(name("r1"), false, Lsn(20480), 0), Ok(0));
        assert_eq!(s.refusal(0, 7, 0), None);
        assert_eq!(s.get(0).unwrap().restart, Lsn(20480), "it holds what is there");
        assert_eq!(s.make(name("r1"), false, Lsn(20480), 0), Err(SlotError::Exists(name("r1"))));
    }
}

#[test]
fn idle_slots_are_told_by_a_clock_that_is_given() {
    let second = 1_000_000_000;
    let late = |s: &Slots, most: Option<u64>, now| s.idle(most.map(Duration::from_secs), now);
    let (mut s, _) = Slots::new(&[name("r1"), name("r2")], &[], true, Lsn(0), 100 * second);
    assert_eq!(late(&s, Some(60), 160 * second - 1), [0; 0]);
    assert_eq!(late(&s, Some(60), 160 * second), [0, 1]);
    assert_eq!(late(&s, None, u64::MAX), [0; 0], "never, unless it is configured");
    s.attach(0, (1, 7), Lsn(0), ALL, 150 * second);
    assert_eq!(late(&s, Some(60), 1000 * second), [1], "who is served is not idle, whatever it says");
    s.detach(0, 1, 1000 * second);
    assert_eq!(late(&s, Some(60), 1059 * second), [1]);
    s.lose(1, SlotLoss::Idle, 1059 * second);
    assert_eq!(late(&s, Some(60), 1060 * second), [0]);
    assert_eq!(s.get(0).unwrap().idle_ns(1060 * second), 60 * second);
}

#[test]
fn slots_are_made_and_removed_and_configured_ones_stay_where_they_are() {
    let mut s = slots();
    assert_eq!(s.make(name("x"), false, Lsn(4096), 0), Ok(2));
    assert_eq!(s.make(name("x"), true, Lsn(4096), 0), Err(SlotError::Exists(name("x"))));
    assert_eq!(s.make(name("y"), true, Lsn(4096), 0), Ok(3));
    assert_eq!(s.remove(name("z"), 0), Err(SlotError::Unknown(name("z"))));
    s.attach(2, (1, 7), Lsn(8192), ALL, 0);
    let (slot, lost) = s.remove(name("x"), 0).unwrap();
    assert_eq!((slot, lost.map(|l| (l.cause, l.restart))), (2, Some((SlotLoss::Removed, Lsn(8192)))));
    assert!(s.get(2).is_none() && s.of(name("x")).is_none());
    assert_eq!(s.refusal(2, 7, 0), Some(Refusal::SlotRemoved));
    assert_eq!(s.make(name("z"), false, Lsn(4096), 0), Ok(2), "its number is free again");
    assert!(!s.is_served_by(2, 1), "but not for the old link");
    // A configured replica's stays and says so.
    s.lose(0, SlotLoss::Idle, 0);
    assert_eq!(s.remove(name("r1"), 0), Ok((0, None)));
    assert_eq!(s.refusal(0, 7, 0), Some(Refusal::SlotRemoved));
    assert_eq!(s.make(name("r1"), true, Lsn(0), 0), Err(SlotError::NotTemporary(name("r1"))));
    assert_eq!(s.configured().count(), 2);
}

#[test]
fn a_temporary_slot_ends_with_its_link_and_waits_for_one_only_so_long() {
    let wait = limits::TEMPORARY_SLOT_WAIT.as_nanos() as u64;
    let mut s = slots();
    s.make(name("t"), true, Lsn(0), 0).unwrap();
    s.make(name("u"), true, Lsn(0), 0).unwrap();
    assert!(s.entries().iter().all(|e| e.name != name("t")), "no restart keeps it");
    s.attach(2, (1, 7), Lsn(0), ALL, 0);
    assert_eq!(s.idle(None, wait - 1), [0; 0]);
    assert_eq!(s.idle(None, wait), [3]);
    assert_eq!(s.lose(3, SlotLoss::Idle, wait).map(|l| l.name), Some(name("u")));
    assert!(s.get(3).is_none());
    s.detach(2, 1, wait);
    assert_eq!(s.iter().count(), 2);
}

#[test]
fn as_many_slots_as_the_superblock_holds_and_not_one_more() {
    let mut s = slots();
    for n in 2..SLOTS_MAX {
        s.make(name(&format!("s{n}")), n % 2 == 0, Lsn(0), 0).unwrap();
    }
    assert_eq!(s.make(name("more"), false, Lsn(0), 0), Err(SlotError::TooMany));
    s.remove(name("s5"), 0).unwrap();
    assert_eq!(s.make(name("more"), false, Lsn(0), 0), Ok(5));
}

#[test]
fn what_a_restart_finds_follows_the_configuration() {
    let saved = |name: &str, restart, kind, lost| SlotEntry {
        name: NodeName::new(name).unwrap(),
        restart_lsn: Lsn(restart),
        kind,
        lost,
    };
    let entries = [
        saved("r1", 20480, SlotKind::Configured, None),
        saved("old", 8192, SlotKind::Configured, None),
        saved("x", 12288, SlotKind::Made, None),
        saved("r3", 12288, SlotKind::Made, Some(SlotLoss::Idle)),
    ];
    let (s, gone) = Slots::new(&[name("r3"), name("r1"), name("r2")], &entries, true, Lsn(8192), 0);
    assert_eq!(gone, [name("old")]);
    let found: Vec<_> = s.iter().map(|(_, s)| (s.name.to_string(), s.kind, s.restart.0, s.lost)).collect();
    assert_eq!(
        found,
        [
            ("r3".into(), Kind::Configured, 12288, Some(SlotLoss::Idle)),
            ("r1".into(), Kind::Configured, 20480, None),
            ("r2".into(), Kind::Configured, 8192, None),
            ("x".into(), Kind::Made, 12288, None),
        ]
    );
    // After another's reign only the beginning of the log is known to be enough.
    let (s, _) = Slots::new(&[name("r1")], &entries, false, Lsn(8192), 0);
    assert_eq!(s.get(0).unwrap().restart, Lsn(8192));
}

#[test]
fn a_slot_that_was_made_becomes_a_configured_ones_and_stays_where_it_is() {
    let mut s = slots();
    let reader = s.make(name("r3"), false, Lsn(4096), 0).unwrap();
    s.attach(reader, (1, 1), Lsn(8192), Lsn(8192), 10);
    s.prepare(&[name("r1"), name("r3")], Lsn(0), 20).unwrap();
    let kept: Vec<_> = s.entries().iter().map(|e| (e.name.to_string(), e.kind)).collect();
    assert_eq!(kept, [("r1".into(), SlotKind::Configured), ("r3".into(), SlotKind::Configured)], "r2 leaves");
    assert!(s.of(name("r2")).is_some(), "until that is on the device");
    assert_eq!(s.of(name("r3")), Some(reader));
    assert_eq!((s.get(reader).unwrap().restart, s.is_served_by(reader, 1)), (Lsn(8192), true));
    let gone = s.configure(30);
    assert_eq!((gone.len(), gone[0].name, gone[0].cause), (1, name("r2"), SlotLoss::Removed));
    assert_eq!((s.of(name("r2")), s.configured().count()), (None, 2));
    // A lost one is made anew where it becomes configured, not where it is already.
    s.lose(0, SlotLoss::Idle, 40);
    let lost = s.make(name("r4"), false, Lsn(4096), 40).unwrap();
    s.lose(lost, SlotLoss::Idle, 41);
    s.prepare(&[name("r1"), name("r3"), name("r4")], Lsn(12288), 50).unwrap();
    assert!(!s.get(0).unwrap().is_valid());
    assert_eq!((s.get(lost).unwrap().is_valid(), s.get(lost).unwrap().restart), (true, Lsn(12288)));
}

#[test]
fn a_replica_is_heard_lately_by_its_acknowledgements_alone() {
    let mut s = slots();
    let second = 1_000_000_000;
    let age = Duration::from_secs(5);
    assert_eq!((s.fresh_until(0, age), s.fresh_until(1, age), s.heard_within(age, 1)), (u64::MAX, 0, 0));
    s.attach(0, (1, 1), Lsn(0), Lsn(0), second);
    s.attach(1, (2, 2), Lsn(0), Lsn(0), 2 * second);
    assert_eq!((s.fresh_until(1, age), s.heard_within(age, second)), (0, 0), "their hellos may be old");
    s.on_ack(0, SlotPositions::default(), Seq(0), Lsn(0), second);
    s.on_ack(1, SlotPositions::default(), Seq(0), Lsn(0), 2 * second);
    assert_eq!((s.fresh_until(1, age), s.fresh_until(2, age), s.fresh_until(3, age)), (7 * second, 6 * second, 0));
    s.on_ack(0, SlotPositions::default(), Seq(0), Lsn(0), 4 * second);
    assert_eq!((s.fresh_until(2, age), s.fresh_until(1, age)), (7 * second, 9 * second));
    assert_eq!([6, 7, 8, 9].map(|at| s.heard_within(age, at * second)), [2, 1, 1, 0]);
    // Who only reads, and who lost its slot, does not count.
    let reader = s.make(name("reader"), false, Lsn(0), 0).unwrap();
    s.attach(reader, (3, 3), Lsn(0), Lsn(0), 5 * second);
    s.on_ack(reader, SlotPositions::default(), Seq(0), Lsn(0), 5 * second);
    s.lose(0, SlotLoss::Idle, 6 * second);
    assert_eq!((s.fresh_until(1, age), s.fresh_until(2, age)), (7 * second, 0));
    assert_eq!(s.fresh_until(1, Duration::MAX), u64::MAX - 1, "the highest number is for a gate that is off");
}
