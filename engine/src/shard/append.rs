//! Group commit: appends go into the open batch at once; the batch is closed when a write may
//! start, or when it is full. No timer: a lone append goes out at once, and whatever arrives while
//! writes are in flight goes out together.

use std::rc::Rc;
use std::time::Duration;

use towline_wire::batch::BatchFields;
use towline_wire::{Lsn, Seq, record};

use super::wal::ring::Batch;
use super::{Inner, Role, Shard};
use crate::config::TooFewReplicas;
use crate::limits;
use crate::outcome::AppendError;
use crate::protocol::admission;
use crate::protocol::builder::{BatchBuilder, buffer_for_encoded};
use crate::protocol::gate::Waiter;
use crate::protocol::policy::{CommitPolicy, Requirement};
use crate::rt::{self, DmaBuf};
use crate::telemetry::Stage;
use towline_wire::message::AckLevel;

/// Records that are not closed yet.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    builder: BatchBuilder<DmaBuf>,
    /// What lies behind it in the same memory.
    behind: DmaBuf,
    runs: Vec<Run>,
    first_seq: Seq,
    opened_ns: u64,
    /// How often deadlines were looked at since it was opened.
    ticks: u64,
}

/// Consecutive appends of one lane with the same wishes.
#[derive(Debug)]
struct Run {
    lane: u32,
    first: u64,
    count: u32,
    wish: Wish,
    since_ns: u64,
    tick: u64,
}

impl Run {
    /// Whether an append is near enough to the run's first for one deadline. The clock is not read
    /// for every record.
    fn is_near(&self, since_ns: Option<u64>, tick: u64) -> bool {
        match since_ns {
            Some(since) => since.saturating_sub(self.since_ns) < limits::DEADLINE_TICK.as_nanos() as u64,
            None => self.tick == tick,
        }
    }

