//! On the shard's own core: the embedder's tasks append without a hop.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;

#[cfg(feature = "backup")]
use towline_wire::superblock::Base;
use towline_wire::{Lsn, ShardId, Term};

use super::handle::AppendOptions;
use crate::notify::Changed;
use crate::outcome::{AppendError, Appended, Outcome};
use crate::rt;
use crate::shard::Shard;
use crate::shard::append::Payload;
use crate::shard::lanes::Lane;
#[cfg(feature = "backup")]
use crate::shard::wal::cursor::{BaseError, base_at};

/// A shard as seen by a task on its own core. Cheap to clone; stays on the core.
#[derive(Clone, Debug)]
pub struct LocalShard {
    shard: Rc<Shard>,
}

impl LocalShard {
    pub(crate) const fn new(shard: Rc<Shard>) -> Self {
        Self { shard }
    }

    /// The shard.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.shard.id
    }

    /// The reign that this node is in or follows.
    #[must_use]
    pub fn term(&self) -> Term {
        self.shard.term()
    }

    /// The highest position that is committed. Never moves back within a term.
    #[must_use]
    pub fn commit_lsn(&self) -> Lsn {
        self.shard.committed()
    }

    /// What is on this node's device.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.shard.durable()
    }

    /// Runs another task on this core.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        rt::spawn(task);
    }

    /// Lets every other task that is ready run first.
    pub async fn yield_now(&self) {
        rt::yield_now().await;
    }

    /// Resolves after `pause`.
    pub async fn sleep(&self, pause: std::time::Duration) {
        rt::sleep(pause).await;
    }

    /// Lets go of the log below `to`, for an embedder that keeps its own state elsewhere: whole
    /// segments are used again once every configured replica has them. Never beyond what is
    /// committed.
    pub fn trim(&self, to: Lsn) {
        {
            let mut inner = self.shard.inner.borrow_mut();
            inner.trim_to = inner.trim_to.max(to);
        }
        self.shard.keep.notify();
    }

    /// What came before `at`, where a state stands, once that is committed; `None` if it is not within
    /// `patience`.
    #[cfg(feature = "backup")]
    pub(crate) async fn base_at(&self, at: Lsn, patience: std::time::Duration) -> Result<Option<Base>, BaseError> {
        let until = rt::now_ns() + patience.as_nanos() as u64;
        loop {
            let seen = self.shard.moved.seen();
            let base = base_at(&self.shard, at).await?;
            let left = until.saturating_sub(rt::now_ns());
            if base.is_some() || left == 0 || self.shard.is_stopped() {
                return Ok(base);
            }
            let _ = rt::timeout(std::time::Duration::from_nanos(left), self.shard.moved.since(seen)).await;
        }
    }

    /// A new lane: a stream of appends with outcomes in order.
    ///
    /// # Errors
    /// [`AppendError::TooManyLanes`] if [`crate::limits::LANES_MAX`] lanes exist.
    pub fn lane(&self) -> Result<LocalLane, AppendError> {
        let state = Rc::new(LaneState::default());
        let number = self.shard.inner.borrow_mut().lanes.add(state.clone()).ok_or(AppendError::TooManyLanes)?;
        Ok(LocalLane { shard: self.shard.clone(), number, state, next: Cell::new(0) })
    }
}

/// Appends of one lane that have the same outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The lane's number of the first of them.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// What became of them.
    pub outcome: Outcome,
}

#[derive(Debug, Default)]
struct LaneState {
    done: RefCell<VecDeque<Completion>>,
    changed: Changed,
    completed: Cell<u64>,
    /// The lane was dropped after so many appends.
    dropped_after: Cell<Option<u64>>,
}

impl Lane for LaneState {
    fn complete(&self, first: u64, count: u32, outcome: &Outcome) {
        self.completed.set(self.completed.get() + u64::from(count));
        if self.dropped_after.get().is_some() {
            return;
        }
        self.done.borrow_mut().push_back(Completion { first, count, outcome: *outcome });
        self.changed.notify();
    }

    fn is_over(&self) -> bool {
        self.dropped_after.get() == Some(self.completed.get())
    }
}

/// A stream of appends from one task. Outcomes come in runs: nothing is done for each record.
///
/// Runs come in the order of the appends, except that one whose deadline passes may come before
/// earlier ones with later deadlines.
#[derive(Debug)]
pub struct LocalLane {
    shard: Rc<Shard>,
    number: u32,
    state: Rc<LaneState>,
    next: Cell<u64>,
}

impl LocalLane {
    /// Appends a record if there is room now. It is in the primary's memory then, no more.
    ///
    /// # Errors
    /// Why not. Nothing was written then.
    #[inline]
    pub fn try_append(&self, record: &[u8], options: &AppendOptions) -> Result<Appended, AppendError> {
        self.append_since(record, options, None)
    }

    #[inline]
    fn append_since(
        &self,
        record: &[u8],
        options: &AppendOptions,
        since_ns: Option<u64>,
    ) -> Result<Appended, AppendError> {
        let wish = self.shard.wish(options.policy, options.deadline)?;
        let index = self.next.get();
        let seq = self.shard.try_append((self.number, index), wish, Payload::One(record), since_ns)?;
        self.next.set(index + 1);
        Ok(Appended { index, seq })
    }

    /// Appends a record, and waits for room until the deadline.
    ///
    /// # Errors
    /// As [`LocalLane::try_append`]; [`AppendError::WouldBlock`] once the deadline has passed.
    pub async fn append(&self, record: &[u8], options: &AppendOptions) -> Result<Appended, AppendError> {
        let mut since = None;
        loop {
            let room = self.shard.room.seen();
            match self.append_since(record, options, since) {
                Err(AppendError::WouldBlock) => {
                    if self.shard.is_late(options.deadline, *since.get_or_insert_with(rt::now_ns)) {
                        return Err(AppendError::WouldBlock);
                    }
                    self.shard.room.since(room).await;
                }
                other => return other,
            }
        }
    }

    /// Appends without an outcome.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.next.get() - self.state.completed.get()
    }

    /// The next run, if one is complete.
    #[must_use]
    pub fn try_completed(&self) -> Option<Completion> {
        self.state.done.borrow_mut().pop_front()
    }

    /// Waits for the next run. Ends as long as something is outstanding: a commit has a deadline.
    pub async fn completed(&self) -> Completion {
        loop {
            let seen = self.state.changed.seen();
            if let Some(done) = self.try_completed() {
                return done;
            }
            self.state.changed.since(seen).await;
        }
    }

    /// Appends one record and waits for its outcome. For a lane with nothing else outstanding.
    ///
    /// # Errors
    /// Why the append was not accepted.
    pub async fn commit(&self, record: &[u8], options: &AppendOptions) -> Result<Outcome, AppendError> {
        let appended = self.append(record, options).await?;
        loop {
            let done = self.completed().await;
            if done.first <= appended.index && appended.index < done.first + u64::from(done.count) {
                return Ok(done.outcome);
            }
        }
    }
}

impl Drop for LocalLane {
    fn drop(&mut self) {
        // A number that something still waits for is not used again before that is complete, so
        // that no other lane hears of it.
        self.state.dropped_after.set(Some(self.next.get()));
        if self.outstanding() == 0 {
            self.shard.inner.borrow_mut().lanes.remove(self.number);
        }
    }
}
