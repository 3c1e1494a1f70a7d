//! What `towline append --history` writes, `towline verify --history` holds against the folders; and
//! it finds what is wrong with them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::processes::{Node, Said, await_in_step, folder, run};
use serde_json::Value;

/// A primary and two replicas that hold 100 records in two shards, stopped; and their history.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: folder() };
        let options = ["--shards", "2", "--replicas", "r1,r2", "--commit", "ack_n=2", "--segment-size", "64KiB"];
        let primary = Node::primary(&world.path("p"), "127.0.0.1:0", &options);
        let addr = primary.addr();
        let replicas = ["r1", "r2"].map(|r| Node::replica(&world.path(r), r, &addr, &[]));
        for (shard, file) in [("0", "h0"), ("1", "h1")] {
            let lines: String = (0..50).map(|n| format!("shard {shard} record {n}\n")).collect();
            let path = world.path(file);
            let args = ["append", "--to", &addr, "--shard", shard, "--history", path.to_str().unwrap()];
            run(&args, lines.as_bytes()).expect(0, "");
            // It is of that run, and of no other.
            run(&args, b"more\n").expect(1, "cannot write the history");
        }
        await_in_step(&primary);
        let (none, replica) = (world.path("none"), replicas[0].addr());
        let args = ["append", "--to", &replica, "--shard", "0", "--history", none.to_str().unwrap()];
        run(&args, b"x\n").expect(4, "is a replica, it takes no appends");
        assert!(!none.exists());
        for node in replicas {
            node.stop();
        }
        primary.stop();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lines(&self, history: &str) -> Vec<String> {
        fs::read_to_string(self.path(history)).unwrap().lines().map(str::to_owned).collect()
    }

    /// A history of its own with other lines.
    fn write(&self, name: &str, lines: &[String]) {
        fs::write(self.path(name), lines.join("\n") + "\n").unwrap();
    }

    fn verify(&self, histories: &[&str], more: &[&str], dirs: &[&str]) -> Said {
        let paths = |names: &[&str]| -> Vec<String> {
            names.iter().map(|n| self.path(n).to_str().unwrap().to_owned()).collect()
        };
        let mut args = vec!["verify".to_owned()];
        args.extend(paths(histories).into_iter().flat_map(|h| ["--history".to_owned(), h]));
        args.extend(more.iter().map(|m| (*m).to_owned()));
        args.extend(paths(dirs));
        run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"")
    }

    /// The kinds of violations that are found in all three folders, and how many of each.
    fn violations(&self, histories: &[&str], more: &[&str]) -> Vec<(String, u64)> {
        let said = self.verify(histories, &[more, &["--json"]].concat(), &["p", "r1", "r2"]).expect(8, "");
        let json = said.json();
        assert_eq!((&json["whole"], &json["history"]["holds"]), (&Value::Bool(true), &Value::Bool(false)));
        let counts = json["history"]["counts"].as_object().unwrap().clone();
        counts.into_iter().map(|(kind, n)| (kind, n.as_u64().unwrap())).filter(|(_, n)| *n > 0).collect()
    }
}

