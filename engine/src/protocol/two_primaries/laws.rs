//! What must hold in every state, and the state's key.

use std::hash::{Hash, Hasher};

use towline_wire::Lsn;
use towline_wire::handshake::{Hello, NodeName};

use super::cluster::{Cluster, Conn, Down, Member, NEW, OLD, Up};
use super::explore::Fold;
use super::nodes::{Feeder, Id, NAMES, batch, end_of, name};

fn is_prefix(short: &[Id], long: &[Id]) -> bool {
    short.len() <= long.len() && short.iter().zip(long).all(|(a, b)| a == b)
}

/// The batches of a log that end at or below an LSN.
fn up_to(log: &[Id], lsn: Lsn) -> &[Id] {
    let n = log.iter().take_while(|id| batch(**id).end.lsn <= lsn).count();
    &log[..n]
}

impl Cluster {
    /// Notes what is committed now, and says which promise is broken, if one is.
    pub(super) fn judge(&mut self) -> Result<(), String> {
        if let Some(what) = self.broken.take() {
            return Err(what);
        }
        for p in [OLD, NEW] {
            let Some(feeder) = &self.primaries[p] else { continue };
            let commit = feeder.primary.gate.commit();
            if feeder.told > commit {
                return Err(format!("a client was told of {:?}, committed is {commit:?}", feeder.told));
            }
            let now = up_to(&feeder.log, commit);
            if end_of(now).lsn != commit || !is_prefix(&self.committed[p], now) {
                return Err("what is committed went back, or ends inside of a batch".into());
            }
            if now.len() > self.committed[p].len() {
                self.committed[p] = now.to_vec();
            }
        }
        self.epochs()?;
        self.contents()?;
        self.replicas()
    }

    /// Once enough replicas have seen the new term, the old primary commits nothing that none of them had
    /// acknowledged before it saw it.
    fn epochs(&mut self) -> Result<(), String> {
        let saw = self.members[..self.shape.replicas].iter().filter(|m| m.saw);
        if self.bound.is_none() && saw.clone().count() >= self.enough() {
            self.bound = Some(saw.map(|m| m.vouched).max().expect("there are some"));
        }
        let old = end_of(&self.committed[OLD]).lsn;
        match self.bound {
            Some(bound) if old > bound => Err(format!(
                "{} replicas have seen the new term and none had acknowledged more than {bound:?} before, but the old primary commits up to {old:?}",
                self.enough()
            )),
            _ => Ok(()),
        }
    }

    /// No two contents are committed at one LSN, and what the old primary commits the new one has.
    fn contents(&self) -> Result<(), String> {
        let [old, new] = &self.committed;
        if !is_prefix(old, new) && !is_prefix(new, old) {
            return Err("two different contents are committed at one LSN".into());
        }
        match &self.primaries[NEW] {
            Some(feeder) if self.shape.careful && !is_prefix(old, &feeder.log) => {
                Err("the new primary lacks what the old one has committed".into())
            }
            _ => Ok(()),
        }
    }

    /// A replica holds a prefix of the log that it follows, and takes for committed only what is.
    fn replicas(&self) -> Result<(), String> {
        for (n, m) in self.members.iter().enumerate() {
            let Some(node) = &m.node else { continue };
            let known = up_to(&node.log, node.replica.committed());
            if end_of(&node.log).lsn != node.replica.received() {
                return Err(format!("{}'s log ends elsewhere than its state says", name(n)));
            }
            if !self.committed.iter().any(|c| is_prefix(known, c)) {
                return Err(format!("{} takes for committed what is not", name(n)));
            }
            let Some(conn) = m.conn.as_ref().filter(|c| c.follows) else { continue };
            if let Some(feeder) = &self.primaries[conn.to]
                && !is_prefix(&node.log, &feeder.log)
            {
                return Err(format!("{} follows a primary and holds other bytes", name(n)));
            }
        }
        Ok(())
    }

    /// The same for states that differ in nothing but which replica is which.
    pub(super) fn key(&self) -> u64 {
        let mut members: Vec<u64> = (0..self.members.len()).map(|n| self.member_key(n)).collect();
        // The old primary is no replica like the others.
        members[..self.shape.replicas].sort_unstable();
        let mut to = Fold::default();
        members.hash(&mut to);
        (&self.committed, self.bound).hash(&mut to);
        for feeder in &self.primaries {
            feeder.is_some().hash(&mut to);
            if let Some(f) = feeder {
                keys(f)[NAMES].hash(&mut to);
            }
        }
        to.finish()
    }

    fn member_key(&self, n: usize) -> u64 {
        let mut to = Fold::default();
        let member = &*self.members[n];
        let own = member.hash.get().unwrap_or_else(|| own_key(member));
        member.hash.set(Some(own));
        own.hash(&mut to);
        for feeder in self.primaries.iter().flatten() {
            keys(feeder)[n].hash(&mut to);
        }
        to.finish()
    }
}

/// What a primary knows of each replica, then the rest of it.
fn keys(feeder: &Feeder) -> [u64; NAMES + 1] {
    let anew = || {
        std::array::from_fn(|n| {
            let mut to = Fold::default();
            if n < NAMES {
                slot_key(feeder, n, &mut to)
            } else {
                feeder_key(feeder, &mut to)
            }
            to.finish()
        })
    };
    let keys = feeder.hash.get().unwrap_or_else(anew);
    feeder.hash.set(Some(keys));
    keys
}

fn own_key(Member { node, conn, stale, saw, bound, vouched, hash: _ }: &Member) -> u64 {
    let mut to = Fold::default();
    (node, saw, bound, vouched).hash(&mut to);
    conn.is_some().hash(&mut to);
    if let Some(Conn { to: p, number, follows, open, up, down, said }) = conn {
        (p, number, follows, open, said, up.len(), down.len()).hash(&mut to);
        up.iter().for_each(|u| up_key(u, &mut to));
        down.iter().for_each(|d| down_key(d, &mut to));
    }
    for stale in stale {
        stale.as_ref().map(|s| (s.number, s.up.len())).hash(&mut to);
        stale.iter().flat_map(|s| &s.up).for_each(|u| up_key(u, &mut to));
    }
    to.finish()
}

/// All of a primary but its slots.
fn feeder_key(Feeder { primary, log, appended, heard, told, .. }: &Feeder, to: &mut Fold) {
    (log, appended, heard, told).hash(to);
    (primary.term, primary.is_deposed(), &primary.history).hash(to);
    (primary.gate.durable(), primary.gate.commit(), primary.gate.waiting()).hash(to);
}

/// What a primary knows of one replica. How many links there were changes nothing.
fn slot_key(feeder: &Feeder, n: usize, to: &mut Fold) {
    let Some(number) = feeder.slot(n) else { return 0.hash(to) };
    let mut slot = feeder.primary.slots().get(number).expect("it was found").clone();
    (slot.name, slot.connects, slot.began) = (NodeName::NONE, 0, Lsn::ZERO);
    (1, slot, feeder.primary.gate.slot(number)).hash(to);
}

fn up_key(up: &Up, to: &mut Fold) {
    match up {
        Up::Hello(hello) => Hello { name: NodeName::NONE, ..*hello }.to_bytes().hash(to),
        Up::Ack(ack) => ack.to_bytes().hash(to),
    }
}

fn down_key(down: &Down, to: &mut Fold) {
    match down {
        Down::Welcome(welcome) => welcome.to_bytes().hash(to),
        Down::Batch(id, commit) => (id, commit).hash(to),
        Down::Beat(beat) => beat.to_bytes().hash(to),
    }
}
