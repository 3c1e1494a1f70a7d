//! The arguments of `towline-bench compare`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use towline::units::parse_size;

use super::model::{BulkKind, BulkWork, LogCache, LogFiles};
use super::peers::Cpus;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Closed loops of commits
    Commits,
    /// So many bytes, until all are durable on three nodes
    Stream,
    /// A replica that was away catches up with so many bytes
    CatchUp,
}

impl Work {
    /// If it is bulk work.
    pub(crate) const fn bulk(self) -> Option<BulkWork> {
        match self {
            Self::Commits => None,
            Self::Stream => Some(BulkWork::Stream),
            Self::CatchUp => Some(BulkWork::CatchUp),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Commits => "commits",
            Self::Stream => "stream",
            Self::CatchUp => "catch-up",
        }
    }
}

const BULK_BYTES: u64 = 1 << 30;
const BULK_BYTES_QUICK: u64 = 128 << 20;

/// Which cores the nodes may use: the same for every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pin {
    /// All processes of a peer may use all of `--cpus`. A Towline shard takes one core of them
    Shared,
    /// The primary (or leader) on the first of `--cpus`, all other nodes on the rest
    Split,
}

/// Measure Towline beside what you would pick instead: the same records, as many outstanding, on the
/// same cores and disk, in the same minutes.
///
/// Each peer is started from what is installed on this machine, on loopback, in temporary folders,
/// and ended again, also on Ctrl-C. A peer that is not installed is left out with a line that says
/// how to install it. Runs alternate (A B A B), so that a slow phase of the machine hits everybody;
/// a lone durable write is timed before and after each run, and a run under which it moved more than
/// twofold is repeated. Figures are medians with the least and the greatest of all runs.
///
/// What a commit promises differs from peer to peer: the last column says it in words. A ratio to a
/// peer that promises less is not a ratio of like with like.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  towline-bench compare --list                        who can be compared, and what is missing here
  towline-bench compare --quick                       a first impression in a few minutes
  towline-bench compare --peers redis,postgres --outstanding 1,256
  towline-bench compare --peers raft-engine,sqlite --sizes 4096
  towline-bench compare --work stream,catch-up --peers postgres --bulk-bytes 256MiB
  towline-bench compare --json all.json --html all.html
  towline-bench compare --join a.json b.json --html both.html

Towline itself is always measured: embedded (towline), and through its network client
(towline-client), beside every peer with three nodes; towline-local beside local logs.

docs/BENCHMARKS.md says how each peer is configured and why, and what each durability means.")]
pub(crate) struct Args {
    /// Only these peers, by the names of --list [default: all that are installed]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) peers: Vec<String>,
    /// What to measure [default: all; where --sizes or --outstanding are given, commits]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK")]
    pub(crate) work: Vec<Work>,
    /// Commits: bytes of each record [default: 256,4096]
    #[arg(long, value_delimiter = ',', value_name = "BYTES", value_parser = record_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// Commits: how many are outstanding at a time [default: 1,16,256,1024,16384]
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub(crate) outstanding: Vec<u64>,
    /// Stream, catch-up: bytes of payload [default: 1GiB, with --quick 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = bulk_bytes)]
    pub(crate) bulk_bytes: Option<u64>,
    /// Stream, catch-up: the state of the files that logs are written into [default: both, with --quick
    /// written]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATES")]
    pub(crate) log_files: Vec<LogFiles>,
    /// Catch-up: whether the log may be in the system's page cache [default: both, with --quick kept]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATES")]
    pub(crate) log_cache: Vec<LogCache>,
    /// Seconds of load that are counted in each run
    #[arg(long, default_value = "3", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Seconds of load before that
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) warm_up: Duration,
    /// Runs of each; fewer than 3 are no measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// A first impression: 256 B, 1 and 256 outstanding, one run of one second each; less bulk
    #[arg(long, conflicts_with_all = ["sizes", "outstanding", "seconds", "runs"])]
    pub(crate) quick: bool,
    /// Cores that everybody runs on [default: the first two]
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub(crate) cpus: Vec<usize>,
    /// How nodes are dealt out to those cores
    #[arg(long, value_enum, default_value_t = Pin::Shared)]
    pub(crate) pin: Pin,
    /// Write everything that was measured into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots into this file; it needs no network
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Measure nothing; show what earlier runs wrote with --json, joined
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with_all = ["peers", "quick"])]
    pub(crate) join: Vec<PathBuf>,
    /// Say who can be compared, what a commit means there, and what is missing on this machine
    #[arg(long)]
    pub(crate) list: bool,
    /// Where to make the temporary folders: a file system with direct I/O [default: the system's
    /// temporary folder]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (0.05..=3600.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err("between 0.05 and 3600 seconds".into())
    }
}

