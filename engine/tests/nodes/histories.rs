//! One history: what only one node has is saved and cut, and a primary whose time is over can
//! finish no commit.

use std::fs;
use std::time::Duration;

use crate::cluster::{
    self, ONE, Order, Place, commit, commit_all, copy, crash, follow_from_crashes, of, of_replica, on_disk, records,
    side_files, until, until_same,
};
use towline::{AppendError, AppendOptions, CommitPolicy, Lsn, Outcome, Primary, PrimaryConfig, Replica};

fn promoted(mut config: PrimaryConfig) -> PrimaryConfig {
    config.promote = true;
    config
}

/// On the primary's device, and by the shard's own policy not committed.
fn write_here_only(primary: &Primary, records: &[Vec<u8>]) {
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    for record in records {
        let outcome = primary.handle().append_with(ONE, record, local).unwrap().wait().unwrap();
        assert!(outcome.committed().is_some());
    }
}

/// A former primary under `folder` and a promoted replica under `r1` whose logs part after `shared`:
/// `lost` records are only on the former, `new` ones only on the promoted one.
fn parted(place: &Place, shared: &[Vec<u8>], lost: &[Vec<u8>], new: &[Vec<u8>]) -> Primary {
    let primary = Primary::open(place.primary("old", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit_all(&primary.handle(), shared);
    until_same(&primary, &replica);
    replica.stop();
    write_here_only(&primary, lost);
    primary.stop();
    let mut config = promoted(place.primary("r1", &["old", "r2"]));
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    commit_all(&primary.handle(), new);
    primary
}

#[test]
fn a_promoted_replica_continues_the_log_under_a_new_term() {
    let place = Place::new();
    let (shared, new) = (records(50, 0), records(50, 50));
    let primary = parted(&place, &shared, &[], &new);
    let s = of(&primary);
    assert!(s.term.0 >= 2 && s.tail_seq.0 == 100);
    primary.stop();
    assert!(on_disk(&place.path("r1")) == [shared, new].concat());
    // It is a primary's folder now.
    let mut config = place.primary("r1", &["old", "r2"]);
    config.commit = CommitPolicy::Local;
    Primary::open(config).unwrap().stop();
}

#[test]
fn a_replicas_folder_becomes_a_primarys_only_when_asked() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    Replica::open(place.replica("r1")).unwrap().stop();
    primary.stop();
    let e = Primary::open(place.primary("r1", &[])).unwrap_err().to_string();
    assert!(e.contains("replica r1") && e.contains("--promote"), "{e}");
    let mut config = place.replica("r1");
    config.name = "r2".into();
    let e = Replica::open(config).unwrap_err().to_string();
    assert!(e.contains("replica r1, not of r2"), "{e}");
}

#[test]
fn a_tail_that_only_the_former_primary_has_is_saved_and_cut() {
    let place = Place::new();
    let (shared, lost, new) = (records(40, 0), records(30, 100), records(60, 200));
    let primary = parted(&place, &shared, &lost, &new);
    let before = on_disk(&place.path("old"));
    assert!(before == [shared.clone(), lost.clone()].concat());
    let old = Replica::open(place.replica("old")).unwrap();
    until_same(&primary, &old);
    commit(&primary.handle(), b"after");
    until_same(&primary, &old);
    let end = of_replica(&old).durable_lsn;
    old.stop();
    assert!(on_disk(&place.path("old")) == [shared.clone(), new.clone(), vec![b"after".to_vec()]].concat());
    // What was cut is in the side file, batch for batch.
    let side = side_files(&place, "old");
    assert_eq!(side.len(), 1, "{side:?}");
    let bytes = fs::read(&side[0]).unwrap();
    let (mut at, mut saved) = (0, Vec::new());
    while at < bytes.len() {
        let view = towline::wire::BatchView::check_on_disk(&bytes[at..]).unwrap();
        saved.extend(view.records().map(<[u8]>::to_vec));
        at += view.header().disk_len() as usize;
    }
    assert!(saved == lost);
    // And it opens again, as a replica, with nothing more to cut.
    let old = Replica::open(place.replica("old")).unwrap();
    until_same(&primary, &old);
    assert!(of_replica(&old).durable_lsn >= end);
    assert_eq!(side_files(&place, "old").len(), 1);
}

/// Found by the simulator: the log was cut where it was damaged, far below where it had to be.
#[test]
fn a_cut_in_a_damaged_log_is_refused_and_changes_nothing() {
    let place = Place::new();
    let primary = parted(&place, &records(40, 0), &records(30, 100), &records(20, 200));
    primary.stop();
    let old = Replica::open(place.replica("old")).unwrap();
    // Its last batch, after its start has read it: nothing follows it, as if it were torn.
    let (file, at) = cluster::locate(&place.path("old"), Lsn(of_replica(&old).durable_lsn.0 - 4096), 64 << 10);
    cluster::overwrite(&file, at + 200, b"damage");
    let before = fs::read(&file).unwrap();
    let mut config = place.primary("r1", &["old", "r2"]);
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    until("the shard stops", || of_replica(&old).stopped.is_some());
    let why = of_replica(&old).stopped.unwrap();
    assert!(why.contains("is damaged at offset") && why.contains("the log was durable up to"), "{why}");
    old.stop();
    assert!(fs::read(&file).unwrap() == before);
    assert_eq!(side_files(&place, "old").len(), 0);
    primary.stop();
}

#[test]
fn a_cut_log_opens_after_a_crash_at_any_time() {
    let place = Place::new();
    let (shared, lost, new) = (records(40, 0), records(120, 100), records(20, 500));
    let primary = parted(&place, &shared, &lost, &new);
    let old = Replica::open(place.replica("old")).unwrap();
    // Copies while it cuts and goes on, as crashes at those instants would leave it.
    let mut copies = 0;
    until("it has the new log", || {
        copies += u32::from(crash(Order::OldestFirst, &place.path("old"), &place.path(&format!("crash-{copies}"))));
        let (p, r) = (of(&primary), of_replica(&old));
        r.applied_lsn == p.appended_lsn && r.chain == p.chain
    });
    // At the latest when it has come to rest.
    until("a copy of one instant", || {
        let copied = crash(Order::OldestFirst, &place.path("old"), &place.path(&format!("crash-{copies}")));
        copies += u32::from(copied);
        copied
    });
    old.stop();
    follow_from_crashes(&place, copies, &primary);
}

#[test]
fn a_term_that_lost_everything_leaves_no_trace_in_a_former_primarys_history() {
    // Cut below where a term began, then a newer term begins lower than that one did.
    let place = Place::new();
    let primary = Primary::open(place.primary("old", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit_all(&primary.handle(), &records(20, 0));
    until_same(&primary, &replica);
    replica.stop();
    primary.stop();
    for reign in 0..3 {
        let primary = Primary::open(place.primary("old", &["r1"])).unwrap();
        write_here_only(&primary, &records(10, 100 * reign));
        primary.stop();
    }
    let mut config = promoted(place.primary("r1", &["old"]));
    config.commit = CommitPolicy::Local;
    // Its term must be above every one that the former primary has used.
    for _ in 0..4 {
        Primary::open(config.clone()).unwrap().stop();
    }
    let primary = Primary::open(config).unwrap();
    commit_all(&primary.handle(), &records(10, 1000));
    let old = Replica::open(place.replica("old")).unwrap();
    until_same(&primary, &old);
    copy(&place.path("old"), &place.path("crash"));
    old.stop();
    for folder in ["crash", "old"] {
        let mut config = place.replica("old");
        config.node.data = place.path(folder);
        let old = Replica::open(config).unwrap();
        until_same(&primary, &old);
        old.stop();
    }
}

#[test]
fn a_stale_primary_is_fenced_and_finishes_no_commit() {
    let place = Place::new();
    let config = place.primary("p", &["r1"]);
    let primary = Primary::open(config.clone()).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"first");
    until_same(&primary, &replica);
    primary.stop();
    copy(&place.path("p"), &place.path("stale"));
    // Two more reigns that the replica follows.
    for _ in 0..2 {
        let primary = Primary::open(config.clone()).unwrap();
        commit(&primary.handle(), b"more");
        primary.stop();
    }
    let followed = of_replica(&replica).term;
    replica.stop();
    let mut config = place.primary("stale", &["r1"]);
    config.deadline = Duration::from_secs(100);
    let stale = Primary::open(config).unwrap();
    assert!(of(&stale).term < followed);
    let handle = stale.handle();
    let waiting = handle.append(ONE, b"never").unwrap();
    let before = of(&stale).commit_lsn;
    let replica = Replica::open(place.replica("r1")).unwrap();
    assert_eq!(waiting.wait(), Ok(Outcome::Fenced));
    until("new appends are refused", || handle.append(ONE, b"late").is_err_and(|e| e == AppendError::Fenced));
    // Not even one that wants no replica.
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    assert_eq!(handle.append_with(ONE, b"late", local).err(), Some(AppendError::Fenced));
    assert_eq!(of(&stale).commit_lsn, before);
    assert_eq!(of(&stale).stopped.as_deref(), Some("deposed: a newer primary reigns"));
    let s = of_replica(&replica);
    assert_eq!((s.term, s.tail_seq.0), (followed, 3), "the replica took nothing from it");
}

#[test]
fn an_older_primary_is_refused_even_if_it_did_not_ask() {
    // The replica's promise outlives its restart.
    let place = Place::new();
    let config = place.primary("p", &["r1"]);
    let primary = Primary::open(config.clone()).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"first");
    primary.stop();
    copy(&place.path("p"), &place.path("stale"));
    for _ in 0..2 {
        let primary = Primary::open(config.clone()).unwrap();
        // Nothing is written in these reigns: only the promise tells them apart.
        let term = of(&primary).term;
        until("it follows", || of_replica(&replica).term == term);
        primary.stop();
    }
    replica.stop();
    let replica = Replica::open(place.replica("r1")).unwrap();
    let mut config = place.primary("stale", &["r1"]);
    config.deadline = Duration::from_secs(100);
    let stale = Primary::open(config).unwrap();
    let outcome = stale.handle().append(ONE, b"never").and_then(|t| t.wait());
    assert!(matches!(outcome, Ok(Outcome::Fenced) | Err(AppendError::Fenced)), "{outcome:?}");
    assert_eq!(of_replica(&replica).tail_seq.0, 1);
}

#[test]
fn another_systems_primary_and_an_unknown_name_get_no_acknowledgement() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit(&primary.handle(), b"ours");
    until_same(&primary, &replica);
    primary.stop();
    // Another cluster at the same address.
    let mut config = place.primary("foreign", &["r1"]);
    config.deadline = Duration::from_secs(2);
    let foreign = Primary::open(config).unwrap();
    let outcome = foreign.handle().append(ONE, b"theirs").unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::TimedOut { acks: 0, wanted: 1, durable_here: true, .. }), "{outcome:?}");
    assert_eq!(of(&foreign).slots[0].connects, 0);
    // A replica that nobody configured.
    let stranger = Replica::open(place.replica("r9")).unwrap();
    let outcome = foreign.handle().append(ONE, b"theirs").unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::TimedOut { acks: 0, .. }), "{outcome:?}");
    assert_eq!(of_replica(&stranger).tail_seq.0, 0);
    assert_eq!(of_replica(&replica).tail_seq.0, 1);
    replica.stop();
    assert!(on_disk(&place.path("r1")) == [b"ours".to_vec()]);
}
