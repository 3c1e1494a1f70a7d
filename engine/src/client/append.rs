//! Appending to one shard over one connection, many requests under way at once.

use std::io::Write;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use towline_wire::frame::{self, FrameKind};
use towline_wire::handshake::Welcome;
use towline_wire::message::{APPEND_HEAD, AppendHead, Committed, Goodbye, WirePolicy};
use towline_wire::{BODY_BYTES_MAX, RECORD_BYTES_MAX, ShardId, record};

use super::connection::{self, ConnectOptions};
use super::error::{AppendError, ClientError, Unknown};
use super::replies;
use super::window::{Limits, Request, Want, Window};

/// Where a frame's records begin: behind the frame's header and the request's head.
const RECORDS_AT: usize = frame::HEADER + APPEND_HEAD;
/// The least a node is granted beyond a deadline before its silence counts as a failure.
const GRACE_MIN: Duration = Duration::from_secs(1);

/// How appends are made and how much may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendOptions {
    /// What a commit waits for. Default: what the shard is configured to wait for.
    pub policy: WirePolicy,
    /// When an answer is wanted, in whole microseconds and at least one, counted by the node from
    /// when it takes the request. `None`, the default: the shard's own limit.
    pub deadline: Option<Duration>,
    /// Bytes of encoded records collected into one request, at most. A larger record goes alone.
    /// Default 256 KiB.
    pub frame_bytes: usize,
    /// Bytes of requests without an answer, at most; one larger request goes alone. Default 8 MiB.
    pub window_bytes: usize,
    /// Requests without an answer, at most. Default 4,096.
    pub window_requests: usize,
    /// Requests without an answer and outcomes not read, together, at most: what bounds the memory
    /// for outcomes. Default 65,536; never less than `window_requests`.
    pub unread_max: usize,
    /// How long the node may be silent while it owes an answer to a request without a deadline.
    /// Default 60 s. With a deadline, the limit is that plus three heartbeats, at least one second.
    pub reply_timeout: Duration,
}

impl Default for AppendOptions {
    fn default() -> Self {
        Self {
            policy: WirePolicy::Default,
            deadline: None,
            frame_bytes: 256 << 10,
            window_bytes: 8 << 20,
            window_requests: 4096,
            unread_max: 65_536,
            reply_timeout: Duration::from_secs(60),
        }
    }
}

impl AppendOptions {
    fn silence(&self, welcome: &Welcome) -> Duration {
        match self.deadline {
            Some(deadline) => deadline.saturating_add(connection::idle_limit(welcome).max(GRACE_MIN)),
            None => self.reply_timeout,
        }
    }
}

/// One connection that appends to one shard.
///
/// [`Appender::submit`] collects records, [`Appender::flush`] sends what is collected, and
/// [`Appender::next_outcome`] waits for the answers: one for each request, which may hold many
/// records. Records of a request are committed together.
///
/// ```no_run
/// use towline::client::{AppendOptions, Appender, ConnectOptions};
///
/// let mut appender = Appender::open("127.0.0.1:4790", 0, AppendOptions::default(), &ConnectOptions::default())?;
/// for n in 0..1000u32 {
///     appender.submit(&n.to_le_bytes())?;
/// }
/// appender.flush()?;
/// while let Some(outcome) = appender.next_outcome()? {
///     println!("{:?} up to lsn {}", outcome.status, outcome.lsn);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it closes the connection: records that were collected and not flushed are not sent, and
/// outcomes not read are lost.
pub struct Appender {
    // Dropped in this order: first no more requests, then the connection.
    submitter: Submitter,
    outcomes: Outcomes,
}

impl Appender {
    /// Connects to a node (`host:port`) and opens its shard for appends.
    ///
    /// # Errors
    /// Whatever keeps the connection from being opened; nothing has been appended then.
    pub fn open(addr: &str, shard: u32, options: AppendOptions, connect: &ConnectOptions) -> Result<Self, ClientError> {
        let mut opened = connection::open(addr, ShardId(shard), connect)?;
        // The one who waits for a reply watches over the node's silence; see `Window::wait`.
        opened.reader.set_patience(None)?;
        let welcome = opened.welcome;
        let requests = options.window_requests.max(1);
        let limits = Limits { bytes: options.window_bytes, requests, unread: options.unread_max.max(requests) };
        let window = Arc::new(Window::new(opened.stream, limits, options.silence(&welcome)));
        let (reader, shared) = (opened.reader, Arc::clone(&window));
        let replies = thread::Builder::new()
            .name("towline-replies".to_owned())
            .spawn(move || replies::read_all(reader, &shared))
            .map_err(|source| ClientError::Io { doing: "starting the thread that reads replies", source })?;
        let frame_bytes = options.frame_bytes.clamp(record::HEADER, BODY_BYTES_MAX);
        let record_max = usize::try_from(welcome.record_bytes_max).unwrap_or(usize::MAX).min(RECORD_BYTES_MAX);
        let submitter = Submitter {
            window: Arc::clone(&window),
            frame: vec![0; RECORDS_AT + frame_bytes],
            used: RECORDS_AT,
            collected: 0,
            request: 1,
            first_record: 0,
            options: AppendOptions { frame_bytes, ..options },
            welcome,
            record_max,
            reader_elsewhere: false,
        };
        Ok(Self { submitter, outcomes: Outcomes { window, replies: Some(replies), want: Want::Any } })
    }

