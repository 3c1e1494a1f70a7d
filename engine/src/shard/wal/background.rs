//! Threads for what would block a core: zero-filling, renames, superblock writes.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs in order. It ends, after the jobs it was given, when the last handle is
/// dropped.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    jobs: Sender<Job>,
}

impl Background {
    /// Starts the thread.
    pub(crate) fn start(name: &str) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for job in queue {
                job();
            }
        })?;
        Ok((Self { jobs }, thread))
    }

    /// Runs `job` on the thread; resolves to what it returns.
    pub(crate) fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (reply, value) = oneshot::channel();
        // The thread outlives every handle, so the job is taken.
        assert!(self.jobs.send(Box::new(move || reply.send(job()))).is_ok(), "the background thread is gone");
        value
    }
}
