//! Bulk work: so many bytes instead of so many seconds. Everybody in turn. The disk is probed when a
//! contender's nodes are ready, before the clock runs, and again at the end.

mod page_cache;
pub(crate) mod summary;
mod text;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::args::Args;
use super::model::{BulkGroup, BulkKind, BulkRow, BulkRun, BulkWork, LogCache};
use super::peers::{BULK_RECORD_BYTES, BulkJob};
use super::probe::{PROBE, Probe, steady};
use super::session::{Field, in_folder};
use super::turns::{Entry, Turns};

pub(crate) use text::text;

/// How long the disk may take to be itself again after gigabytes were prepared or removed.
const CALM: Duration = Duration::from_secs(30);

fn entries(field: &Field, work: BulkWork) -> Vec<Entry<BulkRow>> {
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
    for kind in args.bulk_kinds() {
        let entries = entries(field, kind.work);
        // Towline beside nobody who was asked for is no comparison.
        let is_wanted = |e: &Entry<BulkRow>| args.peers.is_empty() || args.peers.contains(&e.row.peer);
        if entries.iter().any(is_wanted) {
            plans.push((kind, entries));
        }
    }
    let mut turns = Turns::new(args, field, scratch, probe, plans.iter().map(|p| p.1.len()).sum());
    let mut groups = Vec::new();
    for (kind, mut entries) in plans {
        let (bytes, record_bytes) = (args.bulk_bytes(), BULK_RECORD_BYTES);
        let about = format!("{} MiB, {}", bytes >> 20, kind.title());
        let mut probes_us = Vec::new();
        let told = |run: &BulkRun| {
            let (mb_s, seconds, disk) = (run.mb_s, run.seconds, run.probe_after_us);
            format!("{mb_s:.0} MB/s in {seconds:.2} s (disk {disk:.0} us)")
        };
        let run = |turns: &mut Turns<'_>, entry: &Entry<BulkRow>, probes_us: &mut Vec<f64>| {
            run_one(turns, entry, kind, probes_us)
        };
        let ended = turns.take(&about, &mut entries, &mut probes_us, run, told);
        let rows = entries.into_iter().map(|e| e.row).collect();
        groups.push(BulkGroup { kind, bytes, record_bytes, probes_us, rows });
        if ended.is_err() {
            return (groups, ended);
        }
    }
    (groups, Ok(()))
}

fn run_one(
    turns: &mut Turns<'_>,
    entry: &Entry<BulkRow>,
    kind: BulkKind,
    probes_us: &mut Vec<f64>,
) -> Result<BulkRun, String> {
    let Turns { args, cpus, scratch, probe, field, .. } = turns;
    let (peer, shape, bytes) = (&mut field.peers[entry.peer].0, entry.shape, args.bulk_bytes());
    let best_us = probes_us.iter().copied().fold(f64::INFINITY, f64::min);
    let probe = RefCell::new(probe);
    let probed = steady(|| {
        let sample = in_folder(scratch, |dir| {
            let before = Cell::new(None);
            let ready = || {
                if kind.cache == LogCache::Dropped {
                    page_cache::drop_files(dir)?;
                }
                before.set(Some(probe.borrow_mut().calm(best_us, CALM)?));
                Ok(())
            };
            let sample =
                peer.run_bulk(&BulkJob { dir, work: kind.work, files: kind.files, bytes, shape, cpus, ready: &ready })?;
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
