//! The shard's end of the rings.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};

use super::doorbell::Doorbell;
use super::given_up::GivenUp;
use super::ticket::TicketSlots;
use crate::limits;
use crate::outcome::{AppendError, Outcome};
use crate::protocol::policy::CommitPolicy;
use crate::rt;
use crate::shard::Shard;
use crate::shard::append::Payload;
use crate::shard::lanes::Lane;
use crate::telemetry::Stage;

/// One append on its way to a shard.
#[derive(Debug)]
pub(crate) struct Request {
    /// Bytes of it in the byte ring.
    pub(crate) len: u32,
    /// The ticket's slot.
    pub(crate) slot: u32,
    pub(crate) policy: Option<CommitPolicy>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) at_ns: u64,
    /// The record itself, where it is too large for the ring.
    pub(crate) large: Option<Box<[u8]>>,
}

/// The shard's end of one producer's rings.
#[derive(Debug)]
pub(crate) struct Intake {
    requests: Consumer<Request>,
    bytes: Consumer<u8>,
    slots: Arc<TicketSlots>,
}

/// The producer's end.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) requests: Producer<Request>,
    pub(crate) bytes: Producer<u8>,
}

/// A pair of ends.
pub(crate) fn rings(slots: Arc<TicketSlots>) -> (Outlet, Intake) {
    let (requests, taken) = RingBuffer::new(limits::INBOX_REQUESTS);
    let (bytes, read) = RingBuffer::new(limits::INBOX_BYTES);
    (Outlet { requests, bytes }, Intake { requests: taken, bytes: read, slots })
}

/// What producers and the shard share.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    new: Mutex<Vec<Intake>>,
    bell: Doorbell,
    /// The tickets of every handle that is still there.
    tickets: Mutex<Vec<Weak<TicketSlots>>>,
}

impl Inbox {
    /// Adds a producer.
    pub(crate) fn add(&self, intake: Intake) {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|t| t.strong_count() > 0);
        tickets.push(Arc::downgrade(&intake.slots));
        drop(tickets);
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(intake);
        self.wake();
    }

    /// Wakes the shard if it sleeps: to be called after a push.
    pub(crate) fn wake(&self) {
        self.bell.ring();
    }

    /// The shard's core has ended. If it was not stopped but died, nobody else tells those who
    /// wait for outcomes.
    pub(crate) fn abandon(&self) {
        self.bell.shut();
        for tickets in self.tickets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(tickets) = tickets.upgrade() {
                tickets.resolve_all();
            }
        }
    }

    /// Whether the shard has taken everything that was pushed before this call.
    pub(crate) fn is_taken(&self) -> bool {
        self.bell.is_resting()
    }

    /// Whether the shard takes nothing any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.bell.is_shut()
    }
}

/// A producer's lane: outcomes go to its tickets' slots.
struct TicketLane(Arc<TicketSlots>);

impl Lane for TicketLane {
    fn complete(&self, first: u64, count: u32, outcome: &Outcome) {
        for slot in first..first + u64::from(count) {
            self.0.resolve(slot as u32, Ok(*outcome));
        }
    }
}

struct Taken {
    intake: Intake,
    /// None while there are too many: its appends are refused then.
    lane: Option<u32>,
    record: Vec<u8>,
    given_up: GivenUp,
}

impl Taken {
    /// Whether its handle is gone. What the handle left behind is still taken.
    fn is_abandoned(&self) -> bool {
        self.intake.requests.is_abandoned()
    }

    /// Whether nothing is to come any more, and nobody waits for what came.
    fn is_over(&self) -> bool {
        self.is_abandoned() && self.intake.requests.is_empty() && self.intake.slots.is_idle()
    }
}

/// How often producers that are gone are looked at while appends of theirs still wait: their last
/// ticket may be dropped on any thread, which wakes nobody here.
const LINGER: Duration = Duration::from_millis(50);

/// Takes appends of other threads until the shard stops.
pub(crate) async fn run(shard: Rc<Shard>, inbox: Arc<Inbox>) {
    let mut producers: Vec<Taken> = Vec::new();
    loop {
        let room = shard.room.seen();
        if shard.is_stopped() {
            break;
        }
        take_new(&shard, &inbox, &mut producers);
        let mut blocked = false;
        let mut took = 0;
        for producer in &mut producers {
            match take(&shard, producer) {
                Ok(n) => took += n,
                Err(Blocked) => blocked = true,
            }
        }
        producers.retain(|p| {
            // The producer is gone and everything it left is taken; its lane stays until what it
            // waits for is complete, which dropped tickets do not notice.
            let over = p.is_over();
            if over {
                p.intake.slots.wake_times.collect(&mut shard.telemetry.borrow_mut());
                shard.tickets.borrow_mut().retain(|t| !Arc::ptr_eq(t, &p.intake.slots));
            }
            if over && let Some(lane) = p.lane {
                shard.inner.borrow_mut().lanes.remove(lane);
            }
            !over
        });
        if blocked {
            shard.room.since(room).await;
        } else if took > 0 {
            rt::yield_now().await;
        } else if producers.iter().any(Taken::is_abandoned) {
            let _ = rt::timeout(LINGER, sleep(&shard, &inbox, &producers)).await;
        } else {
            sleep(&shard, &inbox, &producers).await;
        }
    }
    inbox.bell.shut();
    take_new(&shard, &inbox, &mut producers);
    for producer in &mut producers {
        while let Ok(request) = producer.intake.requests.pop() {
            if !producer.given_up.front() {
                producer.intake.slots.resolve(request.slot, Ok(Outcome::Stopped));
            }
            producer.given_up.pop();
        }
    }
}

