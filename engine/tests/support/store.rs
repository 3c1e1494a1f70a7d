//! An embedder whose state is every record so far, in order: what is applied twice, missed or out of order
//! shows. It outlives its node, as a disk would, and gives and takes itself as snapshots.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

use std::sync::{Arc, Mutex, MutexGuard};

use towline::{
    AppliedBatch, Apply, ApplyError, Handle, Lsn, Primary, Produced, Replica, ReplicaConfig, ShardId, Snapshot,
    SnapshotError, SnapshotInfo, Snapshots, Stage,
};

use crate::cluster::{self, ONE, commit_all, until};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub records: Vec<Vec<u8>>,
    pub at: Lsn,
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The producer cannot begin.
    Produce,
    /// It says where it stands wrongly.
    At(Lsn),
    /// It says too few bytes.
    Total(u64),
    /// It fails after so many chunks.
    MakeChunk(usize),
    /// A chunk of this size.
    Chunk(usize),
    /// Staging fails at this chunk.
    StageChunk(usize),
    /// The state is installed, and then the node dies, as far as it can tell.
    DieInstalled,
    /// The handler stands elsewhere than it should.
    StandAt(Lsn),
}

impl Wrong {
    /// What a producer can do wrong, of which `first` is a place in front of all where it could stand.
    pub fn produced(first: Lsn) -> [Self; 10] {
        [
            Self::Produce,
            Self::At(first),
            Self::At(Lsn(1 << 40)),
            Self::At(Lsn(4097)),
            Self::Total(1),
            Self::Total(1 << 50),
            Self::MakeChunk(0),
            Self::MakeChunk(5),
            Self::Chunk(0),
            Self::Chunk((256 << 10) + 1),
        ]
    }
}

#[derive(Debug, Default)]
pub struct Inner {
    pub state: State,
    /// What goes wrong next, once.
    pub wrong: Option<Wrong>,
    /// Chunks are made while this is set only as many as it says.
    pub chunks_allowed: Option<usize>,
    pub asked: usize,
    pub produced: usize,
    pub producers_alive: usize,
    pub staged: usize,
    pub stages_alive: usize,
    pub installed: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<Inner>>, Arc<Mutex<()>>);

impl Store {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Holds the producer up until this is dropped.
    pub fn hold_produce(&self) -> MutexGuard<'_, ()> {
        self.1.lock().unwrap()
    }

    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub fn snapshots(&self) -> Option<Snapshots> {
        Some(Snapshots::new(Arc::new(self.clone())))
    }

    /// Has the next thing of a kind go wrong.
    pub fn fail(&self, wrong: Wrong) {
        self.lock().wrong = Some(wrong);
    }

    fn goes_wrong(&self, is: impl Fn(&Wrong) -> bool) -> Option<Wrong> {
        let inner = &mut *self.lock();
        inner.wrong.take_if(|wrong| is(wrong))
    }

    /// On the primary: appends records, and takes them into the state once they are committed.
    pub fn write(&self, handle: &Handle, records: &[Vec<u8>]) {
        let tickets: Vec<_> = records.iter().map(|r| handle.append(ONE, r).unwrap()).collect();
        let lsns = tickets.into_iter().map(|t| t.wait().unwrap().committed().expect("it commits").lsn);
        let at = lsns.last();
        // All at once: a bookmark is the end of its batch, and records of one batch are in several tickets.
        let state = &mut self.lock().state;
        state.records.extend_from_slice(records);
        state.at = at.unwrap_or(state.at);
    }

    /// Opens a replica on this store.
    pub fn open(&self, mut config: ReplicaConfig) -> Replica {
        config.node.snapshot = self.snapshots();
        let store = self.clone();
        Replica::open_with(config, move |_| Handler(store.clone())).unwrap()
    }

    /// Writes and lets go of the log, until the primary keeps nothing below `lsn`.
    pub fn trim_above(&self, primary: &Primary, lsn: Lsn) {
        let handle = primary.handle();
        until("the log is trimmed", || {
            self.write(&handle, &cluster::records(200, 0));
            cluster::of(primary).oldest_lsn > lsn
        });
    }

    /// Writes so many bytes of log.
    pub fn write_bytes(&self, primary: &Primary, bytes: u64) {
        let handle = primary.handle();
        let from = cluster::of(primary).appended_lsn;
        while cluster::of(primary).appended_lsn.since(from) < bytes {
            self.write(&handle, &cluster::records(200, 0));
        }
    }
}

