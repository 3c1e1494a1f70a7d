//! `towline restore`: a node's folder of a backup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use towline::offline;
use towline::wire::handshake::NodeName;

use super::files::{self, Progress};
use super::manifest::{self, DATA, FILE, Manifest};
use super::{Failure, io_at, tell};

/// Make a node's folder of a backup, after every file of it was checked.
///
/// The folder is a replica's: serve it with --role replica under its name, or make it a primary with
/// --role primary --promote. It is put together beside its place, under a name that ends in `.restoring`,
/// flushed, verified, and then renamed: whatever is in its place is whole. What an interrupted restore
/// leaves under the other name is to be removed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  the folder is whole and durable
  1  the backup or a folder is at fault; the message says what. Nothing is in the folder's place
  2  the command line cannot be understood")]
pub(crate) struct Args {
    /// The backup
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,

    /// The node's folder: empty, or not there
    #[arg(value_name = "DIR")]
    data: PathBuf,

    /// The replica's name that the folder gets
    #[arg(long, value_name = "NAME", default_value = "restored")]
    name: String,

    /// One JSON object on stdout when it is done
    #[arg(long)]
    json: bool,
}

/// Restores a backup.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let Some(name) = NodeName::new(&args.name) else {
        return Err(Failure::Log(format!("{:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -", args.name)));
    };
    let manifest =
        Manifest::read(&args.backup).map_err(|source| Failure::Manifest { path: args.backup.clone(), source })?;
    // What the manifest does not name is not of this backup, or the manifest is of another one.
    let expected = manifest.files().map(|f| format!("{DATA}/{}", f.path)).chain([FILE.to_owned()]).collect();
    let found = files::list(&args.backup).map_err(io_at(&args.backup))?;
    if let Some(missing) = found.symmetric_difference(&expected).next() {
        let what = if found.contains(missing) { "is not in the manifest" } else { "is missing" };
        return Err(Failure::Log(format!("{}: {missing} {what}", args.backup.display())));
    }
    let staging = staging_of(&args.data)?;
    if fs::read_dir(&args.data).is_ok_and(|mut d| d.next().is_some()) {
        return Err(Failure::Log(format!("{} is not empty", args.data.display())));
    }
    if fs::symlink_metadata(&staging).is_ok() {
        let at = staging.display();
        return Err(Failure::Log(format!("{at} is there: a restore was not finished, or runs. Remove it first")));
    }
    fs::create_dir(&staging).map_err(io_at(&staging))?;
    if let Err(e) = fill(&args.backup, &staging, &manifest, name) {
        // It was made here, and is of no use.
        let _ = fs::remove_dir_all(&staging);
        return Err(e);
    }
    // Over an empty folder, or nothing.
    fs::rename(&staging, &args.data).map_err(io_at(&args.data))?;
    let parent = parent_of(&args.data);
    fs::File::open(&parent).and_then(|f| f.sync_all()).map_err(io_at(&parent))?;
    tell("restored", &args.data, &manifest, args.json)
}

/// Puts the folder together, and checks all of it.
fn fill(backup: &Path, staging: &Path, manifest: &Manifest, name: NodeName) -> Result<(), Failure> {
    let mut progress = Progress::new("restored", manifest.bytes());
    for shard in &manifest.shards {
        // A shard that holds nothing has no file in it.
        let first = staging.join(manifest::segment_path(shard.shard, 0));
        files::make_folder_of(&first, staging).map_err(io_at(&first))?;
    }
    for file in manifest.files() {
        let (source, target) = (backup.join(DATA).join(&file.path), staging.join(&file.path));
        files::make_folder_of(&target, staging).map_err(io_at(&target))?;
        let crc = files::copy(&source, &target, file.bytes, &mut progress).map_err(io_at(&source))?;
        if manifest::hex(crc) != file.crc32c {
            return Err(Failure::Log(format!("{}: its CRC is not the manifest's", source.display())));
        }
    }
    offline::adopt(staging, name)?;
    let report = offline::verify(staging)?;
    if let Some(damage) = report.shards.iter().find_map(|s| s.damage.as_ref()) {
        let what = format!("{}: {} at {}", damage.path.display(), damage.reason, damage.offset);
        return Err(Failure::Log(what));
    }
    let is = Manifest::of(&report);
    let same = |(a, b): (&manifest::Shard, &manifest::Shard)| {
        (a.oldest_lsn, a.end_lsn, a.term, a.records) == (b.oldest_lsn, b.end_lsn, b.term, b.records)
    };
    let shards = is.shards.len() == manifest.shards.len() && is.shards.iter().zip(&manifest.shards).all(same);
    if is.system != manifest.system || is.segment_bytes != manifest.segment_bytes || !shards {
        return Err(Failure::Log(format!("{}: the log is not the one that the manifest tells of", staging.display())));
    }
    files::sync_folders(staging, manifest.files().map(|f| f.path.as_str())).map_err(io_at(staging))
}

fn parent_of(data: &Path) -> PathBuf {
    data.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where the folder is put together: on the same file system, beside its place.
fn staging_of(data: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = data.file_name() else {
        return Err(Failure::Log(format!("{} is no folder's name", data.display())));
    };
    let mut name = name.to_os_string();
    name.push(".restoring");
    Ok(parent_of(data).join(name))
}
