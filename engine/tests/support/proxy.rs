//! A TCP proxy between a replica and its primary that does harm at a chosen byte of a connection.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towline::wire::frame::{HEADER, PREAMBLE};

/// How long a read waits before it looks around.
const LOOK: Duration = Duration::from_millis(3);
/// How long a peer may take to notice that a link is broken: more than any limit of a node.
const PATIENCE: Duration = Duration::from_secs(100);
/// How long bytes are held back.
const DELAY: Duration = Duration::from_millis(2);
/// How long a link that was only slow is watched before it is ended.
const WATCH: Duration = Duration::from_millis(4);
/// After so many harmed links one is passed on until the replica has what was appended meanwhile: else a frame has
/// all of that, and harm at each of its bytes takes so long that it becomes longer and longer.
const HARMED: u32 = 8;
/// Frames that are harmed: the handshake's and three more.
const FRAMES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToReplica,
    ToPrimary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Both directions end: with a reset, or in order.
    Cut { reset: bool },
    /// This direction ends, the other one does not.
    Truncate,
    /// What follows comes late.
    Delay,
    /// Bits of the byte are turned over.
    Flip(u8),
}

/// Harm at a byte of one direction, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub way: Way,
    pub harm: Harm,
    pub at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, and the peer noticed if it had to.
    Done,
    /// The byte lies behind the frames that are harmed.
    Beyond,
    /// The connection ended before it came to that byte.
    Early,
    /// A broken link was not noticed, or a slow one was given up.
    Wrong(&'static str),
}

