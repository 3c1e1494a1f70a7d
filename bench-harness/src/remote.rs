//! A replica in a process of its own. The workload starts it with its own executable and asks over
//! stdin for what it has used; it ends when stdin does.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use towline::{NodeConfig, Replica, ReplicaConfig, Retain};

use towline_bench::memory;

use crate::allocations;

/// A replica's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long)]
    primary: SocketAddr,
    #[arg(long)]
    cpus: String,
    #[arg(long)]
    retain: u64,
    #[arg(long)]
    prefill: u64,
    #[arg(long)]
    depth: usize,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    spin_ns: u64,
}

/// What a process has used, and how far its replica is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u64,
    pub(crate) allocations: u64,
    pub(crate) segments: u64,
    pub(crate) device_writes: u64,
    pub(crate) syscalls: u64,
    pub(crate) peak_rss: u64,
    pub(crate) rss: u64,
    /// Calls of the kernel for the rings of its cores, and those of them that slept.
    pub(crate) enters: u64,
    pub(crate) sleeps: u64,
}

impl Used {
    /// This process's, with the counters of nodes in it.
    pub(crate) fn here(status: &[towline::ShardStatus]) -> Result<Self, String> {
        let (enters, sleeps) = towline::measure::enters_and_sleeps();
        let mut used = Self {
            enters,
            sleeps,
            rss: memory::rss_bytes()?,
            cpu_ns: towline::sys::process_cpu_ns(),
            allocations: allocations::count(),
            peak_rss: towline::sys::peak_rss_bytes(),
            segments: u64::MAX,
            ..Self::default()
        };
        for shard in status {
            let c = &shard.telemetry.counters;
            used.segments = used.segments.min(c.segments_zeroed);
            used.device_writes += c.device_writes;
            used.syscalls += c.send_calls + c.receive_calls;
        }
        Ok(used)
    }

    fn to_line(self) -> String {
        let Self { cpu_ns, allocations, segments, device_writes, syscalls, peak_rss, rss, enters, sleeps } = self;
        format!("{cpu_ns} {allocations} {segments} {device_writes} {syscalls} {peak_rss} {rss} {enters} {sleeps}")
    }

    fn from_line(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let [cpu_ns, allocations, segments, device_writes, syscalls, peak_rss, rss, enters, sleeps] = numbers[..]
        else {
            return None;
        };
        Some(Self { cpu_ns, allocations, segments, device_writes, syscalls, peak_rss, rss, enters, sleeps })
    }
}

/// What bench nodes have in common.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    pub(crate) cpus: Vec<usize>,
    pub(crate) retain: u64,
    pub(crate) prefill: u64,
    pub(crate) depth: usize,
    pub(crate) batch: usize,
    pub(crate) spin: Duration,
}

impl NodeSettings {
    pub(crate) fn apply(&self, node: &mut NodeConfig) {
        node.cpus.clone_from(&self.cpus);
        node.retain = Retain::Bytes(self.retain);
        node.prefill_bytes = self.prefill;
        node.write_depth = self.depth;
        node.batch_bytes = self.batch;
        node.spin = self.spin;
    }
}

/// Runs a replica until stdin ends.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let mut config = ReplicaConfig::new(&args.data, &args.name, args.primary);
    let cpus = args.cpus.split(',').map(|c| c.parse().map_err(|_| format!("{c:?} is no core")));
    let settings = NodeSettings {
        cpus: cpus.collect::<Result<_, _>>()?,
        retain: args.retain,
        prefill: args.prefill,
        depth: args.depth,
        batch: args.batch,
        spin: Duration::from_nanos(args.spin_ns),
    };
    settings.apply(&mut config.node);
    let replica = Replica::open(config).map_err(|e| e.to_string())?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        line.map_err(|e| e.to_string())?;
        writeln!(out, "{}", Used::here(&replica.status())?.to_line())
            .and_then(|()| out.flush())
            .map_err(|e| e.to_string())?;
    }
    replica.stop();
    Ok(())
}

/// A replica's process, from the workload's side.
#[derive(Debug)]
pub(crate) struct RemoteReplica {
    child: Child,
    ask: Option<ChildStdin>,
    answer: BufReader<ChildStdout>,
}

impl RemoteReplica {
    pub(crate) fn start(
        data: PathBuf,
        name: &str,
        primary: SocketAddr,
        settings: &NodeSettings,
    ) -> Result<Self, String> {
        Self::start_by(Command::new(own_path()?), data, name, primary, settings)
    }

    /// The same by a command that runs this program, as `ip netns exec NAME` and [`own_path`] does.
    pub(crate) fn start_by(
        mut by: Command,
        data: PathBuf,
        name: &str,
        primary: SocketAddr,
        settings: &NodeSettings,
    ) -> Result<Self, String> {
        let cpus: Vec<_> = settings.cpus.iter().map(ToString::to_string).collect();
        let mut child = by
            .arg("replica")
            .arg("--data")
            .arg(data)
            .args(["--name", name, "--primary", &primary.to_string(), "--cpus", &cpus.join(",")])
            .args(["--retain", &settings.retain.to_string(), "--prefill", &settings.prefill.to_string()])
            .args(["--depth", &settings.depth.to_string(), "--batch", &settings.batch.to_string()])
            .args(["--spin-ns", &settings.spin.as_nanos().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("starting a replica's process: {e}"))?;
        let ask = child.stdin.take();
        let answer = BufReader::new(child.stdout.take().ok_or("the process has no stdout")?);
        Ok(Self { child, ask, answer })
    }

    pub(crate) fn used(&mut self) -> Result<Used, String> {
        let gone = |e: std::io::Error| format!("a replica's process is gone: {e}");
        let ask = self.ask.as_mut().ok_or("a replica's process was stopped")?;
        ask.write_all(b"used\n").map_err(gone)?;
        let mut line = String::new();
        self.answer.read_line(&mut line).map_err(gone)?;
        Used::from_line(&line).ok_or_else(|| "a replica's process did not start".into())
    }
}

impl RemoteReplica {
    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        self.child.kill().map_err(|e| format!("killing a replica's process: {e}"))
    }
}

/// This program.
pub(crate) fn own_path() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|e| e.to_string())
}

impl Drop for RemoteReplica {
    fn drop(&mut self) {
        self.ask = None;
        let _ = self.child.wait();
    }
}
