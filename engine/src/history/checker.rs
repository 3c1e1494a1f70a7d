//! The history so far: what was to be appended, and what became of it.

use thiserror::Error;
use towline_wire::ShardId;

use super::event::{Append, Commit, Event, Outcome, Print, Status};
use super::examination::Examination;
use super::table::Table;
use super::verdict::Name;
use crate::protocol::policy::CommitPolicy;

/// No further append of the same kind.
pub(super) const NONE: u32 = u32::MAX;

/// A history of its own: its numbers of records and its clock are not those of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(u32);

/// Why an event cannot follow those before it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refused {
    /// Two records of one number.
    #[error("record {0} was appended before: each has a number of its own")]
    SecondAppend(u64),
    /// An outcome of what was not appended.
    #[error("record {0} has an outcome and was not appended before")]
    NotAppended(u64),
    /// Two outcomes of one record.
    #[error("record {0} has a second outcome")]
    SecondOutcome(u64),
    /// An outcome of no record, or of more than there are numbers.
    #[error("an outcome tells of {records} records from {id} on: it is of one at least, and numbers end somewhere")]
    Records {
        /// The first one.
        id: u64,
        /// How many.
        records: u64,
    },
    /// The clock went back.
    #[error("record {id} was appended at {append_us} us and had its outcome at {outcome_us} us, which is earlier")]
    Clock {
        /// The record.
        id: u64,
        /// When it was appended.
        append_us: u64,
        /// When its outcome was known.
        outcome_us: u64,
    },
    /// No node, or as many as before.
    #[error("the history is of {found} nodes, {expected} are expected")]
    Nodes {
        /// What it says.
        found: u8,
        /// What is expected.
        expected: u8,
    },
    /// More records than the checker can number.
    #[error("there are more than {} records", u32::MAX)]
    TooMany,
}

/// One record that was to be appended.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// Index of its client and shard among those known.
    pub(super) lane: u32,
    pub(super) shard: ShardId,
    pub(super) class: u32,
    /// The next append of the same bytes to the same shard.
    pub(super) next: u32,
    pub(super) policy: Option<CommitPolicy>,
    pub(super) at_us: u64,
    /// When its outcome was known; nothing is before that.
    pub(super) done_us: u64,
    /// `None`: there is no outcome.
    pub(super) status: Option<Status>,
}

impl Entry {
    pub(super) const fn commit(&self) -> Option<&Commit> {
        match &self.status {
            Some(Status::Committed(commit)) => Some(commit),
            _ => None,
        }
    }
}

/// All appends of the same bytes to the same shard: nearly always one.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) first: u32,
    last: u32,
    pub(super) count: u32,
    pub(super) refused: u32,
}

/// How the logs are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// How many logs of each shard there are; the nodes without one count as lost.
    pub logs: u8,
    /// Not every append is in the history: records that it does not know are no phantoms.
    pub partial: bool,
    /// All nodes should have caught up: a log that ends before another one is a violation.
    pub converged: bool,
}

/// Collects a history; see [`crate::history`].
#[derive(Debug)]
pub struct Checker {
    pub(super) nodes: u8,
    sources: u32,
    pub(super) entries: Vec<Entry>,
    pub(super) classes: Vec<Class>,
    by_name: Table<(u32, u64), u32>,
    by_print: Table<(u32, u64, u32), u32>,
    lanes: Table<(u32, u32, u32), u32>,
    /// Source and moment of each loss of a node.
    lost: Vec<(u32, u64)>,
}

