//! What `towline serve` can be told, by flags and by a TOML file: the same fields with the same
//! meaning. Flags win over the file.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use towline::{CommitPolicy, TooFewReplicas, ZeroCopy};

// The fuzz targets take this file by its path, and the module goes with it.
#[path = "config_file/values.rs"]
mod values;

pub(crate) use values::{Keep, Most, Parsed, Size, Time};

/// Every setting, each of them optional. The comments are `--help`'s; `docs/towline.example.toml`
/// says more.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// The folder that holds the node's shards; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// What the node is
    #[arg(long)]
    pub(crate) role: Option<Role>,

    /// Where replicas and clients connect, HOST:PORT; port 0 takes a free one. A primary needs it, and a
    /// replica that feeds others
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,

    /// Primary: number of shards, 1 to 1024, fixed when the folder is made [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u32>,

    /// Primary: names of the replicas that count, like r1,r2; others are served if they have a slot, see
    /// --join, and only read. Of this and --commit, --deadline, --retain-max, --slot-idle-max,
    /// --min-replicas, --min-replicas-age, --catch-up-max, --link-window and --lag-target a new folder
    /// makes its settings; later starts find them there, and `towline ctl` changes them [default: none]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) replicas: Option<Vec<String>>,

    /// Primary: what a commit waits for: local, ack_n=N[:LEVEL], all[:LEVEL] or majority[:LEVEL],
    /// where LEVEL is received, flushed (if left out) or applied [default: local]
    #[arg(long, value_name = "POLICY")]
    pub(crate) commit: Option<Parsed<CommitPolicy>>,

    /// Primary: how long a commit waits, like 200ms or 5s, unless it says otherwise [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<Time>,

    /// Primary: what to do with an append while too few replicas are connected [default: wait]
    #[arg(long)]
    pub(crate) too_few: Option<TooFew>,

    /// Replica: the name under which the primary has it configured, or whomever it follows a slot for it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Replica: the address of the primary, or of a replica that is to feed this one, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub(crate) primary: Option<String>,

    /// Replica: have whomever it follows keep a slot for it, made if there is none, and say when it has
    /// joined. Alone or as `reader` it only reads; as `quorum` it is configured once it is live, and
    /// counts for commits from then on [default: somebody else makes the slot]
    #[arg(long, value_name = "reader|quorum", num_args = 0..=1, default_missing_value = "reader", hide_possible_values = true)]
    pub(crate) join: Option<Join>,

    /// Replica: the longest pause before it connects again, 1ms to 1m [default: 2s]
    #[arg(long, value_name = "TIME")]
    pub(crate) reconnect_max: Option<Time>,

    /// Replica: if the primary keeps no log from where this one ends, give this one up and begin anew at the
    /// oldest that the primary keeps. What is given up is set aside until the new log is there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) rebuild: Option<bool>,

    /// Cores to run on, like 0,1; shards are dealt out to them in turn [default: all]
    #[arg(long, value_name = "CPUS", value_delimiter = ',')]
    pub(crate) cpus: Option<Vec<usize>>,

    /// Primary: size of a segment file, 64KiB to 16GiB, fixed when the folder is made; a replica
    /// takes the primary's [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) segment_size: Option<Size>,

    /// Segments kept ready ahead of the log's end, 1 to 1024 [default: 2]
    #[arg(long, value_name = "N")]
    pub(crate) segments_ahead: Option<usize>,

    /// Bytes of each shard to write with zeros at the start, so that a load meets written files at
    /// once [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub(crate) prefill: Option<Size>,

    /// Batches in flight to each shard's device, 1 to 64 [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) write_depth: Option<usize>,

    /// Size of a normal batch, 4KiB to 16MiB; a larger record gets a batch of its own [default:
    /// 512KiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) batch_size: Option<Size>,

    /// Largest record, 1 to 64MiB [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) record_max: Option<Size>,

    /// Primary: how long a batch may wait for more records while a write could start [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(crate) max_linger: Option<Time>,

    /// How long each core looks for news before it sleeps: less latency for more CPU [default: 0s, most: 10ms]
    #[arg(long, value_name = "TIME")]
    pub(crate) spin: Option<Time>,

    /// How much log each shard keeps: all, or at least SIZE [default: all]
    #[arg(long, value_name = "all|SIZE")]
    pub(crate) retain: Option<Keep>,

    /// The most log each shard keeps for replicas that are behind or away, and of what is not
    /// committed: auto, none or SIZE; a replica that is further behind loses its slot [default: auto,
    /// 8 times retain, or none with retain all]
    #[arg(long, value_name = "auto|none|SIZE")]
    pub(crate) retain_max: Option<Most>,

    /// How long a replica may be away before it loses its slot, 1s and more [default: for ever]
    #[arg(long, value_name = "TIME")]
    pub(crate) slot_idle_max: Option<Time>,

    /// Whether batches are sent without a copy by the kernel [default: auto, where it works]
    #[arg(long, value_enum, value_name = "auto|off|always", hide_possible_values = true)]
    pub(crate) zero_copy: Option<NoCopy>,

    /// Bytes in each second that a replica which catches up is sent from disk, 64KiB and more
    /// [default: no cap]
    #[arg(long, value_name = "SIZE")]
    pub(crate) catch_up_max: Option<Size>,

    /// Bytes that a link may have sent and not acknowledged, 4KiB to 1GiB [default: 32MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) link_window: Option<Size>,

    /// Primary: how far the replicas that commits wait for may be behind before batches are held back,
    /// 4KiB and more [default: never]
    #[arg(long, value_name = "SIZE")]
    pub(crate) lag_target: Option<Size>,

    /// How links to replicas compress batches, where that pays; the log on disk stays what it is
    /// [default: off]
    #[arg(long, value_name = "off|lz4")]
    pub(crate) compress: Option<Compress>,

    /// Primary: refuse appends while fewer replicas than this have acknowledged within
    /// min-replicas-age [default: 0, never]
    #[arg(long, value_name = "N")]
    pub(crate) min_replicas: Option<u8>,

    /// Primary: see min-replicas; 2s to 1h [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) min_replicas_age: Option<Time>,

    /// Bytes of recent batches that each shard keeps in memory for links and tails, at most 16GiB
    /// [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) live_window: Option<Size>,

    /// Registered memory of each core, 64KiB to 4GiB [default: 32MiB, or what memlock allows]
    #[arg(long, value_name = "SIZE")]
    pub(crate) io_memory: Option<Size>,

    /// Listen on an address that is not loopback although nothing authenticates a peer yet
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) insecure_no_auth: Option<bool>,
}

