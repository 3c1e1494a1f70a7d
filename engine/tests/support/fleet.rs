//! Three nodes as processes, any of which may be the primary, under a load whose history is written
//! down; and the check of all of it at the end.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::processes::{Node, Random, await_in_step, end_of, eventually, fixed_address, run, towline};

/// Each node's name as a replica; its folder has the same.
pub const NAMES: [&str; 3] = ["n0", "n1", "n2"];
/// How far the load may be ahead of its acknowledgements, so that a log stays small.
const AHEAD: u64 = 400;

/// Runs `campaign` once; or with seeds that count up for as many minutes as `TOWLINE_STORM_MINUTES`
/// says.
pub fn campaigns(first_seed: u64, mut campaign: impl FnMut(u64)) {
    let minutes: f64 = std::env::var("TOWLINE_STORM_MINUTES").ok().map_or(0.0, |m| m.parse().unwrap());
    let (limit, began) = (Duration::from_secs_f64(minutes * 60.0), Instant::now());
    for seed in first_seed.. {
        println!("TOWLINE_TEST_SEED={seed}");
        campaign(seed);
        if began.elapsed() >= limit {
            return;
        }
    }
}

/// Three nodes with fixed folders and addresses.
#[derive(Debug)]
pub struct Fleet {
    dir: PathBuf,
    pub nodes: [Option<Node>; 3],
    listen: [String; 3],
    /// Where a replica connects instead of to the primary itself.
    via: [Option<String>; 3],
    pub primary: usize,
    policy: &'static str,
    options: Vec<&'static str>,
    /// More for whoever is the primary, and for whoever is a replica.
    pub of_role: [Vec<&'static str>; 2],
}

impl Fleet {
    pub fn start(dir: &Path, policy: &'static str, options: &[&'static str]) -> Self {
        let mut fleet = Self::new(dir, policy, options);
        fleet.start_missing(false);
        fleet
    }