    fn deadline_ns(&self) -> u64 {
        self.since_ns.saturating_add(u64::try_from(self.wish.deadline.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What an append waits for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) need: Requirement,
    pub(crate) deadline: Duration,
}

impl OpenBatch {
    /// Bytes on disk if it were closed now.
    pub(crate) fn disk_len(&self) -> usize {
        self.builder.disk_len()
    }

    /// The memory that it takes, with what lies behind it.
    #[cfg(feature = "sim")]
    pub(crate) fn memory(&self) -> usize {
        self.builder.capacity() + self.behind.as_ref().len()
    }

    /// Bytes on disk that it can have at most.
    pub(crate) fn capacity(&self) -> usize {
        self.builder.capacity()
    }

    /// Takes out the runs whose deadline has passed although the batch could not even be closed: the
    /// disk is full, or very slow. Their records stay where they are.
    pub(crate) fn expire(&mut self, now: u64, mut each: impl FnMut(u32, u64, u32, Wish)) {
        self.ticks += 1;
        self.runs.retain(|run| {
            let late = run.deadline_ns() <= now;
            if late {
                each(run.lane, run.first, run.count, run.wish);
            }
            !late
        });
    }

    /// Whether it is open for so long that something keeps it from being closed.
    pub(crate) fn is_stuck(&self) -> bool {
        self.ticks > 1
    }

    /// Each run's lane, first number and count.
    pub(crate) fn each_run(&self, mut each: impl FnMut(u32, u64, u32)) {
        self.runs.iter().for_each(|r| each(r.lane, r.first, r.count));
    }
}

/// One record, or records that are encoded already and stay together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    One(&'a [u8]),
    Encoded(&'a [u8], u32),
}

impl Shard {
    /// What an append waits for, from what its caller asks.
    ///
    /// Inlined, because a `Wish` that goes through memory right after it was written in parts makes
    /// the core wait until every store before it is done, those of the last records into a cold
    /// buffer too: 40 ns for each record, by `perf`.
    #[inline]
    pub(crate) fn wish(&self, policy: Option<CommitPolicy>, deadline: Option<Duration>) -> Result<Wish, AppendError> {
        let need = match policy {
            None => self.live.need.get(),
            Some(policy) => self.requirement(policy)?,
        };
        Ok(Wish { need, deadline: deadline.unwrap_or(self.live.deadline.get()) })
    }

    #[cold]
    fn requirement(&self, policy: CommitPolicy) -> Result<Requirement, AppendError> {
        Ok(policy.requirement(self.inner.borrow_mut().primary().slots().configured().count())?)
    }

    /// Whether an append that was asked for at `since_ns` has waited for room as long as it may.
    pub(crate) fn is_late(&self, deadline: Option<Duration>, since_ns: u64) -> bool {
        let age = Duration::from_nanos(rt::now_ns().saturating_sub(since_ns));
        age >= deadline.unwrap_or(self.live.deadline.get())
    }

    /// Puts records into the open batch, or says why not. `key` is the lane's own number for the
    /// append; `since_ns` is when it was asked for, if that is not now. Returns the number of the
    /// first record.
    #[inline]
    pub(crate) fn try_append(
        self: &Rc<Self>,
        (lane, key): (u32, u64),
        wish: Wish,
        payload: Payload<'_>,
        since_ns: Option<u64>,
    ) -> Result<Seq, AppendError> {
        let inner = &mut *self.inner.borrow_mut();
        inner.check_open()?;
        let (encoded, count) = match payload {
            Payload::One(bytes) if bytes.len() > self.config.record_bytes_max => {
                return Err(AppendError::TooLarge { bytes: bytes.len(), max: self.config.record_bytes_max });
            }
            Payload::One(bytes) => (record::encoded_len(bytes.len()), 1),
            Payload::Encoded(bytes, count) => (bytes.len(), count),
        };
        if self.config.too_few == TooFewReplicas::Refuse && wish.need.replicas > 0 {
            let connected = inner.primary().slots().connected();
            if connected < usize::from(wish.need.replicas) {
                return Err(AppendError::TooFewReplicas { wanted: wish.need.replicas, connected });
            }
        }
        let until = self.live.open_until_ns.get();
        if until != u64::MAX && rt::now_ns() >= until {
            return Err(self.too_few_fresh(inner));
        }
        if inner.open.as_ref().is_some_and(|open| !open.builder.fits(encoded)) && !self.try_close(inner, true) {
            return Err(self.no_room());
        }
        if inner.open.is_none() {
            // A lone record that is larger than a normal batch gets a batch of its own.
            let bytes = self.config.batch_bytes.max(buffer_for_encoded(encoded));
            let (buf, behind) = inner.spare.take(bytes, self.config.batch_bytes);
            inner.open = Some(OpenBatch {
                builder: BatchBuilder::new(buf),
                behind,
                runs: Vec::with_capacity(16),
                first_seq: inner.next_seq,
                opened_ns: rt::now_ns(),
                ticks: 0,
            });
            self.work.notify();
        }
        let open = inner.open.as_mut().expect("it was opened above");
        match payload {
            Payload::One(bytes) => open.builder.push(bytes),
            Payload::Encoded(bytes, count) => open.builder.push_encoded(bytes, count),
        }
        match open.runs.last_mut() {
            Some(run)
                if run.lane == lane
                    && run.first + u64::from(run.count) == key
                    && run.wish == wish
                    && run.is_near(since_ns, open.ticks) =>
            {
                run.count += 1;
            }
            _ => {
                let since_ns = since_ns.unwrap_or_else(rt::now_ns);
                open.runs.push(Run { lane, first: key, count: 1, wish, since_ns, tick: open.ticks });
            }
        }
        let seq = inner.next_seq;
        inner.next_seq = Seq(seq.0 + u64::from(count));
        Ok(seq)
    }

    /// Closes the open batch and hands it to the device and, by waking them, to the links; if there
    /// is one, a write may start, and the segments for it are ready. `full` closes it although it
    /// might linger.
    fn try_close(self: &Rc<Self>, inner: &mut Inner, full: bool) -> bool {
        let Some(open) = &inner.open else { return false };
        let bytes = open.builder.disk_len() as u64;
        let start = inner.pipeline.appended();
        if inner.stopped.is_some() || !inner.pipeline.may_write(bytes) {
            return false;
        }
        if self.segments.end().since(start) < bytes {
            self.keep.notify();
            return false;
        }
        let now = rt::now_ns();
        let lingers = !full && now - open.opened_ns < self.config.max_linger.as_nanos() as u64;
        if (lingers && bytes < self.config.batch_bytes as u64) || now < self.throttled_ns.get() {
            return false;
        }
        let open = inner.open.take().expect("it was there above");
        self.close(inner, open, now);
        true
    }

    fn close(self: &Rc<Self>, inner: &mut Inner, open: OpenBatch, now: u64) {
        let start = inner.pipeline.appended();
        let (system, durable, commit, prev_chain) =
            (inner.system, inner.pipeline.durable(), inner.committed(), inner.chain);
        let Role::Primary(primary) = &mut inner.role else { unreachable!("only a primary appends") };
        let fields = BatchFields {
            system,
            shard: self.id,
            term: primary.term,
            lsn: start,
            first_seq: open.first_seq,
            record_count: 0,
            timestamp_us: rt::wall_us(),
            prev_chain,
            durable_lsn: durable,
            commit_lsn: commit,
        };
        let count = open.builder.count();
        let mut sealed = open.builder.close(fields);
        let mut rest = sealed.buf.split_off(sealed.disk_len);
        rest.join(open.behind);
        let memory = sealed.disk_len + inner.spare.keep(rest, self.config.batch_bytes);
        let ack_received =
            open.runs.iter().any(|r| r.wish.need.level == AckLevel::Received && r.wish.need.replicas > 0);
        let batch = Rc::new(Batch::live(sealed.buf.share(), memory as u64, ack_received));
        primary.history.begin(primary.term, start);
        inner.chain = sealed.chain;
        for run in &open.runs {
            let waiter = Waiter {
                end: batch.end,
                lane: run.lane,
                first: run.first,
                count: run.count,
                since_ns: run.since_ns,
                deadline_ns: run.deadline_ns(),
            };
            primary.gate.wait(run.wish.need, waiter);
        }
        {
            let mut telemetry = self.telemetry.borrow_mut();
            telemetry.record(Stage::Fill, now - open.opened_ns, 1);
            telemetry.counters.records += u64::from(count);
            telemetry.counters.batches += 1;
            telemetry.counters.body_bytes += batch.header().body_len() as u64;
        }
        if let Some(target) = self.live.flow.get().lag_target {
            self.throttle(inner, target, batch.end, sealed.disk_len as u64, now);
        }
        self.submit(inner, batch, now);
        self.room.notify();
    }

    /// The next batch waits if the replicas that commits wait for are too far behind one that ends at
    /// `end`.
    fn throttle(&self, inner: &mut Inner, target: u64, end: Lsn, bytes: u64, now: u64) {
        let lag = inner.primary().gate.quorum_lag(end);
        let pause = admission::pause(lag, target, bytes, self.config.batch_bytes as u64);
        if pause.is_zero() {
            return;
        }
        self.throttled_ns.set(now + pause.as_nanos() as u64);
        self.count(|c| {
            c.throttled += 1;
            c.throttled_us += pause.as_micros() as u64;
        });
    }

    /// Hands a whole batch to the device; completion moves the durable position.
    pub(crate) fn submit(self: &Rc<Self>, inner: &mut Inner, batch: Rc<Batch>, closed_ns: u64) {
        inner.pipeline.write(batch.lsn, batch.end);
        inner.ring.push(batch.clone());
        if canary!(OwnCopyInFlight)
            && let Role::Primary(p) = &mut inner.role
        {
            p.gate.on_durable(batch.end);
        }
        self.moved.notify();
        if self.segments.end().since(batch.end) < self.config.segments_ahead * self.config.segment_bytes {
            self.keep.notify();
        }
        let shard = self.clone();
        rt::spawn(async move {
            let written = shard.segments.write(&batch).await;
            if written.is_err() {
                // It may have failed in the first step, which is taken while the caller holds the shard.
                rt::yield_now().await;
            }
            shard.on_written(&batch, closed_ns, written);
        });
    }

    /// Closes batches whenever a write may start.
    pub(crate) async fn pump(self: Rc<Self>) {
        loop {
            let seen = self.work.seen();
            if self.is_stopped() {
                return;
            }
            let now = rt::now_ns();
            while self.try_close(&mut self.inner.borrow_mut(), false) {}
            // A batch that has lingered for long enough and is still open waits for something else
            // than time: whoever makes room for it says so.
            let rest = self.inner.borrow().open.as_ref().map_or(Duration::ZERO, |open| {
                let age = Duration::from_nanos(now.saturating_sub(open.opened_ns));
                let throttled = Duration::from_nanos(self.throttled_ns.get().saturating_sub(now));
                self.config.max_linger.saturating_sub(age).max(throttled)
            });
            if rest.is_zero() {
                self.work.since(seen).await;
            } else {
                let _ = rt::timeout(rest, self.work.since(seen)).await;
            }
        }
    }
}
