//! A small sharded key-value store whose log is Towline's: the shortest complete way to embed it.
//!
//! A put goes to the shard that owns the key, into the primary's log, and counts as done once the
//! primary and one replica have it on their devices. The replica applies the log to a store of its
//! own. In the end both stores are compared.
//!
//! Both nodes run in this process, in temporary folders, over loopback. Run it:
//! `cargo run --release --example embedded_store`

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towline::{
    AckLevel, ApplyError, ApplyFn, CommitPolicy, Handle, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig,
    ShardId,
};

const SHARDS: u32 = 2;
const KEYS: u32 = 2000;

/// One shard's data. Towline never looks into records: what a record means is the store's to say.
type Table = BTreeMap<String, String>;

/// `key` NUL `value`: this store's own record format.
fn encode(key: &str, value: &str) -> Vec<u8> {
    [key.as_bytes(), &[0], value.as_bytes()].concat()
}

fn apply(table: &mut Table, record: &[u8]) -> Result<(), ApplyError> {
    let text = std::str::from_utf8(record).map_err(|e| ApplyError(e.to_string()))?;
    let (key, value) = text.split_once('\0').ok_or_else(|| ApplyError("a record without a key".into()))?;
    table.insert(key.into(), value.into());
    Ok(())
}

/// The store on the primary: a table for each shard, and the log in front of them.
struct Store {
    log: Handle,
    tables: Vec<Table>,
}

impl Store {
    fn shard_of(key: &str) -> ShardId {
        let hash = key.bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
        ShardId(hash % SHARDS)
    }

    /// Puts many pairs at once. Appends of a burst share batches, so they cost little more than one.
    fn put_all(&mut self, pairs: &[(String, String)]) -> Result<(), Box<dyn Error>> {
        let mut open = Vec::new();
        for (key, value) in pairs {
            let (shard, record) = (Self::shard_of(key), encode(key, value));
            let ticket = self.log.append(shard, &record)?;
            open.push((shard, record, ticket));
        }
        for (shard, record, ticket) in open {
            match ticket.wait()? {
                // Only now may a reader see it: it survives the loss of either node.
                Outcome::Committed { .. } => apply(&mut self.tables[shard.0 as usize], &record)?,
                // In the log all the same: it may become committed later. A real store asks again.
                other => return Err(format!("a put is not committed: {other:?}").into()),
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("towline-embedded-store-{}", std::process::id()));
    let result = run(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let mut config = PrimaryConfig::new(folder.join("primary"));
    config.shards = SHARDS;
    config.listen = Some("127.0.0.1:0".parse()?);
    config.replicas = vec!["r1".into()];
    config.commit = CommitPolicy::AckN { n: 1, level: AckLevel::Flushed };
    config.node.segment_bytes = 1 << 20;
    let primary = Primary::open(config)?;
    let address = primary.listening().expect("it was told to listen");
    println!("the primary listens on {address}, {SHARDS} shards, each commit waits for one replica's device");

    // The replica's side of the store: one table for each shard, filled by a handler for each.
    let copies: Arc<Vec<Mutex<Table>>> = Arc::new((0..SHARDS).map(|_| Mutex::default()).collect());
    let for_handlers = copies.clone();
    let replica = Replica::open_with(ReplicaConfig::new(folder.join("r1"), "r1", address), move |shard| {
        let copies = for_handlers.clone();
        ApplyFn(move |_, _, record: &[u8]| apply(&mut copies[shard.0 as usize].lock().expect("no panic"), record))
    })?;

    let mut store = Store { log: primary.handle(), tables: vec![Table::new(); SHARDS as usize] };
    let began = Instant::now();
    let pairs: Vec<_> = (0..KEYS).map(|n| (format!("user:{n}"), format!("name {n}"))).collect();
    store.put_all(&pairs)?;
    // Some keys again: the log keeps both, the tables the newest.
    let again: Vec<_> = (0..KEYS).step_by(10).map(|n| (format!("user:{n}"), format!("new name {n}"))).collect();
    store.put_all(&again)?;
    println!("{} puts are committed after {:.1?}", pairs.len() + again.len(), began.elapsed());

    // A replica applies what is committed, a moment later.
    for shard in 0..SHARDS as usize {
        let end = primary.status()[shard].commit_lsn;
        while replica.status()[shard].applied_lsn < end {
            if began.elapsed() > Duration::from_secs(30) {
                return Err("the replica does not catch up".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let copy = copies[shard].lock().expect("no panic");
        println!("shard {shard}: {} keys on the primary, {} on the replica", store.tables[shard].len(), copy.len());
        if *copy != store.tables[shard] {
            return Err("the stores differ".into());
        }
    }
    println!("both stores are the same");
    replica.stop();
    primary.stop();
    Ok(())
}
