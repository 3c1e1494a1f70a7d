//! Histograms for a terminal: one line a stage, on a common logarithmic scale.

use std::fmt::Write;

use crate::telemetry::{Percentiles, Stage, Telemetry};

/// Columns of the scale.
const COLUMNS: usize = 48;
/// The scale runs from one microsecond to ten seconds.
const DECADES: f64 = 7.0;

fn column(us: f64) -> usize {
    let at = us.max(1.0).log10() / DECADES * COLUMNS as f64;
    (at as usize).min(COLUMNS - 1)
}

/// Microseconds with a unit that fits.
fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} us"),
        us if us < 999_500.0 => format!("{:.1} ms", us / 1000.0),
        us => format!("{:.1} s", us / 1_000_000.0),
    }
}

/// A picture of each stage that has values: a line from the median to the 99.9th percentile, with a
/// mark at each of median (`o`), 99th (`+`) and 99.9th percentile (`|`).
#[must_use]
pub fn stages_picture(telemetry: &Telemetry) -> String {
    let mut out = String::new();
    let mut scale = [b' '; COLUMNS + 8];
    for (decade, name) in ["1us", "10us", "100us", "1ms", "10ms", "100ms", "1s"].iter().enumerate() {
        let at = (decade as f64 / DECADES * COLUMNS as f64) as usize;
        scale[at..at + name.len()].copy_from_slice(name.as_bytes());
    }
    let scale = String::from_utf8_lossy(&scale);
    let _ = writeln!(out, "  {:<13}{:>9}{:>9}{:>9}   {}", "stage", "p50", "p99", "p99.9", scale.trim_end());
    for stage in Stage::ALL {
        let p = Percentiles::of(telemetry.stage(*stage));
        if p.count == 0 {
            continue;
        }
        let mut line = [b' '; COLUMNS];
        let (a, b, c) = (column(p.p50_us), column(p.p99_us), column(p.p999_us));
        line[a..=c].fill(b'-');
        (line[c], line[b], line[a]) = (b'|', b'+', b'o');
        let _ = writeln!(
            out,
            "  {:<13}{:>9}{:>9}{:>9}   {}",
            stage.name(),
            time(p.p50_us),
            time(p.p99_us),
            time(p.p999_us),
            String::from_utf8_lossy(&line).trim_end()
        );
    }
    out
}
