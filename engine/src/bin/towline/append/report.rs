//! What became of the records, in lines for people and for programs.

use std::fmt;

use towline::client::{CommitStatus, Committed};

/// Outcomes of one kind that follow each other, told in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    status: CommitStatus,
    first_seq: u64,
    records: u64,
    lsn: u64,
    term: u64,
    acks: u8,
    wanted: u8,
    durable_here: bool,
}

impl Run {
    pub(super) fn new(outcome: &Committed) -> Self {
        Self {
            status: outcome.status,
            first_seq: outcome.first_seq.0,
            records: u64::from(outcome.record_count),
            lsn: outcome.lsn.0,
            term: outcome.term.0,
            acks: outcome.acks,
            wanted: outcome.wanted,
            durable_here: outcome.durable_here,
        }
    }

    /// Takes the outcome in, if it continues the run: committed records that follow each other in
    /// the log under the same policy. Everything else deserves a line of its own.
    pub(super) fn absorb(&mut self, outcome: &Committed) -> bool {
        let next = Self::new(outcome);
        let continues = self.status == CommitStatus::Committed
            && next.status == CommitStatus::Committed
            && Some(next.first_seq) == self.first_seq.checked_add(self.records)
            && next.term == self.term
            && next.wanted == self.wanted
            && next.durable_here == self.durable_here;
        if continues {
            self.records += next.records;
            self.lsn = self.lsn.max(next.lsn);
            self.acks = self.acks.min(next.acks);
        }
        continues
    }

    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let Self { first_seq, records, lsn, term, acks, wanted, durable_here, .. } = self;
        let status = name(self.status);
        format!(
            "{{\"status\":\"{status}\",\"first_seq\":{first_seq},\"records\":{records},\"lsn\":{lsn},\
             \"term\":{term},\"acks\":{acks},\"wanted\":{wanted},\"durable_here\":{durable_here}}}"
        )
    }
}

const fn name(status: CommitStatus) -> &'static str {
    match status {
        CommitStatus::Committed => "committed",
        CommitStatus::TimedOut => "timed_out",
        CommitStatus::Fenced => "fenced",
        CommitStatus::Stopped => "stopped",
        CommitStatus::TooFewReplicas => "too_few_replicas",
        CommitStatus::PolicyImpossible => "policy_impossible",
        CommitStatus::RecordTooLarge => "record_too_large",
        CommitStatus::NoRoom => "no_room",
        CommitStatus::MinReplicas => "min_replicas",
    }
}

/// The JSON object for records whose outcome will not arrive any more.
pub(super) fn unknown_json(records: u64) -> String {
    format!(
        "{{\"status\":\"unknown\",\"first_seq\":null,\"records\":{records},\"lsn\":null,\
         \"term\":null,\"acks\":null,\"wanted\":null,\"durable_here\":null}}"
    )
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, first_seq, records, lsn, term, acks, wanted, durable_here } = *self;
        let at = format!(
            "seq {first_seq}..{} lsn {lsn} term {term} acks {acks}/{wanted}",
            first_seq.saturating_add(records)
        );
        let here = if durable_here { "durable here" } else { "not known to be durable here" };
        match status {
            CommitStatus::Committed => write!(f, "committed {at}"),
            CommitStatus::TimedOut if acks < wanted => {
                let missing = wanted - acks;
                let replicas = if missing == 1 { "replica" } else { "replicas" };
                write!(f, "timed out {at}, {here}: may be durable; not confirmed by {missing} {replicas}")
            }
            CommitStatus::TimedOut => {
                write!(f, "timed out {at}, {here}: may be durable; not confirmed by the commit policy")
            }
            CommitStatus::Fenced => write!(
                f,
                "fenced {at}, {here}: this primary has been deposed; the new one decides whether these records survive"
            ),
            CommitStatus::Stopped => {
                write!(f, "stopped {at}, {here}: the shard stopped; may be durable, its next start shows it")
            }
            CommitStatus::TooFewReplicas => write!(
                f,
                "refused {records} records, nothing was written: too few replicas are connected ({acks} of {wanted})"
            ),
            CommitStatus::MinReplicas => write!(
                f,
                "refused {records} records, nothing was written: {acks} replicas have acknowledged lately, min-replicas is {wanted}"
            ),
            CommitStatus::PolicyImpossible => write!(
                f,
                "refused {records} records, nothing was written: the policy wants more replicas than are configured"
            ),
            CommitStatus::RecordTooLarge => {
                write!(f, "refused {records} records, nothing was written: one of them is larger than the node accepts")
            }
            CommitStatus::NoRoom => write!(
                f,
                "refused {records} records, nothing was written: the node had no room for them until the deadline; its disk is full, or does not keep up"
            ),
        }
    }
}