    /// Nothing runs yet.
    pub fn new(dir: &Path, policy: &'static str, options: &[&'static str]) -> Self {
        let listen = [fixed_address(), fixed_address(), fixed_address()];
        let (nodes, via, options) = ([None, None, None], [None, None, None], options.into());
        Self { dir: dir.into(), nodes, listen, via, primary: 0, policy, options, of_role: Default::default() }
    }

    /// From its next start on, a replica connects there.
    pub fn connect_via(&mut self, n: usize, addr: String) {
        self.via[n] = Some(addr);
    }

    pub fn folder(&self, n: usize) -> PathBuf {
        self.dir.join(NAMES[n])
    }

    /// Where a node listens.
    pub fn listen(&self, n: usize) -> &str {
        &self.listen[n]
    }

    /// Where the primary listens.
    pub fn addr(&self) -> String {
        self.listen[self.primary].clone()
    }

    pub fn node(&self, n: usize) -> &Node {
        self.nodes[n].as_ref().unwrap()
    }

    /// The nodes that are replicas now.
    pub fn replicas(&self) -> [usize; 2] {
        [(self.primary + 1) % 3, (self.primary + 2) % 3]
    }

    /// Starts every node that does not run; the primary takes its folder over if it is to.
    pub fn start_missing(&mut self, promote: bool) {
        if self.nodes[self.primary].is_none() {
            let others = self.replicas().map(|n| NAMES[n]).join(",");
            let listen = self.addr();
            let mut args = vec!["--role", "primary", "--listen", &listen, "--replicas", &others];
            // However fast the load is while a replica is away, the replica is to come back.
            args.extend(["--retain-max", "none"]);
            // What is sent is read by the kernel later: whatever changes it meanwhile shows.
            args.extend(["--zero-copy", "always"]);
            args.extend(["--commit", self.policy, "--segment-size", "256KiB", "--cpus", "0"]);
            args.extend(promote.then_some("--promote"));
            args.extend(self.options.iter().chain(&self.of_role[0]));
            let node = Node::serve(&self.folder(self.primary), &args).unwrap_or_else(|e| panic!("{e:?}"));
            self.nodes[self.primary] = Some(node);
        }
        for n in self.replicas() {
            if self.nodes[n].is_none() {
                let primary = self.via[n].as_ref().unwrap_or(&self.listen[self.primary]);
                // Who is to break links many times in a second wants them back as fast.
                let pause = if self.via[n].is_some() { "1ms" } else { "50ms" };
                let mut args = vec!["--role", "replica", "--name", NAMES[n], "--primary", primary];
                args.extend(["--listen", &self.listen[n], "--reconnect-max", pause, "--cpus", "1"]);
                args.extend(self.options.iter().chain(&self.of_role[1]));
                let node = Node::serve(&self.folder(n), &args).unwrap_or_else(|e| panic!("{e:?}"));
                self.nodes[n] = Some(node);
            }
        }
    }

    pub fn kill(&mut self, n: usize) {
        self.nodes[n].take().unwrap().kill9();
    }

    /// Makes a primary of the replica that is furthest, as `docs/OPERATING.md` has it. The others
    /// follow it, the old primary too.
    pub fn promote_the_furthest(&mut self) {
        for n in 0..3 {
            if self.nodes[n].is_some() {
                self.kill(n);
            }
        }
        let position = |n: usize| {
            let said = run(&["verify", "--json", self.folder(n).to_str().unwrap()], b"").expect(0, "");
            let shard = said.json()["shards"][0].clone();
            let last_term = shard["terms"].as_array().unwrap().last().map_or(0, |t| t["term"].as_u64().unwrap());
            (last_term, shard["end_lsn"].as_u64().unwrap())
        };
        self.primary = self.replicas().into_iter().max_by_key(|n| position(*n)).unwrap();
        self.start_missing(true);
    }

    /// No node has ended by itself.
    pub fn assert_alive(&mut self) {
        self.nodes.iter_mut().flatten().for_each(Node::assert_alive);
    }

    /// All nodes catch up, and are stopped in order; then their folders are held against what the
    /// load was told.
    pub fn check(self, told: &Told) -> Value {
        self.check_with(told, Vec::new())
    }

    /// The same with nodes below them, whose logs come out as the primary's.
    pub fn check_with(mut self, told: &Told, below: Vec<(Node, PathBuf)>) -> Value {
        self.assert_alive();
        let end = await_in_step(self.node(self.primary))["shards"][0]["appended_lsn"].clone();
        for (node, _) in &below {
            let has_all = || (node.status()["shards"][0]["durable_lsn"] == end).then_some(());
            eventually("a node below has everything", has_all);
        }
        let (below, their_folders): (Vec<_>, Vec<_>) = below.into_iter().unzip();
        self.nodes.iter_mut().map(|node| node.take().unwrap()).chain(below).for_each(Node::stop);
        let log = |folder: &Path| {
            let said = run(&["verify", "--json", folder.to_str().unwrap()], b"").expect(0, "");
            let shard = said.json()["shards"][0].clone();
            assert!(shard["chain"].is_string() || shard["chain"].is_u64(), "{shard}");
            ["end_lsn", "chain", "oldest_lsn"].map(|what| (what, shard[what].clone()))
        };
        let folders: Vec<_> = (0..3).map(|n| self.folder(n)).collect();
        for folder in their_folders {
            assert_eq!(log(&folder), log(&folders[self.primary]), "{}", folder.display());
        }
        told.check(&folders, &["--converged"])
    }
}

/// What the load was told, in files.
#[derive(Debug, Default)]
pub struct Told {
    pub histories: Vec<PathBuf>,
    /// Records that were acknowledged.
    pub acknowledged: u64,
}

impl Told {
    /// Holds folders against it; gives the verdict, which is good.
    pub fn check(&self, folders: &[PathBuf], more: &[&str]) -> Value {
        let text = |p: &PathBuf| p.to_str().unwrap().to_owned();
        let mut args = vec!["verify".to_owned(), "--json".to_owned()];
        args.extend(self.histories.iter().flat_map(|h| ["--history".to_owned(), text(h)]));
        args.extend(more.iter().map(|m| (*m).to_owned()));
        args.extend(folders.iter().map(text));
        let said = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert_eq!(said.code, Some(0), "{}\n{}", said.err, said.text());
        let verdict = said.json()["history"].clone();
        assert_eq!(verdict["committed"], self.acknowledged);
        verdict
    }
}

/// `towline append` again and again, each with a history of its own, until it is told to end.
#[derive(Debug)]
pub struct Load {
    ending: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    to: Arc<Mutex<String>>,
    thread: JoinHandle<Vec<PathBuf>>,
}

