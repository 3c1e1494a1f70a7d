//! The workload: a closed or an open loop of appends on each shard, on its own core.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use towline::measure::{Content, Load, disk_limit, histogram, ping_pong};
use towline::units::parse_size;
use towline::{AckLevel, AppendOptions, CommitPolicy, ShardId, ZeroCopy};

use crate::cluster::{Cluster, Plan, Scratch};
use crate::remote::{NodeSettings, Used};
use crate::report::{self, Run};

/// The workload's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes of each record
    #[arg(long, default_value_t = 256)]
    pub(crate) record: usize,
    /// Commits outstanding at a time, over all shards (the most, for an open loop)
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) window: u64,
    /// Appends in each second, over all shards: an open loop; a record's latency counts from the
    /// moment at which it was to be appended
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Afterwards, on the same nodes, an open loop at half the rate that this one reached, and how far its slow
    /// commits are from its usual ones, beside the same of the device
    #[arg(long, conflicts_with = "rate")]
    pub(crate) half: bool,
    /// Shards
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) shards: u32,
    /// Replicas
    #[arg(long, default_value_t = 2)]
    pub(crate) replicas: usize,
    /// What a commit waits for [default: ack_n over all replicas, or local without replicas]
    #[arg(long)]
    pub(crate) policy: Option<CommitPolicy>,
    /// The primary's cores
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) cpus: Vec<usize>,
    /// The replicas' cores [default: the machine's second core]
    #[arg(long, value_delimiter = ',')]
    pub(crate) replica_cpus: Vec<usize>,
    /// All nodes in one process, instead of each replica in its own
    #[arg(long)]
    pub(crate) in_process: bool,
    /// Seconds of load
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,
    /// Batches in flight to each shard's device
    #[arg(long, default_value_t = 4)]
    pub(crate) depth: usize,
    /// Bytes of a normal batch
    #[arg(long, default_value_t = 512 << 10)]
    pub(crate) batch: usize,
    /// Microseconds that each core looks for news before it sleeps
    #[arg(long, default_value_t = 0)]
    pub(crate) spin_us: u64,
    /// Whether batches are sent without a copy by the kernel; on loopback it copies all the same
    #[arg(long, value_enum, default_value_t = NoCopy::Auto)]
    pub(crate) zero_copy: NoCopy,
    /// Bytes of segments that each shard writes with zeros before the load
    #[arg(long, default_value = "512MiB", value_parser = parse_size)]
    pub(crate) prefill: u64,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Also print the histograms of each stage
    #[arg(long)]
    pub(crate) stages: bool,
}

/// Whether batches are sent without a copy.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum NoCopy {
    Auto,
    Off,
    Always,
}

