//! Bulk work: so many bytes instead of so many seconds. Everybody in turn. The disk is probed when a
//! contender's nodes are ready, before the clock runs, and again at the end.

pub(crate) mod summary;
mod text;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::args::Args;
use super::interrupt;
use super::model::{BulkGroup, BulkRow, BulkRun, BulkWork, LogFiles};
use super::peers::{BULK_RECORD_BYTES, BulkJob, Cpus, Shape};
use super::probe::{PROBE, Probe, steady};
use super::session::{Field, in_folder};

pub(crate) use text::text;

/// How long the disk may take to be itself again after gigabytes were prepared or removed.
const CALM: Duration = Duration::from_secs(30);

/// A contender in one of its ways.
struct Entry {
    peer: usize,
    shape: Shape,
    row: BulkRow,
}

fn entries(field: &Field, work: BulkWork) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (n, (peer, _)) in field.peers.iter().enumerate() {
        entries.extend(peer.bulk_ways(work).into_iter().map(|way| {
            let row = BulkRow {
                peer: peer.facts().name.into(),
                shape: way.shape.to_string(),
                until: way.until.into(),
                how: way.how.into(),
                runs: Vec::new(),
                errors: Vec::new(),
            };
            Entry { peer: n, shape: way.shape, row }
        }));
    }
    entries
}

/// Measures the bulk work that is asked for. What was measured before an end was asked for is there in
/// any case.
pub(crate) fn run(
    args: &Args,
    field: &mut Field,
    scratch: &Path,
    probe: &mut Probe,
) -> (Vec<BulkGroup>, Result<(), String>) {
    let mut plans = Vec::new();
    for work in args.bulk() {
        for files in &args.log_files {
            let entries = entries(field, work);
            // Towline beside nobody who was asked for is no comparison.
            let is_wanted = |e: &Entry| args.peers.is_empty() || args.peers.contains(&e.row.peer);
            if entries.iter().any(is_wanted) {
                plans.push((work, *files, entries));
            }
        }
    }
    let total = plans.iter().map(|p| p.2.len()).sum::<usize>() * args.runs as usize;
    let mut runner = Runner { args, cpus: args.layout(), scratch, probe, field, done: 0, total };
    let mut groups = Vec::new();
    for (work, files, mut entries) in plans {
        let (bytes, record_bytes) = (args.bulk_bytes(), BULK_RECORD_BYTES);
        let mut group = BulkGroup { work, files, bytes, record_bytes, probes_us: Vec::new(), rows: Vec::new() };
        let ended = runner.turns((work, files), &mut entries, &mut group.probes_us);
        group.rows = entries.into_iter().map(|e| e.row).collect();
        groups.push(group);
        if ended.is_err() {
            return (groups, ended);
        }
    }
    (groups, Ok(()))
}

struct Runner<'a> {
    args: &'a Args,
    cpus: Cpus,
    scratch: &'a Path,
    probe: &'a mut Probe,
    field: &'a mut Field,
    done: usize,
    total: usize,
}

impl Runner<'_> {
    fn turns(
        &mut self,
        (work, files): (BulkWork, LogFiles),
        entries: &mut [Entry],
        probes_us: &mut Vec<f64>,
    ) -> Result<(), String> {
        probes_us.push(self.probe.measure(PROBE)?);
        for turn in 1..=self.args.runs {
            for entry in &mut *entries {
                self.done += 1;
                let about = format!(
                    "[{}/{}] {}, {} MiB, {}, run {turn} of {}: {} {}",
                    self.done,
                    self.total,
                    work.title(),
                    self.args.bulk_bytes() >> 20,
                    files.title(),
                    self.args.runs,
                    entry.row.peer,
                    entry.row.shape
                );
                match self.run(entry, (work, files), probes_us) {
                    Ok(run) => {
                        let (mb_s, seconds, disk) = (run.mb_s, run.seconds, run.probe_after_us);
                        eprintln!("{about}: {mb_s:.0} MB/s in {seconds:.2} s (disk {disk:.0} us)");
                        entry.row.runs.push(run);
                    }
                    Err(why) => {
                        interrupt::check()?;
                        eprintln!("{about}: failed: {why}");
                        entry.row.errors.push(why);
                    }
                }
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        entry: &Entry,
        (work, files): (BulkWork, LogFiles),
        probes_us: &mut Vec<f64>,
    ) -> Result<BulkRun, String> {
        let Self { args, cpus, scratch, probe, field, .. } = self;
        let (peer, shape, bytes) = (&mut field.peers[entry.peer].0, entry.shape, args.bulk_bytes());
        let best_us = probes_us.iter().copied().fold(f64::INFINITY, f64::min);
        let probe = RefCell::new(probe);
        let probed = steady(|| {
            let before = Cell::new(None);
            let ready = || {
                before.set(Some(probe.borrow_mut().calm(best_us, CALM)?));
                Ok(())
            };
            let sample = in_folder(scratch, |dir| {
                let sample = peer.run_bulk(&BulkJob { dir, work, files, bytes, shape, cpus, ready: &ready })?;
                // Before the files go: what that costs the disk is nobody's.
                let after = probe.borrow_mut().measure(PROBE)?;
                let before = before.get().ok_or("it did not say when it was ready")?;
                probes_us.extend([before, after]);
                Ok((sample, [before, after]))
            });
            settle(scratch)?;
            sample
        })?;
        Ok(probed.sample.into_run(probed.probes_us, probed.repeated))
    }
}

/// Waits until the file system has written down that a run's files are gone: the next run is not to pay
/// for gigabytes of the last one.
fn settle(scratch: &Path) -> Result<(), String> {
    let folder = File::open(scratch).map_err(|e| format!("opening {}: {e}", scratch.display()))?;
    // SAFETY: the descriptor is open; no memory is involved.
    if unsafe { libc::syncfs(folder.as_raw_fd()) } == 0 {
        Ok(())
    } else {
        Err(format!("syncing {}: {}", scratch.display(), std::io::Error::last_os_error()))
    }
}
