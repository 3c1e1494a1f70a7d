//! What a run came to: each figure beside its limit.

use hdrhistogram::Histogram;
use serde::Serialize;
use towline::CommitPolicy;
use towline::measure::stages_picture;
use towline::telemetry::{Percentiles, Telemetry};
use towline_bench::latency::us;

use crate::workload::{Args, Loaded};

/// A run's measurements.
pub(crate) struct Run {
    pub(crate) loaded: Loaded,
    /// The open loop at half of that rate.
    pub(crate) half: Option<Loaded>,
    /// Bytes in each second that become durable, over as many files as there are copies.
    pub(crate) limit: f64,
    pub(crate) limit_reused: f64,
    pub(crate) lone_write: Histogram<u64>,
    pub(crate) ping: Histogram<u64>,
    pub(crate) policy: CommitPolicy,
    pub(crate) telemetry: Telemetry,
}

#[derive(Serialize)]
struct Json {
    commits: u64,
    failed: u64,
    commits_per_s: f64,
    payload_mb_s: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    limit_mb_s: f64,
    limit_reused_mb_s: f64,
    efficiency: f64,
    t_min_us: f64,
    t_min_p99_us: f64,
    p50_over_t_min: f64,
    cpu_ns_per_record: f64,
    cores_busy: f64,
    allocs_per_record: f64,
    syscalls_per_record: f64,
    device_writes_per_record: f64,
    records_per_batch: f64,
    /// Of all nodes together, for each batch of the primary.
    device_writes_per_batch: f64,
    ring_enters_per_batch: f64,
    wake_ups_per_batch: f64,
    zero_copy_ratio: f64,
    peak_rss_mb: f64,
    /// How much memory all nodes together had more at the end than at the begin.
    rss_growth_mb: f64,
    half: Option<Half>,
    record_bytes: usize,
    window: u64,
    rate: Option<f64>,
    shards: u32,
    replicas: usize,
    policy: String,
    separate: bool,
}

/// An open loop at half the rate of the closed one.
#[derive(Serialize)]
struct Half {
    rate: f64,
    commits: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    p999_over_p50: f64,
    /// The same of lone durable writes in the same run.
    device_p999_over_p50: f64,
}

fn half(loaded: &Loaded, device: &Histogram<u64>) -> Half {
    let p = Percentiles::of(&loaded.latency);
    let spread = |h: &Histogram<u64>| h.value_at_quantile(0.999) as f64 / h.value_at_quantile(0.5).max(1) as f64;
    Half {
        rate: loaded.commits as f64 / loaded.seconds,
        commits: loaded.commits,
        p50_us: p.p50_us,
        p99_us: p.p99_us,
        p999_us: p.p999_us,
        p999_over_p50: spread(&loaded.latency),
        device_p999_over_p50: spread(device),
    }
}

