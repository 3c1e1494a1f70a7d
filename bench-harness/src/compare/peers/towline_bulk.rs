//! Bulk work on Towline: a stream from the shard's core and over the network, and a replica that
//! catches up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towline::measure::Load;
use towline::{AckLevel, AppendOptions, CommitPolicy, ShardId};

use super::super::drive::transfer;
use super::super::interrupt::wait_every;
use super::super::model::{BulkSample, BulkWork, LogFiles};
use super::redis::BULK_SHAPE as REDIS_BULK;
use super::towline::{Node, bulk_plan, connection};
use super::{BULK_LIMIT, BULK_LOOK, BULK_RECORD_BYTES, BulkJob, BulkWay, record, shapes, towline_wire};
use crate::cluster::{Cluster, caught_up, connected, fill};

const UNTIL: &str = "flushed by the primary and both replicas";

/// Ways of the node that is in this process.
pub(super) fn embedded_ways(work: BulkWork) -> Vec<BulkWay> {
    let (until, how) = match work {
        BulkWork::Stream => {
            (UNTIL, "ack_n=2 flushed, appended on the shard's own core, with so many records outstanding")
        }
        BulkWork::CatchUp => {
            ("flushed by the replica that was away", "ack_n=1 flushed while r2 is stopped, all log kept")
        }
    };
    shapes(&[(1, 512)]).into_iter().map(|shape| BulkWay { shape, until, how }).collect()
}

/// Bytes of segments to write beforehand: the records with their heads, and some room.
fn prefill(job: &BulkJob<'_>) -> u64 {
    match job.files {
        LogFiles::Written => job.bytes / 16 * 17 + (256 << 20),
        LogFiles::New => 0,
    }
}

/// Ways over connections.
pub(super) fn network_ways(work: BulkWork) -> Vec<BulkWay> {
    over_connections(work, &[(1, 512)])
}

/// The same, and the shape of the peer that takes records over connections.
pub(super) fn loop_ways(work: BulkWork) -> Vec<BulkWay> {
    over_connections(work, &[(1, 512), REDIS_BULK])
}

fn over_connections(work: BulkWork, pairs: &[(u64, u64)]) -> Vec<BulkWay> {
    // Catching up is the same whoever has written the log.
    if work == BulkWork::CatchUp {
        return Vec::new();
    }
    let how = "as towline, each record over a connection to a primary in a process of its own";
    shapes(pairs).into_iter().map(|shape| BulkWay { shape, until: UNTIL, how }).collect()
}

/// The clock runs from the first append until so many are committed.
pub(super) fn stream(job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let mut cluster = Cluster::start(job.dir, &bulk_plan(job.cpus, prefill(job)))?;
    (job.ready)()?;
    let load = Load::closed(BULK_RECORD_BYTES, job.shape.pipeline, AppendOptions::default());
    let (running, used, began) = (load.clone(), cluster.used()?, Instant::now());
    cluster.primary.spawn_on(ShardId(0), move |local| running.run(local));
    let done = all_committed(job, began, || load.commits(), || load.take_report().error.is_some())?;
    load.stop();
    load.wait();
    let report = load.take_report();
    match (report.error, done) {
        (Some(why), _) => Err(format!("the load ended by itself: {why}")),
        (None, Some((bytes, took))) if report.failed == 0 => {
            let cpu_ns = cluster.used()?.cpu_ns - used.cpu_ns;
            Ok(BulkSample { bytes, took, connected_after: None, cpu_ns })
        }
        _ => Err(format!("{} appends were not committed", report.failed)),
    }
}

/// Waits until a closed loop has committed all records; gives the bytes that were committed by then, and
/// how long that took. `None`: the loop has ended before.
fn all_committed(
    job: &BulkJob<'_>,
    began: Instant,
    commits: impl Fn() -> u64,
    has_ended: impl Fn() -> bool,
) -> Result<Option<(u64, Duration)>, String> {
    const ASK_EVERY: Duration = Duration::from_millis(200);
    let (records, mut asked) = (job.records(1), began);
    wait_every(BULK_LOOK, BULK_LIMIT, "not everything is committed", || {
        let commits = commits();
        if commits >= records {
            return Ok(Some(Some((commits * BULK_RECORD_BYTES as u64, began.elapsed()))));
        }
        if asked.elapsed() > ASK_EVERY {
            asked = Instant::now();
            return Ok(has_ended().then_some(None));
        }
        Ok(None)
    })
}

