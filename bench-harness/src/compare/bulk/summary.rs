//! Medians and spreads of bulk runs, and ratios between contenders of the same part.

use super::super::model::{BulkGroup, BulkKind, BulkRow, BulkRun, BulkWork, Part, Report, Scope};
use super::super::stats::{Ratios, Runs, Spread, that_count};

/// A row's figures over its runs.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) until: String,
    pub(crate) how: String,
    pub(crate) mb_s: Spread,
    /// Median seconds.
    pub(crate) seconds: f64,
    pub(crate) connected_after_s: Option<f64>,
    pub(crate) cpu_s_per_gb: Spread,
    pub(crate) runs: Runs,
    pub(crate) ratios: Ratios,
}

/// One kind of work at one size, over all parts.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) kind: BulkKind,
    pub(crate) bytes: u64,
    pub(crate) record_bytes: usize,
    pub(crate) lines: Vec<Line>,
    pub(crate) errors: Vec<String>,
    pub(crate) probe_us: Option<Spread>,
    /// A stream: what the device takes of payload, three copies at a time, in MB/s.
    pub(crate) limit_mb_s: Option<f64>,
}

/// The median of a row's MB/s.
fn median(row: &BulkRow) -> Option<f64> {
    let runs = that_count(&row.runs, |r| r.disk_moved);
    Spread::of(runs.iter().map(|r| r.mb_s)).map(|s| s.median)
}

/// The most that anybody moved in a group whose contender and shape pass.
fn best_of(group: &BulkGroup, may: &dyn Fn(&str, &str) -> bool) -> Option<f64> {
    group.rows.iter().filter(|r| may(&r.peer, &r.shape)).filter_map(median).max_by(f64::total_cmp)
}

/// Every combination in the document, in order. Runs of several parts are pooled; ratios are taken within
/// their part, and their median is shown.
pub(crate) fn summaries(report: &Report) -> Vec<Summary> {
    let all: Vec<(&Part, &BulkGroup)> = report.parts.iter().flat_map(|p| p.bulk.iter().map(move |g| (p, g))).collect();
    let key = |g: &BulkGroup| (g.kind, g.bytes, g.record_bytes);
    let mut keys: Vec<_> = all.iter().map(|(_, g)| key(g)).collect();
    keys.sort_unstable();
    keys.dedup();
    let of_key = |wanted| all.iter().filter(|(_, g)| key(g) == wanted).copied().collect::<Vec<_>>();
    keys.into_iter().map(|key| summary(key, &of_key(key))).collect()
}

/// What is compared: the kind of work, bytes of payload and of each record.
type Key = (BulkKind, u64, usize);

