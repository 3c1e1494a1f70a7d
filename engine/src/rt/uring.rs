//! An io_uring of our own for what happens with every batch: durable writes, reads, and waiting for
//! sockets. An operation keeps what the kernel uses until it has completed, whoever forgets about it.
//!
//! One call submits what is new, lets the kernel finish what is done, and waits, if asked to. The
//! rings are set up so that completions are only delivered in that call, on this thread
//! (`IORING_SETUP_DEFER_TASKRUN`, Linux 6.1), where the kernel can; without that all works the same.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Poll, Waker};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

/// Entries of the submission queue; when it is full it is submitted. The kernel keeps completions for
/// which there is no room.
const ENTRIES: u32 = 256;
/// What completions of cancellations carry: nobody waits for those.
const NOBODY: u64 = u64::MAX;
/// What the completion of the bell carries.
const BELL: u64 = u64::MAX - 1;

/// Where an operation is. `K` is what it keeps alive.
#[derive(Debug)]
enum Op<K> {
    Free,
    /// The kernel may use what is kept.
    InFlight(K, Option<Waker>),
    /// As that, but nobody waits for it any more.
    Forgotten(#[allow(dead_code, reason = "held for its drop")] K),
    Done(K, i32),
}

/// The rings, and the operations in them.
pub(super) struct Uring<K> {
    ring: IoUring,
    ops: Vec<Op<K>>,
    free: Vec<u32>,
    /// Operations that the kernel has not completed.
    in_flight: usize,
    /// Whether the bell's descriptor is waited for.
    bell_armed: bool,
}

impl<K> Uring<K> {
    pub(super) fn new() -> io::Result<Self> {
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(8 * ENTRIES)
            .build(ENTRIES);
        let ring = match modern {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            other => other?,
        };
        Ok(Self { ring, ops: Vec::new(), free: Vec::new(), in_flight: 0, bell_armed: false })
    }

    /// Ready to read when there are completions.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Starts an operation; it goes to the kernel with the next [`Uring::enter`].
    ///
    /// # Safety
    /// What the entry points to, memory and descriptor, must stay valid as long as `keep` lives.
    pub(super) unsafe fn start(&mut self, entry: &Entry, keep: K) -> u32 {
        let op = self.free.pop().unwrap_or_else(|| {
            self.ops.push(Op::Free);
            u32::try_from(self.ops.len() - 1).expect("fewer operations than fit into memory")
        });
        self.ops[op as usize] = Op::InFlight(keep, None);
        self.in_flight += 1;
        // SAFETY: the caller says so, and `keep` stays here until the completion has been seen.
        unsafe { self.push(&entry.clone().user_data(u64::from(op))) };
        op
    }

    /// # Safety
    /// What the entry points to must stay valid until its completion has been seen.
    unsafe fn push(&mut self, entry: &Entry) {
        // SAFETY: the caller says so.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(None);
        }
    }

    /// What came of an operation, once; until then `waker` is told.
    pub(super) fn poll(&mut self, op: u32, waker: &Waker) -> Poll<(K, i32)> {
        match &mut self.ops[op as usize] {
            Op::InFlight(_, waiting) => {
                match waiting {
                    Some(w) => w.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                Poll::Pending
            }
            Op::Done(..) => {
                let Op::Done(keep, result) = std::mem::replace(&mut self.ops[op as usize], Op::Free) else {
                    unreachable!("it was just seen");
                };
                self.free.push(op);
                Poll::Ready((keep, result))
            }
            Op::Free | Op::Forgotten(_) => unreachable!("operation {op} is nobody's"),
        }
    }

    /// Nobody waits for it any more. With `cancel` the kernel is asked to give it up.
    pub(super) fn forget(&mut self, op: u32, cancel: bool) -> Option<K> {
        match std::mem::replace(&mut self.ops[op as usize], Op::Free) {
            Op::InFlight(keep, _) => {
                self.ops[op as usize] = Op::Forgotten(keep);
                if cancel {
                    let entry = opcode::AsyncCancel::new(u64::from(op)).build().user_data(NOBODY);
                    // SAFETY: it points to nothing.
                    unsafe { self.push(&entry) };
                }
                None
            }
            Op::Done(keep, _) => {
                self.free.push(op);
                Some(keep)
            }
            Op::Free | Op::Forgotten(_) => unreachable!("operation {op} is nobody's"),
        }
    }

    /// Waits for a descriptor to be readable, as [`Seen::bell`], once; it must stay open as long as
    /// this lives.
    pub(super) fn arm_bell(&mut self, fd: RawFd) {
        if !std::mem::replace(&mut self.bell_armed, true) {
            let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(BELL);
            // SAFETY: it points to nothing, and the descriptor stays open.
            unsafe { self.push(&entry) };
        }
    }

    /// Whether the kernel should be entered although nothing is to be waited for.
    pub(super) fn has_news(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun()
    }

    /// Submits what is new. With a time, waits until something has completed, at most so long: says
    /// whether nothing has.
    ///
    /// # Panics
    /// If the kernel refuses: then nothing can go on.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> bool {
        let entered = match wait {
            None => self.ring.submit(),
            Some(wait) => {
                let time = types::Timespec::from(wait);
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match entered.map_err(|e| e.raw_os_error()) {
            Ok(_) | Err(Some(libc::ETIME)) => wait.is_some() && self.ring.completion().is_empty(),
            // The kernel wants completions to be taken first, has no memory just now, or was interrupted.
            Err(Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) => false,
            Err(e) => panic!("io_uring_enter: error {e:?}"),
        }
    }

    /// Takes what has completed; who waits for it is put into `wake`.
    pub(super) fn reap(&mut self, wake: &mut Vec<Waker>) -> Seen<K> {
        let mut seen = Seen { completions: 0, bell: false, kept: Vec::new() };
        for cqe in self.ring.completion() {
            seen.completions += 1;
            match cqe.user_data() {
                NOBODY => {}
                BELL => (self.bell_armed, seen.bell) = (false, true),
                op => {
                    self.in_flight -= 1;
                    let slot = &mut self.ops[op as usize];
                    match std::mem::replace(slot, Op::Free) {
                        Op::InFlight(keep, waker) => {
                            *slot = Op::Done(keep, cqe.result());
                            wake.extend(waker);
                        }
                        Op::Forgotten(keep) => {
                            self.free.push(op as u32);
                            seen.kept.push(keep);
                        }
                        Op::Free | Op::Done(..) => unreachable!("operation {op} completed twice"),
                    }
                }
            }
        }
        seen
    }

    /// Asks the kernel to give up whatever waits for a socket, and waits until it uses nothing any
    /// more. What was kept is given back.
    pub(super) fn end(&mut self) -> Vec<K> {
        let mut kept = Vec::new();
        for op in 0..self.ops.len() as u32 {
            if matches!(self.ops[op as usize], Op::InFlight(..)) {
                kept.extend(self.forget(op, true));
            }
        }
        while self.in_flight > 0 {
            self.enter(Some(Duration::from_millis(10)));
            kept.extend(self.reap(&mut Vec::new()).kept);
        }
        kept
    }
}

/// What [`Uring::reap`] found.
pub(super) struct Seen<K> {
    pub(super) completions: usize,
    /// The bell's descriptor is readable.
    pub(super) bell: bool,
    /// What forgotten operations have kept: to be dropped where nothing is borrowed.
    pub(super) kept: Vec<K>,
}
