//! The manifest of a backup: what it is of, and every file with its size and CRC. Two lines of JSON; the
//! second one is the CRC of the first.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use towline_wire::SystemId;
use towline_wire::frame::HEADER;
use towline_wire::message::{SNAPSHOT_BEGIN, SNAPSHOT_END};

use crate::limits;
use crate::offline::VerifyReport;

/// Its file's name.
pub const FILE: &str = "manifest.json";
/// The folder beside it that holds the node's files.
pub const DATA: &str = "data";
/// What the format calls itself.
const FORMAT: &str = "towline-backup";
/// The version of one that holds logs.
const LOGS: u64 = 1;
/// The version of one that holds an embedder's state, and the place in the log where that stands.
const STATES: u64 = 2;
/// Bytes of the smallest file of a state: its two ends, and nothing in between.
const STATE_BYTES_MIN: u64 = (2 * HEADER + SNAPSHOT_BEGIN + SNAPSHOT_END) as u64;
/// The largest: those of all shards together can be added up.
const STATE_BYTES_MAX: u64 = u64::MAX / 2 / limits::SHARDS_MAX as u64;
/// Bytes of a superblock's file.
const SUPERBLOCK_BYTES: u64 = towline_wire::superblock::FILE as u64;
const BLOCK: u64 = towline_wire::BLOCK as u64;

/// A whole backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub version: u64,
    pub system: String,
    pub segment_bytes: u64,
    pub shards: Vec<Shard>,
}

/// One shard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    pub shard: u32,
    pub term: u64,
    pub oldest_lsn: u64,
    pub end_lsn: u64,
    pub records: u64,
    pub files: Vec<File>,
}

/// One file of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Below the folder `data`.
    pub path: String,
    pub bytes: u64,
    /// Eight hexadecimal digits.
    pub crc32c: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    crc32c: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("there is no {FILE} in it: it is no backup, or one that was not finished")]
    Unfinished,
    #[error("{FILE} cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{FILE} is damaged: {0}")]
    Damaged(String),
    #[error("{FILE} has format {format:?} version {version}, this build reads {FORMAT:?} versions {LOGS} and {STATES}")]
    Version { format: String, version: String },
    #[error("{FILE} says what cannot be: {0}")]
    Wrong(String),
}

/// A CRC as the manifest has it.
pub fn hex(crc: u32) -> String {
    format!("{crc:08x}")
}

/// The files of a shard with this log, by name and size, in the order of the manifest.
pub fn files_of(shard: u32, oldest: u64, end: u64, segment: u64) -> impl Iterator<Item = (String, u64)> {
    let first = oldest - oldest % segment;
    let superblock = (superblock_path(shard), SUPERBLOCK_BYTES);
    let segments = (0..count_of(oldest, end, segment)).map(move |n| {
        let start = first + n * segment;
        (segment_path(shard, start), segment)
    });
    std::iter::once(superblock).chain(segments)
}

/// The file of a shard's superblock.
#[must_use]
pub fn superblock_path(shard: u32) -> String {
    format!("shard-{shard:04}/superblock")
}

/// The file of the segment that starts there.
pub fn segment_path(shard: u32, start: u64) -> String {
    format!("shard-{shard:04}/wal/{start:016x}.wal")
}

/// The file of a shard's state.
#[must_use]
pub fn state_path(shard: u32) -> String {
    format!("shard-{shard:04}/state")
}

/// Segments that hold a log.
fn count_of(oldest: u64, end: u64, segment: u64) -> u64 {
    if end > oldest { end.div_ceil(segment) - oldest / segment } else { 0 }
}

impl File {
    /// Its CRC; none if that is not eight hexadecimal digits.
    #[must_use]
    pub fn crc(&self) -> Option<u32> {
        u32::from_str_radix(&self.crc32c, 16).ok().filter(|crc| hex(*crc) == self.crc32c)
    }
}

impl Shard {
    /// The files of its log, of a manifest that holds `states` or not.
    #[must_use]
    pub fn log(&self, states: bool) -> &[File] {
        if states { &self.files[..self.files.len().min(1)] } else { &self.files }
    }

