//! Disks and folders that go wrong while nodes run under load: full, read-only, replaced, stalled.
//! The node says what is wrong, holds up nobody who does not need it, and nothing that was
//! acknowledged is lost.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fleet::{Fleet, Load, NAMES, Told};
use crate::mounts::{Mounted, skip};
use crate::processes::{Node, Said, await_in_step, end_of, eventually, folder, run};
use serde_json::Value;

const OPTIONS: [&str; 6] = ["--batch-size", "16KiB", "--record-max", "64KiB", "--segments-ahead", "1"];

impl Fleet {
    /// Waits until a node has ended by itself, because a shard has stopped; gives what it logged.
    fn await_stopped(&mut self, n: usize) -> String {
        let mut node = self.nodes[n].take().unwrap();
        let status = end_of(&mut node.child);
        assert_eq!(status.code(), Some(7), "{}", node.logged());
        node.logged()
    }
}

/// Fills a file system up to its last block.
fn fill(at: &Path) {
    let mut filler = fs::File::create(at.join("filler")).unwrap();
    let block = vec![1; 1 << 20];
    let mut bytes = block.len();
    while bytes >= 4096 {
        if filler.write_all(&block[..bytes]).is_err() {
            bytes /= 2;
        }
    }
}

#[test]
fn a_replica_whose_disk_is_full_holds_nobody_up_and_comes_back() {
    let dir = folder();
    let mut fleet = Fleet::new(dir.path(), "ack_n=1", &OPTIONS);
    let [full, _] = fleet.replicas();
    let at = fleet.folder(full);
    let _mounted = match Mounted::new(&at, "tmpfs", "size=24m") {
        Ok(mounted) => mounted,
        Err(e) => return skip("a replica's disk is full", format!("mount: {e}")),
    };
    let wanted = Arc::new(AtomicU64::new(100));
    fleet.start_missing(false);
    let load = Load::on_demand(dir.path(), fleet.addr(), 700, wanted.clone());
    load.await_more(100);
    fill(&at);
    // More than the segments that it has ready hold.
    wanted.fetch_add(600, Ordering::Relaxed);
    load.await_more(600);
    fleet.node(full).await_log("is full: free some space");
    fs::remove_file(at.join("filler")).unwrap();
    fleet.node(full).await_log("there is space on the disk again");
    wanted.fetch_add(100, Ordering::Relaxed);
    load.await_more(100);
    fleet.check(&load.end());
}

#[test]
fn a_folder_that_becomes_read_only_stops_the_node_and_loses_nothing() {
    let dir = folder();
    let mut fleet = Fleet::start(dir.path(), "ack_n=1", &OPTIONS);
    let load = Load::start(dir.path(), fleet.addr(), 700);
    for n in [fleet.replicas()[0], fleet.primary] {
        load.await_more(50);
        let mounted = match Mounted::read_only(&fleet.folder(n)) {
            Ok(mounted) => mounted,
            Err(e) => return skip("a read-only folder", format!("mount: {e}")),
        };
        let logged = fleet.await_stopped(n);
        assert!(logged.contains("ing segment ") && logged.contains("the file system is read-only"), "{logged}");
        // It does not start either, and says why.
        let said = Node::serve(&fleet.folder(n), &["--role", "primary", "--listen", "127.0.0.1:0"]).unwrap_err();
        said.expect(1, "the file system is read-only").expect(1, "towline.lock: ");
        drop(mounted);
        fleet.start_missing(false);
    }
    load.await_more(50);
    fleet.check(&load.end());
}

/// Takes a node's folder away while it runs, and puts `by` in its place; gives back what stops that.
fn replaced(fleet: &mut Fleet, n: usize, load: &Load, copy: bool) {
    let (at, gone, other) =
        (fleet.folder(n), fleet.folder(n).with_extension("gone"), fleet.folder(n).with_extension("2"));
    load.await_more(50);
    // At rest, so that a copy is as good as the folder itself and nothing else shows the difference.
    load.pause(true);
    await_in_step(fleet.node(fleet.primary));
    if copy {
        assert!(Command::new("cp").arg("-a").args([&at, &other]).status().unwrap().success());
    } else {
        fs::create_dir(&other).unwrap();
    }
    fs::rename(&at, &gone).unwrap();
    fs::rename(&other, &at).unwrap();
    load.pause(false);
    let logged = fleet.await_stopped(n);
    let message = "it was moved away or replaced while the node ran";
    assert!(logged.contains(message), "{logged}");
    // What the node acknowledged is in its own folder, not in the one in its place.
    fs::remove_dir_all(&at).unwrap();
    fs::rename(&gone, &at).unwrap();
    fleet.start_missing(false);
}

#[test]
fn a_folder_that_is_replaced_under_a_node_stops_it_and_loses_nothing() {
    let dir = folder();
    let mut fleet = Fleet::start(dir.path(), "ack_n=2", &OPTIONS);
    let load = Load::start(dir.path(), fleet.addr(), 700);
    for n in [fleet.replicas()[0], fleet.primary] {
        for copy in [false, true] {
            replaced(&mut fleet, n, &load, copy);
        }
    }
    load.await_more(50);
    fleet.check(&load.end());
}