    /// What the node said of itself when the connection was opened.
    #[must_use]
    pub const fn welcome(&self) -> &Welcome {
        &self.submitter.welcome
    }

    /// The largest record that is taken, in bytes.
    #[must_use]
    pub const fn record_bytes_max(&self) -> usize {
        self.submitter.record_max
    }

    /// Collects a record and returns the number of the request that will carry it. Sends the
    /// records collected before if this one does not fit; waits for answers if the window is full.
    ///
    /// # Errors
    /// [`AppendError::RecordTooLarge`] and [`AppendError::OutcomesUnread`]: the record was not
    /// taken, the connection is unharmed. [`AppendError::Lost`]: the connection is gone, and says
    /// what is unknown; this record was not taken.
    pub fn submit(&mut self, record: &[u8]) -> Result<u64, AppendError> {
        self.submitter.submit(record)
    }

    /// Sends what is collected. Does not wait for answers unless the window is full.
    ///
    /// # Errors
    /// As [`Appender::submit`]; what is collected stays collected on
    /// [`AppendError::OutcomesUnread`].
    pub fn flush(&mut self) -> Result<(), AppendError> {
        self.submitter.flush()
    }

    /// Sends what is collected, then makes what follows wait for another policy and deadline.
    ///
    /// # Errors
    /// As [`Appender::flush`].
    pub fn set_policy(&mut self, policy: WirePolicy, deadline: Option<Duration>) -> Result<(), AppendError> {
        self.submitter.set_policy(policy, deadline)
    }

    /// Waits for the next outcome; `None` when every request that was sent is answered and every
    /// answer was returned. Its `record_count` is always that of the request. Collected records are
    /// not sent by this: see [`Appender::flush`].
    ///
    /// # Errors
    /// [`AppendError::Lost`], after every outcome that arrived before the loss was returned.
    pub fn next_outcome(&mut self) -> Result<Option<Committed>, AppendError> {
        self.outcomes.next_outcome()
    }

    /// The next outcome, if it has arrived already.
    pub fn try_next_outcome(&mut self) -> Option<Committed> {
        self.outcomes.try_next_outcome()
    }

    /// Appends one record and waits for its outcome. Outcomes of other requests stay for
    /// [`Appender::next_outcome`].
    ///
    /// # Errors
    /// As [`Appender::submit`]. On [`AppendError::Lost`] this record's outcome is unknown if it is
    /// among [`super::Lost::unknown`], and it was not appended otherwise.
    pub fn append_one(&mut self, record: &[u8]) -> Result<Committed, AppendError> {
        self.flush()?;
        let request = self.submit(record)?;
        self.flush()?;
        let outcome = self.outcomes.window.next(Want::Of(request))?;
        // `flush` entered the request into the window, and only this call takes it out of there.
        outcome.ok_or(AppendError::Finished)
    }

    /// Makes two halves of it for two threads: one submits, the other takes outcomes. Unread
    /// outcomes then hold back the submitter instead of failing it.
    #[must_use]
    pub fn split(mut self) -> (Submitter, Outcomes) {
        self.submitter.reader_elsewhere = true;
        self.outcomes.want = Want::AnyToCome;
        (self.submitter, self.outcomes)
    }
}

/// The half of an [`Appender`] that takes records. Dropping it ends the appends; records collected
/// and not flushed are not sent.
pub struct Submitter {
    window: Arc<Window>,
    /// The frame being collected. Every byte is initialised; `used` of them count. It keeps the
    /// size of the largest frame sent.
    frame: Vec<u8>,
    used: usize,
    collected: u32,
    request: u64,
    /// Number of the first collected record on this connection.
    first_record: u64,
    options: AppendOptions,
    welcome: Welcome,
    record_max: usize,
    reader_elsewhere: bool,
}

