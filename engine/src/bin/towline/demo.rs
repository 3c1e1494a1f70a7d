//! `towline demo`: what the engine does, shown on this machine in about 15 seconds: a primary and
//! two replicas, synchronous commits, a replica that goes away and comes back, and logs that are
//! the same bytes in the end.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use thiserror::Error;
use towline::measure::{Compared, Content, Load, compare_logs, disk_limit, histogram, ping_pong};
use towline::telemetry::{Percentiles, Telemetry};
use towline::{
    AckLevel, AppendOptions, CommitPolicy, NodeConfig, OpenError, Primary, PrimaryConfig, Replica, ReplicaConfig,
    Retain, ShardId, SlotState,
};

/// Run a primary and two replicas on this machine and show what they do.
///
/// Takes about 15 seconds and up to 4 GB of disk for that time; everything is removed at the end.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to make the temporary folders: a file system with direct I/O [default: the system's
    /// temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Seconds of load
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,
    /// Bytes of each record
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    record: u64,
    /// Commits outstanding at a time
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    window: u64,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Why the demonstration ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("measuring the disk in {0}: {1}: give another folder with --dir")]
    Disk(PathBuf, std::io::Error),
    #[error("measuring loopback: {0}")]
    Network(std::io::Error),
    #[error("the load ended: {0}")]
    Load(String),
    #[error("{0} did not happen within {1:?}")]
    Late(&'static str, Duration),
}

/// The folder of the demonstration, removed at its end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The one shard.
const SHARD: ShardId = ShardId(0);
/// Written with zeros before the load, on each node.
const PREFILL: u64 = 512 << 20;
/// How long anything but the load may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the demonstration found.
pub(super) struct Found {
    pub(super) record: u64,
    pub(super) window: u64,
    /// Committed in all.
    pub(super) commits: u64,
    pub(super) failed: u64,
    /// While both replicas were there and the load was full.
    pub(super) commits_per_s: f64,
    pub(super) latency_ns: Histogram<u64>,
    pub(super) limit_bytes_per_s: f64,
    pub(super) write_ns: Histogram<u64>,
    pub(super) ping_ns: Histogram<u64>,
    pub(super) catch_up: Duration,
    pub(super) catch_up_bytes: u64,
    pub(super) compared: Compared,
    pub(super) same_chain: bool,
    pub(super) telemetry: Telemetry,
    pub(super) cpu_ns: u64,
}

/// Runs it.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch(base.join(format!("towline-demo-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).map_err(|e| Failure::Disk(base.clone(), e))?;
    let found = Demo::start(&args, &scratch.0)?.run()?;
    if args.json {
        report::json(&found);
    } else {
        report::text(&found);
    }
    let whole = found.compared.differ_at.is_none() && found.same_chain && found.failed == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(super::exit::FAILED) })
}

/// The nodes and what was measured before them.
struct Demo<'a> {
    args: &'a Args,
    dir: &'a Path,
    primary: Primary,
    r1: Replica,
    r2: Option<Replica>,
    limit_bytes_per_s: f64,
    write_ns: Histogram<u64>,
    ping_ns: Histogram<u64>,
}

impl<'a> Demo<'a> {
    fn say(&self, text: &str) {
        if !self.args.json {
            println!("{text}");
        }
    }

