//! The loop on the real kernel.

use std::cell::{Cell, UnsafeCell};
use std::future::poll_fn;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use super::dma::DmaBuf;
use super::ring::{self, DirectFile, Pollable};
use crate::oneshot;
use crate::sync::AtomicWaker;

/// Runs `main` on an executor of its own; gives what it says.
fn run<T: Send + 'static, F: Future<Output = T> + 'static>(main: impl FnOnce() -> F + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    let executor = ring::start_executor("test", None, 1 << 20, move || async move {
        let said = main().await;
        ring::end_all().await;
        tell.send(said).unwrap();
    });
    let said = told.recv().unwrap();
    executor.unwrap().join().unwrap();
    said
}

fn file_of(dir: &Path, bytes: usize) -> std::path::PathBuf {
    let path = dir.join("file");
    std::fs::write(&path, vec![0; bytes]).unwrap();
    path
}

#[test]
fn another_thread_wakes_a_task_however_deep_the_core_sleeps() {
    wakes_of_another_thread_arrive(Duration::ZERO);
}

#[test]
fn another_thread_wakes_a_task_while_the_core_spins_and_as_it_falls_asleep() {
    wakes_of_another_thread_arrive(Duration::from_micros(3));
    wakes_of_another_thread_arrive(Duration::from_millis(10));
}

