//! A replica with a handler that keeps its own state and its own position, as a real store does:
//! after a restart it goes on exactly where it was, without a gap and without a repeat.
//!
//! The handler here sums numbers. Beside the sum it keeps the LSN that it has applied, in one small
//! file that is replaced whole, so that both always belong together. `resume_at` gives that LSN back
//! to Towline.
//!
//! Run it: `cargo run --release --example replica_apply`

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towline::{AppliedBatch, Apply, ApplyError, Lsn, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardId};

const SHARD: ShardId = ShardId(0);

/// The embedder's state: a sum, and how far the log is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    sum: u64,
    records: u64,
    applied: Lsn,
}

impl State {
    fn load(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { sum: next(), records: next(), applied: Lsn(next()) }
    }

    /// A new file under a new name, then a rename: a crash leaves the old state or the new one.
    fn save(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, format!("{} {} {}", self.sum, self.records, self.applied))?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, path)
    }
}

/// The handler: Towline calls it on the shard's core, batch by batch.
struct Summing {
    path: PathBuf,
    state: State,
}

impl Apply for Summing {
    fn resume_at(&mut self, _: ShardId) -> Lsn {
        println!("  the handler has {} records and goes on at LSN {}", self.state.records, self.state.applied);
        self.state.applied
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        // What is given here is committed: it is never taken back.
        for record in batch.records() {
            let number = record.try_into().map_err(|_| ApplyError("a record that is no number".into()))?;
            self.state.sum += u64::from_le_bytes(number);
            self.state.records += 1;
        }
        self.state.applied = batch.end_lsn();
        self.state.save(&self.path).map_err(|e| ApplyError(format!("saving the sum: {e}")))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("towline-replica-apply-{}", std::process::id()));
    let result = run(&folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut config = PrimaryConfig::new(folder.join("primary"));
    config.listen = Some("127.0.0.1:0".parse()?);
    config.replicas = vec!["r1".into()];
    // `applied`: a commit means that the replica's handler has returned for it.
    config.commit = "ack_n=1:applied".parse()?;
    config.node.segment_bytes = 1 << 20;
    let primary = Primary::open(config)?;
    let address = primary.listening().expect("it was told to listen");
    let path = folder.join("sum");
    let open_replica = || {
        let path = path.clone();
        Replica::open_with(ReplicaConfig::new(folder.join("r1"), "r1", address), move |_| {
            let state = State::load(&path);
            Summing { path: path.clone(), state }
        })
    };

    let mut want = 0;
    for round in 1..=3u64 {
        println!("round {round}: the replica starts");
        let replica = open_replica()?;
        let numbers = round * 1000..round * 1000 + 500;
        want += numbers.clone().sum::<u64>();
        let handle = primary.handle();
        let tickets: Vec<_> = numbers.map(|n| handle.append(SHARD, &n.to_le_bytes())).collect::<Result<_, _>>()?;
        for ticket in tickets {
            match ticket.wait()? {
                Outcome::Committed { .. } => {}
                other => return Err(format!("not committed: {other:?}").into()),
            }
        }
        // Committed under `applied`: the state is there already, nothing more to wait for.
        let state = State::load(&path);
        println!("  committed and applied: {} records, sum {}", state.records, state.sum);
        if (state.sum, state.records) != (want, round * 500) {
            return Err(format!("the sum should be {want} over {} records", round * 500).into());
        }
        replica.stop();
        let began = Instant::now();
        while primary.status()[0].slots[0].state != towline::SlotState::Down {
            if began.elapsed() > Duration::from_secs(30) {
                return Err("the primary does not see that the replica is gone".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    println!("every number was applied exactly once, over three restarts");
    primary.stop();
    Ok(())
}
