//! Threads for what would block a core: zero-filling, renames, superblock writes.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::oneshot;

/// A job, or `None` for the thread to end.
type Job = Option<Box<dyn FnOnce() + Send>>;

/// A thread that runs jobs in order until it is told to end.
#[derive(Clone, Debug)]
pub(crate) struct Worker(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Thread(Sender<Job>),
    #[cfg(feature = "sim")]
    World(std::sync::Arc<world_worker::Queue>),
}

/// What there is to wait for after [`Worker::end`].
pub(crate) enum WorkerThread {
    Thread(JoinHandle<()>),
    #[cfg(feature = "sim")]
    World(super::ExecutorHandle),
}

impl WorkerThread {
    /// Waits for its end; on the machine this blocks.
    pub(crate) async fn join(self) {
        match self {
            Self::Thread(thread) => drop(thread.join()),
            #[cfg(feature = "sim")]
            Self::World(task) => drop(task.join().await),
        }
    }
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(name: &str) -> io::Result<(Self, WorkerThread)> {
        in_world!(world => {
            let queue = std::sync::Arc::new(world_worker::Queue::default());
            let task = world.start_core(name, Box::pin(world_worker::run(queue.clone())));
            Ok((Self(Inner::World(queue)), WorkerThread::World(super::ExecutorHandle::World(task))))
        });
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for job in queue.into_iter().map_while(|job| job) {
                job();
            }
        })?;
        Ok((Self(Inner::Thread(jobs)), WorkerThread::Thread(thread)))
    }

    fn push(&self, job: Job) {
        match &self.0 {
            // A thread that has ended drops the job, and with it the sender of its reply.
            Inner::Thread(jobs) => drop(jobs.send(job)),
            #[cfg(feature = "sim")]
            Inner::World(queue) => queue.push(job),
        }
    }

    /// Runs `job` on the thread; resolves to what it returns, or to `Gone` if the thread has ended.
    pub(crate) fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (reply, value) = oneshot::channel();
        self.push(Some(Box::new(move || reply.send(job()))));
        value
    }

    /// Ends the thread after the jobs it was given.
    pub(crate) fn end(&self) {
        self.push(None);
    }
}

#[cfg(feature = "sim")]
mod world_worker {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::task::Poll;
    use std::time::Duration;

    use atomic_waker::AtomicWaker;

    use super::Job;
    use crate::rt::world;

    /// Jobs of a worker that is a task.
    #[derive(Default)]
    pub(super) struct Queue {
        /// `None` once the worker has ended.
        jobs: Mutex<VecDeque<Job>>,
        waker: AtomicWaker,
        ended: std::sync::atomic::AtomicBool,
    }

    impl std::fmt::Debug for Queue {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Queue")
        }
    }

    impl Queue {
        pub(super) fn push(&self, job: Job) {
            if !self.ended.load(std::sync::atomic::Ordering::Relaxed) {
                self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
                self.waker.wake();
            }
        }

        fn pop(&self) -> Option<Job> {
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        }
    }

    /// Runs jobs; each takes as long as the world says.
    pub(super) async fn run(queue: Arc<Queue>) {
        loop {
            let job = std::future::poll_fn(|cx| {
                queue.waker.register(cx.waker());
                queue.pop().map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            let Some(job) = job else { break };
            let takes = world::current().map_or(0, |world| world.job_ns());
            crate::rt::sleep(Duration::from_nanos(takes)).await;
            job();
        }
        queue.ended.store(true, std::sync::atomic::Ordering::Relaxed);
        queue.jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
