//! One invocation: who takes part, the groups, the runs in alternation, the probes between them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use towline::measure::{Content, disk_limit};

use super::args::Args;
use super::bulk;
use super::interrupt;
use super::machine;
use super::model::{Group, Limit, Part, PeerFacts, Row, Run, Scope, Skipped};
use super::peers::{Job, Peer, Shape};
use super::probe::{PROBE, Probe, steady};
use super::stats::{NETWORK, SAME_LOOP};
use super::turns::{Entry, Turns};

/// What is still being written or discarded after a run's folder is gone.
const SETTLE: Duration = Duration::from_millis(200);

/// Those who take part and those who do not.
pub(crate) struct Field {
    pub(crate) peers: Vec<(Box<dyn Peer>, String)>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Field {
    /// Whether anybody takes part who was asked for by name, if names were given.
    pub(crate) fn has_wanted(&self, wanted: &[String]) -> bool {
        let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
        self.peers.iter().any(|(p, _)| is_wanted(p.facts().name))
    }

    /// Leaves out those who do nothing of the work that is asked for; who was named is told.
    pub(crate) fn keep_those_who_do(&mut self, args: &Args) {
        let skipped = &mut self.skipped;
        self.peers.retain(|(peer, _)| {
            let name = peer.facts().name;
            let does = args.has_commits() || args.bulk().any(|work| !peer.bulk_ways(work).is_empty());
            if !does && args.peers.iter().any(|p| p == name) {
                skipped.push(Skipped { peer: name.into(), why: "it does none of the work that is asked for".into() });
            }
            does
        });
    }
}

/// Finds those who are wanted (all, if nobody is named). Towline takes part beside everybody.
pub(crate) fn field(wanted: &[String], all: Vec<Box<dyn Peer>>) -> Result<Field, String> {
    let known: Vec<_> = all.iter().map(|p| p.facts().name).collect();
    if let Some(name) = wanted.iter().find(|w| !known.contains(&w.as_str())) {
        return Err(format!("no peer is called {name:?}; there are {}", known.join(", ")));
    }
    let scopes: Vec<_> = all
        .iter()
        .map(|p| p.facts())
        .filter(|f| wanted.is_empty() || wanted.iter().any(|w| w == f.name))
        .map(|f| f.scope)
        .collect();
    let mut field = Field { peers: Vec::new(), skipped: Vec::new() };
    for mut peer in all {
        let facts = peer.facts();
        let is_towline = facts.name.starts_with("towline");
        let is_wanted = wanted.is_empty() || wanted.iter().any(|w| w == facts.name);
        if !(is_wanted || is_towline && scopes.contains(&facts.scope)) {
            // Who would stand beside its peer if it were there is not passed over in silence.
            if field.peers.iter().any(|(p, _)| is_variant(facts.name, p.facts().name))
                && let Err(why) = peer.find()
            {
                field.skipped.push(Skipped { peer: facts.name.into(), why });
            }
            continue;
        }
        match peer.find() {
            Ok(version) => field.peers.push((peer, version)),
            Err(why) => field.skipped.push(Skipped { peer: facts.name.into(), why }),
        }
    }
    Ok(field)
}

/// Whether a contender is another one of a peer that takes part, by its name: `nats-sync` of `nats`.
fn is_variant(name: &str, of: &str) -> bool {
    !of.starts_with("towline") && name.strip_prefix(of).is_some_and(|rest| rest.starts_with('-'))
}

/// The groups with their entries, in order.
fn plan(args: &Args, field: &Field) -> Vec<(Scope, usize, u64, Vec<Entry<Row>>)> {
    let mut groups = Vec::new();
    for scope in [Scope::Replicated, Scope::Local] {
        for record_bytes in &args.sizes {
            for outstanding in &args.outstanding {
                let mut entries = Vec::new();
                for (n, (peer, _)) in field.peers.iter().enumerate() {
                    let facts = peer.facts();
                    let shapes = if facts.scope == scope { peer.shapes(*outstanding) } else { Vec::new() };
                    entries.extend(shapes.into_iter().map(|shape| {
                        let (peer, shape_text) = (facts.name.to_string(), shape.to_string());
                        let row = Row { peer, shape: shape_text, runs: Vec::new(), errors: Vec::new() };
                        Entry { peer: n, shape, row }
                    }));
                }
                keep_shapes_in_use(&mut entries);
                if !entries.is_empty() {
                    groups.push((scope, *record_bytes, *outstanding, entries));
                }
            }
        }
    }
    groups
}

/// Leaves out Towline's network shapes that none of the peers has who take part; the one connection of its own
/// client, which is its best, stays.
fn keep_shapes_in_use(entries: &mut Vec<Entry<Row>>) {
    let theirs: Vec<Shape> = entries.iter().filter(|e| !e.row.peer.starts_with("towline")).map(|e| e.shape).collect();
    if theirs.is_empty() {
        return;
    }
    entries.retain(|e| {
        let name = e.row.peer.as_str();
        let is_best = name != SAME_LOOP && e.shape.connections == 1;
        !NETWORK.contains(&name) || is_best || theirs.contains(&e.shape)
    });
}

/// Measures everything; progress goes to stderr. What was measured before an end was asked for, or
/// before the disk probe failed, is there in any case.
pub(crate) fn run(args: &Args, mut field: Field, scratch: &Path) -> Result<(Part, Result<(), String>), String> {
    for skipped in &field.skipped {
        eprintln!("left out: {}: {}", skipped.peer, skipped.why);
    }
    let mut probe = Probe::new(scratch)?;
    let scopes: Vec<Scope> = field.peers.iter().map(|(p, _)| p.facts().scope).collect();
    let mut limits = Vec::new();
    for scope in [Scope::Replicated, Scope::Local].into_iter().filter(|s| scopes.contains(s)) {
        let files = scope.copies();
        limits.push(Limit { files, mb_s: limit(args, files, scratch)?, after_mb_s: None });
    }
    let prepared = scratch.join("prepared");
    std::fs::create_dir_all(&prepared).map_err(|e| format!("making a folder: {e}"))?;
    let mut peers = BTreeMap::new();
    let mut ready = Vec::new();
    for (mut peer, version) in field.peers {
        let facts = peer.facts();
        interrupt::check()?;
        if let Err(why) = peer.prepare(&prepared) {
            interrupt::check()?;
            eprintln!("left out: {}: {why}", facts.name);
            field.skipped.push(Skipped { peer: facts.name.into(), why });
            continue;
        }
        let version = peer.version_when_prepared().unwrap_or(version);
        let known = PeerFacts {
            title: facts.title.into(),
            version: version.clone(),
            durability: facts.durability.into(),
            configuration: facts.configuration.into(),
            shape: facts.shape.into(),
        };
        peers.insert(facts.name.to_string(), known);
        ready.push((peer, version));
    }
    field.peers = ready;
    let mut part = Part {
        date: machine::date(),
        command: args.command(),
        machine: machine::machine(scratch),
        seconds: args.seconds.as_secs_f64(),
        warm_up_seconds: args.warm_up.as_secs_f64(),
        pinning: args.pinning(),
        limits,
        peers,
        skipped: field.skipped.clone(),
        groups: Vec::new(),
        bulk: Vec::new(),
    };
    let groups = if args.has_commits() { plan(args, &field) } else { Vec::new() };
    let entries = groups.iter().map(|g| g.3.len()).sum();
    let mut turns = Turns::new(args, &mut field, scratch, &mut probe, entries);
    let mut ended = Ok(());
    for (scope, record_bytes, outstanding, mut entries) in groups {
        let work = format!("{}, {record_bytes} B, {outstanding} outstanding", scope.title());
        let mut probes_us = Vec::new();
        let told = |run: &Run| {
            let (rate, p50, disk) = (run.commits_per_s, run.p50_us, run.probe_after_us);
            format!("{rate:.0} commits/s, p50 {p50:.0} us (disk {disk:.0} us)")
        };
        let run = |turns: &mut Turns<'_>, entry: &Entry<Row>, probes_us: &mut Vec<f64>| {
            run_one(turns, entry, record_bytes, probes_us)
        };
        ended = turns.take(&work, &mut entries, &mut probes_us, run, told);
        let rows = entries.into_iter().map(|e| e.row).collect();
        part.groups.push(Group { scope, record_bytes, outstanding, probes_us, rows });
        if ended.is_err() {
            break;
        }
    }
    if ended.is_ok() {
        (part.bulk, ended) = bulk::run(args, &mut field, scratch, &mut probe);
    }
    if ended.is_ok() {
        ended = part.limits.iter_mut().try_for_each(|l| {
            l.after_mb_s = Some(limit(args, l.files, scratch)?);
            Ok(())
        });
    }
    Ok((part, ended))
}