fn kinds(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_append_recorded_is_what_the_folders_hold_and_what_is_not_is_found() {
    let world = World::new();
    let all = ["p", "r1", "r2"];
    let said = world.verify(&["h0", "h1"], &["--converged", "--json"], &all).expect(0, "");
    let history = said.json()["history"].clone();
    for (key, n) in [("appends", 100), ("committed", 100), ("promised", 100), ("records", 300)] {
        assert_eq!(history[key], n, "{key}");
    }
    let said = world.verify(&["h0", "h1"], &[], &all).expect(0, "");
    assert!(said.text().contains("the logs are what the history says"), "{said:?}");
    // What is promised on three nodes is on each of them alone.
    for dir in all {
        world.verify(&["h0", "h1"], &[], &[dir]).expect(0, "");
    }

    // What the other history knows are phantoms to this one.
    assert_eq!(world.violations(&["h0"], &[]), kinds(&[("phantom", 150)]));
    world.verify(&["h0"], &["--partial"], &all).expect(0, "");

    let lines = world.lines("h0");
    let append = |n: usize| lines.iter().position(|l| l.contains(&format!("\"id\":{n},\"client\""))).unwrap();
    // A record that is acknowledged and in no log.
    let mut changed = lines.clone();
    changed[append(30)] = changed[append(30)].replace("\"bytes\":1", "\"bytes\":2");
    world.write("lost", &changed);
    assert_eq!(world.violations(&["lost", "h1"], &[]), kinds(&[("lost", 1), ("phantom", 3)]));
    let said = world.verify(&["lost", "h1"], &[], &all).expect(8, "");
    let text = said.text();
    for part in ["record 30 was acknowledged on shard 0", "log 1: ", "NOT what the history says: 4 violations"] {
        assert!(text.contains(part), "{text}");
    }
    // A record that should not be where it is, and two in another order.
    let mut changed = lines.clone();
    changed.swap(append(10), append(11));
    let swapped = |l: &str, from, to| l.replace(&format!("\"id\":{from},\"client"), &format!("\"id\":{to},\"client"));
    let (ten, eleven) = (append(10), append(11));
    changed[ten] = swapped(&changed[ten], 11, 10);
    changed[eleven] = swapped(&changed[eleven], 10, 11);
    world.write("order", &changed);
    assert_eq!(world.violations(&["order", "h1"], &[]), kinds(&[("misplaced", 6), ("wrong_order", 3)]));
    // A policy that asks for more than was reported.
    let changed: Vec<_> = lines.iter().map(|l| l.replace("ack_n=2:flushed", "ack_n=2:applied")).collect();
    world.write("degraded", &changed);
    assert_eq!(world.violations(&["degraded", "h1"], &[]), kinds(&[("degraded", 50)]));
    // Refused, and there.
    let changed: Vec<_> = lines
        .iter()
        .map(|l| match l.split_once("\"status\":") {
            None => l.clone(),
            Some((front, rest)) => {
                format!("{front}\"status\":\"refused\",{}", &rest[rest.find("\"at_us\"").unwrap()..])
            }
        })
        .collect();
    world.write("refused", &changed);
    assert_eq!(world.violations(&["refused", "h1"], &[]), kinds(&[("refused_written", 150)]));

    // A damaged folder holds what stands in front of the damage, and no more.
    flip(&world.path("r2").join("shard-0000/wal/0000000000000000.wal"), 200);
    let said = world.verify(&["h0", "h1"], &["--json"], &all).expect(8, "");
    assert_eq!(said.json()["history"]["counts"]["lost"], 50);
    assert_eq!(said.json()["whole"], false);
    world.verify(&["h0", "h1"], &[], &["p", "r1"]).expect(0, "");
    world.verify(&[], &[], &["p", "r1", "r2"]).expect(6, "");
    world.verify(&[], &["--partial"], &all).expect(2, "--history");
}

#[test]
fn a_bad_history_is_refused_with_its_line() {
    let dir = folder();
    let path = dir.path().join("history");
    let begin = "{\"event\":\"begin\",\"version\":1,\"nodes\":1}\n";
    let append = "{\"event\":\"append\",\"id\":0,\"shard\":0,\"bytes\":1,\"hash\":\"0123456789abcdef\",\"at_us\":1}\n";
    let outcome = "{\"event\":\"outcome\",\"id\":0,\"status\":\"timed_out\",\"at_us\":2}\n";
    let check = |text: &str, dirs: &[&str], message: &str| {
        fs::write(&path, text).unwrap();
        run(&[&["verify", "--history", path.to_str().unwrap()], dirs].concat(), b"").expect(1, message);
    };
    check("", &["none"], "does not begin with a line like {\"event\":\"begin\"");
    check(append, &["none"], "does not begin with a line like");
    check(&format!("{begin}{append}{{\n"), &["none"], "history line 3, at byte 2: '\"' is expected");
    check(&format!("{begin}{append}{outcome}{outcome}"), &["none"], "history line 4: record 0 has a second outcome");
    check(&format!("{begin}{outcome}"), &["none"], "history line 2: record 0 has an outcome and was not appended");
    check(&format!("{begin}{append}{begin}"), &["none"], "history line 3: the history begins a second time");
    check(&format!("{begin}{}\n", " ".repeat(5000)), &["none"], "history line 2, at byte 1025");
    check(&begin.replace('1', "9"), &["none"], "history line 1, at byte 28: the history has version 9");
    check(begin, &["none", "other"], "2 folders are given, the history is of 1 nodes");
    // A line that its writer could not finish tells of nothing; the folder is looked at next.
    check(&format!("{begin}{append}{{\"event\":"), &["none"], "reading the folder none");
    run(&["verify", "--history", "/nowhere/h", "none"], b"").expect(1, "cannot read /nowhere/h");
}
