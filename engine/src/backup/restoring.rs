//! Making a node's folder of a backup, after all of it was checked.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use towline_wire::handshake::NodeName;
use towline_wire::superblock::Base;
use towline_wire::{Lsn, ShardId};

use super::manifest::{self, DATA, FILE, Manifest};
use super::states::{self, Expected};
use super::{BackupError, files, io_at};
use crate::offline::{self, VerifyReport};
use crate::snapshot::{Snapshot, SnapshotInfo, Stage};

/// Installs what [`export`](super::export) has written: the embedder's state, and the folder `data` of the
/// replica `name`, whose log begins where that state stands. `data` must be empty or not there: what a stopped
/// replica had is moved away first. Gives where each shard stands.
///
/// Everything is checked before anything is installed: names, sizes, CRCs, and that state and log fit each
/// other. [`Snapshot::stage`] and [`Stage::chunk`] are called for one shard after the other, on this thread,
/// which blocks; then, once all shards are staged, [`Stage::finish`] for each. No state of more than
/// `bytes_max` bytes is taken, and no more than one chunk is in memory. The folder is put together beside
/// `data`, as `data.restoring`, flushed, and renamed once the states are installed.
///
/// A process that dies between the two leaves the new state and no folder: restore again, without that
/// `.restoring`; or start the replica on an empty folder, which comes to both by itself.
///
/// # Errors
/// [`BackupError`] says why not. Nothing is in the place of `data` then, and the states are what they were,
/// unless it is an [`BackupError::Embedder`] that was installing: then which states are there shows at the
/// next start.
pub fn restore(
    backup: impl AsRef<Path>,
    data: impl AsRef<Path>,
    name: &str,
    store: &dyn Snapshot,
    bytes_max: u64,
) -> Result<Vec<SnapshotInfo>, BackupError> {
    let (backup, data) = (backup.as_ref(), data.as_ref());
    let manifest = read(backup)?;
    if !manifest.holds_states() {
        return Err(BackupError::HoldsLog(backup.into()));
    }
    let mut infos = Vec::new();
    put_together(backup, data, name, &manifest, &mut |_| (), |report| {
        let mut staged: Vec<(ShardId, Box<dyn Stage>)> = Vec::new();
        for (shard, found) in manifest.shards.iter().zip(&report.shards) {
            let (id, at) = (ShardId(shard.shard), Lsn(shard.oldest_lsn));
            let Some(file) = shard.state() else {
                let (next_seq, total_bytes) = (found.next_seq, Some(0));
                infos.push(SnapshotInfo { shard: id, at, next_seq, total_bytes });
                continue;
            };
            let path = backup.join(DATA).join(&file.path);
            let crc = file.crc().ok_or_else(|| BackupError::Crc { path: path.clone() })?;
            let base = Base { chain: found.chain, seq: found.next_seq };
            let expected = Expected { shard: id, at, base, bytes: file.bytes, crc, max: bytes_max };
            let (stage, info) = states::stage(&path, expected, store)?;
            staged.push((id, stage));
            infos.push(info);
        }
        for (shard, stage) in staged {
            let installed = stage.finish();
            installed.map_err(|source| BackupError::Embedder { shard, doing: "installing", source })?;
        }
        Ok(())
    })?;
    Ok(infos)
}

/// Makes a node's folder of a backup of logs; tells of each piece how many bytes it has.
///
/// # Errors
/// Why not. Nothing is in the folder's place then.
pub fn restore_log(
    backup: &Path,
    data: &Path,
    name: &str,
    each: impl FnOnce(&Manifest) -> Box<dyn FnMut(u64)>,
) -> Result<Manifest, BackupError> {
    let manifest = read(backup)?;
    if manifest.holds_states() {
        return Err(BackupError::HoldsState(backup.into()));
    }
    put_together(backup, data, name, &manifest, &mut each(&manifest), |_| Ok(()))?;
    Ok(manifest)
}

/// The manifest; and whether there is each file that it names, and no other.
fn read(backup: &Path) -> Result<Manifest, BackupError> {
    let manifest = Manifest::read(backup).map_err(|source| BackupError::Manifest { backup: backup.into(), source })?;
    // What the manifest does not name is not of this backup, or the manifest is of another one.
    let expected = manifest.files().map(|f| format!("{DATA}/{}", f.path)).chain([FILE.to_owned()]).collect();
    let mut found = files::list(backup).map_err(io_at(backup))?;
    // It is removed once the manifest is there; whoever made the backup may have died in between.
    found.remove(files::UNFINISHED);
    match found.symmetric_difference(&expected).next().cloned() {
        Some(file) if found.contains(&file) => Err(BackupError::Unknown { backup: backup.into(), file }),
        Some(file) => Err(BackupError::Missing { backup: backup.into(), file }),
        None => Ok(manifest),
    }
}

