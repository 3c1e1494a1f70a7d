//! The loop of an executor: blocks in one ring of our own, inside a task of glommio's.
//!
//! A turn of glommio's own loop costs some ten system calls and as many allocations: it keeps three
//! rings and two timers, and tells other cores before it sleeps. Between an append and its commit a
//! core makes several turns. So durable writes, reads, waiting for sockets, and timers are here
//! ([`super::uring`], [`super::timers`]), and a task of glommio's takes what completes, lets all tasks
//! run that are ready, and *blocks in our ring* when none is. glommio starts, pins and ends the
//! executor, keeps the queue of ready tasks and has the buffers; it is given a turn now and then.
//!
//! Wakes and polls of tasks are counted, so that the loop knows when nobody is ready. Wake-ups from other
//! threads come here too ([`super::wakers`]): glommio would not look for them.
//!
//! glommio must never find a task ready when it sleeps, and it would: it takes a preemption timer that
//! fires at the wrong moment for an empty queue. So it has none that ever fires ([`NEVER`]), and
//! looks at its own rings only in [`Hot::turn`], where this loop is what it waits for. A wake-up of its own from another thread could do the same, in one microsecond of a turn: a timer that
//! it always has ends such a sleep.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::squeue::Entry;

use super::ring::{self, Keep};
use super::timers::{TimerId, Timers};
use super::uring::{Ended, Uring};
use super::wakers::{OWNER, STEPS, Shared, TaskWaker};

/// glommio's preemption timer.
pub(super) const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often glommio is given a turn while there is something to do.
const TURN_NS: u64 = 100_000_000;
/// The longest wait in our ring.
const WAIT_MAX_NS: u64 = 1_000_000_000;
/// How long an executor's end waits for the peers of zero-copy sends.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest that glommio may sleep by mistake.
const WATCH: Duration = Duration::from_millis(50);
/// Rounds of ready tasks after which the kernel is entered although nothing has to be waited for.
const ROUNDS: u32 = 2;
/// How long a task should run before it lets others do so.
const FAIR_NS: u64 = 500_000;

thread_local! {
    static HERE: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

/// A task that is counted, and whose wakers may be used on any thread.
pub(super) struct Tracked<F> {
    future: F,
    /// glommio's waker, and ours for it.
    wakers: Option<(Waker, Waker)>,
}

impl<F: Future> Tracked<F> {
    pub(super) const fn new(future: F) -> Self {
        Self { future, wakers: None }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is never moved out of the pin; `wakers` is not pinned.
        let (future, wakers) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.wakers)
        };
        let known = matches!(wakers, Some((glommios, _)) if glommios.will_wake(cx.waker()));
        let later = HERE.with_borrow(|here| {
            let Some(Guard(hot)) = here else { return false };
            STEPS.set(STEPS.get() + 1);
            if !known {
                *wakers = Some((cx.waker().clone(), TaskWaker::of(cx.waker().clone(), hot.shared.clone())));
            }
            hot.is_later(cx.waker())
        });
        if later {
            return Poll::Pending;
        }
        match wakers {
            Some((_, ours)) => future.poll(&mut Context::from_waker(ours)),
            None => future.poll(cx),
        }
    }
}

/// The loop of one executor.
pub(super) struct Hot {
    uring: RefCell<Uring<Keep>>,
    timers: RefCell<Timers>,
    shared: Arc<Shared>,
    /// Readable for ever: glommio says so as soon as it looks.
    always: ring::Readiness,
    /// When this round of ready tasks began.
    round_ns: Cell<u64>,
    /// While glommio has its turn, tasks that are ready wait here.
    later: RefCell<Option<Vec<Waker>>>,
    ended: Cell<bool>,
    /// How long to look for news before sleeping.
    spin_ns: Cell<u64>,
}

/// Ends the loop with its thread, also after a panic.
struct Guard(Rc<Hot>);

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.0.ended.get() {
            // glommio's executor may have gone already: what belongs to it is not given back.
            std::mem::forget((self.0.end(), self.0.clone()));
        }
    }
}

