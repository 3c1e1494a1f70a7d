//! A cluster of two primaries, replicas, and what is on its way between them; and what may happen to it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use towline_wire::handshake::{Hello, Welcome};
use towline_wire::message::{Ack, Heartbeat};
use towline_wire::{Lsn, Term};

use super::Shape;
use super::nodes::{Came, Feeder, Follower, Id, batch, name};
use crate::protocol::policy::Requirement;

/// The two primaries, by their places.
pub(super) const OLD: usize = 0;
pub(super) const NEW: usize = 1;
/// Their terms: a first start's, and a promotion's.
pub(super) const TERMS: [Term; 2] = [Term(1), Term(1 << 32)];

/// What a replica sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Up {
    Hello(Hello),
    Ack(Ack),
}

/// What a primary sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Down {
    Welcome(Welcome),
    Batch(Id, Lsn),
    Beat(Heartbeat),
}

/// A replica's connection.
#[derive(Clone, Debug)]
pub(super) struct Conn {
    pub(super) to: usize,
    /// Its number, among those of the same two nodes.
    pub(super) number: u64,
    /// A welcome has come, and is followed.
    pub(super) follows: bool,
    /// The primary has not closed its end.
    pub(super) open: bool,
    pub(super) up: VecDeque<Up>,
    pub(super) down: VecDeque<Down>,
    /// What was last said to be committed.
    pub(super) said: Lsn,
}

/// A connection that the replica has given up, of which the primary has not read everything yet.
#[derive(Clone, Debug)]
pub(super) struct Stale {
    pub(super) number: u64,
    pub(super) up: VecDeque<Up>,
}

/// A replica of the old primary's; the last one is the old primary itself, once it is a replica.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// `None` if it was promoted, or is not a replica yet.
    pub(super) node: Option<Follower>,
    pub(super) conn: Option<Conn>,
    pub(super) stale: [Option<Stale>; 2],
    /// It has promised the new term, or begun it.
    pub(super) saw: bool,
    /// The operator has stopped it before the promotion, and starts it with the new address.
    pub(super) bound: bool,
    /// What it has told the old primary to be on its device, before it saw the new term.
    pub(super) vouched: Lsn,
    /// The hash of all of that, if it has not changed since.
    pub(super) hash: Cell<Option<u64>>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A client appends at a primary; what is closed goes to each link.
    Append(usize),
    /// A replica without a connection makes one, and says hello.
    Connect(usize, usize),
    /// The first of what a replica has sent arrives.
    Up(usize),
    /// The same of a connection that it has given up.
    Late(usize, usize),
    /// The first of what a primary has sent arrives.
    Down(usize),
    /// A primary says what is committed.
    Beat(usize),
    /// A replica gives its connection up; what was sent to it is lost.
    Leave(usize),
    /// A replica is promoted. The operator has stopped those in the set before, and compared them.
    Promote(usize, u8),
    /// The old primary's process is ended, and its folder started as a replica's.
    Retire,
}

#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) shape: Shape,
    pub(super) need: Requirement,
    pub(super) primaries: [Option<Rc<Feeder>>; 2],
    pub(super) members: Vec<Rc<Member>>,
    /// The batches that each primary counts as committed.
    pub(super) committed: [Vec<Id>; 2],
    /// The most that any replica had vouched for to the old primary, of those that had seen the new term
    /// when they first were so many that no commit can do without one of them.
    pub(super) bound: Option<Lsn>,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    /// What has been seen on the way here, for counts; no part of the state.
    pub(super) cuts: u32,
}

impl Cluster {
    /// The old primary and its replicas, which follow it already; with a batch that is committed and
    /// acknowledged by all of them, if the shape says so.
    pub(super) fn new(shape: Shape) -> Self {
        let mut cluster = Self::empty(shape);
        if shape.begins_committed {
            cluster.apply(Event::Append(OLD));
            for n in 0..shape.replicas {
                cluster.apply(Event::Down(n));
                cluster.apply(Event::Up(n));
            }
            cluster.judge().expect("nothing has gone wrong yet");
        }
        cluster
    }

