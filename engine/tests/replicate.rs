//! A primary and its replicas in one process: what is acknowledged is on every device it was
//! promised to be, and the logs are the same bytes.

use std::time::{Duration, Instant};

use towline::telemetry::Stage;
use towline::{AckLevel, CommitPolicy, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardId};

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
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let primary = Primary::open(primary_config(&dir.path().join("p"), 2)).unwrap();
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
                assert!(began.elapsed() < Duration::from_secs(20), "{got:?}");
                std::thread::yield_now();
            }
        }
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
