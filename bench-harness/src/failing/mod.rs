//! I/O errors on the machine, enumerated: real nodes on real files run the same workload again and again, and
//! each time another one of a node's calls to its disk fails.
//!
//! What must hold: a call that fails in a start refuses it, with a word that fits, and the next start
//! succeeds. From the first failed write or flush on nothing is acknowledged that needs that disk. Whatever was
//! acknowledged is there when the nodes start again on a disk that works. A full disk is waited for, and
//! a short write is nobody's business.

mod judge;
mod load;
mod nodes;
mod records;
mod run;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use towline::inject::{Calls, Counts, Failure, With};

use crate::jobs;
use crate::sim::handler::lock;

pub use run::{Ran, run};

/// In what ways calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sweep {
    /// With `EIO`.
    ErrorOnce,
    /// With `EIO`, and every one after it.
    ErrorForever,
    /// A write, with `ENOSPC`.
    FullOnce,
    /// A write that needs space, with `ENOSPC`, and every one after it, until there is space.
    FullForever,
    /// A write is cut short.
    ShortOnce,
    /// A write is cut short, and every one after it.
    ShortForever,
}

impl Sweep {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::ErrorOnce, Self::ErrorForever, Self::FullOnce, Self::FullForever, Self::ShortOnce, Self::ShortForever];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorOnce => "EIO, once",
            Self::ErrorForever => "EIO, for ever",
            Self::FullOnce => "ENOSPC, once",
            Self::FullForever => "ENOSPC, until there is space",
            Self::ShortOnce => "short write, once",
            Self::ShortForever => "short writes, for ever",
        }
    }

    const fn calls(self) -> Calls {
        match self {
            Self::ErrorOnce | Self::ErrorForever => Calls::All,
            Self::FullOnce => Calls::Writes,
            Self::FullForever => Calls::Growing,
            Self::ShortOnce | Self::ShortForever => Calls::Long,
        }
    }

    const fn is_forever(self) -> bool {
        matches!(self, Self::ErrorForever | Self::FullForever | Self::ShortForever)
    }

    const fn count(self, counts: &Counts) -> u64 {
        match self.calls() {
            Calls::All => counts.all,
            Calls::Writes => counts.writes,
            Calls::Growing => counts.growing,
            Calls::Long => counts.long,
        }
    }
}

/// A call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failing {
    /// How.
    pub sweep: Sweep,
    /// Whose: 0 is the primary.
    pub node: usize,
    /// Which, of those that fail in this way.
    pub at: u64,
}

impl Failing {
    pub(crate) const fn failure(self) -> Failure {
        let with = match self.sweep {
            Sweep::ErrorOnce | Sweep::ErrorForever => With::Error(libc::EIO),
            Sweep::FullOnce | Sweep::FullForever => With::Error(libc::ENOSPC),
            Sweep::ShortOnce | Sweep::ShortForever => With::Short,
        };
        Failure { of: self.sweep.calls(), at: self.at, forever: self.sweep.is_forever(), with }
    }
}

impl std::fmt::Display for Failing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let node = if self.node == 0 { "primary" } else { "replica" };
        write!(f, "{}, call {} of its kind of the {node}", self.sweep.name(), self.at)
    }
}

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Runs in each way.
    pub runs: BTreeMap<Sweep, u64>,
    /// Runs that made fewer calls than the one to fail: their number differs a little from run to run.
    pub unmet: u64,
    /// Calls of a run without a failure, of each node.
    pub calls: [Counts; 2],
    /// The sum of all runs.
    pub sum: Ran,
    /// The runs that failed, and why.
    pub failed: Vec<(Option<Failing>, String)>,
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on panics are kept and not printed, in the whole process: each is a violation of the run that
/// ends next.
pub fn record_panics() {
    std::panic::set_hook(Box::new(|info| lock(&PANICS).push(info.to_string())));
}

/// The panics since this was asked last.
pub(crate) fn take_panics() -> Vec<String> {
    std::mem::take(&mut lock(&PANICS))
}

/// Runs the workload of a seed once for each call, or for one in `step`, of each node and in each way, `jobs` at a
/// time, in folders that are made in `dir`. `progress` is told after each run: how many are done, of how many.
pub fn enumerate(dir: &Path, seed: u64, step: usize, jobs: usize, progress: impl Fn(usize, usize) + Sync) -> Found {
    let mut found = Found::default();
    match run(&dir.join("whole"), seed, 0, None) {
        Ok(ran) => found.calls = ran.calls,
        Err(violation) => {
            found.failed.push((None, violation));
            return found;
        }
    }
    let all: Vec<Failing> = Sweep::ALL
        .into_iter()
        .flat_map(|sweep| [0, 1].map(|node| (sweep, node)))
        .flat_map(|(sweep, node)| (0..sweep.count(&found.calls[node])).map(move |at| Failing { sweep, node, at }))
        .step_by(step.max(1))
        .collect();
    let out = Mutex::new(found);
    jobs::each(jobs, all.len() as u64, |job, n| {
        let failing = all[n as usize];
        let ran = run(&dir.join(format!("job-{job}")), seed, job, Some(failing));
        let mut out = lock(&out);
        *out.runs.entry(failing.sweep).or_default() += 1;
        match ran {
            Ok(ran) => {
                out.unmet += u64::from(!ran.met);
                out.sum.add(&ran);
            }
            Err(violation) => out.failed.push((Some(failing), violation)),
        }
        progress(out.runs.values().sum::<u64>() as usize, all.len());
        ControlFlow::Continue(())
    });
    let mut found = out.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.failed.sort();
    found
}
