//! `towline-bench zero-copy`: sends from where the bytes are, forced, and each buffer overwritten when it is
//! let go of. Whatever is sent from a buffer that was let go of too early does not pass a replica's
//! checks, and breaks its link; at the end the logs are compared byte for byte.

use std::io::{IsTerminal, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use towline::measure::{Load, compare_logs, poison_released};
use towline::{AppendOptions, CommitPolicy, Primary, PrimaryConfig, ShardId, SlotState, ZeroCopy};

use crate::cluster::{Scratch, of_one, until};
use crate::remote::{NodeSettings, RemoteReplica, own_path};

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  towline-bench zero-copy                     4 GB over loopback, where the kernel copies all the same
  towline-bench zero-copy --gigabytes 100     what docs/BENCHMARKS.md reports
  sudo towline-bench zero-copy --veth         the replicas behind a pair of virtual devices")]
pub(crate) struct Args {
    /// How much is sent to the two replicas together
    #[arg(long, default_value_t = 4.0, value_parser = gigabytes)]
    gigabytes: f64,
    /// Bytes of each record
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    record: u32,
    /// The replicas are in a network namespace of their own, which takes root and the command `ip`
    #[arg(long)]
    veth: bool,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

fn gigabytes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(n) if (0.1..=1e6).contains(&n) => Ok(n),
        _ => Err("between 0.1 and 1000000".into()),
    }
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Report {
    network: &'static str,
    sent_gb: f64,
    seconds: f64,
    committed_mb_s: f64,
    zero_copy_sends: u64,
    copied_sends: u64,
    copied_ratio: f64,
    links: u64,
    compared_mb: f64,
}

/// Links of the two replicas to the one shard.
const LINKS: u64 = 2;
/// Records outstanding.
const WINDOW: u64 = 4096;
const LOG_KEPT: u64 = 256 << 20;

/// This end's address where the replicas are in a namespace; RFC 2544 sets the range aside for benchmarks.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Theirs.
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// A network namespace, with an address at this end and one in it.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let id = std::process::id() % 100_000;
        let (name, near, far) = (format!("towline-{id}"), format!("tl{id}a"), format!("tl{id}b"));
        // What was made until something failed goes with it.
        let made = Self { name: name.clone() };
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name])?;
        ip(&["addr", "add", &format!("{NEAR}/30"), "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("{FAR}/30"), "dev", &far])?;
        ip(&["-n", &name, "link", "set", &far, "up"])?;
        Ok(made)
    }

    /// Runs this program in it.
    fn inside(&self) -> Result<Command, String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(own_path()?);
        Ok(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The devices go with it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let said = Command::new("ip").args(args).output().map_err(|e| format!("running ip: {e}"))?;
    let why = String::from_utf8_lossy(&said.stderr);
    said.status.success().then_some(()).ok_or_else(|| format!("ip {}: {}", args.join(" "), why.trim()))
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let namespace = args.veth.then(Namespace::new).transpose()?;
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let settings = |cpu| NodeSettings {
        cpus: vec![cpu],
        retain: LOG_KEPT,
        prefill: 512 << 20,
        depth: 4,
        batch: 512 << 10,
        spin: Duration::ZERO,
    };
    let mut config = PrimaryConfig::new(scratch.0.join("primary"));
    let here = if args.veth { NEAR } else { Ipv4Addr::LOCALHOST };
    config.listen = Some((here, 0).into());
    config.insecure_no_auth = true;
    config.replicas = vec!["r1".into(), "r2".into()];
    config.commit = "ack_n=2".parse::<CommitPolicy>().map_err(|e| e.to_string())?;
    config.zero_copy = ZeroCopy::Always;
    settings(0).apply(&mut config.node);
    poison_released();
    let primary = Primary::open(config).map_err(|e| e.to_string())?;
    let addr = primary.listening().ok_or("the primary does not listen")?;
    let start = |name: &str| {
        let (data, settings) = (scratch.0.join(name), settings(last));
        match &namespace {
            None => RemoteReplica::start(data, name, addr, &settings),
            Some(n) => RemoteReplica::start_by(n.inside()?, data, name, addr, &settings),
        }
    };
    let replicas = [start("r1")?, start("r2")?];
    until("the replicas follow", || Ok(of_one(&primary).slots.iter().all(|s| s.state == SlotState::Live)))?;

    let load = Load::closed(args.record as usize, WINDOW, AppendOptions::default());
    let (running, began) = (load.clone(), Instant::now());
    primary.spawn_on(ShardId(0), move |local| running.run(local));
    let wanted = (args.gigabytes * 1e9) as u64;
    let shows = !args.json && std::io::stderr().is_terminal();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let counters = of_one(&primary).telemetry.counters;
        if shows {
            eprint!("\r{:6.1} of {:.1} GB sent ", counters.sent_bytes as f64 / 1e9, args.gigabytes);
            let _ = std::io::stderr().flush();
        }
        links_hold(counters.connects)?;
        if counters.sent_bytes >= wanted {
            break;
        }
    }
    load.stop();
    load.wait();
    let (seconds, told) = (began.elapsed().as_secs_f64(), load.take_report());
    if let Some(why) = told.error {
        return Err(format!("the load ended by itself: {why}"));
    }
    if shows {
        eprintln!();
    }
    let end = of_one(&primary).appended_lsn;
    until("the replicas have everything", || Ok(of_one(&primary).slots.iter().all(|s| s.flushed_lsn == end)))?;
    let counters = of_one(&primary).telemetry.counters;
    links_hold(counters.connects)?;
    drop(replicas);
    primary.stop();
    let folders = ["primary", "r1", "r2"].map(|name| scratch.0.join(name));
    let compared =
        compare_logs(&folders.each_ref().map(PathBuf::as_path), ShardId(0), end).map_err(|e| e.to_string())?;
    if let Some(at) = compared.differ_at {
        return Err(format!("the logs differ at LSN {at}"));
    }
    let sends = counters.zero_copy_sends + counters.copied_sends;
    let report = Report {
        network: if args.veth { "veth" } else { "loopback" },
        sent_gb: counters.sent_bytes as f64 / 1e9,
        seconds,
        committed_mb_s: counters.committed as f64 * f64::from(args.record) / 1e6 / seconds,
        zero_copy_sends: counters.zero_copy_sends,
        copied_sends: counters.copied_sends,
        copied_ratio: counters.copied_sends as f64 / sends.max(1) as f64,
        links: counters.connects,
        compared_mb: compared.bytes as f64 / 1e6,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
    } else {
        println!("network                 {}", report.network);
        println!(
            "sent to two replicas    {:.1} GB in {:.1} s, every buffer overwritten when let go of",
            report.sent_gb, seconds
        );
        println!("committed               {:.0} MB/s", report.committed_mb_s);
        println!("sends the kernel copied {} of {sends}: {:.3}", report.copied_sends, report.copied_ratio);
        println!("links                   {}, none was broken: every batch passed its replica's checks", report.links);
        println!("logs compared           the last {:.0} MB on all three nodes: the same", report.compared_mb);
    }
    Ok(())
}

/// A batch that does not pass a replica's checks breaks its link.
fn links_hold(connects: u64) -> Result<(), String> {
    match connects {
        0..=LINKS => Ok(()),
        _ => Err("a link was broken: a replica refused what came, or was slow for too long".into()),
    }
}
