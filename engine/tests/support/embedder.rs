//! A small program with a store, run as a process of its own: the test binary starts itself. The store is a
//! map built from the log, in a file that grows by each batch, and gives and takes itself as snapshots. It
//! is given no fsync for each batch: `kill -9` takes no page from the kernel.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use towline::client::{ClientError, ConnectOptions, Tail, TailRequest, TailStart};
use towline::history::Print;
use towline::{
    AppliedBatch, Apply, ApplyError, Lsn, Primary, PrimaryConfig, Produced, Replica, ReplicaConfig, Retain, RetainMax,
    ShardId, ShardStatus, Snapshot, SnapshotError, SnapshotInfo, Snapshots, Stage,
};

/// What a process that is to be an embedder is told, as JSON: `data`, `store`, `listen`, and for a replica
/// `name` and `primary`.
pub const VARIABLE: &str = "TOWLINE_TEST_EMBEDDER";
/// What a primary keeps of its log behind its store, and a replica at all.
const KEEP: u64 = 128 << 10;
/// The most that it keeps for its replicas.
const CAP: u64 = 3 << 20;
/// Bytes of a snapshot's chunk: small, so that there are many.
const CHUNK: usize = 1 << 10;
/// How often an embedder looks after its node.
const LOOK: Duration = Duration::from_millis(10);
/// How long a primary's store may take to come to the end of a log that does not grow.
const PATIENCE: Duration = Duration::from_secs(60);
const ONE: ShardId = ShardId(0);

/// What a store holds: each key with its record's number and hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub at: Lsn,
    pub next_seq: u64,
    pub map: BTreeMap<Vec<u8>, (u64, u64)>,
}

impl State {
    /// A batch's part of the file. A record's key are its first four words: `run 3 record 17`.
    fn take(&mut self, (start, end, first_seq): (Lsn, Lsn, u64), records: &[&[u8]]) -> Result<Vec<u8>, String> {
        if (start, first_seq) != (self.at, self.next_seq) {
            return Err(format!("record {first_seq} at {start} behind {} at {}", self.next_seq, self.at));
        }
        let mut frame = [end.0.to_le_bytes(), (records.len() as u64).to_le_bytes()].concat();
        for record in records {
            let key = record.splitn(5, |b| *b == b' ').take(4).collect::<Vec<_>>().join(&b' ');
            let hash = Print::of(record).hash;
            frame.push(key.len() as u8);
            frame.extend([&key[..], &hash.to_le_bytes()].concat());
            self.insert(key, hash)?;
        }
        self.at = end;
        Ok(frame)
    }

    fn insert(&mut self, key: Vec<u8>, hash: u64) -> Result<(), String> {
        if let Some(before) = self.map.insert(key, (self.next_seq, hash)) {
            return Err(format!("record {} was applied before, as {}", self.next_seq, before.0));
        }
        self.next_seq += 1;
        Ok(())
    }

    /// What whole batches of a file say, and how many bytes that is.
    pub fn read(mut bytes: &[u8]) -> Result<(Self, u64), String> {
        let (mut state, whole) = (Self::default(), bytes.len());
        loop {
            let left = bytes.len();
            let batch = (|| {
                let (end, count) = (number(&mut bytes)?, number(&mut bytes)?);
                let entries: Option<Vec<_>> = (0..count)
                    .map(|_| {
                        let (len, rest) = bytes.split_first()?;
                        let (key, rest) = rest.split_at_checked((*len).into())?;
                        bytes = rest;
                        Some((key.to_vec(), number(&mut bytes)?))
                    })
                    .collect();
                Some((end, entries?))
            })();
            let Some((end, entries)) = batch else { return Ok((state, (whole - left) as u64)) };
            entries.into_iter().try_for_each(|(key, hash)| state.insert(key, hash))?;
            state.at = Lsn(end);
        }
    }
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

/// A store's folder: `state`; `staging` while a snapshot is taken; `die`, which names where to die next.
#[derive(Clone)]
pub struct Store {
    folder: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    state: State,
    file: File,
    bytes: u64,
}

/// The file of a store.
pub fn file_of(folder: &Path) -> PathBuf {
    folder.join("state")
}

/// Has an embedder with this store kill itself at a point of a snapshot: `produce N`, `chunk N`, `finish`
/// (all is staged), `installed` (the state is the new one, the log the old one).
pub fn die_at(folder: &Path, point: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("die"), point).unwrap();
}

