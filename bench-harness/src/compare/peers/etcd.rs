//! etcd: three members; puts to the leader over gRPC.

use std::path::{Path, PathBuf};

use super::super::child::Launch;
use super::super::drive::{Clock, drive};
use super::super::model::{Sample, Scope};
use super::h2::{Calls, Value, bytes_field, call, field, opening};
use super::nodes::{self, Nodes, connect, folder, free_ports};
use super::{Cpus, Facts, Job, Peer, Shape, number_in, program, shapes, version_of};

/// Keys that are overwritten in turn.
const KEYS: u64 = 10_000;

/// etcd.
#[derive(Default)]
pub(crate) struct Etcd {
    program: PathBuf,
}

/// Whether the member that answers so leads.
fn leads(status: &[u8]) -> bool {
    let Some(Value::Bytes(header)) = field(status, 1) else { return false };
    matches!((field(header, 2), field(status, 4)), (Some(own), Some(leader)) if own == leader && own != Value::Number(0))
}

fn put(key: u64, record: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(record.len() + 16);
    bytes_field(1, format!("k{:04}", key % KEYS).as_bytes(), &mut out);
    bytes_field(2, record, &mut out);
    out
}

impl Etcd {
    /// Starts the members and gives the leader's port.
    fn start(&self, dir: &Path, cpus: &Cpus, nodes: &Nodes) -> Result<u16, String> {
        let clients: [u16; 3] = free_ports()?;
        let peers: [u16; 3] = free_ports()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<_> = peers.iter().enumerate().map(|(n, port)| format!("e{n}={}", url(*port))).collect();
        for n in 0..3 {
            let dir = folder(dir, &format!("node-{n}"))?;
            let cpus = if n == 0 { &cpus.first } else { &cpus.others };
            let (client, peer) = (url(clients[n]), url(peers[n]));
            let launch =
                Launch::new(&self.program, &dir, cpus).args(["--name", &format!("e{n}"), "--data-dir", "data"]);
            let launch = launch.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            let launch = launch.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            let launch = launch.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new"]);
            nodes.add(launch.args(["--quota-backend-bytes", "8589934592"]).start("etcd")?);
        }
        nodes.wait_for("etcd has no leader", || {
            for port in clients {
                let Ok(mut stream) = connect(port) else { continue };
                let _ = stream.set_read_timeout(Some(std::time::Duration::from_millis(500)));
                if call(&mut stream, "/etcdserverpb.Maintenance/Status", &[]).is_ok_and(|status| leads(&status)) {
                    return Ok(Some(port));
                }
            }
            Ok(None)
        })
    }
}

impl Peer for Etcd {
    fn facts(&self) -> Facts {
        Facts {
            name: "etcd",
            title: "etcd, 3 members",
            scope: Scope::Replicated,
            durability: "majority (2 of 3) flushed",
            configuration: "defaults, a larger backend quota; puts over 10,000 keys to the leader, gRPC over 8 connections",
            shape: "connections x puts under way",
        }
    }

    fn find(&mut self) -> Result<String, String> {
        self.program = program("etcd").ok_or("etcd is not installed (apt-get install etcd-server)")?;
        Ok(number_in(&version_of(&self.program, "--version")?))
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        match outstanding {
            1 => shapes(&[(1, 1)]),
            // From 5,000 on it refuses ("too many requests").
            n if n <= 4096 && n % 8 == 0 => shapes(&[(8, n / 8)]),
            _ => Vec::new(),
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let (nodes, leader) = nodes::start(job.dir, |dir, nodes| self.start(dir, job.cpus, nodes))?;
        let mut connections = Vec::new();
        for n in 0..job.shape.connections {
            let mut stream = connect(leader).map_err(|e| format!("connecting to etcd: {e}"))?;
            std::io::Write::write_all(&mut stream, &opening()).map_err(|e| format!("talking to etcd: {e}"))?;
            let (record, mut key) = (job.record(), n * 1013);
            let message = move || {
                key += 1;
                put(key, &record)
            };
            connections.push((stream, Calls::new("/etcdserverpb.KV/Put", message)));
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
    fn a_put_is_a_key_and_a_value() {
        assert_eq!(put(10_007, b"xyz"), b"\x0a\x05k0007\x12\x03xyz");
    }

    #[test]
    fn the_leader_is_the_member_that_names_itself() {
        // header { cluster_id 1, member_id 2 } version "3" leader
        let status = |leader| [b"\x0a\x04\x08\x01\x10\x02\x12\x013\x20".as_slice(), &[leader]].concat();
        assert!(leads(&status(2)) && !leads(&status(1)) && !leads(b""));
    }
}
