//! A load on one shard: a closed loop (so many commits outstanding, a new append for each that
//! completes), or an open one (so many appends in each second, whatever happens to them).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{histogram, record};
use crate::outcome::{AppendError, Outcome};
use crate::rt;
use crate::shard::mesh::handle::AppendOptions;
use crate::shard::mesh::local::{Completion, LocalLane, LocalShard};

/// Appends that are made one after the other share one reading of the clock, from before the first
/// of them, so latencies err upwards.
const BURST: u64 = 64;

/// A load on one shard's core. Shared: start it with [`Load::run`], look at it while it runs, stop
/// it.
///
/// In an open loop a record's time counts from the moment at which it was to be appended, so a
/// stall counts for every record that it held up (no coordinated omission).
#[derive(Debug)]
pub struct Load {
    record_bytes: usize,
    window: AtomicU64,
    /// Appends in each second, for an open loop.
    rate: Option<f64>,
    /// Whether and how the running commits differ from the shard's own policy; may change while
    /// the loop runs.
    options: Mutex<AppendOptions>,
    stopping: AtomicBool,
    ended: AtomicBool,
    commits: AtomicU64,
    failed: AtomicU64,
    latency_ns: Mutex<Histogram<u64>>,
    error: Mutex<Option<String>>,
}

/// What a loop has done since it was asked last.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Records committed since the loop began.
    pub commits: u64,
    /// Records with another outcome since the loop began.
    pub failed: u64,
    /// From append to outcome, in nanoseconds, of the records since the last report.
    pub latency_ns: Histogram<u64>,
    /// Why the loop ended by itself, if it did.
    pub error: Option<String>,
}

impl Load {
    /// A loop that keeps `window` records of `record_bytes` outstanding; each is [`record`](super::record).
    #[must_use]
    pub fn closed(record_bytes: usize, window: u64, options: AppendOptions) -> Arc<Self> {
        Self::new(record_bytes, window, None, options)
    }

    /// A loop that appends `rate` records of `record_bytes` in each second, with at most `window`
    /// outstanding: what is held up by that counts as late.
    #[must_use]
    pub fn open(record_bytes: usize, rate: f64, window: u64, options: AppendOptions) -> Arc<Self> {
        assert!(rate > 0.0);
        Self::new(record_bytes, window, Some(rate), options)
    }

    fn new(record_bytes: usize, window: u64, rate: Option<f64>, options: AppendOptions) -> Arc<Self> {
        assert!(window > 0);
        Arc::new(Self {
            rate,
            record_bytes,
            window: AtomicU64::new(window),
            options: Mutex::new(options),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency_ns: Mutex::new(histogram()),
            error: Mutex::new(None),
        })
    }