impl Submitter {
    /// As [`Appender::record_bytes_max`].
    #[must_use]
    pub const fn record_bytes_max(&self) -> usize {
        self.record_max
    }

    /// Whether [`Submitter::submit`] of a record of so many bytes first sends what was collected
    /// before.
    #[must_use]
    pub const fn sends_before(&self, record_bytes: usize) -> bool {
        self.collected > 0 && self.used + record::encoded_len(record_bytes) > RECORDS_AT + self.options.frame_bytes
    }

    /// As [`Appender::submit`].
    ///
    /// # Errors
    /// As there; and [`AppendError::Finished`] when the other half has ended the appends.
    pub fn submit(&mut self, record: &[u8]) -> Result<u64, AppendError> {
        if record.len() > self.record_max {
            return Err(AppendError::RecordTooLarge { len: record.len(), max: self.record_max });
        }
        if self.sends_before(record.len()) {
            self.flush()?;
        }
        let need = record::encoded_len(record.len());
        if self.used + need > self.frame.len() {
            self.frame.resize(self.used + need, 0);
        }
        record::encode(record, &mut self.frame[self.used..]);
        self.used += need;
        self.collected += 1;
        self.window.count_record();
        Ok(self.request)
    }

    /// As [`Appender::flush`].
    ///
    /// # Errors
    /// As [`Submitter::submit`].
    pub fn flush(&mut self) -> Result<(), AppendError> {
        if self.collected == 0 {
            return Ok(());
        }
        let unknown = Unknown { request: self.request, first_record: self.first_record, records: self.collected };
        self.window.admit(Request { unknown, bytes: self.used }, self.reader_elsewhere)?;
        let head = AppendHead {
            request: self.request,
            deadline_us: self.options.deadline.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX).max(1)),
            record_count: self.collected,
            policy: self.options.policy,
        };
        self.frame[frame::HEADER..RECORDS_AT].copy_from_slice(&head.to_bytes());
        let header = frame::header(FrameKind::Append, 0, 0, &self.frame[frame::HEADER..self.used]);
        self.frame[..frame::HEADER].copy_from_slice(&header);
        let written = self.window.stream().write_all(&self.frame[..self.used]);
        self.used = RECORDS_AT;
        self.first_record += u64::from(self.collected);
        self.collected = 0;
        self.request += 1;
        match written {
            Ok(()) => {
                self.window.written();
                Ok(())
            }
            Err(source) => Err(self.window.write_failed(source)),
        }
    }

    /// As [`Appender::set_policy`].
    ///
    /// # Errors
    /// As [`Submitter::flush`].
    pub fn set_policy(&mut self, policy: WirePolicy, deadline: Option<Duration>) -> Result<(), AppendError> {
        self.flush()?;
        self.options.policy = policy;
        self.options.deadline = deadline;
        self.window.set_silence(self.options.silence(&self.welcome));
        Ok(())
    }

    /// Sends what is collected and ends the appends: the other half then comes to an end after the
    /// last outcome.
    ///
    /// # Errors
    /// As [`Submitter::flush`].
    pub fn finish(mut self) -> Result<(), AppendError> {
        self.flush()
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        self.window.finish();
    }
}

/// The half of an [`Appender`] that takes outcomes. Dropping it closes the connection.
pub struct Outcomes {
    window: Arc<Window>,
    replies: Option<JoinHandle<()>>,
    want: Want,
}

impl Outcomes {
    /// Waits for the next outcome; `None` when the appends have ended and every answer was
    /// returned.
    ///
    /// # Errors
    /// [`AppendError::Lost`], after every outcome that arrived before the loss was returned.
    pub fn next_outcome(&mut self) -> Result<Option<Committed>, AppendError> {
        self.window.next(self.want)
    }

    /// The next outcome, if it has arrived already.
    pub fn try_next_outcome(&mut self) -> Option<Committed> {
        self.window.try_next()
    }

    /// Ends the appends from this side: the submitter gets [`AppendError::Finished`] when it would
    /// send next, and [`Outcomes::next_outcome`] comes to an end after what is under way.
    pub fn stop_submitting(&self) {
        self.window.finish();
    }

    /// Records submitted so far, sent or only collected.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.window.submitted()
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        self.window.finish();
        if self.window.is_at_rest() {
            let goodbye = Goodbye::Done as u64;
            // A courtesy: that it cannot be said changes nothing.
            let _unheard = connection::send(self.window.stream(), FrameKind::Goodbye, goodbye, &[], "closing");
        }
        self.window.shutdown();
        if let Some(replies) = self.replies.take() {
            // It ends because the socket has ended. A panic in it was reported where it happened.
            let _ended = replies.join();
        }
    }
}
