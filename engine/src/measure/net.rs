//! What a round trip costs: two threads on two cores, one connection on loopback.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::histogram;

fn pin(cpu: Option<usize>) {
    if let Some(id) = cpu {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
}

/// Sends 64 bytes there and back again for `how_long`; returns the round trips in nanoseconds.
/// Blocking calls: nothing is faster but to spin.
///
/// # Errors
/// What the system says.
pub fn ping_pong(cpus: [Option<usize>; 2], how_long: Duration) -> io::Result<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> io::Result<()> {
        pin(cpus[1]);
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let mut buf = [0; 64];
        while peer.read_exact(&mut buf).is_ok() {
            peer.write_all(&buf)?;
        }
        Ok(())
    });
    let ping = std::thread::spawn(move || -> io::Result<Histogram<u64>> {
        pin(cpus[0]);
        let mut peer = TcpStream::connect(addr)?;
        peer.set_nodelay(true)?;
        let (mut out, mut buf) = (histogram(), [0; 64]);
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            let from = Instant::now();
            peer.write_all(&buf)?;
            peer.read_exact(&mut buf)?;
            out.saturating_record(from.elapsed().as_nanos() as u64);
        }
        Ok(out)
    });
    let out = ping.join().map_err(|_| io::Error::other("the pinging thread panicked"))?;
    echo.join().map_err(|_| io::Error::other("the echoing thread panicked"))??;
    out
}

/// Sends `frame` bytes at a time, one way, for `how_long`; returns bytes in each second.
///
/// # Errors
/// What the system says.
pub fn stream(cpus: [Option<usize>; 2], frame: usize, how_long: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let sink = std::thread::spawn(move || -> io::Result<(u64, f64)> {
        pin(cpus[1]);
        let (mut peer, _) = listener.accept()?;
        let (mut buf, mut bytes) = (vec![0; frame], 0);
        let began = Instant::now();
        loop {
            match peer.read(&mut buf)? {
                0 => return Ok((bytes, began.elapsed().as_secs_f64())),
                n => bytes += n as u64,
            }
        }
    });
    let source = std::thread::spawn(move || -> io::Result<()> {
        pin(cpus[0]);
        let mut peer = TcpStream::connect(addr)?;
        let buf = vec![0x5a; frame];
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            peer.write_all(&buf)?;
        }
        Ok(())
    });
    source.join().map_err(|_| io::Error::other("the sending thread panicked"))??;
    let (bytes, seconds) = sink.join().map_err(|_| io::Error::other("the receiving thread panicked"))??;
    Ok(bytes as f64 / seconds)
}