/// Names every field once; the compiler sees to it that none is missing.
macro_rules! every_field {
    ($do:ident) => {
        $do!(
            data,
            role,
            listen,
            shards,
            replicas,
            commit,
            deadline,
            too_few,
            name,
            primary,
            join,
            reconnect_max,
            rebuild,
            cpus,
            segment_size,
            segments_ahead,
            prefill,
            write_depth,
            batch_size,
            record_max,
            max_linger,
            spin,
            retain,
            retain_max,
            slot_idle_max,
            zero_copy,
            catch_up_max,
            link_window,
            lag_target,
            compress,
            min_replicas,
            min_replicas_age,
            live_window,
            io_memory,
            insecure_no_auth
        )
    };
}

impl Settings {
    /// These settings, and those below where there are none.
    pub(crate) fn over(self, below: Self) -> Self {
        macro_rules! first {
            ($($field:ident),*) => { Self { $($field: self.$field.or(below.$field)),* } };
        }
        every_field!(first)
    }

    /// The first setting that only the other role knows.
    pub(crate) fn out_of_place(&self, role: Role) -> Option<&'static str> {
        let (primary, replica) = (
            [
                ("shards", self.shards.is_some()),
                ("replicas", self.replicas.is_some()),
                ("commit", self.commit.is_some()),
                ("deadline", self.deadline.is_some()),
                ("too-few", self.too_few.is_some()),
                ("segment-size", self.segment_size.is_some()),
                ("max-linger", self.max_linger.is_some()),
                ("lag-target", self.lag_target.is_some()),
                ("min-replicas", self.min_replicas.is_some()),
                ("min-replicas-age", self.min_replicas_age.is_some()),
            ],
            [
                ("name", self.name.is_some()),
                ("primary", self.primary.is_some()),
                ("join", self.join.is_some()),
                ("reconnect-max", self.reconnect_max.is_some()),
                ("rebuild", self.rebuild.is_some()),
            ],
        );
        let others: &[(&str, bool)] = if role == Role::Primary { &replica } else { &primary };
        others.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Takes appends.
    Primary,
    /// Follows a primary.
    Replica,
}

/// What a replica joins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Join {
    /// It only reads.
    Reader,
    /// It counts for commits, once it is live.
    Quorum,
}

