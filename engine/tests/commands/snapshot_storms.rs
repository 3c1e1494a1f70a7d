//! Storms of embedders with state: a primary that trims its log, replicas that need snapshots because their
//! folders are gone or because they were away for too long, and `kill -9` to either at every stage of one.
//! In the end all stores are the same, and have each acknowledged record once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cutter::Cutter;
use crate::embedder::{self, State};
use crate::fleet::{Load, Told, campaigns, spin};
use crate::processes::{Node, Random, end_of, eventually, fixed_address, folder, run, seed};
use serde_json::Value;
use towline::client;

const NAMES: [&str; 3] = ["p", "r1", "r2"];
/// Records are large for what the stores keep of them: much log, small snapshots.
const RECORD_BYTES: u64 = 6000;
/// How long it may take until the operator lowers what commits wait for.
const STUCK: Duration = Duration::from_secs(20);
/// How long replicas may take to come back while the load goes on; then it waits for them.
const UNDER_LOAD: Duration = Duration::from_millis(200);

/// A process of this binary for each node of a storm.
#[test]
#[ignore = "the nodes of the storm: it starts them itself"]
fn embedder_process() {
    embedder::run_if_told();
}

/// A primary and two replicas, the second one behind a proxy.
struct Embedders {
    dir: PathBuf,
    listen: [String; 3],
    nodes: [Option<Node>; 3],
    cutter: Cutter,
    /// Snapshots installed and gone on with, as the nodes that live have counted, and all before them.
    counted: [[u64; 2]; 3],
    before: [u64; 2],
    /// Deaths in the middle of a snapshot.
    interrupted: u64,
}

impl Embedders {
    fn start(dir: &Path) -> Self {
        let listen = [fixed_address(), fixed_address(), fixed_address()];
        let cutter = Cutter::start(listen[0].parse().unwrap());
        let nodes = [None, None, None];
        let dir = dir.to_path_buf();
        let mut new = Self { dir, listen, nodes, cutter, counted: Default::default(), before: [0; 2], interrupted: 0 };
        (0..3).for_each(|n| new.start_node(n));
        new
    }

    fn data(&self, n: usize) -> PathBuf {
        self.dir.join(NAMES[n])
    }

    fn store(&self, n: usize) -> PathBuf {
        self.dir.join(format!("{}-store", NAMES[n]))
    }

