//! What a node is configured with. Each field says its default, its bounds and its unit; they are
//! checked once, when a node is opened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use towline_wire::handshake::NodeName;
use towline_wire::{BLOCK, RECORD_BYTES_MAX, Term};

use crate::limits;
use crate::protocol::policy::CommitPolicy;
use crate::protocol::settings::Settings;
use crate::snapshot::Snapshots;
use crate::sys;

mod error;
mod feeding;

pub use error::ConfigError;

/// How much of the log a node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// Everything, until the embedder trims it.
    All,
    /// At least this many bytes for each shard; older segments are recycled once every replica with a
    /// valid slot has flushed them.
    Bytes(u64),
}

/// The most log that slots may hold back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RetainMax {
    /// Eight times what is to be kept, and at least that and 16 segments; no cap where all is kept.
    #[default]
    Auto,
    /// No cap: a replica that is away fills the disk in the end.
    Unlimited,
    /// This many bytes for each shard: at least what is to be kept and two segments.
    Bytes(u64),
}

/// How links compress batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compress {
    /// Not at all.
    #[default]
    Off,
    /// With LZ4, where that pays, to replicas that understand it.
    Lz4,
}

impl RetainMax {
    /// The least cap: with less, what is to be kept anyway would already reach it.
    pub(crate) const fn least(keep: Option<u64>, segment_bytes: u64) -> u64 {
        let keep = if let Some(keep) = keep { keep } else { 0 };
        keep.saturating_add(limits::RETAIN_MAX_SEGMENTS_MIN * segment_bytes)
    }

    /// The cap in bytes, for the segment size that the folder has, where `keep` is kept in any case.
    pub(crate) fn cap(self, keep: Option<u64>, segment_bytes: u64) -> Option<u64> {
        match (self, keep) {
            (Self::Unlimited, _) | (Self::Auto, None) => None,
            (Self::Auto, Some(keep)) => {
                let more = keep.saturating_add(limits::RETAIN_MAX_SEGMENTS_AUTO * segment_bytes);
                Some(keep.saturating_mul(limits::RETAIN_MAX_TIMES).max(more))
            }
            // The folder's segments may be larger than those that are configured.
            (Self::Bytes(bytes), _) => Some(bytes.max(Self::least(keep, segment_bytes))),
        }
    }
}

impl Retain {
    /// Bytes that are kept in any case; `None`: all.
    pub(crate) const fn keep(self) -> Option<u64> {
        if let Self::Bytes(keep) = self { Some(keep) } else { None }
    }
}

/// What primaries and replicas have in common.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The folder that holds the node's shards. Made if it does not exist.
    pub data: PathBuf,
    /// Cores to run on; shards are dealt out to them in turn. Default: every core of the machine.
    /// Several nodes in one process or several shards on one core are fine.
    pub cpus: Vec<usize>,
    /// Bytes of a segment file. Default 64 MiB; 64 KiB to 16 GiB, whole blocks of 4 KiB. Fixed when
    /// the folder is made; a replica takes the primary's.
    pub segment_bytes: u64,
    /// Segments kept ready ahead of the log's end, written with zeros. Default 2, at least 1.
    pub segments_ahead: usize,
    /// Bytes of segments to write with zeros when a shard starts, so that a load may begin on
    /// written files at once. Default 0: only `segments_ahead`.
    pub prefill_bytes: u64,
    /// Batches in flight to each shard's device. Default 4; 1 to 64.
    pub write_depth: usize,
    /// Bytes of a normal batch; a larger record gets a batch of its own. Default 512 KiB; 4 KiB to
    /// 16 MiB, whole blocks.
    pub batch_bytes: usize,
    /// Largest record in bytes. Default 64 MiB, which also is the most.
    pub record_bytes_max: usize,
    /// How long a batch may wait for more records while a write could start. Default 0: a lone
    /// append goes out at once.
    pub max_linger: Duration,
    /// How long a core looks for news before it sleeps. Default 0; at most 10 ms. Waking up takes some
    /// microseconds, so this lowers latency where few commits are outstanding, for all of the core's time
    /// that nothing else wants.
    pub spin: Duration,
    /// How much of the log is kept. Default: all.
    pub retain: Retain,
    /// Bytes of recent batches kept in memory for links and tails, for each shard; who is further
    /// behind reads from disk. Default 16 MiB.
    pub live_window_bytes: usize,
    /// Registered memory of each core's executor, in bytes. Default 32 MiB, or what memlock allows.
    pub io_memory_bytes: usize,
    /// The embedder's state as snapshots, for replicas whose log cannot be continued: made on a primary,
    /// installed on a replica. Default: none.
    pub snapshot: Option<Snapshots>,
    /// The largest snapshot of a shard that is sent, or taken, in bytes. Default 1 TiB; at least 256 KiB.
    pub snapshot_bytes_max: u64,
}

