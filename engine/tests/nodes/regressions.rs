//! One test for each fault that was found by reading: small, in one process, on loopback.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::cluster::{self, ONE, Place, commit, of};
use towline::wire::BatchView;
use towline::wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::Hello;
use towline::wire::message::{AppendHead, CommitStatus, Committed, TailRequest, TailStart, WirePolicy};
use towline::{AckLevel, AppendError, AppendOptions, CommitPolicy, Lsn, Outcome, Primary, Replica, ShardId};

#[test]
fn to_trim_a_shard_that_is_not_there_does_not_end_the_core() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let wrong = std::panic::AssertUnwindSafe(|| primary.trim(ShardId(7), Lsn(4096)));
    assert!(std::panic::catch_unwind(wrong).is_err(), "the caller is told");
    commit(&primary.handle(), b"the core still works");
}

#[test]
fn ack_n_of_no_replicas_is_refused_and_not_taken_for_local() {
    let place = Place::new();
    let none = CommitPolicy::AckN { n: 0, level: AckLevel::Flushed };
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let options = AppendOptions { policy: Some(none), ..AppendOptions::default() };
    let refused = primary.handle().append_with(ONE, b"x", options).unwrap().wait();
    assert!(matches!(refused, Err(AppendError::Policy(_))), "{refused:?}");
    drop(primary);
    let mut config = place.primary("other", &["r1"]);
    config.commit = none;
    assert!(Primary::open(config).is_err());
}

#[test]
fn the_deadline_counts_from_the_append_and_not_from_the_close_of_its_batch() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    // Nothing closes the batch.
    config.node.max_linger = Duration::from_secs(3600);
    config.deadline = Duration::from_millis(20);
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let late = handle.append(ONE, b"x").unwrap().wait();
    assert!(matches!(late, Ok(Outcome::TimedOut { durable_here: false, .. })), "{late:?}");
    assert_eq!(of(&primary).telemetry.counters.timed_out, 1);
    // A full batch is closed, and what timed out in it is written all the same.
    let long = AppendOptions { deadline: Some(cluster::LIMIT), ..AppendOptions::default() };
    let tickets: Vec<_> = (0..20).map(|_| handle.append_with(ONE, &[1; 1000], long).unwrap()).collect();
    let first = tickets.into_iter().next().unwrap().wait();
    assert!(matches!(first, Ok(Outcome::Committed { .. })), "{first:?}");
    primary.stop();
    assert_eq!(cluster::on_disk(&place.path("p"))[0], b"x");
}

#[test]
fn a_thread_that_keeps_every_ticket_is_told_and_does_not_wait_for_itself() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let handle = primary.handle();
    let mut kept: Vec<_> =
        (0..towline::limits::TICKETS_MAX).map(|n| handle.append(ONE, &n.to_le_bytes()).unwrap()).collect();
    let told = handle.append(ONE, b"one too many").map(drop);
    assert_eq!(told, Err(AppendError::TooManyTickets));
    assert!(matches!(kept.pop().unwrap().wait(), Ok(Outcome::Committed { .. })));
    commit(&handle, b"there is a ticket again");
}

#[test]
fn nobody_waits_for_a_core_that_has_died() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.shards = 2;
    config.node.cpus = vec![0, 1 % std::thread::available_parallelism().map_or(1, usize::from)];
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let waiting = handle.append(ONE, b"no replica has it").unwrap();
    primary.spawn_on(ONE, |_| async { panic!("this test's own panic: the core dies of it") });
    assert_eq!(waiting.wait(), Ok(Outcome::Stopped));
    assert!(matches!(handle.append(ONE, b"late"), Err(AppendError::Stopped(_))));
    let others: Vec<_> = primary.status().iter().map(|s| s.shard).collect();
    assert_eq!(others, [ShardId(1)]);
    primary.stop();
}

#[test]
fn a_start_that_the_machine_refuses_begins_no_term() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let term = of(&primary).term;
    primary.stop();
    let taken = std::net::TcpListener::bind(place.addr).unwrap();
    assert!(Primary::open(place.primary("p", &[])).is_err());
    drop(taken);
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    assert_eq!(of(&primary).term.0, term.0 + 1);
}

/// Segment files of the first shard, spare ones too.
fn segment_files(place: &Place) -> usize {
    std::fs::read_dir(place.path("p").join("shard-0000/wal")).unwrap().count()
}

