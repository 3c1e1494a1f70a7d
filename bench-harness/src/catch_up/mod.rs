//! `towline-bench catch-up`: how fast a replica that was away catches up, beside what the disk and
//! loopback can do in the same run, and what it does to the commits of others, also under caps.

mod caps;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use towline::measure::{Content, Load, copy_limit, disk_limit, read_limit, stream};
use towline::units::parse_size;
use towline::{AppendOptions, CommitPolicy, Primary, PrimaryConfig, Retain, ShardId};
use towline_bench::latency::us;

use crate::cluster::{Scratch, caught_up, connected, fill, of_one, until};
use crate::remote::{NodeSettings, RemoteReplica};

const ONE: ShardId = ShardId(0);

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How much log the replica misses
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    bytes: u64,
    /// Bytes of each record of the log that it misses
    #[arg(long, default_value_t = 16 << 10)]
    record: usize,
    /// Appends of 256 bytes in each second while it catches up
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Most bytes in each second that it is sent [default: no cap]
    #[arg(long, value_parser = parse_size)]
    catch_up_max: Option<u64>,
    /// Also under each of these caps in turn, beside the lowest one: SIZE or none, with commas
    #[arg(long, value_delimiter = ',', value_name = "CAPS")]
    caps: Vec<caps::Cap>,
    /// Also the time to open a log of so many bytes
    #[arg(long, value_parser = parse_size)]
    open_bytes: Option<u64>,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    bytes: u64,
    /// Limits of this machine, in MB/s.
    read_mb_s: f64,
    loopback_mb_s: f64,
    write_mb_s: f64,
    /// Catch-up while nobody else does anything.
    alone_mb_s: f64,
    /// Reading and writing on this one disk at the same time, each byte both ways.
    copy_mb_s: f64,
    /// Against the lower of that and loopback.
    alone_ratio: f64,
    /// Catch-up while others are live.
    beside_mb_s: f64,
    before_p50_us: f64,
    before_p99_us: f64,
    during_p50_us: f64,
    during_p99_us: f64,
    during_commits: u64,
    p50_ratio: f64,
    p99_ratio: f64,
    caps: Vec<caps::Capped>,
    open_bytes: Option<u64>,
    open_ms: Option<f64>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let second = std::thread::available_parallelism().map_or(1, usize::from).min(2) - 1;
    let say = |text: &str| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    // What is written twice, or three times.
    let log = (2 + u64::from(!args.caps.is_empty())) * args.bytes + (256 << 20);
    let mut config = PrimaryConfig::new(scratch.0.join("primary"));
    config.listen = Some(([127, 0, 0, 1], 0).into());
    config.replicas = vec!["r1".into(), "r2".into()];
    config.commit = "ack_n=1".parse::<CommitPolicy>().map_err(|e| e.to_string())?;
    config.catch_up_max = args.catch_up_max;
    config.node.cpus = vec![0];
    config.node.retain = Retain::All;
    config.node.prefill_bytes = log;
    say("writing segments ...");
    let primary = Primary::open(config).map_err(|e| e.to_string())?;
    let addr = primary.listening().ok_or("the primary does not listen")?;
    let settings = |prefill| NodeSettings {
        cpus: vec![second],
        retain: 1 << 40,
        prefill,
        depth: 4,
        batch: 512 << 10,
        spin: Duration::ZERO,
    };
    let start = |name: &str, prefill| RemoteReplica::start(scratch.0.join(name), name, addr, &settings(prefill));
    let mut r1 = start("r1", log)?;
    let mut r2 = start("r2", log)?;
    let wanted = log / (64 << 20);
    until("the segments are written", || {
        Ok(r1.used()?.segments >= wanted
            && r2.used()?.segments >= wanted
            && of_one(&primary).telemetry.counters.segments_zeroed >= wanted)
    })?;
    drop(r2);
    say("writing the log that the replica misses ...");
    fill(&primary, args.record, args.bytes)?;
    rate(&primary, 0)?;
    let dir = scratch.0.join("primary/shard-0000/wal");
    let read_mb_s = read_limit(segments(&dir, args.bytes)?, Some(0), (1 << 20, 4), Duration::from_secs(1))
        .map_err(|e| format!("reading the log: {e}"))?
        / 1e6;
    let loopback_mb_s = stream([Some(0), Some(second)], 256 << 10, Duration::from_secs(1))
        .map_err(|e| format!("measuring loopback: {e}"))?
        / 1e6;
    let limit = disk_limit(&scratch.0, &[Some(second)], 512 << 10, 4, Content::Fresh, Duration::from_secs(1));
    let write_mb_s = limit.map_err(|e| format!("measuring the disk: {e}"))?.bytes_per_s / 1e6;
    // Both nodes have the same disk here: it reads what the one sends, and writes what the other gets.
    let copy_mb_s =
        copy_limit(&segments(&dir, args.bytes)?, &scratch.0, [Some(0), Some(second)], Duration::from_secs(1))
            .map_err(|e| format!("measuring the disk both ways: {e}"))?
            / 1e6;
    say("catching up, alone ...");
    let r2 = start("r2", 0)?;
    let alone_mb_s = rate(&primary, 1)?;
    drop(r2);
    fill(&primary, args.record, args.bytes)?;
    rate(&primary, 0)?;
    say("committing ...");
    let load = || {
        let load = Load::open(256, args.rate, 1024, AppendOptions::default());
        let running = load.clone();
        primary.spawn_on(ONE, move |local| running.run(local));
        load
    };
    let others = load();
    std::thread::sleep(Duration::from_millis(500));
    let _ = others.take_report();
    std::thread::sleep(Duration::from_secs(3));
    let before = others.take_report().latency_ns;
    say("catching up beside the commits ...");
    let r2 = start("r2", 0)?;
    connected(&primary, 1)?;
    let _ = others.take_report();
    let beside_mb_s = rate(&primary, 1)?;
    std::thread::sleep(Duration::from_millis(25));
    let during = others.take_report().latency_ns;
    others.stop();
    others.wait();
    drop(r2);
    let mut caps = Vec::new();
    if !args.caps.is_empty() {
        say("writing a log for the caps ...");
        fill(&primary, args.record, args.bytes)?;
        rate(&primary, 0)?;
        say("catching up under one cap after the other ...");
        let others = load();
        let r2 = start("r2", 0)?;
        connected(&primary, 1)?;
        caps = caps::take_turns(&primary, 1, &others, &args.caps)?;
        others.stop();
        others.wait();
        drop(r2);
    }
    drop(r1);
    primary.stop();
    let open_ms = args.open_bytes.map(|bytes| open(&scratch.0, args.record, bytes)).transpose()?;
    let ratio = |q| us(&during, q) / us(&before, q);
    let report = Report {
        bytes: args.bytes,
        read_mb_s,
        loopback_mb_s,
        write_mb_s,
        alone_mb_s,
        copy_mb_s,
        alone_ratio: alone_mb_s / copy_mb_s.min(loopback_mb_s),
        beside_mb_s,
        before_p50_us: us(&before, 0.5),
        before_p99_us: us(&before, 0.99),
        during_p50_us: us(&during, 0.5),
        during_p99_us: us(&during, 0.99),
        during_commits: during.len(),
        p50_ratio: ratio(0.5),
        p99_ratio: ratio(0.99),
        caps,
        open_bytes: args.open_bytes,
        open_ms,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(r: &Report) {
    println!("log that the replica misses            {:>8.0} MB", r.bytes as f64 / 1e6);
    println!("limit: direct reads of the log         {:>8.0} MB/s", r.read_mb_s);
    println!("limit: one stream over loopback        {:>8.0} MB/s", r.loopback_mb_s);
    println!("limit: durable overwrites, one file    {:>8.0} MB/s", r.write_mb_s);
    println!("limit: that log read, another written  {:>8.0} MB/s", r.copy_mb_s);
    println!("catch-up alone                         {:>8.0} MB/s", r.alone_mb_s);
    println!("  against the lower of that, loopback  {:>8.2}", r.alone_ratio);
    println!("catch-up while others commit           {:>8.0} MB/s", r.beside_mb_s);
    println!("commit before   p50 {:>8.0} us   p99 {:>8.0} us", r.before_p50_us, r.before_p99_us);
    println!(
        "commit during   p50 {:>8.0} us   p99 {:>8.0} us   ({} commits)",
        r.during_p50_us, r.during_p99_us, r.during_commits
    );
    println!("  during / before   {:>8.2}       {:>8.2}", r.p50_ratio, r.p99_ratio);
    if !r.caps.is_empty() {
        caps::print(&r.caps);
    }
    if let (Some(bytes), Some(ms)) = (r.open_bytes, r.open_ms) {
        println!("time to open a log of {:.0} MB            {ms:>8.0} ms", bytes as f64 / 1e6);
    }
}

/// Waits until a replica is connected and has what the log holds by then; returns MB/s.
fn rate(primary: &Primary, slot: usize) -> Result<f64, String> {
    connected(primary, slot)?;
    let (bytes, took) = caught_up(primary, slot)?;
    Ok(bytes as f64 / took.as_secs_f64() / 1e6)
}

/// The segments that hold the first bytes of the log.
fn segments(dir: &Path, bytes: u64) -> Result<Vec<PathBuf>, String> {
    let read = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut all: Vec<PathBuf> = read.flatten().map(|e| e.path()).filter(|p| p.extension().is_some()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "wal"));
    all.sort();
    all.truncate((bytes / (64 << 20)).max(1) as usize);
    Ok(all)
}

/// Makes a log of so many bytes, and opens it again; returns milliseconds.
fn open(scratch: &Path, record: usize, bytes: u64) -> Result<f64, String> {
    let mut config = PrimaryConfig::new(scratch.join("open"));
    config.node.cpus = vec![0];
    let primary = Primary::open(config.clone()).map_err(|e| e.to_string())?;
    fill(&primary, record, bytes)?;
    primary.stop();
    let began = Instant::now();
    let primary = Primary::open(config).map_err(|e| e.to_string())?;
    let took = began.elapsed();
    primary.stop();
    Ok(took.as_secs_f64() * 1000.0)
}