    /// Starts a node, unless it runs. One that is to die may do so before it says that it is there.
    fn start_node(&mut self, n: usize) {
        if self.nodes[n].is_some() {
            return;
        }
        let primary = if n == 2 { self.cutter.addr.to_string() } else { self.listen[0].clone() };
        let mut told = serde_json::json!({"data": self.data(n), "store": self.store(n), "listen": self.listen[n]});
        if n > 0 {
            told["name"] = NAMES[n].into();
            told["primary"] = primary.into();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "snapshot_storms::embedder_process", "--ignored", "--nocapture"]);
        command.env(embedder::VARIABLE, told.to_string()).stdin(Stdio::piped());
        match Node::try_start(&mut command, &self.dir.join(format!("{}.log", NAMES[n]))) {
            Ok(node) => self.nodes[n] = Some(node),
            Err(said) => assert!(said.code.is_none(), "{said:?}"),
        }
    }

    fn kill(&mut self, n: usize) {
        self.tally(n);
        self.nodes[n].take().unwrap().kill9();
        self.forget_counters(n);
    }

    /// Waits, and does the operator's part meanwhile. Under a load that does not end a snapshot may come too late
    /// each time for what the cap lets the primary keep: after a while the load waits, too. Where both replicas
    /// came to need one, and the primary was killed, what their states stand on is known to be committed only
    /// once fewer are asked for.
    fn wait(&mut self, what: &str, load: &Load, mut holds: impl FnMut(&mut Self, &[Value]) -> bool) {
        let (began, mut lowered) = (Instant::now(), false);
        eventually(what, || {
            load.pause(began.elapsed() > UNDER_LOAD);
            let slots = self.mend(None);
            if began.elapsed() > STUCK && !lowered {
                lowered = self.commit("local");
            }
            holds(self, &slots).then_some(())
        });
        if lowered {
            assert!(self.commit("ack_n=1"));
        }
        load.pause(false);
    }

    fn commit(&self, policy: &str) -> bool {
        println!("commits wait for {policy}");
        run(&["ctl", "commit", policy, "--at", &self.listen[0]], b"").code == Some(0)
    }

    /// Waits for so many acknowledgements more.
    fn await_more(&self, load: &Load, records: u64) {
        let enough = load.acknowledged() + records;
        eventually("acknowledgements", || {
            self.mend(None);
            (load.acknowledged() >= enough).then_some(())
        });
    }

    /// Waits until a node has killed itself where it was told to.
    fn await_death(&mut self, n: usize, load: &Load) {
        let die = self.store(n).join("die");
        self.wait("it dies", load, |_, _| !die.exists());
        if let Some(mut node) = self.nodes[n].take() {
            assert_eq!(end_of(&mut node.child).signal(), Some(libc::SIGKILL));
        }
        self.forget_counters(n);
        self.interrupted += 1;
    }

    /// Nothing is left of what a replica had.
    fn empty(&mut self, n: usize) {
        fs::remove_dir_all(self.data(n)).unwrap();
        fs::remove_dir_all(self.store(n)).unwrap();
    }

    fn status(&self, n: usize) -> Option<Value> {
        let status: Value = serde_json::from_str(&client::status(&self.listen[n]).ok()?).unwrap();
        Some(status["shards"][0].clone())
    }

    /// Makes slots anew that were lost, but for one that is to stay so. The slots as they were.
    fn mend(&self, but: Option<usize>) -> Vec<Value> {
        let slots = self.status(0).map(|s| s["slots"].as_array().unwrap().clone()).unwrap_or_default();
        for slot in slots.iter().filter(|s| s["lost"] != "" && but.is_none_or(|n| s["name"] != NAMES[n])) {
            run(&["slot", "create", slot["name"].as_str().unwrap(), "--at", &self.listen[0]], b"");
        }
        slots
    }

    /// Removes a log that stays beside the new one, where another one is to be set aside: the operator's part.
    fn remove_set_aside(&self, n: usize) {
        let link = self.status(n).map(|s| s["link"].as_str().unwrap().to_owned()).unwrap_or_default();
        let shard = self.data(n).join("shard-0000");
        // What the replica says may be of before it was removed.
        if link.contains("another one is set aside already") && shard.join("superblock.replaced").exists() {
            for entry in fs::read_dir(shard.join("wal")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "replaced") {
                    fs::remove_file(path).unwrap();
                }
            }
            fs::remove_file(shard.join("superblock.replaced")).unwrap();
        }
    }

    /// Takes a node's counters down.
    fn tally(&mut self, n: usize) {
        if let Some(status) = self.status(n) {
            let count = |name: &str| status["counters"][name].as_u64().unwrap();
            self.counted[n] = [count("snapshots_installed"), count("snapshots_resumed")];
        }
    }

    fn forget_counters(&mut self, n: usize) {
        let gone = std::mem::take(&mut self.counted[n]);
        self.before = [self.before[0] + gone[0], self.before[1] + gone[1]];
    }

    /// Snapshots that were installed by replicas, and links that went on with one.
    fn counters(&self) -> [u64; 2] {
        let sum = |what: usize| self.before[what] + self.counted[1][what] + self.counted[2][what];
        [sum(0), sum(1)]
    }

    /// Both replicas follow again, however often their slots are lost on the way.
    fn heal(&mut self, load: &Load) {
        (0..3).for_each(|n| self.start_node(n));
        self.wait("both replicas follow", load, |e, slots| {
            e.nodes.iter_mut().flatten().for_each(Node::assert_alive);
            // What the primary says may still be of a link before.
            let follows = |n| e.status(n).is_some_and(|s| s["link"].as_str().unwrap().starts_with("following"));
            (1..3).for_each(|n| e.remove_set_aside(n));
            slots.iter().all(|s| s["lost"] == "") && follows(1) && follows(2)
        });
        (1..3).for_each(|n| self.tally(n));
    }

    /// All nodes come together and end in order. Their stores are the same, and have what was acknowledged.
    fn check(mut self, told: &Told) {
        eventually("all stores have everything", || {
            (1..3).for_each(|n| self.remove_set_aside(n));
            let status = self.status(0)?;
            let end = &status["appended_lsn"];
            let has_all = |s: &Value| &s["applied_lsn"] == end && &s["flushed_lsn"] == end && s["state"] == "live";
            self.mend(None).iter().all(has_all).then_some(())
        });
        self.nodes.iter_mut().for_each(|node| {
            let mut node = node.take().unwrap();
            node.assert_alive();
            drop(node.child.stdin.take());
            assert_eq!(end_of(&mut node.child).code(), Some(0), "{}", node.logged());
        });
        let states = [0, 1, 2].map(|n| {
            let bytes = fs::read(embedder::file_of(&self.store(n))).unwrap();
            let (state, whole) = State::read(&bytes).unwrap();
            assert_eq!(whole, bytes.len() as u64, "{} has a torn end", NAMES[n]);
            state
        });
        let [p, ..] = &states;
        for (n, state) in states.iter().enumerate() {
            let is = |s: &State| (s.at, s.next_seq, s.map.len());
            assert_eq!(is(state), is(p), "{}", NAMES[n]);
            assert!(state.map == p.map, "{} has another map", NAMES[n]);
        }
        let there: BTreeSet<u64> = p.map.values().map(|(_, hash)| *hash).collect();
        let acknowledged: Vec<_> = told.histories.iter().flat_map(|h| acknowledged(h)).collect();
        assert_eq!(acknowledged.len() as u64, told.acknowledged);
        let missing = acknowledged.iter().filter(|hash| !there.contains(hash)).count();
        assert_eq!(missing, 0, "acknowledged records that no store has");
        let verdict = told.check(&[0, 1, 2].map(|n| self.data(n)), &["--converged"]);
        assert_eq!(verdict["promised"], told.acknowledged);
    }
}

