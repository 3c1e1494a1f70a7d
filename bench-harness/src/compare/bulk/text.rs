//! Bulk work in the table on stdout.

use std::fmt::Write;

use super::super::model::Report;
use super::super::table::{RATIOS, marked, number, ratios, time};
use super::summary::{Summary, summaries};

/// Everything, as text; nothing if there was no bulk work.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    for summary in summaries(report) {
        group(&summary, &mut out);
    }
    out
}

fn group(summary: &Summary, out: &mut String) {
    let probe = summary.probe_us.map_or_else(String::new, |p| {
        format!("; a lone durable write took {} ({} to {})", time(p.median), time(p.min), time(p.max))
    });
    let _ = writeln!(
        out,
        "\n{}: {} MiB in records of {} B{probe}\n  the clock runs {}",
        summary.kind.title(),
        summary.bytes >> 20,
        summary.record_bytes,
        summary.kind.work.clock()
    );
    let _ = writeln!(
        out,
        "  {:<15} {:>8} {:>8} {:>17} {:>8} {:>10} {:>8} {:>10} {:>10} {:>10}  all of it is",
        "peer", "shape", "MB/s", "[min-max]", "seconds", "connected", "CPU s/GB", RATIOS[0], RATIOS[1], RATIOS[2]
    );
    for line in &summary.lines {
        let [embedded, same, best] = ratios(&line.peer, &line.ratios);
        let _ = writeln!(
            out,
            "  {:<15} {:>8} {:>8} {:>17} {:>8} {:>10} {:>8} {embedded:>10} {same:>10} {best:>10}  {}",
            line.peer,
            line.shape,
            number(line.mb_s.median),
            format!("[{}-{}]", number(line.mb_s.min), number(line.mb_s.max)),
            number(line.seconds),
            line.connected_after_s.map_or_else(|| "-".into(), |s| time(s * 1e6)),
            number(line.cpu_s_per_gb.median),
            line.until
        );
    }
    for line in summary.lines.iter().filter(|l| l.runs.marked > 0) {
        let _ = writeln!(out, "  {}", marked(&line.peer, &line.shape, line.runs));
    }
    for error in &summary.errors {
        let _ = writeln!(out, "  failed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::model::{BulkWork, FORMAT};
    use super::super::super::stats::tests::part;
    use super::super::summary::tests::{group, row};
    use super::*;

    #[test]
    fn each_work_has_its_table_with_its_clock_and_what_done_means() {
        let mut one = part(&[]);
        assert_eq!(text(&Report { format: FORMAT, parts: vec![one.clone()] }), "");
        let stream = vec![row("towline", &[1000.0], None), row("postgres", &[250.0, 200.0, 300.0], None)];
        let catch_up = vec![row("towline", &[1000.0], Some(0.1)), row("postgres", &[100.0], Some(1.5))];
        one.bulk = vec![group(BulkWork::Stream, stream), group(BulkWork::CatchUp, catch_up)];
        let text = text(&Report { format: FORMAT, parts: vec![one] });
        let lines: Vec<_> = text.lines().filter(|l| l.trim_start().starts_with("postgres")).collect();
        assert!(lines[0].contains("4.00x") && lines[0].contains("[200-300]") && lines[0].contains("on <all> nodes"));
        assert!(lines[1].contains("10.0x") && lines[1].contains("1.5 s"), "{}", lines[1]);
        assert!(text.contains("1024 MiB in records of 16384 B") && text.contains(BulkWork::CatchUp.clock()));
    }
}
