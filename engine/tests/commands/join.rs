//! `towline serve --join`: one command adds a replica to a primary that is under load, again and again, and
//! says why where it cannot.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::processes::{Node, Said, await_in_step, end_of, eventually, fixed_address, folder, run, signal, towline};

fn primary(data: &Path, listen: &str, more: &[&str]) -> Node {
    let small = ["--segment-size", "64KiB", "--batch-size", "16KiB", "--record-max", "16KiB"];
    Node::primary(data, listen, &[&small, more].concat())
}

/// A replica that is to join, with its folder under its name.
fn join(dir: &Path, name: &str, at: &str, more: &[&str]) -> Result<Node, Said> {
    let args = ["--role", "replica", "--name", name, "--primary", at, "--listen", "127.0.0.1:0", "--cpus", "1"];
    Node::serve(&dir.join(name), &[&args, more].concat())
}

/// As [`join`], until it says that it has.
fn joined(dir: &Path, name: &str, at: &str, more: &[&str]) -> (Node, String) {
    let node = join(dir, name, at, more).unwrap_or_else(|e| panic!("{e:?}"));
    let line = node.next_line();
    assert!(line.starts_with(&format!("towline: replica {name} has joined {at}: live on ")), "{line}");
    (node, line)
}

/// What the slots of a replica are, on every shard.
fn slots(node: &Node, name: &str, key: &str) -> Vec<String> {
    let status = node.status();
    let shards = status["shards"].as_array().unwrap().iter();
    let of = |shard: &Value| shard["slots"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned();
    shards.filter_map(of).map(|slot| slot[key].as_str().unwrap().to_owned()).collect()
}

fn append(node: &Node, shard: &str, bytes: usize) {
    run(&["append", "--to", &node.addr(), "--shard", shard, "--chunk", "9000"], &vec![b'x'; bytes]).expect(0, "");
}

/// Appends to shard 0 until it is ended.
struct Load(Child, JoinHandle<()>);

impl Load {
    fn start(to: &Node) -> Self {
        let args = ["append", "--to", &to.addr(), "--shard", "0", "--chunk", "900"];
        let mut child = towline().args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        Self(child, std::thread::spawn(move || while stdin.write_all(&[b'x'; 9000]).is_ok() {}))
    }
    fn end(mut self) {
        signal(&self.0, libc::SIGKILL);
        end_of(&mut self.0);
        self.1.join().unwrap();
    }
}

#[test]
fn one_command_adds_a_replica_to_a_loaded_primary_and_a_restart_joins_again() {
    let dir = folder();
    let (data, at) = (dir.path().join("p"), fixed_address());
    let node = primary(&data, &at, &["--shards", "3"]);
    append(&node, "0", 8 << 20);
    append(&node, "1", 1 << 20);
    let load = Load::start(&node);
    let (replica, line) = joined(dir.path(), "r3", &at, &["--join", "quorum"]);
    assert!(line.ends_with("live on 3 shards, it counts for commits (settings version 2)"), "{line}");
    load.end();
    let log = replica.logged();
    assert!(log.contains("slot r3 made"), "{log}");
    assert_eq!(slots(&node, "r3", "kind"), ["configured"; 3]);
    assert_eq!(node.status()["node"]["replicas"], serde_json::json!(["r3"]));
    let policy = ["--commit", "all", "--lines"];
    run(&[&["append", "--to", &at, "--shard", "2"][..], &policy].concat(), b"all\n").expect(0, "");
    await_in_step(&node);
    replica.kill9();
    // With the slot that is there, and nothing changed. Nobody is taken for it who was killed just now.
    let (replica, line) = joined(dir.path(), "r3", &at, &["--join", "quorum"]);
    assert!(line.ends_with("it counts for commits (settings version 2)"), "{line}");
    assert!(!replica.logged().contains("slot r3 made"));
    replica.stop();
    // It serves what it has while the primary is away, and joins when that comes back.
    node.stop();
    let replica = join(dir.path(), "r3", &at, &["--join"]).unwrap();
    assert_eq!(replica.status()["node"]["name"], "r3");
    replica.await_log("waiting for the primary: cannot connect");
    let node = primary(&data, &at, &["--shards", "3"]);
    assert!(replica.next_line().ends_with("it counts for commits (settings version 2)"), "it was configured before");
    await_in_step(&node);
    replica.stop();
    node.stop();
}

#[test]
fn a_reader_joins_a_primary_that_is_not_there_yet_and_another_one_joins_the_reader() {
    let dir = folder();
    let at = fixed_address();
    let waiting = std::thread::spawn({
        let (dir, at) = (dir.path().to_path_buf(), at.clone());
        move || joined(&dir, "far", &at, &["--join"])
    });
    let log = dir.path().join("far.log");
    let waits = |log: String| log.contains("waiting for the primary: cannot connect").then_some(());
    eventually("it waits", || std::fs::read_to_string(&log).ok().and_then(waits));
    let node = primary(&dir.path().join("p"), &at, &[]);
    let (far, line) = waiting.join().unwrap();
    assert!(line.ends_with("live on 1 shard, it only reads"), "{line}");
    assert_eq!(
        (slots(&node, "far", "kind"), node.status()["node"]["replicas"].to_string()),
        (vec!["made".into()], "[]".into())
    );
    // Nobody counts who is fed by a replica, and no slot is left behind.
    let args = ["--join", "quorum"];
    join(dir.path(), "farther", &far.addr(), &args)
        .unwrap_err()
        .expect(1, "is a replica, and what it feeds counts for no commit");
    assert!(slots(&far, "farther", "kind").is_empty());
    let (farther, _) = joined(dir.path(), "farther", &far.addr(), &["--join=reader"]);
    append(&node, "0", 100_000);
    let end = &node.status()["shards"][0]["appended_lsn"];
    eventually("all have it", || (&farther.status()["shards"][0]["durable_lsn"] == end).then_some(()));
    for node in [farther, far, node] {
        node.stop();
    }
}

#[test]
fn progress_is_said_and_a_lost_slot_is_named_and_not_made_anew() {
    let dir = folder();
    let slow = ["--replicas", "r1", "--catch-up-max", "1MiB", "--live-window", "64KiB"];
    let node = primary(&dir.path().join("p"), "127.0.0.1:0", &slow);
    let at = node.addr();
    append(&node, "0", 2 << 20);
    let (replica, line) = joined(dir.path(), "r1", &at, &["--join"]);
    assert!(line.ends_with("it counts for commits (settings version 1)"), "{line}");
    let log = replica.logged();
    assert!(log.contains(&format!("joining {at}: 0 of 1 shard live, ")) && log.contains(" % done, "), "{log}");
    replica.stop();
    run(&["slot", "drop", "r1", "--at", &at], b"").expect(0, "");
    let said = join(dir.path(), "r1", &at, &["--join", "quorum"]).unwrap_err().expect(4, "is lost (removed)");
    let command = format!("towline slot create r1 --at {at}");
    assert!(said.err.contains(&command), "{said:?}");
    assert_eq!(slots(&node, "r1", "lost"), ["removed"]);
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    run(&args, b"").expect(0, "");
    joined(dir.path(), "r1", &at, &["--join", "quorum"]).0.stop();
    node.stop();
}

#[test]
fn a_log_that_is_too_old_ends_it_with_the_way_out() {
    let dir = folder();
    let node = primary(&dir.path().join("p"), "127.0.0.1:0", &["--retain", "128KiB"]);
    let at = node.addr();
    append(&node, "0", 50_000);
    joined(dir.path(), "r1", &at, &["--join"]).0.stop();
    run(&["slot", "drop", "r1", "--at", &at], b"").expect(0, "");
    append(&node, "0", 2 << 20);
    eventually("the log is let go of", || {
        (node.status()["shards"][0]["oldest_lsn"].as_u64() > Some(1 << 20)).then_some(())
    });
    let mut old = join(dir.path(), "r1", &at, &["--join"]).unwrap();
    assert_eq!(end_of(&mut old.child).code(), Some(4));
    old.await_log("is too old");
    assert!(old.logged().contains("Start this again with --rebuild"), "{}", old.logged());
    let (replica, _) = joined(dir.path(), "r1", &at, &["--join", "--rebuild"]);
    await_in_step(&node);
    replica.stop();
    node.stop();
}

#[test]
fn a_wrong_address_is_named_and_nothing_is_made_there() {
    let dir = folder();
    let ours = primary(&dir.path().join("p"), "127.0.0.1:0", &[]);
    joined(dir.path(), "r1", &ours.addr(), &["--join"]).0.stop();
    let other = primary(&dir.path().join("other"), "127.0.0.1:0", &[]);
    let said = join(dir.path(), "r1", &other.addr(), &["--join"]).unwrap_err().expect(1, "is a node of system");
    assert!(said.err.contains(other.word("system")) && said.err.contains(ours.word("system")), "{said:?}");
    assert!(slots(&other, "r1", "kind").is_empty());
    // Another replica's folder: nobody asks for a slot.
    let args = ["--role", "replica", "--name", "r2", "--primary", &ours.addr(), "--join"];
    Node::serve(&dir.path().join("r1"), &args).unwrap_err().expect(1, "r1");
    assert!(slots(&ours, "r2", "kind").is_empty());
    Node::serve(
        &dir.path().join("n"),
        &[&args[..2], &["--name", "No Name", "--primary", "127.0.0.1:1", "--join"]].concat(),
    )
    .unwrap_err()
    .expect(1, "\"No Name\" is no replica name");
    run(&["serve", "--role", "primary", "--data", "d", "--listen", "127.0.0.1:0", "--join"], b"")
        .expect(2, "join is for a replica only");
    run(&["serve", "--role", "replica", "--join", "voter"], b"").expect(2, "voter");
    // No Towline at all.
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = web.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || {
        web.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: none\r\n\r\n")
    });
    join(dir.path(), "r3", &at, &["--join"]).unwrap_err().expect(5, "is that the address of a Towline node?");
    serving.join().unwrap().unwrap();
}
