//! `towline-bench away`: somebody pulls the plug on a configured replica while a load writes. With a cap the
//! primary has to stay flat in memory and bounded on disk, however long it is away.

mod table;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towline::measure::Load;
use towline::units::{parse_size, show_size};
use towline::{AppendOptions, Primary, PrimaryConfig, Retain, RetainMax, ShardId, SlotState};

use towline_bench::latency::us;
use towline_bench::memory;

use crate::cluster::{Scratch, of_one, until};
use crate::files::files_below;
use crate::remote::{NodeSettings, RemoteReplica};

const ONE: ShardId = ShardId(0);
/// Memory that may come in any case: what an allocator takes from the system at a time.
const GROWTH_FLOOR: u64 = 4 << 20;
/// Beside segments: superblock, lock, and what a file system takes for folders.
const SMALL_FILES: u64 = 1 << 20;
/// What is written before the plug is pulled, at least: buffers and windows are full then.
const WARM_UP: (u64, Duration) = (128 << 20, Duration::from_secs(1));

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the replica is away
    #[arg(long, value_name = "N", conflicts_with = "bytes")]
    minutes: Option<f64>,
    /// How much is written while it is away [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bytes: Option<u64>,
    /// The cap on what is kept for the replica; an eighth of it is kept in any case
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    retain_max: u64,
    /// Size of a segment
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    segment_size: u64,
    /// Bytes of each record
    #[arg(long, default_value_t = 4096)]
    record: usize,
    /// Records outstanding
    #[arg(long, default_value_t = 256)]
    window: u64,
    /// Appends in each second [default: as many as it takes]
    #[arg(long)]
    rate: Option<f64>,
    /// Time between two samples, in milliseconds
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(10..))]
    every_ms: u64,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// How the primary was at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    /// Since the plug was pulled.
    seconds: f64,
    /// Written since then.
    bytes: u64,
    commits_per_s: f64,
    p99_us: f64,
    /// Bytes of memory that the process has from the system.
    rss: u64,
    /// Bytes that the primary's folder takes.
    disk: u64,
}

/// What was measured, and what was allowed.
#[derive(Serialize)]
struct Report {
    retain_max: u64,
    seconds: f64,
    bytes: u64,
    /// With the replica there, at the end of the warm-up.
    before: Sample,
    rss_most: u64,
    rss_allowed: u64,
    disk_most: u64,
    disk_allowed: u64,
    /// When the replica's slot was seen to be lost for the cap.
    lost_after_s: Option<f64>,
    flat: bool,
    bounded: bool,
    samples: Vec<Sample>,
}

/// Measures and prints; an error if the primary was not flat or not bounded.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let config = config(args, &scratch.0.join("primary"));
    let disk_allowed = allowed(&config, args.retain_max);
    let report = measure(args, config, &scratch.0, disk_allowed)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
    } else {
        table::print(&report);
    }
    let most = |what: &str, most, allowed| format!("{what}: {} of {} allowed", show_size(most), show_size(allowed));
    match (report.flat, report.bounded) {
        (false, _) => Err(most("memory has grown", report.rss_most, report.rss_allowed)),
        (_, false) => Err(most("the folder has outgrown its bound", report.disk_most, report.disk_allowed)),
        _ => Ok(()),
    }
}

fn config(args: &Args, data: &Path) -> PrimaryConfig {
    let mut config = PrimaryConfig::new(data);
    config.listen = Some(([127, 0, 0, 1], 0).into());
    config.replicas = vec!["r1".into()];
    config.retain_max = RetainMax::Bytes(args.retain_max);
    config.node.cpus = vec![0];
    config.node.retain = Retain::Bytes(args.retain_max / 8);
    config.node.segment_bytes = args.segment_size;
    config.node.record_bytes_max = args.record.max(config.node.batch_bytes);
    config
}

/// What docs/REPLICAS.md says of a disk: "What is kept, and for how long".
fn allowed(config: &PrimaryConfig, retain_max: u64) -> u64 {
    let node = &config.node;
    let segments = 2 * node.segments_ahead as u64 + 8;
    let in_flight = (node.write_depth * node.batch_bytes).max(node.record_bytes_max) as u64;
    retain_max + segments * node.segment_bytes + 3 * in_flight + SMALL_FILES
}

