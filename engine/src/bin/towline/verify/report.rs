//! What was found in a folder, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use towline::offline::{CopyState, Finding, ShardReport, VerifyReport};
use towline::units::show_size;

fn place(finding: &Finding) -> String {
    let lsn = finding.lsn.map(|lsn| format!(" (LSN {lsn})")).unwrap_or_default();
    format!("{} offset {}{lsn}: {}", finding.path.display(), finding.offset, finding.reason)
}

fn copy(state: &CopyState) -> String {
    match state {
        CopyState::Whole(generation) => format!("write {generation}"),
        CopyState::Unused => "never written".into(),
        CopyState::Bad(e) => format!("not whole: {e}"),
    }
}

pub(super) fn to_text(report: &VerifyReport) -> String {
    let mut out = String::new();
    for s in &report.shards {
        let state = if s.damage.is_some() { "DAMAGED" } else { "whole" };
        let _ = writeln!(out, "shard {}: {state}", s.shard);
        if !s.system.is_none() {
            let node = if s.name.is_empty() { "primary".into() } else { format!("replica {}", s.name) };
            let _ = writeln!(out, "  node        {node} of system {}, term {}", s.system, s.term);
            let _ = writeln!(
                out,
                "  log         LSN {}..{} ({}), {} batches, {} records, next seq {}, chain {}",
                s.oldest,
                s.end,
                show_size(s.bytes),
                s.batches,
                s.records,
                s.next_seq,
                s.chain
            );
            let _ = writeln!(out, "  committed   at least up to LSN {}", s.commit);
            let terms: Vec<String> = s.terms.iter().map(|(term, lsn)| format!("{term} from {lsn}")).collect();
            let _ = writeln!(out, "  terms       {}", if terms.is_empty() { "none".into() } else { terms.join(", ") });
            let each = show_size(s.segment_bytes);
            let _ = writeln!(out, "  segments    {} of {each}, {} spare", s.segments, s.spare_segments);
        }
        for (n, state) in s.superblock.iter().enumerate() {
            let _ = writeln!(out, "  superblock  copy {n}: {}", copy(state));
        }
        if let Some(tear) = &s.tear {
            let _ = writeln!(out, "  torn tail   {} (no damage: the next start cuts it)", place(tear));
        }
        if let Some(damage) = &s.damage {
            let _ = writeln!(out, "  damage      {}", place(damage));
        }
    }
    let damaged = report.shards.iter().filter(|s| s.damage.is_some()).count();
    let _ = match damaged {
        0 => writeln!(out, "every shard is whole: {} checked", report.shards.len()),
        _ => writeln!(out, "{damaged} of {} shards are damaged", report.shards.len()),
    };
    out
}

fn finding_json(finding: &Option<Finding>) -> Value {
    finding.as_ref().map_or(Value::Null, |f| {
        json!({
            "file": f.path.display().to_string(),
            "offset": f.offset,
            "lsn": f.lsn.map(|l| l.0),
            "reason": f.reason,
        })
    })
}

fn shard_json(s: &ShardReport) -> Value {
    json!({
        "shard": s.shard.0,
        "whole": s.damage.is_none(),
        "system": s.system.to_string(),
        "name": s.name,
        "term": s.term.0,
        "oldest_lsn": s.oldest.0,
        "end_lsn": s.end.0,
        "commit_lsn": s.commit.0,
        "next_seq": s.next_seq.0,
        "chain": s.chain.to_string(),
        "terms": s.terms.iter().map(|(term, lsn)| json!({"term": term.0, "first_lsn": lsn.0})).collect::<Vec<_>>(),
        "batches": s.batches,
        "records": s.records,
        "bytes": s.bytes,
        "segments": s.segments,
        "spare_segments": s.spare_segments,
        "segment_bytes": s.segment_bytes,
        "superblock": s.superblock.iter().map(copy).collect::<Vec<_>>(),
        "tear": finding_json(&s.tear),
        "damage": finding_json(&s.damage),
    })
}

pub(super) fn to_json(report: &VerifyReport) -> Value {
    json!({"whole": report.is_whole(), "shards": report.shards.iter().map(shard_json).collect::<Vec<_>>()})
}
