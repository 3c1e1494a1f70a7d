//! Redis: a primary and two replicas, every append-only file flushed before each answer.

use std::net::TcpStream;
use std::path::{Path, PathBuf};

use super::super::child::Launch;
use super::super::drive::{Clock, drive, transfer};
use super::super::model::{BulkSample, BulkWork, Sample, Scope};
use super::nodes::{self, Nodes, connect, folder, free_ports};
use super::resp::{Barrier, Reply, Sets, ask};
use super::{
    BULK_RECORD_BYTES, BulkJob, BulkWay, Cpus, Facts, Job, Peer, Shape, at_least, number_in, program, record, shapes,
    version_of,
};

const REPLICAS: u64 = 2;
/// Connections, and SETs before each wait, in bulk work.
pub(super) const BULK_SHAPE: (u64, u64) = (4, 64);

/// Redis with one of its two ways to wait.
pub(crate) struct Redis {
    facts: Facts,
    barrier: Barrier,
    program: PathBuf,
}

impl Redis {
    pub(crate) fn wait() -> Self {
        let facts = Facts {
            name: "redis",
            title: "Redis, WAIT 2",
            scope: Scope::Replicated,
            durability: "primary flushed, both replicas received: WAIT does not wait for a replica's flush",
            configuration: "appendonly yes, appendfsync always on all nodes, no rewrites, no snapshots; SET over 10,000 \
                            keys, then WAIT 2 0",
            shape: "connections x SETs before each WAIT",
        };
        Self { facts, barrier: Barrier::Wait(REPLICAS), program: PathBuf::new() }
    }

    pub(crate) fn wait_aof() -> Self {
        let facts = Facts {
            name: "redis-waitaof",
            title: "Redis, WAITAOF 1 2",
            durability: "primary and both replicas flushed",
            configuration: "as redis, with WAITAOF 1 2 0 instead of WAIT (Redis 7.2 or newer)",
            shape: "connections x SETs before each WAITAOF",
            ..Self::wait().facts
        };
        Self { facts, barrier: Barrier::WaitAof(REPLICAS), program: PathBuf::new() }
    }

    fn launch(&self, (dir, cpus): (&Path, &Cpus), n: usize, port: u16) -> Result<Launch, String> {
        let dir = folder(dir, &format!("node-{n}"))?;
        let cpus = if n == 0 { &cpus.first } else { &cpus.others };
        let launch = Launch::new(&self.program, &dir, cpus).args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--daemonize",
            "no",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--auto-aof-rewrite-percentage",
            "0",
            "--repl-diskless-sync-delay",
            "0",
            "--client-output-buffer-limit",
            "replica 0 0 0",
        ]);
        Ok(launch.args(["--dir".as_ref(), dir.as_os_str()]))
    }

    /// Starts all three, waits until they are in step, and gives the primary's port.
    fn start(&self, dir: &Path, cpus: &Cpus) -> Result<(Nodes, u16), String> {
        nodes::start(dir, |dir, nodes| {
            let ports: [u16; 3] = free_ports()?;
            for (n, port) in ports.iter().enumerate() {
                let mut launch = self.launch((dir, cpus), n, *port)?;
                if n > 0 {
                    launch = launch.args(["--replicaof", &format!("127.0.0.1 {}", ports[0])]);
                }
                nodes.add(launch.start("redis")?);
            }
            let mut control = nodes.connect(ports[0])?;
            nodes.wait_for("the replicas are not in step", || {
                let Reply::Bulk(Some(info)) = ask(&mut control, &[b"INFO", b"replication"])? else { return Ok(None) };
                let online = replicas_online(&String::from_utf8_lossy(&info));
                Ok((online == REPLICAS as usize).then_some(()))
            })?;
            Ok(ports[0])
        })
    }

    fn connections(&self, port: u16, shape: Shape, record: &[u8]) -> Result<Vec<(TcpStream, Sets)>, String> {
        let open = |n| {
            let stream = connect(port).map_err(|e| format!("connecting to redis: {e}"))?;
            Ok((stream, Sets::new(record.to_vec(), shape.pipeline, self.barrier, n * 97)))
        };
        (0..shape.connections).map(open).collect()
    }
}

/// Whether so many replicas are in step, by what the primary says.
pub(super) fn replicas_online(info: &str) -> usize {
    info.lines().filter(|l| l.starts_with("slave") && l.contains("state=online")).count()
}

impl Peer for Redis {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn find(&mut self) -> Result<String, String> {
        self.program = program("redis-server").ok_or("redis-server is not installed (apt-get install redis-server)")?;
        let version = number_in(&version_of(&self.program, "--version")?);
        if matches!(self.barrier, Barrier::WaitAof(_)) && !at_least(&version, &[7, 2]) {
            return Err(format!(
                "Redis {version} has no WAITAOF: it needs 7.2 (apt-get install redis-server on Debian 13)"
            ));
        }
        Ok(version)
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        match outstanding {
            1 => shapes(&[(1, 1)]),
            16 => shapes(&[(16, 1)]),
            256 => shapes(&[(256, 1), (16, 16)]),
            1024 => shapes(&[(64, 16)]),
            16384 => shapes(&[(64, 256)]),
            _ => Vec::new(),
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let (nodes, port) = self.start(job.dir, job.cpus)?;
        let connections = self.connections(port, job.shape, &job.record())?;
        let servers = || nodes.cpu_ns();
        let clock = Clock { warm_up: job.warm_up, measure: job.measure, servers: &servers };
        drive(connections, job.shape.pipeline, &clock).map_err(|e| nodes.check().err().unwrap_or(e))
    }

    fn bulk_ways(&self, work: BulkWork) -> Vec<BulkWay> {
        match work {
            BulkWork::Stream => {
                let (until, how) =
                    (self.facts.durability, "SETs, and one wait behind each unit of them; its files grow as it writes");
                shapes(&[BULK_SHAPE]).into_iter().map(|shape| BulkWay { shape, until, how }).collect()
            }
            // A replica that is started again takes the whole data set, not what it missed.
            BulkWork::CatchUp => Vec::new(),
        }
    }

    /// The clock runs from the first SET until the last unit's wait is answered.
    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        let (nodes, port) = self.start(job.dir, job.cpus)?;
        let connections = self.connections(port, job.shape, &record(BULK_RECORD_BYTES))?;
        let records = job.records(job.shape.pipeline);
        (job.ready)()?;
        let (client, cpu_ns) = (towline::sys::process_cpu_ns(), nodes.cpu_ns());
        let took = transfer(connections, job.shape.pipeline, records);
        let took = took.map_err(|e| nodes.check().err().unwrap_or(e))?;
        let cpu_ns = nodes.cpu_ns().saturating_sub(cpu_ns) + towline::sys::process_cpu_ns() - client;
        Ok(BulkSample { bytes: records * BULK_RECORD_BYTES as u64, took, connected_after: None, cpu_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_counted_when_they_are_online() {
        let info = "role:master\r\nconnected_slaves:2\r\nslave0:ip=127.0.0.1,port=1,state=online,offset=14\r\n\
                    slave1:ip=127.0.0.1,port=2,state=wait_bgsave,offset=0\r\n";
        assert_eq!(replicas_online(info), 1);
    }
}