impl From<NoCopy> for ZeroCopy {
    fn from(no_copy: NoCopy) -> Self {
        match no_copy {
            NoCopy::Auto => Self::Auto,
            NoCopy::Off => Self::Off,
            NoCopy::Always => Self::Always,
        }
    }
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let say = |text: &str| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    let second = std::thread::available_parallelism().map_or(1, usize::from).min(2) - 1;
    let replica_cpus = if args.replica_cpus.is_empty() { vec![second] } else { args.replica_cpus.clone() };
    let settings = |cpus: &[usize]| NodeSettings {
        cpus: cpus.to_vec(),
        retain: 256 << 20,
        prefill: args.prefill,
        depth: args.depth,
        batch: args.batch,
        spin: Duration::from_micros(args.spin_us),
    };
    let flushed = |n: usize| CommitPolicy::AckN { n: n as u8, level: AckLevel::Flushed };
    let plan = Plan {
        shards: args.shards,
        replicas: args.replicas,
        policy: args.policy.unwrap_or(if args.replicas == 0 { CommitPolicy::Local } else { flushed(args.replicas) }),
        separate: !args.in_process,
        zero_copy: args.zero_copy.into(),
        primary: settings(&args.cpus),
        replica: settings(&replica_cpus),
    };
    // One file for each copy, on the core that writes it.
    let mut cpus = vec![Some(args.cpus[0])];
    cpus.extend((0..args.replicas).map(|n| Some(replica_cpus[n % replica_cpus.len()])));
    say("measuring the limits of this machine ...");
    let limit = |block, depth, content| {
        disk_limit(&scratch.0, &cpus, block, depth, content, Duration::from_millis(1500))
            .map_err(|e| format!("measuring the disk in {}: {e}", scratch.0.display()))
    };
    let wide = limit(256 << 10, 8, Content::Fresh)?;
    let reused = limit(256 << 10, 8, Content::Reused)?;
    let lone = limit(4096, 1, Content::Fresh)?;
    let ping = ping_pong([cpus[0], Some(second)], Duration::from_millis(500));
    let ping = ping.map_err(|e| format!("measuring loopback: {e}"))?;
    say("starting the nodes ...");
    let mut cluster = Cluster::start(&scratch.0, &plan)?;
    say("running ...");
    let closed = load(args, &mut cluster, args.rate)?;
    let half = args
        .half
        .then(|| {
            say("and at half of that ...");
            load(args, &mut cluster, Some(closed.commits as f64 / closed.seconds / 2.0))
        })
        .transpose()?;
    let run = Run {
        loaded: closed,
        half,
        limit: wide.bytes_per_s,
        limit_reused: reused.bytes_per_s,
        lone_write: lone.latency_ns,
        ping,
        policy: plan.policy,
        telemetry: cluster.telemetry(),
    };
    report::print(args, &run);
    Ok(())
}

/// What a load did, and what it took.
pub(crate) struct Loaded {
    pub(crate) commits: u64,
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
    pub(crate) latency: Histogram<u64>,
    pub(crate) used_before: Used,
    pub(crate) used_after: Used,
    pub(crate) batches: u64,
}

/// Loads every shard for so long: a closed loop, or an open one with so many appends in each second.
fn load(args: &Args, cluster: &mut Cluster, rate: Option<f64>) -> Result<Loaded, String> {
    let shards = u64::from(args.shards);
    let loads: Vec<_> = (0..args.shards)
        .map(|shard| {
            let window = args.window / shards + u64::from(u64::from(shard) < args.window % shards);
            let load = match rate {
                None => Load::closed(args.record, window.max(1), AppendOptions::default()),
                Some(rate) => Load::open(args.record, rate / shards as f64, window.max(1), AppendOptions::default()),
            };
            let running = load.clone();
            cluster.primary.spawn_on(ShardId(shard), move |local| running.run(local));
            load
        })
        .collect();
    // What the first moments cost (page faults, cold caches) is nobody's steady state.
    std::thread::sleep(Duration::from_millis(500));
    for load in &loads {
        let _ = load.take_report();
    }
    let commits = || loads.iter().map(|l| l.commits()).sum::<u64>();
    let batches =
        |cluster: &Cluster| cluster.primary.status().iter().map(|s| s.telemetry.counters.batches).sum::<u64>();
    let (used_before, batches_before) = (cluster.used()?, batches(cluster));
    let (commits_before, began) = (commits(), Instant::now());
    std::thread::sleep(Duration::from_secs(args.seconds));
    let (used_after, commits_after, took) = (cluster.used()?, commits(), began.elapsed());
    let batches = batches(cluster) - batches_before;
    loads.iter().for_each(|l| l.stop());
    let (mut latency, mut failed) = (histogram(), 0);
    for load in &loads {
        load.wait();
        let report = load.take_report();
        if let Some(why) = report.error {
            return Err(format!("the load ended by itself: {why}"));
        }
        failed += report.failed;
        latency.add(&report.latency_ns).map_err(|e| e.to_string())?;
    }
    let (commits, seconds) = (commits_after - commits_before, took.as_secs_f64());
    Ok(Loaded { commits, seconds, failed, latency, used_before, used_after, batches })
}
