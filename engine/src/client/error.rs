//! What can go wrong with a connection, and what the caller can do about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use towline_wire::frame::{FrameError, FrameKind};
use towline_wire::handshake::Refusal;
use towline_wire::message::{ErrorCode, Goodbye};
use towline_wire::{BatchError, Chain, Lsn, PROTOCOL_VERSION, Seq, ShardId, SystemId, Term};

/// What to do after a [`ClientError`]. It speaks of the connection only: what became of requests
/// that were under way is said by [`Lost::unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// This node cannot serve the request now: ask another node, or this one after a pause.
    TryElsewhere,
    /// The connection is gone but nothing speaks against the node: open a new one to it.
    Reopen,
    /// Trying again gives the same answer: the request, the configuration or the peer is wrong.
    Stop,
}

/// Why a connection could not be opened or cannot be used any further.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No address behind the name accepted a TCP connection. Nothing was sent.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The address asked for.
        addr: String,
        /// What the last attempt gave.
        source: io::Error,
    },
    /// The node refuses this client.
    #[error("{addr} refuses the connection ({cause:?}): {text}")]
    Refused {
        /// The address.
        addr: String,
        /// The cause.
        cause: Refusal,
        /// The node's own words.
        text: String,
    },
    /// The node speaks another version of the protocol.
    #[error("{addr} speaks protocol version {theirs}, this build speaks {PROTOCOL_VERSION}")]
    Protocol {
        /// The address.
        addr: String,
        /// The node's version.
        theirs: u16,
    },
    /// The node sent an error frame.
    #[error("the node says {code:?} ({arg}): {text}")]
    Server {
        /// Why.
        code: ErrorCode,
        /// A number that belongs to the code, or 0.
        arg: u64,
        /// The node's own words.
        text: String,
    },
    /// The position asked for is older than the oldest one kept.
    #[error("LSN {asked} is not kept any more, the log begins at LSN {oldest}: {text}")]
    TooOld {
        /// What was asked for.
        asked: Lsn,
        /// The oldest position kept.
        oldest: Lsn,
        /// The node's own words.
        text: String,
    },
    /// The position asked for lies behind the end, or between two batch boundaries.
    #[error("no batch begins at LSN {asked}, the log ends at LSN {end}: {text}")]
    NoSuchPosition {
        /// What was asked for.
        asked: Lsn,
        /// Where the log ends.
        end: Lsn,
        /// The node's own words.
        text: String,
    },
    /// A start that cannot be a batch boundary. Nothing was sent.
    #[error("LSN {lsn} is no multiple of {}, so no batch can begin there", towline_wire::BLOCK)]
    Unaligned {
        /// What was asked for.
        lsn: Lsn,
    },
    /// What the node sent is not a frame, or a frame's payload is not what its kind says.
    #[error("in byte {at} and following of what the node sent: {source}")]
    Frame {
        /// Where the frame starts, in bytes since the connection was opened.
        at: u64,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A frame that the protocol does not allow here.
    #[error("the node sent a {kind:?} frame at byte {at} of the connection while the client was {doing}")]
    OutOfPlace {
        /// What it is.
        kind: FrameKind,
        /// Where it starts, in bytes since the connection was opened.
        at: u64,
        /// What the client was doing.
        doing: &'static str,
    },
    /// A reply that does not belong to any request under way, or contradicts it.
    #[error("the node's reply to request {request} {why}")]
    BadReply {
        /// The request it names.
        request: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A batch that fails its own checks.
    #[error("the batch at byte {at} of the connection (LSN {expected} was due): {source}")]
    Batch {
        /// Where its frame starts, in bytes since the connection was opened.
        at: u64,
        /// The LSN that was due; for the first batch the lowest possible one.
        expected: Lsn,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A batch, sound in itself, that does not follow from what came before it.
    #[error("the stream breaks at LSN {lsn}: {source}")]
    OutOfLine {
        /// The LSN the batch or frame speaks of.
        lsn: Lsn,
        /// What does not fit.
        source: OutOfLine,
    },
    /// A status document that is not UTF-8.
    #[error("the status document is not UTF-8 at byte {at}")]
    StatusText {
        /// Offset into the document.
        at: usize,
    },
    /// The operating system reports an error on the connection.
    #[error("connection failed while {doing}: {source}")]
    Io {
        /// What the client was doing.
        doing: &'static str,
        /// What it reports.
        source: io::Error,
    },
    /// The node closed the connection without a word.
    #[error("the node closed the connection after byte {at} while the client was {doing}")]
    Closed {
        /// Bytes received on the connection.
        at: u64,
        /// What the client was doing.
        doing: &'static str,
    },
    /// The node said goodbye and closed the connection.
    #[error("the node said goodbye ({}) while the client was {doing}", goodbye(.reason))]
    Goodbye {
        /// The goodbye's number: see [`Goodbye`].
        reason: u64,
        /// What the client was doing.
        doing: &'static str,
    },
    /// Nothing came from the node, or it took nothing, for longer than the limit.
    #[error("the node was silent for {waited:?} while the client was {doing}")]
    Idle {
        /// The limit.
        waited: Duration,
        /// What the client was doing.
        doing: &'static str,
    },
}

fn goodbye(reason: &u64) -> String {
    match *reason {
        n if n == Goodbye::Stopping as u64 => "it is being stopped".to_owned(),
        n if n == Goodbye::Done as u64 => "it is done".to_owned(),
        n if n == Goodbye::Replaced as u64 => "a newer connection takes over".to_owned(),
        n => format!("reason {n}"),
    }
}

impl ClientError {
    /// What to do about the connection.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Connect { .. } | Self::Idle { .. } => Advice::TryElsewhere,
            Self::Refused { cause, .. } => match cause {
                Refusal::StalePrimary | Refusal::Busy | Refusal::Stopping | Refusal::NotPrimary => Advice::TryElsewhere,
                _ => Advice::Stop,
            },
            Self::Server { code, .. } => match code {
                ErrorCode::Stopped | ErrorCode::Refused => Advice::TryElsewhere,
                ErrorCode::Idle => Advice::Reopen,
                _ => Advice::Stop,
            },
            Self::Goodbye { reason, .. } if *reason == Goodbye::Stopping as u64 => Advice::TryElsewhere,
            Self::Goodbye { .. } | Self::Io { .. } | Self::Closed { .. } => Advice::Reopen,
            // A CRC that does not match is damage on the way; a field out of bounds is not.
            Self::Frame { source: FrameError::HeaderCrc { .. } | FrameError::PayloadCrc { .. }, at } if *at > 0 => {
                Advice::Reopen
            }
            Self::Batch { source: BatchError::HeaderCrc { .. } | BatchError::BodyCrc { .. }, .. } => Advice::Reopen,
            Self::Protocol { .. }
            | Self::TooOld { .. }
            | Self::NoSuchPosition { .. }
            | Self::Unaligned { .. }
            | Self::Frame { .. }
            | Self::OutOfPlace { .. }
            | Self::BadReply { .. }
            | Self::Batch { .. }
            | Self::OutOfLine { .. }
            | Self::StatusText { .. } => Advice::Stop,
        }
    }

    /// Whether the node answered and said no, as opposed to a connection that failed.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Protocol { .. }
                | Self::Server { .. }
                | Self::TooOld { .. }
                | Self::NoSuchPosition { .. }
        )
    }
}