    /// Measures the limits, then starts three nodes.
    fn start(args: &'a Args, dir: &'a Path) -> Result<Self, Failure> {
        let say = |text: &str| {
            if !args.json {
                println!("{text}");
            }
        };
        let cpus = cpus();
        say("measuring this disk: three files, durable overwrites ...");
        let disk = |block, depth, ms| {
            disk_limit(dir, &cpus, block, depth, Content::Fresh, Duration::from_millis(ms))
                .map_err(|e| Failure::Disk(dir.into(), e))
        };
        let limit = disk(256 << 10, 8, 1000)?;
        let write = disk(4096, 1, 400)?;
        let ping_ns = ping_pong([cpus[0], cpus[1]], Duration::from_millis(200)).map_err(Failure::Network)?;
        say(&format!(
            "  {:.0} MB/s in 256 KiB writes; a lone 4 KiB write takes {:.0} us (p50); a round trip {:.0} us",
            limit.bytes_per_s / 1e6,
            write.latency_ns.value_at_quantile(0.5) as f64 / 1e3,
            ping_ns.value_at_quantile(0.5) as f64 / 1e3
        ));
        say("starting a primary and the replicas r1 and r2 ...");
        let mut config = PrimaryConfig::new(dir.join("primary"));
        config.listen = Some(([127, 0, 0, 1], 0).into());
        config.replicas = vec!["r1".into(), "r2".into()];
        config.commit = CommitPolicy::AckN { n: 2, level: AckLevel::Flushed };
        node(&mut config.node, cpus[0]);
        let primary = Primary::open(config)?;
        let listening = primary.listening().expect("it listens");
        let replica = |name: &str| Replica::open(replica_config(dir, name, listening, cpus[1]));
        let demo = Self {
            args,
            dir,
            r1: replica("r1")?,
            r2: Some(replica("r2")?),
            primary,
            limit_bytes_per_s: limit.bytes_per_s,
            write_ns: write.latency_ns,
            ping_ns,
        };
        demo.until("the start of both replicas", || {
            let ready = |s: Vec<towline::ShardStatus>| s[0].telemetry.counters.segments_zeroed * (64 << 20) >= PREFILL;
            let slots = &demo.primary.status()[0].slots;
            slots.iter().all(|s| s.state == SlotState::Live)
                && ready(demo.primary.status())
                && ready(demo.r1.status())
                && demo.r2.as_ref().is_some_and(|r| ready(r.status()))
        })?;
        Ok(demo)
    }

