//! `towline serve`: a node in the foreground, until a signal asks it to end.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use towline::{
    CommitPolicy, ConfigError, NodeConfig, OpenError, Primary, PrimaryConfig, Replica, ReplicaConfig, ShardStatus,
    SystemId, Term,
};

use crate::config_file::{self, FileError, Role, Settings};
use crate::exit;
use crate::signals::{self, Signals};

mod join;
mod log;

use join::{Joining, Said};
use log::Log;

/// How often the shards are asked whether they still run.
const WATCH: Duration = Duration::from_secs(1);

/// Run a primary or a replica in the foreground.
///
/// Once it serves, it prints one line to stdout; with --join another one once it has joined. Logs go to stderr; TOWLINE_LOG says how much: off,
/// error, warn, info (the default), debug or trace. SIGTERM or SIGINT ends it in order: what was
/// appended is written, waiters are told. A second signal ends it at once, which loses nothing that
/// was acknowledged.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIZE is like 4096, 64KiB or 1GiB; TIME is like 200ms, 5s or 1m.

Exit status:
  0  ended by SIGTERM or SIGINT
  1  the configuration or the folder cannot be used; the message says what to do
  2  the command line cannot be understood
  4  --join: refused, or the slot was lost, or the log is too old; the message says what to do
  5  --join: what answers at that address is no Towline node
  7  a shard has stopped after an error, so the node has ended

With --join one command adds a replica to a running primary: the slot is made, the log says every ten seconds how
far it is (on a terminal every second), and a second line on stdout says that it has joined. A slot that is there
is used, so the flag may stay in place; one that was lost is not made anew, and a primary that is away is waited for.

Examples:
  towline serve --data p --role primary --listen 127.0.0.1:4790 --replicas r1,r2 --commit ack_n=1
  towline serve --data r1 --role replica --name r1 --primary 127.0.0.1:4790
  towline serve --data r2 --role replica --name r2 --primary 127.0.0.1:4790 --join quorum
  towline serve --data r3 --role replica --name r3 --primary ADDR-OF-A-REPLICA
  towline serve --config /etc/towline.toml --listen 127.0.0.1:4791")]
pub(crate) struct Args {
    /// A TOML file with the same settings, named as the flags are without their dashes in front;
    /// flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    /// Take over a folder that was a replica's: its log continues under a new term. Only if the old
    /// primary is gone for good. No setting for a file: it is an act, not a property
    #[arg(long)]
    promote: bool,

