//! What the clients know: every append, what became of it, and what was promised for it. It shares
//! no code with the engine.

use std::collections::{BTreeMap, VecDeque};

use super::judge::Judge;
use towline::protocol::policy::Requirement;
use towline::{AckLevel, Bookmark, CommitPolicy, Lsn, Outcome, Seq, ShardId};

use super::world::rng::Rng;

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// Nothing is known: its node may have died.
    Unknown,
    /// Refused: it must not be in any log.
    Refused,
    /// Committed.
    Committed(Promise),
    /// Not committed in time, fenced, or stopped: it may be in the log or not.
    Perhaps,
}

/// What a commit promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Where it is.
    pub bookmark: Bookmark,
    /// What it waited for: of what may have been in force, that which promises the fewest copies on devices.
    pub need: Requirement,
    /// What holds whichever of them was in force: of each the least.
    pub least: Requirement,
    /// Copies on devices that it says there are.
    pub copies: u8,
    /// Copies that may be gone since, or were never good.
    pub lost: u8,
    /// The node that said so.
    pub by: usize,
    /// Whether `bookmark` is the end of its batch, not only at or above that.
    pub exact: bool,
    /// The replicas that may have counted: a bit for each node.
    pub among: u64,
}

/// Settings that may be in force on a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Force {
    /// The configured replicas: a bit for each node.
    pub members: u64,
    /// What a commit waits for that does not say.
    pub commit: CommitPolicy,
}

/// What was in force on one node's primary, or may have been, in order.
#[derive(Clone, Debug, Default)]
struct Forces {
    all: Vec<Force>,
    /// From this one on they may be in force now.
    from: usize,
    /// The highest version that an operator was told of.
    told: u64,
}

/// One append.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// The node that it goes to.
    node: usize,
    /// From this one on settings may have been in force there since it was asked for.
    asked_under: usize,
    /// The shard.
    pub shard: ShardId,
    /// Bytes.
    pub bytes: u32,
    /// The stream of appends that it belongs to: they come in order.
    pub lane: u32,
    /// Its number in the shard's log, if it was told.
    pub seq: Option<Seq>,
    /// What became of it.
    pub became: Became,
    /// Losses of copies before it was made.
    pub losses: u8,
}

/// All appends of a run, by number.
#[derive(Debug, Default)]
pub struct Oracle {
    /// The appends.
    pub appends: Vec<Append>,
    /// How many more the clients may make.
    pub left: u64,
    /// Commits whose copies are still to be counted.
    pub fresh: VecDeque<usize>,
    /// Nodes whose disks have changed bytes.
    pub tainted: Vec<usize>,
    /// Primaries that another has taken the place of, and that do not know.
    pub deposed: Vec<usize>,
    /// Losses of copies so far.
    pub losses: u8,
    /// Lanes so far.
    pub lanes: u32,
    /// What is in force on primaries, by node.
    forces: BTreeMap<usize, Forces>,
    /// Acked commits.
    pub commits: u64,
    /// Other outcomes.
    pub others: u64,
    /// The same for the public checker, if it is to judge.
    pub judge: Option<Judge>,
}

impl Oracle {
    /// For so many appends.
    #[must_use]
    pub fn new(left: u64, judge: Option<Judge>) -> Self {
        Self { left, judge, ..Self::default() }
    }

    /// A new lane.
    pub fn lane(&mut self) -> u32 {
        self.lanes += 1;
        self.lanes - 1
    }

    /// These settings may come into force on a node, beside those that may be already.
    pub fn may_be(&mut self, node: usize, force: Force) {
        self.forces.entry(node).or_default().all.push(force);
    }

    /// These settings, and no others, are in force on a node.
    pub fn is(&mut self, node: usize, force: Force, version: u64) {
        let forces = self.forces.entry(node).or_default();
        forces.all.push(force);
        forces.from = forces.all.len() - 1;
        forces.told = forces.told.max(version);
    }

    /// The highest version that an operator was told of.
    #[must_use]
    pub fn told(&self, node: usize) -> u64 {
        self.forces.get(&node).map_or(0, |f| f.told)
    }

    /// A node's folder is gone, and what was set there with it.
    pub fn forget(&mut self, node: usize) {
        if let Some(forces) = self.forces.get_mut(&node) {
            forces.told = 0;
        }
    }

