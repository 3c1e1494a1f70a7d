//! A replica of whose log all that is kept is of a reign that came to nothing: nothing of it is cut before the
//! primary has said what comes in its place, and then the log goes on where it began, or begins anew.

use std::fs;

use crate::cluster::{
    ONE, Order, Place, commit, commit_all, crash, follow_from_crashes, of, of_replica, on_disk, records, side_files,
    until, until_same,
};
use crate::store::Store;
use towline::{AppendOptions, CommitPolicy, Lsn, Primary, PrimaryConfig, Replica, ReplicaConfig, Retain, offline};

const SEGMENT: u64 = 64 << 10;

/// The former primary's tail begins with one large batch: whoever cuts inside of that cuts all of it.
fn tail() -> Vec<u8> {
    vec![7; 3 * SEGMENT as usize]
}

/// Leaves, under `old`, a former primary's folder whose log begins with what only that one has, and under `r1`
/// one of a replica that has all in front of that. Returns where the first begins and ends.
fn parted(place: &Place) -> (Lsn, Lsn) {
    parted_from(place, |config| Replica::open(config).unwrap())
}

/// As [`parted`], from a replica that is opened by `open`.
fn parted_from(place: &Place, open: impl Fn(ReplicaConfig) -> Replica) -> (Lsn, Lsn) {
    let mut config = place.primary("old", &["r1"]);
    config.node.retain = Retain::Bytes(SEGMENT);
    let old = Primary::open(config).unwrap();
    let r1 = open(place.replica("r1"));
    // The tail is to be the first batch of a segment.
    let mut count = 0;
    while !of(&old).appended_lsn.0.is_multiple_of(SEGMENT) || count < 20 {
        commit(&old.handle(), format!("shared {count}").as_bytes());
        count += 1;
    }
    until_same(&old, &r1);
    until("all is applied", || of_replica(&r1).applied_lsn == of(&old).appended_lsn);
    r1.stop();
    // A slot would hold one batch in front of that, and so would a log that was a replica's.
    old.drop_slot("r1").unwrap();
    let at = of(&old).commit_lsn;
    assert_eq!(at, of(&old).appended_lsn);
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    let here_only = |record: &[u8]| {
        assert!(of(&old).durable_lsn < Lsn(at.0 + 20 * SEGMENT), "it keeps what is committed");
        let outcome = old.handle().append_with(ONE, record, local).unwrap().wait().unwrap();
        assert!(outcome.committed().is_some() && of(&old).commit_lsn == at);
    };
    here_only(&tail());
    until("it keeps nothing but the tail", || {
        here_only(b"more");
        of(&old).oldest_lsn == at
    });
    let end = of(&old).durable_lsn;
    old.stop();
    (at, end)
}

/// The replica `r1` becomes the primary.
fn promoted(place: &Place, retain: Retain) -> PrimaryConfig {
    let mut config = place.primary("r1", &[]);
    (config.promote, config.commit, config.node.retain) = (true, CommitPolicy::Local, retain);
    config
}

fn assert_saved(place: &Place) {
    let side = side_files(place, "old");
    assert_eq!(side.len(), 1, "{side:?}");
    let bytes = fs::read(&side[0]).unwrap();
    let view = towline::wire::BatchView::check_on_disk(&bytes).unwrap();
    assert!(view.records().eq([tail().as_slice()]));
}