    /// With --promote: the highest term that the status of any node has shown, the old primary's
    /// included. The new term is above it; without it, two promotions that do not know of each other
    /// may count in the wrong order
    #[arg(long, value_name = "TERM", requires = "promote")]
    above_term: Option<u64>,
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// An address.
    #[error("--{flag} {addr}: {source}")]
    Address { flag: &'static str, addr: String, source: io::Error },
    /// What to log.
    #[error("{}={text}: {why}", log::VARIABLE)]
    Log { text: String, why: String },
    /// The configuration or the folder.
    #[error("{0}{hint}", hint = spelled(.0))]
    Open(#[from] OpenError),
    /// What it is to join.
    #[error(transparent)]
    Join(#[from] join::Failure),
    /// Signals or threads.
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// How a field of the engine's configuration is spelled here.
fn spelled(error: &OpenError) -> String {
    let flag = match error {
        OpenError::Config(ConfigError::Bounds { field, .. } | ConfigError::Blocks { field, .. }) => match *field {
            "segment_bytes" => "segment-size",
            "segments_ahead" => "segments-ahead",
            "write_depth" => "write-depth",
            "batch_bytes" => "batch-size",
            "record_bytes_max" => "record-max",
            "spin in us" => "spin",
            "live_window_bytes" => "live-window",
            "io_memory_bytes" => "io-memory",
            "retain_max" => "retain-max",
            "slot_idle_max in s" => "slot-idle-max",
            "catch_up_max" => "catch-up-max",
            "link_window_bytes" => "link-window",
            "lag_target" => "lag-target",
            "min_replicas" => "min-replicas",
            "min_replicas_age in s" => "min-replicas-age",
            _ => return String::new(),
        },
        _ => return String::new(),
    };
    format!(" (--{flag}, or {flag} in the file)")
}

/// A node that can be opened.
#[derive(Clone, Debug)]
enum Plan {
    Primary(PrimaryConfig),
    /// Its primary's address is kept as it was given, too, and what it joins.
    Replica(ReplicaConfig, String, Option<Joining>),
}

/// A node that runs.
enum Node {
    Primary(Primary),
    Replica(Replica),
}

/// What the main thread waits for.
enum Event {
    Opened(Box<Result<Node, OpenError>>),
    Join(Box<Said>),
    Signal(&'static str),
}

/// Serves until a signal.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let file = args.config.as_deref().map(config_file::read).transpose()?.unwrap_or_default();
    let plan = match plan(args.settings.over(file), args.promote, args.above_term.map(Term)) {
        Ok(plan) => plan?,
        Err(usage) => {
            exit::complain(&usage);
            return Ok(ExitCode::from(exit::USAGE));
        }
    };
    // Before any thread is started: they inherit the mask.
    let signals = signals::block().map_err(|source| Failure::System { what: "block signals", source })?;
    let log = Log::to_stderr()?;
    end_on_panic();
    let (events, heard) = mpsc::channel();
    let thread = |source| Failure::System { what: "start a thread", source };
    hear_signals(signals, events.clone()).map_err(thread)?;
    let follows = Arc::new(AtomicBool::new(false));
    match plan.joins() {
        Some(joining) => ask_to_join(joining.clone(), follows.clone(), events.clone()),
        None => start_opening(&plan, events.clone()),
    }
    .map_err(thread)?;
    let node = loop {
        match heard.recv() {
            Ok(Event::Opened(node)) => break (*node)?,
            Ok(Event::Join(said)) => match *said {
                Said::MayOpen => start_opening(&plan, events.clone()).map_err(thread)?,
                Said::Joined(_) => unreachable!("it follows nobody yet"),
                Said::Failed(why) => return Ok(refuse(&why)),
            },
            // Opening takes long where a log is long or a primary is awaited. Nothing was served.
            Ok(Event::Signal(name)) => {
                tracing::info!("{name}: ended before it served");
                return Ok(ExitCode::SUCCESS);
            }
            Err(_) => unreachable!("this thread holds a sender"),
        }
    };
    announce(&node, &plan);
    Ok(watch(node, &heard, &log, plan.joins().map(|joining| (joining, &*follows))))
}

fn refuse(why: &join::Failure) -> ExitCode {
    exit::complain(&why.to_string());
    why.code()
}

/// Starts the thread that asks for a slot and looks how the replica comes along.
fn ask_to_join(joining: Joining, follows: Arc<AtomicBool>, events: Sender<Event>) -> io::Result<()> {
    let asking = thread::Builder::new().name("towline-join".into());
    asking.spawn(move || {
        joining.run(&follows, |said| {
            let _ = events.send(Event::Join(Box::new(said)));
        });
    })?;
    Ok(())
}

/// Starts the thread that waits for signals.
fn hear_signals(signals: Signals, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("towline-signals".into()).spawn(move || {
        // Nobody hears it once the main thread is about to end.
        let _ = events.send(Event::Signal(signals.wait()));
        let name = signals.wait();
        tracing::warn!("a second {name}: ends at once");
        std::process::exit(exit::FAILED.into());
    })?;
    Ok(())
}

/// Starts the thread that opens the node.
fn start_opening(plan: &Plan, opened: Sender<Event>) -> io::Result<()> {
    let plan = plan.clone();
    thread::Builder::new().name("towline-open".into()).spawn(move || {
        let node = match plan {
            Plan::Primary(config) => Primary::open(config).map(Node::Primary),
            Plan::Replica(config, ..) => Replica::open(config).map(Node::Replica),
        };
        let _ = opened.send(Event::Opened(Box::new(node)));
    })?;
    Ok(())
}

/// Waits for a signal, and looks after the shards meanwhile, and at a replica that has not joined yet.
fn watch(node: Node, heard: &Receiver<Event>, log: &Log, mut joins: Option<(&Joining, &AtomicBool)>) -> ExitCode {
    let mut dropped = 0;
    loop {
        match heard.recv_timeout(joins.map_or(WATCH, |_| join::LOOK)) {
            Ok(Event::Signal(name)) => {
                tracing::info!("{name}: stopping");
                node.stop();
                tracing::info!("stopped");
                return ExitCode::SUCCESS;
            }
            Ok(Event::Join(said)) => match *said {
                Said::Joined(how) => {
                    say(&format!("towline: {how}\n"));
                    joins = None;
                }
                Said::Failed(why) => {
                    let code = refuse(&why);
                    node.stop();
                    return code;
                }
                Said::MayOpen => {}
            },
            Ok(Event::Opened(_)) => {}
            Err(RecvTimeoutError::Timeout) => {
                let now = log.dropped_lines();
                if now > std::mem::replace(&mut dropped, now) {
                    tracing::warn!("{now} lines of this log were dropped so far: stderr takes them too slowly");
                }
                let shards = node.status();
                match joins.map(|(joining, follows)| (joining.look(&shards), follows)) {
                    Some((Ok(all), follows)) => follows.store(all, Ordering::Release),
                    Some((Err(why), _)) => {
                        let code = refuse(&why);
                        node.stop();
                        return code;
                    }
                    None => {}
                }
                let stopped: Vec<_> = shards.into_iter().filter_map(|s| s.stopped.map(|why| (s.shard, why))).collect();
                if stopped.is_empty() {
                    continue;
                }
                for (shard, why) in stopped {
                    exit::complain(&format!("shard {shard} has stopped: {why}"));
                }
                // A shard that has stopped serves nobody; whoever supervises this process is to
                // know, and the next start shows what the device holds.
                node.stop();
                return ExitCode::from(exit::SHARD_STOPPED);
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("the signals' thread never ends"),
        }
    }
}

impl Plan {
    /// What it joins, if it is to.
    fn joins(&self) -> Option<&Joining> {
        match self {
            Self::Replica(_, _, joins) => joins.as_ref(),
            Self::Primary(_) => None,
        }
    }
}

impl Node {
    fn status(&self) -> Vec<ShardStatus> {
        match self {
            Self::Primary(p) => p.status(),
            Self::Replica(r) => r.status(),
        }
    }

    fn system(&self) -> SystemId {
        match self {
            Self::Primary(p) => p.system(),
            Self::Replica(r) => r.system(),
        }
    }

    fn listening(&self) -> Option<SocketAddr> {
        match self {
            Self::Primary(p) => p.listening(),
            Self::Replica(r) => r.listening(),
        }
    }

    fn stop(self) {
        match self {
            Self::Primary(p) => p.stop(),
            Self::Replica(r) => r.stop(),
        }
    }
}

/// The one line that scripts wait for.
fn announce(node: &Node, plan: &Plan) {
    let status = node.status();
    let term = status.iter().map(|s| s.term).max().unwrap_or_default();
    let who = match plan {
        Plan::Primary(_) => "primary".to_owned(),
        Plan::Replica(config, primary, _) => format!("replica {} of {primary}", config.name),
    };
    let at = node.listening().map(|a| format!(" listening on {a}")).unwrap_or_default();
    let line = format!("towline: {who}{at} system={} term={term} shards={}\n", node.system(), status.len());
    say(&line);
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // A node does not end because nobody reads what it says.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// A panic means that an invariant is broken. The other threads would wait for the one that is gone.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(exit::PANICKED.into());
    }));
}

/// Makes a configuration of the settings; the outer error says what is wrong with the command line.
fn plan(settings: Settings, promote: bool, above_term: Option<Term>) -> Result<Result<Plan, Failure>, String> {
    let need = |name: &str| format!("--{name} is needed, or {name} in the file of --config; see towline serve --help");
    let Some(role) = settings.role else { return Err(need("role")) };
    let Some(data) = settings.data.clone() else { return Err(need("data")) };
    if let Some(name) = settings.out_of_place(role) {
        let owner = if role == Role::Primary { "replica" } else { "primary" };
        return Err(format!("{name} is for a {owner} only"));
    }
    let mut node = NodeConfig::new(data);
    fill(&mut node, &settings);
    let listen = settings.listen.as_deref().map(|addr| resolve("listen", addr)).transpose();
    let listen = match listen {
        Ok(listen) => listen,
        Err(failure) => return Ok(Err(failure)),
    };
    let insecure_no_auth = settings.insecure_no_auth.unwrap_or(false);
    match role {
        Role::Primary => {
            if listen.is_none() {
                return Err(need("listen"));
            }
            let deadline = settings.deadline.map(|t| t.0);
            if deadline == Some(Duration::ZERO) {
                return Err("deadline 0s: nothing is committed in no time".into());
            }
            let mut config = PrimaryConfig::new(&node.data);
            config.node = node;
            config.shards = settings.shards.unwrap_or(config.shards);
            config.listen = listen;
            config.replicas = settings.replicas.unwrap_or_default();
            config.commit = settings.commit.map_or(CommitPolicy::Local, |p| p.0);
            config.deadline = deadline.unwrap_or(config.deadline);
            config.too_few = settings.too_few.map_or(config.too_few, Into::into);
            config.retain_max = settings.retain_max.map_or(config.retain_max, |m| m.0);
            config.slot_idle_max = settings.slot_idle_max.map(|t| t.0);
            config.zero_copy = settings.zero_copy.map_or(config.zero_copy, Into::into);
            config.catch_up_max = settings.catch_up_max.map(|s| s.0);
            config.link_window_bytes = bytes(settings.link_window).unwrap_or(config.link_window_bytes);
            config.lag_target = settings.lag_target.map(|s| s.0);
            config.compress = settings.compress.map_or(config.compress, Into::into);
            config.min_replicas = settings.min_replicas.unwrap_or(config.min_replicas);
            config.min_replicas_age = settings.min_replicas_age.map_or(config.min_replicas_age, |t| t.0);
            config.insecure_no_auth = insecure_no_auth;
            config.promote = promote;
            config.promote_above = above_term.unwrap_or(config.promote_above);
            Ok(Ok(Plan::Primary(config)))
        }
        Role::Replica => {
            if promote {
                return Err("--promote makes a primary of a replica's folder: say --role primary".into());
            }
            let Some(name) = settings.name else { return Err(need("name")) };
            let Some(primary) = settings.primary else { return Err(need("primary")) };
            let addr = match resolve("primary", &primary) {
                Ok(addr) => addr,
                Err(failure) => return Ok(Err(failure)),
            };
            let mut config = ReplicaConfig::new(&node.data, name, addr);
            (config.node, config.listen, config.insecure_no_auth) = (node, listen, insecure_no_auth);
            config.reconnect_max = settings.reconnect_max.map_or(config.reconnect_max, |t| t.0);
            config.rebuild = settings.rebuild.unwrap_or(config.rebuild);
            config.retain_max = settings.retain_max.map_or(config.retain_max, |m| m.0);
            config.slot_idle_max = settings.slot_idle_max.map(|t| t.0);
            config.zero_copy = settings.zero_copy.map_or(config.zero_copy, Into::into);
            config.catch_up_max = settings.catch_up_max.map(|s| s.0);
            config.link_window_bytes = bytes(settings.link_window).unwrap_or(config.link_window_bytes);
            config.compress = settings.compress.map_or(config.compress, Into::into);
            let joins =
                settings.join.map(|join| Joining::new(join, (&primary, addr), &config.name, config.node.data.clone()));
            match joins.transpose() {
                Ok(joins) => Ok(Ok(Plan::Replica(config, primary, joins.filter(Joining::is_own)))),
                Err(why) => Ok(Err(Failure::Join(why))),
            }
        }
    }
}

/// The settings of every node.
fn fill(node: &mut NodeConfig, settings: &Settings) {
    macro_rules! set {
        ($($field:ident <- $value:expr),* $(,)?) => { $(if let Some(value) = $value { node.$field = value; })* };
    }
    set! {
        cpus <- settings.cpus.clone(),
        segment_bytes <- settings.segment_size.map(|s| s.0),
        segments_ahead <- settings.segments_ahead,
        prefill_bytes <- settings.prefill.map(|s| s.0),
        write_depth <- settings.write_depth,
        batch_bytes <- bytes(settings.batch_size),
        record_bytes_max <- bytes(settings.record_max),
        max_linger <- settings.max_linger.map(|t| t.0),
        spin <- settings.spin.map(|t| t.0),
        retain <- settings.retain.map(|r| r.0),
        live_window_bytes <- bytes(settings.live_window),
        io_memory_bytes <- bytes(settings.io_memory),
    }
}

/// A size that this machine cannot count is beyond every bound that is checked later.
fn bytes(size: Option<config_file::Size>) -> Option<usize> {
    size.map(|s| usize::try_from(s.0).unwrap_or(usize::MAX))
}

/// A name is looked up once, when the node starts.
fn resolve(flag: &'static str, addr: &str) -> Result<SocketAddr, Failure> {
    let failed = |source| Failure::Address { flag, addr: addr.into(), source };
    let found = addr.to_socket_addrs().map_err(failed)?.next();
    found.ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "no address has this name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_that_the_example_shows_are_the_engines() {
        let text = include_str!("../../../../docs/towline.example.toml");
        let shown = |line: &str| {
            let key = line.strip_prefix('#').and_then(|l| l.split_once(" = ")).map(|(key, _)| key);
            key.is_some_and(|k| {
                !k.contains(' ')
                    && ![
                        "cpus",
                        "slot-idle-max",
                        "catch-up-max",
                        "lag-target",
                        "name",
                        "primary",
                        "join",
                        "reconnect-max",
                        "rebuild",
                    ]
                    .contains(&k)
            })
        };
        let all: Vec<&str> = text.lines().map(|l| if shown(l) { &l[1..] } else { l }).collect();
        let Ok(Ok(Plan::Primary(config))) = plan(toml::from_str(&all.join("\n")).unwrap(), false, None) else {
            panic!("the example is no primary's")
        };
        let mut expected = PrimaryConfig::new("/var/lib/towline");
        expected.listen = Some("127.0.0.1:4790".parse().unwrap());
        expected.replicas = vec!["r1".into(), "r2".into()];
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_setting_for_the_other_role_is_refused() {
        let refused = |text: &str| plan(toml::from_str(text).unwrap(), false, None).map(drop).unwrap_err();
        assert_eq!(refused("data = \"d\"\nrole = \"primary\"\nname = \"r1\""), "name is for a replica only");
        assert_eq!(refused("data = \"d\"\nrole = \"replica\"\nshards = 2"), "shards is for a primary only");
        assert!(refused("data = \"d\"").starts_with("--role is needed"));
        assert!(refused("role = \"replica\"").starts_with("--data is needed"));
        assert!(refused("data = \"d\"\nrole = \"primary\"").starts_with("--listen is needed"));
        assert!(refused("data = \"d\"\nrole = \"replica\"").starts_with("--name is needed"));
    }
}
