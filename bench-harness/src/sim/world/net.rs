//! The network: connections as pairs of byte streams with a delay, and what goes wrong with them.
//!
//! A stream keeps its order, as TCP does; different connections know nothing of each other. Between
//! nodes that do not hear each other bytes wait, connects get no answer. A node without power says
//! nothing: its peers learn of it when it is back and they send.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use towline::wire::Lsn;
use towline::wire::frame::{self, FrameHead, FrameKind};
use towline::wire::message::Ack;
use towline::world;

use super::{Event, NodeId, SimWorld, Sleep, here};

mod held;
mod socket;

use socket::{SimListener, SimSocket};

/// What is under way.
enum Packet {
    Bytes(Vec<u8>),
    /// No more will come.
    Fin,
    /// The connection is broken.
    Reset,
}

/// One end of a connection.
#[derive(Default)]
struct End {
    node: NodeId,
    /// Come and not read: bytes, and how many of them were read.
    inbox: Vec<u8>,
    read: usize,
    eof: bool,
    broken: bool,
    low_water: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Nobody holds it any more.
    closed: bool,
    /// Sends no more.
    silent: bool,
    /// Its node lost power, or the kernel under it knows nothing of it any more.
    vanished: bool,
    /// On the way to it, with the time of arrival.
    coming: VecDeque<(u64, Packet)>,
    coming_bytes: usize,
}

impl End {
    fn unread(&self) -> usize {
        self.inbox.len() - self.read
    }

    /// Whether as much has come as is waited for, or as there is room for: the kernel does not let a
    /// reader wait for what cannot come.
    fn is_readable(&self, buffer: usize) -> bool {
        self.unread() >= self.low_water.min(buffer / 2).max(1) || self.eof || self.broken
    }

    fn wake_reader(&mut self, buffer: usize) {
        if self.is_readable(buffer)
            && let Some(waker) = self.reader.take()
        {
            waker.wake();
        }
    }

