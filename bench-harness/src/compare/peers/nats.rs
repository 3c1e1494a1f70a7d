//! NATS JetStream: three servers, one stream of three replicas on files.

use std::path::{Path, PathBuf};

use super::super::child::Launch;
use super::super::drive::{Clock, drive};
use super::super::model::{Sample, Scope};
use super::nats_wire::{Publishes, Session};
use super::nodes::{self, Nodes, connect, folder, free_ports, write};
use super::{Cpus, Facts, Job, Peer, Shape, at_least, number_in, program, shapes, version_of};

/// JetStream with one of its two ways to flush.
pub(crate) struct Nats {
    facts: Facts,
    always: bool,
    program: PathBuf,
}

impl Nats {
    pub(crate) fn new() -> Self {
        let facts = Facts {
            name: "nats",
            title: "NATS JetStream R3",
            scope: Scope::Replicated,
            durability: "NOT durable: a majority received; each node flushes every 2 minutes (its default sync_interval)",
            configuration: "one stream, file storage, 3 replicas; asynchronous publishes to the stream's leader",
            shape: "connections x publishes without an answer",
        };
        Self { facts, always: false, program: PathBuf::new() }
    }

    pub(crate) fn sync_always() -> Self {
        let facts = Facts {
            name: "nats-sync",
            title: "NATS JetStream R3, sync_interval: always",
            durability: "majority flushed (sync_interval: always)",
            configuration: "as nats, with sync_interval: always (NATS 2.10 or newer)",
            ..Self::new().facts
        };
        Self { facts, always: true, program: PathBuf::new() }
    }

    fn config(&self, n: usize, client: u16, routes: [u16; 3], store: &Path) -> String {
        let sync = if self.always { "sync_interval: always\n" } else { "" };
        let others = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        format!(
            "server_name: n{n}\nlisten: \"127.0.0.1:{client}\"\njetstream {{\nstore_dir: \"{}\"\nmax_memory_store: 1GB\n\
             max_file_store: 40GB\n{sync}}}\ncluster {{\nname: c\nlisten: \"127.0.0.1:{}\"\nroutes: [{others}]\n}}\n",
            store.display(),
            routes[n]
        )
    }

    /// Starts the servers, makes the stream, and gives its leader's port.
    fn start(&self, dir: &Path, cpus: &Cpus, nodes: &Nodes) -> Result<u16, String> {
        let clients: [u16; 3] = free_ports()?;
        let routes: [u16; 3] = free_ports()?;
        for (n, client) in clients.iter().enumerate() {
            let dir = folder(dir, &format!("node-{n}"))?;
            write(&dir.join("nats.conf"), &self.config(n, *client, routes, &dir))?;
            let cpus = if n == 0 { &cpus.first } else { &cpus.others };
            nodes.add(Launch::new(&self.program, &dir, cpus).args(["-c", "nats.conf"]).start("nats")?);
        }
        let mut control = Session::open(nodes.connect(clients[0])?)?;
        let timeout = std::time::Duration::from_millis(500);
        control.stream.set_read_timeout(Some(timeout)).map_err(|e| e.to_string())?;
        // Nobody answers before the servers have a leader of their own.
        let stream = "{\"name\":\"S\",\"subjects\":[\"s\"],\"storage\":\"file\",\"num_replicas\":3,\"retention\":\"limits\",\
                      \"discard\":\"old\",\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0}";
        let leader = nodes.wait_for("the stream has no leader", || {
            if control.ask("$JS.API.STREAM.CREATE.S", stream).is_err() {
                return Ok(None);
            }
            Ok(control.ask("$JS.API.STREAM.INFO.S", "").ok().and_then(|answer| leader(&answer)))
        })?;
        Ok(clients[leader])
    }
}

/// Who leads the stream, by the server's own description of it.
fn leader(answer: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(answer).ok()?;
    let cluster = value.get("cluster")?;
    let all_current = cluster.get("replicas")?.as_array()?.iter().all(|r| r.get("current") == Some(&true.into()));
    let name = cluster.get("leader")?.as_str()?.strip_prefix('n')?.parse().ok()?;
    all_current.then_some(name)
}

impl Peer for Nats {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn find(&mut self) -> Result<String, String> {
        self.program = program("nats-server").ok_or("nats-server is not installed (apt-get install nats-server)")?;
        let version = number_in(&version_of(&self.program, "--version")?);
        if self.always && !at_least(&version, &[2, 10]) {
            return Err(format!(
                "NATS {version} has no sync_interval: it needs 2.10 (apt-get install nats-server on Debian 13)"
            ));
        }
        Ok(version)
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        shapes(&[(1, outstanding)])
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let (nodes, leader) = nodes::start(job.dir, |dir, nodes| self.start(dir, job.cpus, nodes))?;
        let mut connections = Vec::new();
        for _ in 0..job.shape.connections {
            let stream = connect(leader).map_err(|e| format!("connecting to nats: {e}"))?;
            connections.push((Session::open(stream)?.stream, Publishes::new("s", &job.record())));
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
    fn a_stream_has_a_leader_when_its_replicas_are_current() {
        let text = |current| {
            format!("{{\"cluster\":{{\"leader\":\"n2\",\"replicas\":[{{\"name\":\"n0\",\"current\":{current}}}]}}}}")
        };
        assert_eq!(leader(&text(true)), Some(2));
        assert_eq!(leader(&text(false)), None);
        assert_eq!(leader("{\"error\":{}}"), None);
    }

    #[test]
    fn only_the_durable_one_asks_for_a_flush_of_each_message() {
        let config = |nats: Nats| nats.config(1, 1, [2, 3, 4], Path::new("/x"));
        assert!(config(Nats::sync_always()).contains("sync_interval: always"));
        let plain = config(Nats::new());
        assert!(!plain.contains("sync_interval") && plain.contains("listen: \"127.0.0.1:3\""), "{plain}");
    }
}
