//! `towline slot`: make or remove the slot of a replica on a running primary.

use std::process::ExitCode;

use clap::Subcommand;
use thiserror::Error;
use towline::client::{self, SlotAction};
use towline::wire::handshake::NodeName;

use crate::exit;

/// Make or remove the slot of a replica on a running primary, on every shard.
///
/// A slot is what a primary remembers of one replica: it keeps the log that the replica still needs.
/// `towline status` shows slots, what they hold, and why one was lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  it was done, and is durable
  1  the answer is not one
  2  the command line cannot be understood
  4  refused by the node: the message says why
  5  the connection could not be opened or was lost

Examples:
  towline slot create r2 --at 127.0.0.1:4790             a lost slot is made anew
  towline slot create reader --temporary --at 127.0.0.1:4790
  towline slot drop old-reader --at 127.0.0.1:4790")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a slot, or make a lost one anew; it holds what the log still has. A name that is not
    /// configured gets a slot whose replica only reads: no commit waits for it
    Create {
        /// The replica's name
        name: String,
        /// The primary's address, HOST:PORT
        #[arg(long, value_name = "ADDR")]
        at: String,
        /// It ends with its link, and no restart of the primary keeps it
        #[arg(long)]
        temporary: bool,
    },
    /// Remove a slot: its link ends, and no log is kept for it. A configured replica is refused until
    /// its slot is made anew
    Drop {
        /// The replica's name
        name: String,
        /// The primary's address, HOST:PORT
        #[arg(long, value_name = "ADDR")]
        at: String,
    },
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// It is no name.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
}

/// Asks.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let (name, at, action) = match args.action {
        Action::Create { name, at, temporary: false } => (name, at, SlotAction::Create),
        Action::Create { name, at, temporary: true } => (name, at, SlotAction::CreateTemporary),
        Action::Drop { name, at } => (name, at, SlotAction::Drop),
    };
    let Some(name) = NodeName::new(&name) else { return Err(Failure::Name(name)) };
    match client::change_slot(&at, name, action) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) => Ok(exit::give_up(&error)),
    }
}