fn record_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ 1..=65_536) => Ok(bytes),
        _ => Err("1 to 65536 bytes".into()),
    }
}

fn bulk_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text).map_err(|e| e.to_string())? {
        bytes if ((1 << 20)..=(64 << 30)).contains(&bytes) => Ok(bytes),
        _ => Err("1MiB to 64GiB".into()),
    }
}

impl Args {
    /// The arguments with what `--quick` and those that were left out stand for.
    pub(crate) fn resolved(mut self) -> Self {
        if self.work.is_empty() {
            let only_commits = !(self.sizes.is_empty() && self.outstanding.is_empty());
            self.work = if only_commits { vec![Work::Commits] } else { Work::value_variants().to_vec() };
        }
        if self.quick {
            (self.sizes, self.outstanding, self.runs) = (vec![256], vec![1, 256], 1);
            self.seconds = Duration::from_secs(1);
            self.bulk_bytes = self.bulk_bytes.or(Some(BULK_BYTES_QUICK));
        }
        if self.log_files.is_empty() {
            self.log_files = if self.quick { vec![LogFiles::Written] } else { LogFiles::value_variants().to_vec() };
        }
        if self.log_cache.is_empty() {
            self.log_cache = if self.quick { vec![LogCache::Kept] } else { LogCache::value_variants().to_vec() };
        }
        if self.sizes.is_empty() {
            self.sizes = vec![256, 4096];
        }
        if self.outstanding.is_empty() {
            self.outstanding = vec![1, 16, 256, 1024, 16384];
        }
        if self.cpus.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            self.cpus = (0..cores.min(2)).collect();
        }
        self
    }

    /// Whether commits are measured.
    pub(crate) fn has_commits(&self) -> bool {
        self.work.contains(&Work::Commits)
    }

    /// The bulk work that is measured, each once, in order.
    pub(crate) fn bulk(&self) -> impl Iterator<Item = BulkWork> + '_ {
        BulkWork::ALL.into_iter().filter(|bulk| self.work.iter().any(|w| w.bulk() == Some(*bulk)))
    }

    /// All kinds of it, in order.
    pub(crate) fn bulk_kinds(&self) -> Vec<BulkKind> {
        let mut kinds = Vec::new();
        for work in self.bulk() {
            // A stream reads nothing back.
            let caches = if work == BulkWork::CatchUp { &self.log_cache[..] } else { &[LogCache::Kept] };
            for files in &self.log_files {
                kinds.extend(caches.iter().map(|cache| BulkKind { work, files: *files, cache: *cache }));
            }
        }
        kinds
    }

    /// Bytes of payload of bulk work.
    pub(crate) fn bulk_bytes(&self) -> u64 {
        self.bulk_bytes.unwrap_or(BULK_BYTES)
    }

    /// Who may use which cores.
    pub(crate) fn layout(&self) -> Cpus {
        match self.pin {
            Pin::Shared => Cpus { first: self.cpus.clone(), others: self.cpus.clone() },
            Pin::Split => {
                let (first, rest) = self.cpus.split_at(1);
                Cpus { first: first.to_vec(), others: if rest.is_empty() { first } else { rest }.to_vec() }
            }
        }
    }

    /// The same in words.
    pub(crate) fn pinning(&self) -> String {
        match self.pin {
            Pin::Shared => format!(
                "all nodes and the client share {} cores; peers' processes may move among them, Towline's primary is \
                 pinned to the first and its replicas to the last",
                self.cpus.len()
            ),
            Pin::Split => format!(
                "of {} cores the first is for the primary or leader, the rest for the other nodes; the client may use \
                 all",
                self.cpus.len()
            ),
        }
    }

    /// The command that repeats this, without the folders of this machine.
    pub(crate) fn command(&self) -> String {
        let list = |numbers: Vec<String>| numbers.join(",");
        let mut words = vec!["towline-bench compare".to_string()];
        if !self.peers.is_empty() {
            words.push(format!("--peers {}", self.peers.join(",")));
        }
        words.push(format!("--work {}", list(self.work.iter().map(|w| w.name().to_string()).collect())));
        if self.has_commits() {
            words.push(format!("--sizes {}", list(self.sizes.iter().map(ToString::to_string).collect())));
            words.push(format!("--outstanding {}", list(self.outstanding.iter().map(ToString::to_string).collect())));
            words.push(format!("--seconds {} --warm-up {}", self.seconds.as_secs_f64(), self.warm_up.as_secs_f64()));
        }
        if self.bulk().next().is_some() {
            words.push(format!("--bulk-bytes {}", self.bulk_bytes()));
            words.push(format!("--log-files {}", list(self.log_files.iter().map(|f| f.name().into()).collect())));
            words.push(format!("--log-cache {}", list(self.log_cache.iter().map(|c| c.name().into()).collect())));
        }
        words.push(format!("--runs {} --pin {}", self.runs, if self.pin == Pin::Shared { "shared" } else { "split" }));
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("compare").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|c| c.args.resolved()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_the_whole_comparison() {
        let args = parse("").unwrap();
        assert_eq!((args.sizes, args.outstanding, args.runs), (vec![256, 4096], vec![1, 16, 256, 1024, 16384], 3));
        assert!(args.peers.is_empty() && !args.cpus.is_empty());
        let args = parse("").unwrap();
        assert_eq!(args.work, [Work::Commits, Work::Stream, Work::CatchUp]);
        assert_eq!((args.bulk_bytes(), args.log_files), (1 << 30, vec![LogFiles::Written, LogFiles::New]));
    }

    #[test]
    fn what_is_measured_follows_from_what_is_given() {
        assert_eq!(parse("--sizes 256").unwrap().work, [Work::Commits]);
        assert_eq!(parse("--outstanding 1 --peers redis").unwrap().work, [Work::Commits]);
        assert_eq!(parse("--peers postgres").unwrap().work.len(), 3);
        let args = parse("--work catch-up,stream,stream --bulk-bytes 256MiB").unwrap();
        assert_eq!(args.bulk().collect::<Vec<_>>(), BulkWork::ALL);
        assert!(!args.has_commits() && args.bulk_bytes() == 256 << 20);
        assert_eq!(parse("--quick").unwrap().bulk_bytes(), 128 << 20);
        assert_eq!(parse("--quick").unwrap().log_files, [LogFiles::Written]);
        assert_eq!(parse("--quick --bulk-bytes 64MiB").unwrap().bulk_bytes(), 64 << 20);
    }

    #[test]
    fn only_a_catch_up_is_measured_without_what_page_caches_hold() {
        let kinds = |line| parse(line).unwrap().bulk_kinds();
        let cold = |line| kinds(line).iter().filter(|k| k.cache == LogCache::Dropped).count();
        assert_eq!((kinds("").len(), cold("")), (6, 2));
        assert_eq!((kinds("--work stream").len(), cold("--work stream --log-cache dropped")), (2, 0));
        assert_eq!((kinds("--quick").len(), cold("--quick")), (2, 0));
    }

    #[test]
    fn every_work_has_the_name_that_selects_it() {
        for work in Work::value_variants() {
            assert_eq!(parse(&format!("--work {}", work.name())).unwrap().work, [*work]);
        }
        for files in LogFiles::value_variants() {
            assert_eq!(parse(&format!("--log-files {}", files.name())).unwrap().log_files, [*files]);
        }
        for cache in LogCache::value_variants() {
            assert_eq!(parse(&format!("--log-cache {}", cache.name())).unwrap().log_cache, [*cache]);
        }
    }

    #[test]
    fn quick_is_one_short_run_and_bears_no_other_numbers() {
        let args = parse("--quick --peers redis,nats").unwrap();
        assert_eq!((args.sizes, args.outstanding, args.runs), (vec![256], vec![1, 256], 1));
        assert_eq!(args.peers, ["redis", "nats"]);
        assert!(parse("--quick --seconds 5").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["--seconds 0", "--seconds x", "--sizes 0", "--sizes 1000000", "--runs 0", "--pin other"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["--work other", "--bulk-bytes 1", "--bulk-bytes 1TiB", "--bulk-bytes 1GB", "--bulk-bytes x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn cores_are_dealt_out_the_same_way_for_all() {
        let layout = |line| parse(line).unwrap().layout();
        assert_eq!(layout("--cpus 2,3 --pin split"), Cpus { first: vec![2], others: vec![3] });
        assert_eq!(layout("--cpus 2 --pin split"), Cpus { first: vec![2], others: vec![2] });
        assert_eq!(layout("--cpus 2,3"), Cpus { first: vec![2, 3], others: vec![2, 3] });
    }

    #[test]
    fn the_command_that_is_shown_repeats_the_run_and_names_no_folder() {
        let args = parse("--peers redis --sizes 256 --outstanding 1 --dir /some/where --json /some/file").unwrap();
        let command = args.command();
        assert!(!command.contains("/some"), "{command}");
        for line in ["--sizes 256 --outstanding 1", "--work stream --bulk-bytes 64MiB", "--quick", ""] {
            let command = parse(line).unwrap().command();
            let again = parse(command.strip_prefix("towline-bench compare").unwrap()).unwrap();
            assert_eq!(again.command(), command);
        }
    }
}
