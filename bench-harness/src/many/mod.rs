//! Many of everything: links that idle, shards on few cores, connections that come and go. `towline-bench
//! many` prints what they cost; `tests/many.rs` has a short form.

pub mod fake;

use std::fs;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use towline::measure::histogram;
use towline::{Handle, Outcome, Primary, PrimaryConfig, ShardId, client};

use crate::latency::us;
use crate::memory;
use fake::Fake;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// Bytes of memory that the process has from the system,
    pub rss: u64,
    /// and bytes of it that are allocated now.
    pub allocated: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Tasks of the nodes' cores.
    pub tasks: u64,
}

impl Holds {
    fn now(primary: &Primary) -> Result<Self, String> {
        let descriptors = fs::read_dir("/proc/self/fd").map_err(|e| format!("/proc/self/fd: {e}"))?.count() as u64;
        let tasks = primary.status().iter().map(|s| s.core_tasks).max().unwrap_or(0);
        let (rss, threads) = (memory::rss_bytes()?, memory::status("Threads")?);
        Ok(Self { rss, allocated: allocated(), descriptors, threads, tasks })
    }
}

/// Bytes that are allocated, by the C library's own books.
#[cfg(target_env = "gnu")]
fn allocated() -> u64 {
    // SAFETY: it takes nothing and returns a plain struct.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Other C libraries do not say.
#[cfg(not(target_env = "gnu"))]
fn allocated() -> u64 {
    0
}

/// What links that have nothing to do cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct IdleLinks {
    /// Links.
    pub links: usize,
    /// Memory for each, in bytes; the other end's, in the same process, is counted in.
    pub bytes_per_link: u64,
    /// Share of one core that the process took without links,
    pub cpu_without: f64,
    /// and with them, both ends.
    pub cpu_with: f64,
    /// A commit that all of them have flushed, 99th percentile in microseconds.
    pub commit_all_p99_us: f64,
}

/// What many shards on few cores cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ManyShards {
    /// Shards.
    pub shards: u32,
    /// Cores.
    pub cores: usize,
    /// Memory for each, in bytes.
    pub bytes_per_shard: u64,
    /// Share of one core that they take with nothing to do.
    pub cpu_idle: f64,
    /// Commits in each second, one record outstanding on each shard.
    pub commits_per_s: f64,
    /// Of those, in microseconds.
    pub p50_us: f64,
    /// Of those, in microseconds.
    pub p99_us: f64,
}

/// What connections leave behind that came and went.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Churn {
    /// Links and client connections made and ended.
    pub connections: u64,
    /// After the first tenth of them.
    pub before: Holds,
    /// After the last.
    pub after: Holds,
    /// In each second.
    pub per_s: f64,
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > Duration::from_secs(60) {
            return Err(format!("not within a minute: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn open(dir: &Path, change: impl FnOnce(&mut PrimaryConfig)) -> Result<Primary, String> {
    let mut config = PrimaryConfig::new(dir);
    config.listen = Some(([127, 0, 0, 1], 0).into());
    config.node.cpus = vec![0];
    config.node.segment_bytes = 1 << 20;
    config.node.io_memory_bytes = 1 << 20;
    config.deadline = Duration::from_secs(120);
    change(&mut config);
    Primary::open(config).map_err(|e| e.to_string())
}

fn at(primary: &Primary) -> Result<SocketAddr, String> {
    primary.listening().ok_or_else(|| "it does not listen".into())
}

/// The share of a core that this process takes meanwhile.
fn cpu_for(how_long: Duration) -> f64 {
    let (before, began) = (towline::sys::process_cpu_ns(), Instant::now());
    std::thread::sleep(how_long);
    (towline::sys::process_cpu_ns() - before) as f64 / began.elapsed().as_nanos() as f64
}

fn commit(handle: &Handle, shard: ShardId, record: &[u8]) -> Result<(), String> {
    let outcome = handle.append(shard, record).map_err(|e| e.to_string())?.wait().map_err(|e| e.to_string())?;
    if matches!(outcome, Outcome::Committed { .. }) { Ok(()) } else { Err(format!("{outcome:?}")) }
}

/// Measures `links` links that idle, for `idle`.
///
/// # Errors
/// What went wrong.
pub fn idle_links(dir: &Path, links: usize, idle: Duration) -> Result<IdleLinks, String> {
    let names: Vec<String> = (0..links).map(|n| format!("r{n}")).collect();
    let primary = open(dir, |c| {
        c.replicas.clone_from(&names);
        c.commit = "all".parse().expect("a policy");
    })?;
    let addr = at(&primary)?;
    let cpu_without = cpu_for(idle);
    let before = Holds::now(&primary)?;
    let mut stoppers = Vec::new();
    let mut threads = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let mut link = Fake::new(name, n as u64 + 1).connect(addr).map_err(|e| format!("{name}: {e}"))?;
        stoppers.push(link.stopper().map_err(|e| e.to_string())?);
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        threads.push(thread.spawn(move || while link.step().is_ok() {}).map_err(|e| e.to_string())?);
    }
    let handle = primary.handle();
    commit(&handle, ShardId(0), b"all of them have it")?;
    let cpu_with = cpu_for(idle);
    let after = Holds::now(&primary)?;
    let mut latency = histogram();
    for n in 0..200 {
        let began = Instant::now();
        commit(&handle, ShardId(0), &[n; 64])?;
        latency.saturating_record(began.elapsed().as_nanos() as u64);
    }
    for stopper in stoppers {
        let _ = stopper.shutdown(Shutdown::Both);
    }
    for thread in threads {
        thread.join().map_err(|_| "a fake replica panicked")?;
    }
    primary.stop();
    Ok(IdleLinks {
        links,
        bytes_per_link: after.rss.saturating_sub(before.rss) / links.max(1) as u64,
        cpu_without,
        cpu_with,
        commit_all_p99_us: us(&latency, 0.99),
    })
}

/// Measures `shards` shards on `cpus`: idle for `idle`, then `rounds` commits on each.
///
/// # Errors
/// What went wrong.
pub fn many_shards(
    dir: &Path,
    shards: u32,
    cpus: &[usize],
    idle: Duration,
    rounds: usize,
) -> Result<ManyShards, String> {
    let one = open(&dir.join("one"), |c| c.node.cpus = cpus.to_vec())?;
    let before = Holds::now(&one)?;
    one.stop();
    let primary = open(&dir.join("many"), |c| {
        c.shards = shards;
        c.node.cpus = cpus.to_vec();
    })?;
    let cpu_idle = cpu_for(idle);
    let handle = primary.handle();
    let mut latency = histogram();
    let began = Instant::now();
    for round in 0..rounds {
        let since = Instant::now();
        let tickets = (0..shards).map(|s| handle.append(ShardId(s), &[round as u8; 256]));
        for ticket in tickets.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())? {
            if !matches!(ticket.wait(), Ok(Outcome::Committed { .. })) {
                return Err("a record was not committed".into());
            }
            latency.saturating_record(since.elapsed().as_nanos() as u64);
        }
    }
    let took = began.elapsed();
    let after = Holds::now(&primary)?;
    drop(handle);
    primary.stop();
    Ok(ManyShards {
        shards,
        cores: cpus.len(),
        bytes_per_shard: after.rss.saturating_sub(before.rss) / u64::from(shards),
        cpu_idle,
        commits_per_s: (rounds as u64 * u64::from(shards)) as f64 / took.as_secs_f64(),
        p50_us: us(&latency, 0.5),
        p99_us: us(&latency, 0.99),
    })
}

