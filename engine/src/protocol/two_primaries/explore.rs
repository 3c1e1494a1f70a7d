//! Every state that can be reached in so many steps, breadth first.
//!
//! Of each state only the way to it is kept, as its predecessor and the number of the event: the state
//! itself is made again from the beginning when its turn comes. So a million of them fit.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use towline_wire::BLOCK;

use super::Shape;
use super::cluster::{Cluster, Event, NEW, OLD};
use super::nodes::{Feeder, Id, end_of};

/// Keys are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// A hash of 64 bits, by multiplication to 128 bits and folding. Of a million states two share one by a
/// chance of one in some ten million, and then the second is taken for the first.
#[derive(Default)]
pub(super) struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        let n = self.0 ^ self.0 >> 32;
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        n ^ n >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.write_u64(u64::from_le_bytes(whole) ^ (word.len() as u64) << 56);
        }
    }
    fn write_u64(&mut self, n: u64) {
        let wide =
            u128::from(self.0 ^ n ^ 0xa076_1d64_78bd_642f) * u128::from(0xe703_7ed1_a0b4_28db_u64 ^ n.rotate_left(32));
        self.0 = (wide as u64 ^ (wide >> 64) as u64).wrapping_add(self.0.rotate_left(23));
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// What was seen. Each but the first two must be more than nothing, or a promise was tested on nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) states: u64,
    pub(super) steps: u64,
    /// Both primaries reign, and neither knows of the other.
    pub(super) both_reign: u64,
    /// Both have committed something.
    pub(super) both_committed: u64,
    /// The old primary was deposed by a replica's hello.
    pub(super) deposed: u64,
    /// A replica has given up a tail for the new primary's log.
    pub(super) cuts: u64,
    /// The old primary commits although enough replicas have seen the new term, by what they had
    /// acknowledged before.
    pub(super) late: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { states, steps, both_reign, both_committed, deposed, cuts, late } = other;
        self.states += states;
        self.steps += steps;
        self.both_reign += both_reign;
        self.both_committed += both_committed;
        self.deposed += deposed;
        self.cuts += cuts;
        self.late += late;
    }

    fn look(&mut self, c: &Cluster, cut: bool) {
        self.states += 1;
        let [old, new] = &c.primaries;
        let is_deposed = old.as_ref().is_some_and(|f| f.primary.is_deposed());
        self.both_reign += u64::from(old.is_some() && new.is_some() && !is_deposed);
        self.both_committed += u64::from(c.committed.iter().all(|c| !c.is_empty()));
        self.deposed += u64::from(is_deposed);
        self.cuts += u64::from(cut);
    }
}

/// A promise that is broken, and how it comes to that.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) what: String,
    pub(super) trace: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after", self.what)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// Looks at every state within `depth` steps.
pub(super) fn explore(shape: Shape, depth: usize) -> Result<Counts, Broken> {
    let mut counts = Counts::default();
    let mut seen: HashSet<u64, BuildHasherDefault<AsItIs>> = HashSet::default();
    // For each state that is gone on from: its predecessor, and the number of the event.
    let mut ways: Vec<(u32, u8)> = vec![(0, 0)];
    seen.insert(Cluster::new(shape).key());
    counts.states = 1;
    let (mut layer, mut events) = (0..1, Vec::new());
    let mut way = Way(vec![(0, Cluster::new(shape))]);
    for left in (0..depth).rev() {
        let end = ways.len();
        for at in layer.clone() {
            way.go_to(&ways, at);
            let from = &way.0.last().expect("it went there").1;
            from.events(&mut events);
            for (number, event) in events.iter().enumerate() {
                let mut next = from.clone();
                next.apply(*event);
                counts.steps += 1;
                if let Err(what) = next.judge() {
                    return Err(Broken { what, trace: trace(shape, &ways, at, *event) });
                }
                let had = (end_of(&from.committed[OLD]).lsn, from.bound.is_some());
                counts.late += u64::from(had.1 && end_of(&next.committed[OLD]).lsn > had.0);
                if seen.insert(next.key()) {
                    counts.look(&next, next.cuts > from.cuts);
                    if left > 0 {
                        ways.push((u32::try_from(at).expect("few states"), u8::try_from(number).expect("few events")));
                    }
                }
            }
        }
        layer = end..ways.len();
    }
    Ok(counts)
}

