//! What the made-up machines do, held against what real ones do. `docs/TESTING.md` says what is left
//! out.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use towline::world::{DiskFile, OpenHow, Socket, World as _, current};

use super::{Faults, Lie, NodeId, SimWorld};

const NEW: OpenHow = OpenHow { write: true, create: true, must_be_new: false, direct: false, durable: false };

/// Lets a node run one thing to its end, or until nothing happens any more.
fn run<T: 'static>(world: &SimWorld, node: NodeId, f: impl Future<Output = T> + 'static) -> Option<T> {
    let out = start(world, node, f);
    while out.borrow().is_none() && world.step() {}
    out.take()
}

fn start<T: 'static>(world: &SimWorld, node: NodeId, f: impl Future<Output = T> + 'static) -> Rc<RefCell<Option<T>>> {
    let out = Rc::new(RefCell::new(None));
    let told = out.clone();
    world.start(
        node,
        "test",
        Box::pin(async move {
            let got = f.await;
            *told.borrow_mut() = Some(got);
            // Sockets and files die with the process: it stays.
            std::future::pending::<()>().await;
        }),
    );
    out
}

fn open(world: &SimWorld, path: &str, how: OpenHow) -> std::io::Result<Arc<dyn DiskFile>> {
    world.disk().open(Path::new(path), how)
}

/// A file of two sectors, `a` synced with its name; then what `then` does to it; then the end.
fn after(seed: u64, power: bool, then: impl FnOnce(&dyn DiskFile) + 'static) -> Option<Vec<u8>> {
    let world = SimWorld::new(seed, Faults::default());
    let _entered = world.enter();
    let node = world.add_node();
    run(&world, node, async move {
        let world = super::here().unwrap();
        world.disk().create_dir_all(Path::new("/d")).unwrap();
        let file = open(&world, "/d/f", NEW).unwrap();
        file.write_at(&[b'a'; 1024], 0).unwrap();
        file.sync().unwrap();
        world.disk().sync_folder(Path::new("/d")).unwrap();
        then(&*file);
    })
    .unwrap();
    if power {
        world.power_loss(node);
    } else {
        world.kill(node);
    }
    world.with_node(node, || {
        let mut bytes = vec![0; 1024];
        let file = open(&world, "/d/f", OpenHow::default()).ok()?;
        let read = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(read);
        Some(bytes)
    })
}

#[test]
fn what_was_written_and_not_synced_is_lost_in_any_part_when_the_power_goes() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let bytes = after(seed, true, |file| assert_eq!(file.write_at(&[b'b'; 1024], 0).unwrap(), 1024)).unwrap();
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])), "a sector is torn");
        seen.insert([bytes[0], bytes[512]]);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [*b"aa", *b"ab", *b"ba", *b"bb"]);
}

#[test]
fn what_was_synced_and_what_a_dead_process_wrote_stays() {
    for seed in 0..20 {
        let sync = after(seed, true, |file| {
            file.write_at(&[b'b'; 1024], 0).unwrap();
            file.sync().unwrap();
        });
        assert_eq!(sync.unwrap(), [b'b'; 1024]);
        assert_eq!(after(seed, false, |f| drop(f.write_at(&[b'b'; 1024], 0))).unwrap(), [b'b'; 1024]);
    }
}

#[test]
fn a_sync_that_fails_loses_any_part_and_the_next_one_does_not_bring_it_back() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let read = Rc::new(RefCell::new([0; 1024]));
        let told = read.clone();
        let left = after(seed, true, move |file| {
            file.write_at(&[b'b'; 1024], 0).unwrap();
            let world = super::here().unwrap();
            let node = world.running.get().node;
            world.fail_call(node, world.calls(node), false);
            assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
            assert_eq!(world.failed(node).len(), 1);
            file.sync().expect("the error was told once");
            file.read_at(&mut *told.borrow_mut(), 0).unwrap();
        });
        let (read, left) = (read.borrow(), left.unwrap());
        seen.insert(([read[0], read[512]], [left[0], left[512]]));
    }
    // Each of two sectors is kept, is gone, or reads as if it was kept until the power goes.
    let each = [(b'b', b'b'), (b'a', b'a'), (b'b', b'a')];
    let all = each.iter().flat_map(|a| each.iter().map(move |b| ([a.0, b.0], [a.1, b.1])));
    assert_eq!(seen, all.collect());
}

