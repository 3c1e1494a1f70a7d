//! The examples do what they say: each runs to its end, checks itself, prints what it did, and leaves
//! nothing behind.

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples before integration tests, into `examples` beside the tests' `deps`.
fn example(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let profile = me.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples`", path.display());
    path
}

fn run(name: &str) -> String {
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = Command::new(example(name)).env("TMPDIR", temp.path()).output().unwrap();
    let (text, errors) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr).into_owned());
    assert!(out.status.success(), "{name}: {}\n{text}{errors}", out.status);
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
    assert!(left.is_empty(), "{name} left {left:?} behind");
    text
}

#[test]
fn embedded_store_ends_with_two_stores_that_are_the_same() {
    let text = run("embedded_store");
    assert!(text.contains("2200 puts are committed"), "{text}");
    assert!(text.ends_with("both stores are the same\n"), "{text}");
}

#[test]
fn cross_shard_commit_shows_a_bookmark_and_a_commit_that_is_not_whole() {
    let text = run("cross_shard_commit");
    assert!(text.contains("transfer 1 is committed on 2 shards"), "{text}");
    assert_eq!(text.matches("TimedOut").count(), 2, "{text}");
}

#[test]
fn replica_apply_goes_on_where_its_handler_was() {
    let text = run("replica_apply");
    assert!(text.contains("the handler has 1000 records and goes on at LSN"), "{text}");
    assert!(text.ends_with("every number was applied exactly once, over three restarts\n"), "{text}");
}

#[test]
fn bootstrap_ends_with_two_stores_that_are_the_same() {
    let text = run("bootstrap");
    assert!(text.contains("shard 1: a snapshot of 2500 keys at LSN"), "{text}");
    assert!(text.ends_with("both stores are the same, at the same positions\n"), "{text}");
}
