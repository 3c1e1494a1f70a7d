//! What a comparison leaves behind: the JSON document, which the table and the page are made from.
//! Several documents can be joined; each part keeps the machine, the date and the command of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use towline_bench::latency::us;

/// The document's version: a reader refuses any other.
pub(crate) const FORMAT: u32 = 1;

/// A whole document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) parts: Vec<Part>,
}

/// What one invocation measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) date: String,
    /// The arguments, without the folders of this machine.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) warm_up_seconds: f64,
    pub(crate) pinning: String,
    pub(crate) limits: Vec<Limit>,
    pub(crate) peers: BTreeMap<String, PeerFacts>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) groups: Vec<Group>,
    /// Documents from before there was bulk work have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bulk: Vec<BulkGroup>,
}

/// The kind of machine, without its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) virtualised: bool,
    pub(crate) file_system: String,
}

/// What the device takes in durable 256 KiB overwrites of so many files at a time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) files: usize,
    pub(crate) mb_s: f64,
    /// The same at the end of the part: a device may be slowed down after much writing. Earlier documents do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after_mb_s: Option<f64>,
}

/// Who was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerFacts {
    pub(crate) title: String,
    pub(crate) version: String,
    pub(crate) durability: String,
    pub(crate) configuration: String,
    pub(crate) shape: String,
}

/// Who was not, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) peer: String,
    pub(crate) why: String,
}

/// Who is compared with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Three nodes: a commit is on others, too.
    Replicated,
    /// One node: a commit is on the local device.
    Local,
}

impl Scope {
    /// Copies of each record.
    pub(crate) const fn copies(self) -> usize {
        match self {
            Self::Replicated => 3,
            Self::Local => 1,
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Replicated => "three nodes",
            Self::Local => "one node, local device",
        }
    }
}

/// The same work for everybody, in alternation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) scope: Scope,
    pub(crate) record_bytes: usize,
    pub(crate) outstanding: u64,
    /// The disk probe before the first run and after each, in order: medians of a lone durable
    /// 4 KiB write.
    pub(crate) probes_us: Vec<f64>,
    pub(crate) rows: Vec<Row>,
}

/// One contender in one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) runs: Vec<Run>,
    /// Why runs are missing.
    pub(crate) errors: Vec<String>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) commits: u64,
    /// Outcomes other than a commit.
    pub(crate) failed: u64,
    pub(crate) commits_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// Of all nodes and the client together.
    pub(crate) cpu_us_per_commit: f64,
    pub(crate) client_cpu_us_per_commit: f64,
    pub(crate) probe_before_us: f64,
    pub(crate) probe_after_us: f64,
    /// How often it was repeated because the disk changed under it.
    pub(crate) repeated: u32,
    /// The disk changed under it, too: it was not repeated again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) disk_moved: bool,
}

/// Work that is so many bytes, and not so many seconds. There are three nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BulkWork {
    /// Records are written until all of them are durable on all nodes.
    Stream,
    /// Records were written while a replica was away: it comes back, until it has flushed them.
    CatchUp,
}

impl BulkWork {
    pub(crate) const ALL: [Self; 2] = [Self::Stream, Self::CatchUp];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Stream => "a stream to two replicas",
            Self::CatchUp => "a replica that was away catches up",
        }
    }

    /// What the clock runs from and to.
    pub(crate) const fn clock(self) -> &'static str {
        match self {
            Self::Stream => "from the first record that is sent until all are known to be where the last column says",
            Self::CatchUp => {
                "from the moment at which the primary has the replica's connection (its column: how long after the start \
                 of the replica's process that was) until the replica has flushed all that it missed"
            }
        }
    }
}

/// Whether the files that a log is written into have been written before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFiles {
    /// They have, on all nodes: as after some time, when old files are used again
    Written,
    /// A node has what it makes when it starts
    New,
}

impl LogFiles {
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Written => "log files written beforehand",
            Self::New => "new log files",
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::New => "new",
        }
    }
}

