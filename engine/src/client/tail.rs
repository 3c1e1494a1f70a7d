//! A subscription to one shard's log: checked batches in order, without a gap.

use std::time::Duration;

use towline_wire::frame::FrameKind;
use towline_wire::handshake::Welcome;
use towline_wire::message::{ErrorCode, Heartbeat, TailRequest, TailStart};
use towline_wire::{BatchHeader, BatchView, Chain, Lsn, Records, Seq, ShardId, Term, batch};

use super::connection::{self, ConnectOptions, Connection};
use super::error::{ClientError, OutOfLine};

const DOING: &str = "reading the log";
const ALLOWED: &[FrameKind] = &[FrameKind::Batch, FrameKind::Heartbeat, FrameKind::TailEnd];

/// A batch whose every byte was checked, and which follows from the one before it.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    /// Header and body, as they crossed the network.
    bytes: Vec<u8>,
    commit_lsn: Lsn,
}

impl Batch {
    /// Where it starts.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        self.header.lsn()
    }
    /// Where the next one starts: the position to resume from.
    #[must_use]
    pub const fn end_lsn(&self) -> Lsn {
        self.header.end_lsn()
    }
    /// Number of its first record.
    #[must_use]
    pub const fn first_seq(&self) -> Seq {
        self.header.first_seq()
    }
    /// Records in it; at least one.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.header.record_count()
    }
    /// The term of the primary that wrote it.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.header.term()
    }
    /// When the primary closed it, in microseconds since 1970 on its clock.
    #[must_use]
    pub const fn timestamp_us(&self) -> u64 {
        self.header.timestamp_us()
    }
    /// What the node knew to be committed when it sent it.
    #[must_use]
    pub const fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }
    /// Its header: everything else it says.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }
    /// Header and body, as [`BatchView::check`] takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The payloads in order.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.bytes[batch::HEADER..])
    }
}

/// What the next batch has to follow from.
#[derive(Clone, Copy, Debug)]
struct Due {
    lsn: Lsn,
    seq: Seq,
    chain: Chain,
    term: Term,
}

impl Due {
    fn check(&self, header: &BatchHeader) -> Result<(), OutOfLine> {
        if header.lsn() != self.lsn {
            return Err(OutOfLine::Lsn { expected: self.lsn, found: header.lsn() });
        }
        if header.prev_chain() != self.chain {
            return Err(OutOfLine::Chain { expected: self.chain, found: header.prev_chain() });
        }
        if header.first_seq() != self.seq {
            return Err(OutOfLine::Seq { expected: self.seq, found: header.first_seq() });
        }
        if header.term() < self.term {
            return Err(OutOfLine::Term { before: self.term, found: header.term() });
        }
        Ok(())
    }
}

/// A subscription to one shard's log.
///
/// ```no_run
/// use towline::client::{ConnectOptions, Tail, TailRequest, TailStart};
///
/// let all = TailRequest { start: TailStart::Oldest, flushed: false, until_end: true };
/// let mut tail = Tail::open("127.0.0.1:4790", 0, all, &ConnectOptions::default())?;
/// while let Some(batch) = tail.next_batch()? {
///     for record in batch.records() {
///         println!("{} bytes", record.len());
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tail {
    connection: Connection,
    shard: ShardId,
    request: TailRequest,
    due: Option<Due>,
    /// The highest commit LSN seen, and the lowest one that is believable.
    commit_lsn: Lsn,
    tail: Lsn,
    beat: Option<Heartbeat>,
    ended: bool,
    payload: Vec<u8>,
}

impl Tail {
    /// Connects to a node (`host:port`) and subscribes to a shard.
    ///
    /// # Errors
    /// Whatever keeps the connection from being opened. That the position does not exist is
    /// reported by the first [`Tail::next_batch`], except for one that is no multiple of a block,
    /// which is [`ClientError::Unaligned`] here.
    pub fn open(addr: &str, shard: u32, request: TailRequest, connect: &ConnectOptions) -> Result<Self, ClientError> {
        if let TailStart::At(lsn) = request.start
            && !lsn.is_block_aligned()
        {
            return Err(ClientError::Unaligned { lsn });
        }
        let shard = ShardId(shard);
        let mut connection = connection::open(addr, shard, connect)?;
        let welcome = connection.welcome;
        let idle: Duration = connect.idle_timeout.unwrap_or_else(|| connection::idle_limit(&welcome));
        connection.reader.set_patience(Some(idle))?;
        connection::send(&connection.stream, FrameKind::Tail, 0, &request.to_bytes(), "subscribing")?;
        Ok(Self {
            connection,
            shard,
            request,
            due: None,
            commit_lsn: welcome.commit_lsn,
            tail: welcome.tail,
            beat: None,
            ended: false,
            payload: Vec::new(),
        })
    }

