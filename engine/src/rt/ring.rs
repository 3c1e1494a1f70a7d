//! glommio: the one module that names it, so that it can be swapped. What is offered, and what it
//! promises, stands in [`super`].

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use glommio::io::{DmaBuffer, DmaFile, OpenOptions, PollableFd, ReadResult};
use glommio::{LocalExecutorBuilder, Placement};

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
    LocalExecutorBuilder::new(placement).name(name).io_memory(io_memory).spawn(main).map_err(io::Error::from)
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
    let handle = glommio::spawn_local(async move {
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
    });
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
    // Files that were dropped are closed with the next I/O.
    sleep(Duration::from_millis(1)).await;
}

/// A task that can be cancelled: dropping it does.
pub(crate) type Task = glommio::Task<()>;

/// Runs a task on this executor until it ends or its handle is dropped.
pub(crate) fn spawn_scoped(task: impl Future<Output = ()> + 'static) -> Task {
    glommio::spawn_local(task)
}

/// Resolves after `pause`.
pub(crate) async fn sleep(pause: Duration) {
    glommio::timer::sleep(pause).await;
}

/// Lets every other task that is ready run first.
pub(crate) async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// Whether this executor has been busy for long enough that it should look at I/O.
pub(crate) async fn yield_if_needed() {
    glommio::yield_if_needed().await;
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
    glommio::timer::Timer::new(limit)
}

/// A buffer that the device can read from and write to directly: aligned, from this executor's
/// registered memory where that has room.
#[derive(Debug)]
pub(crate) struct DmaBuf(DmaBuffer);

impl DmaBuf {
    /// A buffer of `len` bytes, not zeroed: whoever fills it says what is in it.
    pub(crate) fn new(len: usize) -> Self {
        Self(glommio::allocate_dma_buffer(len))
    }

    /// Shortens it.
    pub(crate) fn trim(&mut self, len: usize) {
        self.0.trim_to_size(len);
    }

    /// Shares it; from now on it does not change.
    pub(crate) fn share(self) -> SharedBuf {
        SharedBuf(Rc::new(self.0))
    }
}

impl AsRef<[u8]> for DmaBuf {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl AsMut<[u8]> for DmaBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

/// A buffer that the device and any number of links read at the same time.
#[derive(Clone, Debug)]
pub(crate) struct SharedBuf(Rc<DmaBuffer>);

impl SharedBuf {
    /// Overwrites it.
    ///
    /// # Panics
    /// If it is shared, or `bytes` are not as long.
    pub(crate) fn refill(&mut self, bytes: &[u8]) {
        Rc::get_mut(&mut self.0).expect("nobody else reads it").as_bytes_mut().copy_from_slice(bytes);
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Bytes read from a direct file; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ReadBuf(ReadResult);

impl Deref for ReadBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// A file that bypasses the page cache; a completed write is on the device.
#[derive(Debug)]
pub(crate) struct DirectFile(DmaFile);

impl DirectFile {
    /// Opens an existing file for `O_DIRECT` and `O_DSYNC`.
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DSYNC);
        let mut opening = std::pin::pin!(options.dma_open(path));
        // glommio asks for the file system by the path once more after the open, and panics if that
        // has gone in between.
        let opened = std::future::poll_fn(|cx| {
            let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| opening.as_mut().poll(cx)));
            polled.unwrap_or_else(|_| {
                let e = io::Error::new(io::ErrorKind::NotFound, "it was moved away while it was opened");
                Poll::Ready(Err(e.into()))
            })
        });
        Ok(Self(opened.await.map_err(io::Error::from)?))
    }

    /// Writes the whole buffer at `at` and resolves when it is on the device. May write less than
    /// all, as the kernel may.
    pub(crate) async fn write(&self, buf: SharedBuf, at: u64) -> io::Result<usize> {
        self.0.write_rc_at(buf.0, at).await.map_err(io::Error::from)
    }

    /// Reads `len` bytes at `at`, both aligned. Less at the file's end.
    pub(crate) async fn read(&self, at: u64, len: usize) -> io::Result<ReadBuf> {
        Ok(ReadBuf(self.0.read_at_aligned(at, len).await.map_err(io::Error::from)?))
    }

    /// Closes it.
    pub(crate) async fn close(self) {
        if let Err(e) = self.0.close().await {
            tracing::warn!("closing a segment: {e}");
        }
    }
}

/// A non-blocking descriptor whose readiness can be awaited on the executor it was made on.
#[derive(Debug)]
pub(crate) struct Pollable(PollableFd<OwnedFd>);

impl Pollable {
    /// Takes a non-blocking descriptor.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(PollableFd::new(fd).map_err(io::Error::from)?))
    }

    /// Resolves when a read would not block.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map_err(io::Error::from)
    }

    /// Resolves when a write would not block.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map_err(io::Error::from)
    }

    /// Takes the descriptor back, to hand it to another executor.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }
}

impl AsRawFd for Pollable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.get_ref().as_raw_fd()
    }
}
