//! What crosses threads by hand-written atomics, under a model checker: the very source of the
//! engine, with loom's atomics and locks in the place of the standard library's. Loom runs each test
//! once for every order in which the threads' steps, and what each may see of the others' writes, can
//! fall out. A waiter that nobody wakes shows as a deadlock.
//!
//! What loom cannot do, and what else vouches for it: docs/decisions/0015.
#![allow(dead_code, missing_docs, unreachable_pub)]

#[path = "../src/shard/mesh/doorbell.rs"]
mod doorbell;
#[path = "../src/node/mailbox.rs"]
mod mailbox;
#[path = "../src/oneshot.rs"]
mod oneshot;
#[path = "../src/shard/mesh/ticket.rs"]
mod ticket;
#[path = "../src/shard/mesh/wake_times.rs"]
mod wake_times;
#[path = "../src/rt/wakers.rs"]
mod wakers;

/// Loom's, as `engine/src/sync.rs` has the standard library's.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    use std::sync::atomic::Ordering;
    use std::task::Waker;

    /// What the standard library's promises, and no more: who gets the value sees what came before it was set.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        is_set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
        }
        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.value.set(value)?;
            self.is_set.store(true, Ordering::Release);
            Ok(())
        }
        pub(crate) fn get(&self) -> Option<&T> {
            self.is_set.load(Ordering::Acquire).then(|| self.value.get().expect("it is set"))
        }
    }

    /// What the crate `atomic-waker` promises, and no more: a registration and a wake-up are in one
    /// order, and the later one sees what came before the earlier one.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicWaker(Mutex<Option<Waker>>);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self::default()
        }
        pub(crate) fn register(&self, waker: &Waker) {
            *self.0.lock().unwrap() = Some(waker.clone());
        }
        pub(crate) fn take(&self) -> Option<Waker> {
            self.0.lock().unwrap().take()
        }
        pub(crate) fn wake(&self) {
            if let Some(waker) = self.take() {
                waker.wake();
            }
        }
    }
}

/// What the same source names besides, made small.
mod limits {
    pub(crate) const TICKETS_MAX: usize = 2;
    pub(crate) const TICKETS_FIRST: usize = 1;
}
mod outcome {
    pub(crate) use towline::{AppendError, Bookmark, Outcome};
}
mod rt {
    pub(crate) fn now_ns() -> u64 {
        1
    }
}
mod sys {
    pub(crate) fn ring_bell(_: std::os::fd::RawFd) {
        unreachable!("the loop is awake");
    }
}
mod telemetry {
    pub(crate) enum Stage {
        Wake,
    }
    #[derive(Default)]
    pub(crate) struct Telemetry(pub(crate) u64);
    impl Telemetry {
        pub(crate) fn record(&mut self, _: Stage, _: u64, count: u64) {
            self.0 += count;
        }
    }
}

use std::future::poll_fn;
use std::mem::ManuallyDrop;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use towline::{AppendError, Bookmark, Lsn, Outcome, ShardId, Term};

use doorbell::Doorbell;
use mailbox::Mailbox;
use ticket::{Ticket, TicketSlots};

/// A ring as `rtrb` has it, without the content: the producer publishes its end by a release, the
/// consumer looks by an acquire.
#[derive(Default)]
struct Ring {
    pushed: AtomicUsize,
}

impl Ring {
    /// The `n`-th push.
    fn push(&self, n: usize) {
        self.pushed.store(n, Ordering::Release);
    }

    fn pushed(&self) -> usize {
        self.pushed.load(Ordering::Acquire)
    }
}

/// Takes everything, and rests in between, until `until` were taken.
async fn take(bell: &Doorbell, rings: &[Ring], until: usize) {
    loop {
        let taken: usize = rings.iter().map(Ring::pushed).sum();
        if taken == until {
            return;
        }
        poll_fn(|cx| bell.poll_rest(cx.waker(), || rings.iter().map(Ring::pushed).sum::<usize>() > taken)).await;
    }
}

/// Every order in which threads are preempted `n` times at most: all of them would take minutes.
fn model_bounded(n: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(n);
    builder.check(f);
}

#[test]
fn no_push_is_left_lying_while_the_shard_rests() {
    model_bounded(6, || {
        let shared: Arc<(Doorbell, [Ring; 1])> = Arc::default();
        let producer = shared.clone();
        thread::spawn(move || {
            for n in 1..=2 {
                producer.1[0].push(n);
                producer.0.ring();
            }
        });
        block_on(take(&shared.0, &shared.1, 2));
    });
}

#[test]
fn two_producers_wake_one_shard() {
    model_bounded(4, || {
        let shared: Arc<(Doorbell, [Ring; 2])> = Arc::default();
        for n in 0..2 {
            let producer = shared.clone();
            thread::spawn(move || {
                producer.1[n].push(1);
                producer.0.ring();
            });
        }
        block_on(take(&shared.0, &shared.1, 2));
    });
}