/// Whether what was written a moment ago can be read from the system's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogCache {
    /// As the nodes leave it
    #[default]
    Kept,
    /// Nobody's log is in it when a catch-up begins: as after a long absence, when others have used the memory
    Dropped,
}

impl LogCache {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Dropped => "dropped",
        }
    }
}

/// What kind of bulk work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BulkKind {
    pub(crate) work: BulkWork,
    pub(crate) files: LogFiles,
    /// Documents from before there was a choice do not have it.
    #[serde(default)]
    pub(crate) cache: LogCache,
}

impl BulkKind {
    pub(crate) fn title(self) -> String {
        let cache = match self.cache {
            LogCache::Kept => "",
            LogCache::Dropped => ", dropped from page caches",
        };
        format!("{}, {}{cache}", self.work.title(), self.files.title())
    }
}

/// The same bulk work for everybody, in alternation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BulkGroup {
    #[serde(flatten)]
    pub(crate) kind: BulkKind,
    /// Bytes of payload that were asked for.
    pub(crate) bytes: u64,
    pub(crate) record_bytes: usize,
    /// As in [`Group`].
    pub(crate) probes_us: Vec<f64>,
    pub(crate) rows: Vec<BulkRow>,
}

/// One contender in one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BulkRow {
    pub(crate) peer: String,
    pub(crate) shape: String,
    /// Where all of it is when the clock stops, in words.
    pub(crate) until: String,
    /// How it was written.
    pub(crate) how: String,
    pub(crate) runs: Vec<BulkRun>,
    /// Why runs are missing.
    pub(crate) errors: Vec<String>,
}

/// One run of bulk work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BulkRun {
    /// Bytes of payload that were moved: those that were asked for, in whole records and units.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// 10^6 bytes of payload in each second.
    pub(crate) mb_s: f64,
    /// Catch-up: from the start of the replica's process until it was connected. The clock runs from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connected_after_s: Option<f64>,
    /// Processor seconds of all nodes and the client for 10^9 bytes of payload; in a catch-up with the
    /// replica's start.
    pub(crate) cpu_s_per_gb: f64,
    pub(crate) probe_before_us: f64,
    pub(crate) probe_after_us: f64,
    /// As in [`Run`].
    pub(crate) repeated: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) disk_moved: bool,
}

/// What a contender hands back from one run of bulk work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkSample {
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    pub(crate) connected_after: Option<Duration>,
    /// Of all nodes and the client.
    pub(crate) cpu_ns: u64,
}

impl BulkSample {
    /// The run that goes into the document.
    pub(crate) fn into_run(self, probes_us: [f64; 2], repeated: u32) -> BulkRun {
        let (bytes, seconds) = (self.bytes as f64, self.took.as_secs_f64().max(1e-9));
        BulkRun {
            bytes: self.bytes,
            seconds: round3(seconds),
            mb_s: round3(bytes / seconds / 1e6),
            connected_after_s: self.connected_after.map(|c| round3(c.as_secs_f64())),
            cpu_s_per_gb: round3(self.cpu_ns as f64 / bytes.max(1.0)),
            probe_before_us: probes_us[0],
            probe_after_us: probes_us[1],
            repeated,
            disk_moved: moved(probes_us),
        }
    }
}

/// What a contender hands back from one run.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) commits: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    pub(crate) latency_ns: Histogram<u64>,
    pub(crate) client_cpu_ns: u64,
    pub(crate) server_cpu_ns: u64,
}