/// Whether batches are sent without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NoCopy {
    Auto,
    Off,
    Always,
}

impl From<NoCopy> for ZeroCopy {
    fn from(no_copy: NoCopy) -> Self {
        match no_copy {
            NoCopy::Auto => Self::Auto,
            NoCopy::Off => Self::Off,
            NoCopy::Always => Self::Always,
        }
    }
}

/// What to do while too few replicas are connected.
#[derive(Clone, Copy, Debug, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TooFew {
    /// Append, and wait for them until the deadline.
    Wait,
    /// Refuse the append before anything is written.
    Refuse,
}

impl From<TooFew> for TooFewReplicas {
    fn from(too_few: TooFew) -> Self {
        match too_few {
            TooFew::Wait => Self::Wait,
            TooFew::Refuse => Self::Refuse,
        }
    }
}

/// How links compress batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compress {
    /// Not at all.
    Off,
    /// With LZ4.
    Lz4,
}

impl From<Compress> for towline::Compress {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::Off => Self::Off,
            Compress::Lz4 => Self::Lz4,
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is not what it should be.
    #[error("{path}:{line}:{column}: {field}{message}", path = .path.display())]
    Content { path: PathBuf, line: usize, column: usize, field: String, message: String },
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Settings, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read { path: path.into(), source })?;
    parse(path, &text)
}

/// Reads a file's text.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Settings, FileError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let (line, column) = position(text, &span);
        let field = field(text, line).map(|f| format!("{f}: ")).unwrap_or_default();
        // In one line: it goes to logs.
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        FileError::Content { path: path.into(), line, column, field, message }
    })
}

/// Line and column, counted from 1 in characters.
fn position(text: &str, span: &Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The field whose value a line belongs to: the last one that begins at or above it.
fn field(text: &str, line: usize) -> Option<&str> {
    let key = |line: &'_ str| line.split_once('=').map(|(key, _)| key.trim().len());
    let lines: Vec<&str> = text.lines().take(line).collect();
    let found = lines.iter().rev().find(|l| !l.trim_start().starts_with('#') && key(l).is_some())?;
    Some(found.split_once('=')?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline::Retain;

    const EXAMPLE: &str = include_str!("../../../../docs/towline.example.toml");

    /// The example with every field that is commented out put in place.
    fn uncommented() -> String {
        let field = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let plain = |line: &'static str| line.strip_prefix('#').filter(|l| field(l)).unwrap_or(line);
        EXAMPLE.lines().map(plain).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_can_be_used_and_covers_every_field() {
        let example: Settings = toml::from_str(EXAMPLE).unwrap();
        assert_eq!(example.role, Some(Role::Primary));
        let all: Settings = toml::from_str(&uncommented()).unwrap();
        macro_rules! given {
            ($($field:ident),*) => {
                $(assert!(all.$field.is_some(), "{} is not in docs/towline.example.toml", stringify!($field));)*
            };
        }
        every_field!(given);
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Settings = toml::from_str("shards = 3\nretain = \"1GiB\"\nsegment-size = 65536").unwrap();
        let flags = Settings { shards: Some(5), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!((both.shards, both.segment_size), (Some(5), Some(Size(65536))));
        assert_eq!(both.retain, Some(Keep(Retain::Bytes(1 << 30))));
    }

    #[test]
    fn an_error_names_file_field_and_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        for (text, expected) in [
            ("shards = 3\nshard = 4\n", "t.toml:2:1: shard: unknown field `shard`"),
            ("segment-size = \"64MB\"\n", "t.toml:1:16: segment-size: `64MB`: unit `MB` is not known"),
            ("# a comment\n  deadline = 5\n", "t.toml:2:14: deadline: invalid type: integer `5`, expected a string"),
            ("commit = \"ack_n\"", "t.toml:1:10: commit: commit policy \"ack_n\": ack_n needs a number"),
            ("segment-size = -1", "t.toml:1:16: segment-size: invalid value: integer `-1`, expected a size like"),
            ("cpus = [\n  0,\n  \"x\",\n]", "t.toml:3:3: cpus: invalid type: string \"x\""),
            ("role = \"leader\"", "t.toml:1:8: role: unknown variant `leader`, expected `primary` or `replica`"),
            ("shards = \n", "t.toml:1:"),
            ("name = \"a\"\nname = \"b\"", "t.toml:2:1: name: duplicate key"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        let error = read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("none"), "{error}");
    }
}
