//! `towline-bench`: workloads beside the physical limit of the same machine in the same run.
//!
//! Without arguments it runs the canonical workload and prints two headline numbers, commits in
//! each second and the 99th percentile of a commit, each beside its limit.

mod allocations;
mod away;
mod catch_up;
mod cluster;
mod compare;
mod counts;
mod enumerate;
mod files;
mod limit;
mod many_cmd;
mod pipe;
mod real_errors;
mod remote;
mod report;
mod simulate;
mod workload;
mod zero_copy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Measure Towline: commits per second and their latency, beside what the disk and loopback of this
/// machine can do in the same run.
///
/// Without a subcommand it runs the workload; its defaults are the canonical one: 256 B records,
/// 1,024 outstanding, ack_n=2 over a primary and two replicas.
#[derive(Debug, Parser)]
#[command(name = "towline-bench", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    workload: workload::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this machine can do: durable overwrites, round trips, streams; beside fio if it is
    /// installed
    Limit(limit::Args),
    /// A replica that was away catches up, beside what disk and loopback can do, and beside what commits
    /// of the others cost meanwhile
    CatchUp(catch_up::Args),
    /// A replica is away while a load writes: memory and disk of its primary, beside what is allowed
    Away(away::Args),
    /// What a hundred links, 64 shards, and ten thousand connections that come and go cost
    Many(many_cmd::Args),
    /// A pipe of real files through the real commands: appended, replicated, read back, compared
    Pipe(pipe::Args),
    /// Every way in which a crash can leave a disk, at every boundary of a call: opened and checked
    Images(enumerate::Images),
    /// Every call to a disk fails, one in each run: nothing is acknowledged on it afterwards, nothing lost
    Errors(enumerate::Errors),
    /// Instructions of the hot path's parts, held against the stored counts
    Counts(counts::Args),
    /// Whole clusters in a simulated machine, under faults drawn from seeds
    Sim(simulate::Args),
    /// The same work on Towline and on its peers, side by side: a table, JSON, a page with plots
    Compare(Box<compare::Args>),
    /// Sends without a copy, forced, from buffers that are overwritten when they are let go of
    ZeroCopy(zero_copy::Args),
    /// A primary and its replicas for a network client: started by `compare`
    #[command(hide = true)]
    CompareNode(compare::NodeArgs),
    /// A replica in a process of its own: started by the workload
    #[command(hide = true)]
    Replica(remote::Args),
}

/// What a check comes to that finds something: nothing else that can go wrong ends so.
const FOUND: u8 = 3;

/// Why a command did not come to a good end.
#[derive(Debug)]
enum Ended {
    /// What was checked does not hold.
    Found(String),
    /// It could not be done.
    Failed(String),
}

impl From<String> for Ended {
    fn from(e: String) -> Self {
        Self::Failed(e)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Found(e)) => {
            eprintln!("towline-bench: {e}");
            ExitCode::from(FOUND)
        }
        Err(Ended::Failed(e)) => {
            eprintln!("towline-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Ended> {
    if !matches!(cli.command, Some(Command::Sim(_) | Command::Images(_) | Command::Errors(_))) {
        allocations::begin();
    }
    let result = match cli.command {
        Some(Command::Limit(args)) => limit::run(&args),
        Some(Command::Counts(args)) => counts::run(&args),
        Some(Command::CatchUp(args)) => catch_up::run(&args),
        Some(Command::Away(args)) => away::run(&args),
        Some(Command::Many(args)) => many_cmd::run(&args),
        Some(Command::Pipe(args)) => pipe::run(&args),
        Some(Command::Images(args)) => return enumerate::every_image(&args),
        Some(Command::Errors(args)) => return enumerate::every_error(&args),
        Some(Command::Sim(args)) => return simulate::execute(&args),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::ZeroCopy(args)) => zero_copy::run(&args),
        Some(Command::CompareNode(args)) => compare::node(&args),
        Some(Command::Replica(args)) => remote::run(&args),
        None => workload::run(&cli.workload),
    };
    Ok(result?)
}
