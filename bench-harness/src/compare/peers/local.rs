//! Embedded logs. Their crates are not Towline's: `bench-harness/peers` is a workspace of its own,
//! built when one of them is measured for the first time. Each run is a process of that program.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use towline::measure::histogram;

use super::super::child::Launch;
use super::super::model::{Sample, Scope};
use super::{Facts, Job, Peer, Shape, program, shapes, version_of};

const CRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
const LOCK: &str = include_str!("../../../peers/Cargo.lock");
const PROGRAM: &str = "towline-bench-peers";

/// One of the logs.
pub(crate) struct Local {
    facts: Facts,
    /// The crate that its version is taken from.
    package: &'static str,
    /// The most outstanding at a time, and whether as threads or as one batch.
    most: u64,
    threads: bool,
    program: PathBuf,
}

const THREADS: &str = "threads x records of each commit; the log makes one flush for all threads that wait";
const BATCHES: &str =
    "threads x records of each commit; the log has one writer, so more outstanding means a larger batch";

impl Local {
    const fn new(facts: Facts, package: &'static str, most: u64, threads: bool) -> Self {
        Self { facts, package, most, threads, program: PathBuf::new() }
    }

    /// All of them.
    pub(crate) fn all() -> [Self; 4] {
        let facts = |name, title, durability, configuration, shape| Facts {
            name,
            title,
            scope: Scope::Local,
            durability,
            configuration,
            shape,
        };
        [
            Self::new(
                facts(
                    "raft-engine",
                    "raft-engine",
                    "flushed (fdatasync before it returns)",
                    "write(batch, sync = true), one record a batch; no compression; 512 MB of files made beforehand \
                     (prefill_for_recycle)",
                    THREADS,
                ),
                "raft-engine",
                1024,
                true,
            ),
            Self::new(
                facts(
                    "okaywal",
                    "OkayWAL",
                    "flushed (fdatasync before it returns)",
                    "one entry a record; files of 64 MiB instead of 1 MiB, checkpoints that do nothing",
                    THREADS,
                ),
                "okaywal",
                1024,
                true,
            ),
            Self::new(
                facts(
                    "walrus",
                    "walrus-rust",
                    "flushed (msync of each batch)",
                    "FsyncSchedule::SyncEach with the mapped backend, which flushes once for each batch",
                    BATCHES,
                ),
                "walrus-rust",
                1024,
                false,
            ),
            Self::new(
                facts(
                    "sqlite",
                    "SQLite, as bundled with rusqlite",
                    "flushed (WAL, synchronous = FULL)",
                    "journal_mode WAL, synchronous FULL, a table with a rowid, a prepared INSERT, one transaction for each \
                     batch",
                    BATCHES,
                ),
                "rusqlite",
                16384,
                false,
            ),
        ]
    }
}

/// A package's version, by a lock file.
fn version_in(lock: &str, package: &str) -> Option<String> {
    let mut lines = lock.lines().skip_while(|l| *l != format!("name = \"{package}\""));
    let version = lines.nth(1)?.strip_prefix("version = \"")?;
    Some(version.trim_end_matches('"').to_string())
}

/// What the program says at the end.
#[derive(Deserialize)]
struct Said {
    commits: u64,
    seconds: f64,
    cpu_ns: u64,
    latency_ns: Vec<(u64, u64)>,
}

fn sample(line: &str) -> Result<Sample, String> {
    let said: Said = serde_json::from_str(line).map_err(|e| format!("{PROGRAM} says something else: {e}"))?;
    let mut latency_ns = histogram();
    for (value, count) in said.latency_ns {
        latency_ns.saturating_record_n(value, count);
    }
    Ok(Sample {
        commits: said.commits,
        failed: 0,
        seconds: said.seconds,
        latency_ns,
        // The log is a part of its client.
        client_cpu_ns: 0,
        server_cpu_ns: said.cpu_ns,
    })
}

impl Peer for Local {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn find(&mut self) -> Result<String, String> {
        let version = version_in(LOCK, self.package).ok_or("its version is not in the lock file")?;
        let folder = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join("peers")));
        self.program = folder.ok_or("where this program is cannot be told")?.join("release").join(PROGRAM);
        if !self.program.is_file() && (program("cargo").is_none() || !Path::new(CRATE).is_dir()) {
            return Err(format!("{PROGRAM} is not built, and there is no cargo or no source to build it from"));
        }
        Ok(version)
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        match outstanding {
            n if n > self.most => Vec::new(),
            n if self.threads => shapes(&[(n, 1)]),
            n => shapes(&[(1, n)]),
        }
    }

    fn prepare(&mut self, dir: &Path) -> Result<(), String> {
        let target = self.program.ancestors().nth(2).ok_or("no target folder")?;
        if !self.program.is_file() {
            eprintln!("building the embedded logs that Towline is compared with, once (bench-harness/peers) ...");
        }
        // Cargo sees by itself that nothing is to be done.
        let Some(cargo) = program("cargo").filter(|_| Path::new(CRATE).is_dir()) else { return Ok(()) };
        let manifest = format!("{CRATE}/Cargo.toml");
        let build = Launch::new(cargo, dir, &[]).args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
        let built = build.arg(manifest).arg("--target-dir").arg(target).start("cargo")?.finish();
        built.map(|_| ()).map_err(|e| format!("its crate cannot be built: {e}"))
    }

    fn version_when_prepared(&self) -> Option<String> {
        // The library inside the crate, not the crate.
        let said = version_of(&self.program, &format!("--version-of={}", self.facts.name)).ok()?;
        Some(said.trim().to_string()).filter(|version| !version.is_empty())
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let numbers = [
            job.shape.connections,
            job.shape.pipeline,
            job.record_bytes as u64,
            job.warm_up.as_millis() as u64,
            job.measure.as_millis() as u64,
        ];
        let launch = Launch::new(&self.program, job.dir, &job.cpus.first).arg(self.facts.name);
        let said = launch.args(numbers.map(|n| n.to_string())).start(self.facts.name)?.finish()?;
        // Some logs are chatty.
        sample(said.lines().rev().find(|l| l.starts_with('{')).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_lock_file() {
        for peer in Local::all() {
            assert!(version_in(LOCK, peer.package).is_some_and(|v| v.contains('.')), "{}", peer.package);
        }
        assert_eq!(version_in(LOCK, "no-such-crate"), None);
    }

    #[test]
    fn what_the_program_says_becomes_a_sample() {
        let line = "{\"commits\":3,\"seconds\":1.5,\"cpu_ns\":9,\"latency_ns\":[[1000,2],[5000,1]]}";
        let sample = sample(line).unwrap();
        assert_eq!((sample.commits, sample.server_cpu_ns, sample.latency_ns.len()), (3, 9, 3));
        assert!(super::sample("panicked").is_err());
    }
}
