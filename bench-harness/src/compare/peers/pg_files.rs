//! PostgreSQL's WAL files written beforehand: what a server has that has run for some time and uses its old
//! files again.

use std::cell::Cell;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::super::interrupt;
use super::Job;
use super::postgres::Postgres;

/// Bytes of a WAL file, as `initdb` has it by default.
pub(super) const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes of a page in it.
const PAGE_BYTES: usize = 8192;
/// As many bytes as Towline's segments, whatever a run writes.
const LEAST_BYTES: u64 = 512 << 20;

/// The name of a WAL file of the first timeline.
fn segment_name(number: u64) -> String {
    let of_each = (1 << 32) / SEGMENT_BYTES;
    format!("{:08X}{:08X}{:08X}", 1, number / of_each, number % of_each)
}

/// Whether a file is a WAL file other than the first one, which belongs to a new server.
fn is_later_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit()) && name > segment_name(1).as_str()
}

/// Bytes of WAL files that one run of commits is given: more than PostgreSQL has been seen to write.
pub(super) fn bytes_of(job: &Job<'_>) -> u64 {
    let bytes_per_s = if job.record_bytes < 1024 { 384e6 } else { 640e6 };
    (((job.warm_up + job.measure).as_secs_f64() * bytes_per_s) as u64).max(LEAST_BYTES)
}

/// Makes a WAL file that is to be used later. It looks like a recycled one: the server opens what has
/// the name that it needs, and overwrites it.
fn write_segment(of: &Postgres, path: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("writing {}: {e}", path.display());
    std::fs::write(path, vec![0; SEGMENT_BYTES as usize]).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    File::open(path).and_then(|f| f.sync_all()).map_err(failed)?;
    of.give(path)
}

/// Makes WAL files of zeros for so many bytes in a new server's `pg_wal`, under the names that it comes to.
pub(super) fn write(of: &Postgres, pg_wal: &Path, bytes: u64) -> Result<(), String> {
    for number in later(bytes) {
        interrupt::check()?;
        write_segment(of, &pg_wal.join(segment_name(number)))?;
    }
    Ok(())
}

/// The numbers of WAL files for so many bytes. The first one is there and in use.
fn later(bytes: u64) -> impl Iterator<Item = u64> {
    2..=1 + bytes.div_ceil(SEGMENT_BYTES)
}

/// Makes a used WAL file one that holds nothing: without its first page nothing behind that is read. A
/// standby would otherwise find what a former run of the same system has written under the same name.
fn blank(path: &Path) -> Result<(), String> {
    let file = OpenOptions::new().write(true).open(path);
    let blanked = file.and_then(|f| f.write_all_at(&[0; PAGE_BYTES], 0).and_then(|()| f.sync_data()));
    blanked.map_err(|e| format!("writing {}: {e}", path.display()))
}

/// WAL files that wait for the next run, so that each is written with zeros once only.
#[derive(Debug, Default)]
pub(super) struct Pool {
    folder: PathBuf,
    /// Whose files these are, and how many there have been.
    owner: &'static str,
    count: Cell<u64>,
}

impl Pool {
    /// In a folder that others may use too.
    pub(super) fn new(folder: PathBuf, owner: &'static str) -> Self {
        Self { folder, owner, count: Cell::new(0) }
    }

    /// Files that wait.
    fn waiting(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    }

    /// As [`write`], with the files that wait.
    pub(super) fn fill(&self, of: &Postgres, pg_wal: &Path, bytes: u64) -> Result<(), String> {
        let mut waiting = self.waiting();
        for number in later(bytes) {
            interrupt::check()?;
            let path = pg_wal.join(segment_name(number));
            let Some(old) = waiting.pop() else {
                write_segment(of, &path)?;
                continue;
            };
            blank(&old)?;
            std::fs::rename(&old, &path).map_err(|e| format!("moving {}: {e}", old.display()))?;
        }
        Ok(())
    }

    /// Takes the files of a server that has ended. What cannot be had is written anew the next time.
    pub(super) fn take(&self, pg_wal: &Path) {
        for entry in std::fs::read_dir(pg_wal).into_iter().flatten().flatten() {
            let is_whole = entry.metadata().is_ok_and(|m| m.len() == SEGMENT_BYTES);
            if is_whole && entry.file_name().to_str().is_some_and(is_later_segment) {
                let to = self.folder.join(format!("{}-{}", self.owner, self.count.get()));
                self.count.set(self.count.get() + 1);
                let _ = std::fs::rename(entry.path(), to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_files_have_the_names_that_the_server_comes_to() {
        assert_eq!(segment_name(2), "000000010000000000000002");
        assert_eq!(segment_name(255), "0000000100000000000000FF");
        assert_eq!(segment_name(256), "000000010000000100000000");
        assert!(is_later_segment(&segment_name(2)) && !is_later_segment(&segment_name(1)));
        assert!(!is_later_segment("archive_status") && !is_later_segment("xlogtemp.123"));
    }

    #[test]
    fn used_files_come_back_blank_and_are_not_written_again() {
        let dir = std::env::temp_dir().join(format!("towline-compare-wal-{}", std::process::id()));
        let (pool, wal) = (dir.join("pool"), dir.join("pg_wal"));
        for folder in [&pool, &wal] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let (of, pool) = (Postgres::messages(), Pool::new(pool, "postgres"));
        pool.fill(&of, &wal, 2 * SEGMENT_BYTES).unwrap();
        // A server has used one, and its first file is its own.
        let used = wal.join(segment_name(2));
        OpenOptions::new().write(true).open(&used).unwrap().write_all_at(&[7; 3 * PAGE_BYTES], 0).unwrap();
        std::fs::write(wal.join(segment_name(1)), vec![1; SEGMENT_BYTES as usize]).unwrap();
        pool.take(&wal);
        assert_eq!(pool.waiting().len(), 2, "all but the first");
        pool.fill(&of, &wal, 3 * SEGMENT_BYTES).unwrap();
        assert!(pool.waiting().is_empty());
        let files: Vec<_> = (2..=4).map(|n| std::fs::read(wal.join(segment_name(n))).unwrap()).collect();
        assert!(files.iter().all(|f| f.len() as u64 == SEGMENT_BYTES && f[..PAGE_BYTES].iter().all(|b| *b == 0)));
        assert_eq!(
            files.iter().filter(|f| f[PAGE_BYTES] == 7).count(),
            1,
            "the used one came back as it was behind that"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_run_is_given_more_for_larger_records_and_longer_runs() {
        let cpus = super::super::Cpus { first: vec![0], others: vec![0] };
        let shape = super::super::Shape { connections: 1, pipeline: 1 };
        let bytes = |record_bytes, seconds| {
            let (warm_up, measure) = (std::time::Duration::ZERO, std::time::Duration::from_secs(seconds));
            bytes_of(&Job { dir: Path::new("."), record_bytes, shape, warm_up, measure, cpus: &cpus })
        };
        assert_eq!((bytes(256, 1), bytes(256, 4), bytes(4096, 4)), (512 << 20, 1_536_000_000, 2_560_000_000));
    }
}