/// Prints a run.
pub(crate) fn print(args: &Args, run: &Run) {
    let loaded = &run.loaded;
    let (before, after) = (loaded.used_before, loaded.used_after);
    let p = Percentiles::of(&loaded.latency);
    let records = loaded.commits.max(1) as f64;
    let rate = loaded.commits as f64 / loaded.seconds;
    let payload = rate * args.record as f64;
    let copies = args.replicas as f64 + 1.0;
    let cpu = (after.cpu_ns - before.cpu_ns) as f64;
    // The primary's own write and the replicas' go on at the same time; theirs come a round trip
    // later.
    let round_trip = |q| if args.replicas == 0 { 0.0 } else { us(&run.ping, q) };
    let t_min = |q| us(&run.lone_write, q) + round_trip(q);
    let counters = &run.telemetry.counters;
    let per_batch = |before: u64, after: u64| (after - before) as f64 / loaded.batches.max(1) as f64;
    let sends = (counters.zero_copy_sends + counters.copied_sends).max(1);
    let json = Json {
        commits: loaded.commits,
        failed: loaded.failed,
        commits_per_s: rate.round(),
        payload_mb_s: payload / 1e6,
        p50_us: p.p50_us,
        p90_us: p.p90_us,
        p99_us: p.p99_us,
        p999_us: p.p999_us,
        max_us: p.max_us,
        limit_mb_s: run.limit / 1e6,
        limit_reused_mb_s: run.limit_reused / 1e6,
        efficiency: payload * copies / run.limit,
        t_min_us: t_min(0.5),
        t_min_p99_us: t_min(0.99),
        p50_over_t_min: p.p50_us / t_min(0.5),
        cpu_ns_per_record: cpu / records,
        cores_busy: cpu / loaded.seconds / 1e9,
        allocs_per_record: (after.allocations - before.allocations) as f64 / records,
        syscalls_per_record: (after.syscalls - before.syscalls) as f64 / records,
        device_writes_per_record: (after.device_writes - before.device_writes) as f64 / records,
        records_per_batch: loaded.commits as f64 / loaded.batches.max(1) as f64,
        device_writes_per_batch: per_batch(before.device_writes, after.device_writes),
        ring_enters_per_batch: per_batch(before.enters, after.enters),
        wake_ups_per_batch: per_batch(before.sleeps, after.sleeps),
        zero_copy_ratio: counters.zero_copy_sends as f64 / sends as f64,
        peak_rss_mb: after.peak_rss as f64 / 1e6,
        rss_growth_mb: (after.rss as f64 - before.rss as f64) / 1e6,
        half: run.half.as_ref().map(|h| half(h, &run.lone_write)),
        record_bytes: args.record,
        window: args.window,
        rate: args.rate,
        shards: args.shards,
        replicas: args.replicas,
        policy: run.policy.to_string(),
        separate: !args.in_process,
    };
    if args.json {
        println!("{}", serde_json::to_string(&json).expect("numbers can be written"));
        return;
    }
    text(args, &json);
    if args.stages {
        println!("\nstages (all nodes in this process; o median, + 99th, | 99.9th percentile)\n");
        print!("{}", stages_picture(&run.telemetry));
    }
}

fn text(args: &Args, j: &Json) {
    let arrival = j.rate.map_or_else(
        || format!("{} outstanding (closed loop)", args.window),
        |r| format!("{r:.0} appends/s (open loop)"),
    );
    println!(
        "{} B records, {arrival}, {} shards, {} replicas, commit = {}",
        j.record_bytes, j.shards, j.replicas, j.policy
    );
    println!(
        "\n  {:>12.0} commits/s     {:.0} MB/s payload x {} copies = {:.0} MB/s; limit {:.0} MB/s (256 KiB durable writes, fresh bytes): {:.2} of it",
        j.commits_per_s,
        j.payload_mb_s,
        j.replicas + 1,
        j.payload_mb_s * (j.replicas as f64 + 1.0),
        j.limit_mb_s,
        j.efficiency
    );
    println!(
        "  {:>12.0} us p99        p50 {:.0}, p90 {:.0}, p99.9 {:.0}, max {:.0} us; floor for a lone commit {:.0} us p50, {:.0} us p99",
        j.p99_us, j.p50_us, j.p90_us, j.p999_us, j.max_us, j.t_min_us, j.t_min_p99_us
    );
    println!(
        "\n  for each record, all nodes: {:.0} ns CPU ({:.2} cores busy), {:.4} allocations, {:.4} socket calls, {:.4} device writes",
        j.cpu_ns_per_record, j.cores_busy, j.allocs_per_record, j.syscalls_per_record, j.device_writes_per_record
    );
    println!(
        "  for each batch of {:.0} records, all nodes: {:.1} device writes, {:.1} calls for rings, {:.1} wake-ups; zero-copy ratio of sends {:.2}",
        j.records_per_batch,
        j.device_writes_per_batch,
        j.ring_enters_per_batch,
        j.wake_ups_per_batch,
        j.zero_copy_ratio
    );
    println!(
        "  {} commits, {} with another outcome; memory {:+.1} MB from begin to end, at most {:.0} MB",
        j.commits, j.failed, j.rss_growth_mb, j.peak_rss_mb
    );
    if let Some(h) = &j.half {
        println!(
            "\n  {:>12.0} appends/s (open loop, half of that): p50 {:.0}, p99 {:.0}, p99.9 {:.0} us; p99.9 is {:.1} times p50, of lone durable writes {:.1} times",
            h.rate, h.p50_us, h.p99_us, h.p999_us, h.p999_over_p50, h.device_p999_over_p50
        );
    }
    println!("  (the same writes with one buffer again and again: {:.0} MB/s)", j.limit_reused_mb_s);
}
