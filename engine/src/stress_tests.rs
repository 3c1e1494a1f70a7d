//! What crosses threads, on real threads with the real ring and the real waker, many times over:
//! what the model checker of `tests/atomics.rs` replaces by its own. A waiter that nobody wakes
//! would hang, so each test is given up after a minute.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use rtrb::RingBuffer;
use towline_wire::{Lsn, ShardId, Term};

use crate::limits;
use crate::node::Watermark;
use crate::node::mailbox::Mailbox;
use crate::oneshot;
use crate::outcome::{Bookmark, Outcome};
use crate::shard::mesh::doorbell::Doorbell;
use crate::shard::mesh::ticket::{Ticket, TicketSlots, block_on};

/// Fails instead of hanging.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    let ended = wait.recv_timeout(Duration::from_secs(60));
    assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "somebody waits and is not woken");
    thread.join().unwrap();
}

fn committed(lsn: u64) -> Outcome {
    Outcome::Committed { bookmark: Bookmark { shard: ShardId(0), term: Term(lsn), lsn: Lsn(lsn) }, acks: lsn as u8 }
}

/// One shard, a thread for each producer: appends with a few outstanding, so that the shard rests
/// often; of every seven tickets one is dropped at once. Returns how many were told `Stopped`.
fn append_from_threads(producers: u64, appends: u64, stop_after: usize) -> usize {
    let bell: Arc<Doorbell> = Arc::default();
    let stopped: Arc<AtomicUsize> = Arc::default();
    let (mut intakes, mut threads) = (Vec::new(), Vec::new());
    for p in 0..producers {
        let slots = TicketSlots::new(ShardId(0));
        let (mut push, pop) = RingBuffer::<(u32, u64)>::new(64);
        intakes.push((pop, slots.clone()));
        let (bell, stopped) = (bell.clone(), stopped.clone());
        threads.push(thread::spawn(move || {
            let mut open: Vec<(Ticket, u64)> = Vec::new();
            let take = |(ticket, key): (Ticket, u64)| match ticket.wait().unwrap() {
                Outcome::Stopped => {
                    stopped.fetch_add(1, Ordering::Relaxed);
                }
                outcome => assert_eq!(outcome, committed(key), "another append's outcome"),
            };
            for n in 0..appends {
                if bell.is_shut() {
                    break;
                }
                let (slot, key) = (slots.take().unwrap(), p * appends + n);
                push.push((slot, key)).unwrap();
                let ticket = Ticket::new(slots.clone(), slot);
                bell.ring();
                if bell.is_shut() {
                    slots.resolve_if_waiting(slot);
                }
                if n % 7 == 3 {
                    drop(ticket);
                } else {
                    open.push((ticket, key));
                }
                while open.len() as u64 > n % 4 {
                    take(open.remove(0));
                }
            }
            open.into_iter().for_each(take);
            slots
        }));
    }
    let mut taken = 0;
    while taken < stop_after {
        let before = taken;
        for (ring, slots) in &mut intakes {
            while let Ok((slot, key)) = ring.pop() {
                slots.resolve(slot, Ok(committed(key)));
                taken += 1;
            }
        }
        if taken == before {
            block_on(poll_fn(|cx| bell.poll_rest(cx.waker(), || intakes.iter().any(|i| !i.0.is_empty()))));
        }
    }
    bell.shut();
    for (ring, slots) in &mut intakes {
        while let Ok((slot, _)) = ring.pop() {
            slots.resolve(slot, Ok(Outcome::Stopped));
        }
    }
    let all_slots: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    // Everybody was told, by the shard or, after the shard's last look, by the producer itself;
    // the slots of tickets that were dropped are free again too.
    assert!(all_slots.iter().all(|slots| slots.is_idle()), "a slot is lost");
    stopped.load(Ordering::Relaxed)
}

/// Two threads that begin each round in the same instant, as nearly as it goes.
#[derive(Default)]
struct Rounds(AtomicUsize);