fn take_new(shard: &Shard, inbox: &Inbox, producers: &mut Vec<Taken>) {
    for intake in inbox.new.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        shard.tickets.borrow_mut().push(intake.slots.clone());
        producers.push(Taken { intake, lane: None, record: Vec::new(), given_up: GivenUp::default() });
    }
}

impl Intake {
    /// The request at the front leaves the ring, and its bytes theirs.
    fn leave(&mut self, given_up: &mut GivenUp) -> Request {
        let request = self.requests.pop().expect("the caller has looked at it");
        if request.large.is_none() {
            let bytes = self.bytes.read_chunk(request.len as usize);
            bytes.expect("they are pushed before the request").commit_all();
        }
        given_up.pop();
        request
    }

    /// While the request at the front waits for room: nothing of those behind it was written, and
    /// past their deadlines they are refused.
    fn give_up_late(&mut self, shard: &Shard, given_up: &mut GivenUp) {
        let waiting = self.requests.slots();
        let chunk = self.requests.read_chunk(waiting).expect("so many are there");
        let (a, b) = chunk.as_slices();
        given_up.look(
            rt::now_ns(),
            a.iter().chain(b),
            |r| shard.is_late(r.deadline, r.at_ns),
            |r| self.slots.resolve(r.slot, Err(AppendError::WouldBlock)),
        );
    }
}

struct Blocked;

/// Takes what one producer has, at most a ring full, so that others get their turn.
fn take(shard: &Rc<Shard>, producer: &mut Taken) -> Result<usize, Blocked> {
    let intake = &mut producer.intake;
    let mut took = 0;
    while took < limits::INBOX_REQUESTS {
        let Ok(request) = intake.requests.peek() else { break };
        let (len, since) = (request.len as usize, Some(request.at_ns));
        // Not before there is a request: it may come at any moment.
        if producer.lane.is_none() {
            producer.lane = shard.inner.borrow_mut().lanes.add(Rc::new(TicketLane(intake.slots.clone())));
            if producer.lane.is_none() {
                tracing::warn!(shard = shard.id.0, "there are {} lanes, an append is refused", limits::LANES_MAX);
            }
        }
        if producer.given_up.front() {
            intake.leave(&mut producer.given_up);
            continue;
        }
        let result = match (producer.lane, shard.wish(request.policy, request.deadline)) {
            (_, Err(e)) => Err(e),
            (None, Ok(_)) => Err(AppendError::TooManyLanes),
            (Some(lane), Ok(wish)) => {
                let key = (lane, u64::from(request.slot));
                if let Some(large) = &request.large {
                    shard.try_append(key, wish, Payload::One(large), since)
                } else {
                    let chunk = intake.bytes.read_chunk(len).expect("the bytes are pushed before the request");
                    let (a, b) = chunk.as_slices();
                    if b.is_empty() {
                        shard.try_append(key, wish, Payload::One(a), since)
                    } else {
                        producer.record.clear();
                        producer.record.extend_from_slice(a);
                        producer.record.extend_from_slice(b);
                        shard.try_append(key, wish, Payload::One(&producer.record), since)
                    }
                }
            }
        };
        // Nothing of it was written: past its deadline it is refused.
        if result == Err(AppendError::WouldBlock) && !shard.is_late(request.deadline, request.at_ns) {
            intake.give_up_late(shard, &mut producer.given_up);
            return Err(Blocked);
        }
        let request = intake.leave(&mut producer.given_up);
        shard.telemetry.borrow_mut().record(Stage::Inbox, rt::now_ns().saturating_sub(request.at_ns), 1);
        if let Err(e) = result {
            intake.slots.resolve(request.slot, Err(e));
        }
        took += 1;
    }
    Ok(took)
}

/// Sleeps until a producer wakes the shard, or the shard stops.
async fn sleep(shard: &Rc<Shard>, inbox: &Inbox, producers: &[Taken]) {
    let stopping = shard.room.seen();
    let mut stopped = std::pin::pin!(shard.room.since(stopping));
    std::future::poll_fn(|cx| {
        let has_work = || {
            producers.iter().any(|p| !p.intake.requests.is_empty() || p.is_over())
                || !inbox.new.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
                || shard.is_stopped()
        };
        match inbox.bell.poll_rest(cx.waker(), has_work) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => stopped.as_mut().poll(cx),
        }
    })
    .await;
    shard.count(|c| c.wake_ups += 1);
}
