//! Appends come from any thread and any runtime: each ticket gets exactly its own outcome, nothing
//! is lost or hangs when handles, tickets or the node go away, and a node leaves nothing behind.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use crate::cluster::{self, LIMIT, ONE, Place, commit, of, until};
use towline::{
    AckLevel, AppendError, AppendOptions, CommitPolicy, CrossOutcome, Outcome, Primary, Replica, ShardId, Ticket,
};

#[test]
fn a_ticket_outlives_the_handle_that_made_it() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    for n in 0..50u8 {
        let ticket = primary.handle().append(ONE, &[n]).unwrap();
        assert!(matches!(ticket.wait(), Ok(Outcome::Committed { .. })));
    }
    primary.stop();
}

#[test]
fn a_handle_may_go_while_its_appends_wait_for_a_replica() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let waiting: Vec<_> = (0..20u8).map(|n| primary.handle().append(ONE, &[n]).unwrap()).collect();
    // The shard still works for others meanwhile.
    let local = AppendOptions { policy: Some(CommitPolicy::Local), ..AppendOptions::default() };
    let other = primary.handle().append_with(ONE, b"other", local).unwrap();
    assert!(matches!(other.wait(), Ok(Outcome::Committed { .. })));
    let replica = Replica::open(place.replica("r1")).unwrap();
    for ticket in waiting {
        assert!(matches!(ticket.wait(), Ok(Outcome::Committed { acks: 1, .. })));
    }
    replica.stop();
    primary.stop();
}

#[test]
fn every_thread_gets_the_outcomes_of_its_own_appends() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.shards = 2;
    let primary = Primary::open(config).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let handle = primary.handle();
            scope.spawn(move || {
                let shard = ShardId(thread as u32 % 2);
                let mut last = towline::Lsn::ZERO;
                let tickets: Vec<_> =
                    (0..EACH).map(|n| handle.append(shard, format!("{thread}/{n}").as_bytes()).unwrap()).collect();
                for ticket in tickets {
                    let bookmark = ticket.wait().unwrap().committed().unwrap();
                    assert_eq!(bookmark.shard, shard);
                    assert!(bookmark.lsn >= last, "appends of one handle keep their order");
                    last = bookmark.lsn;
                }
            });
        }
    });
    assert_eq!(primary.status().iter().map(|s| s.tail_seq.0).sum::<u64>(), (THREADS * EACH) as u64);
    primary.stop();
    // Each thread's records are in its shard once and in order.
    for shard in 0..2 {
        let mut next = [0; THREADS];
        towline::offline::read_log(place.path("p"), ShardId(shard), None, |batch| {
            for record in batch.records() {
                let text = std::str::from_utf8(record).unwrap();
                let (thread, n) = text.split_once('/').unwrap();
                let thread: usize = thread.parse().unwrap();
                assert_eq!((thread as u32 % 2, n), (shard, next[thread].to_string().as_str()));
                next[thread] += 1;
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(next.iter().filter(|n| **n == EACH).count(), THREADS / 2);
    }
}

#[test]
fn a_handle_that_threads_share_loses_nothing() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let handle = primary.handle();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    commit(&handle, b"shared");
                }
            });
        }
    });
    assert_eq!(of(&primary).tail_seq.0, 800);
}

/// A runtime in a few lines: a queue of tasks, and wakers that put them back into it.
struct Runtime {
    ready: mpsc::Receiver<Arc<Job>>,
    left: Arc<AtomicUsize>,
}

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Job {
    future: Mutex<Option<Boxed>>,
    queue: mpsc::Sender<Arc<Job>>,
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        let _ = self.queue.send(self.clone());
    }
}

impl Runtime {
    fn new(tasks: impl IntoIterator<Item = Boxed>) -> Self {
        let (queue, ready) = mpsc::channel();
        let left = Arc::new(AtomicUsize::new(0));
        for task in tasks {
            left.fetch_add(1, Ordering::Relaxed);
            Arc::new(Job { future: Mutex::new(Some(task)), queue: queue.clone() }).wake();
        }
        Self { ready, left }
    }

