//! A socket on the core that owns it: sends pieces, receives into slices, both without blocking the
//! core, with a limit on how long the peer may make no progress.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use towline_wire::frame;

use crate::limits;
use crate::notify::Changed;
use crate::rt;
use crate::rt::net::{Detached, Held, Socket, behind};

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    socket: Socket,
    turns: Turns,
    /// A send was given up half way: what follows would be taken for the rest of its frame.
    torn: Cell<bool>,
    heard_ns: Cell<u64>,
    /// Since when somebody waits to read, or 0 while nobody does.
    waiting_ns: Cell<u64>,
    said_ns: Cell<u64>,
    /// The last receive got less than it had room for: there is nothing more for now.
    drained: Cell<bool>,
    /// How many bytes must have come before a wait for them ends.
    low_water: Cell<usize>,
    pub(crate) send_calls: Cell<u64>,
    pub(crate) receive_calls: Cell<u64>,
    pub(crate) sent_bytes: Cell<u64>,
}

impl Conn {
    /// Takes a connected socket.
    pub(crate) fn new(socket: Socket) -> Self {
        let now = rt::now_ns();
        Self {
            socket,
            turns: Turns::default(),
            torn: Cell::new(false),
            heard_ns: Cell::new(now),
            waiting_ns: Cell::new(0),
            said_ns: Cell::new(now),
            drained: Cell::new(false),
            low_water: Cell::new(1),
            send_calls: Cell::new(0),
            receive_calls: Cell::new(0),
            sent_bytes: Cell::new(0),
        }
    }

    /// Connects.
    pub(crate) async fn connect(addr: &SocketAddr) -> io::Result<Self> {
        rt::timeout(limits::CONNECT_TIMEOUT, Socket::connect(addr))
            .await
            .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to the connect")))
            .map(Self::new)
    }

