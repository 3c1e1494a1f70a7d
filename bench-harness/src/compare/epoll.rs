//! Many connections from one thread: epoll(7), level-triggered.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Which connections can be read or written.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What to be told about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    ReadAndWrite,
}

impl Epoll {
    pub(crate) fn new(connections: usize) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; connections.clamp(1, 1024)] })
    }

    fn control(&self, operation: libc::c_int, stream: &TcpStream, key: u64, interest: Interest) -> io::Result<()> {
        let write = if interest == Interest::ReadAndWrite { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | write) as u32, u64: key };
        // SAFETY: both descriptors are open and the event outlives the call.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, stream.as_raw_fd(), &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Watches a connection; it is named `key` from now on.
    pub(crate) fn add(&self, stream: &TcpStream, key: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, stream, key, interest)
    }

    /// Changes what is watched for.
    pub(crate) fn change(&self, stream: &TcpStream, key: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, stream, key, interest)
    }

    /// Waits, and gives the names of those that are ready into `ready`.
    pub(crate) fn wait(&mut self, how_long: Duration, ready: &mut Vec<u64>) -> io::Result<()> {
        ready.clear();
        let millis = libc::c_int::try_from(how_long.as_millis()).unwrap_or(libc::c_int::MAX);
        let (events, room) = (self.events.as_mut_ptr(), self.events.len() as libc::c_int);
        // SAFETY: there is memory for as many events as are asked for.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, room, millis) };
        match usize::try_from(count) {
            Ok(count) => ready.extend(self.events[..count].iter().map(|e| e.u64)),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
