//! Why a node's folder cannot be opened, and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use towline_wire::superblock::SuperblockError;
use towline_wire::superblock::{VERSION, VERSION_READ_MIN};
use towline_wire::{BLOCK, Lsn, SystemId, Term};

use crate::config::ConfigError;

/// Why a node cannot be opened. Nothing was served. Each message says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process has the folder open.
    #[error("{path} is in use by another process{by}: stop that one first, or choose another folder")]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Which process, if the lock file says.
        by: String,
    },
    /// No term above the newest one is left: it was given or made up by somebody, not reached.
    #[error("{path}: no term is above {term}, a number that was made up: start from a copy, or lower --above-term")]
    NoHigherTerm {
        /// The folder.
        path: PathBuf,
        /// The newest term.
        term: Term,
    },
    /// The folder was made with another number of shards.
    #[error(
        "{path} was made with {on_disk} shards, {configured} are configured: the number cannot be changed, start with --shards {on_disk}"
    )]
    ShardCount {
        /// The folder.
        path: PathBuf,
        /// Shards it has.
        on_disk: u32,
        /// Shards configured.
        configured: u32,
    },
    /// A shard's folder is missing while others are there.
    #[error(
        "{path} is missing although the node has {shards} shards: restore it, or rebuild the whole node from the primary"
    )]
    MissingShard {
        /// The folder that should be there.
        path: PathBuf,
        /// Shards of the node.
        shards: u32,
    },
    /// A shard's superblock belongs to another shard or system.
    #[error(
        "{path} belongs to shard {shard} of system {system}, expected was shard {expected_shard} of system {expected_system}: folders were mixed up"
    )]
    Foreign {
        /// The superblock.
        path: PathBuf,
        /// The shard it names.
        shard: u32,
        /// The system it names.
        system: SystemId,
        /// The shard expected.
        expected_shard: u32,
        /// The system expected.
        expected_system: SystemId,
    },
    /// The folder is a replica's.
    #[error(
        "{path} is the folder of replica {name}: start it with --role replica, or, if its primary is gone for good, with --promote"
    )]
    IsReplica {
        /// The folder.
        path: PathBuf,
        /// The replica's name.
        name: String,
    },
    /// The folder is a primary's that was deposed.
    #[error(
        "{path} is the folder of a primary of term {own} that was deposed by term {by}: start it with --role replica, or, if the newer primary is gone for good, with --promote"
    )]
    Deposed {
        /// The folder.
        path: PathBuf,
        /// The last term in which it reigned.
        own: Term,
        /// The newer term that it has seen.
        by: Term,
    },
    /// The folder belongs to a replica of another name.
    #[error("{path} is the folder of replica {on_disk}, not of {configured}")]
    ReplicaName {
        /// The folder.
        path: PathBuf,
        /// The name it was made with.
        on_disk: String,
        /// The name configured.
        configured: String,
    },
    /// The format is another than this build's.
    #[error(
        "{path} has format version {version}, this build reads {VERSION_READ_MIN} to {VERSION}: use the build that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
    /// Neither copy of a superblock can be used.
    #[error(
        "{path}: neither copy of the superblock can be used (first: {a}; second: {b}): restore the shard, or rebuild it from the primary"
    )]
    Superblock {
        /// The file.
        path: PathBuf,
        /// What is wrong with the first copy.
        a: SuperblockError,
        /// What is wrong with the second copy.
        b: SuperblockError,
    },
    /// A segment file is missing.
    #[error(
        "segment {path} is missing, it holds the log from LSN {lsn} on: restore it, or rebuild the shard from a replica or the primary"
    )]
    MissingSegment {
        /// The file.
        path: PathBuf,
        /// Where it starts.
        lsn: Lsn,
    },
    /// A segment file has a wrong size.
    #[error("segment {path} has {bytes} bytes, {expected} are expected: it was cut or overwritten by something else")]
    SegmentSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The size expected.
        expected: u64,
    },
    /// A batch that was on the device is bad.
    #[error(
        "{path} is damaged at offset {offset} (LSN {lsn}): {reason}; {evidence}. The node does not start on it; rebuild the shard from a node that has it whole"
    )]
    Damage {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The LSN.
        lsn: Lsn,
        /// What is wrong.
        reason: String,
        /// Why it is no torn tail.
        evidence: String,
    },
    /// A position at which nothing can be read.
    #[error("no batch begins at LSN {lsn} ({reason}); the log that is kept begins at LSN {oldest}")]
    NoBatch {
        /// What was asked for.
        lsn: Lsn,
        /// The oldest position kept.
        oldest: Lsn,
        /// What is there.
        reason: String,
    },
    /// The file system has no direct I/O.
    #[error("the file system of {path} has no direct I/O ({source}): use ext4 or xfs on a local disk")]
    NoDirectIo {
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Direct I/O needs a larger alignment than the format has.
    #[error(
        "direct I/O on {path} needs blocks of {needed} bytes, the log has blocks of {BLOCK}: use a device with smaller blocks"
    )]
    Alignment {
        /// The folder.
        path: PathBuf,
        /// What the device needs.
        needed: u32,
    },
    /// `io_uring` cannot be used.
    #[error(
        "io_uring cannot be used ({source}): allow it (sysctl kernel.io_uring_disabled=0, and the seccomp profile of a container)"
    )]
    IoUring {
        /// What the kernel says.
        source: io::Error,
    },
    /// Too little memory may be locked.
    #[error(
        "{limit} bytes may be locked, {cores} cores need {needed}: raise it (ulimit -l, LimitMEMLOCK= in systemd, --ulimit memlock in containers)"
    )]
    Memlock {
        /// What may be locked.
        limit: u64,
        /// Cores that run executors.
        cores: usize,
        /// What is needed.
        needed: u64,
    },
    /// The process has too many files open.
    #[error(
        "{action} {path}: too many files are open. Raise the limit (ulimit -n, LimitNOFILE= in systemd, --ulimit nofile in containers): a shard has up to 64 segments open, and each connection is one more"
    )]
    TooManyFiles {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// A thread of the node has ended, after a panic unless the node was stopped.
    #[error("{0}. Start the node again, and report the panic: it is a fault of this program")]
    ThreadEnded(String),
    /// The disk is full.
    #[error("the disk of {path} is full: free some space")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The folder may not be used.
    #[error("{action} {path}: permission denied. The node needs to read and write its folder")]
    Permission {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system takes no writes.
    #[error(
        "{action} {path}: the file system is read-only. The node needs to write its folder: see the kernel's log for why, and mount it for writing"
    )]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// Anything else the system says.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl OpenError {
    /// Names what was tried and on what; full disks and missing permissions get their own words.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            _ if is_out_of_descriptors(&source) => Self::TooManyFiles { action, path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            io::ErrorKind::PermissionDenied => Self::Permission { action, path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { action, path },
            _ => Self::Io { action, path, source },
        }
    }
}

impl From<crate::oneshot::Gone> for OpenError {
    fn from(gone: crate::oneshot::Gone) -> Self {
        Self::ThreadEnded(gone.to_string())
    }
}

/// The runtime wraps some errors, and keeps only their text.
fn is_out_of_descriptors(e: &io::Error) -> bool {
    match e.raw_os_error() {
        Some(code) => code == libc::EMFILE || code == libc::ENFILE,
        None => e.to_string().contains(&io::Error::from_raw_os_error(libc::EMFILE).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_open_files_says_what_to_raise_however_it_is_wrapped() {
        let plain = || io::Error::from_raw_os_error(libc::EMFILE);
        for e in [plain(), io::Error::other(format!("opening: {}", plain()))] {
            let said = OpenError::io("opening segment", "x.wal")(e).to_string();
            assert!(said.contains("ulimit -n"), "{said}");
        }
    }
}