impl Store {
    fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let inner = Inner::open(&file_of(&folder))?;
        Ok(Self { folder, inner: Arc::new(Mutex::new(inner)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn at(&self) -> Lsn {
        self.lock().state.at
    }

    fn apply(&self, place: (Lsn, Lsn, u64), records: &[&[u8]]) -> Result<(), String> {
        let inner = &mut *self.lock();
        let frame = inner.state.take(place, records)?;
        inner.bytes += frame.len() as u64;
        inner.file.write_all(&frame).map_err(|e| e.to_string())
    }

    fn dies_at(&self, point: &str) {
        let asked = self.folder.join("die");
        if fs::read_to_string(&asked).is_ok_and(|at| at == point) {
            fs::remove_file(&asked).unwrap();
            // SAFETY: no pointers are passed.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}

impl Inner {
    /// What a crash left of a batch at its end goes.
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let (state, bytes) = State::read(&fs::read(path)?).map_err(io::Error::other)?;
        file.set_len(bytes)?;
        Ok(Self { state, file, bytes })
    }
}

fn failed(e: impl ToString) -> SnapshotError {
    SnapshotError(e.to_string())
}

impl Snapshot for Store {
    fn produce(&self, _: ShardId) -> Result<Produced, SnapshotError> {
        let inner = self.lock();
        // The file only grows: up to where it is now it stays what it is.
        let (at, bytes) = (inner.state.at, inner.bytes);
        let mut from = File::open(file_of(&self.folder)).map_err(failed)?.take(bytes);
        let (store, mut made) = (self.clone(), 0);
        let chunks = std::iter::from_fn(move || {
            store.dies_at(&format!("produce {made}"));
            made += 1;
            let mut chunk = Vec::new();
            match from.by_ref().take(CHUNK as u64).read_to_end(&mut chunk) {
                Ok(0) => None,
                Ok(_) => Some(Ok(chunk)),
                Err(e) => Some(Err(failed(e))),
            }
        });
        Ok(Produced { at, total_bytes: Some(bytes), chunks: Box::new(chunks) })
    }

    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError> {
        let file = File::create(self.folder.join("staging")).map_err(failed)?;
        Ok(Box::new(Staging { store: self.clone(), info: *info, file, chunks: 0 }))
    }
}

struct Staging {
    store: Store,
    info: SnapshotInfo,
    file: File,
    chunks: u64,
}

impl Stage for Staging {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.store.dies_at(&format!("chunk {}", self.chunks));
        self.chunks += 1;
        self.file.write_all(bytes).map_err(failed)
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        let staging = self.store.folder.join("staging");
        self.file.sync_all().map_err(failed)?;
        let new = Inner::open(&staging).map_err(failed)?;
        if (new.state.at, new.state.next_seq) != (self.info.at, self.info.next_seq.0) {
            return Err(SnapshotError(format!("{} at {} came as {:?}", new.state.next_seq, new.state.at, self.info)));
        }
        self.store.dies_at("finish");
        fs::rename(staging, file_of(&self.store.folder)).map_err(failed)?;
        File::open(&self.store.folder).and_then(|f| f.sync_all()).map_err(failed)?;
        self.store.dies_at("installed");
        *self.store.lock() = new;
        Ok(())
    }
}

struct Handler(Store);

impl Apply for Handler {
    fn resume_at(&mut self, _: ShardId) -> Lsn {
        self.0.at()
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let records: Vec<_> = batch.records().collect();
        self.0.apply((batch.lsn(), batch.end_lsn(), batch.first_seq().0), &records).map_err(ApplyError)
    }
}

enum Running {
    Primary(Primary),
    Replica(Replica),
}

impl Running {
    fn status(&self) -> ShardStatus {
        match self {
            Self::Primary(p) => p.status().remove(0),
            Self::Replica(r) => r.status().remove(0),
        }
    }
}

/// The process, if this is one that is to be an embedder: until its stdin ends.
pub fn run_if_told() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(101);
    }));
    let told: Value = serde_json::from_str(&told).unwrap();
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    let text = |key: &str| told[key].as_str().unwrap();
    let store = Store::open(text("store").into()).unwrap();
    let snapshots = Some(Snapshots::new(Arc::new(store.clone())));
    let listen = Some(text("listen").parse().unwrap());
    let node = if let Some(name) = told["name"].as_str() {
        let mut config = ReplicaConfig::new(text("data"), name, text("primary").parse().unwrap());
        config.node.snapshot = snapshots;
        (config.node.retain, config.rebuild, config.listen) = (Retain::Bytes(KEEP), true, listen);
        config.reconnect_max = Duration::from_millis(50);
        (config.node.io_memory_bytes, config.node.cpus) =
            (4 << 20, vec![thread::available_parallelism().map_or(0, |n| n.get() - 1)]);
        (config.node.batch_bytes, config.node.record_bytes_max) = (16 << 10, 64 << 10);
        let store = store.clone();
        // A new one waits for its primary, which may be dead.
        say_ready(text("listen"));
        Running::Replica(Replica::open_with(config, move |_| Handler(store.clone())).unwrap())
    } else {
        let mut config = PrimaryConfig::new(text("data"));
        config.node.snapshot = snapshots;
        (config.commit, config.listen) = ("ack_n=1".parse().unwrap(), listen);
        config.replicas = vec!["r1".into(), "r2".into()];
        // What its store has is trimmed by hand: no log goes that is not in it.
        (config.node.segment_bytes, config.retain_max) = (64 << 10, RetainMax::Bytes(CAP));
        (config.node.io_memory_bytes, config.node.cpus) = (4 << 20, vec![0]);
        (config.node.batch_bytes, config.node.record_bytes_max) = (16 << 10, 64 << 10);
        let (store, addr) = (store.clone(), text("listen").to_owned());
        let primary = Primary::open(config).unwrap();
        thread::spawn(move || follow_own(&addr, &store));
        Running::Primary(primary)
    };
    if told["name"].is_null() {
        say_ready(text("listen"));
    }
    look_after(node, &store);
}

