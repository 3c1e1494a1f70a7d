//! The runtime: executors pinned to cores, local tasks and timers, direct files, buffers for them,
//! blocking calls on folders, and sockets. Nothing here knows what a batch is.
//!
//! [`ring`] is the one module that names glommio. With the feature `sim`, a thread that has entered
//! a [`world`] runs there instead of on the machine; each function asks first. On the machine the disk's
//! functions ask [`inject`] whether a call is to fail. These questions are all that tests add to the code, and
//! without the feature there is none of them.

/// Returns what follows if this thread is in a world.
macro_rules! in_world {
    ($world:ident => $value:expr) => {
        #[cfg(feature = "sim")]
        if let Some($world) = crate::rt::world::current() {
            return $value;
        }
    };
}

/// Returns the error of a call to the machine's disk that is to fail.
macro_rules! may_fail {
    ($call:ident, $path:expr) => {
        #[cfg(feature = "sim")]
        crate::rt::inject::ask(crate::rt::inject::Call::$call, $path)?;
    };
}

pub(crate) mod disk;
mod dma;
pub(crate) mod file;
mod hot;
#[cfg(test)]
mod hot_tests;
#[cfg(feature = "sim")]
pub mod inject;
pub(crate) mod net;
mod ring;
mod timers;
mod uring;
mod wakers;
pub(crate) mod worker;
#[cfg(feature = "sim")]
pub mod world;

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) use dma::{DmaBuf, SharedBuf, poison_released};
pub(crate) use file::DirectFile;
pub(crate) use uring::enters;

/// A running executor.
pub(crate) enum ExecutorHandle {
    Ring(ring::ExecutorHandle),
    #[cfg(feature = "sim")]
    World(world::TaskId),
}

impl ExecutorHandle {
    /// Resolves once it has ended. On the machine this blocks: it is for threads that run no
    /// executor.
    pub(crate) async fn join(self) -> io::Result<()> {
        match self {
            Self::Ring(handle) => handle.join().map_err(io::Error::other),
            #[cfg(feature = "sim")]
            Self::World(task) => {
                let Some(world) = world::current() else { return Ok(()) };
                std::future::poll_fn(|cx| world.poll_ended(task, cx)).await;
                Ok(())
            }
        }
    }
}

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
    in_world!(world => {
        let outer = AT_END.take();
        let main = main();
        let kept = AT_END.replace(outer);
        let main = async move {
            let _kept = kept;
            main.await;
        };
        Ok(ExecutorHandle::World(world.start_core(name, Box::pin(main))))
    });
    ring::start_executor(name, cpu, io_memory, main).map(ExecutorHandle::Ring)
}

thread_local! {
    static AT_END: RefCell<Vec<Box<dyn Any>>> = RefCell::default();
}

/// Keeps `what` until this executor ends, and drops it then, however it ends: after a panic the
/// runtime forgets its tasks with all that they hold. For the part of an executor's `main` that runs
/// before its first await.
pub(crate) fn keep_until_executor_ends(what: impl Any) {
    AT_END.with_borrow_mut(|kept| kept.push(Box::new(what)));
}

/// Runs a task on this executor until it ends, or [`end_all`] ends it. Its first step is taken
/// before this returns: it must not need what the caller has borrowed.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    in_world!(world => {
        world.spawn(Box::pin(task));
    });
    ring::spawn(task);
}

/// Tasks of this executor that run; 0 in a simulated world.
pub(crate) fn tasks() -> u64 {
    in_world!(_world => 0);
    ring::tasks()
}

/// Ends every task of this executor but the one that calls. The runtime forgets tasks that wait when
/// its thread ends, and with them the files and sockets that they hold.
pub(crate) async fn end_all() {
    in_world!(world => world.cancel_others());
    ring::end_all().await;
}

/// A task that can be cancelled: dropping it does.
pub(crate) enum Task {
    Ring(#[allow(dead_code, reason = "held for its drop")] ring::Task),
    #[cfg(feature = "sim")]
    World(world::TaskId),
}

#[cfg(feature = "sim")]
impl Drop for Task {
    fn drop(&mut self) {
        if let Self::World(task) = self
            && let Some(world) = world::current()
        {
            world.cancel(*task);
        }
    }
}

/// Runs a task on this executor until it ends or its handle is dropped.
pub(crate) fn spawn_scoped(task: impl Future<Output = ()> + 'static) -> Task {
    in_world!(world => Task::World(world.spawn(Box::pin(task))));
    Task::Ring(ring::spawn_scoped(task))
}

/// Resolves after `pause`.
pub(crate) async fn sleep(pause: Duration) {
    in_world!(world => world.sleep_until(world.now_ns().saturating_add(nanoseconds(pause))).await);
    ring::sleep(pause).await;
}

/// Lets every other task that is ready run first.
pub(crate) async fn yield_now() {
    in_world!(_world => YieldOnce(false).await);
    ring::yield_now().await;
}

/// Whether this executor has been busy for long enough that it should look at I/O.
pub(crate) async fn yield_if_needed() {
    in_world!(world => {
        let mut one = [0];
        world.random(&mut one);
        if one[0] & 1 == 0 {
            YieldOnce(false).await;
        }
    });
    ring::yield_if_needed().await;
}

/// Pending once.
#[cfg(feature = "sim")]
struct YieldOnce(bool);

#[cfg(feature = "sim")]
impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// From now on this executor looks for news for so long before it sleeps, and leaves its core to others
/// meanwhile.
pub(crate) fn spin_for(spin: Duration) {
    if on_machine() {
        hot::spin_for(spin);
    }
}

/// Nanoseconds on a clock that only goes forward, the same for all cores. Never 0, so that 0 can
/// mean "no time".
pub(crate) fn now_ns() -> u64 {
    in_world!(world => world.now_ns());
    ring::now_ns()
}

/// This process's number; 1 in a simulated world, where nothing may depend on the machine.
pub(crate) fn process_id() -> u32 {
    in_world!(_world => 1);
    std::process::id()
}

/// Microseconds since 1970; may jump.
pub(crate) fn wall_us() -> u64 {
    in_world!(world => world.wall_us());
    crate::sys::wall_us()
}

/// Fills a buffer with random bytes.
pub(crate) fn random(out: &mut [u8]) -> io::Result<()> {
    in_world!(world => {
        world.random(out);
        Ok(())
    });
    crate::sys::random(out)
}

/// Whether this thread runs on the machine, whose limits count then.
pub(crate) fn on_machine() -> bool {
    in_world!(_world => false);
    true
}

/// A blocking pause of a thread that runs no executor.
pub(crate) fn block_for(pause: Duration) {
    // Blocking calls take no time in a world.
    if on_machine() {
        std::thread::sleep(pause);
    }
}

/// Runs `future`, or gives up after `limit`.
pub(crate) async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    in_world!(world => {
        let until = world.now_ns().saturating_add(nanoseconds(limit));
        first(future, world.sleep_until(until)).await
    });
    first(future, ring::timer(limit)).await
}

async fn first<T>(future: impl Future<Output = T>, timer: impl Future) -> Option<T> {
    let (mut future, mut timer) = (pin!(future), pin!(timer));
    std::future::poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(out) = Pin::as_mut(&mut future).poll(cx) {
            return Poll::Ready(Some(out));
        }
        Pin::as_mut(&mut timer).poll(cx).map(|_| None)
    })
    .await
}

#[cfg(feature = "sim")]
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
