//! An io_uring of our own for what happens with every batch: durable writes, reads, and waiting for
//! sockets. An operation keeps what the kernel uses until it has completed, whoever forgets about it.
//!
//! One call submits what is new, lets the kernel finish what is done, and waits, if asked to. The
//! rings are set up so that completions are only delivered in that call, on this thread
//! (`IORING_SETUP_DEFER_TASKRUN`, Linux 6.1), where the kernel can; without that all works the same.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};

/// Entries of the submission queue; when it is full it is submitted. The kernel keeps completions for
/// which there is no room.
const ENTRIES: u32 = 256;
/// What completions of cancellations carry: nobody waits for those.
const NOBODY: u64 = u64::MAX;
/// What the completion of the bell carries.
const BELL: u64 = u64::MAX - 1;

/// Calls of the kernel, and those of them that could wait, of all rings of this process.
static ENTERS: AtomicU64 = AtomicU64::new(0);
static SLEEPS: AtomicU64 = AtomicU64::new(0);
/// Somebody has asked. Until then no core changes a number that all of them share.
static COUNTS: AtomicBool = AtomicBool::new(false);

/// How often this process's cores have entered the kernel for their rings, and how often of these to sleep until
/// something happens: since this was asked first, so that is 0.
pub(crate) fn enters() -> (u64, u64) {
    COUNTS.store(true, Ordering::Relaxed);
    (ENTERS.load(Ordering::Relaxed), SLEEPS.load(Ordering::Relaxed))
}

/// Where an operation is. `K` is what it keeps alive.
///
/// Most say one thing and are over. A zero-copy send says twice: how much it took, and later that the
/// kernel has let go of the memory.
#[derive(Debug)]
enum Op<K> {
    Free,
    /// It has said nothing yet.
    InFlight(K, Option<Waker>),
    /// It has said what came of it, and nobody has looked; the kernel may still use what is kept.
    Said(K, i32, Option<Ended>),
    /// As that, or it has said nothing yet; but somebody has looked, or nobody will. What it said, if
    /// it has.
    Left(K, Option<i32>),
}

/// The kernel is done with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// What came of it.
    pub(super) said: i32,
    /// How a zero-copy send went.
    pub(super) usage: Option<i32>,
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

    /// What came of an operation, once; until then `waker` is told. What it has kept is given back if
    /// the kernel is done with it; if not, [`Uring::reap`] gives it.
    pub(super) fn poll(&mut self, op: u32, waker: &Waker) -> Poll<(Option<(K, Ended)>, i32)> {
        let slot = &mut self.ops[op as usize];
        match std::mem::replace(slot, Op::Free) {
            Op::InFlight(keep, waiting) => {
                let waiting = match waiting {
                    Some(known) if known.will_wake(waker) => known,
                    _ => waker.clone(),
                };
                *slot = Op::InFlight(keep, Some(waiting));
                Poll::Pending
            }
            Op::Said(keep, result, Some(ended)) => {
                self.free.push(op);
                Poll::Ready((Some((keep, ended)), result))
            }
            Op::Said(keep, result, None) => {
                *slot = Op::Left(keep, Some(result));
                Poll::Ready((None, result))
            }
            Op::Free | Op::Left(..) => unreachable!("operation {op} is nobody's"),
        }
    }

    /// Nobody waits for it any more. With `cancel` the kernel is asked to give it up.
    pub(super) fn forget(&mut self, op: u32, cancel: bool) -> Option<(K, Ended)> {
        let slot = &mut self.ops[op as usize];
        match std::mem::replace(slot, Op::Free) {
            Op::InFlight(keep, _) => {
                *slot = Op::Left(keep, None);
                if cancel {
                    let entry = opcode::AsyncCancel::new(u64::from(op)).build().user_data(NOBODY);
                    // SAFETY: it points to nothing.
                    unsafe { self.push(&entry) };
                }
                None
            }
            Op::Said(keep, _, Some(ended)) => {
                self.free.push(op);
                Some((keep, ended))
            }
            Op::Said(keep, result, None) => {
                *slot = Op::Left(keep, Some(result));
                None
            }
            Op::Free | Op::Left(..) => unreachable!("operation {op} is nobody's"),
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

    /// Whether something has completed that was not taken yet.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Submits what is new. With a time, waits until something has completed, at most so long: says
    /// whether nothing has.
    ///
    /// # Panics
    /// If the kernel refuses: then nothing can go on.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> bool {
        if COUNTS.load(Ordering::Relaxed) {
            ENTERS.fetch_add(1, Ordering::Relaxed);
            SLEEPS.fetch_add(u64::from(wait.is_some()), Ordering::Relaxed);
        }
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
                    let more = cqueue::more(cqe.flags());
                    self.in_flight -= usize::from(!more);
                    // A send that took nothing is let go of too, and says nothing by it.
                    let ended = |said: i32| {
                        let usage = (cqueue::notif(cqe.flags()) && said >= 0).then_some(cqe.result());
                        (!more).then_some(Ended { said, usage })
                    };
                    let slot = &mut self.ops[op as usize];
                    match std::mem::replace(slot, Op::Free) {
                        Op::InFlight(keep, waker) => {
                            *slot = Op::Said(keep, cqe.result(), ended(cqe.result()));
                            wake.extend(waker);
                        }
                        Op::Said(keep, said, _) => *slot = Op::Said(keep, said, ended(said)),
                        Op::Left(keep, said) => match ended(said.unwrap_or(cqe.result())) {
                            None => *slot = Op::Left(keep, said.or(Some(cqe.result()))),
                            Some(ended) => {
                                self.free.push(op as u32);
                                seen.kept.push((keep, ended));
                            }
                        },
                        Op::Free => unreachable!("operation {op} was over"),
                    }
                }
            }
        }
        seen
    }

    /// Asks the kernel to give up whatever waits for a socket, and waits until it uses nothing any
    /// more. Whatever is still kept after `patience` is given to `insist`.
    pub(super) fn end(&mut self, patience: Duration, insist: impl Fn(&K)) -> Vec<(K, Ended)> {
        let mut kept = Vec::new();
        for op in 0..self.ops.len() as u32 {
            match &self.ops[op as usize] {
                Op::InFlight(..) => kept.extend(self.forget(op, true)),
                Op::Said(..) => kept.extend(self.forget(op, false)),
                Op::Free | Op::Left(..) => {}
            }
        }
        let began = Instant::now();
        let mut insisted = false;
        while self.in_flight > 0 {
            self.enter(Some(Duration::from_millis(10)));
            kept.extend(self.reap(&mut Vec::new()).kept);
            if began.elapsed() > patience && !std::mem::replace(&mut insisted, true) {
                for op in &self.ops {
                    if let Op::Left(keep, _) = op {
                        insist(keep);
                    }
                }
            }
        }
        kept
    }
}

/// What [`Uring::reap`] found.
pub(super) struct Seen<K> {
    pub(super) completions: usize,
    /// The bell's descriptor is readable.
    pub(super) bell: bool,
    /// What operations have kept that nobody waits for: to be dropped where nothing is borrowed.
    pub(super) kept: Vec<(K, Ended)>,
}