    fn empty(shape: Shape) -> Self {
        let need = shape.policy.requirement(shape.replicas).expect("it can hold");
        let names: Vec<_> = (0..shape.replicas).collect();
        let mut old = Feeder::new(Vec::new(), TERMS[OLD], need, &names, Lsn::ZERO);
        let mut member = |n: usize| {
            let mut node = Follower::new(Vec::new(), Term::ZERO, Lsn::ZERO);
            let welcome = old.welcome(&node.replica.hello(name(n), 1), 1);
            assert!(matches!(node.on_welcome(&welcome), Came::Follows));
            let (up, down) = (VecDeque::new(), VecDeque::new());
            let conn = Conn { to: OLD, number: 1, follows: true, open: true, up, down, said: Lsn::ZERO };
            let (node, conn, stale) = (Some(node), Some(conn), [None, None]);
            Rc::new(Member { node, conn, stale, saw: false, bound: false, vouched: Lsn::ZERO, hash: Cell::new(None) })
        };
        let mut members: Vec<_> = (0..shape.replicas).map(&mut member).collect();
        let (node, conn, stale) = (None, None, [None, None]);
        members.push(Rc::new(Member {
            node,
            conn,
            stale,
            saw: false,
            bound: false,
            vouched: Lsn::ZERO,
            hash: Cell::new(None),
        }));
        let primaries = [Some(Rc::new(old)), None];
        let committed = [Vec::new(), Vec::new()];
        Self { shape, need, primaries, members, committed, bound: None, broken: None, cuts: 0 }
    }

    /// How many replicas have any commit of the old primary's among them.
    pub(super) fn enough(&self) -> usize {
        self.shape.replicas + 1 - usize::from(self.need.replicas)
    }

    fn member(&mut self, m: usize) -> &mut Member {
        let member = Rc::make_mut(&mut self.members[m]);
        member.hash.set(None);
        member
    }

    fn primary(&mut self, p: usize) -> Option<&mut Feeder> {
        let feeder = Rc::make_mut(self.primaries[p].as_mut()?);
        feeder.hash.set(None);
        Some(feeder)
    }

    fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// Everything that may happen, always in the same order.
    pub(super) fn events(&self, to: &mut Vec<Event>) {
        to.clear();
        for p in [OLD, NEW] {
            let Some(feeder) = &self.primaries[p] else { continue };
            if !feeder.primary.is_deposed() && feeder.appended < self.shape.appends[p] {
                to.push(Event::Append(p));
            }
        }
        if self.primaries[OLD].is_some() && self.primaries[NEW].is_some() {
            to.push(Event::Retire);
        }
        for (n, m) in self.members.iter().enumerate() {
            for (p, stale) in m.stale.iter().enumerate() {
                if stale.is_some() {
                    to.push(Event::Late(n, p));
                }
            }
            match &m.conn {
                Some(conn) => self.events_of(n, conn, to),
                None if m.node.is_some() => {
                    let may = |p: usize| self.primaries[p].is_some() && (p == NEW || !m.bound || m.saw);
                    to.extend([OLD, NEW].into_iter().filter(|p| may(*p)).map(|p| Event::Connect(n, p)));
                }
                None => {}
            }
        }
        if self.primaries[NEW].is_none() {
            self.promotions(to);
        }
    }

    fn events_of(&self, n: usize, conn: &Conn, to: &mut Vec<Event>) {
        if !conn.up.is_empty() {
            to.push(Event::Up(n));
        }
        if !conn.down.is_empty() {
            to.push(Event::Down(n));
        }
        to.push(Event::Leave(n));
        let Some(feeder) = &self.primaries[conn.to] else { return };
        let tells = self.shape.beats && feeder.primary.gate.commit() > conn.said;
        if tells && conn.open && feeder.serves(n, conn.number) {
            to.push(Event::Beat(n));
        }
    }

    /// The operator's choice, as docs/OPERATING.md has it: stop so many replicas that too few are left for a
    /// commit, and take the one of them that followed the newest term and then has the longest log.
    fn promotions(&self, to: &mut Vec<Event>) {
        let place = |n: usize| self.members[n].node.as_ref().map(|f| (f.replica.term, f.replica.flushed()));
        for n in 0..self.shape.replicas {
            if !self.shape.careful {
                to.push(Event::Promote(n, 1 << n));
                continue;
            }
            for set in 1..1_u8 << self.shape.replicas {
                let is_best = || (0..self.shape.replicas).all(|o| set >> o & 1 == 0 || place(o) <= place(n));
                if set >> n & 1 == 1 && set.count_ones() as usize == self.enough() && is_best() {
                    to.push(Event::Promote(n, set));
                }
            }
        }
    }

