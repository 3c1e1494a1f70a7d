//! Medians and spreads of few runs, and ratios between contenders of the same part.

use super::model::{Group, Part, Report, Row, Run, Scope};

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Spread {
    /// Of the values, in any order; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (first, last) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min: first, max: last, count: values.len() })
    }
}

/// So many runs of a row that are not marked are enough to take its figures from them alone.
const ENOUGH: usize = 2;

/// The runs that a row's figures are taken from: without those under which the disk changed, if enough are left.
pub(crate) fn that_count<R>(runs: impl IntoIterator<Item = R>, is_marked: impl Fn(&R) -> bool) -> Vec<R> {
    let (marked, mut steady): (Vec<R>, Vec<R>) = runs.into_iter().partition(is_marked);
    if steady.len() < ENOUGH {
        steady.extend(marked);
    }
    steady
}

/// How many runs a row has, how many of them were repeated, and under how many the disk changed all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) count: usize,
    pub(crate) repeated: u32,
    pub(crate) marked: usize,
}

impl Runs {
    /// From each run's repeats and mark.
    pub(crate) fn of(runs: impl Iterator<Item = (u32, bool)>) -> Self {
        runs.fold(Self::default(), |all, (repeated, marked)| Self {
            count: all.count + 1,
            repeated: all.repeated + repeated,
            marked: all.marked + usize::from(marked),
        })
    }
}

/// A row's figures over its runs: medians of each run's percentiles.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) commits_per_s: Spread,
    pub(crate) p50_us: Spread,
    pub(crate) p99_us: Spread,
    pub(crate) p999_us: Spread,
    pub(crate) cpu_us: Spread,
    pub(crate) runs: Runs,
    pub(crate) ratios: Ratios,
}

/// How many times as many commits (or bytes in a second) Towline made in the same part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratios {
    /// Without a network client.
    pub(crate) embedded: Option<f64>,
    /// Over as many connections with as many records outstanding on each, by the same loop.
    pub(crate) same_shape: Option<f64>,
    /// Over a network connection, in the shape that is best for Towline.
    pub(crate) best_network: Option<f64>,
}

impl Ratios {
    /// Each to the best of Towline's rows that may be taken for it: `to_best` gets a test of a row's contender
    /// and shape.
    pub(crate) fn to(shape: &str, mut to_best: impl FnMut(&dyn Fn(&str, &str) -> bool) -> Option<f64>) -> Self {
        Self {
            embedded: to_best(&|peer, _| EMBEDDED.contains(&peer)),
            same_shape: to_best(&|peer, of| peer == SAME_LOOP && of == shape),
            best_network: to_best(&|peer, _| NETWORK.contains(&peer)),
        }
    }
}

/// One combination of scope, record size and outstanding commits, over all parts.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) scope: Scope,
    pub(crate) record_bytes: usize,
    pub(crate) outstanding: u64,
    pub(crate) lines: Vec<Line>,
    pub(crate) errors: Vec<String>,
    pub(crate) probe_us: Option<Spread>,
    /// Bytes of payload in each second that the device would take, from the parts' limits.
    pub(crate) limit_commits: Option<f64>,
}

/// The contender that is Towline without a network client, for each scope.
pub(crate) const EMBEDDED: [&str; 2] = ["towline", "towline-local"];
/// The contender that is Towline under the loop that drives every network peer.
pub(crate) const SAME_LOOP: &str = "towline-net";
/// The contenders that are Towline over a network connection: through its client, and driven as the peers are.
pub(crate) const NETWORK: [&str; 2] = ["towline-client", SAME_LOOP];

/// The median of a row's commits in each second.
fn median(row: &Row) -> Option<f64> {
    let runs = that_count(&row.runs, |r| r.disk_moved);
    Spread::of(runs.iter().map(|r| r.commits_per_s)).map(|s| s.median)
}

/// The most commits that anybody made in a group whose contender and shape pass.
fn best_of(group: &Group, may: &dyn Fn(&str, &str) -> bool) -> Option<f64> {
    group.rows.iter().filter(|r| may(&r.peer, &r.shape)).filter_map(median).max_by(f64::total_cmp)
}