#[test]
fn a_push_that_a_shut_inbox_does_not_see_sees_that_it_is_shut() {
    loom::model(|| {
        let shared: Arc<(Doorbell, Ring)> = Arc::default();
        let producer = shared.clone();
        let told = thread::spawn(move || {
            producer.1.push(1);
            producer.0.ring();
            producer.0.is_shut()
        });
        shared.0.shut();
        let seen = shared.1.pushed() == 1;
        assert!(told.join().unwrap() || seen, "nobody resolves this ticket");
    });
}

fn committed(lsn: u64) -> Outcome {
    Outcome::Committed { bookmark: Bookmark { shard: ShardId(0), term: Term(lsn + 1), lsn: Lsn(lsn) }, acks: lsn as u8 }
}

/// Opens a ticket and hands its slot to the shard, as a push into a ring does.
fn open(slots: &Arc<TicketSlots>) -> (Ticket, u32) {
    let slot = slots.take().unwrap();
    (Ticket::new(slots.clone(), slot), slot)
}

/// Every slot is free again, once.
fn all_free(slots: &TicketSlots) {
    assert!(slots.is_idle());
    let mut all: Vec<u32> = (0..limits::TICKETS_MAX).map(|_| slots.take().unwrap()).collect();
    all.sort_unstable();
    assert_eq!((all, slots.take()), (vec![0, 1], None));
}

#[test]
fn a_ticket_that_is_awaited_gets_its_own_outcome_whole() {
    loom::model(|| {
        let slots = TicketSlots::new(ShardId(0));
        let (ticket, slot) = open(&slots);
        let shard = slots.clone();
        thread::spawn(move || shard.resolve(slot, Ok(committed(7))));
        assert_eq!(block_on(ticket).unwrap(), committed(7));
        all_free(&slots);
    });
}

#[test]
fn a_slot_that_is_used_again_says_nothing_of_the_ticket_before() {
    loom::model(|| {
        let slots = TicketSlots::new(ShardId(0));
        let other = slots.take().unwrap();
        // The other one is made, too.
        slots.give_back(slots.take().unwrap());
        let ring: Arc<(Ring, AtomicUsize)> = Arc::default();
        let (shard, pushed) = (slots.clone(), ring.clone());
        let resolving = thread::spawn(move || {
            // The first outcome at once, the second one after its push was seen.
            shard.resolve(1, Ok(committed(1)));
            if pushed.0.pushed() == 1 {
                shard.resolve(
                    1,
                    Ok(Outcome::TimedOut {
                        bookmark: Bookmark { shard: ShardId(0), term: Term(3), lsn: Lsn(2) },
                        durable_here: true,
                        acks: 1,
                        wanted: 2,
                    }),
                );
                return true;
            }
            false
        });
        let (mut ticket, slot) = open(&slots);
        assert_eq!(slot, 1);
        if let Some(first) = ticket.try_outcome() {
            assert_eq!(first.unwrap(), committed(1));
            let (mut again, slot) = open(&slots);
            assert_eq!(slot, 1);
            ring.0.push(1);
            let second = again.try_outcome();
            if resolving.join().unwrap() {
                let second = second.or_else(|| again.try_outcome()).unwrap().unwrap();
                assert!(matches!(second, Outcome::TimedOut { bookmark, durable_here: true, acks: 1, wanted: 2 }
                    if (bookmark.lsn, bookmark.term) == (Lsn(2), Term(3))));
            } else {
                assert_eq!(second, None);
            }
        } else {
            drop(ticket);
            resolving.join().unwrap();
        }
        slots.give_back(other);
    });
}

#[test]
fn a_ticket_that_is_dropped_while_its_outcome_comes_frees_its_slot_once() {
    for refused in [false, true] {
        loom::model(move || {
            let slots = TicketSlots::new(ShardId(0));
            let (ticket, slot) = open(&slots);
            let shard = slots.clone();
            let result = if refused { Err(AppendError::NoSuchShard(ShardId(9))) } else { Ok(committed(7)) };
            let resolving = thread::spawn(move || shard.resolve(slot, result));
            drop(ticket);
            resolving.join().unwrap();
            assert!(slots.is_idle());
            // A refusal that nobody took is not the next ticket's.
            for _ in 0..limits::TICKETS_MAX {
                let (mut next, slot) = open(&slots);
                slots.resolve(slot, Err(AppendError::TooManyLanes));
                assert_eq!(next.try_outcome(), Some(Err(AppendError::TooManyLanes)));
            }
            all_free(&slots);
        });
    }
}

#[test]
fn a_ticket_that_was_polled_once_and_dropped_wakes_nobody_and_is_freed_once() {
    loom::model(|| {
        let slots = TicketSlots::new(ShardId(0));
        let (ticket, slot) = open(&slots);
        let shard = slots.clone();
        let resolving = thread::spawn(move || shard.resolve(slot, Ok(committed(7))));
        {
            let mut ticket = pin!(ticket);
            let polled = ticket.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(_))));
        }
        resolving.join().unwrap();
        all_free(&slots);
    });
}

