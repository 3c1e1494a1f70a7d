//! What happens later, and who sleeps until then.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{NodeId, SimWorld};

/// What happens at a time.
pub(super) enum Event {
    /// A task's pause is over, unless it waits no more.
    Wake(Waker, Rc<Cell<bool>>),
    /// Bytes arrive at an end of a connection.
    Arrive(u64, usize),
    /// A disk has done what it was asked to.
    Done(u64),
    /// A node goes on.
    Resume(NodeId),
    /// Somebody outside of the world wants to look.
    Alarm,
}

pub(super) struct At(pub(super) u64, pub(super) u64, pub(super) Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A pause.
pub(super) struct Sleep {
    pub(super) world: std::rc::Weak<SimWorld>,
    pub(super) at_ns: u64,
    pub(super) waits: Option<Rc<Cell<bool>>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(world) = self.world.upgrade() else { return Poll::Pending };
        if world.now_ns() >= self.at_ns {
            return Poll::Ready(());
        }
        // A task may be polled for other reasons: one event is enough as long as its waker stays.
        if self.waits.is_none() {
            let waits = Rc::new(Cell::new(true));
            let late = world.rng().below(20_000);
            self.at_ns = self.at_ns.saturating_add(late);
            world.at(self.at_ns, Event::Wake(cx.waker().clone(), waits.clone()));
            self.waits = Some(waits);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(waits) = &self.waits {
            waits.set(false);
        }
    }
}
