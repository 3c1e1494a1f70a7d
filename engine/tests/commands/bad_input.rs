//! What can be wrong with a folder, a machine or a configuration, and what `towline serve` says of
//! it. A case that this machine cannot produce is skipped, and says why.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use crate::mounts::{Mounted, skip};
use crate::processes::{Node, Said, await_in_step, eventually, folder, run, signal, tail, towline};
use towline::wire::superblock::{COPY, Superblock, VERSION};

/// A user that owns nothing.
const NOBODY: u32 = 65534;

const PRIMARY: [&str; 4] = ["--role", "primary", "--listen", "127.0.0.1:0"];

fn serve(data: &Path, more: &[&str]) -> Result<Node, Said> {
    Node::serve(data, &[&PRIMARY, more].concat())
}

/// It does not start, and says so.
fn refused(data: &Path, more: &[&str], message: &str) {
    serve(data, more).unwrap_err().expect(1, message);
}

fn append(node: &Node, text: &str) {
    run(&["append", "--to", &node.addr(), "--shard", "0"], text.as_bytes()).expect(0, "");
}

/// A folder with a few batches, each of one block, in small segments; its node has ended in order.
fn made(data: &Path, batches: usize) {
    let node = serve(data, &["--segment-size", "64KiB"]).unwrap();
    for n in 0..batches {
        append(&node, &format!("record {n}"));
    }
    node.stop();
}

