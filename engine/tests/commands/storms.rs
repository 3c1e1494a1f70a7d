//! Storms: nodes are killed, held still and promoted at random moments under load. What was
//! acknowledged is never lost, says the history checker, and the logs come out the same.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fleet::{self, Fleet, Load, campaigns, spin};
use crate::processes::{Node, Random, Said, end_of, eventually, fixed_address, folder, run, seed, signal, towline};

/// How long a node is held still when nobody can go on without it.
const STILL: Duration = Duration::from_millis(30);

const OPTIONS: [&str; 4] = ["--batch-size", "16KiB", "--record-max", "64KiB"];

impl Fleet {
    fn hold(&self, n: usize) {
        signal(&self.node(n).child, libc::SIGSTOP);
    }

    fn let_go(&self, n: usize) {
        signal(&self.node(n).child, libc::SIGCONT);
    }
}

/// Which blows a storm has beside kills and pauses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blows {
    Plain,
    /// Promotions, and changes of settings.
    Promotions,
    /// Replicas that are configured no more, and again, too.
    Members,
}

/// One blow at the fleet. Afterwards all nodes run.
fn strike(fleet: &mut Fleet, load: &Load, random: &mut Random, blows: Blows) -> &'static str {
    let primary = fleet.primary;
    let [a, b] = if random.below(2) == 0 { fleet.replicas() } else { [fleet.replicas()[1], fleet.replicas()[0]] };
    let kinds = match blows {
        Blows::Plain => 8,
        Blows::Promotions => 10,
        Blows::Members => 12,
    };
    let what = match random.below(kinds) {
        0 => {
            fleet.kill(primary);
            "the primary was killed"
        }
        1 => {
            fleet.kill(a);
            // One replica of two is enough: nobody waits for the other.
            load.await_more(1);
            "a replica was killed"
        }
        2 => {
            for n in [a, primary, b] {
                fleet.kill(n);
            }
            "all were killed"
        }
        3 => {
            fleet.hold(primary);
            spin(random, STILL);
            fleet.let_go(primary);
            "the primary was held still"
        }
        4 => {
            fleet.hold(a);
            load.await_more(1 + random.below(400));
            fleet.let_go(a);
            "a replica was held still"
        }
        5 => {
            fleet.hold(a);
            fleet.hold(b);
            spin(random, STILL);
            fleet.let_go(b);
            load.await_more(1);
            fleet.let_go(a);
            "both replicas were held still"
        }
        6 => {
            fleet.hold(a);
            spin(random, STILL);
            fleet.kill(primary);
            fleet.let_go(a);
            "the primary was killed while a replica was held still"
        }
        7 => {
            fleet.hold(primary);
            fleet.kill(b);
            fleet.kill(primary);
            "the primary was killed while it was held still, and a replica"
        }
        8 => {
            // Not what commits wait for: the load takes that to be the same all the time.
            let cap = ["none", "1GiB", "2GiB"][random.below(3) as usize];
            change_and_kill(fleet, random, &["set", "retain-max", cap]);
            ctl(fleet, &["set", "retain-max", cap]).expect(0, "");
            "the primary was killed while its settings were changed"
        }
        9 => {
            fleet.kill(primary);
            spin(random, STILL);
            fleet.promote_the_furthest();
            load.turn_to(fleet.addr());
            "the furthest replica was promoted"
        }
        10 => {
            ctl(fleet, &["replica", "remove", fleet::NAMES[b]]).expect(0, "");
            load.await_more(1 + random.below(2000));
            ctl(fleet, &["replica", "add", fleet::NAMES[b]]).expect(0, "");
            "a replica was configured no more, and again"
        }
        // A history is of so many nodes from its beginning: none begins meanwhile.
        _ => {
            fleet.kill(b);
            ctl(fleet, &["replica", "remove", fleet::NAMES[b]]).expect(0, "");
            load.await_more(1 + random.below(2000));
            ctl(fleet, &["replica", "add", fleet::NAMES[b]]).expect(0, "");
            "a replica was killed, configured no more, and again"
        }
    };
    fleet.start_missing(false);
    what
}

fn ctl(fleet: &Fleet, change: &[&str]) -> Said {
    run(&[&["ctl"], change, &["--at", &fleet.addr()]].concat(), b"")
}