    /// Changes what the next appends ask for.
    pub fn set_options(&self, options: AppendOptions) {
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Changes how many are kept outstanding, at least 1; a smaller window is reached as commits
    /// complete.
    pub fn set_window(&self, window: u64) {
        self.window.store(window.max(1), Ordering::Relaxed);
    }

    /// Ends the loop once what is outstanding has its outcome.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until the loop has ended.
    pub fn wait(&self) {
        while !self.ended.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Records committed since the loop began.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// What it has done; the latencies begin anew.
    #[must_use]
    pub fn take_report(&self) -> LoadReport {
        let latency_ns =
            std::mem::replace(&mut *self.latency_ns.lock().unwrap_or_else(PoisonError::into_inner), histogram());
        LoadReport {
            commits: self.commits(),
            failed: self.failed.load(Ordering::Relaxed),
            latency_ns,
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Runs the loop on a shard's own core until it is stopped.
    pub async fn run(self: Arc<Self>, shard: LocalShard) {
        if let Err(e) = self.drive(&shard).await {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.to_string());
        }
        self.ended.store(true, Ordering::Release);
    }

    async fn drive(&self, shard: &LocalShard) -> Result<(), AppendError> {
        let lane = shard.lane()?;
        let record = record(self.record_bytes);
        let mut since = Since::default();
        let mut latency = histogram();
        let mut told = Instant::now();
        let mut clock = self.rate.map(Clock::new);
        while !self.stopping.load(Ordering::Relaxed) {
            let options = *self.options.lock().unwrap_or_else(PoisonError::into_inner);
            let mut done = if let Some(clock) = &mut clock {
                let rest = self.keep_up(&lane, &record, &options, clock, &mut since)?;
                rt::timeout(rest, lane.completed()).await
            } else {
                self.fill(&lane, &record, &options, &mut since)?;
                Some(lane.completed().await)
            };
            while let Some(completion) = done {
                self.note(&completion, &mut since, &mut latency);
                done = lane.try_completed();
            }
            if told.elapsed() > Duration::from_millis(20) {
                self.tell(&mut latency);
                told = Instant::now();
            }
        }
        while lane.outstanding() > 0 {
            let completion = lane.completed().await;
            self.note(&completion, &mut since, &mut latency);
        }
        self.tell(&mut latency);
        Ok(())
    }

    /// Appends until the window or the shard is full.
    fn fill(
        &self,
        lane: &LocalLane,
        record: &[u8],
        options: &AppendOptions,
        since: &mut Since,
    ) -> Result<(), AppendError> {
        let mut room = self.window.load(Ordering::Relaxed).saturating_sub(lane.outstanding());
        while room > 0 {
            let now = rt::now_ns();
            let burst = room.min(BURST);
            for n in 0..burst {
                match lane.try_append(record, options) {
                    Ok(_) => {}
                    Err(AppendError::WouldBlock) if lane.outstanding() > 0 => {
                        since.push(now, n);
                        return Ok(());
                    }
                    Err(e) => return Err(e),
                }
            }
            since.push(now, burst);
            room -= burst;
        }
        Ok(())
    }

    /// Appends what is due; returns the time until the next is.
    fn keep_up(
        &self,
        lane: &LocalLane,
        record: &[u8],
        options: &AppendOptions,
        clock: &mut Clock,
        since: &mut Since,
    ) -> Result<Duration, AppendError> {
        while clock.next_ns() <= rt::now_ns() && lane.outstanding() < self.window.load(Ordering::Relaxed) {
            match lane.try_append(record, options) {
                Ok(_) => since.push(clock.next_ns(), 1),
                Err(AppendError::WouldBlock) if lane.outstanding() > 0 => break,
                Err(e) => return Err(e),
            }
            clock.count += 1;
        }
        Ok(Duration::from_nanos(clock.next_ns().saturating_sub(rt::now_ns()).max(MIN_PAUSE_NS)))
    }

    fn note(&self, completion: &Completion, since: &mut Since, latency: &mut Histogram<u64>) {
        let counter =
            if matches!(completion.outcome, Outcome::Committed { .. }) { &self.commits } else { &self.failed };
        // One writer: no read-modify-write is needed.
        counter.store(counter.load(Ordering::Relaxed) + u64::from(completion.count), Ordering::Relaxed);
        let now = rt::now_ns();
        since.take(u64::from(completion.count), |at, count| latency.saturating_record_n(now - at, count));
    }

    fn tell(&self, latency: &mut Histogram<u64>) {
        let shared = &mut *self.latency_ns.lock().unwrap_or_else(PoisonError::into_inner);
        shared.add(&*latency).expect("both have the same bounds");
        latency.reset();
    }
}

/// Shorter pauses are not worth a timer.
const MIN_PAUSE_NS: u64 = 20_000;

/// When each append of an open loop is due.
#[derive(Debug)]
struct Clock {
    from_ns: u64,
    interval_ns: f64,
    count: u64,
}

impl Clock {
    fn new(rate: f64) -> Self {
        Self { from_ns: rt::now_ns(), interval_ns: 1e9 / rate, count: 0 }
    }

    fn next_ns(&self) -> u64 {
        self.from_ns + (self.count as f64 * self.interval_ns) as u64
    }
}

/// When what is outstanding was appended, in order.
#[derive(Debug, Default)]
struct Since(VecDeque<(u64, u64)>);

impl Since {
    fn push(&mut self, at: u64, count: u64) {
        if count > 0 {
            self.0.push_back((at, count));
        }
    }

    fn take(&mut self, mut count: u64, mut each: impl FnMut(u64, u64)) {
        while count > 0 {
            let Some((at, left)) = self.0.front_mut() else { return };
            let now = count.min(*left);
            each(*at, now);
            (*left, count) = (*left - now, count - now);
            if *left == 0 {
                self.0.pop_front();
            }
        }
    }
}
