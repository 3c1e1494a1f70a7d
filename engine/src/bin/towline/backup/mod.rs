//! `towline backup`: a node's log in a folder with a manifest; and [`restore`].

mod progress;
pub(crate) mod restore;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;
use towline::backup::manifest::{self, DATA, Manifest};
use towline::backup::{BackupError, files};
use towline::client::{self, SlotAction};
use towline::limits::BACKUP_PATIENCE;
use towline::offline;
use towline::units::show_size;
use towline::wire::handshake::NodeName;
use towline::{OpenError, Replica, ReplicaConfig, ShardStatus};

use crate::exit;
use progress::Progress;

/// How often the progress of a backup is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long nothing comes before the slot is made anew, and how often that is tried.
const ASK: Duration = Duration::from_secs(1);

/// Save a node's log to a folder, with a manifest that names every file, its size and its CRC.
///
/// With --from it is taken from a running primary, through a temporary slot: like a replica that counts
/// for no commit, and that ends at where the log ended when it began. With --data it is taken from the
/// folder of a stopped node. Either way every batch of it is verified. The manifest is written last: a
/// folder without one is a backup that was not finished, to be removed, or gone on with by --resume. The
/// primary's --catch-up-max limits what it takes of the network.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  the backup is whole and durable
  1  a folder is at fault, or the log did not come; the message says what
  2  the command line cannot be understood
  4  refused by the node
  5  the connection could not be opened or was lost
  6  the log is damaged: no backup was made

Examples:
  towline backup --from 127.0.0.1:4790 /backup/monday
  towline backup --from 127.0.0.1:4790 --resume /backup/monday
  towline backup --data /var/lib/towline /backup/monday
  towline restore /backup/monday /var/lib/towline-r1 --name r1")]
pub(crate) struct Args {
    /// The address of a running primary, HOST:PORT
    #[arg(long, value_name = "ADDR", conflicts_with = "data", required_unless_present = "data")]
    from: Option<String>,

    /// The folder of a stopped node
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Go on with a backup that was not finished, from where it is
    #[arg(long, conflicts_with = "data")]
    resume: bool,

    /// Where the backup goes: a folder that is empty or not there
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,

    /// One JSON object on stdout when it is done
    #[arg(long)]
    json: bool,
}

/// Why a backup or a restore ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// A file or a folder.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A node's folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backup, or what is to be restored from it.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The log did not come, or is not what was expected.
    #[error("{0}")]
    Log(String),
    /// Stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Failure + '_ {
    |source| Failure::Io { path: path.into(), source }
}

/// Takes a backup.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    // Before anything is made.
    let status = match &args.from {
        Some(addr) => match client::status(addr) {
            Ok(status) => Some((addr, status)),
            Err(e) => return Ok(exit::give_up(&e)),
        },
        None => None,
    };
    let data = args.backup.join(DATA);
    let known = if args.resume {
        Some(files::take_unfinished(&args.backup).map_err(io_at(&args.backup))?)
    } else {
        files::take_empty(&args.backup).map_err(io_at(&args.backup))?;
        None
    };
    if let Some((addr, status)) = status {
        let slot = if let Some(slot) = known {
            // The one of before may not have ended yet.
            let _ = client::change_slot(addr, slot, SlotAction::CreateTemporary);
            slot
        } else {
            let name = format!("backup-{:016x}", RandomState::new().build_hasher().finish());
            let slot = NodeName::new(&name).expect("it is a name");
            if let Err(e) = client::change_slot(addr, slot, SlotAction::CreateTemporary) {
                return Ok(exit::give_up(&e));
            }
            files::begin_unfinished(&args.backup, slot).map_err(io_at(&args.backup))?;
            slot
        };
        let taken = follow(addr, slot, &data, &status);
        // It ends with its link; if there never was one, not before a minute has gone by.
        let _ = client::change_slot(addr, slot, SlotAction::Drop);
        taken?;
    }
    let from = args.data.as_ref().unwrap_or(&data);
    let held = offline::hold(from)?;
    let report = {
        let mut progress = Progress::new("verified", 0);
        offline::verify_with(from, |p| progress.at(p.read_bytes, p.at_most_bytes))?
    };
    if let Some(damage) = report.shards.iter().find_map(|s| s.damage.as_ref()) {
        exit::complain(&format!("{}: {} at {}", damage.path.display(), damage.reason, damage.offset));
        return Ok(ExitCode::from(exit::DAMAGED));
    }
    let mut manifest = Manifest::of(&report);
    if args.data.is_some() {
        fs::create_dir(&data).map_err(io_at(&data))?;
        let mut progress = Progress::new("copied", manifest.bytes());
        for file in manifest.shards.iter_mut().flat_map(|s| &mut s.files) {
            let (source, target) = (from.join(&file.path), data.join(&file.path));
            files::make_folder_of(&target, &data).map_err(io_at(&target))?;
            let crc = files::copy(&source, &target, file.bytes, |part| progress.add(part)).map_err(io_at(&source))?;
            file.crc32c = manifest::hex(crc);
        }
    } else {
        let mut progress = Progress::new("summed up", manifest.bytes());
        keep_only(&data, manifest.files().map(|f| f.path.clone()).collect())?;
        for file in manifest.shards.iter_mut().flat_map(|s| &mut s.files) {
            let path = data.join(&file.path);
            let crc = files::read(&path, file.bytes, |part| {
                progress.add(part.len() as u64);
                Ok(())
            });
            file.crc32c = manifest::hex(crc.map_err(io_at(&path))?);
        }
    }
    drop(held);
    files::sync_folders(&data, manifest.files().map(|f| f.path.as_str())).map_err(io_at(&data))?;
    manifest.write(&args.backup).and_then(|()| files::finished(&args.backup)).map_err(io_at(&args.backup))?;
    tell("backed up", &args.backup, &manifest, args.json)
}

