//! Makes a failing run shorter: leaves out faults, nodes, clients and appends one after the other,
//! for as long as the run still fails. What is left is replayed with the same seed and the same
//! options.

use super::plan::Less;
use super::run::{How, Ran, run};

/// The shortest run found that still fails, and how to run it.
#[must_use]
pub fn minimise(first: &Ran, how: &How) -> (How, Ran) {
    let (mut best, mut ran) = (how.clone(), first.clone());
    let mut smaller = true;
    while smaller {
        smaller = false;
        for less in candidates(&best.less, &ran) {
            let candidate = How { less, ..best.clone() };
            let tried = run(first.seed, &candidate);
            if tried.violation.is_some() && (tried.steps < ran.steps || tried.faults.len() < ran.faults.len()) {
                (best, ran) = (candidate, tried);
                smaller = true;
                break;
            }
        }
    }
    (best, ran)
}

fn candidates(less: &Less, ran: &Ran) -> Vec<Less> {
    let mut out = Vec::new();
    for fault in &ran.faults {
        let mut one = less.clone();
        one.without.push(*fault);
        out.push(one);
    }
    let appends = less.appends.unwrap_or(ran.appends);
    for part in [4, 2] {
        if appends / part > 0 {
            out.push(Less { appends: Some(appends / part), ..less.clone() });
        }
    }
    out.push(Less { appends: Some(appends * 3 / 4), ..less.clone() });
    for shards in [1, 2] {
        if less.shards.is_none_or(|now| now > shards) {
            out.push(Less { shards: Some(shards), ..less.clone() });
        }
    }
    for replicas in [1, 2] {
        if less.replicas.is_none_or(|now| now > replicas) {
            out.push(Less { replicas: Some(replicas), ..less.clone() });
        }
    }
    if less.clients.is_none_or(|now| now > 1) {
        out.push(Less { clients: Some(1), ..less.clone() });
    }
    out
}
