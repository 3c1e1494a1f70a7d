//! History: where each term began. Two logs that agree on (term, LSN) hold the same bytes up to it;
//! where they part is found from their histories (the idea of Raft's log matching and of
//! PostgreSQL's timeline history files).

use towline_wire::superblock::HISTORY_MAX;
use towline_wire::{Lsn, Term};

/// `(term, first LSN)`, oldest first; both ascend strictly.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct History {
    entries: Vec<(Term, Lsn)>,
    /// Terms at or below this were forgotten to keep the list bounded.
    forgotten: Term,
}

impl History {
    /// From entries that were checked when they were read.
    #[must_use]
    pub fn from_entries(entries: Vec<(Term, Lsn)>) -> Self {
        Self { entries, forgotten: Term::ZERO }
    }

    /// The entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[(Term, Lsn)] {
        &self.entries
    }

    /// Notes that `term` begins at `first`. A term that wrote nothing leaves no trace: an entry at
    /// the same LSN is replaced.
    ///
    /// # Panics
    /// If the term or the LSN goes back.
    pub fn begin(&mut self, term: Term, first: Lsn) {
        if let Some(&(last_term, last_first)) = self.entries.last() {
            if last_term == term {
                return;
            }
            assert!(term > last_term && first >= last_first, "history goes back: {term:?} at {first:?}");
            if last_first == first {
                self.entries.pop();
            }
        }
        if self.entries.len() == HISTORY_MAX {
            self.forgotten = self.entries.remove(0).0;
        }
        self.entries.push((term, first));
    }

    /// Forgets terms that end at or below `oldest`, where the log that is kept begins.
    pub fn trim(&mut self, oldest: Lsn) {
        let ended = self.entries.windows(2).take_while(|w| w[1].1 <= oldest).count();
        if let Some(last) = self.entries.drain(..ended).next_back() {
            self.forgotten = last.0;
        }
    }

    /// Forgets terms that begin at or above `end`, after the log was cut there.
    pub fn cut(&mut self, end: Lsn) {
        while self.entries.last().is_some_and(|e| e.1 >= end) {
            self.entries.pop();
        }
    }

    /// Where `term` ends in this history, if it is in it: where the next one begins, or `tail`.
    #[must_use]
    pub fn end_of(&self, term: Term, tail: Lsn) -> Option<Lsn> {
        let at = self.entries.iter().position(|e| e.0 == term)?;
        Some(self.entries.get(at + 1).map_or(tail, |next| next.1))
    }

    /// The furthest that a log whose last batch is of `term` may agree with this history: the end
    /// of the newest term here that is not newer. `None` if that was forgotten.
    #[must_use]
    pub fn common_end(&self, term: Term, tail: Lsn) -> Option<Lsn> {
        match self.entries.iter().find(|e| e.0 > term) {
            None => Some(tail),
            Some(_) if term <= self.forgotten && self.forgotten > Term::ZERO => None,
            Some(&(_, first)) => Some(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let mut h = History::default();
        h.begin(Term(1), Lsn(0));
        h.begin(Term(3), Lsn(8192));
        h.begin(Term(7), Lsn(20480));
        h
    }

    #[test]
    fn a_term_that_wrote_nothing_leaves_no_trace() {
        let mut h = history();
        h.begin(Term(9), Lsn(20480));
        assert_eq!(h.entries().last(), Some(&(Term(9), Lsn(20480))));
        assert_eq!(h.entries().len(), 3);
    }

    #[test]
    fn logs_part_where_the_next_newer_term_began() {
        let h = history();
        let tail = Lsn(40960);
        assert_eq!(h.common_end(Term(1), tail), Some(Lsn(8192)));
        assert_eq!(h.common_end(Term(2), tail), Some(Lsn(8192)));
        assert_eq!(h.common_end(Term(3), tail), Some(Lsn(20480)));
        assert_eq!(h.common_end(Term(7), tail), Some(tail));
        assert_eq!(h.end_of(Term(3), tail), Some(Lsn(20480)));
        assert_eq!(h.end_of(Term(2), tail), None);
    }

    #[test]
    fn a_history_stays_bounded_and_says_what_it_forgot() {
        let mut h = History::default();
        for n in 1..=HISTORY_MAX as u64 + 5 {
            h.begin(Term(n), Lsn(n * 4096));
        }
        assert_eq!(h.entries().len(), HISTORY_MAX);
        assert_eq!(h.common_end(Term(2), Lsn(u64::MAX)), None);
        h.trim(Lsn(100 * 4096));
        assert_eq!(h.entries()[0].0, Term(100));
        h.cut(Lsn(200 * 4096));
        assert_eq!(h.entries().last(), Some(&(Term(199), Lsn(199 * 4096))));
    }
}
