//! A store that trims its log, and a replica that comes later: it gets a snapshot of the store's state
//! first, then the log from there on, and in the end both have the same maps.
//!
//! Each shard of the store is a map and the position in the log that it stands at. Whatever a store keeps,
//! the position belongs to it: it is what `Snapshot::produce` says, what `Stage::finish` installs with the
//! map, and what `Apply::resume_at` gives back.
//!
//! Both nodes run in this process, in temporary folders, over loopback. Run it:
//! `cargo run --release --example bootstrap`

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use towline::{
    AppliedBatch, Apply, ApplyError, Lsn, Outcome, Primary, PrimaryConfig, Produced, Reads, Replica, ReplicaConfig,
    Retain, ShardId, Snapshot, SnapshotError, SnapshotInfo, Snapshots, Stage,
};

const SHARDS: u32 = 2;
const KEYS: u64 = 5000;
/// Pairs in one chunk of a snapshot; a chunk may have 256 KiB.
const PAIRS: usize = 1000;

/// One shard: a counter for each key, and how far the log is in it. A real store has this on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    counts: BTreeMap<u64, u64>,
    at: Lsn,
}

impl Table {
    /// A record is a key, and adds one to its counter: applied twice it would show.
    fn apply(&mut self, record: &[u8]) -> Result<(), ApplyError> {
        let key = record.try_into().map_err(|_| ApplyError("a record that is no key".into()))?;
        *self.counts.entry(u64::from_le_bytes(key)).or_default() += 1;
        Ok(())
    }
}

/// A table for each shard. The primary has one, each replica has its own.
#[derive(Clone, Debug)]
struct Store(Arc<Vec<Mutex<Table>>>);

impl Store {
    fn new() -> Self {
        Self(Arc::new((0..SHARDS).map(|_| Mutex::default()).collect()))
    }

    fn table(&self, shard: ShardId) -> MutexGuard<'_, Table> {
        self.0[shard.0 as usize].lock().expect("no panic")
    }
}

impl Snapshot for Store {
    fn produce(&self, shard: ShardId) -> Result<Produced, SnapshotError> {
        // The lock makes map and position belong together; a store on disk would take a snapshot of its
        // own here, which is cheaper than a copy.
        let Table { counts, at } = self.table(shard).clone();
        println!("shard {}: a snapshot of {} keys at LSN {at}", shard.0, counts.len());
        let total_bytes = Some(counts.len() as u64 * 16);
        let pairs: Vec<_> = counts.into_iter().collect();
        let chunk = |pairs: &[(u64, u64)]| {
            pairs.iter().flat_map(|(k, n)| [k.to_le_bytes(), n.to_le_bytes()].concat()).collect()
        };
        let chunks: Vec<Vec<u8>> = pairs.chunks(PAIRS).map(chunk).collect();
        Ok(Produced { at, total_bytes, chunks: Box::new(chunks.into_iter().map(Ok)) })
    }

    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError> {
        let table = Table { counts: BTreeMap::new(), at: info.at };
        Ok(Box::new(Staged { store: self.clone(), shard: info.shard, table }))
    }
}

/// A table that is being filled, beside the one in use.
struct Staged {
    store: Store,
    shard: ShardId,
    table: Table,
}

impl Stage for Staged {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        for pair in bytes.chunks(16) {
            let pair = pair.try_into().map_err(|_| SnapshotError("half a pair".into()))?;
            let both = u128::from_le_bytes(pair);
            self.table.counts.insert(both as u64, (both >> 64) as u64);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        // On disk: flush what is staged, then rename, then flush the folder.
        *self.store.table(self.shard) = self.table;
        Ok(())
    }
}

/// The replica's side: applies the log to its own tables.
struct Handler(Store);

impl Apply for Handler {
    fn resume_at(&mut self, shard: ShardId) -> Lsn {
        self.0.table(shard).at
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let mut table = self.0.table(batch.shard());
        batch.records().try_for_each(|record| table.apply(record))?;
        table.at = batch.end_lsn();
        Ok(())
    }
}

/// Counts each key once more. A table stands at the end of the last batch of a burst, so bursts of one
/// shard come one after the other.
fn count_all(primary: &Primary, store: &Store) -> Result<(), Box<dyn Error>> {
    let log = primary.handle();
    for shard in (0..SHARDS).map(ShardId) {
        let keys: Vec<_> = (0..KEYS).filter(|k| k % u64::from(SHARDS) == u64::from(shard.0)).collect();
        let tickets: Vec<_> = keys.iter().map(|k| log.append(shard, &k.to_le_bytes())).collect::<Result<_, _>>()?;
        let mut table = store.table(shard);
        for (key, ticket) in keys.iter().zip(tickets) {
            match ticket.wait()? {
                Outcome::Committed { bookmark, .. } => {
                    table.apply(&key.to_le_bytes())?;
                    table.at = bookmark.lsn;
                }
                other => return Err(format!("not committed: {other:?}").into()),
            }
        }
    }
    Ok(())
}

fn until(what: &str, holds: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > Duration::from_secs(30) {
            return Err(format!("never happened: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("towline-bootstrap-{}", std::process::id()));
    let result = run(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let store = Store::new();
    let mut config = PrimaryConfig::new(folder.join("primary"));
    config.shards = SHARDS;
    config.listen = Some("127.0.0.1:0".parse()?);
    config.node.segment_bytes = 64 << 10;
    config.node.retain = Retain::Bytes(64 << 10);
    config.node.snapshot = Some(Snapshots::new(Arc::new(store.clone())));
    let primary = Primary::open(config)?;
    let address = primary.listening().expect("it was told to listen");

    while primary.status().iter().any(|shard| shard.oldest_lsn == Lsn::ZERO) {
        count_all(&primary, &store)?;
    }
    println!(
        "each key was counted {} times, and the log has let go of its beginning",
        store.table(ShardId(0)).counts[&0]
    );

    primary.create_slot("r1", false)?;
    let copy = Store::new();
    let mut config = ReplicaConfig::new(folder.join("r1"), "r1", address);
    config.node.snapshot = Some(Snapshots::new(Arc::new(copy.clone())));
    let for_handlers = copy.clone();
    let replica = Replica::open_with(config, move |_| Handler(for_handlers.clone()))?;
    // Behind the snapshot comes what was appended meanwhile.
    count_all(&primary, &store)?;
    for shard in (0..SHARDS).map(ShardId) {
        until("the replica has everything", || copy.table(shard).at == store.table(shard).at)?;
        until("it may be read", || replica.reads(shard) == Ok(Reads::Following))?;
        let (mine, theirs) = (store.table(shard), copy.table(shard));
        println!(
            "shard {}: {} keys on the primary, {} on the replica",
            shard.0,
            mine.counts.len(),
            theirs.counts.len()
        );
        if *mine != *theirs {
            return Err("the stores differ".into());
        }
    }
    println!("both stores are the same, at the same positions");
    replica.stop();
    primary.stop();
    Ok(())
}