fn open_segments(place: &Place) -> usize {
    let folder = std::fs::canonicalize(place.path("p").join("shard-0000/wal")).unwrap();
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    files.filter_map(|f| std::fs::read_link(f.unwrap().path()).ok()).filter(|f| f.starts_with(&folder)).count()
}

#[test]
fn a_long_log_has_few_files_open_and_one_that_is_let_go_leaves_few_behind() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let local = AppendOptions { policy: Some(CommitPolicy::Local), ..AppendOptions::default() };
    let handle = primary.handle();
    let records = cluster::records(600, 0);
    let records: Vec<_> = records.into_iter().map(|r| [r, vec![7; 10_000]].concat()).collect();
    let tickets: Vec<_> = records.iter().map(|r| handle.append_with(ONE, r, local).unwrap()).collect();
    assert!(tickets.into_iter().all(|t| matches!(t.wait(), Ok(Outcome::Committed { .. }))));
    let most = towline::limits::SEGMENTS_OPEN_MAX;
    assert!(segment_files(&place) > most + 20, "the test is too small");
    assert!(open_segments(&place) <= most + 8, "{} are open", open_segments(&place));
    // A replica reads the closed ones from disk, and after a restart most were never open.
    primary.stop();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    assert!(open_segments(&place) < 16);
    let replica = Replica::open(place.replica("r1")).unwrap();
    cluster::until_same(&primary, &replica);
    cluster::until("the replica's place is known", || of(&primary).commit_lsn == of(&primary).appended_lsn);
    primary.trim(ONE, of(&primary).commit_lsn);
    cluster::until("what was let go is removed", || segment_files(&place) < 16);
    commit(&primary.handle(), b"on recycled files");
    drop(replica);
    primary.stop();
    assert_eq!(cluster::on_disk(&place.path("p")).last().unwrap(), b"on recycled files");
}

#[test]
fn what_several_tasks_send_on_one_connection_stays_whole_and_the_last_replies_arrive() {
    const REQUESTS: u64 = 200;
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    // More than a socket takes at once, so that sends are cut into pieces.
    cluster::commit_all(&primary.handle(), &vec![vec![9; 50_000]; 300]);
    let mut peer = TcpStream::connect(place.addr).unwrap();
    peer.set_read_timeout(Some(cluster::LIMIT)).unwrap();
    let framed = |kind, payload: &[u8]| [&frame::header(kind, 0, 0, payload)[..], payload].concat();
    let tail = TailRequest { start: TailStart::Oldest, flushed: false, until_end: false };
    let mut said = [&PREAMBLE[..], &framed(FrameKind::Hello, &Hello::client(ONE).to_bytes())].concat();
    said.extend(framed(FrameKind::Tail, &tail.to_bytes()));
    peer.write_all(&said).unwrap();
    said.clear();
    for request in 0..REQUESTS {
        let head = AppendHead { request, deadline_us: 0, record_count: 1, policy: WirePolicy::Default };
        let mut record = vec![0; towline::wire::record::encoded_len(1)];
        towline::wire::record::encode(b"x", &mut record);
        said.extend(framed(FrameKind::Append, &[&head.to_bytes()[..], &record].concat()));
        if request % 10 == 0 {
            said.extend(framed(FrameKind::StatusRequest, &[]));
        }
    }
    said.extend(framed(FrameKind::Goodbye, &[]));
    let (mut committed, mut statuses, mut batches) = (0, 0, 0);
    let mut header = [0; frame::HEADER];
    while peer.read_exact(&mut header).is_ok() {
        let head = FrameHead::check(&header).unwrap();
        let mut payload = vec![0; head.len];
        peer.read_exact(&mut payload).unwrap();
        match head.kind {
            FrameKind::Batch => drop(BatchView::check(&payload).unwrap()),
            _ => head.check_payload(&payload).unwrap(),
        }
        match head.kind {
            FrameKind::Committed => {
                assert_eq!(Committed::check(&payload).unwrap().status, CommitStatus::Committed);
                committed += 1;
            }
            FrameKind::Status => statuses += 1,
            FrameKind::Batch => {
                batches += 1;
                // While the log is being streamed.
                peer.write_all(&std::mem::take(&mut said)).unwrap();
            }
            FrameKind::Welcome | FrameKind::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((committed, statuses), (REQUESTS, REQUESTS / 10));
    assert!(batches > 1);
}