impl NodeConfig {
    /// The defaults for a folder.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            cpus: Vec::new(),
            segment_bytes: 64 << 20,
            segments_ahead: 2,
            prefill_bytes: 0,
            write_depth: 4,
            batch_bytes: 512 << 10,
            record_bytes_max: RECORD_BYTES_MAX,
            max_linger: Duration::ZERO,
            spin: Duration::ZERO,
            retain: Retain::All,
            live_window_bytes: 16 << 20,
            io_memory_bytes: 32 << 20,
            snapshot: None,
            snapshot_bytes_max: 1 << 40,
        }
    }

    /// The most bytes that may be in flight to one shard's device: a full pipeline of normal
    /// batches, or one batch of the largest record.
    #[must_use]
    pub fn in_flight_bytes_max(&self) -> u64 {
        let pipeline = self.write_depth as u64 * self.batch_bytes as u64;
        pipeline.max(crate::protocol::builder::buffer_for(self.record_bytes_max) as u64)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let block = BLOCK as u64;
        bounds("segment_bytes", self.segment_bytes, limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_MAX)?;
        bounds("segments_ahead", self.segments_ahead as u64, 1, 1024)?;
        bounds("write_depth", self.write_depth as u64, 1, limits::WRITE_DEPTH_MAX as u64)?;
        bounds("batch_bytes", self.batch_bytes as u64, block, 16 << 20)?;
        bounds("record_bytes_max", self.record_bytes_max as u64, 1, RECORD_BYTES_MAX as u64)?;
        let spin_us = u64::try_from(self.spin.as_micros()).unwrap_or(u64::MAX);
        bounds("spin in us", spin_us, 0, limits::SPIN_MAX.as_micros() as u64)?;
        bounds("live_window_bytes", self.live_window_bytes as u64, 0, 16 << 30)?;
        bounds("snapshot_bytes_max", self.snapshot_bytes_max, limits::SNAPSHOT_BYTES_MAX_MIN, u64::MAX - 1)?;
        bounds("io_memory_bytes", self.io_memory_bytes as u64, 64 << 10, 4 << 30)?;
        for (field, value) in [("segment_bytes", self.segment_bytes), ("batch_bytes", self.batch_bytes as u64)] {
            if !value.is_multiple_of(block) {
                return Err(ConfigError::Blocks { field, value });
            }
        }
        let there = sys::cpus();
        match self.cpus.iter().find(|cpu| **cpu >= there) {
            Some(&cpu) => Err(ConfigError::Cpu { cpu, there }),
            None => Ok(()),
        }
    }
}

/// What to do with a commit while fewer replicas are connected than it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TooFewReplicas {
    /// Append, and wait for them until the deadline.
    #[default]
    Wait,
    /// Refuse the append before anything is written.
    Refuse,
}

/// Whether batches are sent to replicas from where they are, without a copy by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZeroCopy {
    /// Each link tries with large sends, and goes by what the kernel reports: on loopback, for example,
    /// it copies all the same, and the link goes back to plain sends for a while.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Every batch, whatever the kernel reports.
    Always,
}

