//! Redis: a primary and two replicas, every append-only file flushed before each answer.

use std::path::PathBuf;

use super::super::child::Launch;
use super::super::drive::{Clock, drive};
use super::super::model::{Sample, Scope};
use super::nodes::{Nodes, connect, folder, free_ports};
use super::resp::{Barrier, Reply, Sets, ask};
use super::{Facts, Job, Peer, Shape, at_least, number_in, program, shapes, version_of};

const REPLICAS: u64 = 2;

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

    fn launch(&self, job: &Job<'_>, n: usize, port: u16) -> Result<Launch, String> {
        let dir = folder(job.dir, &format!("node-{n}"))?;
        let cpus = if n == 0 { &job.cpus.first } else { &job.cpus.others };
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
        let ports: [u16; 3] = free_ports()?;
        let nodes = Nodes::default();
        for (n, port) in ports.iter().enumerate() {
            let mut launch = self.launch(job, n, *port)?;
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
        drop(control);
        let mut connections = Vec::new();
        for n in 0..job.shape.connections {
            let stream = connect(ports[0]).map_err(|e| format!("connecting to redis: {e}"))?;
            connections.push((stream, Sets::new(job.record(), job.shape.pipeline, self.barrier, n * 97)));
        }
        let servers = || nodes.cpu_ns();
        let clock = Clock { warm_up: job.warm_up, measure: job.measure, servers: &servers };
        drive(connections, job.shape.pipeline, &clock).map_err(|e| nodes.check().err().unwrap_or(e))
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
