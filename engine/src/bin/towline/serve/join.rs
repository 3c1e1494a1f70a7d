//! `towline serve --join`: has the node that this replica follows keep a slot for it, says how the replica
//! comes along, and has it counted once it is live, if it is to count.
//!
//! A thread beside the node asks until the replica has joined, and ends then. A slot that is there is
//! used as it is, so a restart joins again without a change. One that was lost is not made anew: what
//! lost it would only come again, and somebody should know.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;
use towline::client::{self, Advice, ClientError, SlotAction};
use towline::offline::{self, Identity};
use towline::units::show_size;
use towline::wire::handshake::NodeName;
use towline::{OpenError, SettingChange, ShardStatus};

use crate::config_file::Join;
use crate::exit;
use crate::status::{duration, items, text};

/// Between two questions.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Between two lines about how it comes along, on a terminal and in a log.
const TELL: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Why a replica does not join, and waiting would not help.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The name is none.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// The folder cannot be read.
    #[error(transparent)]
    Folder(#[from] OpenError),
    /// The node refuses, or is none.
    #[error("cannot join: {0} ({hint})", hint = exit::hint(.0))]
    Client(ClientError),
    /// What the node answers is no status.
    #[error("cannot join: the status of {at} is no JSON: {source}")]
    Status { at: String, source: serde_json::Error },
    /// The folder is another system's.
    #[error(
        "cannot join: {at} is a node of system {theirs}, and {data} holds a log of system {ours}: \
         give the address of that system's primary, or another folder", data = .data.display()
    )]
    System { at: String, theirs: String, data: PathBuf, ours: String },
    /// Only a primary has replicas that count.
    #[error(
        "cannot join: {at} is a replica, and what it feeds counts for no commit: say --join reader, or give the address of the primary"
    )]
    NoPrimary { at: String },
    /// The slot is there and holds nothing.
    #[error(
        "cannot join: the slot {name} at {at} is lost ({cause}), and this replica may have missed what was let go of. Make it anew: \
         towline slot create {name} --at {at} \
         (then start this again, with --rebuild if its log has become too old; docs/REPLICAS.md, \"When a slot is lost\")"
    )]
    Lost { name: NodeName, at: String, cause: String },
    /// The slot is there no more.
    #[error("cannot join: the slot {name} at {at} was removed meanwhile: start this again if that was a mistake")]
    Removed { name: NodeName, at: String },
    /// The log cannot be continued.
    #[error(
        "cannot join: the log in {data} is too old: {at} keeps no log from where it ends. Start this again with --rebuild, which sets \
         this log aside and begins a new one, or with an empty folder", data = .data.display()
    )]
    TooOld { data: PathBuf, at: String },
}

impl Failure {
    /// The exit code for it.
    pub(super) fn code(&self) -> ExitCode {
        match self {
            Self::Client(error) => exit::code(error),
            Self::Lost { .. } | Self::Removed { .. } | Self::TooOld { .. } => exit::REFUSED.into(),
            _ => exit::FAILED.into(),
        }
    }
}

/// What the thread says.
pub(super) enum Said {
    /// There is a slot, or the primary is away and the folder holds a log that can be served meanwhile.
    MayOpen,
    /// It is live on every shard, and counts if it is to. Said last.
    Joined(String),
    /// It cannot join. Said last.
    Failed(Failure),
}

/// What is to be joined, and as what.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    /// As it was given, for people.
    at: String,
    /// The one that the shards connect to.
    addr: String,
    name: NodeName,
    counts: bool,
    data: PathBuf,
    own: Option<Identity>,
}

/// How the replica's slot stands.
enum Slot {
    Missing,
    Lost(String),
    There { live: bool },
}

impl Joining {
    pub(super) fn new(join: Join, (at, addr): (&str, SocketAddr), name: &str, data: PathBuf) -> Result<Self, Failure> {
        let own = offline::identity(&data)?;
        let name = NodeName::new(name).ok_or_else(|| Failure::Name(name.into()))?;
        Ok(Self { at: at.into(), addr: addr.to_string(), name, counts: join == Join::Quorum, data, own })
    }