/// Starts the loop of this thread's executor. Before anything else on it.
pub(super) fn start() -> io::Result<()> {
    let bell = crate::sys::bell()?;
    let uring = Uring::new()?;
    let always = crate::sys::bell()?;
    crate::sys::ring_bell(always.as_raw_fd());
    let always = ring::Readiness::new(always)?;
    let hot = Rc::new(Hot {
        uring: RefCell::new(uring),
        timers: RefCell::default(),
        shared: Arc::new(Shared::new(bell)),
        always,
        round_ns: Cell::new(ring::now_ns()),
        later: RefCell::new(None),
        ended: Cell::new(false),
        spin_ns: Cell::new(0),
    });
    OWNER.set(Arc::as_ptr(&hot.shared));
    HERE.set(Some(Guard(hot.clone())));
    ring::spawn_detached(hot.run());
    Ok(())
}

/// Ends the loop of this thread's executor, after everything else on it. The kernel uses nothing of
/// it afterwards.
pub(super) fn end() {
    if let Some(guard) = HERE.take() {
        for (keep, ended) in guard.0.end() {
            keep.released(ended);
        }
    }
}

/// The operation's result, once it has completed. What it needs is kept until then, whatever becomes
/// of the future.
///
/// # Safety
/// As [`Uring::start`]: what the entry points to must stay valid as long as `keep` lives.
///
/// # Panics
/// On a thread that runs no executor.
pub(super) unsafe fn operation(entry: &Entry, keep: Keep, how: How) -> Operation {
    let hot = here();
    let op = {
        let mut uring = hot.uring.borrow_mut();
        // SAFETY: the caller says so.
        let op = unsafe { uring.start(entry, keep) };
        if how == How::AtOnce {
            uring.enter(None);
        }
        op
    };
    Operation { hot, op: Some(op), how }
}

/// How an operation is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It goes to the kernel at once, and takes the time it takes.
    AtOnce,
    /// It goes with the next turn, and is cancelled if nobody waits for it any more.
    Whenever,
}

/// One operation.
pub(super) struct Operation {
    hot: Rc<Hot>,
    op: Option<u32>,
    how: How,
}

impl Future for Operation {
    /// What was kept, if the kernel is done with it.
    type Output = (Option<(Keep, Ended)>, io::Result<usize>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let op = self.op.expect("it is polled until it is ready");
        let polled = self.hot.uring.borrow_mut().poll(op, cx.waker());
        polled.map(|(keep, result)| {
            self.op = None;
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            (keep, result)
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(op) = self.op
            && !self.hot.ended.get()
        {
            let kept = self.hot.uring.borrow_mut().forget(op, self.how == How::Whenever);
            if let Some((keep, ended)) = kept {
                keep.released(ended);
            }
        }
    }
}

/// Resolves at `ns` of this executor's clock.
pub(super) fn sleep_until(ns: u64) -> Sleep {
    let hot = here();
    let timer = hot.timers.borrow_mut().add(ns);
    Sleep { hot, timer }
}

/// A timer.
pub(super) struct Sleep {
    hot: Rc<Hot>,
    timer: TimerId,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if ring::now_ns() >= self.timer.0 {
            return Poll::Ready(());
        }
        self.hot.timers.borrow_mut().wait(self.timer, cx.waker());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.hot.timers.borrow_mut().forget(self.timer);
    }
}

/// Lets every other task that is ready run first, if they have waited for long.
pub(super) async fn yield_if_needed() {
    let since = HERE.with_borrow(|here| here.as_ref().map_or(0, |Guard(hot)| hot.round_ns.get()));
    if ring::now_ns().saturating_sub(since) > FAIR_NS {
        requeue().await;
    }
}

/// From now on this executor looks for news for so long before it sleeps.
pub(super) fn spin_for(spin: Duration) {
    here().spin_ns.set(u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX));
}

/// What other threads have of this thread's loop, to see in a test that nobody keeps it.
#[cfg(test)]
pub(super) fn seen_by_others() -> std::sync::Weak<impl Sized> {
    Arc::downgrade(&here().shared)
}

/// This thread's loop.
fn here() -> Rc<Hot> {
    HERE.with_borrow(|here| here.as_ref().expect("this thread runs an executor").0.clone())
}