/// The hashes of what a history says to be committed.
fn acknowledged(history: &Path) -> Vec<u64> {
    let (mut appended, mut found) = (BTreeMap::new(), Vec::new());
    // A last line without an end is that of a writer that was killed.
    for line in fs::read_to_string(history).unwrap().split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let event: Value = serde_json::from_str(line).unwrap();
        match event["event"].as_str().unwrap() {
            "append" => {
                let hash = u64::from_str_radix(event["hash"].as_str().unwrap(), 16).unwrap();
                appended.insert(event["id"].as_u64().unwrap(), hash);
            }
            "outcome" if event["status"] == "committed" => {
                let (first, records) = (event["id"].as_u64().unwrap(), event["records"].as_u64().unwrap_or(1));
                found.extend((first..first + records).map(|id| appended[&id]));
            }
            _ => {}
        }
    }
    found
}

/// What happens to a replica, or to the primary. One replica is whole at any time: what is committed is known
/// again after the primary was killed.
#[derive(Clone, Copy, Debug)]
enum Blow {
    ReplicaKilled,
    PrimaryKilled,
    AllKilled,
    Emptied,
    /// Its log is gone, its store is not.
    LogGone,
    /// Its slot is lost while it is away.
    FellBehind,
    /// It dies where it is in the snapshot.
    DiesStaging,
    DiesFinishing,
    DiesInstalled,
    /// The primary does, while it makes it.
    PrimaryDies,
    /// At any moment after the replica has begun anew: it, or the primary, or both.
    KilledMeanwhile,
    /// Its links are cut, each a little further on.
    LinksCut,
}

const BLOWS: [Blow; 12] = [
    Blow::ReplicaKilled,
    Blow::PrimaryKilled,
    Blow::AllKilled,
    Blow::Emptied,
    Blow::LogGone,
    Blow::FellBehind,
    Blow::DiesStaging,
    Blow::DiesFinishing,
    Blow::DiesInstalled,
    Blow::PrimaryDies,
    Blow::KilledMeanwhile,
    Blow::LinksCut,
];

