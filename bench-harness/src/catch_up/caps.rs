//! What a cap on catch-up is worth: commits of others under each of several caps, which take turns while one
//! replica catches up.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use towline::measure::Load;
use towline::units::{parse_size, show_size};
use towline::{Primary, SettingChange};
use towline_bench::latency::us;

use crate::cluster::of_one;
use crate::compare::stats::Spread;

/// The first of each round, to compare with: nearly no catch-up.
const LEAST: u64 = towline::limits::CATCH_UP_MAX_MIN;
/// How long each cap holds at a time.
const TURN: Duration = Duration::from_millis(250);
/// After a change: what was read under the old cap is sent, and the change is written to the device.
const SETTLES: Duration = Duration::from_millis(50);

/// A cap on catch-up, as the command line has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cap(Option<u64>);

impl std::str::FromStr for Cap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            size => parse_size(size).map(|bytes| Self(Some(bytes))).map_err(|e| e.to_string()),
        }
    }
}

/// Commits of others, and catch-up, under one cap.
#[derive(Serialize)]
pub(super) struct Capped {
    /// In bytes for each second; `None`: no cap.
    catch_up_max: Option<u64>,
    turns: usize,
    catch_up_mb_s: f64,
    commits: u64,
    p50_us: f64,
    p99_us: f64,
    /// Against the lowest cap's turn of the same round, the median of rounds: a disk's bad second is in both turns,
    /// or in few of the rounds.
    p50_ratio: f64,
    p99_ratio: f64,
}

struct Seen {
    cap: Option<u64>,
    bytes: u64,
    took: Duration,
    /// Of all turns,
    latency_ns: Histogram<u64>,
    /// and p50 and p99 of each.
    turns: Vec<[f64; 2]>,
}

impl Seen {
    /// The medians of this one's p50s and p99s, each against the other's of the same round.
    fn against(&self, other: &Self) -> [f64; 2] {
        [0, 1].map(|q| {
            let ratios = self.turns.iter().zip(&other.turns).map(|(a, b)| a[q] / b[q]);
            Spread::of(ratios).expect("both had a turn").median
        })
    }
}

/// While the replica of slot `slot` catches up and `load` runs, the lowest cap and each of `caps` hold in turn,
/// until it is there.
pub(super) fn take_turns(primary: &Primary, slot: usize, load: &Load, caps: &[Cap]) -> Result<Vec<Capped>, String> {
    let caps = [LEAST].into_iter().map(Some).chain(caps.iter().map(|c| c.0));
    let empty = Histogram::new(3).map_err(|e| e.to_string())?;
    let new = |cap| Seen { cap, bytes: 0, took: Duration::ZERO, latency_ns: empty.clone(), turns: Vec::new() };
    let mut seen: Vec<Seen> = caps.map(new).collect();
    let to = of_one(primary).appended_lsn;
    'rounds: loop {
        for s in &mut seen {
            primary.change_settings(SettingChange::CatchUpMax(s.cap), None).map_err(|e| e.to_string())?;
            std::thread::sleep(SETTLES);
            let _ = load.take_report();
            let (from, began) = (of_one(primary).slots[slot].flushed_lsn, Instant::now());
            std::thread::sleep(TURN);
            let (now, took) = (of_one(primary).slots[slot].flushed_lsn, began.elapsed());
            let report = load.take_report();
            // A turn in which it ended is no turn of this cap.
            if now >= to {
                break 'rounds;
            }
            s.turns.push([0.5, 0.99].map(|q| us(&report.latency_ns, q)));
            s.latency_ns.add(report.latency_ns).map_err(|e| e.to_string())?;
            (s.bytes, s.took) = (s.bytes + now.since(from), s.took + took);
        }
    }
    let capped = |s: &Seen| {
        let [p50_ratio, p99_ratio] = s.against(&seen[0]);
        Capped {
            catch_up_max: s.cap,
            turns: s.turns.len(),
            catch_up_mb_s: s.bytes as f64 / s.took.as_secs_f64() / 1e6,
            commits: s.latency_ns.len(),
            p50_us: us(&s.latency_ns, 0.5),
            p99_us: us(&s.latency_ns, 0.99),
            p50_ratio,
            p99_ratio,
        }
    };
    Ok(seen.iter().filter(|s| !s.turns.is_empty()).map(capped).collect())
}

/// Prints a table.
pub(super) fn print(capped: &[Capped]) {
    println!(
        "\ncap on catch-up   turns   catch-up MB/s   commits      p50 us      p99 us   against the lowest cap's, median of rounds"
    );
    for c in capped {
        let cap = c.catch_up_max.map_or_else(|| "none".into(), show_size);
        println!(
            "{cap:>15} {:>7} {:>15.1} {:>9} {:>11.0} {:>11.0}   {:>8.2} {:>8.2}",
            c.turns, c.catch_up_mb_s, c.commits, c.p50_us, c.p99_us, c.p50_ratio, c.p99_ratio
        );
    }
}
