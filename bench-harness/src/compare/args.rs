//! The arguments of `towline-bench compare`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::peers::Cpus;

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
  towline-bench compare --json all.json --html all.html
  towline-bench compare --join a.json b.json --html both.html

Towline itself is always measured: embedded (towline), and through its network client
(towline-client), beside every peer with three nodes; towline-local beside local logs.

docs/BENCHMARKS.md says how each peer is configured and why, and what each durability means.")]
pub(crate) struct Args {
    /// Only these peers, by the names of --list [default: all that are installed]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) peers: Vec<String>,
    /// Bytes of each record
    #[arg(long, value_delimiter = ',', value_name = "BYTES", default_value = "256,4096", value_parser = record_bytes)]
    pub(crate) sizes: Vec<usize>,
    /// Commits outstanding at a time
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", default_value = "1,16,256,1024,16384")]
    pub(crate) outstanding: Vec<u64>,
    /// Seconds of load that are counted in each run
    #[arg(long, default_value = "3", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Seconds of load before that
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) warm_up: Duration,
    /// Runs of each; fewer than 3 are no measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// A first impression: 256 B, 1 and 256 outstanding, one run of one second each
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

impl Args {
    /// The arguments with what `--quick` stands for.
    pub(crate) fn resolved(mut self) -> Self {
        if self.quick {
            (self.sizes, self.outstanding, self.runs) = (vec![256], vec![1, 256], 1);
            self.seconds = Duration::from_secs(1);
        }
        if self.cpus.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            self.cpus = (0..cores.min(2)).collect();
        }
        self
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
        words.push(format!("--sizes {}", list(self.sizes.iter().map(ToString::to_string).collect())));
        words.push(format!("--outstanding {}", list(self.outstanding.iter().map(ToString::to_string).collect())));
        words.push(format!("--seconds {} --warm-up {}", self.seconds.as_secs_f64(), self.warm_up.as_secs_f64()));
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
        let again = parse(command.strip_prefix("towline-bench compare").unwrap()).unwrap();
        assert_eq!(again.command(), command);
    }
}
