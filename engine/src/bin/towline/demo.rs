//! `towline demo`: what the engine does, shown on this machine.

use std::process::ExitCode;

use thiserror::Error;

/// Run a primary and two replicas on this machine and show what they do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Why the demonstration ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// There is none yet.
    #[error("this build has no demonstration yet")]
    Missing,
}

/// Runs it.
pub(crate) fn run(_: Args) -> Result<ExitCode, Failure> {
    Err(Failure::Missing)
}