/// Makes and ends `connections` connections: links, half of them cut in the middle of a batch, and
/// clients that ask for the status or end in the middle of the handshake.
///
/// # Errors
/// What went wrong.
pub fn churn(dir: &Path, connections: u64) -> Result<Churn, String> {
    // One segment: files of the log that are opened are no connection's.
    let primary = open(dir, |c| {
        c.replicas = vec!["r1".into(), "r2".into()];
        (c.node.segment_bytes, c.node.segments_ahead) = (64 << 20, 1);
        // So that what is kept in memory of the log is soon as much as it will ever be.
        (c.node.live_window_bytes, c.node.batch_bytes) = (64 << 10, 16 << 10);
    })?;
    let addr = at(&primary)?;
    let handle = primary.handle();
    let mut fakes = [Fake::new("r1", 1), Fake::new("r2", 2)];
    let mut before = Holds::default();
    let began = Instant::now();
    for n in 0..connections {
        if n == connections / 10 {
            before = at_rest(&primary)?;
        }
        match n % 4 {
            0 | 1 => {
                let fake = &mut fakes[(n % 2) as usize];
                let mut link = fake.connect(addr).map_err(|e| format!("connection {n}: {e}"))?;
                commit(&handle, ShardId(0), &n.to_le_bytes())?;
                if n % 8 < 4 {
                    while link.step().map_err(|e| format!("connection {n}: {e}"))? != towline::wire::FrameKind::Batch {}
                }
                *fake = link.fake;
            }
            2 => {
                client::status(&addr.to_string()).map_err(|e| format!("connection {n}: {e}"))?;
            }
            _ => drop(std::net::TcpStream::connect(addr).map_err(|e| format!("connection {n}: {e}"))?),
        }
    }
    let took = began.elapsed();
    let after = at_rest(&primary)?;
    drop(handle);
    primary.stop();
    Ok(Churn { connections, before, after, per_s: connections as f64 / took.as_secs_f64() })
}

/// What is held once all connections have ended.
fn at_rest(primary: &Primary) -> Result<Holds, String> {
    let down = || primary.status()[0].slots.iter().all(|s| s.state == towline::SlotState::Down);
    until("the links have ended", down)?;
    let mut last = Holds::now(primary)?;
    // Ends are told to tasks one after the other.
    let mut same = 0;
    until("nothing ends any more", || {
        let Ok(now) = Holds::now(primary) else { return false };
        let is_same = (now.tasks, now.descriptors) == (last.tasks, last.descriptors);
        same = if is_same { same + 1 } else { 0 };
        last = now;
        std::thread::sleep(Duration::from_millis(20));
        same > 60
    })?;
    Ok(last)
}
