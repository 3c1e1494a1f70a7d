//! Exit codes, and how a failed connection is told to a person.

use std::io::{self, Write};
use std::process::ExitCode;

use towline::client::{Advice, ClientError};

/// Every code in one place, for `towline --help`. Each subcommand's help says which of them it gives
/// and when.
pub(crate) const HELP: &str = "\
Exit status of every subcommand:
  0  done; serve: stopped by SIGTERM or SIGINT; verify: the log is whole
  1  stdin, stdout, an argument or a file is at fault; serve, verify, dump, backup: the folder cannot be opened
  2  the command line cannot be understood
  3  the outcome of some records is unknown: their deadline passed, or the shard stopped
  4  refused by the node; serve --join: also where the slot was lost or the log is too old
  5  the connection could not be opened, or was lost
  6  verify, dump, backup: the log is damaged
  7  serve: a shard has stopped after an error, so the node has ended
  8  verify: the logs are not what the history says
  9  append: refused, as fewer replicas have acknowledged lately than min-replicas asks for
  101  a bug: an invariant did not hold

`towline SUBCOMMAND --help` says more.";

/// Our own input, output or arguments are at fault, or the peer breaks the protocol.
pub(crate) const FAILED: u8 = 1;
/// The command line cannot be understood: clap's own code.
pub(crate) const USAGE: u8 = 2;
/// The outcome of some record is unknown, because its deadline passed or its shard stopped.
pub(crate) const UNKNOWN: u8 = 3;
/// The node refused.
pub(crate) const REFUSED: u8 = 4;
/// The connection could not be opened, or was lost.
pub(crate) const LOST: u8 = 5;
/// The log is damaged.
pub(crate) const DAMAGED: u8 = 6;
/// A shard has stopped after an error.
pub(crate) const SHARD_STOPPED: u8 = 7;
/// A log is not what the history says.
pub(crate) const VIOLATED: u8 = 8;
/// The write gate `min-replicas` is shut.
pub(crate) const GATED: u8 = 9;
/// A panic, as the standard library has it.
pub(crate) const PANICKED: u8 = 101;

/// The exit code for an error of the client.
pub(crate) fn code(error: &ClientError) -> ExitCode {
    ExitCode::from(match error {
        e if e.is_refusal() => REFUSED,
        e if e.advice() == Advice::Stop && !matches!(e, ClientError::Frame { at: 0, .. }) => FAILED,
        _ => LOST,
    })
}

/// What a person can do about a connection.
pub(crate) fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::Frame { at: 0, .. } => "is that the address of a Towline node?",
        _ => match error.advice() {
            Advice::TryElsewhere => "ask another node, or try again later",
            Advice::Reopen => "try again; the node itself may be well",
            Advice::Stop => "trying again will give the same answer",
        },
    }
}

/// Tells a person on stderr. What a peer wrote may hold control characters: they do not reach the
/// terminal.
pub(crate) fn complain(text: &str) {
    let shown: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    // Unlike eprintln, this does not panic if stderr is closed.
    let _ = writeln!(io::stderr(), "towline: {shown}");
}

/// Tells what is wrong with a connection and what can be done, and gives the exit code for it.
pub(crate) fn give_up(error: &ClientError) -> ExitCode {
    complain(&format!("{error} ({})", hint(error)));
    code(error)
}