    /// It happens.
    pub(super) fn apply(&mut self, event: Event) {
        let fenced = self.primaries[OLD].as_ref().filter(|o| o.primary.is_deposed()).map(|o| o.told);
        match event {
            Event::Append(p) => self.append(p),
            Event::Connect(n, p) => self.connect(n, p),
            Event::Up(n) => {
                let conn = self.member(n).conn.as_mut().expect("a connection");
                let (p, number, what) = (conn.to, conn.number, conn.up.pop_front().expect("something was sent"));
                self.arrives_up(n, p, number, what);
            }
            Event::Late(n, p) => self.late(n, p),
            Event::Down(n) => self.arrives_down(n),
            Event::Beat(n) => {
                let conn = self.members[n].conn.as_ref().expect("a connection");
                let beat = self.primaries[conn.to].as_ref().expect("it reigns").heartbeat();
                self.send(n, Down::Beat(beat));
            }
            Event::Leave(n) => self.leaves(n),
            Event::Promote(n, set) => self.promote(n, set),
            Event::Retire => self.retire(),
        }
        if let (Some(before), Some(old)) = (fenced, &self.primaries[OLD])
            && old.told > before
        {
            self.breaks("a deposed primary finished a commit".into());
        }
    }

    fn append(&mut self, p: usize) {
        let need = self.need;
        let id = self.primary(p).expect("it reigns").append(need);
        let commit = self.primaries[p].as_ref().expect("it reigns").primary.gate.commit();
        for n in 0..self.members.len() {
            if self.serves(n, p) {
                self.send(n, Down::Batch(id, commit));
            }
        }
    }

    /// Whether a replica's connection is one that a primary sends on.
    fn serves(&self, n: usize, p: usize) -> bool {
        let Some(conn) = self.members[n].conn.as_ref().filter(|c| c.to == p && c.open) else { return false };
        self.primaries[p].as_ref().is_some_and(|f| f.serves(n, conn.number))
    }

    fn send(&mut self, n: usize, what: Down) {
        let said = match what {
            Down::Batch(_, commit) => commit,
            Down::Beat(beat) => beat.commit_lsn,
            Down::Welcome(welcome) => welcome.commit_lsn,
        };
        let conn = self.member(n).conn.as_mut().expect("a connection");
        conn.said = said;
        conn.down.push_back(what);
        let (p, number) = (conn.to, conn.number);
        if let (Down::Batch(id, _), Some(feeder)) = (what, self.primary(p)) {
            let slot = feeder.slot(n).expect("it is served");
            feeder.primary.on_sent(slot, number, batch(id).end.lsn);
        }
    }

    fn connect(&mut self, n: usize, p: usize) {
        let hello = self.members[n].node.as_ref().expect("a replica").replica.hello(name(n), 1);
        let m = &self.members[n];
        let feeder = self.primaries[p].as_ref().expect("it reigns");
        let link = feeder.slot(n).and_then(|slot| feeder.primary.slots().get(slot)?.link);
        let taken = [m.stale[p].as_ref().map(|s| s.number), link];
        let number = (1..).find(|number| !taken.contains(&Some(*number))).expect("a number");
        let (up, down) = (VecDeque::from([Up::Hello(hello)]), VecDeque::new());
        let m = self.member(n);
        m.conn = Some(Conn { to: p, number, follows: false, open: true, up, down, said: Lsn::ZERO });
        if p == OLD && !m.saw {
            // Its end is on its device, and counts so once the old primary reads this.
            m.vouched = m.vouched.max(hello.end_lsn);
        }
    }

    fn late(&mut self, n: usize, p: usize) {
        let stale = self.member(n).stale[p].as_mut().expect("a connection");
        let (number, what) = (stale.number, stale.up.pop_front().expect("something was sent"));
        let was_last = stale.up.is_empty();
        self.arrives_up(n, p, number, what);
        if was_last {
            self.ends_at_primary(n, p);
        }
    }

    /// A primary sees the end of a connection that was given up.
    fn ends_at_primary(&mut self, n: usize, p: usize) {
        if let (Some(stale), Some(feeder)) = (self.member(n).stale[p].take(), self.primary(p)) {
            feeder.detach(n, stale.number);
        }
    }

    fn arrives_up(&mut self, n: usize, p: usize, number: u64, what: Up) {
        let Some(feeder) = self.primary(p) else { return };
        match what {
            Up::Ack(ack) => {
                let slot = feeder.slot(n).expect("it has a slot");
                if feeder.primary.on_ack(slot, number, &ack, 0).is_err() {
                    feeder.detach(n, number);
                    self.close_if(n, p, number);
                    return;
                }
                feeder.complete();
            }
            Up::Hello(hello) => {
                let welcome = feeder.welcome(&hello, number);
                let deposed = feeder.primary.is_deposed();
                if self.members[n].conn.as_ref().is_some_and(|c| (c.to, c.number) == (p, number)) {
                    self.send(n, Down::Welcome(welcome));
                    self.send_what_is_there(n, p, hello.end_lsn);
                }
                if deposed {
                    // Its other links end.
                    for o in 0..self.members.len() {
                        if o != n && self.is_streaming(o, p) {
                            self.closed(o);
                        }
                    }
                }
            }
        }
    }