impl Checker {
    /// For so many nodes: the primary and its configured replicas.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        Self {
            nodes,
            sources: 0,
            entries: Vec::new(),
            classes: Vec::new(),
            by_name: Table::default(),
            by_print: Table::default(),
            lanes: Table::default(),
            lost: Vec::new(),
        }
    }

    /// One more history, with numbers and a clock of its own.
    pub fn source(&mut self) -> Source {
        self.sources += 1;
        Source(self.sources - 1)
    }

    /// What happened next in a history.
    ///
    /// # Errors
    /// What cannot be, by what was told before. The history so far is as it was.
    pub fn push(&mut self, source: Source, event: &Event) -> Result<(), Refused> {
        match event {
            Event::Begin { nodes } if *nodes != self.nodes || *nodes == 0 => {
                Err(Refused::Nodes { found: *nodes, expected: self.nodes.max(1) })
            }
            Event::Begin { .. } => Ok(()),
            Event::Append(append) => self.append(source, append),
            Event::Outcome(outcome) => self.outcome(source, outcome),
            Event::Lost { at_us, .. } => {
                self.lost.push((source.0, *at_us));
                Ok(())
            }
        }
    }

    /// Records that were to be appended so far.
    #[must_use]
    pub fn appends(&self) -> usize {
        self.entries.len()
    }

    /// Begins to hold logs against the history so far, which stays as it is.
    #[must_use]
    pub fn examine(&self, scope: Scope) -> Examination<'_> {
        Examination::new(self, scope)
    }

    fn append(&mut self, source: Source, append: &Append) -> Result<(), Refused> {
        let index = u32::try_from(self.entries.len()).ok().filter(|n| *n != NONE).ok_or(Refused::TooMany)?;
        let name = Name { source: source.0, id: append.id };
        if self.by_name.contains_key(&(name.source, name.id)) {
            return Err(Refused::SecondAppend(append.id));
        }
        self.by_name.insert((name.source, name.id), index);
        let Print { bytes, hash } = append.print;
        let class = *self.by_print.entry((append.shard.0, hash, bytes)).or_insert(self.classes.len() as u32);
        match self.classes.get_mut(class as usize) {
            None => self.classes.push(Class { first: index, last: index, count: 1, refused: 0 }),
            Some(known) => {
                self.entries[known.last as usize].next = index;
                known.last = index;
                known.count += 1;
            }
        }
        let lanes = self.lanes.len() as u32;
        let lane = *self.lanes.entry((source.0, append.client, append.shard.0)).or_insert(lanes);
        self.entries.push(Entry {
            name,
            lane,
            shard: append.shard,
            class,
            next: NONE,
            policy: append.policy,
            at_us: append.at_us,
            done_us: u64::MAX,
            status: None,
        });
        Ok(())
    }

    fn outcome(&mut self, source: Source, outcome: &Outcome) -> Result<(), Refused> {
        let Outcome { id, records, status, at_us } = *outcome;
        let ids = match id.checked_add(records) {
            Some(end) if records > 0 => id..end,
            _ => return Err(Refused::Records { id, records }),
        };
        for id in ids.clone() {
            let entry = &self.entries[self.index(source, id)?];
            if entry.status.is_some() {
                return Err(Refused::SecondOutcome(id));
            }
            if at_us < entry.at_us {
                return Err(Refused::Clock { id, append_us: entry.at_us, outcome_us: at_us });
            }
        }
        for (n, id) in ids.enumerate() {
            let index = self.index(source, id)?;
            let entry = &mut self.entries[index];
            entry.done_us = at_us;
            entry.status = Some(match status {
                Status::Committed(commit) => Status::Committed(Commit {
                    first_seq: commit.first_seq.map(|seq| towline_wire::Seq(seq.0.saturating_add(n as u64))),
                    ..commit
                }),
                other => other,
            });
            if status == Status::Refused {
                self.classes[entry.class as usize].refused += 1;
            }
        }
        Ok(())
    }

    fn index(&self, source: Source, id: u64) -> Result<usize, Refused> {
        self.by_name.get(&(source.0, id)).map(|n| *n as usize).ok_or(Refused::NotAppended(id))
    }

    /// The class of a record's bytes.
    pub(super) fn class_of(&self, shard: ShardId, print: Print) -> Option<u32> {
        self.by_print.get(&(shard.0, print.hash, print.bytes)).copied()
    }

    /// Every append of a class.
    pub(super) fn members(&self, class: &Class) -> impl Iterator<Item = &Entry> {
        let mut at = class.first;
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.next;
            Some(entry)
        })
    }

    /// Lanes and sources there are.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.lanes.len(), self.sources as usize)
    }

    /// Nodes lost after an outcome was known. The clocks of two histories cannot be compared: a
    /// loss in another one counts.
    pub(super) fn lost_after(&self, entry: &Entry) -> u32 {
        self.lost.iter().filter(|(source, at)| *source != entry.name.source || *at >= entry.done_us).count() as u32
    }

    /// Nodes lost at any time.
    pub(super) fn lost_ever(&self) -> u32 {
        self.lost.len() as u32
    }
}