    /// Asks until the replica has joined or cannot. `follows` says whether this process follows on every
    /// shard: the primary may still take an earlier one for it.
    pub(super) fn run(&self, follows: &AtomicBool, mut say: impl FnMut(Said)) {
        let (mut opens, mut had_slot, mut grumble, mut told) = (false, false, String::new(), None);
        loop {
            let ours = follows.load(Ordering::Acquire);
            match self.ask(ours, &mut had_slot, &mut told) {
                Ok(Some(joined)) => return say(Said::Joined(joined)),
                Ok(None) => {}
                Err(Failure::Client(error)) if error.advice() != Advice::Stop => {
                    let why = error.to_string();
                    if why != grumble {
                        tracing::warn!(primary = self.at, "waiting for the primary: {why}");
                        grumble = why;
                    }
                }
                Err(failure) => return say(Said::Failed(failure)),
            }
            if !opens && (had_slot || self.own.is_some()) {
                opens = true;
                say(Said::MayOpen);
            }
            thread::sleep(LOOK);
        }
    }

    /// One look, and what is to be done next; what there is to say once it has joined.
    fn ask(&self, follows: bool, had_slot: &mut bool, told: &mut Option<Instant>) -> Result<Option<String>, Failure> {
        let document = client::status(&self.addr).map_err(Failure::Client)?;
        let status = self.parse(&document)?;
        let node = &status["node"];
        let ours = self.own.as_ref().map(|own| own.system.to_string());
        if let Some(ours) = ours.filter(|ours| node["system"] != **ours) {
            let (theirs, data) = (text(node, "system"), self.data.clone());
            return Err(Failure::System { at: self.at.clone(), theirs, data, ours });
        }
        if self.counts && node["role"] != "primary" {
            return Err(Failure::NoPrimary { at: self.at.clone() });
        }
        let name = self.name;
        let live = match slot(&status, &name.to_string()) {
            Slot::Lost(cause) => return Err(Failure::Lost { name, at: self.at.clone(), cause }),
            Slot::Missing if *had_slot => return Err(Failure::Removed { name, at: self.at.clone() }),
            Slot::Missing => {
                client::change_slot(&self.addr, name, SlotAction::Create).map_err(Failure::Client)?;
                tracing::info!(primary = self.at, "slot {name} made");
                false
            }
            Slot::There { live } => live,
        };
        *had_slot = true;
        if !(live && follows) {
            self.tell(&status, follows, told);
            return Ok(None);
        }
        let is_counted = |node: &Value| items(&node["replicas"]).iter().any(|r| *r == *name.to_string());
        let mut version = node["settings"]["version"].clone();
        if self.counts && !is_counted(node) {
            let change = SettingChange::AddReplica(name).to_wire();
            let changed = client::control(&self.addr, change, None).map_err(Failure::Client)?;
            version = self.parse(&changed)?["node"]["settings"]["version"].clone();
        }
        let shards = items(&status["shards"]).len();
        let counts = match self.counts || is_counted(node) {
            true => format!("it counts for commits (settings version {version})"),
            false => "it only reads".into(),
        };
        Ok(Some(format!("replica {name} has joined {}: live on {}, {counts}", self.at, plural(shards))))
    }

    fn parse(&self, document: &str) -> Result<Value, Failure> {
        serde_json::from_str(document).map_err(|source| Failure::Status { at: self.at.clone(), source })
    }

    /// Says how it comes along, now and then.
    fn tell(&self, status: &Value, follows: bool, told: &mut Option<Instant>) {
        let pause = TELL[usize::from(!io::stderr().is_terminal())];
        if follows && told.is_none_or(|at| at.elapsed() >= pause) {
            *told = Some(Instant::now());
            tracing::info!("joining {}: {}", self.at, progress(status, &self.name.to_string()));
        }
    }

    /// Whether a folder of this name may be opened at all: else opening it says why not.
    pub(super) fn is_own(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.name.is_empty() || own.name == self.name.to_string())
    }

    /// What this process's own shards say: whether all follow, or one never will.
    pub(super) fn look(&self, shards: &[ShardStatus]) -> Result<bool, Failure> {
        if shards.iter().any(|s| s.needs_rebuild) {
            return Err(Failure::TooOld { data: self.data.clone(), at: self.at.clone() });
        }
        Ok(shards.iter().all(|s| s.link.starts_with("following ")))
    }
}

