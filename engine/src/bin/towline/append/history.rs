//! `--history`: what is appended and what became of it, for `towline verify --history`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use thiserror::Error;
use towline::client::{AckLevel, ClientError, CommitStatus, Committed, WirePolicy, status};
use towline::history::{Append, Commit, Event, Outcome, Print, Status};
use towline::{CommitPolicy, ShardId};

/// Lines that are collected before they are written, at most about so many bytes.
const PENDING_BYTES: usize = 64 << 10;

/// Why there is no history.
#[derive(Debug, Error)]
pub(crate) enum HistoryError {
    #[error("cannot write the history {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot tell the commit policy from the node's status: {0}")]
    Status(&'static str),
}

/// What the node counts with.
pub(super) struct Cluster {
    nodes: u8,
    policy: CommitPolicy,
}

/// Asks the node how many replicas it has and what its policy is. A replica has neither.
pub(super) fn ask(addr: &str, policy: WirePolicy) -> Result<Result<Option<Cluster>, HistoryError>, ClientError> {
    let status = status(addr)?;
    Ok((|| {
        let status: Value = serde_json::from_str(&status).map_err(|_| HistoryError::Status("it is no JSON"))?;
        if status["node"]["role"] == "replica" {
            return Ok(None);
        }
        let replicas = status["node"]["replicas"].as_array().map(Vec::len);
        let nodes = replicas.and_then(|n| u8::try_from(n + 1).ok());
        let own = status["node"]["policy"].as_str().and_then(|p| p.parse().ok());
        let policy = CommitPolicy::from_wire(policy).or(own).ok_or(HistoryError::Status("it names none"))?;
        Ok(Some(Cluster { nodes: nodes.ok_or(HistoryError::Status("it names no replicas"))?, policy }))
    })())
}

/// Writes the history. The side that submits and the side that takes outcomes share it.
pub(super) struct Recorder {
    path: PathBuf,
    shard: ShardId,
    policy: CommitPolicy,
    level: AckLevel,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    file: File,
    pending: Vec<u8>,
    /// The next record's number: as many were appended before.
    next: u64,
    /// Requests without an outcome, and the number of the first record of each.
    requests: BTreeMap<u64, u64>,
}

impl Recorder {
    /// Begins a history in a file that is not there yet: one that is there tells of something else.
    pub(super) fn create(path: &Path, cluster: &Cluster, shard: ShardId) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::Write { path: path.into(), source };
        let file = File::create_new(path).map_err(failed)?;
        let state = State { file, pending: Vec::new(), next: 0, requests: BTreeMap::new() };
        let requirement = cluster.policy.requirement(usize::from(cluster.nodes).saturating_sub(1));
        // Under a policy that can never hold nothing is committed, at no level.
        let level = requirement.map_or(AckLevel::Received, |r| r.level);
        let (policy, began, state) = (cluster.policy, Instant::now(), Mutex::new(state));
        let recorder = Self { path: path.into(), shard, policy, level, began, state };
        recorder.lock().line(&Event::Begin { nodes: cluster.nodes });
        recorder.write()?;
        Ok(recorder)
    }

    /// A record is about to be submitted. [`Recorder::write`] has to be called before it is sent.
    pub(super) fn append(&self, record: &[u8]) -> Result<(), HistoryError> {
        let print = Print::of(record);
        let mut state = self.lock();
        let (id, at_us) = (state.next, self.now());
        let (shard, policy) = (self.shard, Some(self.policy));
        state.line(&Event::Append(Append { id, client: 0, shard, print, policy, at_us }));
        state.next += 1;
        if state.pending.len() > PENDING_BYTES { self.write_locked(state) } else { Ok(()) }
    }

    /// It goes with this request, which was not sent yet.
    pub(super) fn submitted(&self, request: u64) {
        let mut state = self.lock();
        let id = state.next - 1;
        state.requests.entry(request).or_insert(id);
    }

    /// What became of a request.
    pub(super) fn outcome(&self, told: &Committed) {
        let status = match told.status {
            CommitStatus::Committed => Status::Committed(Commit {
                term: told.term,
                lsn: told.lsn,
                first_seq: Some(told.first_seq),
                level: self.level,
                wanted: told.wanted,
                acks: told.acks,
            }),
            CommitStatus::TimedOut => Status::TimedOut,
            // They may be written or not.
            CommitStatus::Fenced | CommitStatus::Stopped => Status::Unknown,
            CommitStatus::TooFewReplicas
            | CommitStatus::PolicyImpossible
            | CommitStatus::RecordTooLarge
            | CommitStatus::NoRoom
            | CommitStatus::MinReplicas => Status::Refused,
        };
        let mut state = self.lock();
        let at_us = self.now();
        if let Some(id) = state.requests.remove(&told.request) {
            state.line(&Event::Outcome(Outcome { id, records: u64::from(told.record_count), status, at_us }));
        }
    }

    /// Hands what is collected to the kernel: from then on a kill of this process loses none of it.
    pub(super) fn write(&self) -> Result<(), HistoryError> {
        self.write_locked(self.lock())
    }

    fn write_locked(&self, mut state: MutexGuard<'_, State>) -> Result<(), HistoryError> {
        let pending = std::mem::take(&mut state.pending);
        let wrote = state.file.write_all(&pending);
        state.pending = pending;
        state.pending.clear();
        wrote.map_err(|source| HistoryError::Write { path: self.path.clone(), source })
    }

    /// No code panics while it holds the lock in a half-changed state, so poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

impl State {
    fn line(&mut self, event: &Event) {
        // Writing into memory does not fail.
        let _ = writeln!(self.pending, "{event}");
    }
}
