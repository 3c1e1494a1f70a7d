//! The `towline` command from the outside: what goes in comes out, on the primary and on a replica;
//! exit codes, signals, closed pipes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;

use crate::processes::{
    Node, PATIENCE, Said, await_in_step, end_of, eventually, fixed_address, folder, run, run_with, signal, tail,
    towline,
};

/// A primary of three shards and one replica; commits wait for the replica.
fn pair(dir: &Path) -> (Node, Node) {
    let options = ["--shards", "3", "--replicas", "r1", "--commit", "all", "--segment-size", "1MiB"];
    let primary = Node::primary(&dir.join("p"), "127.0.0.1:0", &options);
    let replica = Node::replica(&dir.join("r1"), "r1", &primary.addr(), &[]);
    (primary, replica)
}

fn append(node: &Node, more: &[&str], input: &[u8]) -> Said {
    let addr = node.addr();
    let mut args = vec!["append", "--to", &addr];
    args.extend(more);
    run(&args, input)
}

/// What a replica knows to be committed follows the primary's commit by a heartbeat or a batch.
fn await_tail(replica: &Node, shard: &str, form: &str, expected: &[u8]) {
    eventually("the replica's commit", || (tail(replica, shard, form) == expected).then_some(()));
}

#[test]
fn what_is_appended_comes_out_of_tail_in_every_framing() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());

    let lines: String = (0..5000).map(|n| format!("line {n}{}\n", " x".repeat(n % 40))).collect();
    let lines = format!("\n\n{lines}no newline at the end, but one in the output\n").into_bytes();
    let said = append(&primary, &["--shard", "0", "--lines"], &lines[..lines.len() - 1]).expect(0, "");
    assert!(said.text().starts_with("committed seq 0..") && said.text().contains("acks 1/1"), "{said:?}");
    assert_eq!(tail(&primary, "0", "--lines"), lines);
    await_tail(&replica, "0", "--lines", &lines);

    let mut framed = Vec::new();
    for record in [&b""[..], b"\n\n\0\xff", &[b'z'; 300_000], b"", b"last"] {
        framed.extend((record.len() as u32).to_le_bytes());
        framed.extend(record);
    }
    append(&primary, &["--shard", "1", "--framed"], &framed).expect(0, "");
    assert_eq!(tail(&primary, "1", "--framed"), framed);
    await_tail(&replica, "1", "--framed", &framed);
    // A tail is an append's input.
    append(&primary, &["--shard", "1", "--framed"], &tail(&replica, "1", "--framed")).expect(0, "");
    assert_eq!(tail(&primary, "1", "--framed"), framed.repeat(2));

    let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let said = append(&primary, &["--shard", "2", "--chunk", "64KiB", "--json"], &bytes).expect(0, "");
    let records: u64 = said
        .text()
        .lines()
        .map(|line| {
            let run: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&run["status"], &run["wanted"]), (&"committed".into(), &1.into()), "{line}");
            run["records"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(records, bytes.len().div_ceil(64 << 10) as u64);
    assert!(tail(&primary, "2", "--raw") == bytes, "a raw tail differs");
    await_tail(&replica, "2", "--raw", &bytes);
    replica.stop();
    primary.stop();
}

#[test]
fn a_tail_that_follows_gets_what_is_committed_from_then_on() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());
    append(&primary, &["--shard", "1"], b"before\n").expect(0, "");
    await_in_step(&primary);
    for node in [&primary, &replica] {
        let addr = node.addr();
        let follow = ["tail", "--from", &addr, "--shard", "1", "--start", "oldest", "--follow"];
        let mut child = towline().args(follow).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "before");
        let word = format!("now, from {}", node.line);
        append(&primary, &["--shard", "1"], word.as_bytes()).expect(0, "");
        let found = lines.map(Result::unwrap).find(|l| *l == word);
        assert!(found.is_some());
        let _ = child.kill();
        end_of(&mut child);
    }
    // From the end on there is nothing yet, and that is the end.
    let addr = primary.addr();
    let said = run(&["tail", "--from", &addr, "--shard", "1", "--start", "end", "--until-end"], b"");
    assert_eq!(said.expect(0, "").out, b"");
    // A node that stops says so, and the tail says where to go on.
    let args = ["tail", "--from", &addr, "--shard", "1", "--start", "oldest", "--follow"];
    let mut child = towline().args(args).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    primary.stop();
    assert_eq!(end_of(&mut child).code(), Some(5));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("goodbye (it is being stopped)") && err.contains("resume with --start"), "{err}");
}

