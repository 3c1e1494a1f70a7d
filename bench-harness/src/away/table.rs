//! The report of `away` as text: a few rows of many samples, with bars.

use towline::units::show_size;

use super::{Report, Sample};

/// Rows at most.
const ROWS: usize = 24;
/// Characters of a full bar.
const BAR: u64 = 20;

pub(super) fn print(r: &Report) {
    println!("  away      written     commits/s   p99          memory       folder");
    row("before", &r.before, r);
    for part in r.samples.chunks(r.samples.len().div_ceil(ROWS)) {
        let worst = worst(part);
        row(&time(worst.seconds), &worst, r);
    }
    let lost = r.lost_after_s.map_or_else(|| "was not lost".into(), |s| format!("was lost after {}", time(s)));
    println!("cap {}; the replica's slot {lost}", show_size(r.retain_max));
    let verdict = |good: bool, words: [&'static str; 2]| words[usize::from(!good)];
    println!(
        "memory: {} at most, {} before, {} allowed: {}",
        show_size(r.rss_most),
        show_size(r.before.rss),
        show_size(r.rss_allowed),
        verdict(r.flat, ["flat", "IT GROWS"])
    );
    println!(
        "folder: {} at most, {} allowed: {}",
        show_size(r.disk_most),
        show_size(r.disk_allowed),
        verdict(r.bounded, ["bounded", "NOT BOUNDED"])
    );
}

fn time(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.2} s") } else { format!("{:.1} min", seconds / 60.0) }
}

/// A row stands for some samples: their mean rate, else the worst of them.
fn worst(part: &[Sample]) -> Sample {
    let last = part[part.len() - 1];
    part.iter().fold(
        Sample { commits_per_s: part.iter().map(|s| s.commits_per_s).sum::<f64>() / part.len() as f64, ..last },
        |all, s| Sample {
            p99_us: all.p99_us.max(s.p99_us),
            rss: all.rss.max(s.rss),
            disk: all.disk.max(s.disk),
            ..all
        },
    )
}

fn row(when: &str, s: &Sample, r: &Report) {
    let bar = |of: u64, most: u64| "#".repeat((of * BAR / most.max(1)).min(BAR) as usize);
    println!(
        "{when:>8} {:>12} {:>11.0} {:>9.1} ms {:>12} {:>12} {}",
        show_size(s.bytes),
        s.commits_per_s,
        s.p99_us / 1000.0,
        show_size(s.rss),
        show_size(s.disk),
        bar(s.disk, r.disk_allowed),
    );
}
