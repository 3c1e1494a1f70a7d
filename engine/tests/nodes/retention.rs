//! Old segments are used again, so that a log under load takes bounded space; but nothing goes that
//! a configured replica still needs, unless a cap says so.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::cluster::{ONE, Place, commit, commit_all, of, of_replica, on_disk, records, until, until_same};
use towline::wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, WELCOME, Welcome};
use towline::{AppendOptions, CommitPolicy, Lsn, Primary, PrimaryConfig, Replica, Retain, RetainMax};

const SEGMENT: u64 = 64 << 10;

fn keeps_little(place: &Place, replicas: &[&str]) -> PrimaryConfig {
    let mut config = place.primary("p", replicas);
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    config.node.live_window_bytes = 0;
    config
}

fn files(place: &Place, node: &str) -> usize {
    fs::read_dir(place.path(node).join("shard-0000/wal")).unwrap().count()
}

#[test]
fn segments_are_used_again_and_their_number_stays_bounded() {
    let place = Place::new();
    let primary = Primary::open(keeps_little(&place, &["r1"])).unwrap();
    let mut config = place.replica("r1");
    config.node.retain = Retain::Bytes(2 * SEGMENT);
    let replica = Replica::open(config).unwrap();
    let handle = primary.handle();
    for n in 0..40 {
        commit_all(&handle, &records(100, n * 100));
        // What is kept, what is kept ready ahead, the one that is written, and what waits for the
        // keeper, which works beside the load.
        assert!(files(&place, "p") < 40, "{} files", files(&place, "p"));
    }
    let s = of(&primary);
    assert!(
        s.appended_lsn.0 > 25 * SEGMENT && s.telemetry.counters.segments_recycled > 10,
        "{:?}",
        s.telemetry.counters
    );
    until_same(&primary, &replica);
    until("both have let go of what is old", || {
        let (p, r) = (of(&primary), of_replica(&replica));
        p.appended_lsn.since(p.oldest_lsn) <= 4 * SEGMENT && r.appended_lsn.since(r.oldest_lsn) <= 4 * SEGMENT
    });
    assert!(of(&primary).oldest_lsn.0 + 2 * SEGMENT <= of(&primary).durable_lsn.0, "at least as much as asked is kept");
}

