//! Towline itself: embedded (the load runs on the shard's core), and through its network client.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towline::client::{AppendOptions as ClientOptions, Appender, ConnectOptions};
use towline::measure::{Load, histogram};
use towline::{AckLevel, AppendOptions, CommitPolicy, ShardId};

use super::super::drive::{Clock, drive};
use super::super::interrupt;
use super::super::model::{BulkSample, BulkWork, Sample, Scope};
use super::{BulkJob, BulkWay, Cpus, Facts, Job, Peer, Shape, network_shapes, shapes, towline_bulk, towline_wire};
use crate::cluster::{Cluster, Plan};
use crate::remote::{NodeSettings, own_path};

const FLUSHED: &str = "primary and both replicas flushed";
const CONFIGURATION: &str = "one shard, ack_n=2 flushed, defaults, 512 MiB of segments written with zeros beforehand";

/// What runs, as the bare workload runs it.
pub(super) fn plan(scope: Scope, cpus: &Cpus) -> Plan {
    let settings = |cpus: &[usize]| NodeSettings {
        cpus: cpus.first().map_or_else(Vec::new, |first| vec![*first]),
        retain: 256 << 20,
        prefill: 512 << 20,
        depth: 4,
        batch: 512 << 10,
        spin: Duration::ZERO,
    };
    let replicas = scope.copies() - 1;
    let flushed = CommitPolicy::AckN { n: replicas as u8, level: AckLevel::Flushed };
    // A shard has a core of its own: where all nodes may run anywhere, replicas take the last one.
    let others: Vec<usize> = cpus.others.last().copied().into_iter().collect();
    Plan {
        shards: 1,
        replicas,
        policy: if replicas == 0 { CommitPolicy::Local } else { flushed },
        separate: true,
        zero_copy: towline::ZeroCopy::Auto,
        primary: settings(&cpus.first),
        replica: settings(&others),
    }
}

/// The same for bulk work, with so many bytes of segments written beforehand: all of the log is kept.
pub(super) fn bulk_plan(cpus: &Cpus, prefill: u64) -> Plan {
    let mut plan = plan(Scope::Replicated, cpus);
    for node in [&mut plan.primary, &mut plan.replica] {
        (node.prefill, node.retain) = (prefill, 1 << 40);
    }
    plan
}

/// Its version, with the commit if the build was told one or runs beside its checkout.
fn version() -> String {
    let commit = option_env!("TOWLINE_COMMIT").map(str::to_string).or_else(checkout);
    let number = env!("CARGO_PKG_VERSION");
    commit.map_or_else(|| number.into(), |commit| format!("{number} ({commit})"))
}

/// What git calls the source that this was built from, as it is now.
fn checkout() -> Option<String> {
    let git = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"];
    let out = Command::new("git").args(git).stderr(Stdio::null()).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(out.stdout).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
}

/// Appends from the shard's own core.
pub(crate) struct Embedded(Scope);

impl Embedded {
    pub(crate) const fn new(scope: Scope) -> Self {
        Self(scope)
    }
}

impl Peer for Embedded {
    fn facts(&self) -> Facts {
        let replicated = Facts {
            name: "towline",
            title: "Towline, embedded",
            scope: Scope::Replicated,
            durability: FLUSHED,
            configuration: CONFIGURATION,
            shape: "1 x appends outstanding, made on the shard's own core",
        };
        match self.0 {
            Scope::Replicated => replicated,
            Scope::Local => Facts {
                name: "towline-local",
                title: "Towline, embedded, no replicas",
                scope: Scope::Local,
                durability: "flushed (O_DIRECT, O_DSYNC)",
                configuration: "one shard, policy local, defaults, 512 MiB of segments written with zeros beforehand",
                ..replicated
            },
        }
    }

    fn find(&mut self) -> Result<String, String> {
        Ok(version())
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        shapes(&[(1, outstanding)])
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let mut cluster = Cluster::start(job.dir, &plan(self.0, job.cpus))?;
        let load = Load::closed(job.record_bytes, job.shape.pipeline, AppendOptions::default());
        let running = load.clone();
        cluster.primary.spawn_on(ShardId(0), move |local| running.run(local));
        interrupt::sleep(job.warm_up)?;
        let _ = load.take_report();
        let (used, commits, began) = (cluster.used()?, load.commits(), Instant::now());
        interrupt::sleep(job.measure)?;
        let (used_after, commits_after, seconds) = (cluster.used()?, load.commits(), began.elapsed().as_secs_f64());
        load.stop();
        load.wait();
        let report = load.take_report();
        if let Some(why) = report.error {
            return Err(format!("the load ended by itself: {why}"));
        }
        Ok(Sample {
            commits: commits_after - commits,
            failed: report.failed,
            seconds,
            latency_ns: report.latency_ns,
            // The client is the primary's process.
            client_cpu_ns: 0,
            server_cpu_ns: used_after.cpu_ns - used.cpu_ns,
        })
    }