/// Records by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) committed: u64,
    pub(super) timed_out: u64,
    /// Fenced or stopped: as unknown as those timed out.
    pub(super) undecided: u64,
    pub(super) refused: u64,
    /// Of those: by the write gate `min-replicas`.
    pub(super) gated: u64,
}

impl Tally {
    pub(super) fn count(&mut self, outcome: &Committed) {
        let records = u64::from(outcome.record_count);
        match outcome.status {
            CommitStatus::Committed => self.committed += records,
            CommitStatus::TimedOut => self.timed_out += records,
            CommitStatus::Fenced | CommitStatus::Stopped => self.undecided += records,
            CommitStatus::MinReplicas => {
                self.refused += records;
                self.gated += records;
            }
            _ => self.refused += records,
        }
    }

    pub(super) const fn answered(&self) -> u64 {
        self.committed + self.timed_out + self.undecided + self.refused
    }

    pub(super) const fn unknown(&self) -> u64 {
        self.timed_out + self.undecided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: CommitStatus, first_seq: u64, records: u32) -> Committed {
        let mut outcome = Committed {
            request: 1,
            term: Default::default(),
            lsn: Default::default(),
            first_seq: Default::default(),
            record_count: records,
            status,
            acks: 1,
            wanted: 2,
            durable_here: true,
        };
        (outcome.term.0, outcome.first_seq.0, outcome.lsn.0) = (3, first_seq, 4096 * (first_seq + 1));
        outcome
    }

    #[test]
    fn committed_records_that_follow_each_other_share_a_line() {
        let mut run = Run::new(&outcome(CommitStatus::Committed, 0, 10));
        assert!(run.absorb(&Committed { acks: 2, ..outcome(CommitStatus::Committed, 10, 5) }));
        assert_eq!(run.to_string(), "committed seq 0..15 lsn 45056 term 3 acks 1/2");
        let before = run;
        for other in [
            outcome(CommitStatus::Committed, 16, 1),
            outcome(CommitStatus::TimedOut, 15, 1),
            Committed { wanted: 1, ..outcome(CommitStatus::Committed, 15, 1) },
            Committed { durable_here: false, ..outcome(CommitStatus::Committed, 15, 1) },
        ] {
            assert!(!run.absorb(&other), "{other:?}");
            assert_eq!(run, before);
        }
        let mut timed_out = Run::new(&outcome(CommitStatus::TimedOut, 0, 1));
        assert!(!timed_out.absorb(&outcome(CommitStatus::TimedOut, 1, 1)));
    }

    #[test]
    fn a_timeout_never_reads_like_not_written() {
        let timed_out = outcome(CommitStatus::TimedOut, 7, 2);
        let line = Run::new(&timed_out).to_string();
        assert_eq!(
            line,
            "timed out seq 7..9 lsn 32768 term 3 acks 1/2, durable here: may be durable; not confirmed by 1 replica"
        );
        let line = Run::new(&Committed { wanted: 4, durable_here: false, ..timed_out }).to_string();
        assert!(line.ends_with("not known to be durable here: may be durable; not confirmed by 3 replicas"), "{line}");
        let line = Run::new(&Committed { wanted: 1, ..timed_out }).to_string();
        assert!(line.contains("may be durable"), "{line}");
    }

    #[test]
    fn json_has_every_key() {
        assert_eq!(
            Run::new(&outcome(CommitStatus::Committed, 0, 10)).json(),
            "{\"status\":\"committed\",\"first_seq\":0,\"records\":10,\"lsn\":4096,\
             \"term\":3,\"acks\":1,\"wanted\":2,\"durable_here\":true}"
        );
        for json in [Run::new(&outcome(CommitStatus::PolicyImpossible, 0, 1)).json(), unknown_json(4)] {
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value.as_object().unwrap().len(), 8, "{json}");
        }
    }

    #[test]
    fn the_tally_keeps_unknown_and_refused_apart() {
        let mut tally = Tally::default();
        for (status, records) in [
            (CommitStatus::Committed, 1),
            (CommitStatus::TimedOut, 2),
            (CommitStatus::Fenced, 4),
            (CommitStatus::Stopped, 8),
            (CommitStatus::TooFewReplicas, 16),
            (CommitStatus::MinReplicas, 32),
        ] {
            tally.count(&outcome(status, 0, records));
        }
        assert_eq!(tally, Tally { committed: 1, timed_out: 2, undecided: 12, refused: 48, gated: 32 });
        assert_eq!((tally.answered(), tally.unknown()), (63, 14));
    }
}
