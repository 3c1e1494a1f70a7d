//! Bulk work on PostgreSQL: a stream that both standbys flush, and a standby that catches up.

use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::super::interrupt::{self, wait_every};
use super::super::model::{BulkSample, BulkWork, LogFiles};
use super::pg_files::{self, SEGMENT_BYTES};
use super::pg_wire::query;
use super::postgres::{Postgres, Servers};
use super::{BULK_LIMIT, BULK_LOOK, BULK_RECORD_BYTES, BulkJob, BulkWay, record, shapes};

/// Its ways to do bulk work: sessions, and records in each transaction.
pub(super) fn ways(of: &Postgres, work: BulkWork) -> Vec<BulkWay> {
    if !of.is_wal_only() {
        return Vec::new();
    }
    let (pairs, until, how) = match work {
        BulkWork::Stream => (
            &[(2, 1024), (4, 256)][..],
            "flushed by the primary and both standbys",
            "ANY 2 (s1, s2); sessions x messages in a transaction, all made in the server (generate_series)",
        ),
        BulkWork::CatchUp => (
            &[(2, 1024)][..],
            "flushed by the standby that was away",
            "ANY 1 (s1, s2) while s2 is stopped, WAL kept by wal_keep_size",
        ),
    };
    shapes(pairs).into_iter().map(|shape| BulkWay { shape, until, how }).collect()
}

/// The clock runs from the first transaction until the last one's commit, which both standbys have flushed.
pub(super) fn stream(of: &Postgres, job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let (servers, _control) = start(of, job, 2)?;
    let sessions = sessions(&servers, job)?;
    (job.ready)()?;
    let (client, cpu_ns, began) = (towline::sys::process_cpu_ns(), servers.nodes.cpu_ns(), Instant::now());
    let bytes = write(job, sessions).map_err(|e| servers.nodes.check().err().unwrap_or(e))?;
    let took = began.elapsed();
    let cpu_ns = servers.nodes.cpu_ns().saturating_sub(cpu_ns) + towline::sys::process_cpu_ns() - client;
    Ok(BulkSample { bytes, took, connected_after: None, cpu_ns })
}

/// The clock runs from the moment at which the primary knows the second standby until that has flushed all.
pub(super) fn catch_up(of: &Postgres, job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let (servers, mut control) = start(of, job, 1)?;
    servers.nodes.end_last();
    let bytes = write(job, sessions(&servers, job)?).map_err(|e| servers.nodes.check().err().unwrap_or(e))?;
    let end = query(&mut control, "SELECT pg_current_wal_flush_lsn()")?;
    let end = end.first().ok_or("PostgreSQL does not say where its log ends")?;
    (job.ready)()?;
    let (client, cpu_ns, started) = (towline::sys::process_cpu_ns(), servers.nodes.cpu_ns(), Instant::now());
    servers.start(2)?;
    let mut wait_until = |what, condition: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE application_name = 's2'{condition}");
        wait_every(BULK_LOOK, BULK_LIMIT, what, || {
            servers.nodes.check()?;
            Ok((query(&mut control, &sql)? == ["1"]).then(Instant::now))
        })
    };
    let connected = wait_until("the standby does not connect", "")?;
    let flushed = wait_until("the standby does not catch up", &format!(" AND flush_lsn >= '{end}'"))?;
    let cpu_ns = servers.nodes.cpu_ns().saturating_sub(cpu_ns) + towline::sys::process_cpu_ns() - client;
    Ok(BulkSample { bytes, took: flushed - connected, connected_after: Some(connected - started), cpu_ns })
}

/// All three, with WAL files as a server has them that has run for some time, if they are to be written; and a
/// session.
fn start<'a>(of: &'a Postgres, job: &'a BulkJob<'_>, standbys: usize) -> Result<(Servers<'a>, TcpStream), String> {
    // A message's own head, a page's, and some room.
    let wal_bytes = job.records(unit(job)) * BULK_RECORD_BYTES as u64 / 16 * 17 + 4 * SEGMENT_BYTES;
    let more = format!("wal_keep_size = {}MB\n", (wal_bytes >> 20) + 1024);
    let written = if job.files == LogFiles::Written { wal_bytes } else { 0 };
    // Zeros in any case: a standby that is started again reads what its files hold.
    let files = |pg_wal: &Path| pg_files::write(of, pg_wal, written);
    Servers::start_all(of, (job.dir, job.cpus), standbys, &more, &files)
}

/// Records in each transaction.
fn unit(job: &BulkJob<'_>) -> u64 {
    job.shape.pipeline
}

fn sessions(servers: &Servers<'_>, job: &BulkJob<'_>) -> Result<Vec<TcpStream>, String> {
    (0..job.shape.connections).map(|_| servers.session()).collect()
}

/// A transaction of so many records, which the server makes itself: the client sends one.
fn transaction(record: &[u8], unit: u64) -> String {
    let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("SELECT count(pg_logical_emit_message(true, 'r', '\\x{hex}'::bytea)) FROM generate_series(1, {unit})")
}

/// Writes everything, each session one transaction after the other; returns bytes of payload.
fn write(job: &BulkJob<'_>, sessions: Vec<TcpStream>) -> Result<u64, String> {
    let (unit, next) = (unit(job), AtomicU64::new(0));
    let transactions = job.records(unit) / unit;
    let sql = transaction(&record(BULK_RECORD_BYTES), unit);
    let work = |mut session: TcpStream| {
        while next.fetch_add(1, Ordering::Relaxed) < transactions {
            interrupt::check()?;
            let rows = query(&mut session, &sql)?;
            if rows != [unit.to_string()] {
                return Err(format!("PostgreSQL wrote {rows:?} messages instead of {unit}"));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = sessions.into_iter().map(|session| scope.spawn(|| work(session))).collect();
        let ends = threads.into_iter().map(|t| t.join().map_err(|_| "a session's thread panicked".to_string())?);
        ends.collect::<Result<Vec<()>, String>>()
    })?;
    Ok(transactions * unit * BULK_RECORD_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_one_query_that_writes_the_record_so_often() {
        let sql = transaction(&[0, 0xab], 7);
        let expected = "SELECT count(pg_logical_emit_message(true, 'r', '\\x00ab'::bytea)) FROM generate_series(1, 7)";
        assert_eq!(sql, expected);
    }
}
