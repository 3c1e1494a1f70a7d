//! What a run came to: each figure beside its limit.

use hdrhistogram::Histogram;
use serde::Serialize;
use towline::CommitPolicy;
use towline::measure::stages_picture;
use towline::telemetry::{Percentiles, Telemetry};

use crate::remote::Used;
use crate::workload::Args;

/// A run's measurements.
pub(crate) struct Run {
    pub(crate) commits: u64,
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
    pub(crate) latency: Histogram<u64>,
    pub(crate) used_before: Used,
    pub(crate) used_after: Used,
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
    user_copies: u64,
    zero_copy_ratio: f64,
    peak_rss_mb: f64,
    record_bytes: usize,
    window: u64,
    rate: Option<f64>,
    shards: u32,
    replicas: usize,
    policy: String,
    separate: bool,
}

/// Prints a run.
pub(crate) fn print(args: &Args, run: &Run) {
    let p = Percentiles::of(&run.latency);
    let us = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
    let records = run.commits.max(1) as f64;
    let rate = run.commits as f64 / run.seconds;
    let payload = rate * args.record as f64;
    let copies = args.replicas as f64 + 1.0;
    let cpu = (run.used_after.cpu_ns - run.used_before.cpu_ns) as f64;
    // The primary's own write and the replicas' go on at the same time; theirs come a round trip
    // later.
    let round_trip = |q| if args.replicas == 0 { 0.0 } else { us(&run.ping, q) };
    let t_min = |q| us(&run.lone_write, q) + round_trip(q);
    let counters = &run.telemetry.counters;
    let sends = (counters.zero_copy_sends + counters.copied_sends).max(1);
    let json = Json {
        commits: run.commits,
        failed: run.failed,
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
        cores_busy: cpu / run.seconds / 1e9,
        allocs_per_record: (run.used_after.allocations - run.used_before.allocations) as f64 / records,
        syscalls_per_record: (run.used_after.syscalls - run.used_before.syscalls) as f64 / records,
        device_writes_per_record: (run.used_after.device_writes - run.used_before.device_writes) as f64 / records,
        records_per_batch: counters.records as f64 / counters.batches.max(1) as f64,
        user_copies: 1,
        zero_copy_ratio: counters.zero_copy_sends as f64 / sends as f64,
        peak_rss_mb: run.used_after.peak_rss as f64 / 1e6,
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
        "\n  for each record, all nodes: {:.0} ns CPU ({:.2} cores busy), {:.4} allocations, {:.4} socket calls, {:.4} device writes, {} copy in user space",
        j.cpu_ns_per_record,
        j.cores_busy,
        j.allocs_per_record,
        j.syscalls_per_record,
        j.device_writes_per_record,
        j.user_copies
    );
    println!(
        "  {:.0} records in a batch; zero-copy ratio of sends {:.2}; peak memory {:.0} MB; {} commits, {} with another outcome",
        j.records_per_batch, j.zero_copy_ratio, j.peak_rss_mb, j.commits, j.failed
    );
    println!("  (the same writes with one buffer again and again: {:.0} MB/s)", j.limit_reused_mb_s);
}
