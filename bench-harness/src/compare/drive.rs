//! The load on a network peer: one thread, so many connections, so many records outstanding on each;
//! a new request for each that is answered. The same loop for every protocol.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use towline::measure::histogram;

use super::epoll::{Epoll, Interest};
use super::interrupt;
use super::model::Sample;

/// A peer without any answer for so long has failed.
const SILENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 256 << 10;
/// No more is encoded while this much waits for the socket.
const UNSENT_BYTES: usize = 4 << 20;

/// One connection's side of a protocol, after its opening words.
pub(crate) trait Protocol {
    /// Encodes the next request with at most `room` records behind what is in `out`; returns how
    /// many it holds. Zero: nothing can be asked at the moment.
    fn ask(&mut self, now_ns: u64, room: u64, out: &mut Vec<u8>) -> u64;

    /// Takes whole answers from the beginning of `input` and returns their bytes. Each commit goes
    /// to `done` with when its request was encoded and its records. What must be said at once
    /// (an answer to a ping) goes to `out`.
    fn answer(&mut self, input: &[u8], out: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String>;
}

struct Connection<P> {
    stream: TcpStream,
    protocol: P,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    room: u64,
    interest: Interest,
}

impl<P: Protocol> Connection<P> {
    /// Encodes and sends while there is room, and records are left to be asked for.
    fn push(&mut self, now_ns: u64, left: &mut u64) -> io::Result<()> {
        while self.room.min(*left) > 0 && self.out.len() - self.sent < UNSENT_BYTES {
            let room = self.room.min(*left);
            let records = self.protocol.ask(now_ns, room, &mut self.out);
            debug_assert!(records <= room);
            if records == 0 {
                break;
            }
            self.room -= records;
            *left -= records;
        }
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what is there.
    fn pull(&mut self, buffer: &mut [u8], done: &mut dyn FnMut(u64, u64)) -> Result<(), String> {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err("the peer closed the connection".into()),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Ok(()),
            Err(e) => return Err(format!("reading from the peer: {e}")),
        };
        let room = &mut self.room;
        let mut done = |since, records| {
            *room += records;
            done(since, records);
        };
        if self.input.is_empty() {
            // Most reads end with a whole answer: no copy.
            let used = self.protocol.answer(&buffer[..count], &mut self.out, &mut done)?;
            self.input.extend_from_slice(&buffer[used..count]);
        } else {
            self.input.extend_from_slice(&buffer[..count]);
            let used = self.protocol.answer(&self.input, &mut self.out, &mut done)?;
            self.input.drain(..used);
        }
        Ok(())
    }
}

/// How long to run, and whose processor time to count.
pub(crate) struct Clock<'a> {
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
    /// Processor time of all servers so far, in nanoseconds.
    pub(crate) servers: &'a dyn Fn() -> u64,
}

/// All connections and what they have done.
struct Loop<P> {
    epoll: Epoll,
    all: Vec<Connection<P>>,
    ready: Vec<u64>,
    buffer: Vec<u8>,
    began: Instant,
    answered: Instant,
    /// Records that may still be asked for.
    left: u64,
    commits: u64,
    latency_ns: Histogram<u64>,
}

fn failed(e: io::Error) -> String {
    format!("the connection to the peer: {e}")
}

impl<P: Protocol> Loop<P> {
    /// Over connections that are past their opening words.
    fn new(connections: Vec<(TcpStream, P)>, pipeline: u64, left: u64) -> Result<Self, String> {
        let epoll = Epoll::new(connections.len()).map_err(failed)?;
        let mut all = Vec::new();
        for (key, (stream, protocol)) in connections.into_iter().enumerate() {
            stream.set_nonblocking(true).map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let interest = Interest::Read;
            epoll.add(&stream, key as u64, interest).map_err(failed)?;
            let (out, input) = (Vec::new(), Vec::new());
            all.push(Connection { stream, protocol, out, sent: 0, input, room: pipeline, interest });
        }
        let (ready, now) = ((0..all.len() as u64).collect(), Instant::now());
        let buffer = vec![0; READ_BYTES];
        let latency_ns = histogram();
        Ok(Self { epoll, all, ready, buffer, began: now, answered: now, left, commits: 0, latency_ns })
    }

    /// Takes the answers of those that are ready, and asks for more.
    fn turn(&mut self) -> Result<(), String> {
        let Self { epoll, all, ready, buffer, began, answered, left, commits, latency_ns } = self;
        let now_ns = || began.elapsed().as_nanos() as u64;
        for key in &*ready {
            let connection = &mut all[*key as usize];
            let before = *commits;
            // The answers' time is that of their arrival, read once for all of a read.
            let arrived = now_ns();
            connection.pull(buffer, &mut |since, records| {
                *commits += records;
                latency_ns.saturating_record_n(arrived.saturating_sub(since).max(1), records);
            })?;
            if *commits > before {
                *answered = Instant::now();
            }
            connection.push(now_ns(), left).map_err(failed)?;
            let interest = if connection.sent < connection.out.len() { Interest::ReadAndWrite } else { Interest::Read };
            if interest != connection.interest {
                epoll.change(&connection.stream, *key, interest).map_err(failed)?;
                connection.interest = interest;
            }
        }
        interrupt::check()
    }

