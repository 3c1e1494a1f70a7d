//! glommio: the one module that names it, so that it can be swapped. What is offered, and what it
//! promises, stands in [`super`].

use std::cell::RefCell;
use std::ffi::CString;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::{DmaBuffer, PollableFd};
use glommio::{LocalExecutorBuilder, Placement};
use io_uring::{opcode, types};

use super::dma::{DmaBuf, SharedBuf};
use super::hot::{self, How, Tracked};
use super::uring::Ended;

/// A thread that runs an executor.
pub(crate) type ExecutorHandle = glommio::ExecutorJoinHandle<()>;

/// Starts an executor on its own thread, pinned to `cpu` if one is given, and runs `main` on it.
pub(crate) fn start_executor<M, F>(
    name: &str,
    cpu: Option<usize>,
    io_memory: usize,
    main: M,
) -> io::Result<ExecutorHandle>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let builder = LocalExecutorBuilder::new(placement).name(name).io_memory(io_memory);
    let run = || async move {
        hot::start().unwrap_or_else(|e| panic!("setting up an io_uring: {e}"));
        Tracked::new(main()).await;
        hot::end();
    };
    builder.preempt_timer(hot::NEVER).spawn(run).map_err(io::Error::from)
}

/// Runs a task that lives as long as the executor.
pub(super) fn spawn_detached(task: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(task).detach();
}

/// Runs a task that is no reason for the loop not to sleep.
pub(super) fn spawn_scoped_untracked(task: impl Future<Output = ()> + 'static) -> Task {
    glommio::spawn_local(task)
}

