//! Everybody in turn: all first runs, then all second ones, with a line for each.

use std::path::Path;

use super::args::Args;
use super::interrupt;
use super::model::{BulkRow, BulkRun, Row, Run};
use super::peers::{Cpus, Shape};
use super::probe::{PROBE, Probe};
use super::session::Field;

/// A contender in one of its ways, with the row of what comes of its runs.
pub(crate) struct Entry<R> {
    pub(crate) peer: usize,
    pub(crate) shape: Shape,
    pub(crate) row: R,
}

/// A row that runs are added to.
pub(crate) trait Line {
    type Run;

    /// Who, and in which shape.
    fn who(&self) -> [&str; 2];

    fn add(&mut self, run: Result<Self::Run, String>);
}

macro_rules! line {
    ($row:ty, $run:ty) => {
        impl Line for $row {
            type Run = $run;

            fn who(&self) -> [&str; 2] {
                [&self.peer, &self.shape]
            }

            fn add(&mut self, run: Result<$run, String>) {
                match run {
                    Ok(run) => self.runs.push(run),
                    Err(why) => self.errors.push(why),
                }
            }
        }
    };
}

line!(Row, Run);
line!(BulkRow, BulkRun);

/// What all turns of one kind of work have in common.
pub(crate) struct Turns<'a> {
    pub(crate) args: &'a Args,
    pub(crate) cpus: Cpus,
    pub(crate) scratch: &'a Path,
    pub(crate) probe: &'a mut Probe,
    pub(crate) field: &'a mut Field,
    done: usize,
    total: usize,
}

impl<'a> Turns<'a> {
    /// For so many entries in all groups.
    pub(crate) fn new(
        args: &'a Args,
        field: &'a mut Field,
        scratch: &'a Path,
        probe: &'a mut Probe,
        entries: usize,
    ) -> Self {
        Self { args, cpus: args.layout(), scratch, probe, field, done: 0, total: entries * args.runs as usize }
    }

    /// Runs everybody in turn; the rows have what came of it, also when it is cut short. `work` says what
    /// is done, `told` what is said of a run.
    pub(crate) fn take<R: Line>(
        &mut self,
        work: &str,
        entries: &mut [Entry<R>],
        probes_us: &mut Vec<f64>,
        mut run: impl FnMut(&mut Self, &Entry<R>, &mut Vec<f64>) -> Result<R::Run, String>,
        told: impl Fn(&R::Run) -> String,
    ) -> Result<(), String> {
        probes_us.push(self.probe.measure(PROBE)?);
        for turn in 1..=self.args.runs {
            for entry in &mut *entries {
                self.done += 1;
                let [peer, shape] = entry.row.who();
                let (done, total, runs) = (self.done, self.total, self.args.runs);
                let about = format!("[{done}/{total}] {work}, run {turn} of {runs}: {peer} {shape}");
                let came = run(self, entry, probes_us);
                match &came {
                    Ok(run) => eprintln!("{about}: {}", told(run)),
                    Err(why) => {
                        interrupt::check()?;
                        eprintln!("{about}: failed: {why}");
                    }
                }
                entry.row.add(came);
            }
        }
        Ok(())
    }
}