    fn run(&self) {
        while self.left.load(Ordering::Relaxed) > 0 {
            let job = self.ready.recv_timeout(LIMIT).expect("a waker was lost");
            let mut future = job.future.lock().unwrap();
            let Some(task) = &mut *future else { continue };
            if task.as_mut().poll(&mut Context::from_waker(&Waker::from(job.clone()))).is_ready() {
                *future = None;
                self.left.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn tickets_are_futures_for_any_runtime() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let committed = Arc::new(AtomicUsize::new(0));
    let runtime = Runtime::new((0..100).map(|n: u32| -> Boxed {
        let (handle, committed) = (primary.handle(), committed.clone());
        Box::pin(async move {
            for _ in 0..5 {
                let outcome = handle.append(ONE, &n.to_le_bytes()).unwrap().await.unwrap();
                assert!(outcome.committed().is_some());
                committed.fetch_add(1, Ordering::Relaxed);
            }
        })
    }));
    runtime.run();
    assert_eq!(committed.load(Ordering::Relaxed), 500);
}

#[test]
fn a_dropped_ticket_changes_nothing_for_its_record_and_frees_its_place() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let handle = primary.handle();
    // More than tickets may be open at once: dropped ones must not count for ever.
    let count = towline::limits::TICKETS_MAX + 1000;
    for n in 0..count {
        drop(handle.append(ONE, &n.to_le_bytes()).unwrap());
    }
    commit(&handle, b"last");
    assert_eq!(of(&primary).tail_seq.0, count as u64 + 1);
    primary.stop();
    assert_eq!(cluster::on_disk(&place.path("p")).len(), count + 1);
}

#[test]
fn more_handles_than_lanes_are_refused_and_none_of_their_tickets_hangs() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.deadline = Duration::from_secs(1);
    let primary = Primary::open(config).unwrap();
    let lanes: Vec<_> = {
        // Lanes are taken by tasks of the shard's own core: handles have rings of several MiB.
        let (sender, receiver) = mpsc::channel();
        primary.spawn_on(ONE, move |shard| async move {
            let lanes: Vec<_> = std::iter::from_fn(|| shard.lane().ok()).collect();
            assert_eq!(lanes.len(), towline::limits::LANES_MAX);
            sender.send(()).unwrap();
            while sender.send(()).is_ok() {
                shard.sleep(Duration::from_millis(5)).await;
            }
        });
        receiver.recv_timeout(LIMIT).unwrap();
        vec![receiver]
    };
    let handle = primary.handle();
    let refused = handle.append(ONE, b"x").unwrap().wait();
    assert_eq!(refused, Err(AppendError::TooManyLanes));
    // Once there is a lane again, the same handle works.
    drop(lanes);
    let local = AppendOptions { policy: Some(CommitPolicy::Local), ..AppendOptions::default() };
    until("the handle has a lane", || {
        matches!(handle.append_with(ONE, b"y", local).unwrap().wait(), Ok(Outcome::Committed { .. }))
    });
}

#[test]
fn runs_of_a_local_lane_cover_every_append_exactly_once() {
    const COUNT: u64 = 3000;
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let (sender, receiver) = mpsc::channel();
    primary.spawn_on(ONE, move |shard| async move {
        let lane = shard.lane().unwrap();
        let options = AppendOptions::default();
        let mut seen = 0;
        let mut appended = 0;
        while seen < COUNT {
            while appended < COUNT && lane.outstanding() < 100 {
                let at = lane.append(&appended.to_le_bytes(), &options).await.unwrap();
                assert_eq!((at.index, at.seq.0), (appended, appended));
                appended += 1;
            }
            let run = lane.completed().await;
            assert_eq!(run.first, seen, "runs come in order, without gap or repeat");
            assert!(run.outcome.committed().is_some());
            seen += u64::from(run.count);
        }
        assert_eq!((seen, lane.outstanding()), (COUNT, 0));
        assert!(lane.try_completed().is_none());
        assert!(lane.commit(b"one more", &options).await.unwrap().committed().is_some());
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(LIMIT).expect("the task came to its end");
    assert_eq!(of(&primary).tail_seq.0, COUNT + 1);
}

#[test]
fn lanes_that_were_dropped_with_appends_under_way_do_not_use_lanes_up() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let (sender, receiver) = mpsc::channel();
    primary.spawn_on(ONE, move |shard| async move {
        for _ in 0..towline::limits::LANES_MAX + 100 {
            let lane = loop {
                match shard.lane() {
                    Ok(lane) => break lane,
                    // Those before it are still being written.
                    Err(_) => shard.sleep(Duration::from_millis(1)).await,
                }
            };
            lane.append(b"nobody waits", &AppendOptions::default()).await.unwrap();
        }
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(LIMIT).expect("lanes came back");
}

#[test]
fn a_commit_over_shards_has_one_bookmark_for_each_shard() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.shards = 3;
    let primary = Primary::open(config).unwrap();
    let parts: Vec<(ShardId, &[u8])> = vec![(ShardId(2), b"a"), (ShardId(0), b"b"), (ShardId(2), b"c")];
    let ticket = primary.handle().append_across(&parts, AppendOptions::default()).unwrap();
    let CrossOutcome::Committed(bookmark) = ticket.wait() else { panic!("not committed") };
    let shards: Vec<_> = bookmark.positions().iter().map(|b| b.shard.0).collect();
    assert_eq!(shards, [2, 0]);
    for position in bookmark.positions() {
        assert!(primary.committed(position.shard) >= position.lsn);
    }
    assert!(primary.handle().append_across(&[(ShardId(3), b"x")], AppendOptions::default()).is_err());
}

#[test]
fn a_commit_over_shards_that_is_not_whole_says_which_parts_are() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    (config.shards, config.deadline) = (2, Duration::from_millis(50));
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    let options = AppendOptions { policy: Some(CommitPolicy::AckN { n: 1, level: AckLevel::Flushed }), deadline: None };
    let ticket = primary.handle().append_across(&[(ShardId(0), b"a"), (ShardId(1), b"b")], options).unwrap();
    let CrossOutcome::Partial(parts) = ticket.wait() else { panic!("no replica has it") };
    assert!(parts.iter().all(|p| matches!(p, Ok(Outcome::TimedOut { acks: 0, wanted: 1, .. }))), "{parts:?}");
}

#[test]
fn stopping_tells_every_commit_that_still_waits() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let handle = primary.handle();
    let tickets: Vec<Ticket> = (0..100u8).map(|n| handle.append(ONE, &[n]).unwrap()).collect();
    primary.stop();
    for ticket in tickets {
        assert_eq!(ticket.wait(), Ok(Outcome::Stopped));
    }
    assert!(matches!(handle.append(ONE, b"late"), Err(AppendError::Stopped(_))));
    // They were written all the same: "stopped" never means "not written".
    assert_eq!(cluster::on_disk(&place.path("p")).len(), 100);
}

#[test]
fn appends_that_race_with_stopping_have_an_outcome() {
    let place = Place::new();
    for round in 0..5 {
        let primary = Primary::open(place.primary("p", &[])).unwrap();
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let handle = primary.handle();
                let stopped = &stopped;
                scope.spawn(move || {
                    let began = Instant::now();
                    loop {
                        assert!(began.elapsed() < LIMIT);
                        match handle.append(ONE, b"racing") {
                            Ok(ticket) => drop(ticket.wait()),
                            Err(AppendError::Stopped(_)) => break,
                            Err(e) => panic!("{e}"),
                        }
                    }
                    assert!(stopped.load(Ordering::Relaxed));
                });
            }
            std::thread::sleep(Duration::from_millis(10 * round));
            stopped.store(true, Ordering::Relaxed);
            primary.stop();
        });
    }
}

