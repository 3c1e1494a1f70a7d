//! A primary and its replicas in one process, on an address of their own, with small segments; and
//! waiting for what they report instead of sleeping.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use towline::{
    AckLevel, Bookmark, CommitPolicy, Handle, Lsn, Outcome, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardId,
    ShardStatus,
};

/// The shard of tests that need only one.
pub const ONE: ShardId = ShardId(0);

/// How long anything may take before a test fails.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A folder for a test's nodes and an address for its primary that no other test uses: a loopback
/// address of its own, so that a primary that comes back finds its port free.
pub struct Place {
    dir: TempDir,
    pub addr: SocketAddr,
}

impl Place {
    pub fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { dir, addr: SocketAddr::new(IpAddr::V4(ip), 7401) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Deals nodes out to the machine's cores.
    fn cpu(&self, n: usize) -> usize {
        let IpAddr::V4(ip) = self.addr.ip() else { unreachable!("it is made above") };
        (usize::from(ip.octets()[3]) + n) % std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// A primary named by its folder, with replicas; commits under `ack_n` of all of them.
    pub fn primary(&self, folder: &str, replicas: &[&str]) -> PrimaryConfig {
        let mut config = PrimaryConfig::new(self.path(folder));
        config.listen = Some(self.addr);
        config.replicas = replicas.iter().map(|r| (*r).to_string()).collect();
        config.commit = match replicas.len() as u8 {
            0 => CommitPolicy::Local,
            n => CommitPolicy::AckN { n, level: AckLevel::Flushed },
        };
        config.deadline = LIMIT;
        config.node.segment_bytes = 64 << 10;
        config.node.batch_bytes = 16 << 10;
        config.node.io_memory_bytes = 4 << 20;
        config.node.cpus = vec![self.cpu(0)];
        config
    }

    /// A replica of this place's primary, in the folder of its name.
    pub fn replica(&self, name: &str) -> ReplicaConfig {
        let mut config = ReplicaConfig::new(self.path(name), name, self.addr);
        config.node.batch_bytes = 16 << 10;
        config.node.io_memory_bytes = 4 << 20;
        config.node.cpus = vec![self.cpu(usize::from(name.as_bytes()[name.len() - 1]))];
        config
    }
}

/// Asks until it holds; fails with `what` if it never does.
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    until_or(|| what.into(), holds);
}

/// The same, if what is to be said of a failure is to be asked for then.
fn until_or(what: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "never happened: {}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The first shard of a primary.
pub fn of(primary: &Primary) -> ShardStatus {
    primary.status().remove(0)
}

/// The first shard of a replica.
pub fn of_replica(replica: &Replica) -> ShardStatus {
    replica.status().remove(0)
}

/// Waits until a replica has applied all that the primary's log holds, and holds the same bytes.
pub fn until_same(primary: &Primary, replica: &Replica) {
    let why = || {
        let (p, r) = (of(primary), of_replica(replica));
        let slots: Vec<_> = p.slots.iter().map(|s| (&s.name, s.state, s.lost, s.restart_lsn)).collect();
        let (has, to) = (r.applied_lsn, p.appended_lsn);
        format!("the replica has all that the primary has: {has} of {to}, link {:?}, slots {slots:?}", r.link)
    };
    until_or(why, || {
        let (p, r) = (of(primary), of_replica(replica));
        r.applied_lsn == p.appended_lsn && r.chain == p.chain
    });
}

/// Appends until the log that is kept is no longer than this: it is let go of as more comes, not at rest.
pub fn until_let_go(primary: &Primary, bytes: u64) {
    let handle = primary.handle();
    until("what was held is let go of", || {
        commit_all(&handle, &records(10, 0));
        let shard = of(primary);
        shard.appended_lsn.since(shard.oldest_lsn) <= bytes
    });
}

/// Waits until as many replicas are connected.
pub fn until_connected(primary: &Primary, count: usize) {
    let connected = || of(primary).slots.iter().filter(|s| s.state != towline::SlotState::Down).count();
    until("replicas are connected", || connected() == count);
}

/// Appends a record and waits until it is committed.
pub fn commit(handle: &Handle, record: &[u8]) -> Bookmark {
    let outcome = handle.append(ONE, record).unwrap().wait().unwrap();
    outcome.committed().unwrap_or_else(|| panic!("not committed: {outcome:?}"))
}

/// Appends records at once and waits until all are committed.
pub fn commit_all<'a>(handle: &Handle, records: impl IntoIterator<Item = &'a Vec<u8>>) {
    let tickets: Vec<_> = records.into_iter().map(|r| handle.append(ONE, r).unwrap()).collect();
    for ticket in tickets {
        assert!(matches!(ticket.wait(), Ok(Outcome::Committed { .. })));
    }
}

/// Records that differ in content and size.
pub fn records(count: usize, from: usize) -> Vec<Vec<u8>> {
    (from..from + count)
        .map(|n| {
            let mut record = format!("record {n} ").into_bytes();
            record.resize(record.len() + n * 37 % 900, n as u8);
            record
        })
        .collect()
}

/// What a folder holds on disk: every record of its first shard, whether a node runs on it or not.
pub fn on_disk(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    towline::offline::read_log(folder, ONE, None, |batch| {
        found.extend(batch.records().map(<[u8]>::to_vec));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// Copies a folder, file by file.
pub fn copy(from: &Path, to: &Path) {
    copy_in(Order::OldestFirst, from, to);
}

/// Which segments are copied first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// While a log is cut from its end downwards, a later segment may not be of an earlier instant.
    OldestFirst,
    /// While a log grows, an earlier segment may not be.
    NewestFirst,
}

fn copy_in(order: Order, from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut paths: Vec<_> = fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    if order == Order::NewestFirst {
        paths.reverse();
    }
    for path in paths {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_in(order, &path, &target);
            continue;
        }
        match fs::copy(&path, &target) {
            // It was given its final name meanwhile, or taken for another segment.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
}

/// Copies a running node's folder as a crash at one instant would leave its first shard. `false`, and
/// nothing is left, if the superblock changed meanwhile: then the files are of different instants.
pub fn crash(order: Order, from: &Path, to: &Path) -> bool {
    let superblock = from.join("shard-0000/superblock");
    let before = fs::read(&superblock).unwrap();
    copy_in(order, from, to);
    fs::write(to.join("shard-0000/superblock"), &before).unwrap();
    let same = fs::read(&superblock).unwrap() == before;
    if !same {
        fs::remove_dir_all(to).unwrap();
    }
    same
}

/// The file that holds an LSN of the first shard, and the offset in it.
pub fn locate(folder: &Path, lsn: Lsn, segment_bytes: u64) -> (PathBuf, u64) {
    let start = lsn.0 - lsn.0 % segment_bytes;
    (folder.join("shard-0000/wal").join(format!("{start:016x}.wal")), lsn.0 - start)
}

/// Overwrites bytes of a file.
pub fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// Each of the folders `crash-0` to `crash-{copies - 1}`, copies of the replica `old`'s, comes to what the primary has.
pub fn follow_from_crashes(place: &Place, copies: u32, primary: &Primary) {
    for n in 0..copies {
        let mut config = place.replica("old");
        config.node.data = place.path(&format!("crash-{n}"));
        let again = Replica::open(config).unwrap();
        until_same(primary, &again);
        again.stop();
    }
}

/// What a node saved before it cut its log.
pub fn side_files(place: &Place, node: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.path(node).join("shard-0000")).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("cut-")).collect()
}