    /// The file of its state, of a manifest that holds states. A shard that stands at LSN 0 has none.
    #[must_use]
    pub fn state(&self) -> Option<&File> {
        self.files.get(1)
    }
}

impl Manifest {
    /// Of states of these shards.
    #[must_use]
    pub fn of_states(system: SystemId, segment_bytes: u64, shards: Vec<Shard>) -> Self {
        Self { format: FORMAT.into(), version: STATES, system: system.to_string(), segment_bytes, shards }
    }

    /// Whether it is of states, and not of logs.
    #[must_use]
    pub const fn holds_states(&self) -> bool {
        self.version == STATES
    }

    /// Of what was verified, without its files' CRCs.
    pub fn of(report: &VerifyReport) -> Self {
        let segment_bytes = report.shards.first().map_or(0, |s| s.segment_bytes);
        let shards = report.shards.iter().map(|s| Shard {
            shard: s.shard.0,
            term: s.term.0,
            oldest_lsn: s.oldest.0,
            end_lsn: s.end.0,
            records: s.records,
            files: files_of(s.shard.0, s.oldest.0, s.end.0, segment_bytes)
                .map(|(path, bytes)| File { path, bytes, crc32c: String::new() })
                .collect(),
        });
        Self {
            format: FORMAT.into(),
            version: LOGS,
            system: report.shards.first().map_or_else(String::new, |s| s.system.to_string()),
            segment_bytes,
            shards: shards.collect(),
        }
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.shards.iter().flat_map(|s| &s.files)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files().map(|f| f.bytes).sum()
    }

    /// Its two lines.
    pub fn text(&self) -> String {
        let json = |what: serde_json::Result<String>| what.expect("numbers and texts are JSON");
        let line = json(serde_json::to_string(self));
        let seal = Seal { crc32c: hex(crc32c::crc32c(line.as_bytes())) };
        format!("{line}\n{}\n", json(serde_json::to_string(&seal)))
    }

