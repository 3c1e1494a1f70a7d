//! The contenders. Each finds what it needs on this machine, starts its nodes in an empty folder,
//! puts the load on them, and ends them.

mod etcd;
mod h2;
mod kevy;
mod local;
mod nats;
mod nats_wire;
mod nodes;
mod pg_bulk;
mod pg_files;
mod pg_wire;
mod postgres;
mod redis;
mod resp;
mod towline;
mod towline_bulk;
mod towline_wire;

pub(crate) use self::towline::{NodeArgs, node};
use std::fmt;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::towline::measure::record;

use super::model::{BulkSample, BulkWork, LogFiles, Sample, Scope};

/// What a reader must know of a contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// As in `--peers`.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) scope: Scope,
    /// What a commit means, in words.
    pub(crate) durability: &'static str,
    pub(crate) configuration: &'static str,
    /// What the two numbers of its shapes mean.
    pub(crate) shape: &'static str,
}

/// So many connections (or threads), each with so many commits outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) connections: u64,
    pub(crate) pipeline: u64,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.connections, self.pipeline)
    }
}

/// Shapes from pairs.
fn shapes(pairs: &[(u64, u64)]) -> Vec<Shape> {
    pairs.iter().map(|(connections, pipeline)| Shape { connections: *connections, pipeline: *pipeline }).collect()
}

/// Which cores a node may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// The first node's: the primary, the leader.
    pub(crate) first: Vec<usize>,
    /// The other nodes'.
    pub(crate) others: Vec<usize>,
}

/// One run to be made.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// An empty folder, removed afterwards.
    pub(crate) dir: &'a Path,
    pub(crate) record_bytes: usize,
    pub(crate) shape: Shape,
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
    pub(crate) cpus: &'a Cpus,
}

impl Job<'_> {
    fn record(&self) -> Vec<u8> {
        record(self.record_bytes)
    }
}

/// Bytes of everybody's record in bulk work.
pub(crate) const BULK_RECORD_BYTES: usize = 16 << 10;
/// How long bulk work may take.
const BULK_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at whether bulk work is done.
const BULK_LOOK: Duration = Duration::from_millis(2);

/// One run of bulk work to be made.
pub(crate) struct BulkJob<'a> {
    /// An empty folder, removed afterwards.
    pub(crate) dir: &'a Path,
    pub(crate) work: BulkWork,
    pub(crate) files: LogFiles,
    pub(crate) bytes: u64,
    pub(crate) shape: Shape,
    pub(crate) cpus: &'a Cpus,
    /// To be called when all is prepared, before the clock runs: waits for the disk and probes it.
    pub(crate) ready: &'a dyn Fn() -> Result<(), String>,
}

impl BulkJob<'_> {
    /// How many records that is, in whole units of so many.
    fn records(&self, unit: u64) -> u64 {
        self.bytes.div_ceil(BULK_RECORD_BYTES as u64).next_multiple_of(unit)
    }
}

/// One of a contender's ways to do bulk work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BulkWay {
    /// How the records are written: connections, and records in a unit or outstanding.
    pub(crate) shape: Shape,
    /// Where all of it is when the clock stops, in words.
    pub(crate) until: &'static str,
    pub(crate) how: &'static str,
}

/// A contender.
pub(crate) trait Peer {
    fn facts(&self) -> Facts;

    /// Its version, or the line that says why it is left out and how to install it.
    fn find(&mut self) -> Result<String, String>;

    /// Its best ways to keep so many commits outstanding; none if it cannot.
    fn shapes(&self, outstanding: u64) -> Vec<Shape>;

    /// What is made once and used by every run, in a folder that stays until the end.
    fn prepare(&mut self, _dir: &Path) -> Result<(), String> {
        Ok(())
    }

    /// Its version, if that can only be told when it is prepared.
    fn version_when_prepared(&self) -> Option<String> {
        None
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String>;

    /// Its best ways to do bulk work; none if it cannot.
    fn bulk_ways(&self, _work: BulkWork) -> Vec<BulkWay> {
        Vec::new()
    }

    /// Does it, in one of those ways.
    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        Err(format!("{} has no way to do this: {}", self.facts().name, job.work.title()))
    }
}

/// Every contender, in the order of the table.
pub(crate) fn all() -> Vec<Box<dyn Peer>> {
    let mut all: Vec<Box<dyn Peer>> =
        vec![Box::new(towline::Embedded::new(Scope::Replicated)), Box::new(towline::Client), Box::new(towline::Driven)];
    all.extend(over_network());
    all.push(Box::new(towline::Embedded::new(Scope::Local)));
    all.extend(local::Local::all().map(|log| Box::new(log) as Box<dyn Peer>));
    all
}