    /// Whether a replica's link was answered by a primary, which has not closed it.
    fn is_streaming(&self, n: usize, p: usize) -> bool {
        let conn = self.members[n].conn.as_ref().filter(|c| c.to == p && c.open);
        conn.is_some_and(|c| !c.up.iter().any(|u| matches!(u, Up::Hello(_))))
    }

    /// What the log holds behind a replica's end goes out.
    fn send_what_is_there(&mut self, n: usize, p: usize, from: Lsn) {
        if !self.serves(n, p) {
            return;
        }
        let feeder = self.primaries[p].as_ref().expect("it reigns").clone();
        let commit = feeder.primary.gate.commit();
        for id in &feeder.log {
            if batch(*id).header.lsn() >= from {
                self.send(n, Down::Batch(*id, commit));
            }
        }
    }

    fn close_if(&mut self, n: usize, p: usize, number: u64) {
        if self.members[n].conn.as_ref().is_some_and(|c| (c.to, c.number) == (p, number)) {
            self.closed(n);
        }
    }

    /// The primary's end is closed: nothing that is sent to it arrives any more.
    fn closed(&mut self, n: usize) {
        if let Some(conn) = &mut self.member(n).conn {
            conn.open = false;
            conn.up.clear();
        }
    }

    fn arrives_down(&mut self, n: usize) {
        let m = self.member(n);
        let conn = m.conn.as_mut().expect("a connection");
        let (p, what) = (conn.to, conn.down.pop_front().expect("something was sent"));
        let node = m.node.as_mut().expect("a replica");
        let mut cut = false;
        let goes_on = match what {
            Down::Welcome(welcome) => match node.on_welcome(&welcome) {
                Came::Follows => {
                    conn.follows = true;
                    m.saw |= welcome.term >= TERMS[NEW];
                    true
                }
                Came::Ends { cut: was_cut } => {
                    cut = was_cut;
                    false
                }
            },
            Down::Beat(beat) => node.replica.on_heartbeat(&beat).is_ok(),
            Down::Batch(id, commit) => node.on_batch(id, commit).is_ok(),
        };
        if goes_on && matches!(what, Down::Batch(..)) {
            let ack = node.replica.ack(0);
            if conn.open {
                conn.up.push_back(Up::Ack(ack));
            }
            if p == OLD && !m.saw {
                m.vouched = m.vouched.max(ack.flushed);
            } else if p == OLD {
                self.breaks(format!("{} has seen the new term and acknowledges the old one", name(n)));
            }
        }
        self.cuts += u32::from(cut);
        if !goes_on {
            self.leaves(n);
        }
    }

    /// A replica's end of a connection is closed.
    fn leaves(&mut self, n: usize) {
        let m = self.member(n);
        let Some(conn) = m.conn.take() else { return };
        if let (true, Some(node)) = (conn.follows, &mut m.node) {
            node.replica.on_link_lost();
        }
        let (p, number) = (conn.to, conn.number);
        if conn.up.is_empty() {
            if let Some(feeder) = self.primary(p) {
                feeder.detach(n, number);
            }
            return;
        }
        // Of several that were given up the last one is kept.
        self.ends_at_primary(n, p);
        self.member(n).stale[p] = Some(Stale { number, up: conn.up });
    }

    fn promote(&mut self, n: usize, set: u8) {
        for o in (0..self.shape.replicas).filter(|o| set >> o & 1 == 1) {
            self.leaves(o);
            let m = self.member(o);
            m.bound = true;
            let node = m.node.take().expect("a replica");
            // Its process was ended, and what it knew to be committed may be forgotten.
            m.node = Some(Follower::new(node.log, node.replica.term, Lsn::ZERO));
        }
        let m = self.member(n);
        m.saw = true;
        let log = m.node.take().expect("a replica").log;
        let others: Vec<_> = (0..self.members.len()).filter(|o| *o != n).collect();
        self.primaries[NEW] = Some(Rc::new(Feeder::new(log, TERMS[NEW], self.need, &others, Lsn::ZERO)));
    }

    fn retire(&mut self) {
        let old = self.primaries[OLD].take().expect("it reigns");
        for n in 0..self.members.len() {
            let m = self.member(n);
            m.stale[OLD] = None;
            if m.conn.as_ref().is_some_and(|c| c.to == OLD) {
                self.closed(n);
            }
        }
        let last = self.members.len() - 1;
        self.member(last).node = Some(Follower::new(old.log.clone(), old.heard, Lsn::ZERO));
    }
}