fn measure(args: &Args, config: PrimaryConfig, scratch: &Path, disk_allowed: u64) -> Result<Report, String> {
    let folder = config.node.data.clone();
    let retain = args.retain_max;
    let primary = Primary::open(config).map_err(|e| e.to_string())?;
    let addr = primary.listening().ok_or("the primary does not listen")?;
    let second = thread::available_parallelism().map_or(1, usize::from).min(2) - 1;
    let settings =
        NodeSettings { cpus: vec![second], retain, prefill: 0, depth: 4, batch: 512 << 10, spin: Duration::ZERO };
    let replica = RemoteReplica::start(scratch.join("r1"), "r1", addr, &settings)?;
    until("the replica is live", || Ok(of_one(&primary).slots[0].state == SlotState::Live))?;
    let load = match args.rate {
        Some(rate) => Load::open(args.record, rate, args.window, AppendOptions::default()),
        None => Load::closed(args.record, args.window, AppendOptions::default()),
    };
    let running = load.clone();
    primary.spawn_on(ONE, move |local| running.run(local));
    let mut look =
        Look { primary: &primary, load: &load, folder: &folder, from: 0, began: Instant::now(), last: (0, 0.0) };
    let pause = Duration::from_millis(args.every_ms);
    let mut before = look.sample()?;
    while before.bytes < WARM_UP.0.max(retain) || look.began.elapsed() < WARM_UP.1 {
        thread::sleep(pause);
        let now = look.sample()?;
        before = Sample { rss: now.rss.max(before.rss), ..now };
    }
    // The plug, not the switch: nothing is said, no connection is closed in order.
    replica.kill()?;
    look.begin_again(before.bytes);
    let mut samples = Vec::with_capacity(4096);
    let mut lost_after_s = None;
    let (wanted, how_long) = match args.minutes {
        Some(minutes) => (u64::MAX, Duration::from_secs_f64(minutes * 60.0)),
        None => (args.bytes.unwrap_or(2 << 30), Duration::MAX),
    };
    loop {
        thread::sleep(pause);
        let sample = look.sample()?;
        if lost_after_s.is_none() && of_one(&primary).slots[0].state == SlotState::Lost {
            lost_after_s = Some(sample.seconds);
        }
        samples.push(sample);
        if sample.bytes >= wanted || look.began.elapsed() >= how_long {
            break;
        }
    }
    load.stop();
    load.wait();
    primary.stop();
    let last = samples[samples.len() - 1];
    let rss_allowed = before.rss + (before.rss / 100).max(GROWTH_FLOOR);
    let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    let (rss_most, disk_most) = (most(|s| s.rss), most(|s| s.disk));
    Ok(Report {
        retain_max: args.retain_max,
        seconds: last.seconds,
        bytes: last.bytes,
        before,
        rss_most,
        rss_allowed,
        disk_most,
        disk_allowed,
        lost_after_s,
        flat: rss_most <= rss_allowed,
        bounded: disk_most <= disk_allowed,
        samples,
    })
}

/// Looks at a primary under load.
struct Look<'a> {
    primary: &'a Primary,
    load: &'a Arc<Load>,
    folder: &'a Path,
    /// Where the log ended, and when, in the beginning.
    from: u64,
    began: Instant,
    /// Commits, and at which second, the last time.
    last: (u64, f64),
}

impl Look<'_> {
    fn begin_again(&mut self, written: u64) {
        self.from += written;
        self.began = Instant::now();
        self.last.1 = 0.0;
    }

    fn sample(&mut self) -> Result<Sample, String> {
        let report = self.load.take_report();
        if let Some(e) = report.error {
            return Err(format!("the load ended by itself: {e}"));
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let (commits, since) = std::mem::replace(&mut self.last, (report.commits, seconds));
        Ok(Sample {
            seconds,
            bytes: of_one(self.primary).appended_lsn.0 - self.from,
            commits_per_s: (report.commits - commits) as f64 / (seconds - since).max(1e-9),
            p99_us: us(&report.latency_ns, 0.99),
            rss: memory::rss_bytes()?,
            disk: disk(self.folder).map_err(|e| format!("{}: {e}", self.folder.display()))?,
        })
    }
}

/// What a folder takes on its device. Files go and come meanwhile.
fn disk(folder: &Path) -> io::Result<u64> {
    Ok(files_below(folder)?.iter().map(|(_, m)| m.blocks() * 512).sum())
}
