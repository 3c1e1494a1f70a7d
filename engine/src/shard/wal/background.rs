//! Threads for what would block a core: zero-filling, renames, superblock writes.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::oneshot;

/// A job, or `None` for the thread to end.
type Job = Option<Box<dyn FnOnce() + Send>>;

/// A thread that runs jobs in order until it is told to end.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    jobs: Sender<Job>,
}

impl Background {
    /// Starts the thread.
    pub(crate) fn start(name: &str) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for job in queue.into_iter().map_while(|job| job) {
                job();
            }
        })?;
        Ok((Self { jobs }, thread))
    }

    /// Runs `job` on the thread; resolves to what it returns, or to `Gone` if the thread has ended.
    pub(crate) fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (reply, value) = oneshot::channel();
        // A thread that has ended drops the job, and with it the sender.
        let _ = self.jobs.send(Some(Box::new(move || reply.send(job()))));
        value
    }

    /// Ends the thread after the jobs it was given.
    pub(crate) fn end(&self) {
        let _ = self.jobs.send(None);
    }
}
