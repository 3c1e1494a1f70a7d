//! What is under way on one appending connection: which requests wait for a reply, how many bytes
//! they hold, which outcomes wait to be read. Shared by the half that sends, the half that takes
//! outcomes and the thread that reads replies; locked once for each frame, never for each record.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use towline_wire::message::{CommitStatus, Committed};

use super::connection::is_timeout;
use super::error::{AppendError, ClientError, Lost, Unknown};

/// How long a failed write waits for the reply reader to find the node's own words about it.
const LAST_WORDS: Duration = Duration::from_secs(1);
const WAITING: &str = "waiting for outcomes";
const SENDING: &str = "sending records";

/// Bounds on what is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of frames without a reply; one frame larger than this goes alone.
    pub(super) bytes: usize,
    /// Frames without a reply.
    pub(super) requests: usize,
    /// Frames without a reply and outcomes not read.
    pub(super) unread: usize,
}

/// A request that is to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) unknown: Unknown,
    pub(super) bytes: usize,
}

/// Which outcome a caller waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    /// The oldest; ends when nothing is under way.
    Any,
    /// The oldest; ends when nothing is under way and nothing more can be submitted.
    AnyToCome,
    /// That of this request.
    Of(u64),
}

pub(super) struct Window {
    stream: TcpStream,
    limits: Limits,
    state: Mutex<State>,
    /// Signalled whenever the state changes in a way that somebody may wait for. At most two wait.
    changed: Condvar,
    /// Records submitted so far. Written by the one submitter only.
    submitted: AtomicU64,
}

struct State {
    outstanding: VecDeque<Request>,
    outstanding_bytes: usize,
    outcomes: VecDeque<Committed>,
    /// Records in requests that were handed to the socket.
    sent: u64,
    /// When the node last gave a sign of life, or was last given something to answer.
    alive_at: Instant,
    /// How long it may be silent while it owes a reply.
    silence: Duration,
    /// A frame is being written: the socket's own time limit watches over that.
    writing: bool,
    /// Nothing more will be submitted.
    finished: bool,
    failure: Option<Arc<ClientError>>,
}