    fn until(&self, what: &'static str, mut there: impl FnMut() -> bool) -> Result<(), Failure> {
        let began = Instant::now();
        while !there() {
            if began.elapsed() > PATIENCE {
                return Err(Failure::Late(what, PATIENCE));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn run(mut self) -> Result<Found, Failure> {
        let Args { record, window, seconds, .. } = *self.args;
        self.say(&format!(
            "a closed loop: {record} B records, {window} outstanding, each commit waits for ack_n=2 \
             (durable here and on both replicas)\n"
        ));
        let load = Load::closed(record as usize, window, AppendOptions::default());
        let running = load.clone();
        let cpu_before = towline::sys::process_cpu_ns();
        self.primary.spawn_on(SHARD, move |shard| running.run(shard));
        let mut line = Line::new(&load);
        let half = seconds / 2;
        let (mut steady, mut steady_s) = (histogram(), 0.0);
        for _ in 0..half {
            steady_s += line.second(&self, &mut steady)?;
        }
        let steady_commits = load.commits();

        self.say(
            "\nr2 is stopped. Towline never lowers a policy by itself, so this load now asks for ack_n=1, and less.",
        );
        let away = CommitPolicy::AckN { n: 1, level: AckLevel::Flushed };
        load.set_window((window / 64).max(1));
        load.set_options(AppendOptions { policy: Some(away), deadline: None });
        if let Some(r2) = self.r2.take() {
            r2.stop();
        }
        let mut other = histogram();
        line.second(&self, &mut other)?;
        let behind = self.primary.status()[0].slots[1].lag_bytes;
        self.say(&format!(
            "\nr2 is started again, {:.0} MB behind, and catches up under load ...",
            behind as f64 / 1e6
        ));
        let began = Instant::now();
        let listening = self.primary.listening().expect("it listens");
        let cpu = cpus()[1];
        self.r2 = Some(Replica::open(replica_config(self.dir, "r2", listening, cpu))?);
        self.until("the catch-up of r2", || {
            let slot = &self.primary.status()[0].slots[1];
            slot.state == SlotState::Live && slot.lag_bytes < 4 << 20
        })?;
        let catch_up = began.elapsed();
        self.say(&format!(
            "r2 has caught up after {:.2} s. Back to ack_n=2 and the full load.\n",
            catch_up.as_secs_f64()
        ));
        load.set_options(AppendOptions::default());
        load.set_window(window);
        for _ in half + 1..seconds {
            line.second(&self, &mut other)?;
        }
        load.stop();
        load.wait();
        let report = load.take_report();
        let cpu_ns = towline::sys::process_cpu_ns() - cpu_before;
        if let Some(why) = report.error {
            return Err(Failure::Load(why));
        }
        self.say("\nthe load has ended; comparing the three logs byte for byte ...");
        let end = self.primary.status()[0].appended_lsn;
        let r2 = self.r2.take().expect("it was started again");
        self.until("that both replicas have everything", || {
            [&self.r1, &r2].iter().all(|r| r.status()[0].durable_lsn == end)
        })?;
        let status = &self.primary.status()[0];
        let same_chain = [&self.r1, &r2].iter().all(|r| r.status()[0].chain == status.chain);
        let mut telemetry = status.telemetry.clone();
        telemetry.merge(&self.r1.status()[0].telemetry);
        telemetry.merge(&r2.status()[0].telemetry);
        let folders = ["primary", "r1", "r2"].map(|name| self.dir.join(name));
        self.r1.stop();
        r2.stop();
        self.primary.stop();
        let compared = compare_logs(&folders.each_ref().map(PathBuf::as_path), SHARD, end)?;
        Ok(Found {
            record,
            window,
            commits: report.commits,
            failed: report.failed,
            commits_per_s: steady_commits as f64 / steady_s,
            latency_ns: steady,
            limit_bytes_per_s: self.limit_bytes_per_s,
            write_ns: self.write_ns,
            ping_ns: self.ping_ns,
            catch_up,
            catch_up_bytes: behind,
            compared,
            same_chain,
            telemetry,
            cpu_ns,
        })
    }
}

/// The live line of each second.
struct Line {
    load: Arc<Load>,
    commits: u64,
    at: Instant,
}

impl Line {
    fn new(load: &Arc<Load>) -> Self {
        Self { load: load.clone(), commits: 0, at: Instant::now() }
    }

    /// Waits for the second to pass, adds its latencies to `into` and prints it; returns how long
    /// it was.
    fn second(&mut self, demo: &Demo<'_>, into: &mut Histogram<u64>) -> Result<f64, Failure> {
        std::thread::sleep(Duration::from_secs(1).saturating_sub(self.at.elapsed()));
        let report = self.load.take_report();
        if let Some(why) = report.error {
            return Err(Failure::Load(why));
        }
        let seconds = self.at.elapsed().as_secs_f64();
        let rate = (report.commits - self.commits) as f64 / seconds;
        (self.commits, self.at) = (report.commits, Instant::now());
        into.add(&report.latency_ns).expect("both have the same bounds");
        let p = Percentiles::of(&report.latency_ns);
        let slots = &demo.primary.status()[0].slots;
        let lag: Vec<_> = slots
            .iter()
            .map(|s| match s.state {
                SlotState::Down => format!("{} down, {:.0} MB behind", s.name, s.lag_bytes as f64 / 1e6),
                _ => format!("{} {:.1} MB behind", s.name, s.lag_bytes as f64 / 1e6),
            })
            .collect();
        demo.say(&format!(
            "{:>10.0} commits/s {:>6.0} MB/s   p50 {:>6.0} us   p99 {:>6.0} us   {}",
            rate,
            rate * demo.args.record as f64 / 1e6,
            p.p50_us,
            p.p99_us,
            lag.join(", ")
        ));
        Ok(seconds)
    }
}

/// The primary's core and the replicas'.
fn cpus() -> [Option<usize>; 3] {
    let last = std::thread::available_parallelism().map_or(1, usize::from).min(2) - 1;
    [Some(0), Some(last), Some(last)]
}

fn node(config: &mut NodeConfig, cpu: Option<usize>) {
    config.cpus = cpu.into_iter().collect();
    config.retain = Retain::Bytes(256 << 20);
    config.prefill_bytes = PREFILL;
}

fn replica_config(dir: &Path, name: &str, primary: std::net::SocketAddr, cpu: Option<usize>) -> ReplicaConfig {
    let mut config = ReplicaConfig::new(dir.join(name), name, primary);
    node(&mut config.node, cpu);
    config
}