/// The same through the network client, with a thread for each connection.
pub(super) fn stream_by_client(job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let mut node = Node::start(job.dir, job.cpus, Some(prefill(job)))?;
    let (addr, record) = (node.addr.clone(), record(BULK_RECORD_BYTES));
    (job.ready)()?;
    let (commits, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (measuring, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (client, cpu_ns, began) = (towline::sys::process_cpu_ns(), node.cpu_ns()?, Instant::now());
    let window = job.shape.pipeline;
    let connection = || connection(&addr, &record, window, [&commits, &failed], &measuring, &stop);
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..job.shape.connections).map(|_| scope.spawn(connection)).collect();
        let has_ended = || threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
        let done = all_committed(job, began, || commits.load(Ordering::Relaxed), has_ended);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a client thread panicked".to_string())??;
        }
        done
    })?;
    let failed = failed.load(Ordering::Relaxed);
    let (bytes, took) = done.filter(|_| failed == 0).ok_or(format!("{failed} appends were not committed"))?;
    let cpu_ns = node.cpu_ns()?.saturating_sub(cpu_ns) + towline::sys::process_cpu_ns() - client;
    Ok(BulkSample { bytes, took, connected_after: None, cpu_ns })
}

/// The same through the loop that drives the network peers.
pub(super) fn stream_by_loop(job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let mut node = Node::start(job.dir, job.cpus, Some(prefill(job)))?;
    let (addr, record) = (node.addr.clone(), record(BULK_RECORD_BYTES));
    let open = |_| Ok((towline_wire::open(&addr)?, towline_wire::Appends::new(&record)));
    let connections = (0..job.shape.connections).map(open).collect::<Result<_, String>>()?;
    (job.ready)()?;
    let (client, cpu_ns, records) = (towline::sys::process_cpu_ns(), node.cpu_ns()?, job.records(1));
    let took = transfer(connections, job.shape.pipeline, records)?;
    let cpu_ns = node.cpu_ns()?.saturating_sub(cpu_ns) + towline::sys::process_cpu_ns() - client;
    Ok(BulkSample { bytes: records * BULK_RECORD_BYTES as u64, took, connected_after: None, cpu_ns })
}

/// The clock runs from the moment at which the second replica is connected until that has flushed all.
pub(super) fn catch_up(job: &BulkJob<'_>) -> Result<BulkSample, String> {
    let mut plan = bulk_plan(job.cpus, prefill(job));
    plan.policy = CommitPolicy::AckN { n: 1, level: AckLevel::Flushed };
    let mut cluster = Cluster::start(job.dir, &plan)?;
    cluster.end_last_replica();
    let bytes = fill(&cluster.primary, BULK_RECORD_BYTES, job.bytes)?;
    (job.ready)()?;
    // Its segments are there.
    plan.replica.prefill = 0;
    let (used, started) = (cluster.used()?, Instant::now());
    cluster.start_last_replica(job.dir, &plan.replica)?;
    connected(&cluster.primary, 1)?;
    let connected_after = started.elapsed();
    let (_, took) = caught_up(&cluster.primary, 1)?;
    let cpu_ns = cluster.used()?.cpu_ns - used.cpu_ns;
    Ok(BulkSample { bytes, took, connected_after: Some(connected_after), cpu_ns })
}

#[cfg(test)]
mod tests {
    use super::super::{Cpus, Shape};
    use super::*;

    fn job<'a>(cpus: &'a Cpus, files: LogFiles) -> BulkJob<'a> {
        let (dir, shape) = (std::path::Path::new("."), Shape { connections: 1, pipeline: 1 });
        BulkJob { dir, work: BulkWork::Stream, files, bytes: 1 << 20, shape, cpus, ready: &|| Ok(()) }
    }

    #[test]
    fn a_loop_is_done_with_its_last_record_or_when_it_has_ended() {
        let cpus = Cpus { first: vec![0], others: vec![0] };
        let job = job(&cpus, LogFiles::New);
        let (done, _) = all_committed(&job, Instant::now(), || 65, || false).unwrap().unwrap();
        assert_eq!(done, 65 << 14, "what was committed by then, also beyond what was asked for");
        assert_eq!(all_committed(&job, Instant::now(), || 63, || true).unwrap(), None);
    }

    #[test]
    fn nodes_have_room_for_all_of_it() {
        let cpus = Cpus { first: vec![0], others: vec![1] };
        let plan = bulk_plan(&cpus, prefill(&job(&cpus, LogFiles::Written)));
        for node in [&plan.primary, &plan.replica] {
            assert!(node.prefill > (1 << 20) + (256 << 20) && node.retain > node.prefill);
        }
        assert_eq!(bulk_plan(&cpus, prefill(&job(&cpus, LogFiles::New))).primary.prefill, 0);
    }
}
