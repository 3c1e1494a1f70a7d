//! `towline ctl`: look at and change the settings of a running primary.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;
use thiserror::Error;
use towline::wire::handshake::NodeName;
use towline::{CommitPolicy, SettingChange, client};

use crate::config_file::{Most, Parsed, Size, Time};
use crate::exit;
use crate::status;

/// Look at and change the settings of a running primary: who is configured, what commits wait for,
/// what is kept.
///
/// Each change is durable and in force on every shard when the command returns, survives restarts, and
/// makes a new version. After the first start the settings win over --replicas, --commit and the like
/// of `towline serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys of `set`, with what `towline serve` calls them:
  deadline TIME                 how long a commit waits unless it says otherwise
  retain-max auto|none|SIZE     the most log that slots may hold, for each shard
  slot-idle-max none|TIME       how long a replica may be away before it loses its slot
  min-replicas N                refuse appends while fewer replicas have acknowledged lately; 0: never
  min-replicas-age TIME         what is lately, 2s to 1h
  catch-up-max none|SIZE        bytes a second for a replica that catches up; none: a tenth of the disk's time beside others
  link-window SIZE              bytes sent to a replica and not yet received there, 4KiB to 1GiB
  lag-target none|SIZE          hold batches back gently while replicas that commits wait for are further behind

To add a replica to a loaded primary, let it catch up before it counts; one command on the new node does both:
  towline serve --role replica --name r3 --primary PRIMARY --join quorum ...

Exit status:
  0  it was done, and is durable
  1  the value is not one, or stdout is at fault
  2  the command line cannot be understood
  4  refused by the node: the message says why
  5  the connection could not be opened or was lost: `ctl show` tells whether it was done

Examples:
  towline ctl show --at 127.0.0.1:4790
  towline ctl replica add r3 --at 127.0.0.1:4790
  towline ctl replica remove r1 --at 127.0.0.1:4790 --if-version 7
  towline ctl commit majority --at 127.0.0.1:4790
  towline ctl set min-replicas 1 --at 127.0.0.1:4790")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

/// Where, and on what condition.
#[derive(Debug, clap::Args)]
struct Where {
    /// The primary's address, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    at: String,
    /// Only if the settings have this version, so that two operators do not overwrite each other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the settings and their version
    Show {
        /// The primary's address, HOST:PORT
        #[arg(long, value_name = "ADDR")]
        at: String,
        /// As one JSON object, for programs
        #[arg(long)]
        json: bool,
    },
    /// Configure a replica, or configure it no more
    Replica {
        #[command(subcommand)]
        action: ReplicaAction,
    },
    /// Change what a commit waits for unless it says otherwise
    Commit {
        /// local, ack_n=N[:LEVEL], all[:LEVEL] or majority[:LEVEL]
        policy: Parsed<CommitPolicy>,
        #[command(flatten)]
        at: Where,
    },
    /// Change another setting; the keys are below
    Set {
        /// deadline, retain-max, slot-idle-max, min-replicas, min-replicas-age, catch-up-max, link-window
        /// or lag-target
        key: String,
        /// The new value
        value: String,
        #[command(flatten)]
        at: Where,
    },
}

#[derive(Debug, Subcommand)]
enum ReplicaAction {
    /// It counts for commits from now on; a slot that is there for it stays where it is
    Add {
        /// The replica's name
        name: String,
        #[command(flatten)]
        at: Where,
    },
    /// Its link ends, its slot goes, and what it has counts no more. Commits that wait are judged by
    /// the replicas that are left
    Remove {
        /// The replica's name
        name: String,
        #[command(flatten)]
        at: Where,
    },
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// It is no name.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// There is no such key.
    #[error(
        "there is no setting {0:?}: there are deadline, retain-max, slot-idle-max, min-replicas, min-replicas-age, \
         catch-up-max, link-window and lag-target"
    )]
    Key(String),
    /// It is no value for the key.
    #[error("{key}: {why}")]
    Value { key: String, why: String },
    /// Stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
    /// The node's answer is not JSON.
    #[error("the node's status is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Asks.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let named = |name: &str| NodeName::new(name).ok_or_else(|| Failure::Name(name.into()));
    let (change, at) = match args.action {
        Action::Show { at, json } => {
            return match client::status(&at) {
                Ok(document) => show(&document, json),
                Err(error) => Ok(exit::give_up(&error)),
            };
        }
        Action::Replica { action: ReplicaAction::Add { name, at } } => (SettingChange::AddReplica(named(&name)?), at),
        Action::Replica { action: ReplicaAction::Remove { name, at } } => {
            (SettingChange::RemoveReplica(named(&name)?), at)
        }
        Action::Commit { policy, at } => (SettingChange::Commit(policy.0), at),
        Action::Set { key, value, at } => (setting(&key, &value)?, at),
    };
    match client::control(&at.at, change.to_wire(), at.if_version) {
        Ok(document) => show(&document, false),
        Err(error) => Ok(exit::give_up(&error)),
    }
}