/// Follows a primary to where its log ended when this began.
fn follow(addr: &str, slot: NodeName, data: &Path, status: &str) -> Result<(), Failure> {
    let status: Value = serde_json::from_str(status).map_err(|e| Failure::Log(format!("the node's status: {e}")))?;
    let shards = status["shards"].as_array().map_or(&[][..], Vec::as_slice);
    let position = |key: &str| -> Vec<u64> { shards.iter().map(|s| s[key].as_u64().unwrap_or(0)).collect() };
    let (oldest, ends) = (position("oldest_lsn"), position("appended_lsn"));
    let total: u64 = oldest.iter().zip(&ends).map(|(from, to)| to.saturating_sub(*from)).sum();
    let resolved = addr.to_socket_addrs().map_err(|e| Failure::Log(format!("{addr}: {e}")))?.next();
    let resolved = resolved.ok_or_else(|| Failure::Log(format!("{addr}: no address has this name")))?;
    let mut config = ReplicaConfig::new(data, slot.to_string(), resolved);
    config.node.segments_ahead = 1;
    let replica = Replica::open(config)?;
    let mut progress = Progress::new("copied", total);
    let (mut last, mut moved, mut asked) = (Vec::new(), Instant::now(), Instant::now());
    let came = loop {
        let now = replica.status();
        if let Some(why) = now.iter().find_map(|s| s.stopped.as_ref()) {
            break Err(Failure::Log(format!("the log cannot be written: {why}")));
        }
        let has = |s: &ShardStatus| s.durable_lsn.0 >= ends.get(s.shard.0 as usize).copied().unwrap_or(0);
        if now.len() == ends.len() && now.iter().all(has) {
            break Ok(());
        }
        let at: Vec<u64> = now.iter().map(|s| s.durable_lsn.0).collect();
        progress.at(now.iter().map(|s| s.durable_lsn.since(s.oldest_lsn)).sum(), total);
        if at != last {
            (last, moved) = (at, Instant::now());
        } else if moved.elapsed() > BACKUP_PATIENCE {
            let why = now.into_iter().find(|s| !has(s)).map(|s| s.link).unwrap_or_default();
            break Err(Failure::Log(format!("nothing came for {} s: {why}", BACKUP_PATIENCE.as_secs())));
        } else if moved.elapsed() > ASK && asked.elapsed() > ASK {
            // The slot ended with its link if that broke: it is made anew, as long as the log is kept. If it
            // is there, or the primary is not, nothing comes of it.
            let _ = client::change_slot(addr, slot, SlotAction::CreateTemporary);
            asked = Instant::now();
        }
        thread::sleep(LOOK);
    };
    replica.stop();
    came
}

/// Removes what a node had beside its log: segments that were ready, its lock.
fn keep_only(data: &Path, keep: BTreeSet<String>) -> Result<(), Failure> {
    for path in files::list(data).map_err(io_at(data))?.difference(&keep) {
        let path = data.join(path);
        fs::remove_file(&path).map_err(io_at(&path))?;
    }
    Ok(())
}

/// Says what was done: a line on stderr, or one object on stdout.
fn tell(done: &str, folder: &Path, manifest: &Manifest, json: bool) -> Result<ExitCode, Failure> {
    let records: u64 = manifest.shards.iter().map(|s| s.records).sum();
    let bytes = manifest.bytes();
    if json {
        let shards: Vec<_> = manifest
            .shards
            .iter()
            .map(|s| serde_json::json!({"shard": s.shard, "term": s.term, "oldest_lsn": s.oldest_lsn, "end_lsn": s.end_lsn, "records": s.records}))
            .collect();
        let document = serde_json::json!({"folder": folder.display().to_string(), "system": manifest.system,
            "bytes": bytes, "files": manifest.files().count(), "records": records, "shards": shards});
        writeln!(io::stdout().lock(), "{document}").map_err(Failure::Output)?;
    } else {
        let shards = manifest.shards.len();
        let text = format!("{done} to {}: {shards} shards, {records} records, {}", folder.display(), show_size(bytes));
        let _ = writeln!(io::stderr(), "towline: {text}");
    }
    Ok(ExitCode::SUCCESS)
}
