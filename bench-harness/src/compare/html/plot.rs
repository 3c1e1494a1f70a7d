//! Plots as SVG elements, on logarithmic axes. Colours come from the page's style sheet, so that they
//! follow light and dark.

use std::fmt::Write;

use super::super::table;
use super::escape;

pub(super) const WIDTH: f64 = 640.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 128.0;
pub(super) const TOP: f64 = 14.0;
const BOTTOM: f64 = 42.0;
/// Between two names at the right.
const NAME_GAP: f64 = 14.0;

/// A curve.
pub(super) struct Series {
    pub(super) name: String,
    /// Its colour's number.
    pub(super) colour: usize,
    pub(super) is_own: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// A logarithmic axis from pixel to pixel.
struct Axis {
    from: f64,
    to: f64,
    low: f64,
    high: f64,
}

impl Axis {
    /// Over whole powers of ten that hold all values.
    fn decades(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| *v > 0.0) {
            (low, high) = (low.min(value.log10()), high.max(value.log10()));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let (low, high) = (low.floor(), high.ceil());
        Self { from, to, low, high: if high > low { high } else { low + 1.0 } }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low as i32..=self.high as i32).map(|e| 10f64.powi(e))
    }
}

/// A tick's number: 100, 1 k, 10 M.
fn short(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{:.0} M", x / 1e6),
        x if x >= 1e3 => format!("{:.0} k", x / 1e3),
        x if x >= 1.0 => format!("{x:.0}"),
        x => format!("{x}"),
    }
}

pub(super) fn open(height: f64, label: &str) -> String {
    let label = escape(label);
    format!("<svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\"><title>{label}</title>")
}

/// Curves over the number of outstanding commits; `limit` is a horizontal line with its name.
pub(super) fn curves(label: &str, unit: &str, series: &[Series], limit: Option<(f64, &str)>) -> String {
    const HEIGHT: f64 = 380.0;
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let xs = series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let mut marks: Vec<f64> = xs.collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let (low, high) = (marks.first().map_or(0.0, |x| x.log10()), marks.last().map_or(1.0, |x| x.log10()));
    let x = Axis { from: LEFT + 10.0, to: right - 8.0, low, high: if high > low { high } else { low + 1.0 } };
    let ys = series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).chain(limit.map(|l| l.0));
    let y = Axis::decades(ys, bottom, TOP);
    let mut out = open(HEIGHT, label);
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(tick)
        );
    }
    for mark in &marks {
        let at = x.at(*mark);
        let text = table::number(*mark).replace(".00", "").replace(".0", "");
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            bottom + 17.0
        );
    }
    let middle = f64::midpoint(LEFT, right);
    let _ = write!(
        out,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">commits outstanding</text>\
         <text x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">{}</text>",
        bottom + 36.0,
        f64::midpoint(TOP, bottom),
        f64::midpoint(TOP, bottom),
        escape(unit)
    );
    if let Some((value, name)) = limit {
        let at = y.at(value);
        let _ = write!(
            out,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + 6.0,
            at - 5.0,
            escape(name)
        );
    }
    for s in series {
        let points: Vec<_> = s.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x.at(*px), y.at(*py))).collect();
        let heavy = if s.is_own { " heavy" } else { "" };
        let _ = write!(
            out,
            "<g class=\"k{}\"><polyline class=\"curve{heavy}\" points=\"{}\"/>",
            s.colour,
            points.join(" ")
        );
        for (px, py) in &s.points {
            let _ = write!(
                out,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}, {}: {}</title></circle>",
                x.at(*px),
                y.at(*py),
                escape(&s.name),
                table::number(*px),
                table::number(*py)
            );
        }
        out.push_str("</g>");
    }
    let ends: Vec<f64> = series.iter().map(|s| s.points.last().map_or(TOP, |p| y.at(p.1))).collect();
    for (s, at) in series.iter().zip(apart(&ends, NAME_GAP, TOP + 4.0, bottom)) {
        let bold = if s.is_own { " bold" } else { "" };
        let _ = write!(
            out,
            "<text class=\"name k{}{bold}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            s.colour,
            right + 6.0,
            at + 4.0,
            escape(&s.name)
        );
    }
    out.push_str("</svg>");
    out
}

/// Moves positions apart until none is nearer than `gap` to the next, within bounds if they fit.
fn apart(at: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..at.len()).collect();
    order.sort_by(|a, b| at[*a].total_cmp(&at[*b]));
    let mut out = at.to_vec();
    let mut least = low;
    for n in &order {
        out[*n] = out[*n].max(least);
        least = out[*n] + gap;
    }
    let mut most = high;
    for n in order.iter().rev() {
        out[*n] = out[*n].min(most);
        most = out[*n] - gap;
    }
    out
}

/// A contender's percentiles.
pub(super) struct Range {
    pub(super) name: String,
    pub(super) colour: usize,
    pub(super) is_own: bool,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
}

/// One line for each contender, from the median over the 99th to the 99.9th percentile.
pub(super) fn ranges(label: &str, rows: &[Range]) -> String {
    const ROW: f64 = 24.0;
    const NAMES: f64 = 150.0;
    let (right, bottom) = (WIDTH - 66.0, TOP + ROW * rows.len() as f64 + 4.0);
    let x = Axis::decades(rows.iter().flat_map(|r| [r.p50_us, r.p999_us]), NAMES, right);
    let mut out = open(bottom + 26.0, label);
    for tick in x.ticks() {
        let at = x.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 17.0,
            table::time(tick).replace(".00", "").replace(".0", "")
        );
    }
    for (n, row) in rows.iter().enumerate() {
        let at = TOP + ROW * (n as f64 + 0.5);
        let bold = if row.is_own { " bold" } else { "" };
        let (p50, p99, p999) = (x.at(row.p50_us), x.at(row.p99_us), x.at(row.p999_us));
        let _ = write!(
            out,
            "<g class=\"k{}\"><title>{}: p50 {}, p99 {}, p99.9 {}</title>\
             <text class=\"name{bold}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <line class=\"span\" x1=\"{p50:.1}\" x2=\"{p999:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <circle class=\"dot\" cx=\"{p50:.1}\" cy=\"{at:.1}\" r=\"6\"/>\
             <circle class=\"ring\" cx=\"{p99:.1}\" cy=\"{at:.1}\" r=\"4\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            row.colour,
            escape(&row.name),
            table::time(row.p50_us),
            table::time(row.p99_us),
            table::time(row.p999_us),
            NAMES - 12.0,
            at + 4.0,
            escape(&row.name),
            right + 8.0,
            at + 4.0,
            table::time(row.p50_us)
        );
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_whole_decades() {
        let axis = Axis::decades([30.0, 4000.0, 0.0].into_iter(), 0.0, 300.0);
        assert_eq!((axis.low, axis.high), (1.0, 4.0));
        assert!((axis.at(100.0) - 100.0).abs() < 1e-9);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [10.0, 100.0, 1000.0, 10_000.0]);
        let none = Axis::decades(std::iter::empty(), 0.0, 1.0);
        assert!(none.at(5.0).is_finite());
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let out = apart(&[50.0, 52.0, 10.0, 99.0, 98.0], 14.0, 0.0, 100.0);
        let mut sorted = out.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|w| w[1] - w[0] >= 14.0 - 1e-9), "{out:?}");
        assert!(sorted[4] <= 100.0);
    }
}
