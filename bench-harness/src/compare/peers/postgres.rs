//! PostgreSQL: a primary and two standbys by streaming replication, both synchronous.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::super::child::Launch;
use super::super::drive::{Clock, drive};
use super::super::model::{BulkSample, BulkWork, Sample, Scope};
use super::nodes::{Nodes, connect, folder, free_ports, start, write};
use super::pg_files::{Pool, bytes_of};
use super::pg_wire::{Executions, open, prepare, query};
use super::{BulkJob, BulkWay, Cpus, Facts, Job, Peer, Shape, number_in, pg_bulk, program, shapes, version_of};

const INSTALL: &str = "PostgreSQL is not installed (apt-get install postgresql)";

/// What every node is configured with, beside `initdb`'s own; docs/BENCHMARKS.md says why.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 400
shared_buffers = 512MB
wal_level = replica
wal_sync_method = fdatasync
wal_buffers = 64MB
max_wal_size = 16GB
min_wal_size = 1GB
checkpoint_timeout = 1h
max_wal_senders = 10
wal_keep_size = 1GB
synchronous_commit = on
full_page_writes = on
autovacuum = off
hot_standby = on
wal_retrieve_retry_interval = 100ms
";

/// PostgreSQL with one of its ways to write a record into the log.
pub(crate) struct Postgres {
    facts: Facts,
    /// Run once on the primary, and prepared on each connection.
    setup: Option<&'static str>,
    statement: &'static str,
    bin: PathBuf,
    /// User and group, if the harness runs as root: PostgreSQL refuses that.
    user: Option<(u32, u32)>,
    template: PathBuf,
    pool: Pool,
}

impl Postgres {
    pub(crate) fn messages() -> Self {
        let facts = Facts {
            name: "postgres",
            title: "PostgreSQL, pg_logical_emit_message",
            scope: Scope::Replicated,
            durability: "primary and both standbys flushed",
            configuration: "streaming replication, synchronous_standby_names = 'ANY 2 (s1, s2)', synchronous_commit = on; \
                            pg_logical_emit_message(true, ..): the record is in the WAL only; WAL files for the whole \
                            run written beforehand on all three servers",
            shape: "sessions x records in each transaction",
        };
        let statement = "SELECT pg_logical_emit_message(true, 'r', $1)";
        let (bin, template) = (PathBuf::new(), PathBuf::new());
        Self { facts, setup: None, statement, bin, user: None, template, pool: Pool::default() }
    }

    pub(crate) fn inserts() -> Self {
        let facts = Facts {
            name: "postgres-insert",
            title: "PostgreSQL, INSERT",
            configuration: "as postgres, with INSERT into a table with a bigserial key; the record is stored plain, not \
                            compressed",
            ..Self::messages().facts
        };
        let setup = "CREATE TABLE r (id bigserial PRIMARY KEY, record bytea); \
                     ALTER TABLE r ALTER COLUMN record SET STORAGE PLAIN";
        let statement = "INSERT INTO r (record) VALUES ($1)";
        Self { facts, setup: Some(setup), statement, ..Self::messages() }
    }

    /// One of PostgreSQL's programs, as the user that may run it.
    fn launch(&self, name: &str, dir: &Path, cpus: &[usize]) -> Launch {
        let mut launch = Launch::new(self.bin.join(name), dir, cpus);
        launch.user = self.user;
        // SIGQUIT: an immediate shutdown, which leaves no shared memory behind.
        launch.end_with = libc::SIGQUIT;
        launch
    }