/// A primary's configuration.
///
/// `replicas`, `commit`, `deadline`, `retain_max`, `slot_idle_max`, `min_replicas`, `min_replicas_age`,
/// `catch_up_max`, `link_window_bytes` and `lag_target` are the first version of the [`Settings`] of a new
/// folder, and of one that is promoted. Later starts find them in the folder, as they were changed last: what
/// is said here is then checked, and a difference is logged, no more.
#[derive(Clone, Debug)]
pub struct PrimaryConfig {
    /// What every node has.
    pub node: NodeConfig,
    /// Shards, 1 to 1,024. Fixed when the folder is made.
    pub shards: u32,
    /// Where replicas and clients connect. `None`: nobody can.
    pub listen: Option<SocketAddr>,
    /// The replicas that count: 1 to 63 of `[a-z0-9_-]` each. Others are refused.
    pub replicas: Vec<String>,
    /// What a commit waits for unless it says otherwise. Default `local`.
    pub commit: CommitPolicy,
    /// How long a commit waits unless it says otherwise, from the append. Default 10 s.
    pub deadline: Duration,
    /// What to do while too few replicas are connected. Default: wait.
    pub too_few: TooFewReplicas,
    /// The most log that is kept for replicas that are behind or away, and that is not committed, for
    /// each shard. A replica that is further behind loses its slot; log that is not committed is kept,
    /// and appends are refused. Default: see [`RetainMax::Auto`].
    pub retain_max: RetainMax,
    /// Whether batches are sent without a copy. Default: where that works.
    pub zero_copy: ZeroCopy,
    /// How long a slot may be without a link before it is lost. Default: for ever; 1 s to 366 days.
    pub slot_idle_max: Option<Duration>,
    /// Bytes in each second that a replica which catches up is sent from disk, all its shards together.
    /// Default: no cap, but a tenth of the disk's time while the log grows; at least 64 KiB, and for each shard
    /// an equal part. With a cap, that is what it takes also beside others: a high one hurries a replica.
    pub catch_up_max: Option<u64>,
    /// Bytes that a link may have sent and not acknowledged as received, or one batch. Default 32 MiB;
    /// 4 KiB to 1 GiB.
    pub link_window_bytes: usize,
    /// How many bytes each shard's replicas that commits wait for may be behind before batches are held
    /// back, gently, up to 100 ms for a full one at twice as much. Default: never; at least 4 KiB.
    pub lag_target: Option<u64>,
    /// How links to replicas compress batches; the log on disk stays what it is. Default: not at all.
    pub compress: Compress,
    /// Refuse appends while fewer replicas than this have acknowledged within `min_replicas_age`. What
    /// was accepted before is not touched. Default 0: never; at most as many as are configured.
    pub min_replicas: u8,
    /// See there. Default 10 s; 2 s to 1 h.
    pub min_replicas_age: Duration,
    /// Listen on an address that is not loopback although nothing authenticates a peer yet.
    pub insecure_no_auth: bool,
    /// Take over a folder that was a replica's: its log continues under a new term. Only for an
    /// operator who knows that the old primary is gone.
    pub promote: bool,
    /// The highest term that any node has shown so far, the old primary's included, where that is
    /// known: a promotion begins a higher one. Without it two promotions that do not know of each
    /// other may come in the wrong order, and the second one's node is taken for the older. Default: 0.
    pub promote_above: Term,
}

impl PrimaryConfig {
    /// The defaults for a folder: one shard, no replicas, no listener.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            node: NodeConfig::new(data),
            shards: 1,
            listen: None,
            replicas: Vec::new(),
            commit: CommitPolicy::Local,
            deadline: Duration::from_secs(10),
            too_few: TooFewReplicas::Wait,
            retain_max: RetainMax::Auto,
            zero_copy: ZeroCopy::Auto,
            slot_idle_max: None,
            catch_up_max: None,
            link_window_bytes: 32 << 20,
            lag_target: None,
            compress: Compress::Off,
            min_replicas: 0,
            min_replicas_age: Duration::from_secs(10),
            insecure_no_auth: false,
            promote: false,
            promote_above: Term::ZERO,
        }
    }

    /// The settings that a new folder begins with.
    pub(crate) fn check(&self) -> Result<Settings, ConfigError> {
        self.node.check()?;
        bounds("shards", self.shards.into(), 1, limits::SHARDS_MAX.into())?;
        bounds("replicas", self.replicas.len() as u64, 0, limits::REPLICAS_MAX as u64)?;
        let names = self.replicas.iter().map(|n| name(n)).collect::<Result<Vec<_>, _>>()?;
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                return Err(ConfigError::Twice(name.to_string()));
            }
        }
        check_listen(self.listen, self.insecure_no_auth)?;
        self.check_retention()?;
        self.feeding().check()?;
        self.commit.requirement(names.len())?;
        bounds("min_replicas", self.min_replicas.into(), 0, names.len() as u64)?;
        let (min, max) = (limits::MIN_REPLICAS_AGE_MIN, limits::MIN_REPLICAS_AGE_MAX);
        if self.min_replicas_age < min || self.min_replicas_age > max {
            let (value, min, max) = (self.min_replicas_age.as_secs(), min.as_secs(), max.as_secs());
            return Err(ConfigError::Bounds { field: "min_replicas_age in s", value, min, max });
        }
        Ok(Settings {
            version: 1,
            replicas: names,
            commit: self.commit,
            deadline: self.deadline,
            retain_max: self.retain_max,
            slot_idle_max: self.slot_idle_max,
            min_replicas: self.min_replicas,
            min_replicas_age: self.min_replicas_age,
            catch_up_max: self.catch_up_max,
            link_window_bytes: self.link_window_bytes as u32,
            lag_target: self.lag_target,
        })
    }

    fn check_retention(&self) -> Result<(), ConfigError> {
        let min = RetainMax::least(self.node.retain.keep(), self.node.segment_bytes);
        if let RetainMax::Bytes(value) = self.retain_max {
            bounds("retain_max", value, min, u64::MAX)?;
        }
        Ok(())
    }
}