/// The line that is waited for.
fn say_ready(listen: &str) {
    print!("\ntowline: embedder listening on {listen} shards=1\n");
    io::stdout().flush().unwrap();
}

/// A primary's clients append over the network: its store follows its own log, as far as that is committed.
fn follow_own(addr: &str, store: &Store) {
    loop {
        let request = TailRequest { start: TailStart::At(store.at()), flushed: false, until_end: false };
        let ended = Tail::open(addr, ONE.0, request, &ConnectOptions::default()).and_then(|mut tail| {
            while let Some(batch) = tail.next_batch()? {
                let records: Vec<_> = batch.records().collect();
                store.apply((batch.lsn(), batch.end_lsn(), batch.first_seq().0), &records).unwrap();
            }
            Ok(())
        });
        assert!(!matches!(ended, Err(ClientError::TooOld { .. })), "the log went before it was in the store");
        eprintln!("the tail of the own log ended: {ended:?}");
    }
}

/// Trims, and ends with stdin, or with an error once a shard has stopped.
fn look_after(node: Running, store: &Store) -> ! {
    let (tell, stdin) = mpsc::channel::<()>();
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        drop(tell);
    });
    let mut trimmed = 0;
    while stdin.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        if let Some(why) = node.status().stopped {
            eprintln!("the shard has stopped: {why}");
            std::process::exit(7);
        }
        let to = store.at().0.saturating_sub(KEEP);
        if let Running::Primary(primary) = &node
            && trimmed < to
        {
            trimmed = to;
            primary.trim(ONE, Lsn(to));
        }
    }
    match node {
        Running::Primary(primary) => {
            let began = Instant::now();
            while store.at() < primary.status()[0].appended_lsn {
                assert!(began.elapsed() < PATIENCE, "the store does not come to the log's end");
                thread::yield_now();
            }
            primary.stop();
        }
        Running::Replica(replica) => replica.stop(),
    }
    std::process::exit(0);
}