    /// Gives a file or a folder to that user.
    pub(super) fn give(&self, path: &Path) -> Result<(), String> {
        let Some((uid, gid)) = self.user else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|e| format!("giving {} away: {e}", path.display()))
    }

    /// A folder that belongs to that user.
    fn folder(&self, parent: &Path, name: &str) -> Result<PathBuf, String> {
        let path = folder(parent, name)?;
        self.give(&path)?;
        Ok(path)
    }

    fn load(&self, job: &Job<'_>, servers: &Servers<'_>, control: &mut TcpStream) -> Result<Sample, String> {
        if let Some(sql) = self.setup {
            query(control, sql)?;
        }
        let mut connections = Vec::new();
        for _ in 0..job.shape.connections {
            let mut stream = servers.session()?;
            prepare(&mut stream, self.statement)?;
            connections.push((stream, Executions::new(&job.record(), job.shape.pipeline)));
        }
        let nodes = &servers.nodes;
        let cpu_ns = || nodes.cpu_ns();
        let clock = Clock { warm_up: job.warm_up, measure: job.measure, servers: &cpu_ns };
        drive(connections, job.shape.pipeline, &clock).map_err(|e| nodes.check().err().unwrap_or(e))
    }

    /// Whether its records are in the WAL only.
    pub(super) fn is_wal_only(&self) -> bool {
        self.setup.is_none()
    }
}

/// A primary and two standbys.
pub(super) struct Servers<'a> {
    of: &'a Postgres,
    dir: PathBuf,
    cpus: &'a Cpus,
    ports: [u16; 3],
    pub(super) nodes: Nodes,
}

impl<'a> Servers<'a> {
    /// Starts all and gives a session. A commit waits for so many standbys; `more` goes into everybody's
    /// configuration; `files` makes what is to be in everybody's `pg_wal` beforehand.
    pub(super) fn start_all(
        of: &'a Postgres,
        (dir, cpus): (&Path, &'a Cpus),
        standbys: usize,
        more: &str,
        files: &dyn Fn(&Path) -> Result<(), String>,
    ) -> Result<(Self, TcpStream), String> {
        let (_, started) = start(dir, |dir, nodes| {
            let (dir, nodes) = (dir.to_path_buf(), nodes.clone());
            let servers = Self { of, dir, cpus, ports: free_ports()?, nodes };
            servers.make(standbys, more)?;
            servers.wal_folders().iter().try_for_each(|pg_wal| files(pg_wal))?;
            let control = servers.stream()?;
            Ok((servers, control))
        })?;
        Ok(started)
    }

    fn make(&self, standbys: usize, more: &str) -> Result<(), String> {
        let Self { of, dir, ports, .. } = self;
        for (n, port) in ports.iter().enumerate() {
            let dir = of.folder(dir, &format!("node-{n}"))?;
            let data = dir.join("data");
            let mut copy = Launch::new("/bin/cp", &dir, &[]).arg("-a").arg(&of.template).arg(&data);
            copy.user = of.user;
            copy.output()?;
            let role = if n == 0 {
                format!("synchronous_standby_names = 'ANY {standbys} (s1, s2)'\n")
            } else {
                write(&data.join("standby.signal"), "")?;
                let primary = ports[0];
                format!("primary_conninfo = 'host=127.0.0.1 port={primary} user=postgres application_name=s{n}'\n")
            };
            // The file of ALTER SYSTEM, which is read last.
            write(&data.join("postgresql.auto.conf"), &format!("{SETTINGS}port = {port}\n{role}{more}"))?;
        }
        Ok(())
    }

    /// Where a server keeps its files.
    fn data(&self, n: usize) -> PathBuf {
        self.dir.join(format!("node-{n}/data"))
    }

    /// Where they keep their WAL files.
    fn wal_folders(&self) -> Vec<PathBuf> {
        (0..self.ports.len()).map(|n| self.data(n).join("pg_wal")).collect()
    }

    /// Ends all, and keeps their WAL files for the next run.
    fn end(self) {
        let (pool, folders) = (&self.of.pool, self.wal_folders());
        drop(self);
        folders.iter().for_each(|pg_wal| pool.take(pg_wal));
    }

    pub(super) fn start(&self, n: usize) -> Result<(), String> {
        let (data, cpus) = (self.data(n), if n == 0 { &self.cpus.first } else { &self.cpus.others });
        let dir = data.parent().unwrap_or(&self.dir);
        self.nodes.add(self.of.launch("postgres", dir, cpus).arg("-D").arg(&data).start("postgres")?);
        Ok(())
    }

    /// Starts all, waits until the standbys stream, and gives a session.
    fn stream(&self) -> Result<TcpStream, String> {
        (0..self.ports.len()).try_for_each(|n| self.start(n))?;
        let mut control = self.nodes.wait_for("PostgreSQL does not start", || Ok(self.session().ok()))?;
        self.nodes.wait_for("the standbys do not stream", || {
            let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
            Ok((query(&mut control, sql)? == ["2"]).then_some(()))
        })?;
        Ok(control)
    }

    /// A session at the primary.
    pub(super) fn session(&self) -> Result<TcpStream, String> {
        let mut stream = connect(self.ports[0]).map_err(|e| format!("connecting to PostgreSQL: {e}"))?;
        open(&mut stream)?;
        Ok(stream)
    }
}

/// The folder with the newest PostgreSQL: Debian keeps one for each version.
fn find_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u32>().ok());
    let newest = versions.map(|e| e.path()).filter(|p| p.join("bin/initdb").is_file()).max_by_key(version);
    newest.map(|p| p.join("bin")).or_else(|| Some(program("initdb")?.canonicalize().ok()?.parent()?.to_path_buf()))
}