fn entries(of: &str) -> usize {
    fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

/// Other tests open nodes meanwhile, so this one runs in a process of its own.
#[test]
fn nodes_that_come_and_go_leave_no_descriptor_and_no_thread_behind() {
    if std::env::var_os("ALONE").is_none() {
        let me = std::env::current_exe().unwrap();
        let name = "handles::nodes_that_come_and_go_leave_no_descriptor_and_no_thread_behind";
        let run = std::process::Command::new(me).args(["--exact", name, "--nocapture"]).env("ALONE", "1").output();
        let run = run.unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        let passed = run.status.success() && text.contains("1 passed");
        assert!(passed, "{text}{}", String::from_utf8_lossy(&run.stderr));
        return;
    }
    let mut seen = Vec::new();
    for round in 0..30 {
        let place = Place::new();
        let mut config = place.primary("p", &["r1", "away"]);
        config.shards = 2;
        config.commit = CommitPolicy::AckN { n: 1, level: AckLevel::Flushed };
        let primary = Primary::open(config).unwrap();
        let replica = Replica::open(place.replica("r1")).unwrap();
        let handle = primary.handle();
        commit(&handle, b"x");
        // What an embedder may leave running, and a client that stays connected.
        primary.spawn_on(ONE, |shard| async move { shard.sleep(Duration::from_secs(3600)).await });
        let client = towline::client::Tail::open(
            &place.addr.to_string(),
            0,
            towline::client::TailRequest {
                start: towline::client::TailStart::Oldest,
                flushed: false,
                until_end: false,
            },
            &towline::client::ConnectOptions::default(),
        );
        let mut client = client.unwrap();
        assert!(client.next_batch().unwrap().is_some());
        // In either order: a replica whose primary is gone is trying to connect.
        if round % 2 == 0 {
            primary.stop();
            replica.stop();
        } else {
            replica.stop();
            primary.stop();
        }
        drop((handle, client, place));
        seen.push((entries("fd"), entries("task")));
    }
    println!("{seen:?}");
    assert_eq!(seen[5], seen[29], "{seen:?}");
}
