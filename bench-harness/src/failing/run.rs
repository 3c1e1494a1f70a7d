//! One run: two lives of both nodes with a call that fails, then a third on disks that are whole.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline::inject::{Call, Counts, Met, Watch};
use towline::{AppendError, AppendOptions, CommitPolicy, OpenError, Primary, Replica, ShardId};

use super::load::{self, Load};
use super::nodes::{self, Kept, PATIENCE, Place, is_live, primary_stopped, replica_stopped, until};
use super::records::{Append, Became, bytes};
use super::{Failing, Sweep, judge, lock, take_panics};

/// Lives in which a call may fail: the first one makes the folders, the second one recovers.
const LIVES: usize = 2;
/// Appends in each of them.
const APPENDS: usize = 36;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Whether a call failed.
    pub met: bool,
    /// Calls of each node.
    pub calls: [Counts; 2],
    /// Appends that were acknowledged.
    pub commits: u64,
    /// Appends that were refused.
    pub refused: u64,
    /// Appends of which nobody knows what became of them.
    pub unknown: u64,
    /// Starts that were refused.
    pub refused_starts: u64,
}

impl Ran {
    pub(super) const fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.refused_starts += other.refused_starts;
    }
}

struct Run {
    place: Place,
    failing: Option<Failing>,
    watches: [Arc<Watch>; 2],
    appends: Arc<Mutex<Vec<Append>>>,
    kept: Arc<Mutex<Kept>>,
    refused_starts: u64,
    /// The process that met the failure is gone, or there was none: those that run know nothing of it.
    unaware: Cell<bool>,
}

/// Both nodes, running.
struct Nodes {
    primary: Primary,
    replica: Replica,
}

impl Nodes {
    /// Why a node's shard has stopped, if it has.
    fn stopped(&self, node: usize) -> Option<String> {
        if node == 0 { primary_stopped(&self.primary) } else { replica_stopped(&self.replica) }
    }

    fn stop(self) {
        self.primary.stop();
        self.replica.stop();
    }
}