    /// What the node said of itself when the connection was opened.
    #[must_use]
    pub const fn welcome(&self) -> &Welcome {
        &self.connection.welcome
    }
    /// The highest commit LSN the node has told of.
    #[must_use]
    pub const fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }
    /// The highest end of the node's log known here, from its welcome, heartbeats and batches.
    #[must_use]
    pub const fn tail_lsn(&self) -> Lsn {
        self.tail
    }
    /// The last heartbeat, if any came.
    #[must_use]
    pub const fn heartbeat(&self) -> Option<&Heartbeat> {
        self.beat.as_ref()
    }
    /// Where to resume: the end of the last batch returned; `None` before the first one.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        self.due.map(|due| due.lsn)
    }

    /// Waits for the next batch; `None` when the end that was asked for is reached.
    ///
    /// Every batch is checked (both CRCs, bounds, each record), continues the one before it (LSN,
    /// chain, record numbers, term), belongs to the node's system and to the shard, and is
    /// committed by the commit LSN it came with, unless [`TailRequest::flushed`] asked for more.
    ///
    /// # Errors
    /// [`ClientError::TooOld`] or [`ClientError::NoSuchPosition`] if the start does not exist;
    /// [`ClientError::Idle`] when not even a heartbeat arrived for the idle limit;
    /// [`ClientError::Batch`] and [`ClientError::OutOfLine`] for a batch that fails its checks;
    /// otherwise what ended the connection. After an error the subscription is over: open another
    /// one at [`Tail::position`].
    pub fn next_batch(&mut self) -> Result<Option<Batch>, ClientError> {
        while !self.ended {
            let next = self.connection.reader.next(ALLOWED, &mut self.payload, DOING);
            let head = next.map_err(|error| self.position_error(error))?;
            match head.kind {
                FrameKind::Batch => return self.batch(Lsn(head.arg)).map(Some),
                FrameKind::Heartbeat => self.heartbeat_came()?,
                _ => self.end(Lsn(head.arg))?,
            }
        }
        Ok(None)
    }

    /// A position that was refused, in terms of what was asked for.
    fn position_error(&self, error: ClientError) -> ClientError {
        let asked = match self.request.start {
            TailStart::At(lsn) => self.position().unwrap_or(lsn),
            TailStart::Oldest => self.position().unwrap_or(Lsn::ZERO),
            TailStart::End => self.position().unwrap_or(self.connection.welcome.tail),
        };
        match error {
            ClientError::Server { code: ErrorCode::TooOld, arg, text } => {
                ClientError::TooOld { asked, oldest: Lsn(arg), text }
            }
            ClientError::Server { code: ErrorCode::NoSuchPosition, arg, text } => {
                ClientError::NoSuchPosition { asked, end: Lsn(arg), text }
            }
            other => other,
        }
    }

    fn heartbeat_came(&mut self) -> Result<(), ClientError> {
        let beat = Heartbeat::check(&self.payload).map_err(|source| self.connection.reader.bad(source))?;
        let same_term = self.beat.map_or(self.connection.welcome.term, |before| before.term) == beat.term;
        if same_term {
            self.commit_moves(beat.commit_lsn)?;
        }
        self.commit_lsn = self.commit_lsn.max(beat.commit_lsn);
        self.tail = self.tail.max(beat.tail);
        self.beat = Some(beat);
        Ok(())
    }

    /// Within a term the commit LSN never moves back.
    fn commit_moves(&mut self, found: Lsn) -> Result<(), ClientError> {
        if found < self.commit_lsn {
            let source = OutOfLine::CommitMovedBack { before: self.commit_lsn, found };
            return Err(ClientError::OutOfLine { lsn: found, source });
        }
        self.commit_lsn = found;
        Ok(())
    }

    fn batch(&mut self, commit: Lsn) -> Result<Batch, ClientError> {
        let at = self.connection.reader.at();
        let bytes = std::mem::take(&mut self.payload);
        let expected = self.position().unwrap_or(match self.request.start {
            TailStart::At(lsn) => lsn,
            TailStart::Oldest | TailStart::End => Lsn::ZERO,
        });
        let view = BatchView::check(&bytes).map_err(|source| ClientError::Batch { at, expected, source })?;
        let header = *view.header();
        let lsn = header.lsn();
        self.in_line(&header, commit).map_err(|source| ClientError::OutOfLine { lsn, source })?;
        self.commit_moves(commit)?;
        let (end, seq) = (header.end_lsn(), header.end_seq());
        self.due = Some(Due { lsn: end, seq, chain: header.chain(), term: header.term() });
        self.tail = self.tail.max(end);
        Ok(Batch { header, bytes, commit_lsn: commit })
    }

    fn in_line(&self, header: &BatchHeader, commit: Lsn) -> Result<(), OutOfLine> {
        let system = self.connection.welcome.system;
        if header.system() != system {
            return Err(OutOfLine::System { expected: system, found: header.system() });
        }
        if header.shard() != self.shard {
            return Err(OutOfLine::Shard { expected: self.shard, found: header.shard() });
        }
        let first = Due { lsn: Lsn::ZERO, seq: Seq(0), chain: Chain::GENESIS, term: Term::ZERO };
        match (self.due, self.request.start) {
            (Some(due), _) => due.check(header)?,
            (None, TailStart::At(lsn)) if header.lsn() != lsn => {
                return Err(OutOfLine::Lsn { expected: lsn, found: header.lsn() });
            }
            // Of a log's first batch everything is known; of one in its middle nothing is.
            _ if header.lsn() == Lsn::ZERO => first.check(header)?,
            _ => {}
        }
        if !self.request.flushed && header.end_lsn() > commit {
            return Err(OutOfLine::NotCommitted { end: header.end_lsn(), commit });
        }
        Ok(())
    }

    fn end(&mut self, lsn: Lsn) -> Result<(), ClientError> {
        let reader = &self.connection.reader;
        if !self.request.until_end {
            return Err(ClientError::OutOfPlace { kind: FrameKind::TailEnd, at: reader.at(), doing: DOING });
        }
        // Batches between the last one that came and the end would be missing.
        let due = match (self.due, self.request.start) {
            (Some(due), _) => Some(due.lsn),
            (None, TailStart::At(start)) => Some(start),
            (None, TailStart::Oldest | TailStart::End) => None,
        };
        match due {
            Some(expected) if expected != lsn => {
                Err(ClientError::OutOfLine { lsn, source: OutOfLine::Lsn { expected, found: lsn } })
            }
            _ => {
                self.ended = true;
                self.tail = self.tail.max(lsn);
                Ok(())
            }
        }
    }
}