/// Passes connections on to an address, one after the other while there are plans.
#[derive(Debug)]
pub struct Proxy {
    pub addr: String,
    plans: mpsc::Sender<(Plan, mpsc::Sender<Outcome>)>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// `wanted` is counted up whenever a connection needs more to carry.
    pub fn start(to: String, wanted: Arc<AtomicU64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        listener.set_nonblocking(true).unwrap();
        let (plans, queue) = mpsc::channel::<(Plan, mpsc::Sender<Outcome>)>();
        let ending = Arc::new(AtomicBool::new(false));
        let over = ending.clone();
        let thread = thread::spawn(move || {
            // What is passed on without harm, to be ended when harm is planned.
            let mut passing: Vec<Passing> = Vec::new();
            let (mut planned, mut harmed) = (None, 0);
            while !over.load(Ordering::Relaxed) {
                planned = planned.or_else(|| queue.try_recv().ok());
                if planned.is_some() {
                    passing.drain(..).for_each(Passing::end);
                }
                let replica = match listener.accept() {
                    Ok((replica, _)) => replica,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_micros(200));
                        continue;
                    }
                    Err(e) => panic!("accept: {e}"),
                };
                replica.set_nonblocking(false).unwrap();
                let Ok(primary) = TcpStream::connect(&to) else { continue };
                for stream in [&replica, &primary] {
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(LOOK)).unwrap();
                }
                match planned.take() {
                    None => passing.push(Passing::start(replica, primary, false)),
                    plan if harmed == HARMED => {
                        (planned, harmed) = (plan, 0);
                        Passing::start(replica, primary, true).await_end();
                    }
                    Some((plan, told)) => {
                        harmed += 1;
                        let _ = told.send(carry(&replica, &primary, plan, &wanted));
                    }
                }
            }
            passing.drain(..).for_each(Passing::end);
        });
        Self { addr, plans, ending, thread: Some(thread) }
    }

    /// Does harm to the next connection.
    pub fn harm(&self, plan: Plan) -> Outcome {
        let (told, outcome) = mpsc::channel();
        self.plans.send((plan, told)).unwrap();
        outcome.recv_timeout(2 * PATIENCE).unwrap_or(Outcome::Wrong("the replica did not connect again"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A connection that is passed on both ways until one side ends, or, if it is to be so, the primary has no more.
struct Passing {
    replica: TcpStream,
    primary: TcpStream,
    ways: [JoinHandle<()>; 2],
}

impl Passing {
    fn start(replica: TcpStream, primary: TcpStream, until_idle: bool) -> Self {
        let ways = [(&replica, &primary, false), (&primary, &replica, until_idle)].map(|(from, to, until_idle)| {
            let [from, to, replica, primary] = [from, to, &replica, &primary].map(|s| s.try_clone().unwrap());
            thread::spawn(move || {
                pass_on(&from, &to, |began| !(until_idle && began));
                end(&replica, &primary);
            })
        });
        Self { replica, primary, ways }
    }

    fn end(self) {
        end(&self.replica, &self.primary);
        self.await_end();
    }

    fn await_end(self) {
        self.ways.into_iter().for_each(|way| way.join().unwrap());
        assert!(let_go(&self.primary), "the primary keeps a link that has ended");
    }
}

/// Passes bytes on until either side ends, or when nothing came and `go_on`, which is told whether anything has
/// come yet, says no.
fn pass_on(from: &TcpStream, mut to: &TcpStream, go_on: impl Fn(bool) -> bool) {
    let (mut buf, mut began) = ([0; 16 << 10], false);
    while let Some(n) = read(from, &mut buf, || go_on(began)) {
        began = true;
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
}

/// Ends a link in order. What the primary still says can be read.
fn end(replica: &TcpStream, primary: &TcpStream) {
    let _ = (replica.shutdown(Shutdown::Both), primary.shutdown(Shutdown::Write));
}

/// Waits until the primary closes a link that has ended: its hello, if it comes to be read late, could take
/// the slot from the next link.
fn let_go(primary: &TcpStream) -> bool {
    let (mut buf, began) = ([0; 16 << 10], Instant::now());
    while read(primary, &mut buf, || began.elapsed() < PATIENCE).is_some() {}
    began.elapsed() < PATIENCE
}

/// Bytes, or `None` at the end, or when nothing came and `go_on` says no.
fn read(mut from: &TcpStream, buf: &mut [u8], mut go_on: impl FnMut() -> bool) -> Option<usize> {
    loop {
        match from.read(buf) {
            Ok(0) => return None,
            Ok(n) => return Some(n),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if !go_on() {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
}

/// Passes one connection on, does harm to it, and waits for its end.
fn carry(replica: &TcpStream, primary: &TcpStream, plan: Plan, wanted: &AtomicU64) -> Outcome {
    let outcome = harm(replica, primary, plan, wanted);
    // A reset takes what was not read with it.
    let reset = matches!((outcome, plan.harm), (Outcome::Done, Harm::Cut { reset: true }));
    if reset || let_go(primary) { outcome } else { Outcome::Wrong("the primary keeps a link that has ended") }
}

fn harm(replica: &TcpStream, primary: &TcpStream, plan: Plan, wanted: &AtomicU64) -> Outcome {
    let (from, mut to) = match plan.way {
        Way::ToReplica => (primary, replica),
        Way::ToPrimary => (replica, primary),
    };
    // Something for three frames.
    wanted.fetch_add(3, Ordering::Relaxed);
    // We have ended the link; the receiver of the harm has.
    let (over, noticed) = (AtomicBool::new(false), AtomicBool::new(false));
    let end = || {
        over.store(true, Ordering::Relaxed);
        end(replica, primary);
    };
    let (back_from, back_to) = (to, from);
    thread::scope(|scope| {
        let back = scope.spawn(|| {
            let mut back_to = back_to;
            let mut buf = [0; 16 << 10];
            let began = Instant::now();
            let go_on = || !over.load(Ordering::Relaxed) && began.elapsed() < PATIENCE;
            while let Some(n) = read(back_from, &mut buf, go_on) {
                // The other side may be gone: what counts is when this one ends.
                let _ = back_to.write_all(&buf[..n]);
            }
            if go_on() {
                noticed.store(true, Ordering::Relaxed);
            }
            // Else it has been ended, as it was to be.
            if !over.load(Ordering::Relaxed) {
                end();
            }
        });
        let mut forward = || {
            let (mut buf, mut seen) = ([0; 16 << 10], Vec::new());
            let began = Instant::now();
            loop {
                let more = || {
                    // Nothing comes: ask for something to carry.
                    wanted.fetch_add(1, Ordering::Relaxed);
                    !over.load(Ordering::Relaxed) && began.elapsed() < PATIENCE
                };
                let Some(n) = read(from, &mut buf, more) else { return Outcome::Early };
                let (first, bytes) = (seen.len() as u64, &mut buf[..n]);
                seen.extend_from_slice(bytes);
                if end_of_frames(plan.way, &seen).is_some_and(|end| plan.at >= end) {
                    return Outcome::Beyond;
                }
                if plan.at >= first + n as u64 {
                    if to.write_all(bytes).is_err() {
                        return Outcome::Early;
                    }
                    continue;
                }
                let at = (plan.at - first) as usize;
                match plan.harm {
                    Harm::Flip(bits) => {
                        bytes[at] ^= bits;
                        let _ = to.write_all(bytes);
                        return Outcome::Done;
                    }
                    _ if to.write_all(&bytes[..at]).is_err() => return Outcome::Early,
                    Harm::Cut { reset } => {
                        if reset {
                            [replica, primary].into_iter().for_each(reset_at_close);
                        }
                        return Outcome::Done;
                    }
                    Harm::Truncate => {
                        let _ = to.shutdown(Shutdown::Write);
                        return Outcome::Done;
                    }
                    Harm::Delay => {
                        thread::sleep(DELAY);
                        let slow = if to.write_all(&bytes[at..]).is_err() { Outcome::Early } else { Outcome::Done };
                        return slow;
                    }
                }
            }
        };
        let outcome = forward();
        if outcome != Outcome::Done {
            end();
        }
        match plan.harm {
            _ if outcome != Outcome::Done => {}
            Harm::Cut { reset: true } => {
                over.store(true, Ordering::Relaxed);
                // Only the other thread's read ends here: nothing of this is sent.
                let _ = back_from.shutdown(Shutdown::Read);
            }
            Harm::Cut { reset: false } => end(),
            // The receiver has to notice by itself; more comes, as it would.
            Harm::Flip(_) => pass_on(from, to, |_| !over.load(Ordering::Relaxed)),
            Harm::Truncate => {}
            Harm::Delay => {
                let (mut buf, began) = ([0; 16 << 10], Instant::now());
                let go_on = || !over.load(Ordering::Relaxed) && began.elapsed() < WATCH;
                while began.elapsed() < WATCH
                    && let Some(n) = read(from, &mut buf, go_on)
                    && to.write_all(&buf[..n]).is_ok()
                {}
                let given_up = noticed.load(Ordering::Relaxed);
                end();
                back.join().unwrap();
                return if given_up { Outcome::Wrong("a slow link was given up") } else { Outcome::Done };
            }
        }
        back.join().unwrap();
        let must = matches!(plan.harm, Harm::Flip(_) | Harm::Truncate);
        match outcome {
            Outcome::Done if must && !noticed.load(Ordering::Relaxed) => Outcome::Wrong("the harm was not noticed"),
            outcome => outcome,
        }
    })
}

/// Where the frames that are harmed end, once enough was seen to tell.
fn end_of_frames(way: Way, seen: &[u8]) -> Option<u64> {
    let mut at = if way == Way::ToPrimary { PREAMBLE.len() } else { 0 };
    for _ in 0..FRAMES {
        let len = seen.get(at..at + 4)?.try_into().unwrap();
        at += HEADER + u32::from_le_bytes(len) as usize;
    }
    Some(at as u64)
}

/// The next close throws away what is under way and resets the connection.
fn reset_at_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (level, name, len) = (libc::SOL_SOCKET, libc::SO_LINGER, size_of::<libc::linger>() as libc::socklen_t);
    // SAFETY: the descriptor is open and `linger` outlives the call.
    let set = unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const linger).cast(), len) };
    assert_eq!(set, 0);
}