    /// What a commit can have waited for, as [`Promise::need`] and [`Promise::least`] say, and among whom: it is
    /// judged by who is configured when it is acknowledged, under the policy that was in force when its shard
    /// took it, which may be long after it was asked for.
    fn need(&self, append: &Append, policy: Option<CommitPolicy>) -> (Requirement, Requirement, u64) {
        let from = append.asked_under;
        let all = self.forces.get(&append.node).map_or(&[][..], |f| &f.all);
        let policies = match policy {
            Some(policy) => vec![policy],
            None => all[from..].iter().map(|f| f.commit).collect(),
        };
        let number = |policy: CommitPolicy, members: u64| match policy {
            CommitPolicy::Local => Requirement::number(0, AckLevel::Flushed),
            CommitPolicy::AckN { n, level } => Requirement::number(n, level),
            CommitPolicy::All { level } => Requirement::number(members.count_ones().max(1) as u8, level),
            CommitPolicy::Majority { level } => Requirement::number(members.count_ones() as u8 / 2 + 1, level),
        };
        let needs = policies.iter().flat_map(|p| all[from..].iter().map(|f| number(*p, f.members)));
        let weaker =
            |a: Requirement, b: Requirement| Requirement::number(a.replicas.min(b.replicas), a.level.min(b.level));
        let least = needs.clone().reduce(weaker).expect("a primary that serves has settings");
        let need = needs.min_by_key(|n| (copies(*n), n.replicas, n.level)).unwrap_or(least);
        (need, least, all[from..].iter().fold(0, |among, f| among | f.members))
    }

    /// A client is about to append to a node.
    pub fn ask(&mut self, node: usize, shard: ShardId, lane: u32, bytes: usize) -> usize {
        let asked_under = self.forces.get(&node).map_or(0, |f| f.from);
        let bytes = bytes as u32;
        let losses = self.losses;
        self.appends.push(Append { node, asked_under, shard, bytes, lane, seq: None, became: Became::Unknown, losses });
        let id = self.appends.len() - 1;
        if let Some(judge) = &mut self.judge {
            judge.append(id, lane, shard, &payload(id, bytes as usize));
        }
        id
    }

    /// It was refused.
    pub fn refused(&mut self, id: usize) {
        self.appends[id].became = Became::Refused;
        if let Some(judge) = &mut self.judge {
            judge.refused(id);
        }
    }

    /// It has an outcome.
    pub fn done(&mut self, id: usize, outcome: &Outcome, policy: Option<CommitPolicy>, by: usize) {
        self.settle(id, outcome, policy, by, true);
    }

    fn settle(&mut self, id: usize, outcome: &Outcome, policy: Option<CommitPolicy>, by: usize, exact: bool) {
        let (need, least, among) = self.need(&self.appends[id], policy);
        let became = match outcome {
            Outcome::Committed { bookmark, .. } => {
                let copies = copies(need);
                self.fresh.push_back(id);
                self.commits += 1;
                // An ack that counts may be of a copy that was lost meanwhile.
                let meanwhile = self.losses - self.appends[id].losses;
                let lost = meanwhile + self.tainted.len() as u8 + u8::from(self.deposed.contains(&by));
                Became::Committed(Promise { bookmark: *bookmark, need, least, copies, lost, by, exact, among })
            }
            _ => {
                self.others += 1;
                Became::Perhaps
            }
        };
        let append = &mut self.appends[id];
        assert!(append.became == Became::Unknown, "append {id} has two outcomes");
        append.became = became;
        // What was lost before, or is not told exactly, only the oracle can weigh.
        if let (Became::Committed(p), true, Some(judge)) = (became, exact, &mut self.judge)
            && p.lost == 0
        {
            judge.committed(id, p.bookmark, need);
        }
    }

    /// It is committed at or below a position.
    pub fn done_by(&mut self, id: usize, at: Bookmark, policy: Option<CommitPolicy>, by: usize) {
        self.settle(id, &Outcome::Committed { bookmark: at, acks: 0 }, policy, by, false);
    }

    /// A node that was known to be bad has lost its folder: an append without an outcome may have counted its
    /// copy, which nothing will tell any more. What is committed was told of it before.
    pub fn lose_copies_under_way(&mut self) {
        self.losses += 1;
    }

    /// Some node's copies are gone: of everything that is committed, one copy fewer is there.
    pub fn lose_copies(&mut self) {
        if let Some(judge) = &mut self.judge {
            judge.lost();
        }
        self.losses += 1;
        for append in &mut self.appends {
            if let Became::Committed(promise) = &mut append.became {
                promise.lost = promise.lost.saturating_add(1);
            }
        }
    }
}

/// Copies on devices that a commit promises.
fn copies(need: Requirement) -> u8 {
    if need.replicas > 0 && need.level != AckLevel::Received { need.replicas + 1 } else { 1 }
}