/// The peers with a network protocol.
fn over_network() -> [Box<dyn Peer>; 8] {
    [
        Box::new(postgres::Postgres::messages()),
        Box::new(postgres::Postgres::inserts()),
        Box::new(redis::Redis::wait()),
        Box::new(redis::Redis::wait_aof()),
        Box::new(etcd::Etcd::default()),
        Box::new(nats::Nats::new()),
        Box::new(nats::Nats::sync_always()),
        Box::new(kevy::Kevy::default()),
    ]
}

/// Every shape in which a network peer keeps so many commits outstanding, few connections first.
fn network_shapes(outstanding: u64) -> Vec<Shape> {
    let mut all: Vec<Shape> = over_network().iter().flat_map(|peer| peer.shapes(outstanding)).collect();
    all.sort_by_key(|shape| shape.connections);
    all.dedup();
    all
}

/// Where a program is: in `PATH`, or where Debian puts servers.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into(), "/sbin".into()]);
    folders.map(|f| f.join(name)).find(|p| p.is_file())
}

/// What a program says of its version.
fn version_of(program: &Path, arg: &str) -> Result<String, String> {
    let out = std::process::Command::new(program).arg(arg).output();
    let out = out.map_err(|e| format!("{} does not start: {e}", program.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The first thing in a text that looks like a version.
fn number_in(text: &str) -> String {
    let is_version = |w: &&str| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit());
    let words = text.split(|c: char| c.is_whitespace() || "v=,()".contains(c));
    words.filter(|w| !w.is_empty()).find(is_version).unwrap_or("unknown").to_string()
}

/// Whether a version is at least another, by its numbers.
fn at_least(version: &str, wanted: &[u64]) -> bool {
    let numbers: Vec<u64> = version.split('.').map_while(|n| n.parse().ok()).collect();
    numbers.as_slice() >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_and_compared_by_their_numbers() {
        assert_eq!(number_in("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0"), "7.0.15");
        assert_eq!(number_in("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), "15.20");
        assert_eq!(number_in("nats-server: v2.9.10"), "2.9.10");
        assert_eq!(number_in("none"), "unknown");
        assert!(at_least("7.2.0", &[7, 2]) && at_least("10.1", &[7, 2]) && !at_least("7.0.15", &[7, 2]));
        assert!(!at_least("unknown", &[1]));
    }

    #[test]
    fn bulk_work_is_whole_units() {
        let cpus = Cpus { first: vec![0], others: vec![0] };
        let shape = Shape { connections: 1, pipeline: 1 };
        let (dir, work, files) = (Path::new("."), BulkWork::Stream, LogFiles::New);
        let job = |bytes| BulkJob { dir, work, files, bytes, shape, cpus: &cpus, ready: &|| Ok(()) };
        assert_eq!(job(1 << 30).records(1), 65_536);
        assert_eq!((job((1 << 20) + 1).records(1), job((1 << 20) + 1).records(64)), (65, 128));
    }

    #[test]
    fn towline_is_driven_in_every_shape_of_every_network_peer() {
        for outstanding in [1, 16, 64, 256, 1024, 16384] {
            let own = towline::Driven.shapes(outstanding);
            for peer in over_network() {
                let theirs = peer.shapes(outstanding);
                assert!(theirs.iter().all(|s| own.contains(s)), "{} at {outstanding}", peer.facts().name);
            }
            let client = towline::Client.shapes(outstanding);
            assert_eq!(client[0], Shape { connections: 1, pipeline: outstanding });
            assert!(client.iter().all(|s| own.contains(s)) && client.iter().all(|s| s.connections <= 64));
        }
        assert_eq!(towline::Driven.shapes(1024), shapes(&[(1, 1024), (8, 128), (64, 16)]));
    }

    #[test]
    fn every_contender_has_its_own_name_and_shapes_that_add_up() {
        let all = all();
        for (n, peer) in all.iter().enumerate() {
            let facts = peer.facts();
            assert!(all[n + 1..].iter().all(|p| p.facts().name != facts.name), "{}", facts.name);
            assert!(!facts.durability.is_empty() && !facts.configuration.is_empty());
            for outstanding in [1, 16, 256, 1024, 16384] {
                for shape in peer.shapes(outstanding) {
                    assert_eq!(shape.connections * shape.pipeline, outstanding, "{} {shape}", facts.name);
                }
            }
            for way in BulkWork::ALL.into_iter().flat_map(|work| peer.bulk_ways(work)) {
                assert_eq!(facts.scope, Scope::Replicated, "{}", facts.name);
                assert!(way.shape.connections > 0 && way.shape.pipeline > 0 && !way.until.is_empty());
            }
        }
    }
}