    fn bulk_ways(&self, work: BulkWork) -> Vec<BulkWay> {
        if self.0 == Scope::Replicated { towline_bulk::embedded_ways(work) } else { Vec::new() }
    }

    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        match job.work {
            BulkWork::Stream => towline_bulk::stream(job),
            BulkWork::CatchUp => towline_bulk::catch_up(job),
        }
    }
}

/// Appends through connections.
pub(crate) struct Client;

impl Peer for Client {
    fn facts(&self) -> Facts {
        Facts {
            name: "towline-client",
            title: "Towline, network client",
            scope: Scope::Replicated,
            durability: FLUSHED,
            configuration: "as towline, the primary in a process of its own, towline::client over TCP with a thread for \
                            each connection",
            shape: "connections x appends outstanding on each",
        }
    }

    fn find(&mut self) -> Result<String, String> {
        Ok(version())
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        // One connection is best; beside it the shapes of the peers' clients. Each connection has two threads.
        const MOST_CONNECTIONS: u64 = 64;
        network_shapes(outstanding).into_iter().filter(|s| s.connections <= MOST_CONNECTIONS).collect()
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let mut node = Node::start(job.dir, job.cpus, None)?;
        let addr = node.addr.clone();
        let (commits, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let (measuring, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let record = job.record();
        let connection = || connection(&addr, &record, job.shape.pipeline, [&commits, &failed], &measuring, &stop);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..job.shape.connections).map(|_| scope.spawn(connection)).collect();
            let measured: Result<_, String> = (|| {
                interrupt::sleep(job.warm_up)?;
                let (used, client, before, began) =
                    (node.cpu_ns()?, towline::sys::process_cpu_ns(), commits.load(Ordering::Relaxed), Instant::now());
                measuring.store(true, Ordering::Relaxed);
                interrupt::sleep(job.measure)?;
                measuring.store(false, Ordering::Relaxed);
                let commits = commits.load(Ordering::Relaxed) - before;
                let (seconds, client_cpu_ns) = (began.elapsed().as_secs_f64(), towline::sys::process_cpu_ns() - client);
                Ok((commits, seconds, client_cpu_ns, node.cpu_ns()? - used))
            })();
            stop.store(true, Ordering::Relaxed);
            let mut latency_ns = histogram();
            let mut error = None;
            for thread in threads {
                match thread.join().map_err(|_| "a client thread panicked".to_string()).and_then(|r| r) {
                    Ok(latency) => latency_ns.add(&latency).map_err(|e| e.to_string())?,
                    Err(e) => error = Some(e),
                }
            }
            let (commits, seconds, client_cpu_ns, server_cpu_ns) = measured?;
            match error {
                Some(e) => Err(e),
                None => Ok(Sample {
                    commits,
                    failed: failed.load(Ordering::Relaxed),
                    seconds,
                    latency_ns,
                    client_cpu_ns,
                    server_cpu_ns,
                }),
            }
        })
    }

    fn bulk_ways(&self, work: BulkWork) -> Vec<BulkWay> {
        towline_bulk::network_ways(work)
    }

    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        towline_bulk::stream_by_client(job)
    }
}

/// Appends through connections that one loop drives, as it drives the peers'.
pub(crate) struct Driven;

impl Peer for Driven {
    fn facts(&self) -> Facts {
        Facts {
            name: "towline-net",
            title: "Towline, driven as the peers are",
            scope: Scope::Replicated,
            durability: FLUSHED,
            configuration: "as towline-client, but all connections by one thread, in the loop that drives every network \
                            peer here",
            shape: "connections x appends outstanding on each, sent as they come free",
        }
    }

    fn find(&mut self) -> Result<String, String> {
        Ok(version())
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        network_shapes(outstanding)
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let node = RefCell::new(Node::start(job.dir, job.cpus, None)?);
        let addr = node.borrow().addr.clone();
        let record = job.record();
        let open = |_| Ok((towline_wire::open(&addr)?, towline_wire::Appends::new(&record)));
        let connections = (0..job.shape.connections).map(open).collect::<Result<_, String>>()?;
        // A node that is gone ends the connections too.
        let servers = || node.borrow_mut().cpu_ns().unwrap_or(0);
        let clock = Clock { warm_up: job.warm_up, measure: job.measure, servers: &servers };
        drive(connections, job.shape.pipeline, &clock)
    }

    fn bulk_ways(&self, work: BulkWork) -> Vec<BulkWay> {
        towline_bulk::loop_ways(work)
    }

    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        towline_bulk::stream_by_loop(job)
    }
}