/// A replica's configuration.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// What every node has. The segment size is the primary's.
    pub node: NodeConfig,
    /// The name under which the primary has it configured, or under which it has a slot where it follows.
    pub name: String,
    /// The primary, or a replica that feeds this one.
    pub primary: SocketAddr,
    /// Where clients connect for tails and the status, and the replicas that this one feeds. `None`:
    /// nobody can.
    pub listen: Option<SocketAddr>,
    /// Longest pause before a shard connects again, 1 ms to 60 s. Default 2 s.
    pub reconnect_max: Duration,
    /// Whether a shard whose log is too old to be continued gives it up, and begins anew at the oldest
    /// batch that the primary keeps. Off by default: it is refused then. An empty log begins there
    /// anyway. Never where the handler would miss records ([`Apply::takes_gaps`](crate::Apply::takes_gaps)),
    /// unless a snapshot replaces its state.
    pub rebuild: bool,
    /// What [`Replica::reads`](crate::Replica::reads) says of a shard while a snapshot replaces its state.
    /// Default: that it may be read, and is stale.
    pub stale_reads: StaleReads,
    /// The most log that is kept for the replicas that this one feeds, for each shard: one that is further
    /// behind loses its slot here. Default: see [`RetainMax::Auto`]. Less than what is to be kept and two
    /// segments counts as that.
    pub retain_max: RetainMax,
    /// How long such a slot may be without a link before it is lost. Default: for ever; 1 s to 366 days.
    pub slot_idle_max: Option<Duration>,
    /// To those replicas: see [`PrimaryConfig::zero_copy`].
    pub zero_copy: ZeroCopy,
    /// To those replicas: see [`PrimaryConfig::catch_up_max`].
    pub catch_up_max: Option<u64>,
    /// To those replicas: see [`PrimaryConfig::link_window_bytes`].
    pub link_window_bytes: usize,
    /// To those replicas: see [`PrimaryConfig::compress`].
    pub compress: Compress,
    /// Listen on an address that is not loopback although nothing authenticates a peer yet.
    pub insecure_no_auth: bool,
}

/// What becomes of reads on a replica while a snapshot is about to replace what they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StaleReads {
    /// They are answered from the old state, which is declared stale.
    #[default]
    Answer,
    /// They are refused.
    Refuse,
}

impl ReplicaConfig {
    /// The defaults for a replica of `primary`.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>, name: impl Into<String>, primary: SocketAddr) -> Self {
        Self {
            node: NodeConfig::new(data),
            name: name.into(),
            primary,
            listen: None,
            reconnect_max: limits::RECONNECT_MAX,
            rebuild: false,
            stale_reads: StaleReads::Answer,
            retain_max: RetainMax::Auto,
            slot_idle_max: None,
            zero_copy: ZeroCopy::Auto,
            catch_up_max: None,
            link_window_bytes: 32 << 20,
            compress: Compress::Off,
            insecure_no_auth: false,
        }
    }

    pub(crate) fn check(&self) -> Result<NodeName, ConfigError> {
        self.node.check()?;
        check_listen(self.listen, self.insecure_no_auth)?;
        self.feeding().check()?;
        bounds("reconnect_max in ms", self.reconnect_max.as_millis() as u64, 1, 60_000)?;
        name(&self.name)
    }
}

fn name(text: &str) -> Result<NodeName, ConfigError> {
    NodeName::new(text).ok_or_else(|| ConfigError::Name(text.into()))
}

fn bounds(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::Bounds { field, value, min, max }) }
}