/// The bytes of an append. Those of eight in a row can be packed, those of the next eight cannot.
#[must_use]
pub fn payload(id: usize, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let (head, rest) = out.split_at_mut(8);
    head.copy_from_slice(&(id as u64).to_le_bytes());
    let mut rng = Rng::new(id as u64);
    let mut word = || if id & 8 == 0 { id as u64 } else { rng.next() }.to_le_bytes();
    let (words, rest) = rest.as_chunks_mut();
    words.iter_mut().for_each(|bytes| *bytes = word());
    if !rest.is_empty() {
        rest.copy_from_slice(&word()[..rest.len()]);
    }
    out
}

/// Whose bytes these are, if they are an append's and whole.
#[must_use]
pub fn owner(oracle: &Oracle, shard: ShardId, bytes: &[u8]) -> Option<usize> {
    let id = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
    let append = oracle.appends.get(id)?;
    (append.shard == shard && append.bytes as usize == bytes.len() && payload(id, bytes.len()) == bytes).then_some(id)
}

/// As [`owner`], by the first bytes only: for records that were checked when they came in.
#[must_use]
pub fn owner_at_a_glance(oracle: &Oracle, shard: ShardId, bytes: &[u8]) -> Option<usize> {
    let id = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
    let append = oracle.appends.get(id)?;
    let head = bytes.len().min(24);
    let whole = append.shard == shard && append.bytes as usize == bytes.len();
    (whole && payload(id, head) == bytes[..head]).then_some(id)
}

/// Checks a shard's final log against what was promised: `ids` are the records that are in it, in
/// order, of which the first has the number `first_seq`; the log begins at `oldest`. Says what is
/// wrong.
pub fn check_log(
    oracle: &Oracle,
    shard: ShardId,
    oldest: Lsn,
    first_seq: Seq,
    ids: &[(usize, Lsn)],
) -> Result<(), String> {
    let mut at: Vec<Option<usize>> = vec![None; oracle.appends.len()];
    let mut last_of_lane: Vec<Option<usize>> = vec![None; oracle.lanes as usize];
    for (n, (id, end)) in ids.iter().enumerate() {
        let append = &oracle.appends[*id];
        if let Some(before) = at[*id].replace(n) {
            return Err(format!("append {id} is in shard {shard}'s log twice, as records {before} and {n}"));
        }
        match append.became {
            Became::Refused => return Err(format!("append {id} was refused, and is in shard {shard}'s log at {end}")),
            Became::Committed(p)
                if p.lost < p.copies && (p.bookmark.lsn < *end || p.exact && p.bookmark.lsn != *end) =>
            {
                return Err(format!("append {id} was committed at {}, and is at {end}", p.bookmark.lsn));
            }
            _ => {}
        }
        let last = &mut last_of_lane[append.lane as usize];
        if let Some(last) = last.replace(*id).filter(|last| last > id) {
            return Err(format!("append {id} of lane {} comes after {last} in shard {shard}", append.lane));
        }
        let seq = Seq(first_seq.0 + n as u64);
        if let (Some(told), Became::Committed(p)) = (append.seq, append.became)
            && told != seq
            && p.lost < p.copies
        {
            return Err(format!("append {id} was told number {told:?} and has {seq:?} in shard {shard}"));
        }
    }
    for (id, append) in oracle.appends.iter().enumerate().filter(|(_, a)| a.shard == shard) {
        let Became::Committed(p) = append.became else { continue };
        // Where the log lets go of its beginning, a part of a commit across shards may be anywhere.
        let kept = p.bookmark.lsn > oldest && (p.exact || oldest == Lsn::ZERO);
        if at[id].is_none() && p.lost < p.copies && kept {
            return Err(format!(
                "append {id} of shard {shard} was committed at {} in term {} by node {} with {} copies, of which {} may be lost, and is gone",
                p.bookmark.lsn, p.bookmark.term, p.by, p.copies, p.lost
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulator, seed 195027646: five copies in memory were asked for, as that promises fewer on
    /// devices, where the other policy had been in force already and three were enough.
    #[test]
    fn while_settings_change_no_more_is_asked_for_than_each_of_them_promises() {
        let mut oracle = Oracle::new(1, None);
        let force = |commit: &str| Force { members: 0b11_1110, commit: commit.parse().unwrap() };
        oracle.is(0, force("ack_n=5:received"), 1);
        let id = oracle.ask(0, ShardId(0), 0, 8);
        oracle.may_be(0, force("majority:flushed"));
        let (need, least, among) = oracle.need(&oracle.appends[id], None);
        assert_eq!(need, Requirement::number(5, AckLevel::Received), "one copy on a device");
        assert_eq!(least, Requirement::number(3, AckLevel::Received));
        assert_eq!(among, 0b11_1110);
        let own = oracle.need(&oracle.appends[id], Some(CommitPolicy::Local)).1;
        assert_eq!(own, Requirement::number(0, AckLevel::Flushed));
    }
}