/// What `set` changes.
fn setting(key: &str, value: &str) -> Result<SettingChange, Failure> {
    let bad = |why: String| Failure::Value { key: key.into(), why };
    let time = || value.parse::<Time>().map(|t| t.0).map_err(|e| bad(e.to_string()));
    let size = || value.parse::<Size>().map(|s| s.0).map_err(|e| bad(e.to_string()));
    let most = || if value == "none" { Ok(None) } else { size().map(Some) };
    Ok(match key {
        "deadline" => SettingChange::Deadline(time()?),
        "retain-max" => SettingChange::RetainMax(value.parse::<Most>().map_err(bad)?.0),
        "slot-idle-max" if value == "none" => SettingChange::SlotIdleMax(None),
        "slot-idle-max" => SettingChange::SlotIdleMax(Some(time()?)),
        "min-replicas" => {
            let number = value.parse().map_err(|_| bad(format!("{value:?} is no number from 0 to 255")))?;
            SettingChange::MinReplicas(number)
        }
        "min-replicas-age" => SettingChange::MinReplicasAge(time()?),
        "catch-up-max" => SettingChange::CatchUpMax(most()?),
        "link-window" => {
            let bytes = u32::try_from(size()?).map_err(|_| bad(format!("{value} is more than 1GiB")))?;
            SettingChange::LinkWindow(bytes)
        }
        "lag-target" => SettingChange::LagTarget(most()?),
        _ => return Err(Failure::Key(key.into())),
    })
}

/// Prints the settings that a status tells of.
fn show(document: &str, json: bool) -> Result<ExitCode, Failure> {
    let status: Value = serde_json::from_str(document)?;
    let node = &status["node"];
    let text = if json {
        let mut settings = node["settings"].clone();
        if let Some(settings) = settings.as_object_mut() {
            settings.insert("replicas".into(), node["replicas"].clone());
            settings.insert("commit".into(), node["policy"].clone());
        }
        format!("{settings}\n")
    } else {
        status::settings(node)
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use towline::RetainMax;

    #[test]
    fn a_key_and_a_value_are_a_change_or_the_message_says_why_not() {
        let change = |key, value| setting(key, value).map_err(|e| e.to_string());
        assert_eq!(change("deadline", "2s"), Ok(SettingChange::Deadline(Duration::from_secs(2))));
        assert_eq!(change("retain-max", "none"), Ok(SettingChange::RetainMax(RetainMax::Unlimited)));
        assert_eq!(change("retain-max", "1MiB"), Ok(SettingChange::RetainMax(RetainMax::Bytes(1 << 20))));
        assert_eq!(change("slot-idle-max", "none"), Ok(SettingChange::SlotIdleMax(None)));
        assert_eq!(change("min-replicas", "2"), Ok(SettingChange::MinReplicas(2)));
        assert_eq!(change("catch-up-max", "none"), Ok(SettingChange::CatchUpMax(None)));
        assert_eq!(change("catch-up-max", "10MiB"), Ok(SettingChange::CatchUpMax(Some(10 << 20))));
        assert_eq!(change("link-window", "1MiB"), Ok(SettingChange::LinkWindow(1 << 20)));
        assert_eq!(change("lag-target", "8MiB"), Ok(SettingChange::LagTarget(Some(8 << 20))));
        for (key, value, says) in [
            ("min-replicas", "256", "min-replicas: \"256\" is no number"),
            ("min-replicas", "-1", "no number"),
            ("deadline", "5", "deadline: "),
            ("retain-max", "lots", "or `auto`, or `none`"),
            ("link-window", "none", "link-window: "),
            ("link-window", "4GiB", "is more than 1GiB"),
            ("lag-target", "1h", "lag-target: "),
            ("retain", "all", "there is no setting \"retain\""),
        ] {
            let got = change(key, value).unwrap_err();
            assert!(got.contains(says), "{got:?} does not say {says:?}");
        }
    }
}
