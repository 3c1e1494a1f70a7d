//! The table on stdout.

use std::fmt::Write;

use super::bulk;
use super::model::{Limit, Part, Report};
use super::stats::{Ratios, Runs, Summary, summaries};

/// A number with as many digits as it deserves and a separator for thousands.
pub(crate) fn number(x: f64) -> String {
    if x < 10.0 {
        return format!("{x:.2}");
    }
    if x < 100.0 {
        return format!("{x:.1}");
    }
    let digits = format!("{x:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds, in the unit that reads best.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1000.0),
        us if us < 1e6 => format!("{:.0} ms", us / 1000.0),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// What the columns of [`ratios`] are called.
pub(crate) const RATIOS: [&str; 3] = ["embedded", "same shape", "best shape"];

/// A peer's ratios to Towline, or nothing for Towline itself.
pub(crate) fn ratios(peer: &str, ratios: &Ratios) -> [String; 3] {
    [ratios.embedded, ratios.same_shape, ratios.best_network].map(|ratio| match ratio {
        Some(ratio) if !peer.starts_with("towline") => format!("{}x", number(ratio)),
        _ => "-".into(),
    })
}

/// A row whose runs are not all to be trusted, in words.
pub(crate) fn marked(peer: &str, shape: &str, runs: Runs) -> String {
    format!(
        "{peer} {shape}: the disk changed under {} of {} runs, also when they were repeated",
        runs.marked, runs.count
    )
}

/// What a peer's commit means.
pub(crate) fn durability<'a>(report: &'a Report, peer: &str) -> &'a str {
    let facts = report.parts.iter().find_map(|p| p.peers.get(peer));
    facts.map_or("", |f| f.durability.as_str())
}

/// Everything, as text.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    for part in &report.parts {
        head(part, &mut out);
    }
    for summary in summaries(report) {
        group(report, &summary, &mut out);
    }
    out.push_str(&bulk::text(report));
    let mut skipped: Vec<_> = report.parts.iter().flat_map(|p| &p.skipped).collect();
    skipped.dedup();
    for skipped in skipped {
        let _ = writeln!(out, "left out: {}: {}", skipped.peer, skipped.why);
    }
    out
}

/// What the device took, and what at the end of the part.
pub(crate) fn limits(part: &Part) -> String {
    let after = |l: &Limit| l.after_mb_s.map_or_else(String::new, |mb_s| format!(", then {}", number(mb_s)));
    let files = |l: &Limit| if l.files == 1 { "1 file".into() } else { format!("{} files", l.files) };
    let all = part.limits.iter().map(|l| format!("{} {} MB/s{}", files(l), number(l.mb_s), after(l)));
    all.collect::<Vec<_>>().join("; ")
}

fn head(part: &Part, out: &mut String) {
    let m = &part.machine;
    let kind = if m.virtualised { "virtual cores" } else { "cores" };
    let _ = writeln!(
        out,
        "{}: {} {kind} ({}), {} GiB, Linux {}, {}; {}\n  {}",
        part.date, m.cores, m.processor, m.memory_gib, m.kernel, m.file_system, part.pinning, part.command
    );
    let _ = writeln!(out, "  durable 256 KiB overwrites: {}", limits(part));
}

fn group(report: &Report, summary: &Summary, out: &mut String) {
    let _ = writeln!(
        out,
        "\n{}, {} B records, {} outstanding{}",
        summary.scope.title(),
        summary.record_bytes,
        summary.outstanding,
        summary.probe_us.map_or_else(String::new, |p| format!(
            "; a lone durable write took {} ({} to {})",
            time(p.median),
            time(p.min),
            time(p.max)
        ))
    );
    let _ = writeln!(
        out,
        "  {:<15} {:>8} {:>11} {:>23} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>10}  durability",
        "peer", "shape", "commits/s", "[min-max]", "p50", "p99", "p99.9", "CPU us", RATIOS[0], RATIOS[1], RATIOS[2]
    );
    for line in &summary.lines {
        let rate = line.commits_per_s;
        let [embedded, same, best] = ratios(&line.peer, &line.ratios);
        let _ = writeln!(
            out,
            "  {:<15} {:>8} {:>11} {:>23} {:>8} {:>8} {:>8} {:>8} {embedded:>10} {same:>10} {best:>10}  {}",
            line.peer,
            line.shape,
            number(rate.median),
            format!("[{}-{}]", number(rate.min), number(rate.max)),
            time(line.p50_us.median),
            time(line.p99_us.median),
            time(line.p999_us.median),
            number(line.cpu_us.median),
            durability(report, &line.peer)
        );
    }
    for line in summary.lines.iter().filter(|l| l.runs.marked > 0) {
        let _ = writeln!(out, "  {}", marked(&line.peer, &line.shape, line.runs));
    }
    for error in &summary.errors {
        let _ = writeln!(out, "  failed: {error}");
    }
}

/// What the columns mean.
pub(crate) const LEGEND: &str = "\
shape: connections x records outstanding on each; CPU us: processor time of all nodes and the client for each commit;
CPU s/GB: the same for 10^9 bytes of payload. How many times as many commits (or MB/s) Towline made in the same part:
embedded: without a network client; same shape: over as many connections with as many outstanding on each, by the loop that
drives the peer (towline-net); best shape: over a network connection, in whatever shape is best for Towline";

#[cfg(test)]
mod tests {
    use super::super::model::{FORMAT, Skipped};
    use super::super::stats::tests::part;
    use super::*;

    #[test]
    fn numbers_read_well() {
        let numbers = [0.5, 9.994, 99.94, 999.0, 1000.0, 1_234_567.0].map(number);
        assert_eq!(numbers, ["0.50", "9.99", "99.9", "999", "1,000", "1,234,567"]);
        assert_eq!([99.6, 1500.0, 15_000.0, 2e6].map(time), ["100 us", "1.50 ms", "15 ms", "2.0 s"]);
    }

    #[test]
    fn the_table_has_a_line_for_each_contender_and_says_who_is_missing() {
        let mut one = part(&[("towline", &[1000.0]), ("towline-client", &[500.0]), ("redis", &[10.0])]);
        one.skipped.push(Skipped { peer: "nats".into(), why: "apt-get install nats-server".into() });
        one.groups[0].rows[1].runs[0].disk_moved = true;
        let text = text(&Report { format: FORMAT, parts: vec![one] });
        assert!(text.contains("durable 256 KiB overwrites: 3 files 768 MB/s, then 384\n"), "{text}");
        let redis = text.lines().find(|l| l.trim_start().starts_with("redis")).unwrap();
        assert!(redis.contains("100x") && redis.contains("50.0x") && redis.contains("[10.0-10.0]"), "{redis}");
        let columns: Vec<_> = redis.split_whitespace().rev().take(3).collect();
        assert_eq!(columns, ["50.0x", "-", "100x"], "no ratio of the same shape without towline-net");
        assert!(text.contains("left out: nats: apt-get install nats-server"));
        assert!(text.contains("towline-client 1x1: the disk changed under 1 of 1 runs"));
        let towline = text.lines().find(|l| l.trim_start().starts_with("towline ")).unwrap();
        assert!(!towline.contains("1.00x"), "no ratio of Towline to itself: {towline}");
    }
}
