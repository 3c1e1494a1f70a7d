//! Bulk work on the page: for each kind a plot with bars, and a table.

use std::fmt::Write;

use super::super::bulk::summary::{Line, Summary, summaries};
use super::super::model::Report;
use super::super::table::{RATIOS, number, ratios, time};
use super::bars::{Bar, bars};
use super::{COLOURS, TABLE_END, escape, figure, header, is_own, row, runs_cell, spread};

/// Everything; nothing if there was no bulk work.
pub(super) fn sections(report: &Report, out: &mut String) {
    for summary in summaries(report).iter().filter(|s| !s.lines.is_empty() || !s.errors.is_empty()) {
        section(summary, out);
    }
}

fn section(summary: &Summary, out: &mut String) {
    let title = format!("{} MiB, {}", summary.bytes >> 20, summary.kind.title());
    let probe = summary.probe_us.map_or_else(String::new, |p| {
        format!(" A lone durable write took {} ({} to {}).", time(p.median), time(p.min), time(p.max))
    });
    let _ = writeln!(
        out,
        "<h2>{}</h2>\n<p>Records of {} B; MB/s are 10^6 bytes of payload. The clock runs {}.</p>\n\
         <p class=\"soft\">{}</p>\n<div class=\"plots\">",
        escape(&title),
        summary.record_bytes,
        escape(summary.kind.work.clock()),
        escape(probe.trim())
    );
    let all: Vec<Bar> = colours(&summary.lines).map(|(line, colour)| bar(line, colour)).collect();
    let limit = summary.limit_mb_s.map(|l| (l, "what the device takes, three copies"));
    figure("MB/s: median (bar), least and greatest (line)", out, |label| {
        bars(&format!("{title}: {label}"), &all, limit)
    });
    out.push_str("</div>\n");
    table(summary, out);
    for error in &summary.errors {
        let _ = writeln!(out, "<p class=\"soft\">failed: {}</p>", escape(error));
    }
}

/// Lines with the numbers of their colours: one for each name.
fn colours(lines: &[Line]) -> impl Iterator<Item = (&Line, usize)> {
    let mut names: Vec<&str> = Vec::new();
    lines.iter().map(move |line| {
        let place = names.iter().position(|n| *n == line.peer).unwrap_or_else(|| {
            names.push(&line.peer);
            names.len() - 1
        });
        (line, place % COLOURS)
    })
}

fn bar(line: &Line, colour: usize) -> Bar {
    Bar { name: format!("{} {}", line.peer, line.shape), colour, is_own: is_own(&line.peer), value: line.mb_s }
}

fn table(summary: &Summary, out: &mut String) {
    header(
        &[
            ("t", "peer"),
            ("", "shape"),
            ("", "MB/s"),
            ("", "min to max"),
            ("", "runs"),
            ("", "seconds"),
            ("", "connected after"),
            ("", "CPU s/GB"),
            ("", "of device"),
            ("", RATIOS[0]),
            ("", RATIOS[1]),
            ("", RATIOS[2]),
            ("t", "how"),
            ("t", "all of it is"),
        ],
        out,
    );
    for line in &summary.lines {
        let rate = line.mb_s;
        let [embedded, same, best] = ratios(&line.peer, &line.ratios);
        let share = summary.limit_mb_s.map_or_else(|| "-".into(), |l| format!("{:.1} %", 100.0 * rate.median / l));
        let cells = vec![
            ("t", line.peer.clone()).into(),
            ("", line.shape.clone()).into(),
            ("", number(rate.median)).into(),
            ("", format!("{} to {}", number(rate.min), number(rate.max))).into(),
            runs_cell(line.runs),
            ("", number(line.seconds)).into(),
            ("", line.connected_after_s.map_or_else(|| "-".into(), |s| time(s * 1e6))).into(),
            spread(line.cpu_s_per_gb, number),
            ("", share).into(),
            ("", embedded).into(),
            ("", same).into(),
            ("", best).into(),
            ("w", line.how.clone()).into(),
            ("w", line.until.clone()).into(),
        ];
        row(cells, if is_own(&line.peer) { "own" } else { "" }, out);
    }
    out.push_str(TABLE_END);
}
