//! The page: one file with its style and its plots in it, nothing from the network, no scripts.

mod bars;
mod bulk;
mod plot;

use std::fmt::Write;

use super::model::{Part, Report, Scope};
use super::stats::{Line, Runs, Spread, Summary, summaries};
use super::table::{RATIOS, limits, number, ratios, time};

const STYLE: &str = include_str!("page.css");
/// Colours in the style sheet.
const COLOURS: usize = 10;

/// Text as it must stand in a document.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let all = summaries(report);
    let mut out = String::new();
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Towline beside its peers</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>Towline beside its peers</h1>\n"
    );
    head(report, &mut out);
    for scope in [Scope::Replicated, Scope::Local] {
        let here: Vec<_> = all.iter().filter(|s| s.scope == scope && !s.lines.is_empty()).collect();
        if !here.is_empty() {
            section(report, scope, &here, &mut out);
        }
    }
    bulk::sections(report, &mut out);
    peers(report, &mut out);
    runs(report, &mut out);
    out.push_str("</body>\n</html>\n");
    out
}

fn head(report: &Report, out: &mut String) {
    out.push_str(
        "<p>The same records, as many outstanding, on the same cores and the same disk, in the same minutes. Each figure \
         is the median of its runs, which alternated with everybody else's; the least and the greatest stand beside \
         it. A lone durable write was timed before and after each run, and a run under which it moved more than twofold was \
         repeated.</p>\n<p><strong>What a commit means differs.</strong> The table says it for each peer. A ratio to one \
         that promises less does not compare like with like.</p>\n",
    );
    let mut machines: Vec<String> = report.parts.iter().map(machine).collect();
    machines.dedup();
    for machine in machines {
        let _ = writeln!(out, "<p class=\"soft\">{}</p>", escape(&machine));
    }
}

fn machine(part: &Part) -> String {
    let m = &part.machine;
    let kind = if m.virtualised { "virtual cores" } else { "cores" };
    format!(
        "{} {kind} ({}), {} GiB of memory, {}, Linux {}, {}; {}.",
        m.cores, m.processor, m.memory_gib, m.system, m.kernel, m.file_system, part.pinning
    )
}

fn is_own(peer: &str) -> bool {
    peer.starts_with("towline")
}

/// The names of everybody in these summaries, in order of appearance: a name's place is its colour.
fn names<'a>(here: &[&'a Summary]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for line in here.iter().flat_map(|s| &s.lines) {
        if !names.contains(&line.peer.as_str()) {
            names.push(&line.peer);
        }
    }
    names.sort_by_key(|n| !is_own(n));
    names
}

/// A contender's best shape.
fn best<'a>(summary: &'a Summary, peer: &str) -> Option<&'a Line> {
    let lines = summary.lines.iter().filter(|l| l.peer == peer);
    lines.max_by(|a, b| a.commits_per_s.median.total_cmp(&b.commits_per_s.median))
}

fn section(report: &Report, scope: Scope, here: &[&Summary], out: &mut String) {
    let names = names(here);
    let mut sizes: Vec<usize> = here.iter().map(|s| s.record_bytes).collect();
    sizes.dedup();
    for size in sizes {
        let of_size: Vec<&Summary> = here.iter().filter(|s| s.record_bytes == size).copied().collect();
        let title = format!("{}, records of {size} B", scope.title());
        let _ = writeln!(out, "<h2>{}</h2>\n<div class=\"plots\">", escape(&title));
        let limit = of_size.iter().filter_map(|s| s.limit_commits).max_by(f64::total_cmp);
        let limit = limit.map(|l| (l, "what the device takes"));
        figure("Commits per second, best shape of each; both axes logarithmic", out, |label| {
            let series = series(&names, &of_size, |_, l| Some(l.commits_per_s.median));
            plot::curves(&format!("{title}: {label}"), "commits/s", &series, limit)
        });
        let share = |s: &Summary, l: &Line| s.limit_commits.map(|limit| 100.0 * l.commits_per_s.median / limit);
        let efficiency = series(&names, &of_size, share);
        if !efficiency.is_empty() {
            let caption = "Efficiency: payload in percent of what the device takes for all copies, best shape of each";
            figure(caption, out, |label| {
                let all = Some((100.0, "all that the device takes"));
                plot::curves(&format!("{title}: {label}"), "percent of the device", &efficiency, all)
            });
        }
        figure("Processor time for each commit, all nodes and the client together", out, |label| {
            let series = series(&names, &of_size, |_, l| Some(l.cpu_us.median));
            plot::curves(&format!("{title}: {label}"), "microseconds", &series, None)
        });
        for summary in &of_size {
            let caption = format!(
                "Latency at {} outstanding: median (dot), p99 (ring), p99.9 (end)",
                number_of(summary.outstanding)
            );
            figure(&caption, out, |label| plot::ranges(&format!("{title}: {label}"), &ranges(&names, summary)));
        }
        out.push_str("</div>\n");
        for summary in of_size {
            group(report, summary, out);
        }
    }
}

