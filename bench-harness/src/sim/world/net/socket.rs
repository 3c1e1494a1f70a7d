//! Listening sockets and ends of connections as a process sees them.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use towline::world::{self, Held};

use super::super::{SimWorld, here};
use super::{Net, Packet, Port, reset};

/// A listening socket of a process.
pub(super) struct SimListener {
    pub(super) addr: SocketAddr,
    pub(super) process: u64,
}

impl SimListener {
    fn with<R>(&self, f: impl FnOnce(&mut Port) -> R) -> Option<R> {
        let world = here()?;
        let net = &mut *world.net.borrow_mut();
        net.ports.get_mut(&self.addr).filter(|port| port.process == self.process).map(f)
    }
}

impl world::Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&self) -> io::Result<Arc<dyn world::Socket>> {
        let conn = self.with(|port| port.waiting.pop_front()).flatten();
        let conn = conn.ok_or_else(|| io::Error::from(ErrorKind::WouldBlock))?;
        Ok(Arc::new(SimSocket { conn, n: 1 }))
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with(|port| {
            port.waker = Some(cx.waker().clone());
            !port.waiting.is_empty()
        });
        if ready == Some(true) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let Some(world) = here() else { return };
        let waiting = self.with(|port| std::mem::take(&mut port.waiting)).unwrap_or_default();
        for conn in waiting {
            world.close_end(conn, 1);
        }
        let ports = &mut world.net.borrow_mut().ports;
        if ports.get(&self.addr).is_some_and(|port| port.process == self.process) {
            ports.remove(&self.addr);
        }
    }
}

/// One end of a connection, as a process holds it.
pub(super) struct SimSocket {
    pub(super) conn: u64,
    pub(super) n: usize,
}

impl SimSocket {
    fn with<R>(&self, f: impl FnOnce(&SimWorld, &mut Net) -> io::Result<R>) -> io::Result<R> {
        let world = here().ok_or_else(reset)?;
        let net = &mut *world.net.borrow_mut();
        // A process that has met its end sends nothing any more.
        let node = net.conns.get(&self.conn).map(|ends| ends[self.n].node);
        if node.is_none_or(|node| world.is_dead(node)) {
            return Err(reset());
        }
        f(&world, net)
    }
}

impl world::Socket for SimSocket {
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.with(|world, net| {
            let ends = net.conns.get_mut(&self.conn).ok_or_else(reset)?;
            if ends[self.n].broken {
                return Err(reset());
            }
            if ends[self.n].silent || ends[self.n].closed {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let total: usize = pieces.iter().map(|p| p.len()).sum();
            let peer = &ends[1 - self.n];
            let buffer = world.rates().send_buffer;
            let room = buffer.saturating_sub(peer.unread() + peer.coming_bytes);
            if room == 0 && total > 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let mut take = room.min(total);
            let chunks = world.rates().chunks;
            if chunks && take > 1 && world.rng().chance(0.3) {
                take = 1 + world.rng().below(take as u64) as usize;
            }
            let mut bytes = Vec::with_capacity(take);
            for piece in pieces {
                let part = piece.len().min(take - bytes.len());
                bytes.extend_from_slice(&piece[..part]);
            }
            let mut bytes = world.meddle(bytes);
            while chunks && bytes.len() > 1 && world.rng().chance(0.3) {
                let rest = bytes.split_off(1 + world.rng().below(bytes.len() as u64 - 1) as usize);
                world.put(net, self.conn, 1 - self.n, Packet::Bytes(bytes));
                bytes = rest;
            }
            world.put(net, self.conn, 1 - self.n, Packet::Bytes(bytes));
            Ok(take)
        })
    }

    fn send_held(&self, pieces: &[IoSlice<'_>], held: &Rc<dyn Held>) -> io::Result<usize> {
        let world = here().ok_or_else(reset)?;
        if world.strikes("send without a copy refused", |f| f.not_held) {
            // No memory may be locked any more, or this is no socket for it.
            let code = [12, 22, 95, 105][world.rng().below(4) as usize];
            return Err(io::Error::from_raw_os_error(code));
        }
        let sent = self.send(pieces)?;
        world.let_go_later(held);
        Ok(sent)
    }

    fn receive(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        self.with(|_, net| {
            let ends = net.conns.get_mut(&self.conn).ok_or_else(reset)?;
            let end = &mut ends[self.n];
            let mut got = 0;
            for out in [first, second] {
                let n = out.len().min(end.inbox.len() - end.read);
                out[..n].copy_from_slice(&end.inbox[end.read..end.read + n]);
                end.read += n;
                got += n;
            }
            if end.read == end.inbox.len() {
                end.inbox.clear();
                end.read = 0;
            }
            if got > 0 {
                if let Some(waker) = ends[1 - self.n].writer.take() {
                    waker.wake();
                }
                return Ok(got);
            }
            if end.broken {
                return Err(reset());
            }
            if end.eof { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) }
        })
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with(|world, net| {
            let end = &mut net.conns.get_mut(&self.conn).ok_or_else(reset)?[self.n];
            let ready = end.is_readable(world.rates().send_buffer);
            if !ready {
                end.reader = Some(cx.waker().clone());
            }
            Ok(ready)
        });
        match ready {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with(|world, net| {
            let ends = net.conns.get_mut(&self.conn).ok_or_else(reset)?;
            let buffer = world.rates().send_buffer;
            let peer = &ends[1 - self.n];
            let ready = ends[self.n].broken || peer.unread() + peer.coming_bytes < buffer;
            if !ready {
                ends[self.n].writer = Some(cx.waker().clone());
            }
            Ok(ready)
        });
        match ready {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    fn set_low_water(&self, bytes: usize) {
        let _ = self.with(|world, net| {
            let end = &mut net.conns.get_mut(&self.conn).ok_or_else(reset)?[self.n];
            end.low_water = bytes;
            end.wake_reader(world.rates().send_buffer);
            Ok(())
        });
    }

    fn shutdown(&self) {
        self.shutdown_send();
        let _ = self.with(|_, net| {
            let end = &mut net.conns.get_mut(&self.conn).ok_or_else(reset)?[self.n];
            end.eof = true;
            end.wake_all();
            Ok(())
        });
    }

    fn shutdown_send(&self) {
        let _ = self.with(|world, net| {
            let end = &mut net.conns.get_mut(&self.conn).ok_or_else(reset)?[self.n];
            if !std::mem::replace(&mut end.silent, true) {
                world.put(net, self.conn, 1 - self.n, Packet::Fin);
            }
            Ok(())
        });
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        if let Some(world) = here() {
            let node = world.net.borrow().conns.get(&self.conn).map(|ends| ends[self.n].node);
            if node.is_some_and(|node| !world.is_dead(node)) {
                world.close_end(self.conn, self.n);
            }
        }
    }
}