/// One `towline append` of records that are like no others, with a history.
fn append(told: &mut Told, dir: &Path, addr: &str, records: u64, bytes: usize, deadline: &str) -> (Said, Vec<Value>) {
    let history = dir.join(format!("history-{}", told.histories.len()));
    let lines: Vec<String> =
        (0..records).map(|n| format!("{}-{n} {}", told.histories.len(), "x".repeat(bytes))).collect();
    let args = ["append", "--to", addr, "--shard", "0", "--json", "--deadline", deadline];
    let said = run(&[&args[..], &["--history", history.to_str().unwrap()]].concat(), lines.join("\n").as_bytes());
    told.histories.push(history);
    let outcomes: Vec<Value> = said.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let committed = outcomes.iter().filter(|o| o["status"] == "committed");
    told.acknowledged += committed.map(|o| o["records"].as_u64().unwrap()).sum::<u64>();
    (said, outcomes)
}

#[test]
fn a_device_that_stalls_refuses_what_it_has_no_room_for_and_goes_on_later() {
    let dir = folder();
    let mut fleet = Fleet::new(dir.path(), "ack_n=1", &OPTIONS);
    let at = fleet.folder(fleet.primary);
    let mounted = match Mounted::ext4(&dir.path().join("image"), &at, 64 << 20) {
        Ok(mounted) => mounted,
        Err(e) => return skip("a device that stalls", e),
    };
    fleet.start_missing(false);
    let (mut told, addr) = (Told::default(), fleet.addr());
    append(&mut told, dir.path(), &addr, 10, 100, "100s").0.expect(0, "");

    let frozen = mounted.freeze();
    // Replicas that have it do not replace the primary's own copy.
    let (said, outcomes) = append(&mut told, dir.path(), &addr, 1, 100, "200ms");
    assert_eq!(said.code, Some(3), "{said:?}");
    let told_so = (&outcomes[0]["status"], &outcomes[0]["durable_here"]);
    assert_eq!(told_so, (&"timed_out".into(), &false.into()), "{said:?}");
    // What finds no room any more is refused: it was not written.
    eventually("a refusal", || {
        let (said, outcomes) = append(&mut told, dir.path(), &addr, 1, 15_000, "100ms");
        let status = outcomes[0]["status"].as_str().unwrap().to_owned();
        match said.code {
            Some(4) => {
                assert_eq!(status, "no_room");
                Some(())
            }
            Some(3) => {
                assert_eq!(status, "timed_out");
                None
            }
            _ => panic!("{said:?}"),
        }
    });
    drop(frozen);

    eventually("the device goes on", || {
        (append(&mut told, dir.path(), &addr, 1, 100, "2s").0.code == Some(0)).then_some(())
    });
    let verdict = fleet.check(&told);
    assert!(verdict["refused"].as_u64().unwrap() >= 1 && verdict["timed_out"].as_u64().unwrap() >= 2, "{verdict}");
    assert!(verdict["committed"].as_u64().unwrap() >= 11);
    drop(mounted);
}

#[test]
fn a_replica_whose_device_stalls_holds_nobody_up_and_comes_back() {
    let dir = folder();
    let mut fleet = Fleet::new(dir.path(), "ack_n=1", &OPTIONS);
    let [stalled, _] = fleet.replicas();
    let mounted = match Mounted::ext4(&dir.path().join("image"), &fleet.folder(stalled), 64 << 20) {
        Ok(mounted) => mounted,
        Err(e) => return skip("a replica's device stalls", e),
    };
    fleet.start_missing(false);
    let wanted = Arc::new(AtomicU64::new(100));
    let load = Load::on_demand(dir.path(), fleet.addr(), 700, wanted.clone());
    load.await_more(100);
    let frozen = mounted.freeze();
    wanted.fetch_add(2000, Ordering::Relaxed);
    load.await_more(2000);
    // It takes no more than may be in flight, and acknowledges nothing of it.
    let status = fleet.node(fleet.primary).status();
    let slots = status["shards"][0]["slots"].as_array().unwrap();
    let slot = slots.iter().find(|s| s["name"] == NAMES[stalled]).unwrap();
    assert!(slot["flushed_lsn"].as_u64() < status["shards"][0]["commit_lsn"].as_u64(), "{slot}");
    drop(frozen);
    fleet.check(&load.end());
    drop(mounted);
}

/// A device whose writes fail from some moment on: an ext4 in a sparse file on a tmpfs that is full.
#[test]
fn a_write_that_fails_stops_the_shard_for_good_and_loses_nothing() {
    for victim in 0..2 {
        let dir = folder();
        let ram = dir.path().join("ram");
        let _tmpfs = match Mounted::new(&ram, "tmpfs", "size=1200m") {
            Ok(mounted) => mounted,
            Err(e) => return skip("a device that fails", format!("mount: {e}")),
        };
        // Large enough for the log of a fast machine.
        let image = ram.join("image");
        let mut fleet = Fleet::new(dir.path(), "ack_n=1", &OPTIONS);
        let device = match Mounted::ext4(&image, &fleet.folder(victim), 1 << 30) {
            Ok(mounted) => mounted,
            Err(e) => return skip("a device that fails", e),
        };
        fleet.start_missing(false);
        let load = Load::start(dir.path(), fleet.addr(), 700);
        load.await_more(50);
        load.pause(true);
        await_in_step(fleet.node(fleet.primary));
        // What is zero in the image takes no space any more, and there is none left to write there.
        device.sparse(&image);
        fill(&ram);
        load.pause(false);
        let logged = fleet.await_stopped(victim);
        let message = "shard 0 has stopped: writing the batch at LSN ";
        assert_eq!(logged.matches(message).count(), 1, "{logged}");
        // What the device has is what a start finds.
        fs::remove_file(ram.join("filler")).unwrap();
        drop(device);
        let device = Mounted::image(&image, &fleet.folder(victim)).unwrap();
        fleet.start_missing(false);
        load.await_more(50);
        fleet.check(&load.end());
        drop(device);
    }
}