fn summary((kind, bytes, record_bytes): Key, groups: &[(&Part, &BulkGroup)]) -> Summary {
    let rows = || groups.iter().flat_map(|(_, g)| &g.rows);
    let (mut names, mut errors): (Vec<(&str, &str)>, Vec<String>) = (Vec::new(), Vec::new());
    for row in rows() {
        let name = (row.peer.as_str(), row.shape.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
        for error in &row.errors {
            let text = format!("{} {}: {error}", row.peer, row.shape);
            if !errors.contains(&text) {
                errors.push(text);
            }
        }
    }
    let copies = Scope::Replicated.copies();
    let limits = groups.iter().filter_map(|(p, _)| p.limits.iter().find(|l| l.files == copies));
    let limit = Spread::of(limits.map(|l| l.mb_s / copies as f64)).filter(|_| kind.work == BulkWork::Stream);
    Summary {
        kind,
        bytes,
        record_bytes,
        lines: names.iter().filter_map(|name| line(*name, groups)).collect(),
        errors,
        probe_us: Spread::of(groups.iter().flat_map(|(_, g)| g.probes_us.iter().copied())),
        limit_mb_s: limit.map(|l| l.median),
    }
}

fn line((peer, shape): (&str, &str), groups: &[(&Part, &BulkGroup)]) -> Option<Line> {
    let is_it = |r: &&BulkRow| r.peer == peer && r.shape == shape && !r.runs.is_empty();
    let rows: Vec<_> = groups.iter().filter_map(|(_, g)| g.rows.iter().find(is_it).map(|r| (*g, r))).collect();
    let all = || rows.iter().flat_map(|(_, r)| &r.runs);
    let runs: Vec<&BulkRun> = that_count(all(), |r| r.disk_moved);
    let ratio = |may: &dyn Fn(&str, &str) -> bool| {
        let each = rows.iter().filter_map(|(g, r)| {
            let own = median(r).filter(|own| *own > 0.0)?;
            best_of(g, may).map(|best| best / own)
        });
        Spread::of(each).map(|s| s.median)
    };
    let (_, first) = rows.first()?;
    Some(Line {
        peer: peer.into(),
        shape: shape.into(),
        until: first.until.clone(),
        how: first.how.clone(),
        mb_s: Spread::of(runs.iter().map(|r| r.mb_s))?,
        seconds: Spread::of(runs.iter().map(|r| r.seconds))?.median,
        connected_after_s: Spread::of(runs.iter().filter_map(|r| r.connected_after_s)).map(|s| s.median),
        cpu_s_per_gb: Spread::of(runs.iter().map(|r| r.cpu_s_per_gb))?,
        runs: Runs::of(all().map(|r| (r.repeated, r.disk_moved))),
        ratios: Ratios::to(shape, ratio),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::super::model::{FORMAT, LogCache, LogFiles};
    use super::super::super::stats::tests::part;
    use super::*;

    pub(crate) fn row(peer: &str, mb_s: &[f64], connected_after_s: Option<f64>) -> BulkRow {
        let run = |mb_s: &f64| BulkRun {
            bytes: 1 << 30,
            seconds: 1073.742 / mb_s,
            mb_s: *mb_s,
            connected_after_s,
            cpu_s_per_gb: 2.5,
            probe_before_us: 20.0,
            probe_after_us: 21.0,
            repeated: 0,
            disk_moved: false,
        };
        BulkRow {
            peer: peer.into(),
            shape: "1x512".into(),
            until: "on <all> nodes".into(),
            how: "somehow".into(),
            runs: mb_s.iter().map(run).collect(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn group(work: BulkWork, rows: Vec<BulkRow>) -> BulkGroup {
        BulkGroup {
            kind: BulkKind { work, files: LogFiles::Written, cache: LogCache::Kept },
            bytes: 1 << 30,
            record_bytes: 16_384,
            probes_us: vec![20.0, 21.0],
            rows,
        }
    }

    #[test]
    fn work_is_kept_apart_and_ratios_are_to_the_best_of_towlines_ways_in_the_same_part() {
        let mut one = part(&[]);
        let stream = vec![
            row("towline", &[1200.0], None),
            row("towline-net", &[900.0], None),
            row("towline-client", &[600.0], None),
        ];
        let stream = stream.into_iter().chain([row("postgres", &[100.0, 300.0, 200.0], None)]).collect();
        let catch_up = vec![row("towline", &[1500.0], Some(0.1)), row("postgres", &[300.0], Some(0.5))];
        one.bulk = vec![group(BulkWork::CatchUp, catch_up), group(BulkWork::Stream, stream)];
        let mut other = part(&[]);
        other.bulk =
            vec![group(BulkWork::Stream, vec![row("towline", &[400.0], None), row("postgres", &[100.0], None)])];
        let mut new = one.bulk[0].clone();
        new.kind.files = LogFiles::New;
        one.bulk.push(new);
        let mut cold = one.bulk[0].clone();
        cold.kind.cache = LogCache::Dropped;
        one.bulk.push(cold);
        let all = summaries(&Report { format: FORMAT, parts: vec![one, other] });
        let kinds: Vec<_> = all.iter().map(|s| (s.kind.files.name(), s.kind.cache.name())).collect();
        assert_eq!(kinds, [("written", "kept"), ("written", "kept"), ("written", "dropped"), ("new", "kept")]);
        let all = &all[..2];
        assert_eq!(all.iter().map(|s| s.kind.work).collect::<Vec<_>>(), BulkWork::ALL);
        let postgres = |n: usize| all[n].lines.iter().find(|l| l.peer == "postgres").unwrap();
        let ratios = postgres(0).ratios;
        assert_eq!((ratios.embedded, ratios.best_network), (Some(5.0), Some(4.5)), "6x and 4x; 4.5x over a network");
        assert_eq!((postgres(0).mb_s.median, postgres(0).mb_s.count), (150.0, 4));
        let ratios = postgres(1).ratios;
        assert_eq!((ratios.embedded, ratios.best_network, ratios.same_shape), (Some(5.0), None, None));
        assert_eq!(postgres(1).connected_after_s, Some(0.5));
        assert_eq!((all[0].limit_mb_s, all[1].limit_mb_s), (Some(256.0), None), "three copies of 768 MB/s");
    }

    #[test]
    fn a_row_without_runs_is_no_line_and_its_error_is_said_once() {
        let mut one = part(&[]);
        let mut failed = row("redis", &[], None);
        failed.errors = vec!["no commit came back".into(); 3];
        one.bulk = vec![group(BulkWork::Stream, vec![row("towline", &[1.0], None), failed])];
        let all = summaries(&Report { format: FORMAT, parts: vec![one] });
        assert_eq!(
            (all[0].lines.len(), &all[0].errors[..]),
            (1, &["redis 1x512: no commit came back".to_string()][..])
        );
    }
}