#[test]
fn a_write_may_be_lost_or_land_elsewhere_and_is_said_to_be_done() {
    for lie in [Lie::Lost, Lie::Elsewhere] {
        let world = SimWorld::new(1, Faults::default());
        let _entered = world.enter();
        let node = world.add_node();
        world.lie_about_a_write(node, 1, lie);
        let bytes = run(&world, node, async move {
            let disk = super::here().unwrap().disk();
            disk.create_dir_all(Path::new("/wal")).unwrap();
            let file = open(&super::here().unwrap(), "/wal/0.wal", NEW).unwrap();
            file.write_at(&[b'a'; 64 << 10], 0).unwrap();
            assert_eq!(file.write_at(&[b'b'; 512], 512).unwrap(), 512);
            assert_eq!(file.write_at(&[b'c'; 512], 0).unwrap(), 512);
            let mut bytes = vec![0; 64 << 10];
            file.read_at(&mut bytes, 0).unwrap();
            bytes
        });
        let bytes = bytes.unwrap();
        assert!(bytes[..512] == [b'c'; 512] && bytes[512..1024] == [b'a'; 512]);
        assert_eq!(bytes.contains(&b'b'), lie == Lie::Elsewhere);
    }
}

#[test]
fn a_name_lasts_only_once_its_folder_was_synced() {
    let lasts = |seed, sync: bool| {
        let world = SimWorld::new(seed, Faults::default());
        let _entered = world.enter();
        let node = world.add_node();
        run(&world, node, async move {
            let world = super::here().unwrap();
            world.disk().create_dir_all(Path::new("/d")).unwrap();
            open(&world, "/d/f", NEW).unwrap().sync().unwrap();
            if sync {
                world.disk().sync_folder(Path::new("/d")).unwrap();
            }
        })
        .unwrap();
        world.power_loss(node);
        world.with_node(node, || world.disk().exists(Path::new("/d/f")))
    };
    assert!((0..20).all(|seed| lasts(seed, true)));
    let kept = (0..40).filter(|seed| lasts(*seed, false)).count();
    assert!((1..40).contains(&kept), "{kept} of 40 names that were not synced stayed");
}

#[test]
fn a_direct_write_wants_whole_sectors_and_lasts_when_it_is_done() {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let node = world.add_node();
    let direct = OpenHow { direct: true, durable: true, ..NEW };
    run(&world, node, async move {
        let world = super::here().unwrap();
        world.disk().create_dir_all(Path::new("/d")).unwrap();
        let file = open(&world, "/d/f", direct).unwrap();
        world.disk().sync_folder(Path::new("/d")).unwrap();
        assert_eq!(file.start_write(Rc::new(vec![1; 100]), 0).await.unwrap_err().raw_os_error(), Some(22));
        let before = world.now_ns();
        assert_eq!(file.start_write(Rc::new(vec![7; 4096]), 0).await.unwrap(), 4096);
        assert!(world.now_ns() > before, "a device takes its time");
    })
    .unwrap();
    world.power_loss(node);
    let bytes = world.with_node(node, || {
        let mut bytes = [0; 4096];
        open(&world, "/d/f", OpenHow::default()).unwrap().read_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn a_lock_is_its_processes_and_goes_with_it() {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let node = world.add_node();
    let lock = || {
        let world = super::here().unwrap();
        world.disk().create_dir_all(Path::new("/d")).unwrap();
        let file = open(&world, "/d/lock", NEW).unwrap();
        (file.try_lock().unwrap(), file)
    };
    let twice = run(&world, node, async move {
        let (first, second) = (lock(), lock());
        (first.0, second.0)
    });
    assert_eq!(twice, Some((true, false)));
    assert_eq!(run(&world, node, async move { lock().0 }), Some(true), "the process before is dead");
}

#[test]
fn the_nth_call_fails_once_or_from_then_on() {
    for (forever, wanted) in [(false, [true, false, true, true]), (true, [true, false, false, false])] {
        let world = SimWorld::new(1, Faults::default());
        let _entered = world.enter();
        let node = world.add_node();
        world.fail_call(node, 2, forever);
        let went = run(&world, node, async move {
            let world = super::here().unwrap();
            world.disk().create_dir_all(Path::new("/d")).unwrap();
            [0; 4].map(|_| world.disk().names(Path::new("/d")).is_ok())
        });
        assert_eq!(went, Some(wanted));
        world.stop_faults();
        assert!(world.with_node(node, || world.disk().names(Path::new("/d")).is_ok()));
    }
}

#[test]
fn sleepers_wake_in_the_order_of_time_and_at_their_time() {
    let world = SimWorld::new(1, Faults { random_order: true, ..Faults::default() });
    let _entered = world.enter();
    let node = world.add_node();
    let woke = Rc::new(RefCell::new(Vec::new()));
    let told = woke.clone();
    run(&world, node, async move {
        let world = current().unwrap();
        for at in [5_000_000_u64, 1_000_000, 3_000_000] {
            let (told, sleep) = (told.clone(), world.sleep_until(at));
            world.spawn(Box::pin(async move {
                sleep.await;
                told.borrow_mut().push((at, current().unwrap().now_ns()));
            }));
        }
        world.sleep_until(9_000_000).await;
    })
    .unwrap();
    let woke = woke.borrow();
    assert_eq!(woke.iter().map(|w| w.0).collect::<Vec<_>>(), [1_000_000, 3_000_000, 5_000_000]);
    // A step of a task takes a little while.
    assert!(woke.iter().all(|(at, now)| (*at..*at + 100_000).contains(now)), "{woke:?}");
}

type Ends = (Arc<dyn Socket>, Arc<dyn Socket>);

/// Two nodes and a connection from the first to the second.
fn connected(world: &Rc<SimWorld>) -> (NodeId, NodeId, Ends) {
    let (a, b) = (world.add_node(), world.add_node());
    let to = world.address(b, 7);
    let accepted = start(world, b, async move {
        let port = current().unwrap().listen(to).unwrap();
        poll_fn(|cx| port.poll_readable(cx)).await.unwrap();
        port.accept().unwrap()
    });
    let here = run(world, a, async move { current().unwrap().connect(to).await.unwrap() }).unwrap();
    while accepted.borrow().is_none() && world.step() {}
    (a, b, (here, accepted.take().unwrap()))
}

fn receive(socket: &dyn Socket) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = vec![0; 1 << 20];
    let n = socket.receive(&mut bytes, &mut []).map_err(|e| e.kind())?;
    bytes.truncate(n);
    Ok(bytes)
}

fn settle(world: &SimWorld, for_ns: u64) {
    let until = world.now_ns() + for_ns;
    world.alarm(until);
    while world.now_ns() < until && world.step() {}
}

#[test]
fn a_connection_keeps_its_order_and_takes_no_more_than_its_buffer() {
    for seed in 0..20 {
        let faults = Faults { chunks: true, send_buffer: 4096, ..Faults::default() };
        let world = SimWorld::new(seed, faults);
        let _entered = world.enter();
        let (_, _, (from, to)) = connected(&world);
        let wanted: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut sent, mut got, mut full) = (0, Vec::new(), 0);
        while got.len() < wanted.len() {
            match from.send(&[IoSlice::new(&wanted[sent..])]) {
                Ok(n) => sent += n,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    full += 1;
                    settle(&world, 1_000_000);
                    match receive(&*to) {
                        Ok(bytes) => got.extend(bytes),
                        Err(e) => assert_eq!(e, ErrorKind::WouldBlock),
                    }
                }
            }
            assert!(sent - got.len() <= 2 * 4096, "more is under way than fits");
            if sent == wanted.len() {
                settle(&world, 1_000_000);
                got.extend(receive(&*to).unwrap_or_default());
            }
        }
        assert!(got == wanted && full > 0);
    }
}