#[test]
fn status_verify_and_dump_tell_of_the_same_log() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());
    append(&primary, &["--shard", "2"], b"one\ntwo\x01\nthree\n").expect(0, "");
    let status = await_in_step(&primary);
    assert_eq!(status["node"]["role"], "primary");
    assert_eq!(status["node"]["policy"], "all:flushed");
    let shard = &status["shards"][2];
    assert_eq!((&shard["tail_seq"], &shard["term"]), (&3.into(), &1.into()));
    let shown = run(&["status", "--at", &primary.addr()], b"").expect(0, "").text();
    assert!(shown.contains("role      primary") && shown.contains("r1       live"), "{shown}");
    assert_eq!(replica.status()["node"]["name"], "r1");

    // While both run, and again when both are stopped.
    for _ in 0..2 {
        for name in ["p", "r1"] {
            let data = dir.path().join(name);
            let data = data.to_str().unwrap();
            let report = run(&["verify", data, "--json"], b"").expect(0, "").json();
            let verified = &report["shards"][2];
            assert_eq!(report["shards"].as_array().unwrap().len(), 3);
            assert_eq!((&verified["chain"], &verified["end_lsn"]), (&shard["chain"], &shard["appended_lsn"]));
            assert_eq!((&verified["records"], &verified["damage"]), (&3.into(), &serde_json::Value::Null));
            assert_eq!(report["shards"][0]["end_lsn"], 0);
            let shown = run(&["verify", data], b"").expect(0, "").text();
            assert!(shown.contains("shard 2: whole") && shown.contains("every shard is whole: 3 checked"), "{shown}");

            let shown = run(&["dump", data, "--shard", "2"], b"").expect(0, "").text();
            let lines: Vec<&str> = shown.lines().filter(|l| !l.starts_with("batch ")).collect();
            assert_eq!(lines, ["  seq 0 bytes 3 \"one\"", "  seq 1 bytes 4 \"two\\x01\"", "  seq 2 bytes 5 \"three\""]);
            assert!(shown.starts_with("batch lsn 0 term 1 seq 0.."), "{shown}");
            let shown = run(&["dump", data, "--shard", "2", "--limit", "2"], b"").expect(0, "").text();
            assert_eq!(shown.lines().filter(|l| l.starts_with("  seq")).count(), 2);
            run(&["dump", data, "--shard", "2", "--start", "40960"], b"").expect(1, "no batch begins at LSN 40960");
            run(&["dump", data, "--shard", "7"], b"").expect(6, "the shard has no superblock");
        }
        if primary.logged().contains("stopping") {
            break;
        }
        for node in [&replica, &primary] {
            signal(&node.child, libc::SIGINT);
            node.await_log("stopped");
        }
    }
    run(&["verify", dir.path().to_str().unwrap()], b"").expect(1, "no shard is in it");
    run(&["verify", "/nonexistent"], b"").expect(1, "/nonexistent");
}