/// Every combination in the document, in order; runs of several parts are pooled, ratios are not:
/// each is taken within its part, and the median of those is shown.
pub(crate) fn summaries(report: &Report) -> Vec<Summary> {
    let all: Vec<(&Part, &Group)> = report.parts.iter().flat_map(|p| p.groups.iter().map(move |g| (p, g))).collect();
    let mut keys: Vec<_> = all.iter().map(|(_, g)| (g.scope, g.record_bytes, g.outstanding)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .map(|key| {
            let groups: Vec<_> =
                all.iter().filter(|(_, g)| (g.scope, g.record_bytes, g.outstanding) == key).copied().collect();
            summary(key, &groups)
        })
        .collect()
}

fn summary((scope, record_bytes, outstanding): (Scope, usize, u64), groups: &[(&Part, &Group)]) -> Summary {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for row in groups.iter().flat_map(|(_, g)| &g.rows) {
        let name = (row.peer.as_str(), row.shape.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let lines = names.iter().filter_map(|name| line(*name, groups)).collect();
    let mut errors: Vec<String> = Vec::new();
    for row in groups.iter().flat_map(|(_, g)| &g.rows) {
        for error in &row.errors {
            let text = format!("{} {}: {error}", row.peer, row.shape);
            if !errors.contains(&text) {
                errors.push(text);
            }
        }
    }
    let limits = groups.iter().filter_map(|(p, _)| p.limits.iter().find(|l| l.files == scope.copies()));
    let limit = Spread::of(limits.map(|l| l.mb_s * 1e6 / (scope.copies() * record_bytes) as f64));
    Summary {
        scope,
        record_bytes,
        outstanding,
        lines,
        errors,
        probe_us: Spread::of(groups.iter().flat_map(|(_, g)| g.probes_us.iter().copied())),
        limit_commits: limit.map(|l| l.median),
    }
}

fn line((peer, shape): (&str, &str), groups: &[(&Part, &Group)]) -> Option<Line> {
    let is_it = |r: &&Row| r.peer == peer && r.shape == shape && !r.runs.is_empty();
    let rows: Vec<_> = groups.iter().filter_map(|(_, g)| g.rows.iter().find(is_it).map(|r| (*g, r))).collect();
    let all = || rows.iter().flat_map(|(_, r)| &r.runs);
    let runs: Vec<&Run> = that_count(all(), |r| r.disk_moved);
    let spread = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(|r| figure(r)));
    let ratio = |may: &dyn Fn(&str, &str) -> bool| {
        let each = rows.iter().filter_map(|(g, r)| {
            let own = median(r).filter(|own| *own > 0.0)?;
            best_of(g, may).map(|best| best / own)
        });
        Spread::of(each).map(|s| s.median)
    };
    Some(Line {
        peer: peer.to_string(),
        shape: shape.to_string(),
        commits_per_s: spread(|r| r.commits_per_s)?,
        p50_us: spread(|r| r.p50_us)?,
        p99_us: spread(|r| r.p99_us)?,
        p999_us: spread(|r| r.p999_us)?,
        cpu_us: spread(|r| r.cpu_us_per_commit)?,
        runs: Runs::of(all().map(|r| (r.repeated, r.disk_moved))),
        ratios: Ratios::to(shape, ratio),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::model::{FORMAT, Limit, Machine};
    use super::*;

    pub(crate) fn run(commits_per_s: f64) -> Run {
        Run {
            commits: commits_per_s as u64,
            failed: 0,
            commits_per_s,
            p50_us: 1e6 / commits_per_s,
            p90_us: 2e6 / commits_per_s,
            p99_us: 3e6 / commits_per_s,
            p999_us: 4e6 / commits_per_s,
            max_us: 5e6 / commits_per_s,
            cpu_us_per_commit: 1.5,
            client_cpu_us_per_commit: 0.5,
            probe_before_us: 100.0,
            probe_after_us: 110.0,
            repeated: 0,
            disk_moved: false,
        }
    }

    pub(crate) fn part(rates: &[(&str, &[f64])]) -> Part {
        let rows = rates.iter().map(|(peer, rates)| Row {
            peer: (*peer).to_string(),
            shape: "1x1".to_string(),
            runs: rates.iter().map(|r| run(*r)).collect(),
            errors: Vec::new(),
        });
        let machine = Machine {
            processor: "a processor".into(),
            cores: 2,
            memory_gib: 24,
            kernel: "6.18".into(),
            system: "a system".into(),
            virtualised: true,
            file_system: "ext4".into(),
        };
        Part {
            date: "2026-11-21 08:00 UTC".into(),
            command: "towline-bench compare".into(),
            machine,
            seconds: 3.0,
            warm_up_seconds: 0.5,
            pinning: "the same for all".into(),
            limits: vec![Limit { files: 3, mb_s: 768.0, after_mb_s: Some(384.0) }],
            peers: std::collections::BTreeMap::new(),
            skipped: Vec::new(),
            bulk: Vec::new(),
            groups: vec![Group {
                scope: Scope::Replicated,
                record_bytes: 256,
                outstanding: 1,
                probes_us: vec![100.0, 110.0],
                rows: rows.collect(),
            }],
        }
    }

    #[test]
    fn a_spread_is_the_median_and_both_ends() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0, count: 3 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
    }

    #[test]
    fn ratios_are_taken_within_a_part_and_runs_are_pooled() {
        let slow = part(&[("towline", &[100.0, 90.0, 110.0]), ("towline-client", &[50.0]), ("redis", &[10.0])]);
        let fast = part(&[("towline", &[400.0]), ("redis", &[20.0])]);
        let report = Report { format: FORMAT, parts: vec![slow, fast] };
        let all = summaries(&report);
        assert_eq!(all.len(), 1);
        let redis = all[0].lines.iter().find(|l| l.peer == "redis").unwrap();
        assert_eq!(redis.ratios.embedded, Some(15.0), "10x and 20x");
        assert_eq!(redis.ratios.best_network, Some(5.0), "5x in the one part that has the client");
        assert_eq!(redis.commits_per_s, Spread { median: 15.0, min: 10.0, max: 20.0, count: 2 });
        let towline = all[0].lines.iter().find(|l| l.peer == "towline").unwrap();
        assert_eq!(towline.commits_per_s.count, 4);
        assert_eq!(all[0].limit_commits, Some(1e6), "768 MB/s over three copies of 256 B");
    }

    #[test]
    fn marked_runs_are_left_out_where_enough_others_are_there() {
        let mut one = part(&[("towline", &[100.0, 900.0, 200.0]), ("redis", &[10.0, 20.0])]);
        one.groups[0].rows[0].runs[1].disk_moved = true;
        one.groups[0].rows[1].runs[0].disk_moved = true;
        let all = summaries(&Report { format: FORMAT, parts: vec![one] });
        let (towline, redis) = (&all[0].lines[0], &all[0].lines[1]);
        assert_eq!(towline.commits_per_s, Spread { median: 150.0, min: 100.0, max: 200.0, count: 2 });
        assert_eq!(towline.runs, Runs { count: 3, repeated: 0, marked: 1 });
        assert_eq!((redis.commits_per_s.median, redis.runs.marked), (15.0, 1), "one alone is not enough");
        assert_eq!(redis.ratios.embedded, Some(10.0));
    }

    #[test]
    fn the_ratio_of_the_same_shape_is_that_of_the_same_loop_over_as_many_connections() {
        let rates: [(&str, &str, &[f64]); 7] = [
            ("towline", "1x1024", &[5000.0]),
            ("towline-client", "1x1024", &[4000.0]),
            ("towline-client", "64x16", &[3000.0]),
            ("towline-net", "64x16", &[1600.0, 1400.0, 1500.0]),
            ("towline-net", "8x128", &[2000.0]),
            ("redis", "64x16", &[100.0]),
            ("other", "32x32", &[100.0]),
        ];
        let names: Vec<_> = rates.iter().map(|(peer, _, rates)| (*peer, *rates)).collect();
        let mut one = part(&names);
        one.groups[0].rows.iter_mut().zip(rates).for_each(|(row, (_, shape, _))| row.shape = shape.into());
        let all = summaries(&Report { format: FORMAT, parts: vec![one] });
        let of = |peer| all[0].lines.iter().find(|l| l.peer == peer).unwrap().ratios;
        let redis = Ratios { embedded: Some(50.0), same_shape: Some(15.0), best_network: Some(40.0) };
        assert_eq!(of("redis"), redis, "neither the client's 64x16 nor the loop's 8x128");
        assert_eq!(of("other"), Ratios { same_shape: None, ..redis }, "no other shape stands in");
    }

    #[test]
    fn a_row_without_runs_is_no_line_and_its_error_is_said_once() {
        let mut one = part(&[("towline", &[100.0]), ("kevy", &[])]);
        one.groups[0].rows[1].errors = vec!["no commit came back".into(); 3];
        let all = summaries(&Report { format: FORMAT, parts: vec![one] });
        assert_eq!(all[0].lines.len(), 1);
        assert_eq!(all[0].errors, ["kevy 1x1: no commit came back"]);
    }
}