#[test]
fn the_oldest_position_is_a_batch_boundary_before_and_after_a_restart() {
    let place = Place::new();
    let config = keeps_little(&place, &[]);
    let mut oldest = Lsn::ZERO;
    for _ in 0..3 {
        let primary = Primary::open(config.clone()).unwrap();
        // It may have let go of more already: what the one before had no time for.
        assert!(of(&primary).oldest_lsn >= oldest);
        // Batches of several blocks, one of them larger than a segment: no boundary in some segments.
        commit(&primary.handle(), &vec![3; 100 << 10]);
        commit_all(&primary.handle(), &records(600, 0));
        until("the log is trimmed", || of(&primary).oldest_lsn.0 > oldest.0 + SEGMENT);
        let all = of(&primary);
        primary.stop();
        oldest = towline::offline::verify(place.path("p")).unwrap().shards[0].oldest;
        assert!(oldest >= all.oldest_lsn);
        let mut first = None;
        let report = towline::offline::read_log(place.path("p"), ONE, None, |batch| {
            first.get_or_insert(batch.header().lsn());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(first, Some(oldest));
        assert_eq!((report.end, report.damage.is_none()), (all.appended_lsn, true));
    }
}

#[test]
fn nothing_goes_that_a_configured_replica_still_needs() {
    let place = Place::new();
    let mut config = keeps_little(&place, &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    config.retain_max = RetainMax::Unlimited;
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let r2 = Replica::open(place.replica("r2")).unwrap();
    let handle = primary.handle();
    let mut all = records(50, 0);
    commit_all(&handle, &all);
    until_same(&primary, &r2);
    let stands = of(&primary).appended_lsn;
    r2.stop();
    let more = records(1500, 50);
    commit_all(&handle, &more);
    all.extend(more);
    until_same(&primary, &r1);
    let s = of(&primary);
    assert!(s.oldest_lsn <= stands && s.appended_lsn.0 > stands.0 + 5 * SEGMENT);
    let r2 = Replica::open(place.replica("r2")).unwrap();
    until_same(&primary, &r2);
    until("then it goes", || of(&primary).oldest_lsn > stands);
    r2.stop();
    assert!(on_disk(&place.path("r2")) == all);
}

#[test]
fn a_replica_that_falls_further_behind_than_the_cap_is_refused_and_then_told_to_take_a_snapshot() {
    let place = Place::new();
    let mut config = keeps_little(&place, &["r1"]);
    config.retain_max = RetainMax::Bytes(4 * SEGMENT);
    config.commit = CommitPolicy::Local;
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let replica = Replica::open(place.replica("r1")).unwrap();
    let policy = Some("all".parse().unwrap());
    let both = AppendOptions { policy, deadline: None };
    assert!(handle.append_with(ONE, b"both", both).unwrap().wait().unwrap().committed().is_some());
    replica.stop();
    commit_all(&handle, &records(1000, 0));
    until("the log is trimmed above it", || of(&primary).oldest_lsn.0 > SEGMENT);
    // The replica itself keeps what it has and follows nothing.
    let replica = Replica::open(place.replica("r1")).unwrap();
    commit(&handle, b"more");
    assert_eq!((of_replica(&replica).tail_seq.0, of(&primary).slots[0].connects), (1, 1));
    replica.stop();
    // As it is told on the wire.
    assert_eq!(asked(&place, &primary).verdict, Verdict::Refused(Refusal::SlotRetentionCap));
    primary.create_slot("r1", false).unwrap();
    assert_eq!(asked(&place, &primary).verdict, Verdict::NeedSnapshot { oldest: of(&primary).oldest_lsn });
}

/// What a replica with an empty log is welcomed with.
fn asked(place: &Place, primary: &Primary) -> Welcome {
    let hello = Hello {
        role: Role::Replica,
        system: primary.system(),
        name: NodeName::new("r1").unwrap(),
        ..Hello::client(ONE)
    };
    let mut link = TcpStream::connect(place.addr).unwrap();
    let payload = hello.to_bytes();
    link.write_all(&[&PREAMBLE[..], &frame::header(FrameKind::Hello, 0, 0, &payload), &payload].concat()).unwrap();
    let (mut header, mut welcome) = ([0; frame::HEADER], [0; WELCOME]);
    link.read_exact(&mut header).unwrap();
    assert_eq!(FrameHead::check(&header).unwrap().kind, FrameKind::Welcome);
    link.read_exact(&mut welcome).unwrap();
    Welcome::check(&welcome).unwrap()
}

#[test]
fn an_embedder_lets_go_of_what_it_keeps_elsewhere() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    commit_all(&handle, &records(1000, 0));
    until_same(&primary, &replica);
    assert_eq!(of(&primary).oldest_lsn, Lsn::ZERO, "everything is kept unless somebody lets it go");
    let to = Lsn(of(&primary).appended_lsn.0 / 2);
    primary.trim(ONE, to);
    until("it goes", || of(&primary).oldest_lsn > Lsn::ZERO);
    assert!(of(&primary).oldest_lsn <= to);
    // Never beyond what is committed, and what is behind can still be appended to.
    primary.trim(ONE, Lsn(u64::MAX));
    until("nearly all goes", || of(&primary).oldest_lsn > to);
    let s = of(&primary);
    assert!(s.oldest_lsn < s.commit_lsn);
    commit_all(&handle, &records(300, 1000));
    until_same(&primary, &replica);
    let want = of(&primary).tail_seq;
    primary.stop();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    assert_eq!(of(&primary).tail_seq, want);
    commit(&primary.handle(), b"after");
    until_same(&primary, &replica);
}

#[test]
fn a_replica_that_keeps_little_can_still_be_restarted_and_promoted() {
    let place = Place::new();
    let primary = Primary::open(keeps_little(&place, &["r1"])).unwrap();
    let mut config = place.replica("r1");
    config.node.retain = Retain::Bytes(SEGMENT);
    let replica = Replica::open(config.clone()).unwrap();
    commit_all(&primary.handle(), &records(1500, 0));
    until_same(&primary, &replica);
    until("it has trimmed", || of_replica(&replica).oldest_lsn > Lsn::ZERO);
    replica.stop();
    let replica = Replica::open(config).unwrap();
    commit(&primary.handle(), b"one more");
    until_same(&primary, &replica);
    primary.stop();
    replica.stop();
    let mut config = place.primary("r1", &[]);
    config.promote = true;
    let promoted = Primary::open(config).unwrap();
    assert_eq!(of(&promoted).tail_seq.0, 1501);
    commit(&promoted.handle(), b"and on");
}