/// A user's and its group's numbers, from the text of `/etc/passwd`.
fn user_in(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = passwd.lines().map(|l| l.split(':')).find(|f| f.clone().next() == Some(name))?.skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

impl Peer for Postgres {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn find(&mut self) -> Result<String, String> {
        self.bin = find_bin().ok_or(INSTALL)?;
        // SAFETY: no preconditions.
        if unsafe { libc::geteuid() } == 0 {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            let user = user_in(&passwd, "postgres").or_else(|| user_in(&passwd, "nobody"));
            self.user = Some(user.ok_or("PostgreSQL does not run as root, and there is no user postgres")?);
        }
        Ok(number_in(&version_of(&self.bin.join("postgres"), "--version")?))
    }

    fn shapes(&self, outstanding: u64) -> Vec<Shape> {
        match outstanding {
            1 => shapes(&[(1, 1)]),
            16 => shapes(&[(16, 1)]),
            256 if self.setup.is_none() => shapes(&[(256, 1), (16, 16)]),
            256 => shapes(&[(16, 16)]),
            1024 => shapes(&[(64, 16)]),
            16384 => shapes(&[(64, 256)]),
            _ => Vec::new(),
        }
    }

    fn prepare(&mut self, dir: &Path) -> Result<(), String> {
        // Both ways to write a record take turns with the same files.
        let pool = self.folder(dir, "wal")?;
        let dir = self.folder(dir, self.facts.name)?;
        self.template = dir.join("data");
        self.pool = Pool::new(pool, self.facts.name);
        let initdb = self.launch("initdb", &dir, &[]).args(["--auth=trust", "--username=postgres", "--no-sync"]);
        initdb.args(["--encoding=UTF8", "--locale=C", "-D"]).arg(&self.template).output()?;
        Ok(())
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Sample, String> {
        let files = |pg_wal: &Path| self.pool.fill(self, pg_wal, bytes_of(job));
        let (servers, mut control) = Servers::start_all(self, (job.dir, job.cpus), 2, "", &files)?;
        let sample = self.load(job, &servers, &mut control);
        servers.end();
        sample
    }

    fn bulk_ways(&self, work: BulkWork) -> Vec<BulkWay> {
        pg_bulk::ways(self, work)
    }

    fn run_bulk(&mut self, job: &BulkJob<'_>) -> Result<BulkSample, String> {
        match job.work {
            BulkWork::Stream => pg_bulk::stream(self, job),
            BulkWork::CatchUp => pg_bulk::catch_up(self, job),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgresql:x:7:8::/:/x\npostgres:x:101:104:,,,:/var:/bin/sh\n";
        assert_eq!(user_in(passwd, "postgres"), Some((101, 104)));
        assert_eq!(user_in(passwd, "nobody"), None);
    }
}