impl Rounds {
    fn meet(&self, round: usize) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) < 2 * round {
            spins += 1;
            if spins % 1000 == 0 {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

#[derive(Default)]
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_push_in_the_instant_in_which_the_shard_rests_is_seen_or_wakes_it() {
    within_a_minute(|| {
        const ROUNDS: usize = 200_000;
        let shared: Arc<(Doorbell, AtomicUsize, Rounds)> = Arc::default();
        let producer = shared.clone();
        let thread = thread::spawn(move || {
            let (bell, pushed, rounds) = &*producer;
            for n in 1..=ROUNDS {
                rounds.meet(2 * n - 1);
                pushed.store(n, Ordering::Release);
                bell.ring();
                rounds.meet(2 * n);
            }
        });
        let (bell, pushed, rounds) = &*shared;
        let woken: Arc<Counting> = Arc::default();
        let waker = Waker::from(woken.clone());
        let (mut rested, mut expected) = (0, 0);
        for n in 1..=ROUNDS {
            rounds.meet(2 * n - 1);
            let polled = bell.poll_rest(&waker, || pushed.load(Ordering::Acquire) == n);
            rounds.meet(2 * n);
            let now = woken.0.load(Ordering::Relaxed);
            if polled.is_pending() {
                (rested, expected) = (rested + 1, expected + 1);
                assert!(now >= expected, "round {n}: the push was not seen and nobody was woken");
            }
            expected = now;
        }
        thread.join().unwrap();
        assert!(rested > 0, "the push always came first");
    });
}

#[test]
fn every_append_of_many_threads_has_its_own_outcome() {
    within_a_minute(|| {
        const APPENDS: u64 = 50_000;
        assert_eq!(append_from_threads(3, APPENDS, 3 * APPENDS as usize), 0);
    });
}

#[test]
fn slots_are_made_as_more_tickets_are_open_and_no_two_are_the_same() {
    let slots = TicketSlots::new(ShardId(0));
    assert_eq!(slots.made(), 0);
    for _ in 0..3 * limits::TICKETS_FIRST {
        let slot = slots.take().unwrap();
        assert_eq!(slots.made(), limits::TICKETS_FIRST, "one at a time needs no more");
        slots.give_back(slot);
    }
    let mut open: Vec<u32> = (0..=limits::TICKETS_FIRST).map(|_| slots.take().unwrap()).collect();
    assert_eq!(slots.made(), 2 * limits::TICKETS_FIRST);
    while open.len() < limits::TICKETS_MAX {
        assert!(slots.may_free());
        open.push(slots.take().unwrap());
    }
    assert_eq!(slots.take(), None);
    assert_eq!(slots.made(), limits::TICKETS_MAX);
    open.sort_unstable();
    assert!(open.iter().copied().eq(0..limits::TICKETS_MAX as u32));
    open.into_iter().for_each(|slot| slots.give_back(slot));
    assert!(slots.is_idle());
}

#[test]
fn a_shard_that_stops_under_load_tells_every_ticket() {
    within_a_minute(|| {
        // At another moment each time.
        let told: usize = (0..60).map(|n| append_from_threads(3, 100_000, 40 * n)).sum();
        assert!(told > 0, "nobody was waiting when the shard stopped");
    });
}

#[test]
fn every_question_to_a_core_is_answered_or_its_asker_told() {
    within_a_minute(|| {
        let mailbox: Arc<Mailbox<(u64, oneshot::Sender<u64>)>> = Arc::default();
        let askers: Vec<_> = (0..2)
            .map(|_| {
                let mailbox = mailbox.clone();
                thread::spawn(move || {
                    for n in 0.. {
                        let (ask, answer) = oneshot::channel();
                        mailbox.send((n, ask));
                        match block_on(answer) {
                            Ok(answer) => assert_eq!(answer, n),
                            Err(oneshot::Gone) => return n,
                        }
                    }
                    unreachable!()
                })
            })
            .collect();
        for _ in 0..100_000 {
            let (n, ask) = block_on(mailbox.next());
            ask.send(n);
        }
        mailbox.close();
        let answered: u64 = askers.into_iter().map(|a| a.join().unwrap()).sum();
        assert_eq!(answered, 100_000);
    });
}

#[test]
fn a_watermark_never_goes_back_for_any_reader() {
    within_a_minute(|| {
        let shared: Arc<(Watermark, AtomicBool)> = Arc::default();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let mut last = Lsn::ZERO;
                    while !shared.1.load(Ordering::Acquire) {
                        let now = shared.0.read();
                        assert!(now >= last);
                        last = now;
                    }
                    // What was published before the end is seen after it.
                    assert_eq!(shared.0.read(), Lsn(1_000_000));
                })
            })
            .collect();
        (0..=1_000_000).for_each(|n| shared.0.publish(Lsn(n)));
        shared.1.store(true, Ordering::Release);
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
}