/// The primary is killed somewhere in a change of its settings, and comes again.
fn change_and_kill(fleet: &mut Fleet, random: &mut Random, change: &[&str]) {
    let mut command = towline();
    command.arg("ctl").args(change).args(["--at", &fleet.addr()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut changing = command.spawn().unwrap();
    spin(random, STILL);
    fleet.kill(fleet.primary);
    assert!(matches!(end_of(&mut changing).code(), Some(0 | 5)));
    fleet.start_missing(false);
}

/// So many blows, and the check of everything.
fn storm(first_seed: u64, rounds: u64, more: &[&'static str], of_role: [&[&'static str]; 2], blows: Blows) {
    campaigns(first_seed, |seed| {
        let (began, mut random, dir) = (Instant::now(), Random(seed), folder());
        let mut fleet = Fleet::new(dir.path(), "ack_n=1", &[&OPTIONS, more].concat());
        fleet.of_role = of_role.map(<[_]>::to_vec);
        fleet.start_missing(false);
        let load = Load::start(dir.path(), fleet.addr(), 700);
        for round in 0..rounds {
            load.await_more(1 + random.below(600));
            spin(&mut random, Duration::from_millis(3));
            let what = strike(&mut fleet, &load, &mut random, blows);
            println!("round {round}: {what}, {} acknowledged", load.acknowledged());
            fleet.assert_alive();
        }
        load.await_more(1);
        let told = load.end();
        let verdict = fleet.check(&told);
        assert_eq!(verdict["promised"], told.acknowledged);
        println!("{rounds} rounds, {} acknowledged records, {:?}", told.acknowledged, began.elapsed());
    });
}

#[test]
fn what_is_acknowledged_outlives_kills_pauses_and_promotions() {
    storm(seed(), 30, &[], [&[], &[]], Blows::Promotions);
}

#[test]
fn segments_that_are_used_again_are_as_safe_in_a_storm() {
    // A replica keeps no log for the others: once it is promoted, one that was held still may need a
    // copy instead.
    storm(seed() ^ 1, 20, &["--retain", "1MiB"], [&[], &[]], Blows::Plain);
}

#[test]
fn replicas_that_begin_anew_are_as_safe_through_promotions_and_changes_of_who_counts() {
    // What is let go of may be what a replica lacks, after a promotion or an absence: it begins anew then.
    let primary = ["--lag-target", "64KiB"];
    storm(seed() ^ 3, 24, &["--retain", "512KiB", "--compress", "lz4"], [&primary, &["--rebuild"]], Blows::Members);
}

/// A replica that a replica feeds.
struct Reader {
    folder: PathBuf,
    follows: String,
    listen: String,
    node: Option<Node>,
}

impl Reader {
    fn start(&mut self) {
        let mut args = vec!["--role", "replica", "--name", "reader", "--primary", &self.follows];
        args.extend(["--listen", &self.listen, "--reconnect-max", "50ms", "--cpus", "1"]);
        args.extend(OPTIONS);
        self.node = Some(Node::serve(&self.folder, &args).unwrap_or_else(|e| panic!("{e:?}")));
    }

    fn kill(&mut self) {
        self.node.take().unwrap().kill9();
    }
}

#[test]
fn a_replica_behind_a_replica_comes_out_the_same_though_any_of_them_is_killed() {
    campaigns(seed() ^ 2, |seed| {
        let (dir, mut random) = (folder(), Random(seed));
        let mut fleet = Fleet::start(dir.path(), "ack_n=1", &OPTIONS);
        let middle = fleet.replicas()[0];
        let follows = fleet.listen(middle).to_owned();
        run(&["slot", "create", "reader", "--at", &follows], b"").expect(0, "");
        let mut reader = Reader { folder: dir.path().join("reader"), follows, listen: fixed_address(), node: None };
        reader.start();
        let load = Load::start(dir.path(), fleet.addr(), 700);
        for round in 0..16 {
            load.await_more(1 + random.below(400));
            spin(&mut random, Duration::from_millis(3));
            let what = match random.below(5) {
                0 => {
                    reader.kill();
                    "the reader was killed"
                }
                1 => {
                    fleet.kill(middle);
                    "the middle was killed"
                }
                2 => {
                    fleet.kill(middle);
                    reader.kill();
                    "both were killed"
                }
                3 => {
                    fleet.kill(middle);
                    fleet.kill(fleet.primary);
                    "the middle and the primary were killed"
                }
                _ => strike(&mut fleet, &load, &mut random, Blows::Plain),
            };
            fleet.start_missing(false);
            if reader.node.is_none() {
                reader.start();
            }
            println!("round {round}: {what}, {} acknowledged", load.acknowledged());
        }
        load.await_more(1);
        let told = load.end();
        let mut node = reader.node.take().unwrap();
        node.assert_alive();
        let verdict = fleet.check_with(&told, vec![(node, reader.folder)]);
        assert_eq!(verdict["promised"], told.acknowledged);
    });
}

#[test]
fn a_replica_that_is_held_still_beyond_every_limit_comes_back() {
    let dir = folder();
    let fleet = Fleet::start(dir.path(), "ack_n=1", &OPTIONS);
    let load = Load::start(dir.path(), fleet.addr(), 700);
    load.await_more(1);
    let [a, b] = fleet.replicas();
    // Long enough that the primary gives up on it, with what is in the sockets still to come.
    fleet.hold(a);
    load.await_more(100);
    load.pause(true);
    eventually("the primary drops it", || {
        let status = fleet.node(fleet.primary).status();
        let down = |s: &serde_json::Value| s["name"] == fleet::NAMES[a] && s["state"] == "down";
        status["shards"][0]["slots"].as_array().unwrap().iter().any(down).then_some(())
    });
    load.pause(false);
    load.await_more(100);
    // Now the other one: whatever is acknowledged from here on, the first one has.
    fleet.let_go(a);
    fleet.hold(b);
    load.await_more(1000);
    fleet.let_go(b);
    fleet.check(&load.end());
}