/// MB/s that the device takes in so many files.
fn limit(args: &Args, files: usize, dir: &Path) -> Result<f64, String> {
    eprintln!("measuring what the disk takes, {files} files at a time ...");
    let second = args.cpus.last().copied();
    let cpus: Vec<_> = (0..files).map(|n| if n == 0 { args.cpus.first().copied() } else { second }).collect();
    let how_long = args.seconds.min(Duration::from_millis(1500));
    let limit = disk_limit(dir, &cpus, 256 << 10, 8, Content::Fresh, how_long);
    let limit = limit.map_err(|e| format!("measuring the disk: {e}"))?;
    Ok((limit.bytes_per_s / 1e6).round())
}

fn run_one(
    turns: &mut Turns<'_>,
    entry: &Entry<Row>,
    record_bytes: usize,
    probes_us: &mut Vec<f64>,
) -> Result<Run, String> {
    let Turns { args, cpus, scratch, probe, field, .. } = turns;
    let (peer, shape) = (&mut field.peers[entry.peer].0, entry.shape);
    let (warm_up, measure) = (args.warm_up, args.seconds);
    let probed = steady(|| {
        let before = probes_us.last().copied().unwrap_or_default();
        let sample = in_folder(scratch, |dir| peer.run(&Job { dir, record_bytes, shape, warm_up, measure, cpus }));
        interrupt::sleep(SETTLE)?;
        let after = probe.measure(PROBE)?;
        probes_us.push(after);
        let sample = sample?;
        if sample.commits == 0 { Err("no commit in the whole run".into()) } else { Ok((sample, [before, after])) }
    })?;
    Ok(probed.sample.into_run(probed.probes_us, probed.repeated))
}