/// What the kernel uses of an operation until that has completed.
#[derive(Debug)]
pub(super) enum Keep {
    Write(#[allow(dead_code, reason = "held for its drop")] (Rc<OwnedFd>, SharedBuf)),
    Read(#[allow(dead_code, reason = "held for its drop")] Rc<OwnedFd>, DmaBuf),
    Socket(#[allow(dead_code, reason = "held for its drop")] Rc<OwnedFd>),
    Send(Box<Sending>),
    /// Of a file that is opened.
    Path(#[allow(dead_code, reason = "held for its drop")] CString),
}

impl Keep {
    /// The kernel uses it no more; of a zero-copy send it says how that went.
    pub(super) fn released(self, ended: Ended) {
        match (self, ended) {
            // IORING_NOTIF_USAGE_ZC_COPIED, the sign bit.
            (Self::Send(sending), Ended { usage: Some(usage), .. }) => sending.held.released(usage < 0),
            // SAFETY: it was opened for somebody who has gone, and nobody else has seen it.
            (Self::Path(_), Ended { said: fd @ 0.., .. }) => drop(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => {}
        }
    }

    /// Makes the kernel let go of what it would send.
    pub(super) fn insist(&self) {
        if let Self::Send(sending) = self {
            crate::sys::abort(sending.socket.as_raw_fd());
        }
    }
}

/// A zero-copy send: what the kernel reads until it says that it has let go.
pub(super) struct Sending {
    socket: Rc<OwnedFd>,
    held: Rc<dyn Held>,
    /// Points into `held`.
    pieces: Vec<libc::iovec>,
    /// Points to `pieces`.
    message: libc::msghdr,
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sending({} pieces)", self.pieces.len())
    }
}

/// Bytes that stay where they are, and do not change, as long as this lives.
#[cfg_attr(not(feature = "sim"), allow(unreachable_pub, reason = "public for simulators"))]
pub trait Held {
    /// The bytes in order: the same each time.
    fn pieces(&self) -> Vec<&[u8]>;

    /// The kernel has let go of them; whether it had copied them.
    fn released(&self, copied: bool);
}

/// What is known of a task that was started.
#[derive(Default)]
enum Started {
    /// The number is not used.
    #[default]
    Free,
    /// It is running for the first time: the runtime does that before it gives its handle.
    Now,
    Yes(glommio::Task<()>),
    /// It came to its end the first time.
    Over,
}

thread_local! {
    /// The tasks of this executor by number, and free numbers.
    static TASKS: RefCell<(Vec<Started>, Vec<usize>)> = RefCell::default();
}

/// Runs a task on this executor until it ends, or [`end_all`] ends it. Its first step is taken
/// before this returns: it must not need what the caller has borrowed.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    let n = TASKS.with_borrow_mut(|(tasks, free)| {
        let n = free.pop().unwrap_or(tasks.len());
        if n == tasks.len() {
            tasks.push(Started::Now);
        } else {
            tasks[n] = Started::Now;
        }
        n
    });
    let handle = glommio::spawn_local(Tracked::new(async move {
        task.await;
        let over = TASKS.with_borrow_mut(|(tasks, free)| match std::mem::take(&mut tasks[n]) {
            Started::Yes(handle) => {
                free.push(n);
                Some(handle)
            }
            Started::Now => {
                tasks[n] = Started::Over;
                None
            }
            Started::Free | Started::Over => None,
        });
        over.map(glommio::Task::detach);
    }));
    let over = TASKS.with_borrow_mut(|(tasks, free)| {
        if matches!(tasks[n], Started::Over) {
            tasks[n] = Started::Free;
            free.push(n);
            return Some(handle);
        }
        tasks[n] = Started::Yes(handle);
        None
    });
    over.map(glommio::Task::detach);
}

/// Tasks of this executor that were started with [`spawn`] and are not at their end.
pub(crate) fn tasks() -> u64 {
    TASKS.with_borrow(|(tasks, free)| (tasks.len() - free.len()) as u64)
}

/// Ends every task of this executor. The runtime forgets tasks that wait when its thread ends, and
/// with them the files and sockets that they hold.
pub(crate) async fn end_all() {
    loop {
        let left: Vec<_> = TASKS.with_borrow_mut(|(tasks, _)| {
            let handle = |s: &mut Started| match std::mem::take(s) {
                Started::Yes(handle) => Some(handle),
                _ => None,
            };
            tasks.iter_mut().filter_map(handle).collect()
        });
        if left.is_empty() {
            break;
        }
        for task in left {
            task.cancel().await;
        }
    }
    // Tasks that belonged to those are cancelled too, and go when they are looked at next.
    for _ in 0..8 {
        yield_now().await;
    }
}

/// A task that can be cancelled: dropping it does.
pub(crate) type Task = glommio::Task<()>;

/// Runs a task on this executor until it ends or its handle is dropped.
pub(crate) fn spawn_scoped(task: impl Future<Output = ()> + 'static) -> Task {
    glommio::spawn_local(Tracked::new(task))
}

/// Resolves after `pause`.
pub(crate) async fn sleep(pause: Duration) {
    timer(pause).await;
}

/// Lets every other task that is ready run first.
pub(crate) async fn yield_now() {
    hot::requeue().await;
}

/// Lets every other task that is ready run first, if they have waited for long.
pub(crate) async fn yield_if_needed() {
    hot::yield_if_needed().await;
}

/// Nanoseconds on a clock that only goes forward, the same for all cores.
pub(crate) fn now_ns() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    // Never 0, so that 0 can mean "no time".
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

/// Ready after `limit`.
pub(crate) fn timer(limit: Duration) -> impl Future {
    hot::sleep_until(now_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)))
}

/// The same by glommio, for the loop itself.
pub(super) fn glommio_timer(limit: Duration) -> impl Future {
    glommio::timer::Timer::new(limit)
}

/// Aligned memory, from this executor's registered memory where that has room.
#[derive(Debug)]
pub(super) struct Allocation(DmaBuffer);

impl Allocation {
    /// `len` bytes, not zeroed.
    pub(super) fn new(len: usize) -> Self {
        Self(glommio::allocate_dma_buffer(len))
    }