/// Why a sound batch does not belong where it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OutOfLine {
    /// It starts elsewhere than the one before it ended.
    #[error("LSN {expected} was due, this is LSN {found}")]
    Lsn {
        /// Where the batch before it ended, or what was asked for.
        expected: Lsn,
        /// Where this one starts.
        found: Lsn,
    },
    /// Its records are numbered otherwise.
    #[error("record {expected} was due, this is record {found}")]
    Seq {
        /// The number after the last record.
        expected: Seq,
        /// The number of this batch's first record.
        found: Seq,
    },
    /// It continues another history.
    #[error("its history has the chain {found}, what came before has {expected}")]
    Chain {
        /// The chain of what came before.
        expected: Chain,
        /// The chain that the batch continues.
        found: Chain,
    },
    /// Its term is lower than that of the batch before it.
    #[error("its term is {found}, the batch before it has {before}")]
    Term {
        /// The term of the batch before it.
        before: Term,
        /// This batch's term.
        found: Term,
    },
    /// It belongs to another system.
    #[error("it belongs to system {found}, the node to {expected}")]
    System {
        /// What the node said in its welcome.
        expected: SystemId,
        /// What the batch says.
        found: SystemId,
    },
    /// It belongs to another shard.
    #[error("it belongs to shard {found}, shard {expected} was asked for")]
    Shard {
        /// What was asked for.
        expected: ShardId,
        /// What the batch says.
        found: ShardId,
    },
    /// It was sent before it was committed, to a subscriber of committed batches.
    #[error("it ends at LSN {end}, only LSN {commit} is committed")]
    NotCommitted {
        /// Where the batch ends.
        end: Lsn,
        /// The commit LSN it came with.
        commit: Lsn,
    },
    /// The commit LSN moved back within a term.
    #[error("the commit LSN moved back from {before} to {found}")]
    CommitMovedBack {
        /// The highest one seen.
        before: Lsn,
        /// What came.
        found: Lsn,
    },
}

/// A request that was sent, in whole or in part, and whose outcome never arrived. Its records may
/// be committed, may be committed later, or may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unknown {
    /// The request's number, as `submit` returned it.
    pub request: u64,
    /// The first of its records, counted from 0 in the order of submission on this connection.
    pub first_record: u64,
    /// Its records.
    pub records: u32,
}

/// A connection that was lost with appends under way.
#[derive(Clone, Debug, Error)]
#[error(
    "{cause}; {} records in {} requests have an unknown outcome (they may be committed), {unsent} were never sent",
    self.unknown_records(),
    unknown.len()
)]
pub struct Lost {
    /// What happened to the connection; [`ClientError::advice`] says what to do about it.
    pub cause: Arc<ClientError>,
    /// The requests whose outcome is unknown, oldest first. Appending their records again may write
    /// them twice.
    pub unknown: Vec<Unknown>,
    /// Records that were submitted but never left this process: certainly not appended, and the
    /// last ones submitted.
    pub unsent: u64,
}

impl Lost {
    /// Records whose outcome is unknown.
    #[must_use]
    pub fn unknown_records(&self) -> u64 {
        self.unknown.iter().map(|u| u64::from(u.records)).sum()
    }
}

/// Why an append was not taken, or an outcome cannot be had.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The record is larger than the node accepts. It was not taken; the connection is unharmed.
    #[error("the record has {len} bytes, the node accepts {max}")]
    RecordTooLarge {
        /// Bytes of the record.
        len: usize,
        /// The node's limit.
        max: usize,
    },
    /// Too many outcomes wait to be read. The record was not taken; call `next_outcome` and submit
    /// it again.
    #[error("{limit} outcomes are unread or due, read some before submitting more")]
    OutcomesUnread {
        /// The limit: [`super::AppendOptions::unread_max`].
        limit: usize,
    },
    /// The other half has ended the appends. The record was not taken.
    #[error("appends on this connection have been ended")]
    Finished,
    /// The connection is lost.
    #[error(transparent)]
    Lost(#[from] Lost),
}
