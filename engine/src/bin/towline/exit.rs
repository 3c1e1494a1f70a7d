//! Exit codes, and how a failed connection is told to a person.

use std::process::ExitCode;

use towline::client::{Advice, ClientError};

/// Our own input, output or arguments are at fault, or the peer breaks the protocol.
pub(crate) const FAILED: u8 = 1;
// 2 is clap's: arguments that cannot be understood.
/// The outcome of some record is unknown, because its deadline passed or its shard stopped.
pub(crate) const UNKNOWN: u8 = 3;
/// The node refused.
pub(crate) const REFUSED: u8 = 4;
/// The connection could not be opened, or was lost.
pub(crate) const LOST: u8 = 5;

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
    eprintln!("towline: {shown}");
}

/// Tells what is wrong with a connection and what can be done, and gives the exit code for it.
pub(crate) fn give_up(error: &ClientError) -> ExitCode {
    complain(&format!("{error} ({})", hint(error)));
    code(error)
}
