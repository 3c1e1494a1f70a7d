//! kevy: a primary and two replicas that speak like Redis.

use std::path::{Path, PathBuf};

use super::super::child::Launch;
use super::super::drive::{Clock, drive};
use super::super::model::{Sample, Scope};
use super::nodes::{self, Nodes, connect, folder, free_ports, write};
use super::redis::replicas_online;
use super::resp::{Barrier, Reply, Sets, ask};
use super::{Cpus, Facts, Job, Peer, Shape, number_in, program, shapes, version_of};

const INSTALL: &str = "kevy is not installed (cargo install kevy; version 7 needs Rust 1.97)";

/// kevy.
#[derive(Default)]
pub(crate) struct Kevy {
    program: PathBuf,
}

fn config(replication: &str) -> String {
    format!(
        "[persistence]\naof = true\nappendfsync = \"always\"\nauto_aof_rewrite_percentage = 0\n[replication]\n{replication}"
    )
}

impl Kevy {
    /// Starts all three, waits until they are in step, and gives the primary's port.
    fn start(&self, dir: &Path, cpus: &Cpus, nodes: &Nodes) -> Result<u16, String> {
        let ports: [u16; 3] = free_ports()?;
        let links: [u16; 3] = free_ports()?;
        for (n, port) in ports.iter().enumerate() {
            let dir = folder(dir, &format!("node-{n}"))?;
            let replication = if n == 0 {
                format!("role = \"primary\"\nlisten_port_base = {}\n", links[0])
            } else {
                format!("role = \"replica\"\nupstream = \"127.0.0.1:{}\"\nlisten_port_base = {}\n", links[0], links[n])
            };
            write(&dir.join("kevy.toml"), &config(&replication))?;
            let cpus = if n == 0 { &cpus.first } else { &cpus.others };
            let launch = Launch::new(&self.program, &dir, cpus).args(["--config", "kevy.toml", "--threads", "1"]);
            nodes.add(launch.args(["--port", &port.to_string(), "--dir", "."]).start("kevy")?);
        }
        let mut control = nodes.connect(ports[0])?;
        nodes.wait_for("the replicas are not in step", || {
            let Reply::Bulk(Some(info)) = ask(&mut control, &[b"INFO", b"replication"])? else { return Ok(None) };
            Ok((replicas_online(&String::from_utf8_lossy(&info)) == 2).then_some(()))
        })?;
        Ok(ports[0])
    }
}

impl Peer for Kevy {
    fn facts(&self) -> Facts {
        Facts {
            name: "kevy",
            title: "kevy, WAIT 2",
            scope: Scope::Replicated,
            durability: "primary flushed, both replicas received: its documentation says that an ack is no durability",
            configuration: "one shard a node, appendfsync always, no rewrites; SET over 10,000 keys, then WAIT 2 0",
            shape: "connections x SETs before each WAIT",
        }
    }

    fn find(&mut self) -> Result<String, String> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let installed = home.map(|h| h.join("bin/kevy")).filter(|p| p.is_file());
        self.program = program("kevy").or(installed).ok_or(INSTALL)?;
        Ok(number_in(&version_of(&self.program, "--version")?))
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        match outstanding {
            1 => shapes(&[(1, 1)]),
            16 => shapes(&[(16, 1)]),
            256 => shapes(&[(16, 16)]),
            1024 => shapes(&[(64, 16)]),
            16384 => shapes(&[(64, 256)]),
            _ => Vec::new(),
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let (nodes, primary) = nodes::start(job.dir, |dir, nodes| self.start(dir, job.cpus, nodes))?;
        let mut connections = Vec::new();
        for n in 0..job.shape.connections {
            let stream = connect(primary).map_err(|e| format!("connecting to kevy: {e}"))?;
            connections.push((stream, Sets::new(job.record(), job.shape.pipeline, Barrier::Wait(2), n * 97)));
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
    fn every_node_flushes_each_write() {
        assert!(config("role = \"primary\"\n").contains("appendfsync = \"always\""));
    }
}
