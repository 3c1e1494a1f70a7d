//! What a node sees of the world.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use towline::telemetry::Counters;
use towline::world::{self, Listener, LocalFuture, ShardView, Socket, TaskId, World};

use super::disk::NodeDisk;
use super::faults::{JOB_NS, JOB_NS_MAX};
use super::{SimWorld, Sleep, here};

/// The wall clock's first second.
const WALL_US: i64 = 1_700_000_000_000_000;

impl World for SimWorld {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wall_us(&self) -> u64 {
        if self.strikes("clock jump", |f| f.clock_jump) {
            let jump = self.rng().below(20_000_000) as i64 - 10_000_000;
            self.wall_skew_us.set(self.wall_skew_us.get() + jump);
        }
        (WALL_US + (self.now_ns.get() / 1000) as i64 + self.wall_skew_us.get()) as u64
    }

    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.rng().next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    fn start_core(&self, _name: &str, main: LocalFuture<()>) -> TaskId {
        self.add_core(self.running.get().node, main)
    }

    fn spawn(&self, task: LocalFuture<()>) -> TaskId {
        let now = self.running.get();
        let id = self.tasks.borrow_mut().add(task, now.node, now.core, false);
        self.poll(id);
        id
    }

    fn cancel(&self, task: TaskId) {
        let runs = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get(task) else { return };
            task.cancelled = true;
            task.future.is_none()
        };
        if !runs {
            self.remove(task);
        }
    }

    fn cancel_others(&self) {
        let now = self.running.get();
        let others = self.tasks.borrow().of(|t| t.node == now.node && t.core == now.core && !t.is_main);
        others.into_iter().filter(|id| id.0 != now.task).for_each(|id| self.cancel(id));
    }

    fn poll_ended(&self, task: TaskId, cx: &mut Context<'_>) -> Poll<()> {
        match self.tasks.borrow_mut().get(task) {
            None => Poll::Ready(()),
            Some(task) => {
                task.joiners.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn job_ns(&self) -> u64 {
        let most = self.rates().job_ns;
        if most <= JOB_NS {
            return JOB_NS;
        }
        // All lengths are as frequent as those of half of it.
        let upto = most >> self.rng().below(u64::from((most / JOB_NS).ilog2()) + 1);
        let took = self.rng().within((JOB_NS, upto));
        if self.strikes("slow job", |f| f.slow_disk) { (took * 100).min(JOB_NS_MAX) } else { took }
    }

    fn sleep_until(&self, at_ns: u64) -> LocalFuture<()> {
        let world = here().map_or_else(std::rc::Weak::new, |world| Rc::downgrade(&world));
        Box::pin(Sleep { world, at_ns, waits: None })
    }

    fn disk(&self) -> Rc<dyn world::Disk> {
        let node = self.running.get().node;
        Rc::new(NodeDisk { node, process: self.process(node) })
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<Arc<dyn Listener>> {
        self.listen_at(addr)
    }

    fn connect(&self, addr: SocketAddr) -> LocalFuture<io::Result<Arc<dyn Socket>>> {
        let node = self.running.get().node;
        Box::pin(super::net::connect(node, addr))
    }

    fn watch(&self, look: Box<dyn Fn() -> Option<ShardView>>) {
        let node = self.running.get().node;
        let machine = &mut self.machines.borrow_mut()[node.0 as usize];
        machine.looks.push(look);
        machine.views = None;
    }

    fn counted(&self, counters: &Counters) {
        let mut did = self.did.borrow_mut();
        for (name, count) in counters.all() {
            *did.entry(name).or_default() += count;
        }
    }
}
