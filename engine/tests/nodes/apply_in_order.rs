//! A replica's handler gets every record once and in order, goes on where it says, and a handler
//! that cannot go on stops its shard instead of leaving records out.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{ONE, Place, commit, commit_all, of, of_replica, records, until, until_same};
use towline::{
    AppendOptions, AppliedBatch, Apply, ApplyError, ApplyFn, CommitPolicy, Deliver, Lsn, Primary, Replica, Seq, ShardId,
};

/// What a handler was given, kept by the test as an embedder's store would keep it.
#[derive(Default)]
struct Store {
    records: Vec<Vec<u8>>,
    /// The end of the last batch, and where each batch ended at how many records.
    ends: Vec<(Lsn, usize)>,
    /// Where it was to be cut, and where the log in its folder ended then.
    cuts: Vec<(Lsn, Lsn)>,
}

impl Store {
    fn at(&self) -> Lsn {
        self.ends.last().map_or(Lsn::ZERO, |e| e.0)
    }
}

struct Keep {
    store: Arc<Mutex<Store>>,
    deliver: Deliver,
    folder: PathBuf,
}

impl Apply for Keep {
    fn resume_at(&mut self, _: ShardId) -> Lsn {
        self.store.lock().unwrap().at()
    }

    fn deliver(&self) -> Deliver {
        self.deliver
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let mut store = self.store.lock().unwrap();
        assert_eq!(batch.lsn(), store.at(), "batches come without gap or repeat");
        assert_eq!((batch.first_seq().0, batch.shard()), (store.records.len() as u64, ONE));
        store.records.extend(batch.records().map(<[u8]>::to_vec));
        assert_eq!(store.records.len() as u64, batch.first_seq().0 + u64::from(batch.record_count()));
        let count = store.records.len();
        store.ends.push((batch.end_lsn(), count));
        Ok(())
    }

    fn cut(&mut self, _: ShardId, to: Lsn) -> Result<(), ApplyError> {
        let mut store = self.store.lock().unwrap();
        let log = towline::offline::read_log(&self.folder, ONE, None, |_| ControlFlow::Continue(())).unwrap();
        store.cuts.push((to, log.end));
        store.ends.retain(|e| e.0 <= to);
        let count = store.ends.last().map_or(0, |e| e.1);
        store.records.truncate(count);
        Ok(())
    }
}

fn keeping(place: &Place, name: &str, store: &Arc<Mutex<Store>>, deliver: Deliver) -> Replica {
    let (store, folder) = (store.clone(), place.path(name));
    let keep = move |_| Keep { store: store.clone(), deliver, folder: folder.clone() };
    Replica::open_with(place.replica(name), keep).unwrap()
}

#[test]
fn every_record_is_applied_once_and_in_order_over_restarts() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let store = Arc::new(Mutex::new(Store::default()));
    let mut all = Vec::new();
    for n in 0..4 {
        let replica = keeping(&place, "r1", &store, Deliver::Committed);
        let some = records(200, n * 200);
        commit_all(&primary.handle(), &some);
        all.extend(some);
        if n % 2 == 0 {
            until_same(&primary, &replica);
        }
        replica.stop();
    }
    let replica = keeping(&place, "r1", &store, Deliver::Committed);
    until_same(&primary, &replica);
    assert!(store.lock().unwrap().records == all);
    assert!(store.lock().unwrap().cuts.is_empty());
}

#[test]
fn a_handler_that_starts_anew_gets_the_whole_log() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    let all = records(300, 0);
    commit_all(&primary.handle(), &all);
    until_same(&primary, &replica);
    replica.stop();
    let store = Arc::new(Mutex::new(Store::default()));
    let replica = keeping(&place, "r1", &store, Deliver::Committed);
    until_same(&primary, &replica);
    assert!(store.lock().unwrap().records == all);
}