    /// Writes it: from then on the backup counts.
    pub fn write(&self, backup: &Path) -> io::Result<()> {
        let making = backup.join("manifest.tmp");
        let mut file = fs::File::create(&making)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&making, backup.join(FILE))?;
        fs::File::open(backup)?.sync_all()
    }

    /// Reads and checks it: what it says can be, and names no file that a node would not have.
    pub fn read(backup: &Path) -> Result<Self, ManifestError> {
        let path = backup.join(FILE);
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ManifestError::Unfinished),
            Err(e) => return Err(e.into()),
            Ok(m) if !m.is_file() => return Err(ManifestError::Damaged("it is no file".into())),
            Ok(m) if m.len() > limits::MANIFEST_BYTES_MAX => {
                return Err(ManifestError::Damaged(format!("it has {} bytes", m.len())));
            }
            Ok(_) => {}
        }
        Self::check(&fs::read(&path)?)
    }

    /// As [`Manifest::read`], of its bytes.
    pub fn check(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged(what.into());
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [line, seal, ""] = lines[..] else { return Err(damaged("it has not two lines")) };
        let seal: Seal = serde_json::from_str(seal).map_err(|_| damaged("its second line is no CRC"))?;
        if seal.crc32c != hex(crc32c::crc32c(line.as_bytes())) {
            return Err(damaged("its CRC is another one"));
        }
        let value: serde_json::Value = serde_json::from_str(line).map_err(|e| ManifestError::Damaged(e.to_string()))?;
        if value["format"] != FORMAT || (value["version"] != LOGS && value["version"] != STATES) {
            let format = value["format"].as_str().unwrap_or("").to_owned();
            return Err(ManifestError::Version { format, version: value["version"].to_string() });
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| ManifestError::Wrong(e.to_string()))?;
        manifest.can_be().map_err(ManifestError::Wrong)?;
        Ok(manifest)
    }

    /// Every name and size follows from the positions, so that none can lead anywhere else.
    fn can_be(&self) -> Result<(), String> {
        let segment = self.segment_bytes;
        let range = limits::SEGMENT_BYTES_MIN..=limits::SEGMENT_BYTES_MAX;
        if !range.contains(&segment) || !segment.is_multiple_of(BLOCK) {
            return Err(format!("segments of {segment} bytes"));
        }
        if self.shards.is_empty() || self.shards.len() > limits::SHARDS_MAX as usize {
            return Err(format!("{} shards", self.shards.len()));
        }
        for (n, s) in self.shards.iter().enumerate() {
            if s.shard as usize != n {
                return Err(format!("shard {} in the place of shard {n}", s.shard));
            }
            let (oldest, end) = (s.oldest_lsn, s.end_lsn);
            if oldest > end || !oldest.is_multiple_of(BLOCK) || !end.is_multiple_of(BLOCK) || end > u64::MAX / 2 {
                return Err(format!("shard {n} from {oldest} to {end}"));
            }
            let state = self.holds_states() && end > 0;
            if self.holds_states() && (oldest != end || s.records != 0) {
                return Err(format!("a state of shard {n} with a log from {oldest} to {end}"));
            }
            // Before anything is counted up that the manifest merely says.
            if s.files.len() as u64 != 1 + count_of(oldest, end, segment) + u64::from(state) {
                return Err(format!("{} files of shard {n}", s.files.len()));
            }
            if let Some(file) = s.state().filter(|_| state) {
                let sizes = STATE_BYTES_MIN..=STATE_BYTES_MAX;
                if file.path != state_path(s.shard) || !sizes.contains(&file.bytes) {
                    return Err(format!("{:?} with {} bytes where a state belongs", file.path, file.bytes));
                }
            }
            for (file, (path, bytes)) in s.files.iter().zip(files_of(s.shard, oldest, end, segment)) {
                if file.path != path || file.bytes != bytes {
                    return Err(format!("{:?} with {} bytes where {path} with {bytes} belongs", file.path, file.bytes));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 10;

    fn manifest() -> Manifest {
        let files = |shard, oldest, end| {
            let with_crc = |(path, bytes)| File { path, bytes, crc32c: hex(7) };
            files_of(shard, oldest, end, SEGMENT).map(with_crc).collect()
        };
        let shard = |shard, oldest_lsn, end_lsn| Shard {
            shard,
            term: 3,
            oldest_lsn,
            end_lsn,
            records: 9,
            files: files(shard, oldest_lsn, end_lsn),
        };
        let shards = vec![shard(0, 4096, 3 * SEGMENT), shard(1, SEGMENT, SEGMENT), shard(2, 0, 4096)];
        Manifest { format: FORMAT.into(), version: LOGS, system: "00".into(), segment_bytes: SEGMENT, shards }
    }

    #[test]
    fn a_manifest_comes_back_and_names_every_segment_that_holds_the_log() {
        let m = manifest();
        assert_eq!(Manifest::check(m.text().as_bytes()).unwrap(), m);
        let counts: Vec<_> = m.shards.iter().map(|s| s.files.len()).collect();
        assert_eq!(counts, [4, 1, 2]);
        assert_eq!(m.shards[0].files[1].path, "shard-0000/wal/0000000000000000.wal");
        assert_eq!(m.bytes(), 5 * SEGMENT - SEGMENT + 3 * SUPERBLOCK_BYTES);
    }

    /// Of states of two shards, of which the second stands at the beginning.
    fn states() -> Manifest {
        let shard = |shard, at| {
            let superblock = File { path: superblock_path(shard), bytes: SUPERBLOCK_BYTES, crc32c: hex(7) };
            let state = File { path: state_path(shard), bytes: STATE_BYTES_MIN, crc32c: hex(8) };
            let files = if at > 0 { vec![superblock, state] } else { vec![superblock] };
            Shard { shard, term: 3, oldest_lsn: at, end_lsn: at, records: 0, files }
        };
        Manifest::of_states(SystemId([1; 16]), SEGMENT, vec![shard(0, SEGMENT + 4096), shard(1, 0)])
    }

    #[test]
    fn every_changed_byte_and_every_shorter_text_is_refused() {
        for manifest in [manifest(), states()] {
            let text = manifest.text().into_bytes();
            assert_eq!(Manifest::check(&text).unwrap(), manifest);
            for at in 0..text.len() {
                let mut changed = text.clone();
                changed[at] ^= 1;
                assert!(Manifest::check(&changed).is_err(), "byte {at}");
                assert!(Manifest::check(&text[..at]).is_err(), "{at} bytes");
            }
        }
    }

    #[test]
    fn states_that_cannot_be_are_refused_although_their_crc_is_right() {
        type Change = fn(&mut Manifest);
        let cases: &[(&str, Change)] = &[
            ("a path that leads out", |m| m.shards[0].files[1].path = "../state".into()),
            ("another shard's state", |m| m.shards[0].files[1].path = state_path(1)),
            ("a state that is too small", |m| m.shards[0].files[1].bytes -= 1),
            ("sizes that cannot be added up", |m| m.shards[0].files[1].bytes = STATE_BYTES_MAX + 1),
            ("no state", |m| drop(m.shards[0].files.pop())),
            ("no superblock", |m| drop(m.shards[0].files.remove(0))),
            ("a state where nothing stands", |m| {
                let state = m.shards[0].files[1].clone();
                m.shards[1].files.push(File { path: state_path(1), ..state });
            }),
            ("records", |m| m.shards[0].records = 1),
            ("a log", |m| m.shards[0].oldest_lsn -= 4096),
            ("another version", |m| m.version = LOGS),
        ];
        for (what, change) in cases {
            let mut m = states();
            change(&mut m);
            let e = Manifest::check(m.text().as_bytes());
            assert!(matches!(e, Err(ManifestError::Wrong(_))), "{what}: {e:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_although_its_crc_is_right() {
        type Change = fn(&mut Manifest);
        let cases: &[(&str, Change)] = &[
            ("a path that leads out", |m| m.shards[0].files[1].path = "../../etc/passwd".into()),
            ("an absolute path", |m| m.shards[0].files[0].path = "/superblock".into()),
            ("another segment's name", |m| m.shards[0].files[1].path = m.shards[0].files[2].path.clone()),
            ("another shard's file", |m| m.shards[1].files[0].path = m.shards[0].files[0].path.clone()),
            ("a wrong size", |m| m.shards[0].files[1].bytes += 1),
            ("a missing file", |m| drop(m.shards[0].files.pop())),
            ("one file more", |m| {
                let more = m.shards[2].files[1].clone();
                m.shards[2].files.push(more);
            }),
            ("a missing shard", |m| drop(m.shards.remove(1))),
            ("no shard", |m| m.shards.clear()),
            ("an end before the beginning", |m| m.shards[2].oldest_lsn = 8192),
            ("an end that is no block's", |m| m.shards[2].end_lsn = 4097),
            ("an end out of this world", |m| m.shards[2].end_lsn = u64::MAX - 4095),
            ("segments of no size", |m| m.segment_bytes = 0),
            ("segments of another size", |m| m.segment_bytes = 128 << 10),
        ];
        for (what, change) in cases {
            let mut m = manifest();
            change(&mut m);
            let e = Manifest::check(m.text().as_bytes());
            assert!(matches!(e, Err(ManifestError::Wrong(_))), "{what}: {e:?}");
        }
    }

    #[test]
    fn a_manifest_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join(FILE)).unwrap();
        let read = || Manifest::read(dir.path()).unwrap_err().to_string();
        file.set_len(limits::MANIFEST_BYTES_MAX + 1).unwrap();
        assert!(read().ends_with("it has 134217729 bytes"), "{}", read());
        file.set_len(2).unwrap();
        assert!(read().ends_with("it has not two lines"), "{}", read());
    }

    #[test]
    fn another_format_and_a_newer_version_are_named() {
        let with = |change: fn(&mut Manifest)| {
            let mut m = manifest();
            change(&mut m);
            Manifest::check(m.text().as_bytes()).unwrap_err().to_string()
        };
        assert!(with(|m| m.version = 3).contains("version 3"));
        assert!(with(|m| m.format = "tar".into()).contains("\"tar\""));
    }
}
