//! `kill -9` at random moments, real processes: no acknowledged record is ever missing, and the logs
//! stay the same bytes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::processes::{
    Node, Random, await_in_step, end_of, eventually, fixed_address, folder, run, seed, tail, towline,
};
use serde_json::Value;

/// A primary and two replicas on fixed folders; the primary comes back on its port.
struct Cluster {
    folders: [PathBuf; 3],
    options: Vec<&'static str>,
    segment: &'static str,
    listen: String,
    nodes: [Option<Node>; 3],
}

impl Cluster {
    fn start(dir: &Path, segment: &'static str, options: &[&'static str]) -> Self {
        let mut cluster = Self {
            folders: ["p", "r1", "r2"].map(|name| dir.join(name)),
            options: options.into(),
            segment,
            listen: fixed_address(),
            nodes: [None, None, None],
        };
        cluster.start_missing();
        cluster
    }

    fn start_missing(&mut self) {
        if self.nodes[0].is_none() {
            let mut args = vec!["--replicas", "r1,r2", "--commit", "ack_n=2", "--segment-size", self.segment];
            args.extend(&self.options);
            self.nodes[0] = Some(Node::primary(&self.folders[0], &self.listen, &args));
        }
        for n in 1..3 {
            if self.nodes[n].is_none() {
                let name = format!("r{n}");
                self.nodes[n] = Some(Node::replica(&self.folders[n], &name, &self.listen, &self.options));
            }
        }
    }

    fn primary(&self) -> &Node {
        self.nodes[0].as_ref().unwrap()
    }

    /// Kills a node; what it leaves is whole, up to a torn tail.
    fn kill(&mut self, n: usize) {
        self.nodes[n].take().unwrap().kill9();
        verify(&self.folders[n]);
    }
}

/// The only shard's report; it must be whole.
fn verify(folder: &Path) -> Value {
    let said = run(&["verify", "--json", folder.to_str().unwrap()], b"");
    assert_eq!(said.code, Some(0), "{}: {said:?}", folder.display());
    said.json()["shards"][0].clone()
}

/// `towline append` under load, until it is told to end or its connection is lost.
struct Load {
    child: Child,
    ending: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// First sequence number and count of each run that was reported committed.
    runs: Arc<Mutex<Vec<(u64, u64)>>>,
    feeder: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl Load {
    fn start(addr: &str, round: u64, record_bytes: u64) -> Self {
        let mut command = towline();
        command.args(["append", "--to", addr, "--shard", "0", "--lines", "--json", "--deadline", "100s"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (ending, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let runs = Arc::new(Mutex::new(Vec::new()));
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (stop, got) = (ending.clone(), acknowledged.clone());
        let feeder = thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                // Not further ahead than a few batches, so that a round's log stays small.
                if n > got.load(Ordering::Relaxed) + 400 {
                    thread::yield_now();
                    continue;
                }
                if writeln!(stdin, "{}", record(round, n, record_bytes)).is_err() {
                    return;
                }
                n += 1;
            }
        });
        let (total, into) = (acknowledged.clone(), runs.clone());
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let outcome: Value = serde_json::from_str(&line).unwrap();
                if outcome["status"] == "committed" {
                    assert_eq!(outcome["acks"], 2, "{line}");
                    let run = (outcome["first_seq"].as_u64().unwrap(), outcome["records"].as_u64().unwrap());
                    into.lock().unwrap().push(run);
                    total.fetch_add(run.1, Ordering::Relaxed);
                }
            }
        });
        Self { child, ending, acknowledged, runs, feeder, reader }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn await_acknowledged(&self, at_least: u64) {
        eventually("acknowledgements", || (self.acknowledged() >= at_least).then_some(()));
    }

    /// Ends it: its exit code, and what it reported committed.
    fn end(mut self) -> (Option<i32>, Vec<(u64, u64)>) {
        self.ending.store(true, Ordering::Relaxed);
        let status = end_of(&mut self.child);
        self.feeder.join().unwrap();
        self.reader.join().unwrap();
        (status.code(), Arc::into_inner(self.runs).unwrap().into_inner().unwrap())
    }
}

/// A record that is like no other, of about so many bytes.
fn record(round: u64, n: u64, bytes: u64) -> String {
    let pad = "x".repeat(((round * 31 + n * 17) % bytes) as usize);
    format!("round {round} record {n} {pad}")
}