#[test]
fn an_append_at_the_moment_in_which_the_shards_core_dies_is_told() {
    loom::model(|| {
        let slots = TicketSlots::new(ShardId(0));
        let bell: Arc<Doorbell> = Arc::default();
        let (theirs, abandoned) = (slots.clone(), bell.clone());
        // As `Inbox::abandon` does it.
        thread::spawn(move || {
            abandoned.shut();
            theirs.resolve_all();
        });
        // As `Handle::try_append` does it, on the way to a ring that nobody reads any more.
        let (ticket, slot) = open(&slots);
        bell.ring();
        if bell.is_shut() {
            slots.resolve_if_waiting(slot);
        }
        assert_eq!(block_on(ticket), Ok(Outcome::Stopped));
        all_free(&slots);
    });
}

#[test]
fn a_value_arrives_whenever_it_is_sent() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel();
        thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver), Ok(7));
    });
}

#[test]
fn a_sender_that_is_gone_is_told_from_one_that_is_slow() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel::<u8>();
        thread::spawn(move || drop(sender));
        assert_eq!(block_on(receiver), Err(oneshot::Gone));
    });
    loom::model(|| {
        // Forgotten instead of dropped, as by a thread that has died.
        let (sender, receiver) = oneshot::channel::<u8>();
        let guard = sender.guard();
        let forgotten = ManuallyDrop::new(sender);
        thread::spawn(move || drop(guard));
        assert_eq!(block_on(receiver), Err(oneshot::Gone));
        drop(ManuallyDrop::into_inner(forgotten));
    });
}

#[test]
fn a_value_that_was_sent_outlives_its_senders_end() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel();
        let guard = sender.guard();
        let sending = thread::spawn(move || sender.send(7));
        thread::spawn(move || {
            sending.join().unwrap();
            drop(guard);
        });
        assert_eq!(block_on(receiver), Ok(7));
    });
}

#[test]
fn every_command_arrives_in_order() {
    loom::model(|| {
        let mailbox: Arc<Mailbox<u8>> = Arc::default();
        let sender = mailbox.clone();
        thread::spawn(move || {
            sender.send(1);
            sender.send(2);
        });
        assert_eq!(block_on(mailbox.next()), 1);
        assert_eq!(block_on(mailbox.next()), 2);
    });
}

#[test]
fn a_question_to_a_core_that_ends_is_answered_or_its_asker_told() {
    loom::model(|| {
        let mailbox: Arc<Mailbox<oneshot::Sender<u8>>> = Arc::default();
        let core = mailbox.clone();
        thread::spawn(move || {
            // It answers what it finds, and ends.
            let mut next = pin!(core.next());
            if let Poll::Ready(asked) = next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                asked.send(7);
            }
            core.close();
        });
        let (ask, answer) = oneshot::channel();
        mailbox.send(ask);
        assert!(matches!(block_on(answer), Ok(7) | Err(oneshot::Gone)));
    });
}

#[test]
fn no_wake_time_is_lost_or_counted_twice() {
    let mut builder = loom::model::Builder::new();
    // Two looks at 256 buckets each.
    builder.max_branches = 10_000;
    builder.check(|| {
        let times: Arc<wake_times::WakeTimes> = Arc::default();
        let taking = times.clone();
        let counting = thread::spawn(move || {
            taking.record(1);
            taking.record(1);
        });
        let mut telemetry = telemetry::Telemetry::default();
        times.collect(&mut telemetry);
        counting.join().unwrap();
        times.collect(&mut telemetry);
        assert_eq!(telemetry.0, 2);
    });
}

/// The core's side of `rt/hot.rs`: what other threads woke goes to its tasks, and they are polled.
#[test]
fn a_task_that_is_woken_again_while_its_wake_up_arrives_sees_what_it_was_woken_for() {
    loom::model(|| {
        let bell = std::fs::File::open("/dev/null").unwrap();
        let core = Arc::new(wakers::Shared::new(bell.into()));
        let ready = Arc::new(AtomicUsize::new(0));
        let waker = wakers::TaskWaker::of(Waker::noop().clone(), core.clone());
        let waking = {
            let ready = ready.clone();
            thread::spawn(move || {
                waker.wake_by_ref();
                ready.store(1, Ordering::Relaxed);
                waker.wake_by_ref();
            })
        };
        // A task without a wake-up in the queue is not polled.
        let poll = || {
            let woken = std::mem::take(&mut core.lock().woken);
            woken.iter().for_each(|w| w.arrive());
            (!woken.is_empty()).then(|| ready.load(Ordering::Relaxed))
        };
        let first = poll();
        waking.join().unwrap();
        assert_eq!(poll().or(first), Some(1), "the last wake-up is lost");
    });
}
