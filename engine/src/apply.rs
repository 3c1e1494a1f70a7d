//! What a replica does with records: the embedder's handler.

use std::fmt;

use thiserror::Error;
use towline_wire::{BatchView, Lsn, Records, Seq, ShardId, Term};

/// A batch that the handler is given: whole, checked, on this replica's device, and (unless the
/// handler asked for [`Deliver::Flushed`]) committed.
#[derive(Clone, Copy, Debug)]
pub struct AppliedBatch<'a> {
    view: BatchView<'a>,
}

impl<'a> AppliedBatch<'a> {
    pub(crate) const fn new(view: BatchView<'a>) -> Self {
        Self { view }
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.view.header().shard()
    }
    /// The reign in which it was appended.
    #[must_use]
    pub fn term(&self) -> Term {
        self.view.header().term()
    }
    /// Where it starts.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.view.header().lsn()
    }
    /// Where the next one starts: what a handler remembers as its position.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.view.header().end_lsn()
    }
    /// The number of the first record.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        self.view.header().first_seq()
    }
    /// Records in it.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.view.header().record_count()
    }
    /// The payloads in order.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        self.view.records()
    }
}

/// What a handler is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Deliver {
    /// What is known to be committed: it is never taken back.
    #[default]
    Committed,
    /// What is on this replica's device: earlier, but a tail that turns out to be no part of the
    /// history is taken back with [`Apply::cut`].
    Flushed,
}

/// Why a handler cannot go on. The shard stops: a replica that leaves records out is none.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// The embedder's handler, one for each shard. It runs on the shard's core between I/O: it should
/// be quick, and must not block.
///
/// `applied` acknowledgements say what this handler returned for. Whatever it must not lose in a
/// crash it keeps itself, with the position; [`Apply::resume_at`] says where to go on.
pub trait Apply {
    /// Where to go on: the end of the last batch that this handler has durably applied, or
    /// [`Lsn::ZERO`] for the start of the log. Called when the shard starts, and again after a snapshot was
    /// installed ([`Snapshot`](crate::Snapshot)), where that stands then.
    fn resume_at(&mut self, shard: ShardId) -> Lsn {
        let _ = shard;
        Lsn::ZERO
    }

    /// Whether it does not mind to begin later than where it stands, at what is committed when the
    /// shard starts. A handler with state must not: it would miss records in silence. It is given a
    /// snapshot, if the primary makes them and the replica takes them, or is refused.
    fn takes_gaps(&self) -> bool {
        false
    }

    /// What it wants to be given. Called once, when the shard starts.
    fn deliver(&self) -> Deliver {
        Deliver::Committed
    }

    /// Applies a batch. Batches come in LSN order, without gap or repeat.
    ///
    /// # Errors
    /// [`ApplyError`] stops the shard.
    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError>;

    /// Takes back everything at or above `to`: only for handlers that ask for
    /// [`Deliver::Flushed`].
    ///
    /// # Errors
    /// [`ApplyError`] stops the shard; so does this default.
    fn cut(&mut self, shard: ShardId, to: Lsn) -> Result<(), ApplyError> {
        Err(ApplyError(format!(
            "records of shard {shard} from LSN {to} on must be taken back, which this handler cannot"
        )))
    }
}

/// A closure as a handler: it gets each record's number and payload.
#[derive(Clone, Copy)]
pub struct ApplyFn<F>(pub F);

impl<F> fmt::Debug for ApplyFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApplyFn")
    }
}

impl<F> Apply for ApplyFn<F>
where
    F: FnMut(ShardId, Seq, &[u8]) -> Result<(), ApplyError>,
{
    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        for (n, payload) in batch.records().enumerate() {
            (self.0)(batch.shard(), Seq(batch.first_seq().0 + n as u64), payload)?;
        }
        Ok(())
    }
}

/// Applies nothing and says so at debug level: what a replica without an embedder runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogApply;

impl Apply for LogApply {
    fn takes_gaps(&self) -> bool {
        true
    }

    fn apply(&mut self, batch: &AppliedBatch<'_>) -> Result<(), ApplyError> {
        tracing::debug!(shard = batch.shard().0, lsn = batch.lsn().0, records = batch.record_count(), "applied");
        Ok(())
    }

    fn cut(&mut self, _: ShardId, _: Lsn) -> Result<(), ApplyError> {
        Ok(())
    }
}