fn number_of(n: u64) -> String {
    number(n as f64).replace(".00", "").replace(".0", "")
}

fn figure(caption: &str, out: &mut String, plot: impl FnOnce(&str) -> String) {
    let _ = writeln!(out, "<figure><figcaption>{}</figcaption>{}</figure>", escape(caption), plot(caption));
}

fn series(names: &[&str], of_size: &[&Summary], figure: impl Fn(&Summary, &Line) -> Option<f64>) -> Vec<plot::Series> {
    let one = |(n, name): (usize, &&str)| plot::Series {
        name: (*name).to_string(),
        colour: n % COLOURS,
        is_own: is_own(name),
        points: of_size
            .iter()
            .filter_map(|s| Some((s.outstanding as f64, figure(s, best(s, name)?)?)))
            .filter(|(_, y)| *y > 0.0)
            .collect(),
    };
    names.iter().enumerate().map(one).filter(|s| !s.points.is_empty()).collect()
}

fn ranges(names: &[&str], summary: &Summary) -> Vec<plot::Range> {
    let lines = names.iter().enumerate().filter_map(|(n, name)| Some((n, best(summary, name)?)));
    let rows = lines.map(|(n, line)| plot::Range {
        name: line.peer.clone(),
        colour: n % COLOURS,
        is_own: is_own(&line.peer),
        p50_us: line.p50_us.median.max(1.0),
        p99_us: line.p99_us.median.max(1.0),
        p999_us: line.p999_us.median.max(1.0),
    });
    rows.collect()
}

/// A cell of a table.
struct Cell {
    class: &'static str,
    text: String,
    /// What is shown when it is pointed at.
    title: Option<String>,
}