impl Sample {
    /// The run that goes into the document.
    pub(crate) fn into_run(self, probes_us: [f64; 2], repeated: u32) -> Run {
        let us = |q| us(&self.latency_ns, q);
        let per_commit = |ns: u64| round3(ns as f64 / 1000.0 / self.commits.max(1) as f64);
        Run {
            commits: self.commits,
            failed: self.failed,
            commits_per_s: (self.commits as f64 / self.seconds).round(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.latency_ns.max() as f64 / 1000.0,
            cpu_us_per_commit: per_commit(self.client_cpu_ns + self.server_cpu_ns),
            client_cpu_us_per_commit: per_commit(self.client_cpu_ns),
            probe_before_us: probes_us[0],
            probe_after_us: probes_us[1],
            repeated,
            disk_moved: moved(probes_us),
        }
    }
}

/// Whether two probes of the disk differ so much that what lay between them is not to be trusted.
pub(crate) fn moved([before_us, after_us]: [f64; 2]) -> bool {
    before_us.max(after_us) > 2.0 * before_us.min(after_us)
}

fn round3(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_becomes_a_run_with_cost_per_commit_of_all_nodes() {
        let mut latency_ns = towline::measure::histogram();
        for n in 1..=1000 {
            latency_ns.record(n * 1000).unwrap();
        }
        let sample = Sample {
            commits: 1000,
            failed: 0,
            seconds: 2.0,
            latency_ns,
            client_cpu_ns: 1_000_000,
            server_cpu_ns: 3_000_000,
        };
        let run = sample.into_run([100.0, 120.0], 1);
        assert_eq!((run.commits_per_s, run.cpu_us_per_commit, run.client_cpu_us_per_commit), (500.0, 4.0, 1.0));
        assert!((run.p50_us - 500.0).abs() < 1.0 && (run.p99_us - 990.0).abs() < 2.0, "{run:?}");
        assert_eq!((run.probe_before_us, run.probe_after_us, run.repeated), (100.0, 120.0, 1));
        assert!(!run.disk_moved && !serde_json::to_string(&run).unwrap().contains("disk_moved"));
    }

    #[test]
    fn a_probe_that_moves_more_than_twofold_either_way_marks_its_run() {
        assert!(!moved([100.0, 199.0]) && !moved([199.0, 100.0]) && !moved([100.0, 200.0]));
        assert!(moved([100.0, 201.0]) && moved([201.0, 100.0]));
        let sample = BulkSample { bytes: 1, took: Duration::from_secs(1), connected_after: None, cpu_ns: 1 };
        let text = serde_json::to_string(&sample.into_run([10.0, 21.0], 2)).unwrap();
        assert!(text.contains("\"disk_moved\":true"), "{text}");
        assert!(serde_json::from_str::<BulkRun>(&text).unwrap().disk_moved);
    }

    #[test]
    fn bulk_figures_are_of_payload_alone() {
        let sample = BulkSample {
            bytes: 1 << 30,
            took: Duration::from_millis(500),
            connected_after: Some(Duration::from_millis(1250)),
            cpu_ns: 2 << 30,
        };
        let run = sample.into_run([20.0, 30.0], 2);
        assert_eq!((run.seconds, run.mb_s, run.connected_after_s), (0.5, 2147.484, Some(1.25)));
        assert_eq!((run.cpu_s_per_gb, run.probe_before_us, run.probe_after_us, run.repeated), (2.0, 20.0, 30.0, 2));
    }

    #[test]
    fn the_committed_document_from_before_bulk_work_is_read_and_written_as_it_was() {
        let text = include_str!("../../../docs/benchmarks/2026-11-21.json");
        let report: Report = serde_json::from_str(text).unwrap();
        assert!(report.format == FORMAT && report.parts.iter().all(|p| p.bulk.is_empty()));
        assert!(!serde_json::to_string(&report).unwrap().contains("bulk"));
    }

    #[test]
    fn bulk_runs_survive_the_document_and_a_stream_has_no_connection_time() {
        let took = Duration::from_secs(1);
        let sample = BulkSample { bytes: 1 << 20, took, connected_after: None, cpu_ns: 1 };
        let text = serde_json::to_string(&sample.into_run([1.0, 1.0], 0)).unwrap();
        assert!(!text.contains("connected_after_s"), "{text}");
        assert_eq!(serde_json::from_str::<BulkRun>(&text).unwrap().connected_after_s, None);
        assert_eq!(serde_json::to_string(&BulkWork::CatchUp).unwrap(), "\"catch-up\"");
    }
}