fn wakes_of_another_thread_arrive(spin: Duration) {
    const TIMES: u64 = 3000;
    let (waker, count) = (Arc::new(AtomicWaker::new()), Arc::new(AtomicU64::new(0)));
    let (theirs, told) = ((waker.clone(), count.clone()), mpsc::sync_channel(0));
    let thread = std::thread::spawn(move || {
        for n in 1..=TIMES {
            theirs.1.store(n, Ordering::Release);
            theirs.0.wake();
            told.1.recv().unwrap();
        }
    });
    run(move || async move {
        super::spin_for(spin);
        for n in 1..=TIMES {
            poll_fn(|cx| {
                waker.register(cx.waker());
                if count.load(Ordering::Acquire) >= n { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            told.0.send(()).unwrap();
        }
    });
    thread.join().unwrap();
}

#[test]
fn what_completes_and_what_is_due_is_seen_by_a_core_that_spins() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_of(dir.path(), 4096);
    run(|| async move {
        // It would spin for longer than the test may take.
        super::spin_for(Duration::from_secs(3600));
        let file = DirectFile::open(&path).await.unwrap();
        let mut buf = DmaBuf::new(4096);
        buf.as_mut().fill(7);
        assert_eq!(file.write(buf.share(), 0).await.unwrap(), 4096);
        ring::sleep(Duration::from_millis(2)).await;
    });
}

#[test]
fn timers_fire_in_order_and_those_that_are_dropped_do_not() {
    let order = run(|| async {
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        for ms in [12u64, 4, 8] {
            let order = order.clone();
            ring::spawn(async move {
                ring::sleep(Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        let never = order.clone();
        drop(ring::spawn_scoped(async move {
            ring::sleep(Duration::from_millis(6)).await;
            never.borrow_mut().push(6);
        }));
        ring::sleep(Duration::from_millis(13)).await;
        order.take()
    });
    assert_eq!(order, [4, 8, 12]);
}

#[test]
fn a_write_that_nobody_waits_for_any_more_keeps_its_bytes_until_it_is_done() {
    const LEN: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = file_of(dir.path(), LEN);
    run(move || async move {
        for round in 1..=20u8 {
            let file = DirectFile::open(&path).await.unwrap();
            let mut buf = DmaBuf::new(LEN);
            buf.as_mut().fill(round);
            {
                let mut writing = Box::pin(file.write(buf.share(), 0));
                let started = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await;
                assert!(started);
            }
            // Whoever gets the memory next writes into it at once.
            let mut others: Vec<_> = (0..4).map(|_| DmaBuf::new(LEN)).collect();
            others.iter_mut().for_each(|b| b.as_mut().fill(0xEE));
            // A write behind it on another descriptor; both are durable when it completes, or the
            // first is still under way.
            let file = DirectFile::open(&path).await.unwrap();
            loop {
                let read = file.read(0, LEN).await.unwrap();
                assert!(read.iter().all(|b| *b == round || *b == round - 1), "round {round}");
                if read.iter().all(|b| *b == round) {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_file_that_nobody_waits_for_any_more_is_not_left_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_of(dir.path(), 4096);
    let is_open = |path: &Path| {
        let links =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link == path).count()
    };
    let (seen, missing) = (path.clone(), dir.path().join("missing"));
    run(move || async move {
        for _ in 0..20 {
            let mut opening = Box::pin(DirectFile::open(&path));
            let started = poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await;
            assert!(started);
        }
        // Opens that came later and are waited for: those before them are over, or end with the executor.
        let file = DirectFile::open(&path).await.unwrap();
        assert!(is_open(&path) > 0);
        drop(file);
        let kind = DirectFile::open(&missing).await.map(drop).map_err(|e| e.kind());
        assert_eq!(kind, Err(ErrorKind::NotFound));
    });
    assert_eq!(is_open(&seen), 0);
}

#[test]
fn a_file_opens_while_a_task_is_always_ready() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_of(dir.path(), 4096);
    let turns = run(move || async move {
        let turns = Rc::new(Cell::new(0u64));
        let busy = turns.clone();
        let _spinning = ring::spawn_scoped(async move {
            loop {
                busy.set(busy.get() + 1);
                ring::yield_now().await;
            }
        });
        for _ in 0..20 {
            let file = DirectFile::open(&path).await.unwrap();
            assert_eq!(file.read(0, 4096).await.unwrap().len(), 4096);
        }
        turns.get()
    });
    assert!(turns > 0);
}

#[test]
fn a_wait_for_a_socket_ends_with_its_task_and_its_descriptor_can_be_used_again() {
    let (here, there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    run(move || async move {
        let socket = Pollable::new(OwnedFd::from(here));
        for _ in 0..100 {
            let mut waiting = Box::pin(socket.readable());
            let waits = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
            assert!(waits);
        }
        std::io::Write::write_all(&mut &there, b"x").unwrap();
        socket.readable().await.unwrap();
        socket.writable().await.unwrap();
        let fd = socket.as_raw_fd();
        assert!(fd >= 0);
        drop(socket.into_inner().unwrap());
    });
}

/// Bytes that are overwritten the moment the kernel has let go of them, as the next user of a buffer
/// would.
struct Poisoned {
    bytes: UnsafeCell<Vec<u8>>,
    released: Rc<Cell<u64>>,
}

impl ring::Held for Poisoned {
    fn pieces(&self) -> Vec<&[u8]> {
        // SAFETY: they change only in `drop`.
        let bytes = unsafe { &*self.bytes.get() };
        vec![&bytes[..7], &bytes[7..]]
    }

    fn released(&self, _copied: bool) {
        self.released.set(self.released.get() + 1);
    }
}

impl Drop for Poisoned {
    fn drop(&mut self) {
        self.bytes.get_mut().fill(0xEE);
    }
}

#[test]
fn what_is_sent_without_a_copy_arrives_whole_and_is_let_go_of_once() {
    const SENDS: u64 = 400;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut here, _) = listener.accept().unwrap();
    there.set_nonblocking(true).unwrap();
    let length = |n: u64| 100 + (n * 7919 % 300_000) as usize;
    let reader = std::thread::spawn(move || {
        for n in 0..SENDS {
            let mut bytes = vec![0; length(n)];
            here.read_exact(&mut bytes).unwrap();
            assert!(bytes.iter().all(|b| *b == n as u8), "send {n}");
        }
    });
    run(move || async move {
        let socket = Pollable::new(OwnedFd::from(there));
        let (released, mut calls) = (Rc::new(Cell::new(0)), 0);
        for n in 0..SENDS {
            let bytes = UnsafeCell::new(vec![n as u8; length(n)]);
            let held: Rc<dyn ring::Held> = Rc::new(Poisoned { bytes, released: released.clone() });
            let mut taken = 0;
            while taken < length(n) {
                match socket.send_zero_copy(held.clone(), taken).await {
                    Ok(more) => {
                        taken += more;
                        calls += 1;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => socket.writable().await.unwrap(),
                    Err(e) => panic!("{e}"),
                }
            }
        }
        // The executor's end waits for the rest.
        assert!(released.get() <= calls);
        while released.get() < calls {
            ring::sleep(Duration::from_millis(1)).await;
        }
    });
    reader.join().unwrap();
}

#[test]
fn an_executor_ends_although_a_peer_takes_nothing_of_a_send_without_a_copy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_here, _) = listener.accept().unwrap();
    there.set_nonblocking(true).unwrap();
    run(move || async move {
        let socket = Pollable::new(OwnedFd::from(there));
        loop {
            let bytes = UnsafeCell::new(vec![1; 1 << 20]);
            let held = Rc::new(Poisoned { bytes, released: Rc::default() });
            if socket.send_zero_copy(held, 0).await.is_err() {
                break;
            }
        }
    });
}

#[test]
fn an_executor_that_has_ended_leaves_nothing_behind() {
    let (here, _there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    let left = run(move || async move {
        let socket = Rc::new(Pollable::new(OwnedFd::from(here)));
        for _ in 0..10 {
            let socket = socket.clone();
            ring::spawn(async move {
                let _unused = ring::timer(Duration::from_secs(3600));
                socket.readable().await.unwrap();
            });
            ring::spawn(ring::sleep(Duration::from_secs(3600)));
        }
        ring::sleep(Duration::from_millis(2)).await;
        super::hot::seen_by_others()
    });
    assert_eq!(left.strong_count(), 0);
}

#[test]
fn a_read_reaches_to_the_files_end_and_an_error_is_the_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_of(dir.path(), 3 * 4096);
    run(move || async move {
        let file = DirectFile::open(&path).await.unwrap();
        assert_eq!(file.read(0, 8 * 4096).await.unwrap().len(), 3 * 4096);
        assert_eq!(file.read(1 << 20, 4096).await.unwrap().len(), 0);
        let odd = file.read(1, 4096).await.unwrap_err();
        assert_eq!(odd.raw_os_error(), Some(libc::EINVAL), "{odd}");
    });
}

#[test]
fn tasks_that_wait_for_others_of_other_executors_all_come_to_their_end() {
    const CORES: usize = 4;
    const TURNS: usize = 500;
    // A ring of executors hands a token around.
    let (mut senders, mut receivers): (Vec<_>, Vec<_>) = (0..CORES).map(|_| mpsc::channel()).unzip();
    let bells: Vec<_> = (0..CORES).map(|_| Arc::new(AtomicWaker::new())).collect();
    let mut ends = Vec::new();
    let first = senders[0].clone();
    senders.rotate_left(1);
    for core in (0..CORES).rev() {
        let (next, inbox) = (senders.pop().unwrap(), receivers.pop().unwrap());
        let (mine, theirs) = (bells[core].clone(), bells[(core + 1) % CORES].clone());
        let (tell, end) = oneshot::channel();
        ends.push(end);
        let executor = ring::start_executor("test", None, 1 << 20, move || async move {
            for _ in 0..TURNS {
                let token: u64 = poll_fn(|cx| {
                    mine.register(cx.waker());
                    inbox.try_recv().map_or(Poll::Pending, Poll::Ready)
                })
                .await;
                let _ = next.send(token + 1);
                theirs.wake();
            }
            tell.send(());
        });
        drop(executor.unwrap());
    }
    first.send(0).unwrap();
    bells[0].wake();
    for end in ends {
        crate::shard::mesh::ticket::block_on(end).unwrap();
    }
}