impl From<(&'static str, String)> for Cell {
    fn from((class, text): (&'static str, String)) -> Self {
        Self { class, text, title: None }
    }
}

/// A median, with the least and the greatest when it is pointed at.
fn spread(of: Spread, show: impl Fn(f64) -> String) -> Cell {
    let title = format!("{} to {}", show(of.min), show(of.max));
    Cell { class: "", text: show(of.median), title: Some(title) }
}

/// How many runs count, were repeated, and are marked.
fn runs_cell(runs: Runs) -> Cell {
    let repeated = if runs.repeated > 0 { format!(" +{}", runs.repeated) } else { String::new() };
    let mark = "*".repeat(runs.marked);
    let title = (runs.marked > 0).then(|| format!("the disk changed under {} of them", runs.marked));
    Cell { class: "", text: format!("{}{repeated}{mark}", runs.count), title }
}

fn row(cells: Vec<Cell>, class: &str, out: &mut String) {
    let _ = write!(out, "<tr class=\"{class}\">");
    for Cell { class, text, title } in cells {
        let title = title.map_or_else(String::new, |t| format!(" title=\"{}\"", escape(&t)));
        let _ = write!(out, "<td class=\"{class}\"{title}>{}</td>", escape(&text));
    }
    out.push_str("</tr>\n");
}

fn header(cells: &[(&str, &str)], out: &mut String) {
    out.push_str("<div class=\"wide\"><table>\n<thead><tr>");
    for (class, text) in cells {
        let _ = write!(out, "<th class=\"{class}\">{}</th>", escape(text));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
}

const TABLE_END: &str = "</tbody></table></div>\n";

fn group(report: &Report, summary: &Summary, out: &mut String) {
    let probe = summary.probe_us.map_or_else(String::new, |p| {
        format!(" A lone durable write took {} ({} to {}).", time(p.median), time(p.min), time(p.max))
    });
    let _ = writeln!(
        out,
        "<h3>{} outstanding, {} B, {}</h3>\n<p class=\"soft\">{}</p>",
        number_of(summary.outstanding),
        summary.record_bytes,
        escape(summary.scope.title()),
        escape(probe.trim())
    );
    header(
        &[
            ("t", "peer"),
            ("t", "a commit means"),
            ("", "shape"),
            ("", "commits/s"),
            ("", "min to max"),
            ("", "runs"),
            ("", "p50"),
            ("", "p99"),
            ("", "p99.9"),
            ("", "CPU us"),
            ("", "of device"),
            ("", RATIOS[0]),
            ("", RATIOS[1]),
            ("", RATIOS[2]),
        ],
        out,
    );
    for line in &summary.lines {
        let rate = line.commits_per_s;
        let [embedded, same, best] = ratios(&line.peer, &line.ratios);
        let share = summary.limit_commits.map_or_else(|| "-".into(), |l| format!("{:.1} %", 100.0 * rate.median / l));
        let cells = vec![
            ("t", line.peer.clone()).into(),
            ("w", super::table::durability(report, &line.peer).to_string()).into(),
            ("", line.shape.clone()).into(),
            ("", number(rate.median)).into(),
            ("", format!("{} to {}", number(rate.min), number(rate.max))).into(),
            runs_cell(line.runs),
            spread(line.p50_us, time),
            spread(line.p99_us, time),
            spread(line.p999_us, time),
            spread(line.cpu_us, number),
            ("", share).into(),
            ("", embedded).into(),
            ("", same).into(),
            ("", best).into(),
        ];
        row(cells, if is_own(&line.peer) { "own" } else { "" }, out);
    }
    out.push_str(TABLE_END);
    for error in &summary.errors {
        let _ = writeln!(out, "<p class=\"soft\">failed: {}</p>", escape(error));
    }
}

fn peers(report: &Report, out: &mut String) {
    out.push_str("<h2>Who was measured, and how</h2>\n");
    header(&[("t", "peer"), ("", "version"), ("t", "a commit means"), ("t", "configuration"), ("t", "shape")], out);
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (name, facts) in report.parts.iter().flat_map(|p| &p.peers) {
        if seen.contains(&(name, &facts.version)) {
            continue;
        }
        seen.push((name, &facts.version));
        let cells = [
            ("t", name.clone()),
            ("", facts.version.clone()),
            ("w", facts.durability.clone()),
            ("w", facts.configuration.clone()),
            ("w", facts.shape.clone()),
        ];
        row(cells.map(Cell::from).into(), if is_own(name) { "own" } else { "" }, out);
    }
    out.push_str(TABLE_END);
    let mut skipped: Vec<String> =
        report.parts.iter().flat_map(|p| &p.skipped).map(|s| format!("{}: {}", s.peer, s.why)).collect();
    skipped.sort_unstable();
    skipped.dedup();
    for text in skipped {
        let _ = writeln!(out, "<p class=\"soft\">Left out: {}</p>", escape(&text));
    }
}

fn runs(report: &Report, out: &mut String) {
    out.push_str(
        "<h2>The runs</h2>\n<p>Parts are invocations of the harness. Ratios are taken within a part and their median is \
         shown; runs of several parts are pooled.</p>\n<p>In the tables above, how many times as many \
         commits, or MB/s, Towline made: \u{201c}embedded\u{201d}, without a network client; \u{201c}same shape\u{201d}, over as \
         many connections with as many outstanding on each, by the loop that drives the peer (towline-net); \
         \u{201c}best shape\u{201d}, over a network connection in whatever shape is best for Towline, which is not the same \
         work. \u{201c}runs\u{201d}: how many there are; behind a + those \
         that were repeated; a * for each under which the disk changed again when it was repeated: figures are taken without \
         these if two others are left. Medians of latencies and of processor time show their least and greatest when they are \
         pointed at. \u{201c}shape\u{201d}: see the table of peers. \u{201c}of device\u{201d} is against durable 256 KiB overwrites of as \
         many files as there are copies, at depth 8, measured in the same part before its runs; what it took at their \
         end stands beside it.</p>\n",
    );
    header(&[("t", "date"), ("t", "device, before and after"), ("t", "command")], out);
    for part in &report.parts {
        let cells = [("t", part.date.clone()), ("t", limits(part)), ("w", part.command.clone())];
        row(cells.map(Cell::from).into(), "", out);
    }
    out.push_str(TABLE_END);
}

#[cfg(test)]
mod tests;
