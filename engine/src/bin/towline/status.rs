//! `towline status`: how a node and its shards are.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;
use thiserror::Error;
use towline::client;
use towline::units::show_size;

use crate::exit;

/// Show how a node, its shards and its replicas are.
///
/// Positions are LSNs: bytes from the start of a shard's log. "uncommitted" is what is appended and
/// not committed yet; "lag" is what a replica has not flushed yet. A replica that "catches up" is sent
/// what is no more in memory, from disk. A replica that is "down" counts
/// for no commit policy until it has caught up; one that is "lost" needs its slot made anew. "held by"
/// says what keeps the oldest log from being used again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  the node answered
  1  stdout is at fault, or the answer is no status
  2  the command line cannot be understood
  4  refused by the node
  5  the connection could not be opened or was lost")]
pub(crate) struct Args {
    /// The node's address, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    at: String,

    /// The whole status as the node gives it, for programs
    #[arg(long)]
    json: bool,
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
    /// The node's answer is not JSON.
    #[error("the node's status is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Asks and prints.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let document = match client::status(&args.at) {
        Ok(document) => document,
        Err(error) => return Ok(exit::give_up(&error)),
    };
    let text = if args.json { format!("{}\n", document.trim_end()) } else { show(&serde_json::from_str(&document)?) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A table whose columns are as wide as their widest cell; the first ones are text, the others
/// numbers.
struct Table {
    texts: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(texts: usize, head: &[&str]) -> Self {
        Self { texts, rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Nothing if there is only a head.
    fn write(&self, out: &mut String) {
        if self.rows.len() < 2 {
            return;
        }
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        out.push('\n');
        for row in &self.rows {
            let mut line = String::new();
            for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if c == 0 { "" } else { "  " };
                let padding = " ".repeat(width - cell.chars().count());
                let (before, behind) = if c < self.texts { ("", &padding[..]) } else { (&padding[..], "") };
                line.extend([gap, before, cell, behind]);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// A field's text; a dash if it is missing. Control characters do not reach the terminal.
pub(crate) fn text(of: &Value, key: &str) -> String {
    match &of[key] {
        Value::Null => "-".to_owned(),
        Value::String(s) if s.is_empty() => "-".to_owned(),
        Value::String(s) => s.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        other => other.to_string(),
    }
}

fn or_dash<T>(value: Option<T>, shown: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shown)
}

fn size(of: &Value, key: &str) -> String {
    or_dash(of[key].as_u64(), show_size)
}

/// Bytes from one position to a later one.
fn distance(of: &Value, from: &str, to: &str) -> String {
    or_dash(of[from].as_u64().zip(of[to].as_u64()), |(from, to)| show_size(to.saturating_sub(from)))
}

fn ms(of: &Value, key: &str) -> String {
    or_dash(of[key].as_f64(), |ms| format!("{ms:.1} ms"))
}

fn us_as_ms(of: &Value, key: &str) -> String {
    or_dash(of[key].as_f64(), |us| format!("{:.3} ms", us / 1000.0))
}

pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, m) => format!("{m} min {} s", whole % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// A counter, in bytes if its name says so.
fn counter(name: &str, value: &Value) -> String {
    match value.as_u64() {
        Some(bytes) if name.ends_with("bytes") => format!("{bytes} ({})", show_size(bytes)),
        _ => value.to_string(),
    }
}

pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The configured replicas.
fn names(node: &Value) -> String {
    let names: Vec<String> =
        items(&node["replicas"]).iter().map(|r| r.as_str().map_or_else(|| r.to_string(), str::to_owned)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    clean(&names)
}

/// What the write gate asks for, and whether it is shut somewhere.
fn gate(status: &Value) -> String {
    let settings = &status["node"]["settings"];
    let wanted = settings["min_replicas"].as_u64().unwrap_or(0);
    if wanted == 0 {
        return String::new();
    }
    let shut: Vec<String> = items(&status["shards"])
        .iter()
        .filter(|s| s["too_few_fresh"].as_bool() == Some(true))
        .map(|s| text(s, "shard"))
        .collect();
    let age = or_dash(settings["min_replicas_age_ms"].as_f64(), |ms| duration(ms / 1000.0));
    let state =
        if shut.is_empty() { "open".into() } else { format!("APPENDS ARE REFUSED on shards {}", shut.join(", ")) };
    format!(", min-replicas {wanted} within {age}: {state}")
}

/// The settings of a primary, one in a line, named as `towline ctl` names them.
pub(crate) fn settings(node: &Value) -> String {
    let s = &node["settings"];
    let cap = s["retain_max"].as_u64().map_or_else(|| text(s, "retain_max"), show_size);
    let time = |key: &str| s[key].as_f64().map_or_else(|| "none".to_owned(), |ms| duration(ms / 1000.0));
    let bytes = |key: &str| s[key].as_u64().map_or_else(|| "none".to_owned(), show_size);
    let deadline =
        or_dash(s["deadline_ms"].as_f64(), |ms| if ms < 1000.0 { format!("{ms} ms") } else { duration(ms / 1000.0) });
    let mut out = String::new();
    for (label, shown) in [
        ("version", text(s, "version")),
        ("replicas", names(node)),
        ("commit", text(node, "policy")),
        ("deadline", deadline),
        ("retain-max", cap),
        ("slot-idle-max", time("slot_idle_max_ms")),
        ("min-replicas", text(s, "min_replicas")),
        ("min-replicas-age", time("min_replicas_age_ms")),
        ("catch-up-max", bytes("catch_up_max")),
        ("link-window", bytes("link_window_bytes")),
        ("lag-target", bytes("lag_target_bytes")),
    ] {
        out.push_str(&format!("{label:<17} {shown}\n"));
    }
    out
}

fn show(status: &Value) -> String {
    let node = &status["node"];
    let mut out = String::new();
    for (label, shown) in [
        ("role", text(node, "role")),
        ("name", text(node, "name")),
        ("system", text(node, "system")),
        ("version", text(node, "version")),
        ("up", or_dash(node["uptime_s"].as_f64(), duration)),
        ("policy", text(node, "policy")),
        ("replicas", names(node)),
    ] {
        out.push_str(&format!("{label:<9} {shown}\n"));
    }
    if node["settings"].is_object() {
        out.push_str(&format!("{:<9} version {}{}\n", "settings", text(&node["settings"], "version"), gate(status)));
    }

    let mut shards = Table::new(
        2,
        &["SHARD", "STATE", "TERM", "RECORDS", "KEPT", "APPENDED", "DURABLE", "COMMIT", "APPLIED", "UNCOMMITTED"],
    );
    let mut slots = Table::new(
        3,
        &[
            "SHARD",
            "REPLICA",
            "STATE",
            "SENT",
            "RECEIVED",
            "FLUSHED",
            "APPLIED",
            "LAG",
            "LAG RECORDS",
            "LAG TIME",
            "CONNECTS",
        ],
    );
    let mut held = Table::new(2, &["SHARD", "HELD BY", "KEPT", "CAP"]);
    let mut kept = Table::new(5, &["SHARD", "SLOT", "KIND", "LOST", "WITHOUT A LINK", "RESTART", "BELOW", "HOLDS"]);
    let mut quorum = Table::new(1, &["SHARD", "QUORUM LAG", "TARGET", "HELD BACK"]);
    let mut packed = Table::new(1, &["SHARD", "COMPRESSED", "SENT AS", "RATIO"]);
    let mut behind = Table::new(2, &["SHARD", "CATCHES UP", "BEHIND", "RATE", "DONE", "TIME LEFT"]);
    let mut links = Table::new(5, &["SHARD", "LAG", "HEARD", "DEPTH", "LINK TO THE PRIMARY"]);
    let mut own = Table::new(2, &["SHARD", "BEHIND", "DONE", "OF", "SPEED", "TIME LEFT"]);
    let mut snapshots = Table::new(2, &["SHARD", "SNAPSHOT", "DONE", "OF", "SPEED", "TIME LEFT"]);
    let mut stages = Table::new(2, &["SHARD", "STAGE", "COUNT", "P50", "P90", "P99", "P99.9", "MAX"]);
    let mut counters = Table::new(2, &["SHARD", "COUNTER", "VALUE"]);
    for shard in items(&status["shards"]) {
        let number = text(shard, "shard");
        shards.row(vec![
            number.clone(),
            text(shard, "state"),
            text(shard, "term"),
            text(shard, "tail_seq"),
            distance(shard, "oldest_lsn", "appended_lsn"),
            text(shard, "appended_lsn"),
            text(shard, "durable_lsn"),
            text(shard, "commit_lsn"),
            text(shard, "applied_lsn"),
            distance(shard, "commit_lsn", "appended_lsn"),
        ]);
        if shard["link"].as_str().is_some_and(|link| !link.is_empty()) {
            let heard = or_dash(shard["heard_ms"].as_f64(), |ms| duration(ms / 1000.0));
            let row = vec![number.clone(), size(shard, "lag_bytes"), heard, text(shard, "depth"), text(shard, "link")];
            links.row(row);
        }
        let here = &shard["catch_up"];
        if here.is_object() {
            own.row(progress(&number, text(here, "state"), here));
        }
        if shard["snapshot"].is_object() {
            snapshots.row(progress(&number, "taken".to_owned(), &shard["snapshot"]));
        }
        if shard["held_by"].is_string() {
            let cap = match shard["retention_cap_bytes"].as_u64() {
                Some(0) | None => "-".to_owned(),
                Some(cap) => show_size(cap),
            };
            held.row(vec![number.clone(), text(shard, "held_by"), size(shard, "retained_bytes"), cap]);
        }
        if shard["lag_target_bytes"].as_u64().is_some_and(|target| target > 0) {
            let now = or_dash(shard["throttle_us"].as_f64(), |us| format!("{:.1} ms", us / 1000.0));
            let lag = size(shard, "quorum_lag_bytes");
            quorum.row(vec![number.clone(), lag, size(shard, "lag_target_bytes"), now]);
        }
        if let Some(ratio) = shard["packed_ratio"].as_f64().filter(|ratio| *ratio > 0.0) {
            let of = &shard["counters"];
            let (from, to) = (size(of, "packed_from_bytes"), size(of, "packed_to_bytes"));
            packed.row(vec![number.clone(), from, to, format!("{ratio:.2}")]);
        }
        for slot in items(&shard["slots"]) {
            let mut row = vec![number.clone()];
            row.extend(
                ["name", "state", "sent_lsn", "received_lsn", "flushed_lsn", "applied_lsn"].map(|key| text(slot, key)),
            );
            row.extend([
                size(slot, "lag_bytes"),
                text(slot, "lag_records"),
                ms(slot, "lag_ms"),
                text(slot, "connects"),
            ]);
            slots.row(row);
            if slot["catch_up"].is_object() {
                behind.row(catch_up(number.clone(), slot));
            }
            if slot["snapshot"].is_object() {
                snapshots.row(progress(&number, format!("for {}", text(slot, "name")), &slot["snapshot"]));
            }
            if slot["kind"].is_string() {
                let idle = match slot["idle_ms"].as_u64() {
                    Some(0) | None => "-".to_owned(),
                    Some(ms) => duration(ms as f64 / 1000.0),
                };
                let mut row = vec![number.clone(), text(slot, "name"), text(slot, "kind"), text(slot, "lost"), idle];
                row.extend([text(slot, "restart_lsn"), text(slot, "below_lsn"), size(slot, "retained_bytes")]);
                kept.row(row);
            }
        }
        for (name, stage) in shard["stages"].as_object().into_iter().flatten() {
            let mut row = vec![number.clone(), clean(name), text(stage, "count")];
            row.extend(["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(|key| us_as_ms(stage, key)));
            stages.row(row);
        }
        for (name, value) in shard["counters"].as_object().into_iter().flatten() {
            counters.row(vec![number.clone(), clean(name), counter(name, value)]);
        }
    }
    for table in [shards, held, quorum, slots, behind, snapshots, kept, links, own, packed, stages, counters] {
        table.write(&mut out);
    }
    out
}

/// How much of something is done.
fn progress(shard: &str, what: String, of: &Value) -> Vec<String> {
    vec![
        shard.to_owned(),
        what,
        size(of, "done_bytes"),
        size(of, "total_bytes"),
        or_dash(of["bytes_per_s"].as_f64(), |b| format!("{:.1} MB/s", b / 1e6)),
        or_dash(of["eta_s"].as_f64(), duration),
    ]
}

/// One replica that catches up.
fn catch_up(shard: String, slot: &Value) -> Vec<String> {
    let of = &slot["catch_up"];
    let rate = match of["bytes_per_s"].as_u64() {
        Some(0) | None => "-".to_owned(),
        Some(rate) => format!("{}/s", show_size(rate)),
    };
    let done = or_dash(of["percent"].as_f64(), |percent| format!("{percent:.1} %"));
    let left = or_dash(of["left_ms"].as_u64(), |ms| duration(ms as f64 / 1000.0));
    vec![shard, text(slot, "name"), size(slot, "lag_bytes"), rate, done, left]
}

fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{
      "node":{"role":"primary","name":"","system":"0707","version":"0.1.0","uptime_s":3725.5,
        "policy":"ack_n=2:flushed","replicas":["r1","r2"]},
      "shards":[{"shard":0,"state":"running","term":3,"oldest_lsn":0,"appended_lsn":3145728,"durable_lsn":3141632,
        "commit_lsn":2097152,"applied_lsn":2097152,"tail_seq":1000,
        "slots":[{"name":"r1","state":"live","sent_lsn":3145728,"received_lsn":3145728,"flushed_lsn":2097152,
          "applied_lsn":2097152,"lag_bytes":1048576,"lag_records":12,"lag_ms":1.25,"connects":1}],
        "counters":{"records":1000,"payload_bytes":2097152},
        "stages":{"commit":{"count":1000,"p50_us":310.0,"p90_us":400.0,"p99_us":1500.0,"p999_us":2000.0,"max_us":9000.5}},
        "added later":{"x":[1]}}]}"#;

    #[test]
    fn a_full_status_is_shown_with_units() {
        let shown = show(&serde_json::from_str(FULL).unwrap());
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[..3], ["role      primary", "name      -", "system    0707"]);
        assert_eq!(lines[4..7], ["up        1 h 2 min", "policy    ack_n=2:flushed", "replicas  r1, r2"]);
        let expected = "\
SHARD  STATE    TERM  RECORDS     KEPT  APPENDED  DURABLE   COMMIT  APPLIED  UNCOMMITTED
0      running     3     1000  3.0 MiB   3145728  3141632  2097152  2097152      1.0 MiB

SHARD  REPLICA  STATE     SENT  RECEIVED  FLUSHED  APPLIED      LAG  LAG RECORDS  LAG TIME  CONNECTS
0      r1       live   3145728   3145728  2097152  2097152  1.0 MiB           12    1.2 ms         1

SHARD  STAGE   COUNT       P50       P90       P99     P99.9       MAX
0      commit   1000  0.310 ms  0.400 ms  1.500 ms  2.000 ms  9.001 ms

SHARD  COUNTER                    VALUE
0      payload_bytes  2097152 (2.0 MiB)
0      records                     1000
";
        assert_eq!(shown.split_once("\n\n").unwrap().1, expected);
    }

    #[test]
    fn a_replica_says_whom_it_follows_and_how_far_behind_it_is() {
        let status = serde_json::json!({"shards": [{"shard": 0, "link": "following 10.0.0.1:7401", "lag_bytes": 8192,
            "heard_ms": 1500.0, "depth": 2}]});
        let shown = show(&status);
        let expected = "SHARD  LAG      HEARD  DEPTH  LINK TO THE PRIMARY\n0      8.0 KiB  1.5 s  2      following 10.0.0.1:7401\n";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn the_lag_of_the_quorum_is_shown_where_it_has_a_target() {
        let status = serde_json::json!({"shards": [
            {"shard": 0, "quorum_lag_bytes": 3 << 20, "lag_target_bytes": 2 << 20, "throttle_us": 25_000},
            {"shard": 1, "quorum_lag_bytes": 3 << 20, "lag_target_bytes": 0, "throttle_us": 0}]});
        let expected = "\
SHARD  QUORUM LAG   TARGET  HELD BACK
0         3.0 MiB  2.0 MiB    25.0 ms

";
        let shown = show(&status) + "\n";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn what_was_compressed_is_shown_with_its_ratio() {
        let status = serde_json::json!({"shards": [{"shard": 1, "packed_ratio": 2.5,
            "counters": {"packed_from_bytes": 5 << 20, "packed_to_bytes": 2 << 20}}, {"shard": 2, "packed_ratio": 0.0}]});
        let expected = "\
SHARD  COMPRESSED  SENT AS  RATIO
1         5.0 MiB  2.0 MiB   2.50

";
        let shown = show(&status);
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn who_catches_up_is_shown_with_its_rate_and_the_time_that_is_left() {
        let status = serde_json::json!({"shards": [{"shard": 3, "slots": [
            {"name": "r1", "state": "live", "catch_up": null},
            {"name": "r2", "state": "catch-up", "lag_bytes": 3 << 20,
                "catch_up": {"bytes_per_s": 2 << 20, "percent": 66.666, "left_ms": 61_500}},
            {"name": "r3", "state": "catch-up", "lag_bytes": 1 << 30,
                "catch_up": {"bytes_per_s": 0, "percent": 0.0, "left_ms": null}}]}]});
        let expected = "\
SHARD  CATCHES UP   BEHIND       RATE    DONE  TIME LEFT
3      r2          3.0 MiB  2.0 MiB/s  66.7 %  1 min 1 s
3      r3          1.0 GiB          -   0.0 %          -
";
        let shown = show(&status);
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn a_replica_that_catches_up_says_how_far_it_is_and_how_long_it_takes() {
        let status = serde_json::json!({"shards": [{"shard": 0, "catch_up": {"state": "bootstrap",
            "done_bytes": 1 << 20, "total_bytes": 4 << 20, "bytes_per_s": 1_048_576, "eta_s": 3.0}}]});
        let expected = "SHARD  BEHIND        DONE       OF     SPEED  TIME LEFT\n0      bootstrap  1.0 MiB  4.0 MiB  1.0 MB/s      3.0 s\n";
        let shown = show(&status);
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn a_snapshot_is_shown_on_both_sides_and_a_length_that_is_not_known_is_a_dash() {
        let status = serde_json::json!({"shards": [
            {"shard": 0, "snapshot": {"done_bytes": 1 << 20, "total_bytes": null, "bytes_per_s": 0, "eta_s": null}},
            {"shard": 1, "slots": [{"name": "r1", "snapshot":
                {"done_bytes": 1 << 20, "total_bytes": 4 << 20, "bytes_per_s": 1_048_576, "eta_s": 3.0}}]}]});
        let expected = "\
SHARD  SNAPSHOT     DONE       OF     SPEED  TIME LEFT
0      taken     1.0 MiB        -  0.0 MB/s          -
1      for r1    1.0 MiB  4.0 MiB  1.0 MB/s      3.0 s
";
        let shown = show(&status);
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn what_slots_hold_and_which_are_lost_is_shown() {
        let status = serde_json::json!({"shards": [{"shard": 0, "held_by": "slot r1", "retained_bytes": 8192,
            "retention_cap_bytes": 1 << 20, "slots": [
            {"name": "r1", "kind": "configured", "state": "down", "lost": "", "restart_lsn": 4096, "below_lsn": 1024, "retained_bytes": 8192,
                "idle_ms": 61_000},
            {"name": "x", "kind": "made", "state": "lost", "lost": "retention cap", "restart_lsn": 0,
                "retained_bytes": 12288, "idle_ms": 0}]}]});
        let shown = show(&status);
        let expected = "\
SHARD  HELD BY     KEPT      CAP
0      slot r1  8.0 KiB  1.0 MiB
";
        assert!(shown.contains(expected), "{shown}");
        let expected = "\
SHARD  SLOT  KIND        LOST           WITHOUT A LINK  RESTART  BELOW     HOLDS
0      r1    configured  -              1 min 1 s          4096   1024   8.0 KiB
0      x     made        retention cap  -                     0      -  12.0 KiB
";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn what_is_missing_is_a_dash_and_nothing_panics() {
        for document in [
            "{}",
            "null",
            "[]",
            r#"{"node":3,"shards":{}}"#,
            r#"{"node":{"replicas":[1,null]},"shards":[null,{},{"slots":[{}],"stages":{"x":null},"counters":{"y":"z"}}]}"#,
        ] {
            let shown = show(&serde_json::from_str(document).unwrap());
            assert!(shown.starts_with("role      -\n"), "{document}: {shown}");
        }
    }

    #[test]
    fn control_characters_stay_off_the_terminal() {
        let status = serde_json::json!({"node": {"name": "\u{1b}[2J", "replicas": ["\u{7}"]},
            "shards": [{"state": "\u{1b}", "counters": {"\u{1b}": 1}, "slots": [{"name": "a\nb"}]}]});
        assert!(show(&status).chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn durations() {
        for (seconds, shown) in [(1.0, "1.0 s"), (61.9, "1 min 1 s"), (7_260.0, "2 h 1 min"), (90_000.0, "1 d 1 h")] {
            assert_eq!(duration(seconds), shown);
        }
    }
}