impl Window {
    pub(super) fn new(stream: TcpStream, limits: Limits, silence: Duration) -> Self {
        let state = State {
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            outcomes: VecDeque::new(),
            sent: 0,
            alive_at: Instant::now(),
            silence,
            writing: false,
            finished: false,
            failure: None,
        };
        Self { stream, limits, state: Mutex::new(state), changed: Condvar::new(), submitted: AtomicU64::new(0) }
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// No code panics while it holds the lock in a half-changed state, so poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, for as long as the node may be silent. Marks the connection as failed
    /// when that has passed.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let left = state.silence.saturating_sub(state.alive_at.elapsed());
        let watched = !state.outstanding.is_empty() && !state.writing;
        if watched && left.is_zero() {
            let waited = state.silence;
            self.fail_locked(state, ClientError::Idle { waited, doing: WAITING });
            return self.lock();
        }
        let limit = if watched { left } else { state.silence };
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Counts a record as submitted.
    pub(super) fn count_record(&self) {
        // One writer: a load and a store, no read-modify-write.
        self.submitted.store(self.submitted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Records submitted so far.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Waits until the request fits into the window and enters it there, before its first byte is
    /// written: from here on its outcome is unknown until the reply comes.
    ///
    /// `reader_elsewhere`: another thread takes the outcomes, so unread ones are worth waiting for.
    pub(super) fn admit(&self, request: Request, reader_elsewhere: bool) -> Result<(), AppendError> {
        let mut state = self.lock();
        loop {
            if let Some(cause) = &state.failure {
                return Err(self.lost(&state, Arc::clone(cause)).into());
            }
            if state.finished {
                return Err(AppendError::Finished);
            }
            let unread_ok = state.outcomes.len() + state.outstanding.len() < self.limits.unread;
            if !unread_ok && !reader_elsewhere {
                return Err(AppendError::OutcomesUnread { limit: self.limits.unread });
            }
            let bytes_ok = state.outstanding.is_empty() || state.outstanding_bytes + request.bytes <= self.limits.bytes;
            if unread_ok && bytes_ok && state.outstanding.len() < self.limits.requests {
                break;
            }
            state = self.wait(state);
        }
        if state.outstanding.is_empty() {
            state.alive_at = Instant::now();
        }
        state.outstanding_bytes += request.bytes;
        state.sent += u64::from(request.unknown.records);
        state.outstanding.push_back(request);
        state.writing = true;
        Ok(())
    }

    /// The frame admitted last is written.
    pub(super) fn written(&self) {
        let mut state = self.lock();
        state.writing = false;
        state.alive_at = Instant::now();
    }

    /// The frame admitted last could not be written. The node may have said why before it closed
    /// the connection: its words are worth more than `EPIPE`, so the reply reader gets a moment.
    pub(super) fn write_failed(&self, source: std::io::Error) -> AppendError {
        let until = Instant::now() + LAST_WORDS;
        let timed_out = is_timeout(&source);
        let mut state = self.lock();
        state.writing = false;
        while state.failure.is_none() && !timed_out {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let cause = self.fail_locked(state, ClientError::Io { doing: SENDING, source });
        AppendError::Lost(self.lost(&self.lock(), cause))
    }

    /// Replies arrived, oldest first: moves them from the requests under way to the outcomes.
    pub(super) fn answered(&self, replies: &mut Vec<Committed>) -> Result<(), ClientError> {
        let mut state = self.lock();
        state.alive_at = Instant::now();
        for reply in replies.drain(..) {
            let bad = |why| Err(ClientError::BadReply { request: reply.request, why });
            // Replies come in order except for refusals and passed deadlines.
            let Some(index) = state.outstanding.iter().position(|r| r.unknown.request == reply.request) else {
                return bad("belongs to no request under way");
            };
            let request = state.outstanding[index];
            if reply.status == CommitStatus::Committed && reply.record_count != request.unknown.records {
                return bad("counts other records than were sent");
            }
            state.outstanding.remove(index);
            state.outstanding_bytes -= request.bytes;
            // Where nothing was written a node may count no records; the client knows how many it sent.
            state.outcomes.push_back(Committed { record_count: request.unknown.records, ..reply });
        }
        debug_assert!(state.outcomes.len() + state.outstanding.len() <= self.limits.unread);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The node gave a sign of life.
    pub(super) fn alive(&self) {
        self.lock().alive_at = Instant::now();
    }

    /// The connection cannot be used any further; the first cause stands.
    pub(super) fn fail(&self, cause: ClientError) {
        self.fail_locked(self.lock(), cause);
    }

    fn fail_locked(&self, mut state: MutexGuard<'_, State>, cause: ClientError) -> Arc<ClientError> {
        let cause = Arc::clone(state.failure.get_or_insert_with(|| Arc::new(cause)));
        drop(state);
        self.shutdown();
        self.changed.notify_all();
        cause
    }

    /// Ends reads and writes on the socket; that it already has ended is no error.
    pub(super) fn shutdown(&self) {
        let _already_ended = self.stream.shutdown(Shutdown::Both);
    }

    /// Nothing more will be submitted.
    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Whether the connection may be closed with a goodbye: nothing is owed and nothing is broken.
    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.failure.is_none() && state.outstanding.is_empty() && !state.writing
    }

    /// The silence the node is granted from now on; never shortened while a request is under way
    /// that was promised more.
    pub(super) fn set_silence(&self, silence: Duration) {
        let mut state = self.lock();
        state.silence = if state.outstanding.is_empty() { silence } else { silence.max(state.silence) };
    }

    /// The outcome asked for, when it is there; `None` when none is to come.
    pub(super) fn next(&self, want: Want) -> Result<Option<Committed>, AppendError> {
        let mut state = self.lock();
        loop {
            let index = match want {
                Want::Of(request) => state.outcomes.iter().position(|o| o.request == request),
                Want::Any | Want::AnyToCome => (!state.outcomes.is_empty()).then_some(0),
            };
            if let Some(index) = index {
                let outcome = state.outcomes.remove(index);
                drop(state);
                // The submitter may wait for room among the unread outcomes.
                self.changed.notify_all();
                return Ok(outcome);
            }
            let more = match want {
                Want::Any => !state.outstanding.is_empty(),
                Want::AnyToCome => !(state.finished && state.outstanding.is_empty()),
                Want::Of(request) => state.outstanding.iter().any(|r| r.unknown.request == request),
            };
            // All answered and all read: that the connection is lost by now loses nothing, unless
            // records that were submitted will never be sent.
            let owes = more || self.submitted() > state.sent;
            match &state.failure {
                Some(cause) if owes => return Err(self.lost(&state, Arc::clone(cause)).into()),
                None if more => state = self.wait(state),
                _ => return Ok(None),
            }
        }
    }

    /// An outcome that is there already.
    pub(super) fn try_next(&self) -> Option<Committed> {
        let outcome = self.lock().outcomes.pop_front();
        if outcome.is_some() {
            self.changed.notify_all();
        }
        outcome
    }

    fn lost(&self, state: &State, cause: Arc<ClientError>) -> Lost {
        Lost {
            cause,
            unknown: state.outstanding.iter().map(|r| r.unknown).collect(),
            unsent: self.submitted().saturating_sub(state.sent),
        }
    }
}
