//! Tasks of all nodes, and one scheduler for them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use towline::world::{LocalFuture, TaskId};

use super::NodeId;

/// Tasks that are ready, by number.
pub(super) type Ready = Arc<Mutex<VecDeque<u64>>>;

/// Wakes a task: puts it among those that are ready, once.
pub(super) struct TaskWake {
    id: u64,
    queued: AtomicBool,
    ready: Ready,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
        }
    }
}

/// A task.
pub(super) struct Task {
    id: u64,
    /// `None` while it runs.
    pub(super) future: Option<LocalFuture<()>>,
    pub(super) node: NodeId,
    pub(super) core: u32,
    pub(super) is_main: bool,
    wake: Arc<TaskWake>,
    pub(super) waker: Waker,
    /// Who waits for its end.
    pub(super) joiners: Vec<Waker>,
    /// Dropped when its step is done.
    pub(super) cancelled: bool,
}

/// All tasks.
#[derive(Default)]
pub(super) struct Tasks {
    slots: Vec<Option<Task>>,
    free: Vec<u32>,
    uses: u64,
    pub(super) ready: Ready,
}

const INDEX: u64 = (1 << 20) - 1;

impl Tasks {
    pub(super) fn add(&mut self, future: LocalFuture<()>, node: NodeId, core: u32, is_main: bool) -> TaskId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.uses += 1;
        let id = (self.uses << 20) | u64::from(index);
        let wake = Arc::new(TaskWake { id, queued: AtomicBool::new(false), ready: self.ready.clone() });
        let waker = Waker::from(wake.clone());
        let (joiners, cancelled) = (Vec::new(), false);
        let task = Task { id, future: Some(future), node, core, is_main, wake, waker, joiners, cancelled };
        self.slots[index as usize] = Some(task);
        TaskId(id)
    }

    pub(super) fn get(&mut self, id: TaskId) -> Option<&mut Task> {
        self.slots.get_mut((id.0 & INDEX) as usize)?.as_mut().filter(|task| task.id == id.0)
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Task> {
        self.get(id)?;
        let index = (id.0 & INDEX) as u32;
        self.free.push(index);
        self.slots[index as usize].take()
    }

    /// The tasks that `which` chooses, in order of their numbers.
    pub(super) fn of(&self, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let mut all: Vec<u64> = self.slots.iter().flatten().filter(|t| which(t)).map(|t| t.id).collect();
        all.sort_unstable();
        all.into_iter().map(TaskId).collect()
    }

    pub(super) fn make_ready(&mut self, id: TaskId) {
        if let Some(task) = self.get(id) {
            task.wake.wake_by_ref();
        }
    }

    /// The next task that is ready: the one at `pick` of how many there are.
    pub(super) fn next(&mut self, pick: impl FnOnce(u64) -> u64) -> Option<TaskId> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match ready.len() {
            0 => return None,
            1 => 0,
            n => pick(n as u64) as usize,
        };
        let id = if at == 0 { ready.pop_front() } else { ready.swap_remove_back(at) };
        drop(ready);
        id.map(TaskId)
    }

    /// A task begins a step: a wake from now on makes it ready again.
    pub(super) fn begin(&mut self, id: TaskId) -> Option<(LocalFuture<()>, Waker, NodeId, u32)> {
        let task = self.get(id)?;
        task.wake.queued.store(false, Ordering::Relaxed);
        Some((task.future.take()?, task.waker.clone(), task.node, task.core))
    }
}

/// Whose step it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    pub(super) node: NodeId,
    pub(super) core: u32,
    pub(super) task: u64,
}

/// Puts back whose step it was.
pub(super) struct Restore<'a>(pub(super) &'a Cell<Now>, pub(super) Now);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}