#[test]
fn only_what_is_committed_is_applied_unless_asked_for_more() {
    let place = Place::new();
    // Nothing is committed before r2 has it too, and r2 never comes.
    let primary = Primary::open(place.primary("p", &["r1", "r2"])).unwrap();
    let (committed, flushed) = (Arc::new(Mutex::new(Store::default())), Arc::new(Mutex::new(Store::default())));
    let replica = keeping(&place, "r1", &flushed, Deliver::Flushed);
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    let write =
        || assert!(primary.handle().append_with(ONE, b"x", local).unwrap().wait().unwrap().committed().is_some());
    write();
    until("flushed records are applied", || flushed.lock().unwrap().records.len() == 1);
    assert_eq!(of_replica(&replica).commit_lsn, Lsn::ZERO);
    replica.stop();
    let replica = keeping(&place, "r1", &committed, Deliver::Committed);
    write();
    until("the replica has it", || of_replica(&replica).durable_lsn == of(&primary).durable_lsn);
    assert!(committed.lock().unwrap().records.is_empty());
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until("committed records are applied", || committed.lock().unwrap().records.len() == 2);
    r2.stop();
}

#[test]
fn a_handler_of_flushed_records_takes_back_what_was_cut() {
    let place = Place::new();
    let primary = Primary::open(place.primary("old", &["r1", "r2"])).unwrap();
    let store = Arc::new(Mutex::new(Store::default()));
    let (r1, r2) = (Replica::open(place.replica("r1")).unwrap(), keeping(&place, "r2", &store, Deliver::Flushed));
    commit(&primary.handle(), b"shared");
    until_same(&primary, &r1);
    until_same(&primary, &r2);
    r1.stop();
    // Only r2 gets these; by the shard's policy they are not committed.
    let local = AppendOptions { policy: Some(CommitPolicy::Local), deadline: None };
    for n in 0..50u8 {
        drop(primary.handle().append_with(ONE, &[n; 500], local).unwrap().wait());
    }
    until("r2 has applied them", || store.lock().unwrap().records.len() == 51);
    primary.stop();
    // The replica that is promoted does not have them.
    let mut config = place.primary("r1", &["r2"]);
    config.promote = true;
    let primary = Primary::open(config).unwrap();
    commit(&primary.handle(), b"new");
    until_same(&primary, &r2);
    let store = store.lock().unwrap();
    assert!(store.records == [b"shared".to_vec(), b"new".to_vec()], "{} records", store.records.len());
    // The log still had it then: after a crash in between, the handler never stands on records that
    // the log does not have. (Found by the simulator.)
    let [(to, end)] = store.cuts[..] else { panic!("{:?}", store.cuts) };
    assert!(end > to, "{end} {to}");
}

#[test]
fn a_handler_that_fails_stops_the_shard_and_nothing_is_left_out() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let replica = Replica::open_with(place.replica("r1"), move |_| {
        let sink = sink.clone();
        ApplyFn(move |shard: ShardId, seq: Seq, record: &[u8]| {
            if record == b"poison" {
                return Err(ApplyError(format!("cannot take record {seq} of shard {shard}")));
            }
            sink.lock().unwrap().push((seq.0, record.to_vec()));
            Ok(())
        })
    })
    .unwrap();
    for record in [&b"one"[..], b"two", b"poison", b"four"] {
        commit(&primary.handle(), record);
    }
    until("the shard stops", || of_replica(&replica).stopped.is_some());
    assert!(of_replica(&replica).stopped.unwrap().contains("cannot take record 2 of shard 0"));
    assert_eq!(*seen.lock().unwrap(), [(0, b"one".to_vec()), (1, b"two".to_vec())]);
    // The primary sees it go, and goes on.
    until("its link is down", || of(&primary).slots[0].state == towline::SlotState::Down);
    commit(&primary.handle(), b"five");
}

#[test]
fn a_handler_that_stands_where_this_log_does_not_reach_stops_the_shard() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    struct Ahead;
    impl Apply for Ahead {
        fn resume_at(&mut self, _: ShardId) -> Lsn {
            Lsn(1 << 30)
        }
        fn apply(&mut self, _: &AppliedBatch<'_>) -> Result<(), ApplyError> {
            unreachable!("nothing is there to apply")
        }
    }
    let replica = Replica::open_with(place.replica("r1"), |_| Ahead).unwrap();
    until("the shard stops", || of_replica(&replica).stopped.is_some());
    assert!(of_replica(&replica).stopped.unwrap().contains("stands at LSN 1073741824, the log ends at 0"));
    drop(replica);
    let options = AppendOptions { policy: None, deadline: Some(Duration::from_millis(50)) };
    assert!(primary.handle().append_with(ONE, b"x", options).unwrap().wait().unwrap().committed().is_none());
}
