//! `towline backup` and `towline restore` from the outside: what comes back is what was there, and what
//! is not whole is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::processes::{Node, await_in_step, end_of, eventually, fixed_address, folder, run, tail, towline};

const SEGMENT: &str = "64KiB";

/// Lines that differ, about `bytes` of them.
fn lines(bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0.. {
        if out.len() >= bytes {
            break;
        }
        out.extend(format!("line {n} {}\n", "x".repeat(n % 300)).into_bytes());
    }
    out
}

fn append(node: &Node, shard: &str, input: &[u8]) {
    run(&["append", "--to", &node.addr(), "--shard", shard], input).expect(0, "");
}

/// A primary of two shards with something in them.
fn primary(dir: &Path, more: &[&str]) -> Node {
    let options = [&["--shards", "2", "--segment-size", SEGMENT], more].concat();
    let node = Node::primary(&dir.join("p"), "127.0.0.1:0", &options);
    append(&node, "0", &lines(400_000));
    append(&node, "1", b"one line\n");
    node
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A whole backup of a stopped node, in `dir/b`.
fn backup(dir: &Path) -> PathBuf {
    let node = primary(dir, &[]);
    node.stop();
    let b = dir.join("b");
    run(&["backup", "--data", text(&dir.join("p")), text(&b)], b"").expect(0, "");
    b
}

#[test]
fn a_backup_of_a_loaded_primary_is_restored_as_a_replica_and_as_a_primary() {
    let dir = folder();
    let node = primary(dir.path(), &["--replicas", "r1", "--commit", "local"]);
    let b = dir.path().join("b");
    let addr = node.addr();
    let said = run(&["backup", "--from", &addr, text(&b), "--json"], b"").expect(0, "");
    let told: serde_json::Value = serde_json::from_str(&said.text()).unwrap();
    assert_eq!(told["shards"].as_array().unwrap().len(), 2);
    let before = tail(&node, "0", "--lines");
    // It goes on, and knows of no backup any more.
    append(&node, "0", b"after the backup\n");
    let status = run(&["status", "--at", &addr, "--json"], b"").expect(0, "");
    assert!(!status.text().contains("backup-"), "{}", status.text());

    let r1 = dir.path().join("r1");
    run(&["restore", text(&b), text(&r1), "--name", "r1"], b"").expect(0, "");
    run(&["verify", text(&r1)], b"").expect(0, "");
    let replica = Node::replica(&r1, "r1", &addr, &[]);
    await_in_step(&node);
    replica.stop();
    node.stop();

    // Everything else is lost.
    let p2 = dir.path().join("p2");
    fs::create_dir(&p2).unwrap();
    run(&["restore", text(&b), text(&p2)], b"").expect(0, "");
    let refused =
        run(&["serve", "--data", text(&p2), "--role", "primary", "--listen", "127.0.0.1:0", "--shards", "2"], b"");
    refused.expect(1, "--promote");
    let node = Node::primary(&p2, "127.0.0.1:0", &["--promote", "--shards", "2"]);
    let after = tail(&node, "0", "--lines");
    assert!(after == before || after.starts_with(&before), "{} and {} bytes", after.len(), before.len());
    append(&node, "0", b"a new reign\n");
    node.stop();
}

#[test]
fn a_backup_of_a_primary_that_has_let_go_of_its_beginning_has_what_it_keeps() {
    let dir = folder();
    let node = primary(dir.path(), &["--retain", "128KiB"]);
    let b = dir.path().join("b");
    run(&["backup", "--from", &node.addr(), text(&b)], b"").expect(0, "");
    node.stop();
    let p2 = dir.path().join("p2");
    let said = run(&["restore", text(&b), text(&p2), "--json"], b"").expect(0, "");
    let told: serde_json::Value = serde_json::from_str(&said.text()).unwrap();
    let node = Node::primary(&p2, "127.0.0.1:0", &["--promote", "--shards", "2"]);
    let oldest = told["shards"][0]["oldest_lsn"].as_u64().unwrap();
    let records = told["shards"][0]["records"].as_u64().unwrap();
    assert!(records > 0);
    assert_eq!(tail(&node, "0", "--lines").split(|b| *b == b'\n').count() as u64, records + 1, "from {oldest} on");
    node.stop();
}

/// How much of a shard's log is in a backup that is being taken.
fn taken(b: &Path) -> usize {
    let files = fs::read_dir(b.join("data/shard-0000/wal")).into_iter().flatten().flatten();
    files.map(|f| fs::read(f.path()).unwrap_or_default().iter().filter(|b| **b != 0).count()).sum()
}

#[test]
fn a_backup_that_was_cut_goes_on_from_where_it_is() {
    let dir = folder();
    let (p, b) = (dir.path().join("p"), dir.path().join("b"));
    let at = fixed_address();
    // Some ten seconds' worth, in batches that are much smaller than what is waited for.
    let options = ["--shards", "2", "--segment-size", SEGMENT, "--batch-size", "8KiB", "--catch-up-max", "64KiB"];
    let node = Node::primary(&p, &at, &options);
    append(&node, "0", &lines(400_000));
    append(&node, "1", b"one line\n");
    let before = tail(&node, "0", "--lines");
    let begin = |more: &[&str]| {
        let mut command = towline();
        command.args(["backup", "--from", &at, text(&b)]).args(more).spawn().unwrap()
    };
    // The one who takes it dies.
    let mut taking = begin(&[]);
    eventually("a part of the log", || (taken(&b) > 20_000).then_some(()));
    taking.kill().unwrap();
    end_of(&mut taking);
    run(&["backup", "--from", &at, text(&b)], b"").expect(1, "not empty");
    run(&["restore", text(&b), text(&dir.path().join("r"))], b"").expect(1, "not finished");
    let none = dir.path().join("none");
    fs::create_dir(&none).unwrap();
    run(&["backup", "--from", &at, "--resume", text(&none)], b"").expect(1, "no backup to go on with: unfinished: ");
    // Then the primary, which comes again and is told to send as fast as it can.
    let had = taken(&b);
    let mut taking = begin(&["--resume"]);
    eventually("a part more", || (taken(&b) > had + 20_000).then_some(()));
    node.kill9();
    let node = Node::primary(&p, &at, &options);
    run(&["ctl", "set", "catch-up-max", "none", "--at", &at], b"").expect(0, "");
    assert_eq!(end_of(&mut taking).code(), Some(0));
    run(&["backup", "--from", &at, "--resume", text(&b)], b"").expect(1, "the backup in it is whole");
    node.stop();
    let p2 = dir.path().join("p2");
    run(&["restore", text(&b), text(&p2)], b"").expect(0, "");
    let node = Node::primary(&p2, "127.0.0.1:0", &["--promote", "--shards", "2"]);
    assert_eq!(tail(&node, "0", "--lines"), before);
    node.stop();
}

/// Every file below a folder with its bytes.
fn picture(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(f) = folders.pop() {
        for entry in fs::read_dir(&f).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(out.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    out
}

#[test]
fn a_backup_that_is_not_what_its_manifest_says_is_refused_and_leaves_nothing_in_the_place() {
    let dir = folder();
    let b = backup(dir.path());
    let out = dir.path().join("out");
    let refused = |words: &str| {
        run(&["restore", text(&b), text(&out)], b"").expect(1, words);
        assert!(!out.exists(), "{words}");
        assert!(!dir.path().join("out.restoring").exists(), "{words}");
    };
    let whole = picture(&b);
    let segment = b.join("data/shard-0000/wal/0000000000010000.wal");
    let bytes = whole[&segment].clone();

    let mut changed = bytes.clone();
    changed[70_000 - 65_536] ^= 1;
    fs::write(&segment, &changed).unwrap();
    refused("its CRC is not the manifest's");
    fs::write(&segment, &bytes[..bytes.len() - 1]).unwrap();
    refused("65535 bytes, 65536 are expected");
    fs::remove_file(&segment).unwrap();
    refused("is missing");
    std::os::unix::fs::symlink("/etc/hostname", &segment).unwrap();
    refused("neither a file nor a folder");
    fs::remove_file(&segment).unwrap();
    fs::write(&segment, &bytes).unwrap();

    let stranger = b.join("data/shard-0000/wal/00000000ffff0000.wal");
    fs::write(&stranger, &bytes).unwrap();
    refused("is not in the manifest");
    fs::remove_file(&stranger).unwrap();

    let manifest = b.join("manifest.json");
    let said = whole[&manifest].clone();
    let mut changed = said.clone();
    changed[20] ^= 1;
    fs::write(&manifest, &changed).unwrap();
    refused("manifest.json is damaged");
    fs::remove_file(&manifest).unwrap();
    refused("not finished");
    fs::write(&manifest, &said).unwrap();

    // A folder with something in it stays as it is; an unfinished restore is recognised.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), b"1").unwrap();
    run(&["restore", text(&b), text(&out)], b"").expect(1, "is not empty");
    assert_eq!(fs::read(out.join("mine")).unwrap(), b"1");
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(dir.path().join("out.restoring")).unwrap();
    run(&["restore", text(&b), text(&out)], b"").expect(1, "a restore was not finished");
    fs::remove_dir(dir.path().join("out.restoring")).unwrap();
    run(&["restore", text(&b), text(&out), "--name", "No Name"], b"").expect(1, "no replica name");

    assert_eq!(picture(&b), whole, "a backup is only read");
    // Whoever made it was killed behind its manifest.
    fs::write(b.join("unfinished"), b"s1\n").unwrap();
    run(&["restore", text(&b), text(&out)], b"").expect(0, "");
    run(&["verify", text(&out)], b"").expect(0, "");
}

#[test]
fn a_backup_is_made_of_a_whole_log_that_stands_still_and_in_an_empty_place() {
    let dir = folder();
    let node = primary(dir.path(), &[]);
    let (p, b) = (dir.path().join("p"), dir.path().join("b"));
    run(&["backup", "--data", text(&p), text(&b)], b"").expect(1, "");
    let there = picture(&b);
    assert!(there.is_empty(), "{:?}", there.keys());
    node.stop();
    fs::write(b.join("mine"), b"1").unwrap();
    run(&["backup", "--data", text(&p), text(&b)], b"").expect(1, "not empty");
    fs::remove_file(b.join("mine")).unwrap();
    let segment = p.join("shard-0000/wal/0000000000000000.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[140] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    run(&["backup", "--data", text(&p), text(&b)], b"").expect(6, "");
    assert!(!b.join("manifest.json").exists());
    bytes[140] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    run(&["backup", "--data", text(&p), text(&b)], b"").expect(0, "");
    run(&["backup", "--from", "127.0.0.1:1", text(&dir.path().join("c"))], b"").expect(5, "");
    assert!(!dir.path().join("c").exists());
}

#[test]
fn a_shard_that_holds_nothing_comes_back_too() {
    let dir = folder();
    let node = Node::primary(&dir.path().join("p"), "127.0.0.1:0", &["--shards", "2", "--segment-size", SEGMENT]);
    append(&node, "0", b"one line\n");
    node.stop();
    let (p, b, out) = (dir.path().join("p"), dir.path().join("b"), dir.path().join("out"));
    run(&["backup", "--data", text(&p), text(&b)], b"").expect(0, "");
    run(&["restore", text(&b), text(&out)], b"").expect(0, "");
    run(&["verify", text(&out)], b"").expect(0, "");
    let node = Node::primary(&out, "127.0.0.1:0", &["--promote", "--shards", "2"]);
    append(&node, "1", b"another line\n");
    assert_eq!(tail(&node, "1", "--lines"), b"another line\n");
    node.stop();
}