impl Hot {
    async fn run(self: Rc<Self>) {
        // glommio takes the first step of a task before it gives the others theirs.
        requeue().await;
        let _watch = ring::spawn_scoped_untracked(async {
            loop {
                ring::glommio_timer(WATCH).await;
            }
        });
        let (mut wake, mut woken, mut rounds) = (Vec::new(), Vec::new(), 0);
        let mut turned_ns = ring::now_ns();
        while !self.ended.get() {
            let now = ring::now_ns();
            self.round_ns.set(now);
            let came = self.take(now, &mut wake, &mut woken);
            if came || STEPS.replace(0) > 0 {
                if now - turned_ns > TURN_NS {
                    turned_ns = now;
                    self.turn().await;
                }
                rounds += 1;
                if rounds > ROUNDS {
                    rounds = 0;
                    let mut uring = self.uring.borrow_mut();
                    if uring.has_news() {
                        uring.enter(None);
                    }
                }
                requeue().await;
                continue;
            }
            // Nobody has anything to do.
            rounds = 0;
            let due = self.timers.borrow().next().unwrap_or(u64::MAX);
            let wait = Duration::from_nanos(due.saturating_sub(now).min(WAIT_MAX_NS));
            if wait.is_zero() || self.spin(due) || !self.shared.fall_asleep() {
                continue;
            }
            self.uring.borrow_mut().enter(Some(wait));
            self.shared.lock().asleep = false;
        }
    }

    /// Looks for news instead of sleeping, for as long as it may and nothing is due. Whether there is
    /// any. Who else wants this core has it meanwhile.
    fn spin(&self, due: u64) -> bool {
        let spin_ns = self.spin_ns.get();
        if spin_ns == 0 {
            return false;
        }
        let until = due.min(ring::now_ns().saturating_add(spin_ns));
        loop {
            {
                let mut uring = self.uring.borrow_mut();
                if uring.has_news() {
                    uring.enter(None);
                }
                if uring.has_completions() {
                    return true;
                }
            }
            if !self.shared.lock().woken.is_empty() {
                return true;
            }
            if ring::now_ns() >= until {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// glommio's turn: tasks that are ready wait, so that it finds nothing to do but look at its rings.
    async fn turn(&self) {
        self.later.replace(Some(Vec::new()));
        if let Err(e) = self.always.readable().await {
            panic!("waiting for glommio: {e}");
        }
        let later = self.later.take().expect("it was glommio's turn");
        later.into_iter().for_each(Waker::wake);
    }

    /// Whether a task that is ready is to wait until glommio has had its turn.
    fn is_later(&self, task: &Waker) -> bool {
        let mut later = self.later.borrow_mut();
        let Some(later) = &mut *later else { return false };
        later.push(task.clone());
        true
    }

    /// Wakes whoever's operation has completed, whose timer is due, and whom other threads have woken.
    /// Whether there was anything.
    fn take(&self, now_ns: u64, wake: &mut Vec<Waker>, woken: &mut Vec<Arc<TaskWaker>>) -> bool {
        let seen = {
            let mut uring = self.uring.borrow_mut();
            let seen = uring.reap(wake);
            if seen.bell {
                crate::sys::silence_bell(self.shared.bell.as_raw_fd());
            }
            uring.arm_bell(self.shared.bell.as_raw_fd());
            seen
        };
        std::mem::swap(&mut self.shared.lock().woken, woken);
        self.timers.borrow_mut().due(now_ns, wake);
        let came = seen.completions > 0 || !wake.is_empty() || !woken.is_empty();
        wake.drain(..).for_each(Waker::wake);
        for waker in woken.drain(..) {
            waker.arrive();
        }
        for (keep, ended) in seen.kept {
            keep.released(ended);
        }
        came
    }

    fn end(&self) -> Vec<(Keep, Ended)> {
        self.ended.set(true);
        OWNER.set(std::ptr::null());
        let mut foreign = self.shared.lock();
        foreign.ended = true;
        let woken = std::mem::take(&mut foreign.woken);
        drop(foreign);
        drop(woken);
        self.uring.borrow_mut().end(PATIENCE, Keep::insist)
    }
}

/// Lets every other task that is ready run first.
pub(super) async fn requeue() {
    let mut again = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut again, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