    /// Takes the socket back, to hand it to another core.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        self.socket.detach()
    }

    /// Ends the connection: everybody who waits on it wakes up.
    pub(crate) fn close(&self) {
        self.socket.shutdown();
    }

    /// Sends no more, and throws away what still comes until the peer closes too, or for a moment: a
    /// socket that is closed with unread bytes is reset, and the peer may never read what was sent.
    pub(crate) async fn drain(&self) {
        self.socket.shutdown_send();
        let mut bytes = vec![0; 64 << 10];
        let all = async { while !matches!(self.receive(&mut bytes, &mut []).await, Ok(0) | Err(_)) {} };
        let _ = rt::timeout(limits::DRAIN_TIMEOUT, all).await;
    }

    /// For how long this end has waited to hear from the peer. What it does not read, because its
    /// own device is behind, is not the peer's silence.
    pub(crate) fn silent_for(&self) -> Duration {
        match self.waiting_ns.get() {
            0 => Duration::ZERO,
            since => Duration::from_nanos(rt::now_ns().saturating_sub(since.max(self.heard_ns.get()))),
        }
    }

    /// How long ago something was sent last.
    pub(crate) fn mute_for(&self) -> Duration {
        Duration::from_nanos(rt::now_ns() - self.said_ns.get())
    }

    /// Sends all pieces in order, whole: tasks that send on the same connection take turns, in the
    /// order in which they came. The bytes behind the pieces must stay where they are until this
    /// returns: the caller holds them.
    pub(crate) async fn send(&self, pieces: &[&[u8]]) -> io::Result<()> {
        self.in_turn(self.send_now(pieces, false)).await
    }

    /// As [`Conn::send`], a little at a time, with pauses in which the core is left to others.
    pub(crate) async fn send_politely(&self, pieces: &[&[u8]]) -> io::Result<()> {
        self.in_turn(self.send_now(pieces, true)).await
    }

    /// Runs `sending` when it is its turn; if it is given up half way, nothing is sent any more.
    async fn in_turn<T>(&self, sending: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let _turn = self.turns.take().await;
        if self.torn.replace(true) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "a send before was not finished"));
        }
        let sent = sending.await?;
        self.torn.set(false);
        Ok(sent)
    }

    /// As [`Conn::send`], from where the bytes are: they are held until the kernel has let go of them.
    /// Says whether it can be done here; if not, they have been sent with a copy.
    pub(crate) async fn send_zero_copy(&self, held: Rc<dyn Held>) -> io::Result<bool> {
        self.in_turn(self.send_held(held)).await
    }

    async fn send_held(&self, held: Rc<dyn Held>) -> io::Result<bool> {
        let total: usize = held.pieces().iter().map(|p| p.len()).sum();
        let (mut taken, mut possible) = (0, true);
        while total > taken && possible {
            match self.socket.send_zero_copy(held.clone(), taken).await {
                Ok(more) => {
                    taken += more;
                    self.said_ns.set(rt::now_ns());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait_for_room().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let known = [libc::EINVAL, libc::ENOBUFS, libc::ENOMEM, libc::EOPNOTSUPP];
                    if e.raw_os_error().is_none_or(|code| !known.contains(&code)) {
                        return Err(e);
                    }
                    // Nothing may be locked in memory any more, or this is no socket for it.
                    possible = false;
                }
            }
        }
        self.sent_bytes.set(self.sent_bytes.get() + taken as u64);
        self.send_now(&behind(held.pieces(), taken), false).await?;
        Ok(possible)
    }

    async fn wait_for_room(&self) -> io::Result<()> {
        rt::timeout(limits::WRITE_TIMEOUT, self.socket.writable())
            .await
            .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }

    async fn send_now(&self, pieces: &[&[u8]], politely: bool) -> io::Result<()> {
        let mut vectors = [IoSlice::new(&[]); PIECES_MAX];
        assert!(pieces.len() <= PIECES_MAX);
        let mut total = 0;
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            *vector = IoSlice::new(piece);
            total += piece.len();
        }
        let mut rest = &mut vectors[..pieces.len()];
        self.sent_bytes.set(self.sent_bytes.get() + total as u64);
        while total > 0 {
            self.send_calls.set(self.send_calls.get() + 1);
            let began = rt::now_ns();
            let sending = match rest.first() {
                Some(first) if politely && first.len() > limits::POLITE_BYTES => {
                    self.socket.send(&[IoSlice::new(&first[..limits::POLITE_BYTES])])
                }
                Some(_) if politely => self.socket.send(&rest[..1]),
                _ => self.socket.send(rest),
            };
            match sending {
                Ok(sent) => {
                    total -= sent;
                    let now = rt::now_ns();
                    self.said_ns.set(now);
                    IoSlice::advance_slices(&mut rest, sent);
                    if politely && sent > frame::HEADER {
                        let busy = Duration::from_nanos(now - began);
                        rt::sleep((busy * limits::POLITE_PAUSES).min(limits::POLITE_PAUSE_MAX)).await;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait_for_room().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Receives at least one byte into `first`, then `second`. 0 means that the peer has closed.
    pub(crate) async fn receive(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        if self.drained.take() {
            self.wait_for(1).await?;
        }
        let n = self.receive_some(first, second, 1).await?;
        self.drained.set(n < first.len() + second.len());
        Ok(n)
    }

    /// Receives until `first` is full, and what comes with it into `second`; returns the bytes in
    /// `second`. `UnexpectedEof` if the peer closes before.
    ///
    /// A large slice comes in many pieces: this waits for many at a time, not for each.
    pub(crate) async fn receive_full(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        while got < first.len() {
            let need = first.len() - got;
            let n = self.receive_some(&mut first[got..], second, need).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            got += n;
        }
        self.drained.set(got < first.len() + second.len());
        Ok(got - first.len())
    }

    async fn receive_some(&self, first: &mut [u8], second: &mut [u8], need: usize) -> io::Result<usize> {
        loop {
            self.receive_calls.set(self.receive_calls.get() + 1);
            match self.socket.receive(first, second) {
                Ok(n) => {
                    self.heard_ns.set(rt::now_ns());
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait_for(need).await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until `need` bytes, or as many as are waited for at a time, have come.
    async fn wait_for(&self, need: usize) -> io::Result<()> {
        // Half of a default receive buffer at most, so that the sender is never held up by it.
        let low_water = need.min(limits::RECEIVE_LOW_WATER);
        // A few bytes more or less are not worth a system call.
        let change = low_water > 2 * self.low_water.get() || low_water < self.low_water.get();
        if change {
            self.socket.set_low_water(low_water)?;
            self.low_water.set(low_water);
        }
        self.waiting_ns.set(rt::now_ns());
        let readable = self.socket.readable().await;
        self.waiting_ns.set(0);
        readable
    }

    /// Receives until both slices are full. `UnexpectedEof` if the peer closes before.
    pub(crate) async fn receive_all(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<()> {
        let (a, b) = (first.len(), second.len());
        let mut got = 0;
        while got < a + b {
            let n = self.receive(&mut first[got.min(a)..], &mut second[got.saturating_sub(a)..]).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            got += n;
        }
        Ok(())
    }

    /// Takes the counts since the last call: send calls, receive calls, bytes sent.
    pub(crate) fn take_counts(&self) -> (u64, u64, u64) {
        (self.send_calls.take(), self.receive_calls.take(), self.sent_bytes.take())
    }
}

/// Turns, in the order in which they were asked for.
#[derive(Debug, Default)]
struct Turns {
    /// Who has the turn, then who waits for it.
    queue: RefCell<VecDeque<u64>>,
    next: Cell<u64>,
    over: Changed,
}

/// A turn, or a wait for one: dropping it is the end of it.
struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    async fn take(&self) -> Turn<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.queue.borrow_mut().push_back(number);
        let turn = Turn { turns: self, number };
        loop {
            let seen = self.over.seen();
            if self.queue.borrow().front() == Some(&number) {
                return turn;
            }
            self.over.since(seen).await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.queue.borrow_mut();
        queue.retain(|n| *n != self.number);
        let others = !queue.is_empty();
        drop(queue);
        if others {
            self.turns.over.notify();
        }
    }
}

/// Most pieces of one send: a header and a batch each, and one frame more.
pub(crate) const PIECES_MAX: usize = 2 * limits::SEND_BATCHES_MAX + 2;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn turns_are_taken_in_order_and_one_that_is_given_up_holds_nobody_up() {
        let turns = Turns::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut first, mut second) = (pin!(turns.take()), Box::pin(turns.take()));
        let (mut third, mut fourth) = (pin!(turns.take()), pin!(turns.take()));
        let Poll::Ready(turn) = first.as_mut().poll(cx) else { panic!("nobody else has it") };
        assert!(second.as_mut().poll(cx).is_pending());
        assert!(third.as_mut().poll(cx).is_pending());
        assert!(fourth.as_mut().poll(cx).is_pending());
        drop(second);
        assert!(third.as_mut().poll(cx).is_pending());
        drop(turn);
        assert!(fourth.as_mut().poll(cx).is_pending());
        assert!(third.as_mut().poll(cx).is_ready());
    }
}