#[test]
fn what_is_sent_to_somebody_who_does_not_hear_comes_when_he_does() {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let (a, b, (from, to)) = connected(&world);
    world.partition(a, b, true);
    from.send(&[IoSlice::new(b"late")]).unwrap();
    settle(&world, 5_000_000_000);
    assert_eq!(receive(&*to), Err(ErrorKind::WouldBlock));
    to.send(&[IoSlice::new(b"the other way")]).unwrap();
    settle(&world, 1_000_000);
    assert_eq!(receive(&*from).unwrap(), b"the other way");
    world.heal_network();
    settle(&world, 50_000_000);
    assert_eq!(receive(&*to).unwrap(), b"late");
}

#[test]
fn a_process_that_dies_is_noticed_and_a_machine_without_power_is_not() {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let (_, b, (from, _to)) = connected(&world);
    world.kill(b);
    settle(&world, 1_000_000);
    assert_eq!(receive(&*from).unwrap(), b"", "the end of the stream");

    let (_, b, (from, _to)) = connected(&world);
    world.power_loss(b);
    from.send(&[IoSlice::new(b"hello?")]).unwrap();
    settle(&world, 5_000_000_000);
    assert_eq!(receive(&*from), Err(ErrorKind::WouldBlock), "nobody says anything");
    // It is back and knows nothing of the connection.
    start(&world, b, std::future::pending::<()>());
    from.send(&[IoSlice::new(b"hello?")]).unwrap();
    settle(&world, 1_000_000_000);
    assert_eq!(receive(&*from), Err(ErrorKind::ConnectionReset));
}

#[test]
fn nobody_listening_refuses_and_nobody_there_does_not_answer() {
    let world = SimWorld::new(1, Faults::default());
    let _entered = world.enter();
    let (a, b) = (world.add_node(), world.add_node());
    let to = world.address(b, 7);
    start(&world, b, std::future::pending::<()>());
    let refused = run(&world, a, async move { current().unwrap().connect(to).await.err().map(|e| e.kind()) });
    assert_eq!(refused, Some(Some(ErrorKind::ConnectionRefused)));
    world.power_loss(b);
    let silent = start(&world, a, async move { current().unwrap().connect(to).await.is_ok() });
    settle(&world, 5_000_000_000);
    assert!(silent.borrow().is_none());
}
