//! History: where each term began. Two logs that agree on (term, LSN) hold the same bytes up to it;
//! where they part is found from their histories (the idea of Raft's log matching and of
//! PostgreSQL's timeline history files).

use towline_wire::superblock::HISTORY_MAX;
use towline_wire::{Lsn, Term};

/// `(term, first LSN)`, oldest first; both ascend strictly.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(test, derive(Hash))]
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

    /// Whether `term` may have been in the history of a log that is kept from `oldest` on, and be forgotten: it is
    /// older than all that is remembered, and something was before that.
    #[must_use]
    pub fn may_have_forgotten(&self, term: Term, oldest: Lsn) -> bool {
        self.entries.first().map_or(oldest > Lsn::ZERO, |&(first, at)| term < first && at > Lsn::ZERO)
    }

    /// Where the first term that is remembered and newer than `term` begins.
    #[must_use]
    pub fn newer_begins(&self, term: Term) -> Lsn {
        self.entries.iter().find(|e| e.0 > term).map_or(Lsn(u64::MAX), |e| e.1)
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
    use proptest::prelude::*;

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

    #[test]
    fn what_was_read_from_disk_is_what_was_noted() {
        let h = history();
        assert_eq!(History::from_entries(h.entries().to_vec()), h);
        let mut again = h.clone();
        again.begin(Term(7), Lsn(40960));
        assert_eq!(again, h, "a term begins once");
    }

    #[test]
    #[should_panic(expected = "history goes back")]
    fn a_term_never_goes_back() {
        history().begin(Term(6), Lsn(40960));
    }

    #[test]
    #[should_panic(expected = "history goes back")]
    fn a_term_never_begins_before_the_one_before_it() {
        history().begin(Term(8), Lsn(8192));
    }

    #[test]
    fn trimming_forgets_only_terms_that_ended_before_the_log_that_is_kept() {
        let mut h = history();
        h.trim(Lsn(8191));
        assert_eq!(h.entries().len(), 3);
        h.trim(Lsn(8192));
        assert_eq!(h.entries()[0], (Term(3), Lsn(8192)));
        let tail = Lsn(40960);
        assert_eq!(h.common_end(Term(1), tail), None, "where term 1 ended is forgotten");
        assert_eq!(h.common_end(Term(2), tail), Some(Lsn(8192)));
        assert!(
            h.may_have_forgotten(Term(1), tail)
                && h.may_have_forgotten(Term(2), tail)
                && !h.may_have_forgotten(Term(4), tail)
        );
        assert!(!history().may_have_forgotten(Term(0), Lsn(0)), "nothing was before term 1");
        h.trim(Lsn(1 << 40));
        assert_eq!(h.entries(), [(Term(7), Lsn(20480))], "the term that the log ends with is kept");
    }

    proptest! {
        /// Two logs that were one up to some place and went on under different terms: the answer
        /// never lies above the place, so that nothing foreign is kept, and following it comes to an
        /// end that both share.
        #[test]
        fn a_cut_by_history_reaches_the_common_prefix(
            shared in prop::collection::vec((1u64..4, 1u64..4), 1..8),
            old in prop::collection::vec((1u64..3, 1u64..4), 1..4),
            new in prop::collection::vec((1u64..3, 1u64..4), 1..4),
        ) {
            // Each log is a list of the terms of its blocks.
            let mut blocks = Vec::new();
            let mut term = 0;
            let grow = |blocks: &mut Vec<u64>, term: &mut u64, by: &[(u64, u64)], step: u64| {
                for (up, count) in by {
                    *term += up * step;
                    blocks.extend(std::iter::repeat_n(*term, *count as usize));
                }
            };
            grow(&mut blocks, &mut term, &shared, 1);
            let parted = blocks.len();
            let (mut theirs, mut ours) = (blocks.clone(), blocks);
            // Terms are never given twice: the old log's are odd, the new one's even and newer.
            let mut t = 2 * term + 1;
            grow(&mut theirs, &mut t, &old, 2);
            let mut t = t + 1;
            grow(&mut ours, &mut t, &new, 2);
            let history = |log: &[u64]| {
                let mut h = History::default();
                log.iter().enumerate().for_each(|(n, t)| h.begin(Term(*t), Lsn(n as u64)));
                h
            };
            let (mine, tail) = (history(&ours), Lsn(ours.len() as u64));
            let mut rounds = 0;
            while theirs[..] != ours[..theirs.len().min(ours.len())] {
                rounds += 1;
                prop_assert!(rounds < 20);
                let last = Term(*theirs.last().unwrap());
                let end = theirs.len() as u64;
                let common = mine.common_end(last, tail).unwrap();
                prop_assert!(common.0 as usize >= parted.min(theirs.len()), "what is common is never cut");
                // As the primary's answer and the replica's plan do it.
                let to = match end > common.0 {
                    true => common.0,
                    false => history(&theirs).entries().last().unwrap().1.0,
                };
                theirs.truncate(to as usize);
            }
            prop_assert_eq!(theirs.len(), parted);
        }
    }
}