/// Nothing that a writer does while its folder is read looks like damage: not its log's end, not
/// segments that it lets go of and uses again.
#[test]
fn verify_finds_a_node_that_is_writing_whole() {
    let dir = folder();
    let data = dir.path().join("p");
    let options = ["--segment-size", "64KiB", "--retain", "512KiB", "--batch-size", "16KiB", "--record-max", "16KiB"];
    let primary = Node::primary(&data, "127.0.0.1:0", &options);
    let args = ["append", "--to", &primary.addr(), "--shard", "0", "--chunk", "900"];
    let mut child = towline().args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || while stdin.write_all(&[b'x'; 9000]).is_ok() {});
    let (mut looks, mut recycled) = (0, false);
    while looks < 60 || !recycled {
        let said = run(&["verify", data.to_str().unwrap(), "--json"], b"");
        assert_eq!(said.code, Some(0), "{said:?}");
        recycled |= said.json()["shards"][0]["oldest_lsn"].as_u64().unwrap() > 0;
        looks += 1;
        assert!(looks < 5000);
    }
    signal(&child, libc::SIGKILL);
    end_of(&mut child);
    feeding.join().unwrap();
}

#[test]
fn verify_and_dump_name_file_and_offset_of_a_flipped_bit() {
    let dir = folder();
    let data = dir.path().join("p");
    let primary = Node::primary(&data, "127.0.0.1:0", &[]);
    for n in 0..4 {
        append(&primary, &["--shard", "0"], format!("record {n}").as_bytes()).expect(0, "");
    }
    primary.stop();
    let segment = data.join("shard-0000/wal/0000000000000000.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096 + 140] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let said = run(&["verify", data.to_str().unwrap(), "--json"], b"").expect(6, "");
    let damage = &said.json()["shards"][0]["damage"];
    assert_eq!((&damage["offset"], &damage["lsn"]), (&4096.into(), &4096.into()));
    assert_eq!(damage["file"], segment.to_str().unwrap());
    assert!(damage["reason"].as_str().unwrap().contains("body CRC"), "{damage}");
    let said = run(&["verify", data.to_str().unwrap()], b"").expect(6, "");
    assert!(said.text().contains("shard 0: DAMAGED") && said.text().contains("1 of 1 shards are damaged"), "{said:?}");
    let said = run(&["dump", data.to_str().unwrap(), "--shard", "0"], b"").expect(6, "is damaged at offset 4096");
    assert!(said.text().contains("\"record 0\"") && !said.text().contains("\"record 1\""), "{said:?}");
    // A tear is no damage: nothing behind it was acknowledged.
    bytes[4096 + 140] ^= 1;
    bytes[3 * 4096 + 140] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    // The last batch was known to be committed when the node stopped.
    run(&["verify", data.to_str().unwrap()], b"").expect(6, "");
}

#[test]
fn sigterm_and_sigint_end_a_node_in_order_and_it_goes_on_from_there() {
    let dir = folder();
    let data = dir.path().join("p");
    let mut expected = Vec::new();
    for (start, number) in [libc::SIGTERM, libc::SIGINT, libc::SIGTERM].into_iter().enumerate() {
        let primary = Node::primary(&data, "127.0.0.1:0", &["--replicas", "r1"]);
        assert_eq!(primary.word("term"), (start + 1).to_string());
        let line = format!("start {start}\n");
        append(&primary, &["--shard", "0"], line.as_bytes()).expect(0, "");
        expected.extend(line.bytes());
        assert_eq!(tail(&primary, "0", "--lines"), expected);
        assert_eq!(primary.stop_with(number).code(), Some(0));
    }
    // A replica whose primary is not there waits for it, and ends when it is told to.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap().to_string();
    let mut args = vec!["serve", "--role", "replica", "--name", "r1", "--primary", &addr, "--data"];
    let data = dir.path().join("r1");
    args.push(data.to_str().unwrap());
    drop(nobody);
    let mut child = towline().args(&args).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the primary: cannot connect to"), "{line}");
    signal(&child, libc::SIGTERM);
    assert_eq!(end_of(&mut child).code(), Some(0));
}

#[test]
fn exit_codes_tell_what_became_of_an_append() {
    let dir = folder();
    let options = ["--replicas", "r1", "--commit", "ack_n=1", "--record-max", "1000", "--deadline", "30s"];
    let primary = Node::primary(&dir.path().join("p"), "127.0.0.1:0", &options);
    let shard = ["--shard", "0"];
    let with = |more: &[&str], input: &[u8]| append(&primary, &[&shard, more].concat(), input);

    let said = with(&["--deadline", "50ms"], b"a\n").expect(3, "");
    let line = "durable here: may be durable; not confirmed by 1 replica";
    assert!(said.text().starts_with("timed out seq 0..1") && said.text().trim_end().ends_with(line), "{said:?}");
    let said = with(&["--commit", "ack_n=2"], b"a\n").expect(4, "1 are refused");
    assert!(said.text().contains("the policy wants more replicas than are configured"), "{said:?}");
    with(&["--commit", "local"], b"a\n").expect(0, "");
    with(&["--chunk", "1001"], b"a").expect(1, "--chunk 1001 is more than the 1000 bytes the node accepts");
    with(&["--commit", "local"], &[b'x'; 1001]).expect(1, "longer than the 1000 bytes the node accepts");
    with(&["--framed", "--commit", "local"], b"\x04\0\0\0abc").expect(1, "stdin ends in the middle of the record");
    with(&["--commit", "any"], b"").expect(2, "`any` is not a commit policy");
    with(&["--deadline", "5"], b"").expect(2, "lacks a unit");
    append(&primary, &["--shard", "1"], b"a\n").expect(4, "there is no such shard");
    let from = primary.addr();
    run(&["tail", "--from", &from, "--shard", "1"], b"").expect(4, "there is no such shard");
    run(&["tail", "--from", &from, "--shard", "0", "--start", "8192000"], b"").expect(4, "lies behind the end");
    run(&["tail", "--from", &from, "--shard", "0", "--start", "1"], b"").expect(2, "multiples of 4096");
    run(&["nothing"], b"").expect(2, "unrecognized subcommand");

    let replica = Node::replica(&dir.path().join("r1"), "r1", &primary.addr(), &[]);
    with(&[], b"a\n").expect(0, "");
    append(&replica, &shard, b"a\n").expect(4, "this node is a replica");
    // The refusal arrives although the node leaves most of what is sent unread.
    append(&replica, &shard, &b"some more of it\n".repeat(1 << 18)).expect(4, "this node is a replica");
    replica.stop();
    primary.stop();
    for args in [
        ["append", "--shard", "0", "--to", &from],
        ["tail", "--shard", "0", "--from", &from],
        ["status", "--json", "--at", &from, "--json"],
    ] {
        let args: Vec<&str> = if args[0] == "status" { args[..4].into() } else { args.into() };
        run(&args, b"").expect(5, "cannot connect");
    }

    let options = ["--replicas", "r1", "--commit", "ack_n=1", "--too-few", "refuse"];
    let primary = Node::primary(&dir.path().join("p"), "127.0.0.1:0", &options);
    let said = append(&primary, &shard, b"a\n").expect(4, "1 are refused");
    assert!(said.text().contains("nothing was written: too few replicas are connected (0 of 1)"), "{said:?}");
}

#[test]
fn a_closed_pipe_ends_a_command_without_noise() {
    let dir = folder();
    let primary = Node::primary(&dir.path().join("p"), "127.0.0.1:0", &[]);
    let addr = primary.addr();
    let many: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    append(&primary, &["--shard", "0"], many.as_bytes()).expect(0, "");
    let data = dir.path().join("p");
    for (args, code) in [
        (vec!["tail", "--from", &addr, "--shard", "0", "--follow"], 0),
        (vec!["dump", data.to_str().unwrap(), "--shard", "0"], 0),
        (vec!["append", "--to", &addr, "--shard", "0"], 1),
    ] {
        let mut child = towline().args(&args).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        stdin.write_all(b"one\n").unwrap();
        stdout.read_exact(&mut [0; 8]).unwrap();
        drop(stdout);
        // An append reads on until it has something to say.
        let began = std::time::Instant::now();
        while stdin.write_all(b"another\n").is_ok() && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        assert_eq!(end_of(&mut child).code(), Some(code), "{args:?}");
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(err, "", "{args:?}");
    }
}

#[test]
fn settings_come_from_a_file_and_flags_win() {
    let dir = folder();
    let file = dir.path().join("t.toml");
    let data = dir.path().join("p");
    let text = format!(
        "data = {data:?}\nrole = \"primary\"\nlisten = \"127.0.0.1:0\"\nshards = 4\nsegment-size = \"64KiB\"\n\
         replicas = [\"r1\"]\ncommit = \"ack_n=1:received\"\nretain = \"1MiB\"\n"
    );
    fs::write(&file, &text).unwrap();
    let serve = |more: &[&str]| {
        let mut command = towline();
        command.args(["serve", "--config"]).arg(&file).args(more);
        Node::try_start(&mut command, &dir.path().join("log"))
    };
    let primary = serve(&["--shards", "2", "--commit", "local"]).unwrap();
    assert_eq!(primary.word("shards"), "2");
    let status = primary.status();
    assert_eq!((&status["node"]["policy"], &status["node"]["segment_bytes"]), (&"local".into(), &65536.into()));
    assert_eq!(primary.word("system"), status["node"]["system"]);
    primary.stop();
    serve(&[]).unwrap_err().expect(1, "was made with 2 shards, 4 are configured");
    fs::write(&file, text + "segment_size = 1").unwrap();
    serve(&[]).unwrap_err().expect(1, "t.toml:9:1: segment_size: unknown field `segment_size`, expected one of `data`");
    fs::write(&file, "role = \"primary\"").unwrap();
    serve(&[]).unwrap_err().expect(2, "--data is needed, or data in the file");
    serve(&["--data", "x", "--write-depth", "65"]).unwrap_err().expect(2, "--listen is needed");
    let args = ["--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--write-depth", "65"];
    serve(&args).unwrap_err().expect(1, "write_depth is 65, it must be from 1 to 64 (--write-depth, or write-depth in");
}

#[test]
fn logs_go_where_they_are_told_to() {
    let dir = folder();
    for (level, lines) in [("off", false), ("info", true)] {
        let log = dir.path().join(level);
        let mut command = towline();
        command.env("TOWLINE_LOG", level).args(["serve", "--role", "primary", "--listen", "127.0.0.1:0", "--data"]);
        let node = Node::try_start(command.arg(dir.path().join("p")), &log).unwrap();
        node.stop();
        assert_eq!(fs::read_to_string(log).unwrap().contains("SIGTERM: stopping"), lines);
    }
    let mut command = towline();
    command.env("TOWLINE_LOG", "loud=very=much").args(["serve", "--role", "primary", "--listen", "127.0.0.1:0"]);
    run_with(command.args(["--data", "unused"]), b"").expect(1, "TOWLINE_LOG=loud=very=much: ");
    assert!(!Path::new("unused").exists());
}

#[test]
fn a_node_whose_log_nobody_reads_goes_on() {
    let (dir, at) = (folder(), fixed_address());
    let mut command = towline();
    command.args(["serve", "--role", "primary", "--listen", &at, "--data"]).arg(dir.path().join("p"));
    let mut node = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = node.stderr.as_ref().unwrap();
    // SAFETY: no memory is involved.
    let room = unsafe { libc::fcntl(stderr.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(room, 4096);
    eventually("the node", || (run(&["status", "--at", &at], b"").code == Some(0)).then_some(()));
    // Each time two lines of some hundred bytes.
    for _ in 0..60 {
        run(&["slot", "create", "reader", "--at", &at], b"").expect(0, "");
        run(&["slot", "drop", "reader", "--at", &at], b"").expect(0, "");
    }
    run(&["append", "--to", &at, "--shard", "0"], b"one").expect(0, "");
    // What stands in the pipe is what came first; it ends although nobody reads the rest.
    signal(&node, libc::SIGTERM);
    assert_eq!(end_of(&mut node).code(), Some(0));
    let mut said = String::new();
    node.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!((3000..=4096).contains(&said.len()) && said.contains("slot made"), "{said}");
}

#[test]
fn a_node_whose_shard_has_stopped_ends_and_says_why() {
    let dir = folder();
    let data = dir.path().join("p");
    let mut primary = Node::primary(&data, "127.0.0.1:0", &["--segment-size", "64KiB"]);
    append(&primary, &["--shard", "0"], b"before\n").expect(0, "");
    // The next segment cannot be made: an error that no retry heals.
    fs::remove_dir_all(data.join("shard-0000/wal")).unwrap();
    let code = append(&primary, &["--shard", "0", "--chunk", "8KiB"], &[b'x'; 1 << 20]).code;
    assert!(matches!(code, Some(3..=5)), "{code:?}");
    assert_eq!(end_of(&mut primary.child).code(), Some(7));
    let logged = primary.logged();
    // The folder is missed, or the making fails, or the opening, if that was made just before it went.
    let says = |what| logged.contains(&format!("towline: shard 0 has stopped: {what} "));
    assert!(says("making a segment in") || says("making segment") || says("opening segment"), "{logged}");
}

#[test]
fn slots_are_made_and_dropped_on_a_running_primary_and_the_status_shows_them() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());
    let at = primary.addr();
    let slot = |more: &[&str]| run(&[&["slot"], more, &["--at", &at]].concat(), b"");
    let status = || run(&["status", "--at", &at], b"").expect(0, "").text();
    append(&primary, &["--shard", "0", "--lines"], b"one\ntwo\n").expect(0, "");
    slot(&["create", "reader"]).expect(0, "");
    slot(&["create", "reader"]).expect(4, "slot reader is there already");
    slot(&["create", "guest", "--temporary"]).expect(0, "");
    slot(&["drop", "nobody"]).expect(4, "there is no slot nobody");
    slot(&["drop", "No Name"]).expect(1, "is no replica name");
    slot(&["drop", "r1", "--temporary"]).expect(2, "");
    let shown = status();
    let row = |name: &str, kind: &str| {
        shown.lines().filter(|l| l.split_whitespace().skip(1).take(2).eq([name, kind])).count()
    };
    assert_eq!((row("r1", "configured"), row("reader", "made"), row("guest", "temporary")), (3, 3, 3), "{shown}");
    slot(&["drop", "r1"]).expect(0, "");
    eventually("the replica is told", || {
        let told = run(&["status", "--at", &replica.addr()], b"").text();
        told.contains("the slot was removed").then_some(())
    });
    assert!(status().contains("removed"));
    slot(&["create", "r1"]).expect(0, "");
    append(&primary, &["--shard", "0", "--lines"], b"three\n").expect(0, "");
}

#[test]
fn a_replica_feeds_another_one_that_has_a_slot_there() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());
    let below = Node::replica(&dir.path().join("r3"), "r3", &replica.addr(), &["--retain-max", "none"]);
    let status = |node: &Node| run(&["status", "--at", &node.addr()], b"").expect(0, "").text();
    eventually("it is told what it needs", || status(&below).contains("towline slot create").then_some(()));
    run(&["slot", "create", "r3", "--at", &replica.addr()], b"").expect(0, "");
    append(&primary, &["--shard", "0", "--lines"], b"one\ntwo\n").expect(0, "");
    await_tail(&below, "0", "--lines", b"one\ntwo\n");
    let above = status(&replica);
    assert_eq!(above.lines().filter(|l| l.split_whitespace().skip(1).take(2).eq(["r3", "made"])).count(), 3, "{above}");
    let depth = |l: &&str| l.contains("following") && l.split_whitespace().any(|w| w == "2");
    eventually("every shard follows", || (status(&below).lines().filter(depth).count() == 3).then_some(()));
    append(&below, &["--shard", "0", "--lines"], b"three\n").expect(4, "this node is a replica");
    below.stop();
    replica.stop();
    primary.stop();
}