    /// Where they are: they stay there while this moves.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

/// A file that bypasses the page cache; a completed write is on the device.
#[derive(Debug)]
pub(crate) struct DirectFile(Rc<OwnedFd>);

impl DirectFile {
    /// Opens an existing file for `O_DIRECT` and `O_DSYNC`.
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
            .flags(libc::O_RDWR | libc::O_DIRECT | libc::O_DSYNC | libc::O_CLOEXEC)
            .build();
        // SAFETY: what is kept holds the path where it is: a CString is behind a pointer.
        let opening = unsafe { hot::operation(&entry, Keep::Path(path), How::AtOnce) };
        let fd = opening.await.1?;
        // SAFETY: the kernel has just made it, and nobody else has seen it.
        Ok(Self(Rc::new(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })))
    }

    /// Writes the whole buffer at `at` and resolves when it is on the device. May write less than
    /// all, as the kernel may.
    pub(crate) async fn write(&self, buf: SharedBuf, at: u64) -> io::Result<usize> {
        let entry = opcode::Write::new(types::Fd(self.0.as_raw_fd()), buf.as_ptr(), kernel_len(buf.len()));
        // SAFETY: what is kept holds the file open and the bytes where they are.
        let writing =
            unsafe { hot::operation(&entry.offset(at).build(), Keep::Write((self.0.clone(), buf)), How::AtOnce) };
        writing.await.1
    }

    /// Reads `len` bytes at `at`, both aligned. Less at the file's end.
    pub(crate) async fn read(&self, at: u64, len: usize) -> io::Result<SharedBuf> {
        let mut buf = DmaBuf::new(len);
        let into = buf.as_mut().as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(self.0.as_raw_fd()), into, kernel_len(len));
        // SAFETY: what is kept holds the file open and the memory, which has this length, where it is.
        let reading =
            unsafe { hot::operation(&entry.offset(at).build(), Keep::Read(self.0.clone(), buf), How::AtOnce) };
        let (keep, result) = reading.await;
        let Some((Keep::Read(_, mut buf), _)) = keep else { unreachable!("a read keeps what it reads into") };
        let _ = buf.split_off(result?);
        Ok(buf.share())
    }
}

fn kernel_len(len: usize) -> u32 {
    u32::try_from(len).expect("buffers are far below 4 GiB")
}

/// A descriptor for which glommio waits.
#[derive(Debug)]
pub(super) struct Readiness(PollableFd<OwnedFd>);

impl Readiness {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(PollableFd::new(fd).map_err(io::Error::from)?))
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map_err(io::Error::from)
    }
}

/// A non-blocking descriptor whose readiness can be awaited on the executor it was made on.
#[derive(Debug)]
pub(crate) struct Pollable(Rc<OwnedFd>);

impl Pollable {
    /// Takes a non-blocking descriptor.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Rc::new(fd))
    }

    /// Resolves when a read would not block.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.ready(libc::POLLIN).await
    }

    /// Resolves when a write would not block.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.ready(libc::POLLOUT).await
    }

    async fn ready(&self, events: libc::c_short) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(self.0.as_raw_fd()), events as u32).build();
        // SAFETY: what is kept holds the descriptor open; there is no memory.
        let waiting = unsafe { hot::operation(&entry, Keep::Socket(self.0.clone()), How::Whenever) };
        waiting.await.1.map(drop)
    }

    /// Sends from where the bytes are, all but the first `skip`: they are held until the kernel has let
    /// go of them. Says how many bytes it took.
    pub(crate) async fn send_zero_copy(&self, held: Rc<dyn Held>, skip: usize) -> io::Result<usize> {
        // IORING_SEND_ZC_REPORT_USAGE.
        const REPORT_USAGE: u16 = 8;
        let piece = |p: &[u8]| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() };
        let pieces: Vec<_> = super::net::behind(held.pieces(), skip).into_iter().map(piece).collect();
        // SAFETY: msghdr is plain data for which all zeros is a value.
        let message = unsafe { std::mem::zeroed() };
        let mut sending = Box::new(Sending { socket: self.0.clone(), held, pieces, message });
        sending.message.msg_iov = sending.pieces.as_mut_ptr();
        sending.message.msg_iovlen = sending.pieces.len();
        let entry = opcode::SendMsgZc::new(types::Fd(self.0.as_raw_fd()), &raw const sending.message)
            .flags((libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u32)
            .ioprio(REPORT_USAGE)
            .build();
        // SAFETY: what is kept holds the descriptor open, and message, pieces and bytes where they are:
        // all of them are behind pointers that do not move with it.
        let sending = unsafe { hot::operation(&entry, Keep::Send(sending), How::AtOnce) };
        let (kept, result) = sending.await;
        if let Some((keep, ended)) = kept {
            keep.released(ended);
        }
        result
    }

    /// Takes the descriptor back, to hand it to another executor.
    pub(crate) fn into_inner(self) -> io::Result<OwnedFd> {
        // A wait that was given up may hold the other one a little longer.
        Rc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

impl AsRawFd for Pollable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