    /// Waits until somebody is ready.
    fn rest(&mut self) -> Result<(), String> {
        if self.answered.elapsed() > SILENCE {
            return Err(format!("no commit came back within {} s", SILENCE.as_secs()));
        }
        self.epoll.wait(Duration::from_millis(20), &mut self.ready).map_err(failed)
    }
}

/// Runs the load for as long as the clock says.
pub(crate) fn drive<P: Protocol>(
    connections: Vec<(TcpStream, P)>,
    pipeline: u64,
    clock: &Clock<'_>,
) -> Result<Sample, String> {
    let mut load = Loop::new(connections, pipeline, u64::MAX)?;
    let mut from: Option<(Instant, u64, u64)> = None;
    loop {
        load.turn()?;
        match from {
            None if load.began.elapsed() >= clock.warm_up && load.commits > 0 => {
                (load.commits, load.latency_ns) = (0, histogram());
                from = Some((Instant::now(), towline::sys::process_cpu_ns(), (clock.servers)()));
            }
            Some((at, client, servers)) if at.elapsed() >= clock.measure => {
                let seconds = at.elapsed().as_secs_f64();
                return Ok(Sample {
                    commits: load.commits,
                    failed: 0,
                    seconds,
                    latency_ns: load.latency_ns,
                    client_cpu_ns: towline::sys::process_cpu_ns() - client,
                    server_cpu_ns: (clock.servers)().saturating_sub(servers),
                });
            }
            _ => {}
        }
        load.rest()?;
    }
}

/// Asks for so many records, a multiple of the protocol's unit, and returns how long it took until all
/// were committed.
pub(crate) fn transfer<P: Protocol>(
    connections: Vec<(TcpStream, P)>,
    pipeline: u64,
    records: u64,
) -> Result<Duration, String> {
    let mut load = Loop::new(connections, pipeline, records)?;
    loop {
        load.turn()?;
        if load.commits >= records {
            return Ok(load.began.elapsed());
        }
        load.rest()?;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::TcpListener;

    use super::*;

    /// Eight bytes there, the same back.
    #[derive(Default)]
    struct Echo(VecDeque<u64>);

    impl Protocol for Echo {
        fn ask(&mut self, now_ns: u64, _room: u64, out: &mut Vec<u8>) -> u64 {
            out.extend_from_slice(b"12345678");
            self.0.push_back(now_ns);
            1
        }

        fn answer(&mut self, input: &[u8], _: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
            for answer in input.chunks_exact(8) {
                if answer != b"12345678" {
                    return Err("another answer".into());
                }
                done(self.0.pop_front().ok_or("an answer that was not asked for")?, 1);
            }
            Ok(input.len() / 8 * 8)
        }
    }

    /// Answers so many connections in small pieces until they end.
    fn echo(count: usize) -> (std::net::SocketAddr, std::thread::JoinHandle<u64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for _ in 0..count {
                let (mut peer, _) = listener.accept().unwrap();
                threads.push(std::thread::spawn(move || {
                    let (mut buf, mut bytes) = ([0; 5], 0);
                    while let Ok(n @ 1..) = peer.read(&mut buf) {
                        bytes += n as u64;
                        if peer.write_all(&buf[..n]).is_err() {
                            break;
                        }
                    }
                    bytes
                }));
            }
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        (addr, server)
    }

    #[test]
    fn every_connection_keeps_its_pipeline_full_and_answers_may_come_in_pieces() {
        let (addr, server) = echo(3);
        let connections = (0..3).map(|_| (TcpStream::connect(addr).unwrap(), Echo::default())).collect();
        let clock = Clock { warm_up: Duration::from_millis(10), measure: Duration::from_millis(50), servers: &|| 0 };
        let sample = drive(connections, 4, &clock).unwrap();
        assert!(sample.commits > 0 && sample.latency_ns.len() == sample.commits);
        server.join().unwrap();
    }

    #[test]
    fn a_transfer_asks_for_so_many_records_and_for_no_more() {
        let (addr, server) = echo(3);
        let connections = (0..3).map(|_| (TcpStream::connect(addr).unwrap(), Echo::default())).collect();
        transfer(connections, 4, 1000).unwrap();
        assert_eq!(server.join().unwrap(), 8 * 1000);
    }
}