fn segment(data: &Path, start: u64) -> PathBuf {
    data.join(format!("shard-0000/wal/{start:016x}.wal"))
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn superblock(data: &Path) -> PathBuf {
    data.join("shard-0000/superblock")
}

/// A copy's generation; 0 if it is not whole.
fn generation(bytes: &[u8], n: usize) -> u64 {
    Superblock::check(&bytes[n * COPY..(n + 1) * COPY]).map_or(0, |s| s.generation)
}

fn is_root() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn a_folder_that_another_process_has_open() {
    let dir = folder();
    let data = dir.path().join("p");
    let node = serve(&data, &[]).unwrap();
    let mut other = towline();
    other.arg("serve").arg("--data").arg(&data).args(PRIMARY);
    let said = Node::try_start(&mut other, &dir.path().join("other")).unwrap_err();
    said.expect(1, &format!("p is in use by another process (pid {}): stop that one first", node.child.id()));
    // It has not harmed the first one.
    append(&node, "still here");
    let listen = node.addr();
    let args = ["--role", "primary", "--listen", &listen];
    let said = Node::serve(&dir.path().join("q"), &args).unwrap_err();
    said.expect(1, &format!("listening on {listen}: Address already in use"));
}

#[test]
fn a_folder_that_is_not_what_is_configured() {
    let dir = folder();
    let data = dir.path().join("p");
    serve(&data, &["--shards", "3"]).unwrap().stop();
    refused(&data, &["--shards", "2"], "p was made with 3 shards, 2 are configured: the number cannot be changed");
    let primary = serve(&data, &["--shards", "3", "--replicas", "r1,r2"]).unwrap();
    let replica = |name: &str| {
        let addr = primary.addr();
        Node::serve(&dir.path().join("r"), &["--role", "replica", "--name", name, "--primary", &addr])
    };
    let first = replica("r1").unwrap();
    await_log_of(&primary, "replica=r1");
    first.stop();
    replica("r2").unwrap_err().expect(1, "r is the folder of replica r1, not of r2");
    let r = dir.path().join("r");
    refused(&r, &["--shards", "3"], "r is the folder of replica r1: start it with --role replica");
    primary.stop();
    // An operator who knows that the primary is gone.
    let promoted = serve(&r, &["--shards", "3", "--promote"]).unwrap();
    // Above every term that the old primary can reach by being started again.
    assert!(promoted.word("term").parse::<u64>().unwrap() >= 1 << 32);
    promoted.stop();
    // Above what he has seen elsewhere.
    let again = serve(&r, &["--shards", "3", "--promote", "--above-term", "90000000000000"]).unwrap();
    assert!(again.word("term").parse::<u64>().unwrap() > 90_000_000_000_000);
    again.stop();
    let last = u64::MAX.to_string();
    refused(&r, &["--shards", "3", "--promote", "--above-term", &last], "no term is above 18446744073709551615");
    fs::remove_dir_all(data.join("shard-0001")).unwrap();
    refused(&data, &["--shards", "3"], "shard-0001 is missing although the node has 3 shards");
    fs::rename(data.join("shard-0002"), data.join("shard-0001")).unwrap();
    refused(&data, &["--shards", "3"], "shard-0002 is missing although the node has 3 shards");
    let foreign = dir.path().join("foreign");
    serve(&foreign, &["--shards", "3"]).unwrap().stop();
    fs::rename(foreign.join("shard-0002"), data.join("shard-0002")).unwrap();
    refused(&data, &["--shards", "3"], "folders were mixed up");
}

fn await_log_of(node: &Node, text: &str) {
    node.await_log(text);
}

#[test]
fn a_replica_of_another_system_or_of_no_name_is_not_served() {
    let dir = folder();
    let nodes = ["a", "b"].map(|n| serve(&dir.path().join(n), &["--replicas", "r1", "--commit", "ack_n=1"]).unwrap());
    let [a, b] = &nodes;
    let data = dir.path().join("r1");
    let replica = Node::replica(&data, "r1", &a.addr(), &[]);
    append(a, "of system a");
    await_in_step(a);
    replica.stop();
    let lost = Node::replica(&data, "r1", &b.addr(), &[]);
    lost.await_log("the peer belongs to another system: its folder is another cluster's");
    b.await_log("another system");
    let said = run(&["append", "--to", &b.addr(), "--shard", "0", "--deadline", "100ms"], b"of system b");
    said.expect(3, "");
    lost.stop();
    let verified = run(&["verify", data.to_str().unwrap(), "--json"], b"").expect(0, "").json();
    assert_eq!(verified["shards"][0]["records"], 1);
    let stranger = Node::replica(&dir.path().join("x"), "x", &a.addr(), &[]);
    stranger.await_log("the replica's name is not configured on the primary: see `towline ctl replica add`");
    stranger.stop();
}

/// The version of a superblock that a later build writes.
const NEWER: u16 = VERSION + 1;

#[test]
fn a_superblock_that_is_newer_or_not_whole() {
    let dir = folder();
    let data = dir.path().join("p");
    made(&data, 3);
    let path = superblock(&data);
    let whole = fs::read(&path).unwrap();
    let newer = usize::from(generation(&whole, 1) > generation(&whole, 0));

    let mut bytes = whole.clone();
    bytes[newer * COPY + 8] = NEWER as u8;
    let crc = crc32c::crc32c(&bytes[newer * COPY..(newer + 1) * COPY - 4]);
    bytes[(newer + 1) * COPY - 4..(newer + 1) * COPY].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let says = format!("has format version {NEWER}");
    refused(&data, &[], &format!("superblock {says}, this build reads 2 to {VERSION}: use the build that wrote it"));
    run(&["verify", data.to_str().unwrap()], b"").expect(1, &says);

    // Either copy alone is enough; that one is not whole is told by verify.
    for n in [newer, 1 - newer] {
        fs::write(&path, &whole).unwrap();
        flip(&path, n * COPY + 100);
        let said = run(&["verify", data.to_str().unwrap()], b"").expect(0, "").text();
        assert!(said.contains(&format!("superblock  copy {n}: not whole: superblock CRC is ")), "{said}");
        let node = serve(&data, &[]).unwrap();
        assert_eq!(tail(&node, "0", "--lines"), b"record 0\nrecord 1\nrecord 2\n");
        node.stop();
    }
    flip(&path, 100);
    flip(&path, COPY + 100);
    refused(&data, &[], "neither copy of the superblock can be used (first: superblock CRC is ");
    run(&["verify", data.to_str().unwrap()], b"").expect(6, "");
    fs::remove_file(&path).unwrap();
    refused(&data, &[], "superblock is missing although the node has 1 shards");
}

/// A term that was used must never be used again, also if the newest copy goes bad.
#[test]
fn a_reign_is_in_both_copies_before_it_begins() {
    let dir = folder();
    let data = dir.path().join("p");
    let node = serve(&data, &[]).unwrap();
    assert_eq!(node.word("term"), "1");
    node.kill9();
    let path = superblock(&data);
    let bytes = fs::read(&path).unwrap();
    flip(&path, if generation(&bytes, 1) > generation(&bytes, 0) { COPY } else { 0 } + 100);
    assert_eq!(serve(&data, &[]).unwrap().word("term"), "2");
}

#[test]
fn a_segment_that_is_missing_or_cut() {
    let dir = folder();
    let data = dir.path().join("p");
    made(&data, 40);
    for start in [0, 65536, 131_072] {
        let (path, aside) = (segment(&data, start), dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let message = format!("segment {} is missing, it holds the log from LSN {start} on", path.display());
        refused(&data, &[], &message);
        let verified = run(&["verify", data.to_str().unwrap()], b"").expect(6, "").text();
        assert!(verified.contains("the segment is missing"), "{verified}");
        fs::rename(&aside, &path).unwrap();
    }
    File::options().write(true).open(segment(&data, 65536)).unwrap().set_len(4096).unwrap();
    refused(&data, &[], "0000000000010000.wal has 4096 bytes, 65536 are expected");
}

#[test]
fn damage_in_the_middle_is_refused_with_file_and_offset_and_a_tear_is_cut() {
    let dir = folder();
    let data = dir.path().join("p");
    // The last batch that was durable when the node stopped in order.
    made(&data, 5);
    flip(&segment(&data, 0), 4 * 4096 + 130);
    let file = segment(&data, 0);
    let message = format!("{} is damaged at offset 16384 (LSN 16384): body CRC is ", file.display());
    refused(&data, &[], &message);
    flip(&file, 4 * 4096 + 130);

    // In the middle of what recovery reads after a kill: batches behind it say that it was durable.
    let (floor, end) = eventually("batches behind the floor", || {
        let node = serve(&data, &[]).unwrap();
        (0..4).for_each(|n| append(&node, &format!("more {n}")));
        let end = node.status()["shards"][0]["appended_lsn"].as_u64().unwrap();
        node.kill9();
        let bytes = fs::read(superblock(&data)).unwrap();
        let newer = usize::from(generation(&bytes, 1) > generation(&bytes, 0));
        let floor = Superblock::check(&bytes[newer * COPY..(newer + 1) * COPY]).unwrap().floor_lsn.0;
        // Every batch here is one block.
        (floor + 3 * 4096 < end).then_some((floor, end))
    });
    let bad = floor + 4096;
    let (file, offset) = (segment(&data, bad - bad % 65536), bad % 65536);
    flip(&file, offset as usize + 130);
    let message = format!("{} is damaged at offset {offset} (LSN {bad}): body CRC is ", file.display());
    refused(&data, &[], &message);
    let said = run(&["verify", data.to_str().unwrap(), "--json"], b"").expect(6, "").json();
    assert_eq!(said["shards"][0]["damage"]["lsn"], bad);
    flip(&file, offset as usize + 130);

    // The last batch alone, after a kill: it may never have been acknowledged, so it is a tear.
    let (file, offset) = (segment(&data, (end - 4096) - (end - 4096) % 65536), (end - 4096) % 65536);
    flip(&file, offset as usize + 130);
    let said = run(&["verify", data.to_str().unwrap(), "--json"], b"").expect(0, "").json();
    assert_eq!(said["shards"][0]["tear"]["lsn"], end - 4096);
    let node = serve(&data, &[]).unwrap();
    node.await_log("cut a torn tail");
    assert_eq!(node.status()["shards"][0]["appended_lsn"], end - 4096);
}

#[test]
fn damage_that_a_start_does_not_read_is_never_handed_out() {
    let dir = folder();
    let data = dir.path().join("p");
    made(&data, 6);
    flip(&segment(&data, 0), 2 * 4096 + 130);
    let node = serve(&data, &[]).unwrap();
    let said = run(&["tail", "--from", &node.addr(), "--shard", "0"], b"");
    let said = said.expect(4, "no batch starts at LSN 8192: body CRC is ");
    assert_eq!(said.out, b"record 0\nrecord 1\n");
}

#[test]
fn a_folder_without_permission() {
    let dir = folder();
    let data = dir.path().join("p");
    fs::create_dir(&data).unwrap();
    let mut command = towline();
    command.arg("serve").arg("--data").arg(&data).args(PRIMARY);
    if is_root() {
        // Root is denied nothing.
        command.uid(NOBODY).gid(NOBODY);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    } else {
        fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).unwrap();
    }
    if let Err(e) = command.spawn().map(|mut c| (c.kill(), c.wait())) {
        return skip("wrong permissions", format!("another user cannot run the command: {e}"));
    }
    let said = Node::try_start(&mut command, &dir.path().join("log")).unwrap_err();
    said.expect(1, "p/towline.lock: permission denied. The node needs to read and write its folder");
    // A file where a folder should be.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&file, &[], "making the folder ");
    let mut command = towline();
    command.arg("serve").arg("--data").arg(file.join("in")).args(PRIMARY);
    Node::try_start(&mut command, &dir.path().join("log")).unwrap_err().expect(1, "Not a directory");
}

#[test]
fn a_disk_that_is_full() {
    let dir = folder();
    let at = dir.path().join("small");
    let mounted = match Mounted::new(&at, "tmpfs", "size=1m") {
        Ok(mounted) => mounted,
        Err(e) => return skip("disk full", format!("mount: {e}")),
    };
    let options = ["--segment-size", "64KiB", "--segments-ahead", "1"];
    let (data, filler) = (at.join("p"), at.join("filler"));
    let start = |data: &Path, log: &str| {
        let mut command = towline();
        command.arg("serve").arg("--data").arg(data).args(PRIMARY).args(options);
        Node::try_start(&mut command, &dir.path().join(log))
    };
    match start(&data, "first") {
        Ok(node) => node.stop(),
        Err(said) if said.err.contains("has no direct I/O") => {
            return skip("disk full", "tmpfs has no direct I/O here");
        }
        Err(said) => panic!("{said:?}"),
    }
    // Full at the start.
    let fill = |leave: u64| {
        let mut bytes = 1 << 20;
        while bytes > 4096 && fs::write(&filler, vec![1; bytes]).is_err() {
            bytes -= 4096;
        }
        File::options().write(true).open(&filler).unwrap().set_len(bytes as u64 - leave).unwrap();
    };
    fill(0);
    let said = start(&at.join("q"), "full").unwrap_err();
    said.expect(1, "is full: free some space");
    fs::remove_file(&filler).unwrap();
    let _ = fs::remove_dir_all(at.join("q"));
    // Full while it runs: nothing that was acknowledged is lost, and it goes on once there is space.
    let node = start(&data, "second").unwrap();
    append(&node, "before");
    fill(0);
    let addr = node.addr();
    let input: Vec<String> = (0..40).map(|n| format!("{n} {}", "x".repeat(8000))).collect();
    let said = run(&["append", "--to", &addr, "--shard", "0", "--deadline", "2s"], input.join("\n").as_bytes());
    assert_eq!(said.code, Some(3), "{said:?}");
    node.await_log("is full: free some space: appends are refused until there is space");
    fs::remove_file(&filler).unwrap();
    eventually("space is found again", || {
        let args = ["append", "--to", &addr, "--shard", "0", "--deadline", "2s"];
        (run(&args, b"after").code == Some(0)).then_some(())
    });
    let all = tail(&node, "0", "--lines");
    let all: Vec<&str> = std::str::from_utf8(&all).unwrap().lines().collect();
    assert_eq!((all[0], *all.last().unwrap()), ("before", "after"));
    node.await_log("there is space on the disk again");
    node.stop();
    run(&["verify", data.to_str().unwrap()], b"").expect(0, "");
    drop(mounted);
}

#[test]
fn a_file_system_without_direct_io() {
    let dir = folder();
    let at = dir.path().join("ram");
    match Mounted::new(&at, "ramfs", "") {
        Err(e) => skip("no direct I/O", format!("mount: {e}")),
        Ok(_mounted) => match serve(&at.join("p"), &[]) {
            Ok(_) => skip("no direct I/O", "ramfs has it here"),
            Err(said) => {
                said.expect(1, "has no direct I/O (").expect(1, "use ext4 or xfs on a local disk");
            }
        },
    }
}

#[test]
fn a_machine_without_io_uring() {
    let dir = folder();
    let mut command = towline();
    command.arg("serve").arg("--data").arg(dir.path().join("p")).args(PRIMARY);
    // Load the system call's number; if it is io_uring_setup, the call fails with EPERM.
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let deny = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its filter outlive the calls, and prctl may be called after a fork.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure calls prctl only and allocates nothing.
    unsafe { command.pre_exec(deny) };
    if let Err(e) = command.spawn().map(|mut c| (c.kill(), c.wait())) {
        return skip("no io_uring", format!("seccomp: {e}"));
    }
    let said = Node::try_start(&mut command, &dir.path().join("log")).unwrap_err();
    said.expect(1, "io_uring cannot be used (Operation not permitted")
        .expect(1, "sysctl kernel.io_uring_disabled=0, and the seccomp profile of a container");
}

#[test]
fn too_little_memory_that_may_be_locked() {
    let dir = folder();
    let data = dir.path().join("p");
    fs::create_dir(&data).unwrap();
    let mut command = towline();
    command.arg("serve").arg("--data").arg(&data).args(PRIMARY).args(["--cpus", "0"]);
    if is_root() {
        // Root may lock what it likes.
        command.uid(NOBODY).gid(NOBODY);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let lower = || {
        let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
        // SAFETY: the limit outlives the call, and setrlimit may be called after a fork.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure calls setrlimit only and allocates nothing.
    unsafe { command.pre_exec(lower) };
    if let Err(e) = command.spawn().map(|mut c| (c.kill(), c.wait())) {
        return skip("memlock", format!("another user cannot run the command: {e}"));
    }
    let said = Node::try_start(&mut command, &dir.path().join("log")).unwrap_err();
    said.expect(1, "65536 bytes may be locked, 1 cores need 720896: raise it (ulimit -l");
}

#[test]
fn a_configuration_that_cannot_hold() {
    let dir = folder();
    let data = dir.path().join("p");
    let usage = |more: &[&str], message: &str| {
        serve(&data, more).unwrap_err().expect(2, message);
    };
    let open = ["--role", "primary", "--listen", "0.0.0.0:0"];
    let said = Node::serve(&data, &open).unwrap_err();
    said.expect(1, "0.0.0.0:0 is not a loopback address, and this version cannot authenticate peers")
        .expect(1, "--insecure-no-auth");
    for (policy, message) in [
        ("quorum", "unknown commit policy \"quorum\": use local, ack_n=N"),
        ("ack_n", "ack_n needs a number of replicas from 1 to 255, as in ack_n=2"),
        ("ack_n=0", "ack_n needs a number"),
        ("ack_n=1:flush", "the level is one of received, flushed, applied"),
        ("local:flushed", "unknown commit policy"),
    ] {
        usage(&["--commit", policy], message);
    }
    refused(
        &data,
        &["--commit", "ack_n=2", "--replicas", "r1"],
        "commit policy ack_n=2:flushed needs 2 replicas, 1 are configured",
    );
    refused(&data, &["--commit", "majority"], "commit policy majority:flushed needs 1 replicas, 0 are configured");
    refused(&data, &["--replicas", "r1,R2"], "\"R2\" is no replica name");
    refused(&data, &["--replicas", "r1,r1"], "replica r1 is named twice");
    refused(
        &data,
        &["--segment-size", "65537"],
        "segment_bytes is 65537, it must be a multiple of 4096 (--segment-size",
    );
    refused(&data, &["--shards", "0"], "shards is 0, it must be from 1 to 1024");
    refused(&data, &["--cpus", "0,65535"], "core 65535 is configured, this machine has the cores 0 to ");
    usage(&["--segment-size", "64MB"], "unit `MB` is not known here");
    usage(&["--primary", "127.0.0.1:1"], "primary is for a replica only");
    usage(&["--frobnicate"], "unexpected argument '--frobnicate'");
    assert!(!data.join("shard-0000").exists(), "nothing was touched");
    let open = Node::serve(&data, &[&open[..], &["--insecure-no-auth"]].concat()).unwrap();
    signal(&open.child, libc::SIGTERM);
    open.await_log("stopped");
}
