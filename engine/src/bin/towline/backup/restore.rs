//! `towline restore`: a node's folder of a backup.

use std::path::PathBuf;
use std::process::ExitCode;

use towline::backup;

use super::progress::Progress;
use super::{Failure, tell};

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
    let manifest = backup::restore_log(&args.backup, &args.data, &args.name, |manifest| {
        let mut progress = Progress::new("restored", manifest.bytes());
        Box::new(move |bytes| progress.add(bytes))
    })?;
    tell("restored", &args.data, &manifest, args.json)
}
