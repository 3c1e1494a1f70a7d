//! The load on a network peer: one thread, so many connections, so many records outstanding on each;
//! a new request for each that is answered. The same loop for every protocol.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

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
    /// Encodes and sends while there is room.
    fn push(&mut self, now_ns: u64) -> io::Result<()> {
        while self.room > 0 && self.out.len() - self.sent < UNSENT_BYTES {
            let records = self.protocol.ask(now_ns, self.room, &mut self.out);
            debug_assert!(records <= self.room);
            if records == 0 {
                break;
            }
            self.room -= records;
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

/// Runs the load over connections that are past their opening words.
pub(crate) fn drive<P: Protocol>(
    connections: Vec<(TcpStream, P)>,
    pipeline: u64,
    clock: &Clock<'_>,
) -> Result<Sample, String> {
    let failed = |e: io::Error| format!("the connection to the peer: {e}");
    let mut epoll = Epoll::new(connections.len()).map_err(failed)?;
    let mut all = Vec::new();
    for (key, (stream, protocol)) in connections.into_iter().enumerate() {
        stream.set_nonblocking(true).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let interest = Interest::Read;
        epoll.add(&stream, key as u64, interest).map_err(failed)?;
        let (out, input) = (Vec::new(), Vec::new());
        all.push(Connection { stream, protocol, out, sent: 0, input, room: pipeline, interest });
    }
    let began = Instant::now();
    let now_ns = || began.elapsed().as_nanos() as u64;
    let (mut commits, mut latency_ns, mut answered) = (0, histogram(), Instant::now());
    let (mut ready, mut buffer): (Vec<u64>, _) = ((0..all.len() as u64).collect(), vec![0; READ_BYTES]);
    let mut from: Option<(Instant, u64, u64)> = None;
    loop {
        for key in &ready {
            let connection = &mut all[*key as usize];
            let before = commits;
            // The answers' time is that of their arrival, read once for all of a read.
            let arrived = now_ns();
            connection.pull(&mut buffer, &mut |since, records| {
                commits += records;
                latency_ns.saturating_record_n(arrived.saturating_sub(since).max(1), records);
            })?;
            if commits > before {
                answered = Instant::now();
            }
            connection.push(now_ns()).map_err(failed)?;
            let interest = if connection.sent < connection.out.len() { Interest::ReadAndWrite } else { Interest::Read };
            if interest != connection.interest {
                epoll.change(&connection.stream, *key, interest).map_err(failed)?;
                connection.interest = interest;
            }
        }
        interrupt::check()?;
        match from {
            None if began.elapsed() >= clock.warm_up && commits > 0 => {
                (commits, latency_ns) = (0, histogram());
                from = Some((Instant::now(), towline::sys::process_cpu_ns(), (clock.servers)()));
            }
            Some((at, client, servers)) if at.elapsed() >= clock.measure => {
                let seconds = at.elapsed().as_secs_f64();
                return Ok(Sample {
                    commits,
                    failed: 0,
                    seconds,
                    latency_ns,
                    client_cpu_ns: towline::sys::process_cpu_ns() - client,
                    server_cpu_ns: (clock.servers)().saturating_sub(servers),
                });
            }
            _ => {}
        }
        if answered.elapsed() > SILENCE {
            return Err(format!("no commit came back within {} s", SILENCE.as_secs()));
        }
        epoll.wait(Duration::from_millis(20), &mut ready).map_err(failed)?;
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

    #[test]
    fn every_connection_keeps_its_pipeline_full_and_answers_may_come_in_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for _ in 0..3 {
                let (mut peer, _) = listener.accept().unwrap();
                threads.push(std::thread::spawn(move || {
                    let mut buf = [0; 5];
                    while let Ok(n @ 1..) = peer.read(&mut buf) {
                        if peer.write_all(&buf[..n]).is_err() {
                            break;
                        }
                    }
                }));
            }
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        let connections = (0..3).map(|_| (TcpStream::connect(addr).unwrap(), Echo::default())).collect();
        let clock = Clock { warm_up: Duration::from_millis(10), measure: Duration::from_millis(50), servers: &|| 0 };
        let sample = drive(connections, 4, &clock).unwrap();
        assert!(sample.commits > 0 && sample.latency_ns.len() == sample.commits);
        server.join().unwrap();
    }
}