fn plural(shards: usize) -> String {
    if shards == 1 { "1 shard".into() } else { format!("{shards} shards") }
}

/// A replica's slots, one for each shard that has one.
fn slots<'a>(status: &'a Value, name: &'a str) -> impl Iterator<Item = &'a Value> {
    let shards = items(&status["shards"]).iter();
    shards.filter_map(move |shard| items(&shard["slots"]).iter().find(|slot| slot["name"] == name))
}

/// How a replica's slot stands, over all shards.
fn slot(status: &Value, name: &str) -> Slot {
    if let Some(lost) = slots(status, name).find(|slot| slot["state"] == "lost") {
        return Slot::Lost(text(lost, "lost"));
    }
    if slots(status, name).count() < items(&status["shards"]).len() {
        return Slot::Missing;
    }
    Slot::There { live: slots(status, name).all(|slot| slot["state"] == "live") }
}

/// How far a replica is, over all shards: the least share that is done, the longest time that is left.
fn progress(status: &Value, name: &str) -> String {
    let sum = |of: &dyn Fn(&Value) -> Option<u64>| slots(status, name).filter_map(of).sum::<u64>();
    let live = slots(status, name).filter(|slot| slot["state"] == "live").count();
    let lag = sum(&|slot| slot["lag_bytes"].as_u64());
    let mut out = format!("{live} of {} live, {} behind", plural(items(&status["shards"]).len()), show_size(lag));
    let caught = || slots(status, name).map(|slot| &slot["catch_up"]).filter(|c| c.is_object());
    if let Some(percent) = caught().filter_map(|c| c["percent"].as_f64()).reduce(f64::min) {
        let rate = sum(&|slot| slot["catch_up"]["bytes_per_s"].as_u64());
        out.push_str(&format!(", {percent:.1} % done, {}/s", show_size(rate)));
    }
    if let Some(left) = caught().filter_map(|c| c["left_ms"].as_u64()).max() {
        out.push_str(&format!(", {} left", duration(left as f64 / 1000.0)));
    }
    if slots(status, name).any(|slot| slot["snapshot"].is_object()) {
        let done = sum(&|slot| slot["snapshot"]["done_bytes"].as_u64());
        out.push_str(&format!(", {} of a snapshot taken", show_size(done)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(slots: &[Value]) -> Value {
        json!({"shards": slots.iter().map(|s| json!({"slots": [{"name": "other", "state": "lost"}, s]})).collect::<Vec<_>>()})
    }

    #[test]
    fn a_slot_is_as_well_as_its_worst_shard() {
        let is = |slots: &[Value]| match slot(&status(slots), "r3") {
            Slot::Missing => "missing".to_owned(),
            Slot::Lost(cause) => cause,
            Slot::There { live } => live.to_string(),
        };
        let one =
            |state: &str| json!({"name": "r3", "state": state, "lost": if state == "lost" { "idle" } else { "" }});
        let none = json!({"name": "r4", "state": "live"});
        assert_eq!(is(&[one("live"), one("live")]), "true");
        assert_eq!(is(&[one("live"), one("catch-up")]), "false");
        assert_eq!(is(&[one("live"), none.clone()]), "missing");
        assert_eq!(is(&[none, one("lost")]), "idle", "a lost one is not made anew beside a missing one");
    }

    #[test]
    fn progress_is_that_of_the_slowest_shard() {
        let slot =
            |catch_up: Value| json!({"name": "r3", "state": "catch-up", "lag_bytes": 1 << 20, "catch_up": catch_up});
        let two = [
            slot(json!({"bytes_per_s": 1 << 20, "percent": 80.0, "left_ms": 1500})),
            slot(json!({"bytes_per_s": 1 << 20, "percent": 20.5, "left_ms": null})),
        ];
        let said = progress(&status(&two), "r3");
        assert_eq!(said, "0 of 2 shards live, 2.0 MiB behind, 20.5 % done, 2.0 MiB/s, 1.5 s left");
        let live = json!({"name": "r3", "state": "live", "lag_bytes": 0, "catch_up": null});
        assert_eq!(progress(&status(&[live]), "r3"), "1 of 1 shard live, 0 B behind");
    }
}
