//! Writing an embedder's state to a folder, from a running primary.

use std::io::Write;
use std::path::Path;

use towline_wire::Lsn;
use towline_wire::handshake::NodeName;
use towline_wire::superblock::{COPY, FILE};

use super::manifest::{DATA, File, Manifest, Shard, hex, state_path, superblock_path};
use super::{BackupError, files, io_at, states};
use crate::limits::BACKUP_PATIENCE;
use crate::node::Primary;
use crate::shard::wal::open::{NewSlice, fresh};
use crate::shard::wal::superblock_file::OwnedSuperblock;
use crate::snapshot::{Snapshot, SnapshotInfo};

/// Writes an embedder's state on all shards of a running primary to the folder `to`, which must be empty or
/// not there, with the place in the log where each stands. [`restore`](super::restore) makes a replica of it,
/// which follows from there. Gives where each shard stands.
///
/// [`Snapshot::produce`] is called for one shard after the other, on this thread, which blocks; also while a
/// snapshot is made for a replica of the same shard. No state of more than `bytes_max` bytes is written. What
/// a state stands on is waited for until it is committed, up to
/// [`limits::BACKUP_PATIENCE`](crate::limits::BACKUP_PATIENCE). A shard that stands at LSN 0 has no state:
/// its chunks are not taken. No more than one chunk is in memory.
///
/// The log behind these places is not in the folder, and nobody keeps it for whoever restores it, unless
/// there is a slot: it is made before the export, see [`Primary::create_slot`].
///
/// # Errors
/// [`BackupError`] says why not. The folder is then without a manifest, and of no use.
pub fn export(
    primary: &Primary,
    store: &dyn Snapshot,
    to: impl AsRef<Path>,
    bytes_max: u64,
) -> Result<Vec<SnapshotInfo>, BackupError> {
    let to = to.as_ref();
    files::take_empty(to).map_err(io_at(to))?;
    let data = to.join(DATA);
    let (shard_count, segment_bytes) = primary.shape();
    let (mut shards, mut infos) = (Vec::new(), Vec::new());
    for status in primary.status() {
        let shard = status.shard;
        let embedder = |source| BackupError::Embedder { shard, doing: "making", source };
        let produced = store.produce(shard).map_err(embedder)?;
        let (at, term) = (produced.at, status.term);
        let base = primary.base_at(shard, at, BACKUP_PATIENCE)?;
        let superblock = OwnedSuperblock {
            generation: 1,
            term,
            // The log begins there, and holds nothing yet.
            oldest_lsn: at,
            floor_lsn: at,
            commit_lsn: at,
            base: (at > Lsn::ZERO).then_some(base),
            ..fresh(&NewSlice { system: primary.system(), shard, shard_count, segment_bytes, name: NodeName::NONE })
        };
        let mut entries = vec![write_superblock(&data, &superblock)?];
        let mut info = SnapshotInfo { shard, at, next_seq: base.seq, total_bytes: Some(0) };
        if at > Lsn::ZERO {
            let path = state_path(shard.0);
            let written = states::write(&data.join(&path), shard, (produced, base), bytes_max)?;
            entries.push(File { path, bytes: written.bytes, crc32c: hex(written.crc) });
            info.total_bytes = Some(written.state_bytes);
        }
        let (shard, term, lsn) = (shard.0, term.0, at.0);
        shards.push(Shard { shard, term, oldest_lsn: lsn, end_lsn: lsn, records: 0, files: entries });
        infos.push(info);
    }
    let manifest = Manifest::of_states(primary.system(), segment_bytes, shards);
    files::sync_folders(&data, manifest.files().map(|f| f.path.as_str())).map_err(io_at(&data))?;
    manifest.write(to).map_err(io_at(to))?;
    Ok(infos)
}

/// Writes a superblock with one copy, as a new shard has it.
fn write_superblock(data: &Path, superblock: &OwnedSuperblock) -> Result<File, BackupError> {
    let path = superblock_path(superblock.shard.0);
    let target = data.join(&path);
    let mut bytes = vec![0; FILE];
    let at = (superblock.generation % 2) as usize * COPY;
    superblock.encode(&mut bytes[at..at + COPY]);
    files::make_folder_of(&target, data).map_err(io_at(&target))?;
    let write = || {
        let mut file = std::fs::File::create_new(&target)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(io_at(&target))?;
    Ok(File { path, bytes: FILE as u64, crc32c: hex(crc32c::crc32c(&bytes)) })
}