/// One campaign: `rounds` times a load, a kill of some nodes, their restart and a look at every record
/// that was ever acknowledged.
fn campaign(rounds: u64, seed: u64, segment: &'static str, more: &[&'static str]) {
    let record_bytes = 700;
    let options = [&["--batch-size", "16KiB", "--record-max", "64KiB"], more].concat();
    println!("seed {seed:#x}");
    let began = Instant::now();
    let dir = folder();
    let mut random = Random(seed);
    let mut cluster = Cluster::start(dir.path(), segment, &options);
    // Each acknowledged run: round, its log's length when the round began, first number, count.
    let mut acknowledged: Vec<(u64, u64, u64, u64)> = Vec::new();
    let mut total = 0;
    for round in 0..rounds {
        let status = await_in_step(cluster.primary());
        let base = status["shards"][0]["tail_seq"].as_u64().unwrap();
        check_records(&cluster, &acknowledged, base, record_bytes);
        let load = Load::start(&cluster.listen, round, record_bytes);
        load.await_acknowledged(1 + random.below(1500));
        // From the first acknowledgement on any moment is as good as any other.
        let spin = random.below(3_000_000);
        let now = Instant::now();
        while now.elapsed().as_nanos() < u128::from(spin) {
            std::hint::spin_loop();
        }
        let victims: &[usize] = match random.below(8) {
            0 | 1 => &[0],
            2 => &[1],
            3 => &[2],
            4 => &[0, 1],
            5 => &[2, 0],
            6 => &[1, 2],
            _ => &[0, 1, 2],
        };
        for n in victims {
            cluster.kill(*n);
        }
        cluster.start_missing();
        if !victims.contains(&0) {
            // The primary has lived on: the load goes on once its replicas are back.
            load.await_acknowledged(load.acknowledged() + 1);
        }
        let (code, runs) = load.end();
        let expected = if victims.contains(&0) { 5 } else { 0 };
        assert_eq!(code, Some(expected), "round {round}, victims {victims:?}");
        for (first, count) in runs {
            total += count;
            acknowledged.push((round, base, first, count));
        }
    }
    let status = await_in_step(cluster.primary());
    check_records(&cluster, &acknowledged, status["shards"][0]["tail_seq"].as_u64().unwrap(), record_bytes);
    for n in 0..3 {
        cluster.nodes[n].take().unwrap().kill9();
    }
    same_bytes(&cluster.folders);
    println!("{rounds} rounds, {total} acknowledged records, {:?}", began.elapsed());
}

/// Every record that was acknowledged and is still kept is where it was acknowledged.
fn check_records(cluster: &Cluster, acknowledged: &[(u64, u64, u64, u64)], next_seq: u64, record_bytes: u64) {
    let all = tail(cluster.primary(), "0", "--lines");
    let all: Vec<&str> = std::str::from_utf8(&all).unwrap().lines().collect();
    let first_kept = next_seq - all.len() as u64;
    for (round, base, first, count) in acknowledged {
        for seq in *first..first + count {
            assert!(seq < next_seq, "record {seq} of round {round} was acknowledged and is missing");
            if seq >= first_kept {
                assert_eq!(all[(seq - first_kept) as usize], record(*round, seq - base, record_bytes), "record {seq}");
            }
        }
    }
}

/// Below where the shortest log ends, all nodes' segments hold the same bytes.
fn same_bytes(folders: &[PathBuf]) {
    let reports: Vec<Value> = folders.iter().map(|f| verify(f)).collect();
    let end = reports.iter().map(|r| r["end_lsn"].as_u64().unwrap()).min().unwrap();
    let oldest = reports.iter().map(|r| r["oldest_lsn"].as_u64().unwrap()).max().unwrap();
    let segment = reports[0]["segment_bytes"].as_u64().unwrap();
    assert!(end > oldest);
    for start in (oldest - oldest % segment..end).step_by(segment as usize) {
        let part = (oldest.max(start) - start) as usize..(segment.min(end - start)) as usize;
        let files: Vec<Vec<u8>> =
            folders.iter().map(|f| fs::read(f.join(format!("shard-0000/wal/{start:016x}.wal"))).unwrap()).collect();
        for file in &files[1..] {
            assert!(file[part.clone()] == files[0][part.clone()], "the segments at LSN {start} differ");
        }
    }
    let (first, rest) = reports.split_first().unwrap();
    for report in rest.iter().filter(|r| r["end_lsn"] == first["end_lsn"]) {
        assert_eq!(report["chain"], first["chain"]);
    }
}

#[test]
fn no_acknowledged_record_is_lost_by_kill_9() {
    campaign(50, seed(), "256KiB", &[]);
}

#[test]
fn segments_that_are_used_again_are_as_safe() {
    campaign(12, seed() ^ 1, "64KiB", &["--retain", "192KiB"]);
}