#[test]
fn a_log_that_is_cut_whole_goes_on_where_it_began_and_opens_after_a_crash_at_any_time() {
    let place = Place::new();
    let (at, _) = parted(&place);
    let primary = Primary::open(promoted(&place, Retain::All)).unwrap();
    primary.create_slot("old", false).unwrap();
    commit_all(&primary.handle(), &records(30, 0));
    // No `rebuild`: nothing that was committed is given up.
    let old = Replica::open(place.replica("old")).unwrap();
    let mut copies = 0;
    until("it has the new log", || {
        copies += u32::from(crash(Order::OldestFirst, &place.path("old"), &place.path(&format!("crash-{copies}"))));
        let (p, r) = (of(&primary), of_replica(&old));
        assert_eq!(r.stopped, None);
        r.applied_lsn == p.appended_lsn && r.chain == p.chain
    });
    assert_eq!((of_replica(&old).oldest_lsn, of_replica(&old).needs_rebuild), (at, false));
    old.stop();
    assert_saved(&place);
    assert!(offline::verify(place.path("old")).unwrap().is_whole());
    assert!(on_disk(&place.path("r1")).ends_with(&records(30, 0)) && on_disk(&place.path("old")) == records(30, 0));
    follow_from_crashes(&place, copies, &primary);
    // A folder that has only just been cut holds nothing, and can be opened.
    let old = Replica::open(place.replica("old")).unwrap();
    until_same(&primary, &old);
}

#[test]
fn a_log_that_would_be_cut_whole_and_cannot_go_on_is_given_up_only_if_that_is_wanted() {
    let place = Place::new();
    let (at, end) = parted(&place);
    let primary = Primary::open(promoted(&place, Retain::Bytes(SEGMENT))).unwrap();
    let mut count = 0;
    until("the primary has let go of where the other log begins", || {
        commit(&primary.handle(), format!("new {count}").as_bytes());
        count += 1;
        of(&primary).oldest_lsn > at
    });
    // A log that ends before that would be too old by itself.
    assert!(of(&primary).oldest_lsn < Lsn(at.0 + 3 * SEGMENT) && at < end);
    primary.create_slot("old", false).unwrap();
    let was = on_disk(&place.path("old"));
    for _ in 0..2 {
        let old = Replica::open(place.replica("old")).unwrap();
        until("it says what to do", || {
            let s = of_replica(&old);
            assert_eq!(s.stopped, None);
            s.needs_rebuild && s.link.contains("--rebuild")
        });
        assert_eq!((of_replica(&old).oldest_lsn, of_replica(&old).durable_lsn), (at, end), "nothing was touched");
        old.stop();
        assert!(on_disk(&place.path("old")) == was && side_files(&place, "old").is_empty());
    }
    let mut config = place.replica("old");
    config.rebuild = true;
    let old = Replica::open(config).unwrap();
    until_same(&primary, &old);
    assert!(of_replica(&old).oldest_lsn > at && !of_replica(&old).needs_rebuild);
    old.stop();
    assert!(offline::verify(place.path("old")).unwrap().is_whole());
}

#[test]
fn a_log_that_is_cut_whole_begins_anew_by_a_snapshot_where_embedders_have_state() {
    let place = Place::new();
    let store = Store::default();
    let (at, end) = parted_from(&place, |config| store.open(config));
    // What the former primary's embedder had taken into its state is what was committed.
    let copy = Store::default();
    copy.lock().state = store.state();
    assert_eq!(copy.state().at, at);
    let mut config = promoted(&place, Retain::Bytes(SEGMENT));
    config.node.snapshot = store.snapshots();
    let primary = Primary::open(config).unwrap();
    until("the primary has let go of where the other log begins", || {
        store.write(&primary.handle(), &records(1, 0));
        of(&primary).oldest_lsn > at
    });
    assert!(of(&primary).oldest_lsn < end, "a log that ends before that would be too old by itself");
    primary.create_slot("old", false).unwrap();
    let mut config = place.replica("old");
    config.rebuild = true;
    let old = copy.open(config);
    until_same(&primary, &old);
    until("all is applied", || of_replica(&old).applied_lsn == of(&primary).appended_lsn);
    assert_eq!(copy.state(), store.state());
    let counters = of_replica(&old).telemetry.counters;
    assert_eq!((counters.whole_cuts, counters.snapshots_installed, copy.lock().installed), (1, 1, 1));
    old.stop();
    assert_saved(&place);
    assert!(offline::verify(place.path("old")).unwrap().is_whole());
    let old = copy.open(place.replica("old"));
    store.write(&primary.handle(), &records(10, 0));
    until_same(&primary, &old);
}