    fn wake_all(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

struct Port {
    node: NodeId,
    process: u64,
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

/// All connections and ports.
#[derive(Default)]
pub(super) struct Net {
    conns: BTreeMap<u64, [End; 2]>,
    ports: BTreeMap<SocketAddr, Port>,
    next: u64,
    /// Who is not heard by whom.
    deaf: BTreeSet<(NodeId, NodeId)>,
}

fn reset() -> io::Error {
    ErrorKind::ConnectionReset.into()
}

impl SimWorld {
    pub(super) fn listen_at(&self, addr: SocketAddr) -> io::Result<Arc<dyn world::Listener>> {
        let node = self.running.get().node;
        if self.node_at(addr) != Some(node) {
            return Err(ErrorKind::AddrNotAvailable.into());
        }
        let process = self.process(node);
        if !self.lives(node, process) {
            return Err(ErrorKind::Other.into());
        }
        let ports = &mut self.net.borrow_mut().ports;
        if ports.get(&addr).is_some_and(|port| port.process == process) {
            return Err(ErrorKind::AddrInUse.into());
        }
        ports.insert(addr, Port { node, process, waiting: VecDeque::new(), waker: None });
        Ok(Arc::new(SimListener { addr, process }))
    }

    /// Whether `to` hears `from`, or not (`on`): bytes wait until it does again.
    pub fn partition(&self, from: NodeId, to: NodeId, on: bool) {
        let deaf = &mut self.net.borrow_mut().deaf;
        if on {
            self.count("partition");
            deaf.insert((from, to));
        } else {
            deaf.remove(&(from, to));
        }
    }

    /// Everybody hears everybody.
    pub fn heal_network(&self) {
        self.net.borrow_mut().deaf.clear();
    }

    /// Breaks all connections between two nodes.
    pub fn reset_links(&self, a: NodeId, b: NodeId) {
        self.count("links reset");
        for ends in self.net.borrow_mut().conns.values_mut() {
            let nodes = (ends[0].node, ends[1].node);
            if nodes == (a, b) || nodes == (b, a) {
                for end in ends {
                    end.broken = true;
                    end.coming.clear();
                    end.wake_all();
                }
            }
        }
    }

    fn put(&self, net: &mut Net, conn: u64, to: usize, packet: Packet) {
        let delay = {
            let range = self.rates().net_ns;
            self.rng().within(range)
        };
        let Some(ends) = net.conns.get_mut(&conn) else { return };
        let end = &mut ends[to];
        let at = (self.now_ns() + delay).max(end.coming.back().map_or(0, |(at, _)| at + 1));
        if let Packet::Bytes(bytes) = &packet {
            end.coming_bytes += bytes.len();
        }
        end.coming.push_back((at, packet));
        self.at(at, Event::Arrive(conn, to));
    }

    pub(super) fn arrive(&self, conn: u64, to: usize) {
        let net = &mut *self.net.borrow_mut();
        let deaf = &net.deaf;
        let Some(ends) = net.conns.get_mut(&conn) else { return };
        if deaf.contains(&(ends[1 - to].node, ends[to].node)) && ends[0].node != ends[1].node {
            // It is sent again and again.
            self.at(self.now_ns() + 10_000_000, Event::Arrive(conn, to));
            return;
        }
        let mut answer_reset = false;
        let buffer = self.rates().send_buffer;
        while let Some((at, _)) = ends[to].coming.front() {
            if *at > self.now_ns() {
                break;
            }
            let (_, packet) = ends[to].coming.pop_front().expect("it is there");
            let end = &mut ends[to];
            match packet {
                Packet::Bytes(bytes) => {
                    self.trace.mix(conn ^ bytes.len() as u64);
                    if end.vanished && !self.machines.borrow()[end.node.0 as usize].powered {
                        // Nobody takes it, and nobody says so: it stays under way.
                        continue;
                    }
                    end.coming_bytes -= bytes.len();
                    if end.closed || end.vanished {
                        answer_reset = true;
                    } else if !end.broken {
                        end.inbox.extend_from_slice(&bytes);
                    }
                }
                Packet::Fin => end.eof = true,
                Packet::Reset => end.broken = true,
            }
            end.wake_reader(buffer);
            if end.broken {
                end.wake_all();
            }
        }
        if answer_reset {
            self.put(net, conn, 1 - to, Packet::Reset);
        }
    }

    pub(super) fn end_net(&self, node: NodeId, power: bool) {
        let net = &mut *self.net.borrow_mut();
        net.ports.retain(|_, port| port.node != node);
        let mine: Vec<(u64, usize)> = net
            .conns
            .iter()
            .flat_map(|(conn, ends)| [0, 1].map(|n| (*conn, n, ends[n].node)))
            .filter(|(_, _, of)| *of == node)
            .map(|(conn, n, _)| (conn, n))
            .collect();
        for (conn, n) in mine {
            let end = &mut net.conns.get_mut(&conn).expect("it was found")[n];
            if end.vanished || (end.closed && !power) {
                continue;
            }
            let broken = end.unread() > 0 || !end.coming.is_empty();
            (end.reader, end.writer) = (None, None);
            end.inbox.clear();
            end.read = 0;
            if power {
                end.vanished = true;
            } else if !end.closed {
                end.closed = true;
                self.put(net, conn, 1 - n, if broken { Packet::Reset } else { Packet::Fin });
            }
        }
        self.forget_closed(net);
    }

    fn forget_closed(&self, net: &mut Net) {
        net.conns.retain(|_, ends| !ends.iter().all(|end| end.closed || end.vanished));
    }

    fn close_end(&self, conn: u64, n: usize) {
        let net = &mut *self.net.borrow_mut();
        let Some(ends) = net.conns.get_mut(&conn) else { return };
        let end = &mut ends[n];
        if end.closed || end.vanished {
            return;
        }
        end.closed = true;
        (end.reader, end.writer) = (None, None);
        if end.unread() > 0 {
            self.put(net, conn, 1 - n, Packet::Reset);
        } else if !end.silent {
            self.put(net, conn, 1 - n, Packet::Fin);
        }
        self.forget_closed(net);
    }

    /// What a send of these bytes puts on the way, if something goes wrong.
    fn meddle(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut bytes = bytes;
        if self.strikes("bytes changed on the way", |f| f.corrupt) && !bytes.is_empty() {
            let at = self.rng().below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng().below(8);
            return bytes;
        }
        let Some(ack) = as_ack(&bytes) else { return bytes };
        if self.strikes("ack twice", |f| f.double_ack) {
            let again = bytes.clone();
            bytes.extend_from_slice(&again);
        } else if self.strikes("forged ack", |f| f.forged_ack) {
            let more = 4096 * (1 + self.rng().below(1 << 30));
            let far = Lsn(ack.received.0 + more);
            let forged = Ack { received: far, flushed: far, ..ack }.to_bytes();
            let mut both = frame::header(FrameKind::Ack, 0, 0, &forged).to_vec();
            both.extend_from_slice(&forged);
            both.extend_from_slice(&bytes);
            return both;
        }
        bytes
    }
}

/// One whole ack, if that is what the bytes are.
fn as_ack(bytes: &[u8]) -> Option<Ack> {
    let (header, payload) = bytes.split_first_chunk::<{ frame::HEADER }>()?;
    let head = FrameHead::check(header).ok()?;
    if head.kind != FrameKind::Ack || head.len != payload.len() {
        return None;
    }
    Ack::check(payload).ok()
}

/// Connects from a node.
pub(super) async fn connect(from: NodeId, addr: SocketAddr) -> io::Result<Arc<dyn world::Socket>> {
    loop {
        let Some(world) = here() else { return Err(reset()) };
        let target = world.node_at(addr).ok_or_else(|| io::Error::from(ErrorKind::AddrNotAvailable))?;
        let delay = {
            let range = world.rates().net_ns;
            world.rng().within(range)
        };
        let at_ns = world.now_ns() + delay;
        Sleep { world: std::rc::Rc::downgrade(&world), at_ns, waits: None }.await;
        let silent = {
            let net = world.net.borrow();
            let deaf = net.deaf.contains(&(from, target)) || net.deaf.contains(&(target, from));
            deaf || !world.machines.borrow()[target.0 as usize].powered
        };
        if silent {
            // Nobody answers: the kernel tries again.
            let at_ns = world.now_ns() + 200_000_000;
            Sleep { world: std::rc::Rc::downgrade(&world), at_ns, waits: None }.await;
            continue;
        }
        let net = &mut *world.net.borrow_mut();
        let Some(port) = net.ports.get_mut(&addr) else {
            return Err(ErrorKind::ConnectionRefused.into());
        };
        net.next += 1;
        let conn = net.next;
        let end = |node| End { node, low_water: 1, ..End::default() };
        port.waiting.push_back(conn);
        if let Some(waker) = port.waker.take() {
            waker.wake();
        }
        net.conns.insert(conn, [end(from), end(target)]);
        return Ok(Arc::new(SimSocket { conn, n: 0 }));
    }
}
