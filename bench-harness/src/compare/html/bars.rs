//! Bars as SVG elements, on a linear axis from zero.

use std::fmt::Write;

use super::super::stats::Spread;
use super::super::table::number;
use super::escape;
use super::plot::{TOP, WIDTH, open};

const ROW: f64 = 26.0;
const NAMES: f64 = 168.0;
const VALUES: f64 = 66.0;

/// A contender's figure.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) colour: usize,
    pub(super) is_own: bool,
    pub(super) value: Spread,
}

/// A round step that divides what is up to `most` into two to five parts.
fn step(most: f64) -> f64 {
    let decade = 10f64.powf(most.max(1e-9).log10().floor());
    let steps = [0.2, 0.5, 1.0, 2.0].map(|s| s * decade);
    steps.into_iter().find(|s| most / s <= 5.0).unwrap_or(decade)
}

/// One bar for each contender, with a line from the least to the greatest; `limit` is a vertical line with
/// its name.
pub(super) fn bars(label: &str, all: &[Bar], limit: Option<(f64, &str)>) -> String {
    let (right, bottom) = (WIDTH - VALUES, TOP + ROW * all.len() as f64 + 4.0);
    let most = all.iter().map(|b| b.value.max).chain(limit.map(|l| l.0)).fold(1.0, f64::max);
    let at = |value: f64| NAMES + value / most * (right - NAMES);
    let mut out = open(bottom + if limit.is_some() { 44.0 } else { 26.0 }, label);
    let step = step(most);
    let mut tick = 0.0;
    while tick <= most {
        let x = at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 17.0,
            number(tick).replace(".00", "").replace(".0", "")
        );
        tick += step;
    }
    for (n, bar) in all.iter().enumerate() {
        let middle = TOP + ROW * (n as f64 + 0.5);
        let bold = if bar.is_own { " bold" } else { "" };
        let Spread { median, min, max, .. } = bar.value;
        let _ = write!(
            out,
            "<g class=\"k{}\"><title>{}: {} MB/s ({} to {})</title>\
             <text class=\"name{bold}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"dot\" x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\"/>\
             <line class=\"limit\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            bar.colour,
            escape(&bar.name),
            number(median),
            number(min),
            number(max),
            NAMES - 8.0,
            middle + 4.0,
            escape(&bar.name),
            middle - 7.0,
            at(median) - NAMES,
            at(min),
            at(max),
            at(max) + 6.0,
            middle + 4.0,
            number(median)
        );
    }
    if let Some((value, name)) = limit {
        let x = at(value);
        let _ = write!(
            out,
            "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            bottom + 36.0,
            escape(name)
        );
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (most, expected) in [(1.0, 0.2), (1480.0, 500.0), (999.0, 200.0), (450.0, 100.0), (2600.0, 1000.0)] {
            assert!((step(most) - expected).abs() < 1e-6, "{most}: {}", step(most));
        }
    }
}
