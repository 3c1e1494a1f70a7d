//! A TCP proxy between a replica and its primary that cuts connections.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Passes connections on, and cuts each after so many bytes towards the replica, more with each one; 0 for
/// never.
pub struct Cutter {
    pub addr: SocketAddr,
    cut_after: Arc<AtomicU64>,
    more: Arc<AtomicU64>,
    /// How many were cut.
    pub cuts: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Cutter {
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let new = Self {
            addr: listener.local_addr().unwrap(),
            cut_after: Arc::default(),
            more: Arc::default(),
            cuts: Arc::default(),
            over: Arc::default(),
        };
        let (cut_after, more) = (new.cut_after.clone(), new.more.clone());
        let (cuts, over) = (new.cuts.clone(), new.over.clone());
        thread::spawn(move || {
            for replica in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(primary) = TcpStream::connect(to) else { continue };
                for stream in [&replica, &primary] {
                    let _ = stream.set_nodelay(true);
                }
                let after = cut_after.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
                let after = if after == 0 { u64::MAX } else { after };
                let back = (replica.try_clone().unwrap(), primary.try_clone().unwrap());
                let cuts = cuts.clone();
                thread::spawn(move || pass(&back.0, &back.1, u64::MAX));
                thread::spawn(move || cuts.fetch_add(u64::from(pass(&primary, &replica, after)), Ordering::Relaxed));
            }
        });
        new
    }

    /// From the next connection on.
    pub fn cut(&self, after: u64, more: u64) {
        self.cut_after.store(after, Ordering::Relaxed);
        self.more.store(more, Ordering::Relaxed);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

/// Whether it was cut.
fn pass(mut from: &TcpStream, mut to: &TcpStream, mut left: u64) -> bool {
    let mut buf = [0; 4096];
    while left > 0 {
        let Ok(n @ 1..) = from.read(&mut buf) else { break };
        let n = n.min(left.try_into().unwrap_or(usize::MAX));
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
        left -= n as u64;
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    left == 0
}