/// Makes a run in an empty folder, which is gone afterwards.
pub(crate) fn in_folder<T>(scratch: &Path, run: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, String> {
    let dir = scratch.join("run");
    std::fs::create_dir_all(&dir).map_err(|e| format!("making a folder: {e}"))?;
    let sample = run(&dir);
    let removed = std::fs::remove_dir_all(&dir);
    let sample = sample?;
    removed.map_err(|e| format!("removing a run's folder: {e}"))?;
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::super::model::Sample;
    use super::super::peers::Facts;
    use super::*;

    struct Fake(&'static str, Scope, bool);

    impl Peer for Fake {
        fn facts(&self) -> Facts {
            let (durability, configuration, shape) = ("some", "some", "some");
            Facts { name: self.0, title: self.0, scope: self.1, durability, configuration, shape }
        }

        fn find(&mut self) -> Result<String, String> {
            if self.2 { Ok("1.0".into()) } else { Err("apt-get install it".into()) }
        }

        fn shapes(&self, outstanding: u64) -> Vec<Shape> {
            if outstanding > 100 { Vec::new() } else { vec![Shape { connections: 1, pipeline: outstanding }] }
        }

        fn run(&mut self, _: &Job<'_>) -> Result<Sample, String> {
            Err("a fake".into())
        }
    }

    fn all() -> Vec<Box<dyn Peer>> {
        vec![
            Box::new(Fake("towline", Scope::Replicated, true)),
            Box::new(Fake("there", Scope::Replicated, true)),
            Box::new(Fake("missing", Scope::Replicated, false)),
            Box::new(Fake("towline-local", Scope::Local, true)),
            Box::new(Fake("log", Scope::Local, true)),
        ]
    }

    fn names(field: &Field) -> Vec<&'static str> {
        field.peers.iter().map(|(p, _)| p.facts().name).collect()
    }

    #[test]
    fn towline_takes_part_beside_everybody_and_who_is_missing_is_said() {
        let field = field(&[], all()).unwrap();
        assert_eq!(names(&field), ["towline", "there", "towline-local", "log"]);
        assert_eq!(field.skipped, [Skipped { peer: "missing".into(), why: "apt-get install it".into() }]);
        assert_eq!(names(&super::field(&["log".into()], all()).unwrap()), ["towline-local", "log"]);
        let missing = ["missing".to_string()];
        assert!(!super::field(&missing, all()).unwrap().has_wanted(&missing), "Towline alone is no comparison");
        assert!(field.has_wanted(&[]));
        assert!(super::field(&["nobody".into()], all()).is_err_and(|e| e.contains("missing, towline-local")));
    }

    #[test]
    fn a_variant_that_is_not_there_is_said_where_its_peer_takes_part() {
        let all = || -> Vec<Box<dyn Peer>> {
            let more = [("there-sync", false), ("there-other", true), ("thereof", false)];
            all().into_iter().chain(more.map(|(n, is)| Box::new(Fake(n, Scope::Replicated, is)) as _)).collect()
        };
        let field = field(&["there".into()], all()).unwrap();
        assert_eq!(names(&field), ["towline", "there"]);
        assert_eq!(field.skipped, [Skipped { peer: "there-sync".into(), why: "apt-get install it".into() }]);
        assert_eq!(super::field(&["log".into()], all()).unwrap().skipped, []);
    }

    #[test]
    fn towline_takes_the_shapes_of_those_who_take_part_and_its_own_best() {
        let entry = |(peer, connections, pipeline): (&str, u64, u64)| {
            let row = Row { peer: peer.into(), shape: String::new(), runs: Vec::new(), errors: Vec::new() };
            Entry { peer: 0, shape: Shape { connections, pipeline }, row }
        };
        let own = ["towline-client", "towline-net"].into_iter().flat_map(|n| [(n, 1, 1024), (n, 8, 128), (n, 64, 16)]);
        let mut all: Vec<Entry<Row>> =
            own.clone().chain([("towline", 1, 1024), ("redis", 64, 16)]).map(entry).collect();
        keep_shapes_in_use(&mut all);
        let left: Vec<_> = all.iter().map(|e| (e.row.peer.as_str(), e.shape.connections)).collect();
        let expected =
            [("towline-client", 1), ("towline-client", 64), ("towline-net", 64), ("towline", 1), ("redis", 64)];
        assert_eq!(left, expected);
        let mut alone: Vec<Entry<Row>> = own.map(entry).collect();
        keep_shapes_in_use(&mut alone);
        assert_eq!(alone.len(), 6, "nobody to be like");
    }

    #[test]
    fn a_peer_that_cannot_keep_so_many_outstanding_is_left_out_of_that_group_only() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let args = |line: &[&str]| Cli::parse_from([&["compare"], line].concat()).args.resolved();
        let only_bulk = args(&["--work", "stream", "--peers", "log"]);
        let mut none = field(&only_bulk.peers, all()).unwrap();
        none.keep_those_who_do(&only_bulk);
        assert!(!none.has_wanted(&only_bulk.peers) && none.skipped[0].why.contains("none of the work"));
        let args = args(&["--sizes", "256", "--outstanding", "1,256"]);
        let field = field(&["there".into()], all()).unwrap();
        let groups = plan(&args, &field);
        assert_eq!(groups.len(), 1, "nobody can do 256");
        assert_eq!(groups[0].3.iter().map(|e| e.row.peer.as_str()).collect::<Vec<_>>(), ["towline", "there"]);
    }
}
