//! `towline dump`: the batches and records of a shard's files, for people.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use thiserror::Error;
use towline::offline;
use towline::wire::BatchView;
use towline::{Lsn, OpenError, ShardId};

use crate::exit;

/// How much of a record is shown.
const SHOWN_BYTES: usize = 64;

/// Show the batches and records in a shard's files, whether the node runs or not.
///
/// A line for each batch: LSN, term, record numbers, bytes on disk, when it was closed, and what was
/// durable and committed then. Below it a line for each record: its number, its bytes, and the first
/// of them, escaped. Also shows what is not committed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  the end, or the limit, was reached, or stdout was closed
  1  the folder cannot be read, or no batch begins at the start
  2  the command line cannot be understood
  6  the log is damaged; what lies in front of it was shown")]
pub(crate) struct Args {
    /// The node's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The shard to show, counted from 0
    #[arg(long, value_name = "K")]
    shard: u32,

    /// Where to begin: an LSN at which a batch begins [default: the oldest that is kept]
    #[arg(long, value_name = "LSN")]
    start: Option<u64>,

    /// Show at most this many records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Stdout.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

/// Dumps.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut out = BufWriter::with_capacity(256 << 10, stdout);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut wrote = Ok(());
    if left == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let report = offline::read_log(&args.dir, ShardId(args.shard), args.start.map(Lsn), |batch| {
        wrote = show(&mut out, batch, &mut left);
        if wrote.is_err() || left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match wrote.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // What is still buffered has no reader.
            drop(out.into_parts());
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    }
    if let Some(damage) = report.damage {
        let (path, offset) = (damage.path.display(), damage.offset);
        exit::complain(&format!("{path} is damaged at offset {offset}: {}", damage.reason));
        return Ok(ExitCode::from(exit::DAMAGED));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(out: &mut impl Write, batch: &BatchView<'_>, left: &mut u64) -> io::Result<()> {
    let h = batch.header();
    writeln!(
        out,
        "batch lsn {} term {} seq {}..{} bytes {} time {} durable {} commit {}",
        h.lsn(),
        h.term(),
        h.first_seq(),
        h.end_seq(),
        h.disk_len(),
        utc(h.timestamp_us()),
        h.durable_lsn(),
        h.commit_lsn()
    )?;
    for (n, record) in (0..*left).zip(batch.records()) {
        let (shown, more) = match record.get(..SHOWN_BYTES) {
            Some(shown) if record.len() > SHOWN_BYTES => (shown, "..."),
            _ => (record, ""),
        };
        writeln!(out, "  seq {} bytes {} \"{}\"{more}", h.first_seq().0 + n, record.len(), shown.escape_ascii())?;
    }
    *left = left.saturating_sub(u64::from(h.record_count()));
    Ok(())
}

/// Microseconds since 1970 as a date: Howard Hinnant's `civil_from_days`.
fn utc(us: u64) -> String {
    let (days, in_day) = (us / 86_400_000_000, us % 86_400_000_000);
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (s, us) = (in_day / 1_000_000, in_day % 1_000_000);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{us:06}Z", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (us, shown) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
            (1_735_689_600_000_000, "2025-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(utc(us), shown);
        }
    }
}
