//! A commit over several shards: a transfer between accounts that live on different shards is
//! appended to both, waited for once, and has one bookmark.
//!
//! Each part commits on its own shard: there is no lock over shards and no two-phase commit. When a
//! part does not make it in time, the outcome says which parts did. A store that needs both or none
//! writes the transfer's number into both records, and finishes or undoes halves when it recovers.
//!
//! Run it: `cargo run --release --example cross_shard_commit`

use std::error::Error;
use std::time::Duration;

use towline::{AppendOptions, CommitPolicy, CrossOutcome, Primary, PrimaryConfig, ShardId};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("towline-cross-shard-commit-{}", std::process::id()));
    let result = run(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let mut config = PrimaryConfig::new(folder);
    config.shards = 3;
    // A replica that is configured and never comes, for the second half of the example.
    config.replicas = vec!["absent".into()];
    config.commit = CommitPolicy::Local;
    config.node.segment_bytes = 1 << 20;
    let primary = Primary::open(config)?;
    let handle = primary.handle();

    // Ada's account is on shard 0, Bob's on shard 2.
    let parts: [(ShardId, &[u8]); 2] = [(ShardId(0), b"transfer 1: ada -10"), (ShardId(2), b"transfer 1: bob +10")];
    let ticket = handle.append_across(&parts, AppendOptions::default())?;
    let CrossOutcome::Committed(bookmark) = ticket.wait() else {
        return Err("a part is not committed although it waits for nobody".into());
    };
    println!("transfer 1 is committed on {} shards", bookmark.positions().len());
    for position in bookmark.positions() {
        // Whoever reads at or above these positions sees the transfer: read-your-writes.
        println!("  shard {}: term {}, LSN {}", position.shard, position.term, position.lsn);
        if primary.committed(position.shard) < position.lsn {
            return Err("a bookmark lies above what is committed".into());
        }
    }

    // The same under a policy that cannot hold now: nothing is taken back, and the outcome of each
    // part says what is known.
    let options = AppendOptions { policy: Some("ack_n=1".parse()?), deadline: Some(Duration::from_millis(100)) };
    let parts: [(ShardId, &[u8]); 2] = [(ShardId(0), b"transfer 2: ada -5"), (ShardId(1), b"transfer 2: eve +5")];
    match handle.append_across(&parts, options)?.wait() {
        CrossOutcome::Partial(outcomes) => {
            println!("transfer 2 is not committed in time; its parts:");
            for outcome in outcomes {
                println!("  {:?}", outcome?);
            }
        }
        CrossOutcome::Committed(_) => return Err("nobody could have acknowledged it".into()),
    }
    primary.stop();
    Ok(())
}