/// Whether states with one key go on alike: then the first of them stands for all. Each state that is
/// reached is gone on from, also those whose key was there. Returns how many of those there were.
pub(super) fn keys_tell_all(shape: Shape, depth: usize) -> u64 {
    let mut events = Vec::new();
    let mut after = |c: &Cluster| {
        c.events(&mut events);
        let next = |event: &Event| {
            let mut next = c.clone();
            next.apply(*event);
            next.judge().expect("it holds");
            next
        };
        events.iter().map(next).collect::<Vec<_>>()
    };
    let keys = |all: &[Cluster]| {
        let mut keys: Vec<u64> = all.iter().map(Cluster::key).collect();
        keys.sort_unstable();
        keys
    };
    let (mut seen, mut again, mut layer) = (HashMap::new(), 0, after(&Cluster::new(shape)));
    for _ in 0..depth {
        for state in std::mem::take(&mut layer) {
            let next = after(&state);
            let next_keys = keys(&next);
            match seen.entry(state.key()) {
                Entry::Vacant(v) => {
                    v.insert(next_keys);
                    layer.extend(next);
                }
                Entry::Occupied(o) => {
                    again += 1;
                    assert_eq!(*o.get(), next_keys, "states with one key go on in different ways: {state:?}");
                }
            }
        }
    }
    again
}

/// A state, made again from the beginning, and those on the way to it. The next one shares most of its way.
struct Way(Vec<(usize, Cluster)>);

impl Way {
    fn go_to(&mut self, ways: &[(u32, u8)], at: usize) {
        let mut missing = Vec::new();
        let mut from = at;
        loop {
            while self.0.last().is_some_and(|(n, _)| *n > from) {
                self.0.pop();
            }
            if self.0.last().is_some_and(|(n, _)| *n == from) {
                break;
            }
            missing.push((from, ways[from].1));
            from = ways[from].0 as usize;
        }
        let mut events = Vec::new();
        for (at, number) in missing.into_iter().rev() {
            let mut next = self.0.last().expect("the beginning").1.clone();
            next.events(&mut events);
            next.apply(events[usize::from(number)]);
            next.judge().expect("it held before");
            self.0.push((at, next));
        }
    }
}

/// What happened up to a state, and then an event.
fn trace(shape: Shape, ways: &[(u32, u8)], mut at: usize, last: Event) -> Vec<String> {
    let mut numbers = Vec::new();
    while at > 0 {
        numbers.push(ways[at].1);
        at = ways[at].0 as usize;
    }
    let (mut cluster, mut events, mut trace) = (Cluster::new(shape), Vec::new(), Vec::new());
    let mut happens = |cluster: &mut Cluster, event: Event| {
        cluster.apply(event);
        trace.push(format!("{event:?}: {}", cluster.shown()));
    };
    for number in numbers.iter().rev() {
        cluster.events(&mut events);
        happens(&mut cluster, events[usize::from(*number)]);
        cluster.judge().expect("it held before");
    }
    happens(&mut cluster, last);
    trace
}

impl Cluster {
    /// How long each log is, in batches, for whoever reads a trace.
    fn shown(&self) -> String {
        let log = |l: &[Id]| end_of(l).lsn.0 / BLOCK as u64;
        let p = |f: &Option<Rc<Feeder>>| {
            f.as_ref().map_or("-".into(), |f| format!("log {} committed {}", log(&f.log), f.told.0 / BLOCK as u64))
        };
        let m: Vec<_> = self.members.iter().map(|m| m.node.as_ref().map(|f| log(&f.log))).collect();
        format!("old: {}; new: {}; replicas: {m:?}", p(&self.primaries[OLD]), p(&self.primaries[NEW]))
    }
}