/// Records one behind the other, each with its length.
fn encode(records: &[Vec<u8>]) -> Vec<u8> {
    records.iter().flat_map(|r| [&(r.len() as u32).to_le_bytes()[..], r].concat()).collect()
}

fn decode(mut bytes: &[u8], into: &mut Vec<Vec<u8>>) {
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (record, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        into.push(record.to_vec());
        bytes = rest;
    }
}

impl Snapshot for Store {
    fn produce(&self, _: ShardId) -> Result<Produced, SnapshotError> {
        self.lock().asked += 1;
        drop(self.hold_produce());
        let wrong = self.goes_wrong(|w| matches!(w, Wrong::Produce | Wrong::At(_) | Wrong::Total(_)));
        if wrong == Some(Wrong::Produce) {
            return Err(SnapshotError("not now".into()));
        }
        let state = self.state();
        self.lock().produced += 1;
        self.lock().producers_alive += 1;
        let chunks: Vec<_> = state.records.chunks(16).map(encode).collect();
        let total = chunks.iter().map(|c| c.len() as u64).sum();
        let at = if let Some(Wrong::At(at)) = wrong { at } else { state.at };
        let total_bytes = if let Some(Wrong::Total(t)) = wrong { Some(t) } else { Some(total) };
        let making = Making { store: self.clone(), chunks: chunks.into_iter(), made: 0 };
        Ok(Produced { at, total_bytes, chunks: Box::new(making) })
    }

    fn stage(&self, info: &SnapshotInfo) -> Result<Box<dyn Stage>, SnapshotError> {
        assert_eq!(info.shard, ONE);
        let inner = &mut *self.lock();
        inner.staged += 1;
        inner.stages_alive += 1;
        let state = State { records: Vec::new(), at: info.at };
        Ok(Box::new(Staging { store: self.clone(), state, chunks: 0, next_seq: info.next_seq.0 }))
    }
}

struct Making {
    store: Store,
    chunks: std::vec::IntoIter<Vec<u8>>,
    made: usize,
}

impl Iterator for Making {
    type Item = Result<Vec<u8>, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        let made = self.made;
        if let Some(Wrong::Chunk(bytes)) = self.store.goes_wrong(|w| matches!(w, Wrong::Chunk(_))) {
            return Some(Ok(vec![0; bytes]));
        }
        if self.store.goes_wrong(|w| *w == Wrong::MakeChunk(made)).is_some() {
            return Some(Err(SnapshotError("the disk is gone".into())));
        }
        until("a chunk may be made", || self.store.lock().chunks_allowed.is_none_or(|n| made < n));
        self.made += 1;
        self.chunks.next().map(Ok)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.store.lock().producers_alive -= 1;
    }
}

struct Staging {
    store: Store,
    state: State,
    chunks: usize,
    next_seq: u64,
}

impl Stage for Staging {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let chunks = self.chunks;
        if self.store.goes_wrong(|w| *w == Wrong::StageChunk(chunks)).is_some() {
            return Err(SnapshotError("no space".into()));
        }
        decode(bytes, &mut self.state.records);
        self.chunks += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        assert_eq!(self.state.records.len() as u64, self.next_seq, "every record so far");
        self.store.lock().state = self.state.clone();
        self.store.lock().installed += 1;
        match self.store.goes_wrong(|w| *w == Wrong::DieInstalled) {
            Some(_) => Err(SnapshotError("the power is gone".into())),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.store.lock().stages_alive -= 1;
    }
}

struct Handler(Store);

impl Apply for Handler {
    fn resume_at(&mut self, _: ShardId) -> Lsn {
        match self.0.goes_wrong(|w| matches!(w, Wrong::StandAt(_))) {
            Some(Wrong::StandAt(at)) => at,
            _ => self.0.lock().state.at,
        }
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        let inner = &mut *self.0.lock();
        assert_eq!(batch.lsn(), inner.state.at, "in order, once");
        assert_eq!(batch.first_seq().0, inner.state.records.len() as u64);
        inner.state.records.extend(batch.records().map(<[u8]>::to_vec));
        inner.state.at = batch.end_lsn();
        Ok(())
    }
}

/// Appends without taking anything into a state.
pub fn append_only(primary: &Primary, count: usize) {
    commit_all(&primary.handle(), &cluster::records(count, 0));
}
