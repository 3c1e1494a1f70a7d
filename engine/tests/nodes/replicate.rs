//! A primary and its replicas in one process: what is acknowledged is on every device it was
//! promised to be, and the logs are the same bytes.

use std::time::{Duration, Instant};

use towline::telemetry::Stage;
use towline::{AckLevel, CommitPolicy, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardId, ZeroCopy};

fn primary_config(data: &std::path::Path, shards: u32) -> PrimaryConfig {
    let mut config = PrimaryConfig::new(data);
    config.shards = shards;
    config.listen = Some("127.0.0.1:0".parse().unwrap());
    config.replicas = vec!["r1".into(), "r2".into()];
    config.commit = CommitPolicy::AckN { n: 2, level: AckLevel::Flushed };
    config.node.segment_bytes = 1 << 20;
    config
}

#[test]
fn a_commit_under_ack_n_is_on_every_replicas_device_and_the_logs_are_identical() {
    committed_everywhere(ZeroCopy::Auto);
}

#[test]
fn so_it_is_when_every_batch_is_sent_from_the_buffer_that_goes_to_the_device() {
    committed_everywhere(ZeroCopy::Always);
}

fn committed_everywhere(zero_copy: ZeroCopy) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let primary = Primary::open(PrimaryConfig { zero_copy, ..primary_config(&dir.path().join("p"), 2) }).unwrap();
    let addr = primary.listening().unwrap();
    let replicas: Vec<_> = ["r1", "r2"]
        .iter()
        .map(|name| Replica::open(ReplicaConfig::new(dir.path().join(name), *name, addr)).unwrap())
        .collect();
    let handle = primary.handle();
    let mut tickets = Vec::new();
    for n in 0..2000u32 {
        let record = vec![n as u8; (n % 1500) as usize];
        tickets.push(handle.append(ShardId(n % 2), &record).unwrap());
    }
    for ticket in tickets {
        match ticket.wait().unwrap() {
            Outcome::Committed { acks, .. } => assert_eq!(acks, 2),
            other => panic!("{other:?}"),
        }
    }
    let began = Instant::now();
    for shard in 0..2usize {
        let want = &primary.status()[shard];
        for replica in &replicas {
            loop {
                let got = &replica.status()[shard];
                if got.applied_lsn == want.appended_lsn {
                    assert_eq!(got.chain, want.chain);
                    break;
                }
                assert!(began.elapsed() < Duration::from_secs(100), "{got:?}");
                std::thread::yield_now();
            }
        }
    }
    // The replicas say whom they follow, and the primary that nothing lags once it has heard so.
    assert!(replicas.iter().all(|r| r.status()[0].link == format!("following {addr}")));
    assert!(replicas.iter().all(|r| r.status().iter().all(|s| s.lag_bytes == 0)));
    while primary.status()[0].slots.iter().any(|s| s.lag_records > 0) {
        assert!(began.elapsed() < Duration::from_secs(100));
        std::thread::yield_now();
    }
    // Each stage was measured, and each replica's acks for themselves.
    let status = &primary.status()[0];
    assert!(status.slots.iter().all(|s| s.ack_flushed.count > 0 && s.ack_received.count > 0));
    for stage in [Stage::Inbox, Stage::Fill, Stage::Write, Stage::Send, Stage::Gate, Stage::Wake, Stage::Commit] {
        assert!(!status.telemetry.stage(stage).is_empty(), "{}", stage.name());
    }
    for replica in replicas {
        replica.stop();
    }
    primary.stop();
}

#[test]
fn a_replica_that_resumes_knows_how_many_records_it_has_and_one_that_is_refused_says_why() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = primary_config(&dir.path().join("p"), 1);
    config.commit = "ack_n=1".parse().unwrap();
    let primary = Primary::open(config).unwrap();
    let addr = primary.listening().unwrap();
    let open = || Replica::open(ReplicaConfig::new(dir.path().join("r1"), "r1", addr)).unwrap();
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(100), "{what}");
            std::thread::yield_now();
        }
    };
    let replica = open();
    let handle = primary.handle();
    for n in 0..50u8 {
        assert!(handle.append(ShardId(0), &[n]).unwrap().wait().unwrap().committed().is_some());
    }
    let applied = |r: &Replica| r.status()[0].applied_lsn == r.status()[0].durable_lsn;
    until("all is applied", &|| applied(&replica) && replica.status()[0].tail_seq.0 == 50);
    replica.stop();
    // Nothing is appended meanwhile: what it has applied is known from its log alone.
    let replica = open();
    until("it says that it has all 50", &|| primary.status()[0].slots[0].lag_records == 0);
    let stranger = Replica::open(ReplicaConfig::new(dir.path().join("r9"), "r9", addr)).unwrap();
    until("it says why", &|| stranger.status()[0].link.contains("not configured on the primary"));
    stranger.stop();
    replica.stop();
}
