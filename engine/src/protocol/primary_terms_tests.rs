//! Whose histories part where terms are forgotten: what is told then, and what never is.

use super::*;

#[test]
fn too_old_and_in_the_future_are_different_answers() {
    let mut p = primary();
    let oldest = Lsn(4096);
    assert_eq!(p.answer(&hello(0, 0, 0), log(), 0), HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest }));
    assert_eq!(p.answer(&hello(4, 45056, 0), log(), 0), refused(Refusal::Future));
}

#[test]
fn a_replica_that_ends_where_the_kept_log_begins_is_served_although_its_term_is_forgotten() {
    let mut p = primary();
    p.history.trim(Lsn(20480));
    let log = LogEnds { oldest: Lsn(20480), ..log() };
    let h = hello(3, 20480, 9);
    assert_eq!(p.answer(&h, log, 0), HelloAnswer::NeedChain(Lsn(20480)));
    assert_eq!(p.answer_with_chain(&h, log.oldest, Some(Chain(9)), 0), Verdict::Stream { from: Lsn(20480) });
    let h = hello(3, 16384, 9);
    assert_eq!(p.answer(&h, log, 0), HelloAnswer::Verdict(Verdict::NeedSnapshot { oldest: Lsn(20480) }));
}

#[test]
fn a_term_that_may_be_forgotten_is_not_taken_for_one_that_never_was() {
    let mut p = primary();
    p.history.trim(Lsn(20480));
    let snapshot = Verdict::NeedSnapshot { oldest: Lsn(20480) };
    // Term 3 was here, and the replica's log parts from this one's somewhere in it.
    let h = hello(3, 20480, 10);
    assert_eq!(p.answer_with_chain(&h, Lsn(20480), Some(Chain(9)), 0), snapshot);
    // After a restart, which reads only what is kept, all the same.
    p.history = History::from_entries(p.history.entries().to_vec());
    assert_eq!(p.answer_with_chain(&h, Lsn(20480), Some(Chain(9)), 0), snapshot);
    // What was let go of while the chain was read is not kept either.
    assert_eq!(p.answer_with_chain(&hello(4, 24576, 1), Lsn(28672), None, 0), Verdict::Refused(Refusal::Busy));
}

/// Found by the simulator, seed 80031574: it was told that it is too old, and could not begin anew as it did
/// not end before the oldest that is kept.
#[test]
fn a_tail_behind_the_oldest_of_a_term_that_is_forgotten_is_cut_there() {
    let mut p = primary();
    p.history.trim(Lsn(24576));
    let log = LogEnds { oldest: Lsn(24576), ..log() };
    let cut = |to| HelloAnswer::Verdict(Verdict::Cut { to: Lsn(to) });
    // Term 4 is all that is kept, so what term 3 wrote behind its beginning is not in this log.
    assert_eq!(p.answer(&hello(3, 36864, 1), log, 0), cut(24576));
    let knows = Hello { commit_lsn: Lsn(28672), ..hello(3, 36864, 1) };
    assert_eq!(p.answer(&knows, log, 0), refused(Refusal::CutBelowCommit));
    // It ends there now. If even that is not shared, who can begin anew gives up one batch more.
    let h = hello(3, 24576, 1);
    assert_eq!(p.answer(&h, log, 0), HelloAnswer::NeedChain(Lsn(24576)));
    let oldest = log.oldest;
    let too_old = Verdict::NeedSnapshot { oldest };
    assert_eq!(p.answer_with_chain(&h, oldest, Some(Chain(9)), 0), too_old);
    for features in [FEATURE_BEGIN, FEATURE_SNAPSHOT] {
        let h = Hello { features, ..h };
        assert_eq!(p.answer_with_chain(&h, oldest, Some(Chain(9)), 0), Verdict::Cut { to: Lsn(20480) });
    }
}