/// Runs the workload of a seed in a folder that is made for it and removed afterwards.
///
/// # Errors
/// What does not hold.
pub fn run(dir: &Path, seed: u64, job: usize, failing: Option<Failing>) -> Result<Ran, String> {
    nodes::clear(dir)?;
    std::fs::create_dir_all(dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
    let place = Place { dir: dir.to_path_buf(), seed, job };
    let failure = |node| failing.filter(|f| f.node == node).map(Failing::failure);
    let watches = [0, 1].map(|node| Arc::new(Watch::on(place.folder(node), failure(node))));
    let mut run = Run {
        place,
        failing,
        watches,
        appends: Arc::default(),
        kept: Arc::default(),
        refused_starts: 0,
        unaware: Cell::new(false),
    };
    let result = run.lives();
    let calls = [run.watches[0].counts(), run.watches[1].counts()];
    let result = result.and_then(|()| run.whole_again());
    let panics = take_panics();
    if !panics.is_empty() {
        return Err(format!("in this run or beside it: {}", panics.join("; ")));
    }
    result?;
    nodes::clear(dir)?;
    let mut ran = Ran { met: run.met().is_some(), calls, refused_starts: run.refused_starts, ..Ran::default() };
    for append in lock(&run.appends).iter() {
        match append.became {
            Became::Committed(_) => ran.commits += 1,
            Became::Refused => ran.refused += 1,
            Became::Unknown => ran.unknown += 1,
        }
    }
    Ok(ran)
}

impl Run {
    /// The lives in which a call may fail.
    fn lives(&mut self) -> Result<(), String> {
        for life in 0..LIVES {
            let Some(nodes) = self.start()? else { break };
            self.live(&nodes, life)?;
            nodes.stop();
            if self.is_forever() && self.met().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// All disks are whole: both nodes start, take an append, and have what was acknowledged.
    fn whole_again(&mut self) -> Result<(), String> {
        self.watches.iter().for_each(|w| w.mend());
        let nodes = self.start()?.ok_or("a start was refused although every disk is whole")?;
        self.one_more(&nodes, LIVES, "ack_n=1:applied")?;
        nodes.stop();
        judge::judge(&self.place, &lock(&self.appends), &lock(&self.kept))
    }

    /// The call that has failed.
    fn met(&self) -> Option<&Met> {
        self.watches[self.failing?.node].met()
    }

    fn is_forever(&self) -> bool {
        self.failing.is_some_and(|f| f.failure().forever)
    }

    /// Starts both; `None` if that is refused for good.
    fn start(&mut self) -> Result<Option<Nodes>, String> {
        self.unaware.set(self.met().is_some());
        let place = self.place.clone();
        let Some(primary) = self.start_one(0, |_| place.primary(None))? else { return Ok(None) };
        let primary = RefCell::new(Some(primary));
        let Some(replica) = self.start_one(1, |run| run.open_replica(&primary))? else { return Ok(None) };
        Ok(primary.into_inner().map(|primary| Nodes { primary, replica }))
    }

    /// Opens the replica. Without a folder it waits for a primary that answers, which one that has stopped does
    /// not: then that one is started again.
    fn open_replica(&self, primary: &RefCell<Option<Primary>>) -> Result<Replica, OpenError> {
        let addr = primary.borrow().as_ref().and_then(Primary::listening).expect("it listens");
        let (place, kept) = (self.place.clone(), self.kept.clone());
        let opening = std::thread::spawn(move || place.replica(addr, &kept));
        let opened = until(|| {
            let stopped = primary.borrow().as_ref().is_some_and(|p| primary_stopped(p).is_some());
            if stopped && !opening.is_finished() && !self.place.has_replica() {
                self.unaware.set(true);
                if self.is_forever() {
                    self.watches[0].mend();
                }
                drop(primary.take());
                // Whoever waits for the replica to open finds out why there is none.
                primary.replace(self.place.primary(Some(addr)).ok());
            }
            opening.is_finished()
        });
        if !opened {
            return Err(OpenError::ThreadEnded("the replica neither opens nor says why not".into()));
        }
        opening.join().unwrap_or_else(|_| Err(OpenError::ThreadEnded("the start panicked".into())))
    }

    /// Starts a node. A start may be refused once, where a call fails in it.
    fn start_one<T>(&mut self, node: usize, open: impl Fn(&Self) -> Result<T, OpenError>) -> Result<Option<T>, String> {
        let name = nodes::NAMES[node];
        let before = self.met().is_some();
        let e = match open(self) {
            Ok(started) => return Ok(Some(started)),
            Err(e) => e,
        };
        self.refused_starts += 1;
        let fits = match self.failing.map(|f| f.sweep) {
            Some(Sweep::ErrorOnce | Sweep::ErrorForever) => matches!(e, OpenError::Io { .. }),
            Some(Sweep::FullOnce | Sweep::FullForever) => matches!(e, OpenError::DiskFull { .. }),
            _ => false,
        };
        if before || !fits || self.met().is_none() || self.failing.is_none_or(|f| f.node != node) {
            return Err(format!("{name} does not start: {e} ({:?})", self.met()));
        }
        if self.is_forever() {
            return Ok(None);
        }
        self.unaware.set(true);
        open(self).map(Some).map_err(|e| format!("{name} does not start after a start that was refused: {e}"))
    }

    /// The load, and what must hold of it.
    fn live(&self, nodes: &Nodes, life: usize) -> Result<(), String> {
        let ready = until(|| is_live(&nodes.primary) || (0..2).any(|n| nodes.stopped(n).is_some()));
        if !ready && self.met().is_none() {
            return Err("the replica does not follow although no call has failed".into());
        }
        let deadline = match self.failing {
            // Nobody tells those who wait for a replica that it has stopped.
            Some(Failing { node: 1, sweep, .. }) if !matches!(sweep, Sweep::ShortOnce | Sweep::ShortForever) => 200,
            Some(Failing { sweep: Sweep::FullForever, .. }) => 200,
            _ => PATIENCE.as_millis() as u64,
        };
        let matters = !self.unaware.get();
        let ended = load::start(
            &nodes.primary,
            Load {
                seed: self.place.seed,
                appends: self.appends.clone(),
                life,
                count: APPENDS,
                deadline: Duration::from_millis(deadline),
                watch: self.failing.filter(|_| matters).map(|f| self.watches[f.node].clone()),
            },
        );
        match ended.recv_timeout(3 * PATIENCE) {
            Ok(ended) => ended?,
            Err(RecvTimeoutError::Timeout) => return Err("the load does not come to its end".into()),
            Err(RecvTimeoutError::Disconnected) => return Err("the load's core has ended".into()),
        }
        match (self.failing, self.met()) {
            (Some(failing), Some(met)) if matters => self.took_it_as_final(nodes, failing, met, life),
            (Some(_), Some(_)) => self.one_more(nodes, life, "ack_n=1"),
            _ => Ok(()),
        }
    }

    /// What must hold once a call has failed under the nodes that run.
    fn took_it_as_final(&self, nodes: &Nodes, failing: Failing, met: &Met, life: usize) -> Result<(), String> {
        let is_final = match failing.sweep {
            Sweep::ErrorForever => true,
            Sweep::ErrorOnce => met.call != Call::Other && is_of_a_shard(met),
            Sweep::FullOnce => met.call == Call::Batch,
            Sweep::FullForever | Sweep::ShortOnce | Sweep::ShortForever => false,
        };
        // Of a blocking call that fails once, the shard's core hears a little later.
        if failing.sweep == Sweep::ErrorForever || is_final && met.call == Call::Batch {
            let all = lock(&self.appends);
            let told = all
                .iter()
                .position(|a| a.after && matches!(a.became, Became::Committed(_)) && (failing.node == 0 || !a.local));
            if let Some(id) = told {
                return Err(format!("append {id} was acknowledged on a disk that had failed: {met:?}"));
            }
        }
        if is_final && failing.sweep != Sweep::ErrorForever {
            if !until(|| nodes.stopped(failing.node).is_some()) {
                return Err(format!("the shard goes on after an error of its disk: {met:?}"));
            }
            return Ok(());
        }
        if failing.sweep == Sweep::ErrorForever {
            return Ok(());
        }
        if failing.sweep == Sweep::FullForever {
            // Somebody frees some space.
            self.watches[failing.node].mend();
        }
        match nodes.stopped(failing.node) {
            // Anything else that fails may stop it, if it says so.
            Some(_) if matches!(failing.sweep, Sweep::ErrorOnce | Sweep::FullOnce) => Ok(()),
            Some(why) => Err(format!("the shard has stopped ({why}): {met:?}")),
            None => self.one_more(nodes, life, "ack_n=1").or_else(|e| {
                // It may have heard of it only now.
                let may_stop = matches!(failing.sweep, Sweep::ErrorOnce | Sweep::FullOnce);
                let stopped = nodes.stopped(failing.node).is_some();
                if may_stop && stopped { Ok(()) } else { Err(format!("{e}: {met:?}")) }
            }),
        }
    }

    /// Appends a record, which must be acknowledged.
    fn one_more(&self, nodes: &Nodes, life: usize, policy: &str) -> Result<(), String> {
        let id = {
            let mut all = lock(&self.appends);
            all.push(Append { life, local: false, after: false, became: Became::Unknown });
            all.len() - 1
        };
        let policy: CommitPolicy = policy.parse().expect("a policy");
        let options = AppendOptions { policy: Some(policy), deadline: Some(PATIENCE) };
        let (handle, record) = (nodes.primary.handle(), bytes(self.place.seed, id));
        let mut outcome = Err(AppendError::DiskFull);
        until(|| {
            let ticket = handle.append_with(ShardId(0), &record, options);
            outcome = ticket.and_then(|ticket| ticket.wait());
            // The shard looks for space from time to time. Nothing was written meanwhile.
            !matches!(outcome, Err(AppendError::DiskFull))
        });
        let became = match outcome.as_ref().map(towline::Outcome::committed) {
            Ok(Some(bookmark)) => Became::Committed(bookmark.lsn),
            Ok(None) => Became::Unknown,
            Err(_) => Became::Refused,
        };
        lock(&self.appends)[id].became = became.clone();
        match became {
            Became::Committed(_) => Ok(()),
            _ => Err(format!("append {id} is not acknowledged, and nothing has stopped: {outcome:?}")),
        }
    }
}

/// Whether it was a call to a file of a shard.
fn is_of_a_shard(met: &Met) -> bool {
    met.path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("shard-"))
}