/// Puts a folder together, lets `install` do what belongs to it, and gives the folder its name.
fn put_together(
    backup: &Path,
    data: &Path,
    name: &str,
    manifest: &Manifest,
    each: &mut dyn FnMut(u64),
    install: impl FnOnce(&VerifyReport) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let name = NodeName::new(name).ok_or_else(|| BackupError::Name(name.into()))?;
    let staging = staging_of(data)?;
    match fs::read_dir(data) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(io_at(data)(e)),
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(BackupError::NotEmpty(data.into()));
            }
            // What is put together beside it could not be given its name.
            let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(io_at(path));
            if device(data)? != device(&parent_of(data))? {
                let why = "another file system is mounted there: restore to a folder in it";
                return Err(io_at(data)(io::Error::new(ErrorKind::CrossesDevices, why)));
            }
        }
    }
    match fs::create_dir(&staging) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(BackupError::Unfinished(staging)),
        other => other.map_err(io_at(&staging))?,
    }
    if let Err(e) = fill(backup, &staging, manifest, name, each).and_then(|report| install(&report)) {
        // It was made here, and is of no use.
        let _ = fs::remove_dir_all(&staging);
        return Err(e);
    }
    // Over an empty folder, or nothing.
    fs::rename(&staging, data).map_err(io_at(data))?;
    let parent = parent_of(data);
    sync(&parent).map_err(io_at(&parent))
}

/// Fills the folder with what a log has, and checks all of it.
fn fill(
    backup: &Path,
    staging: &Path,
    manifest: &Manifest,
    name: NodeName,
    each: &mut dyn FnMut(u64),
) -> Result<VerifyReport, BackupError> {
    for shard in &manifest.shards {
        // A shard that holds nothing has no file in it.
        let first = staging.join(manifest::segment_path(shard.shard, 0));
        files::make_folder_of(&first, staging).map_err(io_at(&first))?;
        for file in shard.log(manifest.holds_states()) {
            let (source, target) = (backup.join(DATA).join(&file.path), staging.join(&file.path));
            let crc = files::copy(&source, &target, file.bytes, &mut *each).map_err(io_at(&source))?;
            if file.crc() != Some(crc) {
                return Err(BackupError::Crc { path: source });
            }
        }
    }
    offline::adopt(staging, name)?;
    let report = offline::verify(staging)?;
    if let Some(damage) = report.shards.iter().find_map(|s| s.damage.as_ref()) {
        let (path, offset, reason) = (damage.path.clone(), damage.offset, damage.reason.clone());
        return Err(BackupError::Damaged { path, offset, reason });
    }
    let is = Manifest::of(&report);
    let same = |(a, b): (&manifest::Shard, &manifest::Shard)| {
        (a.oldest_lsn, a.end_lsn, a.term, a.records) == (b.oldest_lsn, b.end_lsn, b.term, b.records)
    };
    let shards = is.shards.len() == manifest.shards.len() && is.shards.iter().zip(&manifest.shards).all(same);
    if is.system != manifest.system || is.segment_bytes != manifest.segment_bytes || !shards {
        return Err(BackupError::OtherLog { path: staging.into() });
    }
    // The folder of a shard's log is there even if no file is in it.
    let logs: Vec<_> = manifest.shards.iter().map(|s| manifest::segment_path(s.shard, 0)).collect();
    let names = manifest.files().map(|f| f.path.as_str()).chain(logs.iter().map(String::as_str));
    files::sync_folders(staging, names).map_err(io_at(staging))?;
    Ok(report)
}

fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

fn parent_of(data: &Path) -> PathBuf {
    data.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where the folder is put together: on the same file system, beside its place.
fn staging_of(data: &Path) -> Result<PathBuf, BackupError> {
    let Some(name) = data.file_name() else { return Err(BackupError::NoFolder(data.into())) };
    let mut name = name.to_os_string();
    name.push(".restoring");
    Ok(parent_of(data).join(name))
}