fn strike(e: &mut Embedders, blow: Blow, load: &Load, random: &mut Random) {
    let victim = if matches!(blow, Blow::LinksCut) { 2 } else { 1 + random.below(2) as usize };
    let dies_at = match blow {
        Blow::ReplicaKilled => return e.kill(victim),
        Blow::PrimaryKilled => return e.kill(0),
        Blow::AllKilled => {
            for n in [victim, 0, 3 - victim] {
                e.kill(n);
            }
            return;
        }
        Blow::DiesStaging => Some(format!("chunk {}", random.below(6))),
        Blow::DiesFinishing => Some("finish".into()),
        Blow::DiesInstalled => Some("installed".into()),
        _ => None,
    };
    e.kill(victim);
    match blow {
        Blow::FellBehind => {
            eventually("its slot is lost", || {
                let slots = e.mend(Some(victim));
                slots.iter().any(|s| s["name"] == NAMES[victim] && s["lost"] == "retention cap").then_some(())
            });
            return;
        }
        Blow::LogGone => return fs::remove_dir_all(e.data(victim)).unwrap(),
        _ => e.empty(victim),
    }
    if let Some(point) = dies_at {
        embedder::die_at(&e.store(victim), &point);
        e.start_node(victim);
        e.await_death(victim, load);
    }
    match blow {
        Blow::PrimaryDies => {
            embedder::die_at(&e.store(0), &format!("produce {}", random.below(6)));
            e.start_node(victim);
            e.await_death(0, load);
        }
        Blow::KilledMeanwhile => {
            e.start_node(victim);
            e.await_more(load, 1);
            spin(random, Duration::from_millis(30));
            let both = [victim, 0];
            let kills = [&both[..1], &both[1..], &both[..]][random.below(3) as usize];
            kills.iter().for_each(|n| e.kill(*n));
        }
        Blow::LinksCut => {
            let resumed = e.counters()[1];
            e.cutter.cut(1000, 997);
            e.start_node(victim);
            e.wait("a snapshot goes on behind a cut", load, |e, _| {
                e.tally(victim);
                e.counters()[1] > resumed
            });
            e.cutter.cut(0, 0);
        }
        _ => {}
    }
}

#[test]
fn stores_come_out_the_same_though_snapshots_are_killed_at_every_stage() {
    campaigns(seed() ^ 4, |seed| {
        let (began, mut random, dir) = (Instant::now(), Random(seed), folder());
        let mut e = Embedders::start(dir.path());
        let load = Load::start(dir.path(), e.listen[0].clone(), RECORD_BYTES);
        eventually("the log is trimmed", || (e.status(0)?["oldest_lsn"].as_u64()? > 0).then_some(()));
        let mut left = BLOWS.to_vec();
        while !left.is_empty() {
            e.await_more(&load, 1 + random.below(300));
            spin(&mut random, Duration::from_millis(3));
            let blow = left.swap_remove(random.below(left.len() as u64) as usize);
            strike(&mut e, blow, &load, &mut random);
            e.heal(&load);
            println!(
                "{blow:?}: {} acknowledged, {:?} installed, {:?}",
                load.acknowledged(),
                e.counters(),
                began.elapsed()
            );
        }
        e.await_more(&load, 1);
        let told = load.end();
        let ([installed, resumed], cuts) = (e.counters(), e.cutter.cuts.load(Ordering::Relaxed));
        // At least of those that were emptied and came back with nothing that might do instead.
        assert!(installed >= 5, "{installed} snapshots were installed");
        assert_eq!(e.interrupted, 4, "snapshots in whose middle somebody died");
        assert!(resumed > 0 && cuts > 0, "{resumed} snapshots went on behind {cuts} cuts");
        e.check(&told);
        println!("{} acknowledged, {installed} installed, {resumed} gone on, {:?}", told.acknowledged, began.elapsed());
    });
}
