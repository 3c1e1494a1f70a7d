//! One look at the logs that are left.

use towline_wire::{BatchView, Lsn, Seq, ShardId, Term};

use super::checker::{Checker, Entry, Scope};
use super::event::{Commit, Print, Status};
use super::table::Table;
use super::verdict::{LOGS_MAX, Verdict, Violation};

/// A log that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The caller's number for it, below [`LOGS_MAX`]; one node's logs may share it.
    pub log: u8,
    /// The shard.
    pub shard: ShardId,
    /// Where it begins; what was in front is trimmed.
    pub start: Lsn,
    /// It is the serving primary's: what is still promised has to be in it.
    pub authority: bool,
}

/// A batch of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The reign in which it was closed.
    pub term: Term,
    /// Where it ends.
    pub end: Lsn,
    /// Number of its first record.
    pub first_seq: Seq,
}

/// What is promised of all appends of the same bytes.
#[derive(Clone, Copy, Default)]
struct Promise {
    /// How many of them are promised: a log that holds so many holds them all.
    records: u32,
    /// In how many logs at least.
    logs: u32,
    /// The logs that do.
    held: u64,
    /// The log that was looked at last, plus 1, and how often it holds the bytes.
    seen: (u8, u32),
}

/// The records of a shard as the logs in front had them: one word for each.
#[derive(Default)]
struct Reference {
    first: u64,
    marks: Vec<u64>,
}

/// The log that is being looked at.
struct Current {
    head: LogHead,
    differs: bool,
    /// For each lane the entry that was seen last: those behind it are numbered higher.
    last: Vec<u32>,
    /// For each source the entry of those seen that was appended last.
    newest: Vec<u32>,
    /// Marks in front of the reference's first one.
    front: Vec<u64>,
    /// The number of the first record.
    first: Option<u64>,
}

/// Holds logs against a history: [`Examination::begin_log`], batches, [`Examination::end_log`] for
/// each log of each shard, then [`Examination::finish`].
pub struct Examination<'a> {
    checker: &'a Checker,
    scope: Scope,
    promises: Vec<Promise>,
    references: Table<u32, Reference>,
    current: Option<Current>,
    /// Each log, and where it ended.
    logs: Vec<(LogHead, Lsn)>,
    verdict: Verdict,
}

/// No entry was seen yet.
const NOTHING: u32 = u32::MAX;

impl<'a> Examination<'a> {
    pub(super) fn new(checker: &'a Checker, scope: Scope) -> Self {
        let mut verdict = Verdict { appends: checker.entries.len() as u64, ..Verdict::default() };
        let mut promises = vec![Promise::default(); checker.classes.len()];
        for entry in &checker.entries {
            let commit = match &entry.status {
                Some(Status::Committed(commit)) => commit,
                Some(Status::TimedOut) => {
                    verdict.timed_out += 1;
                    continue;
                }
                Some(Status::Refused) => {
                    verdict.refused += 1;
                    continue;
                }
                Some(Status::Unknown) | None => {
                    verdict.unknown += 1;
                    continue;
                }
            };
            verdict.committed += 1;
            if let Some(violation) = degraded(entry, commit, checker.nodes) {
                verdict.add(violation);
            }
            let left = commit.copies().saturating_sub(lost(checker, scope, entry));
            if left > 0 {
                verdict.promised += 1;
                let promise = &mut promises[entry.class as usize];
                // Of equal records it cannot be told which one a log holds: the least is asked.
                promise.logs = if promise.records == 0 { left } else { promise.logs.min(left) };
                promise.records += 1;
            }
        }
        let (references, logs) = (Table::default(), Vec::new());
        Self { checker, scope, promises, references, current: None, logs, verdict }
    }

    /// A log comes.
    ///
    /// # Panics
    /// If the log before it was not ended, or the number is too high.
    pub fn begin_log(&mut self, head: LogHead) {
        assert!(self.current.is_none(), "the log before was not ended");
        assert!(head.log < LOGS_MAX, "log {} of at most {LOGS_MAX}", head.log);
        let (lanes, sources) = self.checker.widths();
        let (last, newest) = (vec![NOTHING; lanes], vec![NOTHING; sources]);
        self.current = Some(Current { head, differs: false, last, newest, front: Vec::new(), first: None });
    }