fn check_listen(listen: Option<SocketAddr>, insecure: bool) -> Result<(), ConfigError> {
    match listen {
        Some(addr) if !addr.ip().is_loopback() && !insecure => Err(ConfigError::NoAuth(addr)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_follows_what_is_to_be_kept_unless_it_is_given() {
        let cap = |retain: Retain, max: RetainMax, segment| max.cap(retain.keep(), segment);
        const MIB: u64 = 1 << 20;
        assert_eq!(cap(Retain::All, RetainMax::Auto, MIB), None);
        assert_eq!(cap(Retain::Bytes(100 * MIB), RetainMax::Auto, MIB), Some(800 * MIB));
        assert_eq!(cap(Retain::Bytes(MIB), RetainMax::Auto, MIB), Some(17 * MIB));
        assert_eq!(cap(Retain::Bytes(u64::MAX), RetainMax::Auto, MIB), Some(u64::MAX));
        assert_eq!(cap(Retain::Bytes(MIB), RetainMax::Unlimited, MIB), None);
        assert_eq!(cap(Retain::All, RetainMax::Bytes(9 * MIB), MIB), Some(9 * MIB));
        assert_eq!(cap(Retain::Bytes(MIB), RetainMax::Bytes(9 * MIB), 16 * MIB), Some(33 * MIB));
    }

    #[test]
    fn a_bad_configuration_is_refused_and_says_which_field() {
        let refused = |change: fn(&mut PrimaryConfig)| {
            let mut c = PrimaryConfig::new("unused");
            change(&mut c);
            c.check().unwrap_err().to_string()
        };
        assert!(PrimaryConfig::new("unused").check().is_ok());
        for (message, change) in [
            ("shards is 0", (|c| c.shards = 0) as fn(&mut PrimaryConfig)),
            ("shards is 1025", |c| c.shards = 1025),
            ("segment_bytes is 4096, it must be from 65536", |c| c.node.segment_bytes = 4096),
            ("segment_bytes is 65537, it must be a multiple", |c| c.node.segment_bytes = 65537),
            ("write_depth is 65", |c| c.node.write_depth = 65),
            ("record_bytes_max is 67108865", |c| c.node.record_bytes_max = (64 << 20) + 1),
            ("\"R1\" is no replica name", |c| c.replicas = vec!["R1".into()]),
            ("replica a is named twice", |c| c.replicas = vec!["a".into(), "b".into(), "a".into()]),
            ("needs 2 replicas, 1 are configured", |c| {
                c.replicas = vec!["a".into()];
                c.commit = "ack_n=2".parse().unwrap();
            }),
            ("--insecure-no-auth", |c| c.listen = Some("0.0.0.0:1".parse().unwrap())),
            ("retain_max is 196607, it must be from 196608", |c| {
                c.node.segment_bytes = 65536;
                c.node.retain = Retain::Bytes(65536);
                c.retain_max = RetainMax::Bytes(196_607);
            }),
            ("slot_idle_max in s is 0, it must be from 1 to 31622400", |c| {
                c.slot_idle_max = Some(Duration::from_millis(999));
            }),
            ("slot_idle_max in s is 31622401", |c| c.slot_idle_max = Some(Duration::from_secs(31_622_401))),
            ("link_window_bytes is 4095, it must be from 4096", |c| c.link_window_bytes = 4095),
            ("snapshot_bytes_max is 262143, it must be from 262144", |c| c.node.snapshot_bytes_max = 262_143),
            ("catch_up_max is 65535, it must be from 65536", |c| c.catch_up_max = Some(65_535)),
            ("lag_target is 4095, it must be from 4096", |c| c.lag_target = Some(4095)),
            ("min_replicas is 1, it must be from 0 to 0", |c| c.min_replicas = 1),
            ("min_replicas_age in s is 1, it must be from 2 to 3600", |c| {
                c.min_replicas_age = Duration::from_millis(1999)
            }),
            ("replicas is 129", |c| c.replicas = (0..129).map(|n| format!("r{n}")).collect()),
        ] {
            let got = refused(change);
            assert!(got.contains(message), "{got:?} does not say {message:?}");
        }
        let mut c = PrimaryConfig::new("unused");
        (c.node.segment_bytes, c.node.retain, c.retain_max) = (65536, Retain::Bytes(65536), RetainMax::Bytes(196_608));
        c.slot_idle_max = Some(Duration::from_secs(31_622_400));
        assert!(c.check().is_ok());
        for (pause, fits) in [(0, false), (1, true), (60_000, true), (60_001, false)] {
            let mut c = ReplicaConfig::new("unused", "r1", "127.0.0.1:1".parse().unwrap());
            c.reconnect_max = Duration::from_millis(pause);
            assert_eq!(c.check().is_ok(), fits, "{pause} ms");
        }
    }
}