#[test]
fn settings_are_shown_and_changed_on_a_running_primary() {
    let dir = folder();
    let (primary, replica) = pair(dir.path());
    let at = primary.addr();
    let ctl = |more: &[&str]| run(&[&["ctl"], more, &["--at", &at]].concat(), b"");
    let shown = ctl(&["show"]).expect(0, "").text();
    let says = |shown: &str, key: &str, value: &str| {
        let found = shown.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        assert_eq!(found, Some(value), "{key} in {shown}");
    };
    says(&shown, "version", "1");
    says(&shown, "replicas", "r1");
    let shown = ctl(&["replica", "add", "r2", "--if-version", "1"]).expect(0, "").text();
    says(&shown, "version", "2");
    says(&shown, "replicas", "r1, r2");
    ctl(&["replica", "add", "r3", "--if-version", "1"]).expect(4, "version 2, the change was for version 1");
    ctl(&["replica", "add", "r2"]).expect(4, "replica r2 is configured already");
    ctl(&["replica", "remove", "r9"]).expect(4, "replica r9 is not configured");
    ctl(&["replica", "add", "No Name"]).expect(1, "is no replica name");
    ctl(&["commit", "ack_n=3"]).expect(4, "needs 3 replicas, 2 are configured");
    ctl(&["commit", "ack_n"]).expect(2, "ack_n needs a number");
    ctl(&["set", "min-replicas", "3"]).expect(4, "min-replicas is 3, 2 replicas");
    ctl(&["set", "retain-max", "1KiB"]).expect(4, "retain-max in bytes is 1024, it must be from");
    ctl(&["set", "colour", "red"]).expect(1, "there is no setting");
    ctl(&["set", "deadline", "1500ms"]).expect(0, "");
    ctl(&["set", "slot-idle-max", "1h"]).expect(0, "");
    ctl(&["set", "retain-max", "1GiB"]).expect(0, "");
    says(&ctl(&["commit", "majority"]).expect(0, "").text(), "commit", "majority:flushed");
    // Nobody is there to be heard but r1.
    ctl(&["set", "min-replicas-age", "2s"]).expect(0, "");
    let shown = ctl(&["set", "min-replicas", "2"]).expect(0, "").text();
    for (key, value) in [
        ("version", "8"),
        ("deadline", "1.5 s"),
        ("slot-idle-max", "1 h 0 min"),
        ("retain-max", "1.0 GiB"),
        ("min-replicas ", "2"),
        ("min-replicas-age", "2.0 s"),
    ] {
        says(&shown, key, value);
    }
    append(&primary, &["--shard", "0", "--lines"], b"one\n").expect(9, "1 are refused");
    let status = run(&["status", "--at", &at], b"").text();
    assert!(
        status.contains("settings  version 8, min-replicas 2 within 2.0 s: APPENDS ARE REFUSED on shards"),
        "{status}"
    );
    let json = ctl(&["show", "--json"]).expect(0, "").text();
    assert!(json.contains("\"min_replicas\":2") && json.contains("\"replicas\":[\"r1\",\"r2\"]"), "{json}");
    ctl(&["set", "min-replicas", "0"]).expect(0, "");
    ctl(&["replica", "remove", "r2"]).expect(0, "");
    append(&primary, &["--shard", "0", "--lines"], b"one\n").expect(0, "");
    run(&["ctl", "replica", "add", "x", "--at", &replica.addr()], b"").expect(4, "it is a replica");
}