    /// Its next batch.
    ///
    /// # Panics
    /// If no log was begun.
    pub fn batch<'r>(&mut self, batch: Batch, records: impl IntoIterator<Item = &'r [u8]>) {
        let mut current = self.current.take().expect("a log was begun");
        for (seq, record) in (batch.first_seq.0..).map(Seq).zip(records) {
            self.record(&mut current, batch, seq, Print::of(record));
        }
        self.current = Some(current);
    }

    /// Its next batch, as it lies on disk.
    ///
    /// # Panics
    /// As [`Examination::batch`].
    pub fn view(&mut self, view: &BatchView<'_>) {
        let header = view.header();
        let batch = Batch { term: header.term(), end: header.end_lsn(), first_seq: header.first_seq() };
        self.batch(batch, view.records());
    }

    /// The log ends here.
    ///
    /// # Panics
    /// If no log was begun.
    pub fn end_log(&mut self, end: Lsn) {
        let Current { head, front, first, .. } = self.current.take().expect("a log was begun");
        self.logs.push((head, end));
        let reference = self.references.entry(head.shard.0).or_default();
        // Only if it reaches up to the others': in between, nothing is known.
        if first.is_some_and(|first| first + front.len() as u64 == reference.first) && !front.is_empty() {
            reference.first -= front.len() as u64;
            reference.marks.splice(0..0, front);
        }
    }

    /// The verdict.
    ///
    /// # Panics
    /// If a log was not ended.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        assert!(self.current.is_none(), "a log was not ended");
        for (index, class) in self.checker.classes.iter().enumerate() {
            let promise = self.promises[index];
            if promise.records == 0 {
                continue;
            }
            let promised = |e: &&Entry| e.commit().is_some_and(|c| c.copies() > lost(self.checker, self.scope, e));
            // What is promised has a member that is promised.
            let Some(entry) = self.checker.members(class).find(promised) else { continue };
            let Some(commit) = entry.commit() else { continue };
            let of_shard = self.logs.iter().filter(|(head, _)| head.shard == entry.shard);
            let (mut held, mut served) = (promise.held, true);
            for (head, _) in of_shard {
                // What is trimmed was there: only what every node has is let go.
                if head.start >= commit.lsn {
                    held |= 1 << head.log;
                }
                served &= !head.authority || held >> head.log & 1 == 1;
            }
            if held.count_ones() < promise.logs || !served {
                self.verdict.add(Violation::Lost {
                    record: entry.name,
                    shard: entry.shard,
                    lsn: commit.lsn,
                    term: commit.term,
                    held_by: held,
                    promised: commit.copies(),
                    lost: lost(self.checker, self.scope, entry),
                    not_served: !served,
                });
            }
        }
        if self.scope.converged {
            for (head, end) in &self.logs {
                let ends = self.logs.iter().filter(|(other, _)| other.shard == head.shard).map(|(_, end)| *end);
                let longest = ends.max().unwrap_or(*end);
                if *end < longest {
                    self.verdict.add(Violation::Behind { log: head.log, shard: head.shard, end: *end, longest });
                }
            }
        }
        self.verdict
    }

    fn record(&mut self, current: &mut Current, batch: Batch, seq: Seq, print: Print) {
        self.verdict.records += 1;
        current.first.get_or_insert(seq.0);
        self.compare(current, batch, seq, print);
        let LogHead { log, shard, .. } = current.head;
        let Some(index) = self.checker.class_of(shard, print) else {
            if !self.scope.partial {
                self.verdict.add(Violation::Phantom { log, shard, seq, lsn: batch.end, bytes: print.bytes });
            }
            return;
        };
        let class = &self.checker.classes[index as usize];
        let promise = &mut self.promises[index as usize];
        if promise.seen.0 != log + 1 {
            promise.seen = (log + 1, 0);
        }
        promise.seen.1 += 1;
        let times = promise.seen.1;
        if times == promise.records {
            promise.held |= 1 << log;
        }
        let entry = &self.checker.entries[class.first as usize];
        if times > class.count {
            let (record, appended) = (entry.name, class.count);
            return self.verdict.add(Violation::Duplicate { record, log, shard, seq, appended });
        }
        if times > class.count - class.refused {
            return self.verdict.add(Violation::RefusedWritten { record: entry.name, log, shard, seq });
        }
        // Places and orders of equal records cannot be told apart.
        if class.count == 1 {
            self.place(entry, current.head, (batch.term, batch.end, seq));
            self.order(current, class.first, entry, seq);
        }
    }

    /// Holds a record against the same one in the logs in front of this one.
    fn compare(&mut self, current: &mut Current, batch: Batch, seq: Seq, print: Print) {
        let LogHead { log, shard, .. } = current.head;
        let odd = 0x9e37_79b9_7f4a_7c15_u64;
        let mark = print.hash ^ u64::from(print.bytes).wrapping_mul(odd);
        let mark = (mark.rotate_left(23) ^ batch.term.0).wrapping_mul(odd);
        let mark = (mark.rotate_left(23) ^ batch.end.0).wrapping_mul(odd);
        let reference = self.references.entry(shard.0).or_default();
        if reference.marks.is_empty() {
            reference.first = seq.0;
        }
        match seq.0.checked_sub(reference.first) {
            None => current.front.push(mark),
            Some(at) => match reference.marks.get(at as usize) {
                None if at == reference.marks.len() as u64 && !current.differs => reference.marks.push(mark),
                Some(known) if *known != mark && !current.differs => {
                    current.differs = true;
                    self.verdict.add(Violation::LogsDiffer { log, shard, seq, lsn: batch.end });
                }
                _ => {}
            },
        }
    }

    /// Is it where its client was told?
    fn place(&mut self, entry: &Entry, head: LogHead, found: (Term, Lsn, Seq)) {
        let Some(commit) = entry.commit() else { return };
        let there = (commit.term, commit.lsn) == (found.0, found.1) && commit.first_seq.is_none_or(|s| s == found.2);
        if !there {
            let (record, told) = (entry.name, (commit.term, commit.lsn, commit.first_seq));
            self.verdict.add(Violation::Misplaced { record, log: head.log, shard: head.shard, told, found });
        }
    }

    /// Is something in front of it that belongs behind it?
    fn order(&mut self, current: &mut Current, index: u32, entry: &Entry, seq: Seq) {
        let LogHead { log, shard, .. } = current.head;
        let source = entry.name.source as usize;
        let (last, newest) = (current.last[entry.lane as usize], current.newest[source]);
        let wrong = |other: u32, same_client| Violation::WrongOrder {
            record: entry.name,
            other: self.checker.entries[other as usize].name,
            log,
            shard,
            seq,
            same_client,
        };
        if last != NOTHING && last > index {
            self.verdict.add(wrong(last, true));
        } else if newest != NOTHING
            && entry.commit().is_some()
            && self.checker.entries[newest as usize].at_us > entry.done_us
        {
            self.verdict.add(wrong(newest, false));
        }
        current.last[entry.lane as usize] = index;
        if newest == NOTHING || self.checker.entries[newest as usize].at_us < entry.at_us {
            current.newest[source] = index;
        }
    }
}

/// Copies that a commit has lost: nodes lost since, and nodes of which no log is left.
fn lost(checker: &Checker, scope: Scope, entry: &Entry) -> u32 {
    let absent = u32::from(checker.nodes.saturating_sub(scope.logs));
    checker.lost_after(entry) + absent.saturating_sub(checker.lost_ever())
}

/// A policy never degrades by itself.
fn degraded(entry: &Entry, commit: &Commit, nodes: u8) -> Option<Violation> {
    let asked = entry.policy.map(|p| p.requirement(usize::from(nodes.saturating_sub(1))).ok());
    let short = match asked {
        None => false,
        // It can never hold.
        Some(None) => true,
        Some(Some(asked)) => commit.wanted < asked.replicas || asked.replicas > 0 && commit.level < asked.level,
    };
    let (acks, wanted) = (commit.acks, commit.wanted);
    let asked = asked.flatten().map(|a| a.replicas);
    let (record, shard) = (entry.name, entry.shard);
    (short || acks < wanted).then_some(Violation::Degraded { record, shard, acks, wanted, asked })
}
