//! Commits over several shards: append to each, wait once, get one bookmark.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use thiserror::Error;
use towline_wire::ShardId;

use super::handle::{AppendOptions, Handle};
use super::ticket::Ticket;
use crate::outcome::{AppendError, Bookmark, Outcome};

/// One position for each shard that was touched.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CrossBookmark(Vec<Bookmark>);

impl CrossBookmark {
    /// The positions, in the order of the appends' shards, one for each shard.
    #[must_use]
    pub fn positions(&self) -> &[Bookmark] {
        &self.0
    }
}

/// What became of a commit over several shards.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum CrossOutcome {
    /// Every part is committed.
    Committed(CrossBookmark),
    /// At least one part is not, or not yet. Each part's own outcome, in the order of the appends;
    /// those that say so are committed and stay so. Atomicity over shards is not promised.
    Partial(Vec<Result<Outcome, AppendError>>),
}

/// Why nothing of a commit over several shards was appended, or only some of it.
#[derive(Debug, Error)]
pub enum CrossError {
    /// The first append that was refused; those before it are on their way.
    #[error("part {part} (shard {shard}) was refused: {source}; {before} parts before it are on their way")]
    Refused {
        /// Which of the appends.
        part: usize,
        /// Its shard.
        shard: ShardId,
        /// Why.
        source: AppendError,
        /// Parts that were appended before it.
        before: usize,
    },
}

/// Appends to several shards that are waited for together. It resolves once, when the last part
/// has its outcome.
#[derive(Debug)]
#[must_use = "nothing is committed before this says so"]
pub struct CrossTicket {
    tickets: Vec<Option<Ticket>>,
    outcomes: Vec<Option<Result<Outcome, AppendError>>>,
    /// Parts without an outcome: the countdown.
    left: usize,
}

impl Handle {
    /// Appends a record to each of several shards. One wait, one completion, one bookmark; each
    /// part commits on its own shard, so a crash in between may leave some parts committed and
    /// others not: the outcome says which.
    ///
    /// # Errors
    /// [`CrossError::Refused`] at the first append that is refused.
    pub fn append_across(&self, parts: &[(ShardId, &[u8])], options: AppendOptions) -> Result<CrossTicket, CrossError> {
        let mut tickets = Vec::with_capacity(parts.len());
        for (part, (shard, record)) in parts.iter().enumerate() {
            match self.append_with(*shard, record, options) {
                Ok(ticket) => tickets.push(Some(ticket)),
                Err(source) => return Err(CrossError::Refused { part, shard: *shard, source, before: part }),
            }
        }
        let outcomes = tickets.iter().map(|_| None).collect();
        Ok(CrossTicket { left: tickets.len(), tickets, outcomes })
    }
}

impl CrossTicket {
    /// Waits on this thread for the outcome. Ends: a commit has a deadline.
    pub fn wait(self) -> CrossOutcome {
        super::ticket::block_on(self)
    }

    fn finish(&mut self) -> CrossOutcome {
        let outcomes: Vec<_> = self.outcomes.iter_mut().filter_map(Option::take).collect();
        let mut positions: Vec<Bookmark> = Vec::new();
        for outcome in &outcomes {
            let Some(b) = outcome.as_ref().ok().and_then(Outcome::committed) else {
                return CrossOutcome::Partial(outcomes);
            };
            match positions.iter_mut().find(|p| p.shard == b.shard) {
                Some(p) => *p = if p.lsn > b.lsn { *p } else { b },
                None => positions.push(b),
            }
        }
        CrossOutcome::Committed(CrossBookmark(positions))
    }
}

impl Future for CrossTicket {
    type Output = CrossOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CrossOutcome> {
        let this = &mut *self;
        for (ticket, outcome) in this.tickets.iter_mut().zip(&mut this.outcomes) {
            let Some(waiting) = ticket else { continue };
            if let Poll::Ready(done) = Pin::new(waiting).poll(cx) {
                (*ticket, *outcome) = (None, Some(done));
                this.left -= 1;
            }
        }
        if this.left == 0 { Poll::Ready(this.finish()) } else { Poll::Pending }
    }
}
