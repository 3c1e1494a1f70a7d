//! The kernel calls that the standard library lacks: each wrapped once, each block with its reason.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What direct I/O on a file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlignment {
    /// Memory addresses are multiples of this.
    pub(crate) memory: u32,
    /// File positions and lengths are multiples of this.
    pub(crate) offset: u32,
}

/// Asks the file system what direct I/O needs (`STATX_DIOALIGN`, Linux 6.1). `None` if it does not
/// say.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    // SAFETY: statx is plain data for which all zeros is a value.
    let mut out: libc::statx = unsafe { std::mem::zeroed() };
    let (path, mask) = (c"".as_ptr(), libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is open, the path is a C string, and `out` outlives the call.
    check(unsafe { libc::statx(file.as_raw_fd(), path, libc::AT_EMPTY_PATH, mask, &raw mut out) })?;
    let says = out.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(says.then_some(DirectAlignment { memory: out.stx_dio_mem_align, offset: out.stx_dio_offset_align }))
}

/// Tries to set up a small `io_uring`, to tell why before a runtime fails on it.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    // struct io_uring_params: 120 bytes of which all zeros asks for the defaults.
    let mut params = [0u32; 30];
    // SAFETY: the kernel reads and writes at most sizeof(struct io_uring_params) == 120 bytes.
    let fd = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) } as libc::c_int)?;
    // SAFETY: the call above returned a descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    // The sixth word says what the kernel has. A core sleeps with a time, which is this, of Linux 5.11.
    const FEATURES: usize = 5;
    const FEATURE_EXT_ARG: u32 = 1 << 8;
    if params[FEATURES] & FEATURE_EXT_ARG == 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "Linux 5.11 or newer is needed"));
    }
    Ok(())
}

/// How many bytes this process may lock, or `None` for no limit.
pub(crate) fn memlock_limit() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    // SAFETY: no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    // The kernel does not account locked memory of a process that may lock what it likes.
    Ok((limit.rlim_cur != libc::RLIM_INFINITY && !root).then_some(limit.rlim_cur))
}

/// Lets this process have as many files open as it may ever have: each segment that is read, and
/// each connection, is one. Returns the limit.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` outlives the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// Cores that the machine may have, online or not; at least one.
pub(crate) fn cpus() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }).unwrap_or(1).max(1)
}

/// Fills a buffer with random bytes from the kernel.
pub(crate) fn random(out: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < out.len() {
        // SAFETY: the pointer and the length describe the rest of `out`.
        at += check_size(unsafe { libc::getrandom(out[at..].as_mut_ptr().cast(), out.len() - at, 0) })?;
    }
    Ok(())
}

/// Microseconds since 1970.
pub(crate) fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// An eventfd: rung by any thread, heard by the one that waits for it to be readable.
pub(crate) fn bell() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: the call above returned a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes it readable.
pub(crate) fn ring_bell(bell: RawFd) {
    // SAFETY: eight bytes are read from a value that outlives the call. It can only fail for a
    // counter that is full, which is readable.
    unsafe { libc::write(bell, (&raw const ONE).cast(), 8) };
}

static ONE: u64 = 1;

/// Makes it unreadable again.
pub(crate) fn silence_bell(bell: RawFd) {
    let mut count = 0u64;
    // SAFETY: eight bytes are written to a value that outlives the call. It can only fail for a
    // counter that is zero, which is silent.
    unsafe { libc::read(bell, (&raw mut count).cast(), 8) };
}

/// Ends a TCP connection without waiting for anybody: what was to be sent is thrown away.
pub(crate) fn abort(fd: RawFd) {
    // SAFETY: sockaddr is plain data for which all zeros is a value.
    let mut nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the address outlives the call. It can only fail for a socket that has ended.
    unsafe { libc::connect(fd, &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
}

/// Sends pieces in one call, without blocking. `WouldBlock` if nothing could be taken.
pub(crate) fn send(fd: RawFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: msghdr is plain data for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    // SAFETY: an IoSlice is an iovec of a slice that it borrows; sendmsg only reads through them.
    check_size(unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// Receives into one or two slices, in this order, without blocking. 0 means that the peer closed.
pub(crate) fn receive(fd: RawFd, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
    let mut pieces = [
        libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
        libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
    ];
    // SAFETY: msghdr is plain data for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    // SAFETY: both iovecs describe slices that are borrowed mutably for the whole call.
    check_size(unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) })
}

/// A socket address as the kernel takes it.
fn sockaddr(addr: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data for which all zeros is a value.
    let mut out: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match addr {
        SocketAddr::V4(a) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every socket address.
            unsafe { (&raw mut out).cast::<libc::sockaddr_in>().write(v4) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            let v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: a.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut out).cast::<libc::sockaddr_in6>().write(v6) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (out, len as libc::socklen_t)
}

/// Begins to connect, without blocking: await writability, then ask [`connect_result`].
pub(crate) fn start_connect(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the call above returned a descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (storage, len) = sockaddr(addr);
    // SAFETY: `storage` holds a socket address of `len` bytes and outlives the call.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const storage).cast(), len) }) {
        Ok(_) => Ok(fd),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(fd),
        Err(e) => Err(e),
    }
}

/// Whether a connect that was started has succeeded.
pub(crate) fn connect_result(fd: RawFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `error` and `len` outlive the call and are of the size that SO_ERROR has.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut len) })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Ends a connection for both directions: whoever waits for it on either end wakes up.
pub(crate) fn shutdown(fd: RawFd) {
    // SAFETY: no pointers are passed. That it may be closed already is no matter.
    let _ = unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Ends the sending direction of a connection.
pub(crate) fn shutdown_send(fd: RawFd) {
    // SAFETY: no pointers are passed. That it may be closed already is no matter.
    let _ = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` outlives the call and has `len` bytes.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) }).map(drop)
}

/// No Nagle: every send is meant to go out now.
pub(crate) fn set_nodelay(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// A wait for readability ends once this many bytes have come, or the peer has closed.
pub(crate) fn set_receive_low_water(fd: RawFd, bytes: usize) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes as libc::c_int)
}

/// CPU time that this process has used so far, in nanoseconds.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call.
    if unsafe { libc::clock_gettime(clock, &raw mut now) } == 0 {
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    } else {
        0
    }
}

/// The most memory that this process has had resident so far, in bytes.
#[must_use]
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: rusage is plain data for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } == 0 { usage.ru_maxrss as u64 * 1024 } else { 0 }
}