/// One connection's closed loop: as many appends outstanding as `window`, a new one for each that has
/// its outcome. Outcomes are counted into `[commits, others]`.
pub(super) fn connection(
    addr: &str,
    record: &[u8],
    window: u64,
    counters: [&AtomicU64; 2],
    measuring: &AtomicBool,
    stop: &AtomicBool,
) -> Result<hdrhistogram::Histogram<u64>, String> {
    let lost = |e: towline::client::AppendError| e.to_string();
    let options = ClientOptions { window_bytes: 16 << 20, window_requests: 16_384, ..ClientOptions::default() };
    let mut appender =
        Appender::open(addr, 0, options, &ConnectOptions::default()).map_err(|e| format!("opening: {e}"))?;
    let began = Instant::now();
    let now_ns = || began.elapsed().as_nanos() as u64;
    let mut latency = histogram();
    let mut outstanding = 0;
    // When each request's records were submitted: (request, when).
    let mut since: VecDeque<(u64, u64)> = VecDeque::new();
    loop {
        if !stop.load(Ordering::Relaxed) && outstanding < window {
            let now = now_ns();
            while outstanding < window {
                let request = appender.submit(record).map_err(lost)?;
                if since.back().is_none_or(|(last, _)| *last != request) {
                    since.push_back((request, now));
                }
                outstanding += 1;
            }
            appender.flush().map_err(lost)?;
        }
        let mut next = appender.next_outcome().map_err(lost)?;
        if next.is_none() {
            return Ok(latency);
        }
        let now = now_ns();
        while let Some(outcome) = next {
            let records = u64::from(outcome.record_count);
            let ok = outcome.status == towline::client::CommitStatus::Committed;
            counters[usize::from(!ok)].fetch_add(records, Ordering::Relaxed);
            outstanding -= records;
            // Answers come in order, but for refusals and deadlines that passed.
            let place = since.iter().position(|(request, _)| *request == outcome.request);
            let (_, at) = place.and_then(|n| since.remove(n)).ok_or("an outcome that was not asked for")?;
            if measuring.load(Ordering::Relaxed) {
                latency.saturating_record_n((now - at).max(1), records);
            }
            next = appender.try_next_outcome();
        }
    }
}

/// A cluster whose primary is in a process of its own; its replicas are that process's children.
pub(super) struct Node {
    child: Child,
    ask: Option<ChildStdin>,
    answer: BufReader<ChildStdout>,
    pub(super) addr: String,
}

impl Node {
    /// For bulk work with so many bytes of segments written beforehand, if it is that.
    pub(super) fn start(dir: &Path, cpus: &Cpus, bulk_prefill: Option<u64>) -> Result<Self, String> {
        let list = |cpus: &[usize]| cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(own_path()?);
        let mut child = command
            .args(["compare-node", "--first", &list(&cpus.first), "--others", &list(&cpus.others), "--dir"])
            .arg(dir)
            .args(bulk_prefill.map(|bytes| format!("--bulk-prefill={bytes}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("starting a primary's process: {e}"))?;
        let ask = child.stdin.take();
        let answer = BufReader::new(child.stdout.take().ok_or("the process has no stdout")?);
        let mut node = Self { child, ask, answer, addr: String::new() };
        node.addr = node.line()?;
        Ok(node)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answer.read_line(&mut line).map_err(|e| format!("the primary's process: {e}"))?;
        if line.is_empty() { Err("the primary's process did not start".into()) } else { Ok(line.trim().into()) }
    }

    /// Processor time of the primary and the replicas.
    pub(super) fn cpu_ns(&mut self) -> Result<u64, String> {
        let ask = self.ask.as_mut().ok_or("the primary's process was stopped")?;
        ask.write_all(b"used\n").map_err(|e| format!("the primary's process is gone: {e}"))?;
        self.line()?.parse().map_err(|_| "the primary's process says something else".to_string())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends when its stdin does.
        self.ask = None;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The arguments of the process that a [`Node`] is.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[arg(long)]
    dir: std::path::PathBuf,
    #[arg(long, value_delimiter = ',')]
    first: Vec<usize>,
    #[arg(long, value_delimiter = ',')]
    others: Vec<usize>,
    #[arg(long)]
    bulk_prefill: Option<u64>,
}

/// Runs a cluster until stdin ends: says where it listens, then answers each line with its
/// processor time.
pub(crate) fn node(args: &NodeArgs) -> Result<(), String> {
    let cpus = Cpus { first: args.first.clone(), others: args.others.clone() };
    let plan = match args.bulk_prefill {
        None => plan(Scope::Replicated, &cpus),
        Some(prefill) => bulk_plan(&cpus, prefill),
    };
    let mut cluster = Cluster::start(&args.dir, &plan)?;
    let mut out = std::io::stdout().lock();
    let mut say = |text: String| writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| e.to_string());
    say(cluster.primary.listening().ok_or("the primary does not listen")?.to_string())?;
    for line in std::io::stdin().lock().lines() {
        line.map_err(|e| e.to_string())?;
        say(cluster.used()?.cpu_ns.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_begins_with_the_number_and_names_no_folder() {
        let version = version();
        assert!(version.starts_with(env!("CARGO_PKG_VERSION")) && !version.contains('/'), "{version}");
    }

    #[test]
    fn shards_are_pinned_to_one_core_whatever_the_peers_may_use() {
        let shared = Cpus { first: vec![0, 1], others: vec![0, 1] };
        let plan = plan(Scope::Replicated, &shared);
        assert_eq!((plan.primary.cpus, plan.replica.cpus, plan.replicas), (vec![0], vec![1], 2));
        assert_eq!(self::plan(Scope::Local, &shared).policy, CommitPolicy::Local);
    }
}
