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

/// A row's figures over its runs: medians of each run's percentiles.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) commits_per_s: Spread,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_us: f64,
    pub(crate) repeated: u32,
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

/// The median of one figure over runs.
fn median(runs: &[&Run], figure: impl Fn(&Run) -> f64) -> f64 {
    Spread::of(runs.iter().map(|r| figure(r))).map_or(0.0, |s| s.median)
}

/// The most commits that anybody made in a group whose contender and shape pass.
fn best_of(group: &Group, may: &dyn Fn(&str, &str) -> bool) -> Option<f64> {
    let rates = group.rows.iter().filter(|r| may(&r.peer, &r.shape) && !r.runs.is_empty());
    let medians = rates.map(|r| median(&r.runs.iter().collect::<Vec<_>>(), |run| run.commits_per_s));
    medians.max_by(f64::total_cmp)
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
    let runs: Vec<&Run> = rows.iter().flat_map(|(_, r)| &r.runs).collect();
    let ratio = |may: &dyn Fn(&str, &str) -> bool| {
        let each = rows.iter().filter_map(|(g, r)| {
            let own = median(&r.runs.iter().collect::<Vec<_>>(), |run| run.commits_per_s);
            best_of(g, may).filter(|_| own > 0.0).map(|best| best / own)
        });
        Spread::of(each).map(|s| s.median)
    };
    Some(Line {
        peer: peer.to_string(),
        shape: shape.to_string(),
        commits_per_s: Spread::of(runs.iter().map(|r| r.commits_per_s))?,
        p50_us: median(&runs, |r| r.p50_us),
        p99_us: median(&runs, |r| r.p99_us),
        p999_us: median(&runs, |r| r.p999_us),
        cpu_us: median(&runs, |r| r.cpu_us_per_commit),
        repeated: runs.iter().map(|r| r.repeated).sum(),
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
            limits: vec![Limit { files: 3, mb_s: 768.0 }],
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
