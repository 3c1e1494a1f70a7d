//! The demonstration's summary, for people and for machines.

use serde::Serialize;
use towline::measure::stages_picture;
use towline::telemetry::Percentiles;

use super::Found;

/// Copies of each byte on a device: the primary's and the two replicas'.
const COPIES: f64 = 3.0;

#[derive(Serialize)]
struct Json {
    commits: u64,
    failed: u64,
    commits_per_s: f64,
    payload_mb_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    limit_mb_s: f64,
    efficiency: f64,
    identical: bool,
    compared_bytes: u64,
    catch_up_s: f64,
    catch_up_bytes: u64,
    peak_rss_mb: f64,
    cpu_ns_per_record: f64,
    record_bytes: u64,
    window: u64,
    write_4k_p50_us: f64,
    ping_p50_us: f64,
}

fn figures(found: &Found) -> Json {
    let p = Percentiles::of(&found.latency_ns);
    let payload = found.commits_per_s * found.record as f64;
    Json {
        commits: found.commits,
        failed: found.failed,
        commits_per_s: found.commits_per_s.round(),
        payload_mb_s: payload / 1e6,
        p50_us: p.p50_us,
        p99_us: p.p99_us,
        p999_us: p.p999_us,
        limit_mb_s: found.limit_bytes_per_s / 1e6,
        efficiency: payload * COPIES / found.limit_bytes_per_s,
        identical: found.compared.differ_at.is_none() && found.same_chain,
        compared_bytes: found.compared.bytes,
        catch_up_s: found.catch_up.as_secs_f64(),
        catch_up_bytes: found.catch_up_bytes,
        peak_rss_mb: towline::sys::peak_rss_bytes() as f64 / 1e6,
        cpu_ns_per_record: found.cpu_ns as f64 / found.commits.max(1) as f64,
        record_bytes: found.record,
        window: found.window,
        write_4k_p50_us: found.write_ns.value_at_quantile(0.5) as f64 / 1e3,
        ping_p50_us: found.ping_ns.value_at_quantile(0.5) as f64 / 1e3,
    }
}

/// For machines: one document.
pub(super) fn json(found: &Found) {
    let text = serde_json::to_string(&figures(found)).expect("numbers can be written");
    println!("{text}");
}

/// For people.
pub(super) fn text(found: &Found) {
    let f = figures(found);
    match found.compared.differ_at {
        None if found.same_chain => println!(
            "  identical: {:.0} MB that all three keep, and one chain over the whole history",
            f.compared_bytes as f64 / 1e6
        ),
        None => println!("  THE CHAINS DIFFER"),
        Some(lsn) => println!("  THE LOGS DIFFER at LSN {lsn}"),
    }
    println!("\nwhere the time of a commit went (all nodes; o median, + 99th, | 99.9th percentile)\n");
    print!("{}", stages_picture(&found.telemetry));
    println!(
        "\nwith both replicas: {:.0} commits/s of {} B with {} outstanding, p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us",
        f.commits_per_s, f.record_bytes, f.window, f.p50_us, f.p99_us, f.p999_us
    );
    println!(
        "  {:.0} MB/s of payload, three copies of it: {:.0} MB/s durable; this disk does {:.0} MB/s in the same run: {:.0} %",
        f.payload_mb_s,
        f.payload_mb_s * COPIES,
        f.limit_mb_s,
        f.efficiency * 100.0
    );
    println!(
        "  {:.0} ns of CPU for each record over all three nodes; {} committed in all, {} not; {:.0} MB of memory at most",
        f.cpu_ns_per_record, f.commits, f.failed, f.peak_rss_mb
    );
    println!("  r2 caught up {:.0} MB in {:.2} s under load", f.catch_up_bytes as f64 / 1e6, f.catch_up_s);
}