/// Found by the simulator, seed 193120710: it was told that it is too old, and asked again for ever, as it gives
/// up nothing that is committed. Nobody was told that a node without an acknowledged commit had been promoted.
#[test]
fn who_misses_a_commit_is_told_so_although_the_term_of_it_is_forgotten() {
    let mut p = primary();
    p.history.trim(Lsn(24576));
    let oldest = Lsn(24576);
    for features in [0, FEATURE_BEGIN, FEATURE_SNAPSHOT] {
        let knows = Hello { commit_lsn: oldest, features, ..hello(3, 24576, 1) };
        let answer = p.answer_with_chain(&knows, oldest, Some(Chain(9)), 0);
        assert_eq!(answer, Verdict::Refused(Refusal::CutBelowCommit));
        assert_eq!(p.answer_with_chain(&knows, oldest, Some(Chain(1)), 0), Verdict::Stream { from: oldest });
    }
}

#[test]
fn who_misses_a_commit_offers_no_new_beginning_in_its_place() {
    let mut p = primary();
    p.makes_snapshots = true;
    let log = LogEnds { oldest: Lsn(28672), ..log() };
    p.history.trim(log.oldest);
    for features in [0, FEATURE_BEGIN, FEATURE_SNAPSHOT] {
        // Term 4 began at 20480.
        let knows = Hello { commit_lsn: Lsn(24576), features, ..hello(3, 24576, 9) };
        assert_eq!(p.answer(&knows, log, 5), refused(Refusal::CutBelowCommit));
        let may_be_in_it = Hello { commit_lsn: Lsn(20480), ..knows };
        assert_ne!(p.answer(&may_be_in_it, log, 5), refused(Refusal::CutBelowCommit));
    }
    // A log that was begun there, and has no batch, says nothing of terms.
    let begun = Hello { commit_lsn: Lsn(24576), features: FEATURE_BEGIN, ..hello(0, 24576, 9) };
    assert_eq!(p.answer(&begun, log, 5), HelloAnswer::NeedBase(log.oldest));
}

#[test]
fn who_has_begun_and_reigns_does_not_know_that_a_term_never_was() {
    let mut p = primary();
    p.history = History::default();
    let oldest = Lsn(24576);
    let log = LogEnds { oldest, tail: oldest, chain: Chain(5) };
    let h = Hello { commit_lsn: Lsn(16384), ..hello(3, 24576, 9) };
    let too_old = Verdict::NeedSnapshot { oldest };
    assert_eq!(p.answer(&h, log, 0), HelloAnswer::Verdict(too_old), "it may have cut all of term 3");
    let begins = Hello { features: FEATURE_BEGIN, ..h };
    assert_eq!(p.answer(&begins, log, 0), HelloAnswer::Verdict(Verdict::Cut { to: Lsn(20480) }));
}

#[test]
fn a_log_that_is_kept_is_followed_although_its_last_term_is_of_too_many() {
    let mut p = primary();
    let at = |term: u64| Lsn(40960 + term * 4096);
    let terms = 5..5 + towline_wire::superblock::HISTORY_MAX as u64;
    terms.clone().for_each(|term| p.history.begin(Term(term), at(term)));
    p.term = Term(terms.end - 1);
    let log = LogEnds { tail: at(terms.end), ..log() };
    let first = p.history.entries()[0];
    assert!(first.0 > Term(4) && first.1 > log.oldest, "terms are forgotten whose log is kept");
    for h in [hello(4, 36864, 9), hello(3, 20480, 9), hello(4, first.1.0, 9)] {
        assert_eq!(p.answer(&h, log, 0), HelloAnswer::NeedChain(h.end_lsn));
        assert_eq!(p.answer_with_chain(&h, log.oldest, Some(Chain(9)), 0), Verdict::Stream { from: h.end_lsn });
        let cut = Verdict::Cut { to: Lsn(h.end_lsn.0 - 4096) };
        assert_eq!(p.answer_with_chain(&h, log.oldest, Some(Chain(8)), 0), cut, "where they part is forgotten");
        let knows = Hello { commit_lsn: h.end_lsn, ..h };
        let missing = Verdict::Refused(Refusal::CutBelowCommit);
        assert_eq!(p.answer_with_chain(&knows, log.oldest, Some(Chain(8)), 0), missing);
    }
    let behind = hello(4, first.1.0 + 4096, 9);
    assert_eq!(p.answer(&behind, log, 0), HelloAnswer::Verdict(Verdict::Cut { to: first.1 }));
}
