//! The `towline` command: a demonstration, a node, a client, and tools for a folder at rest.
//!
//! Each subcommand is a module with an `Args` and a `run` that gives the exit code or says why the
//! command ends with exit status 1; [`exit`] holds every code.

mod append;
mod backup;
mod config_file;
mod ctl;
mod demo;
mod dump;
mod exit;
mod serve;
mod signals;
mod slot;
mod status;
mod tail;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Replicate a write-ahead log: each record is durable on the primary and on as many replicas as
/// the commit policy asks for before it counts as committed.
///
/// Without a subcommand it runs the demonstration.
#[derive(Debug, Parser)]
#[command(name = "towline", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Serve(Box<serve::Args>),
    Append(append::Args),
    Tail(tail::Args),
    Status(status::Args),
    Slot(slot::Args),
    Ctl(ctl::Args),
    Verify(verify::Args),
    Dump(dump::Args),
    Backup(backup::Args),
    Restore(backup::restore::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command.or_else(|| Cli::parse_from(["towline", "demo"]).command);
    match command {
        None => ExitCode::from(exit::FAILED),
        Some(Command::Demo(args)) => told(demo::run(args)),
        Some(Command::Serve(args)) => told(serve::run(*args)),
        Some(Command::Append(args)) => told(append::run(args)),
        Some(Command::Tail(args)) => told(tail::run(args)),
        Some(Command::Status(args)) => told(status::run(args)),
        Some(Command::Slot(args)) => told(slot::run(args)),
        Some(Command::Ctl(args)) => told(ctl::run(args)),
        Some(Command::Verify(args)) => told(verify::run(args)),
        Some(Command::Dump(args)) => told(dump::run(args)),
        Some(Command::Backup(args)) => told(backup::run(args)),
        Some(Command::Restore(args)) => told(backup::restore::run(args)),
    }
}

/// Says why a command failed.
fn told<E: std::fmt::Display>(ended: Result<ExitCode, E>) -> ExitCode {
    ended.unwrap_or_else(|why| {
        exit::complain(&why.to_string());
        ExitCode::from(exit::FAILED)
    })
}