impl Load {
    pub fn start(dir: &Path, to: String, record_bytes: u64) -> Self {
        Self::on_demand(dir, to, record_bytes, Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// Appends as many records as `wanted` counts, one by one.
    pub fn on_demand(dir: &Path, to: String, record_bytes: u64, wanted: Arc<AtomicU64>) -> Self {
        let (ending, paused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (acknowledged, to) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(to)));
        let (stop, pause, got) = (ending.clone(), paused.clone(), acknowledged.clone());
        let (addr, dir) = (to.clone(), dir.to_path_buf());
        let thread = thread::spawn(move || {
            let (mut histories, fed) = (Vec::new(), Arc::new(AtomicU64::new(0)));
            for run in 0.. {
                let history = dir.join(format!("history-{run}"));
                let to = addr.lock().unwrap().clone();
                append(&to, run, record_bytes, &history, (&stop, &pause), (&fed, &wanted), &got);
                // It was not begun if the node could not be reached.
                if history.exists() {
                    histories.push(history);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            histories
        });
        Self { ending, paused, acknowledged, to, thread }
    }

    /// Appends nothing for a while, or goes on.
    pub fn pause(&self, pause: bool) {
        self.paused.store(pause, Ordering::Relaxed);
    }

    /// The primary is there now.
    pub fn turn_to(&self, addr: String) {
        *self.to.lock().unwrap() = addr;
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for so many acknowledgements more.
    pub fn await_more(&self, records: u64) {
        let enough = self.acknowledged() + records;
        eventually("acknowledgements", || (self.acknowledged() >= enough).then_some(()));
    }

    pub fn end(self) -> Told {
        self.ending.store(true, Ordering::Relaxed);
        let histories = self.thread.join().unwrap();
        Told { histories, acknowledged: self.acknowledged.load(Ordering::Relaxed) }
    }
}

/// One `towline append`, until its connection is lost or it is told to end.
fn append(
    to: &str,
    run: u64,
    record_bytes: u64,
    history: &Path,
    (stop, pause): (&Arc<AtomicBool>, &Arc<AtomicBool>),
    (fed, wanted): (&Arc<AtomicU64>, &Arc<AtomicU64>),
    got: &Arc<AtomicU64>,
) {
    let mut command = towline();
    command.args(["append", "--to", to, "--shard", "0", "--lines", "--json", "--deadline", "100s", "--history"]);
    let mut child = command.arg(history).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (over, before) = (Arc::new(AtomicBool::new(false)), got.load(Ordering::Relaxed));
    let (stop, pause, acknowledged, ended) = (stop.clone(), pause.clone(), got.clone(), over.clone());
    let (fed, wanted) = (fed.clone(), wanted.clone());
    let feeder = thread::spawn(move || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) && !ended.load(Ordering::Relaxed) {
            let enough = fed.load(Ordering::Relaxed) >= wanted.load(Ordering::Relaxed);
            let ahead = n > acknowledged.load(Ordering::Relaxed) - before + AHEAD;
            if pause.load(Ordering::Relaxed) || enough || ahead {
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            let pad = "x".repeat(((run * 31 + n * 17) % record_bytes) as usize);
            if writeln!(stdin, "run {run} record {n} {pad}").is_err() {
                return;
            }
            n += 1;
            fed.fetch_add(1, Ordering::Relaxed);
        }
    });
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let outcome: Value = serde_json::from_str(&line).unwrap();
        if outcome["status"] == "committed" {
            got.fetch_add(outcome["records"].as_u64().unwrap(), Ordering::Relaxed);
        }
    }
    over.store(true, Ordering::Relaxed);
    let status = end_of(&mut child);
    feeder.join().unwrap();
    // Done; unknown; refused; lost. Anything else is an error of its own.
    assert!(matches!(status.code(), Some(0 | 3 | 4 | 5)), "towline append: {status}");
}

/// Any moment is as good as any other.
pub fn spin(random: &mut Random, at_most: Duration) {
    let spin = Duration::from_nanos(random.below(at_most.as_nanos() as u64));
    let now = Instant::now();
    while now.elapsed() < spin {
        std::hint::spin_loop();
    }
}
