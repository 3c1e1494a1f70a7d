use towline_wire::handshake::NodeName;
use towline_wire::message::AckLevel;
use towline_wire::{Lsn, Seq, ShardId, Term};

use super::*;
use crate::protocol::policy::CommitPolicy;

const ONE: ShardId = ShardId(0);

/// A history of records `r0`, `r1`, ... that all are committed at level flushed, each in a batch of
/// its own, seen by one client. Tests change what the logs hold.
struct World {
    checker: Checker,
    source: Source,
    clock: u64,
}

/// What a log holds: the record's text, and the batch it is in.
type Held = Vec<(String, Batch)>;

fn batch(seq: u64) -> Batch {
    Batch { term: Term(1), end: Lsn(4096 * (seq + 1)), first_seq: Seq(seq) }
}

fn log_of(records: u64) -> Held {
    (0..records).map(|n| (format!("r{n}"), batch(n))).collect()
}

fn commit(seq: u64, wanted: u8) -> Commit {
    let batch = batch(seq);
    let (level, first_seq) = (AckLevel::Flushed, Some(batch.first_seq));
    Commit { term: batch.term, lsn: batch.end, first_seq, level, wanted, acks: wanted }
}

impl World {
    /// Three nodes.
    fn new() -> Self {
        let mut checker = Checker::new(3);
        let source = checker.source();
        Self { checker, source, clock: 0 }
    }

    /// With so many records that wait for so many replicas.
    fn committed(records: u64, wanted: u8) -> Self {
        let mut world = Self::new();
        for n in 0..records {
            world.append(n, 0, &format!("r{n}"));
            world.outcome(n, Status::Committed(commit(n, wanted)));
        }
        world
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn append(&mut self, id: u64, client: u32, record: &str) {
        let at_us = self.now();
        let print = Print::of(record.as_bytes());
        let append = Append { id, client, shard: ONE, print, policy: None, at_us };
        self.checker.push(self.source, &Event::Append(append)).unwrap();
    }

    fn outcome(&mut self, id: u64, status: Status) {
        let at_us = self.now();
        self.checker.push(self.source, &Event::Outcome(Outcome { id, records: 1, status, at_us })).unwrap();
    }

    fn lose(&mut self) {
        let (node, at_us) = (NodeName::new("r1").unwrap(), self.now());
        self.checker.push(self.source, &Event::Lost { node, at_us }).unwrap();
    }

    fn look(&self, scope: Scope, logs: &[(LogHead, &Held)]) -> Verdict {
        let mut examination = self.checker.examine(scope);
        for (head, held) in logs {
            examination.begin_log(*head);
            for (record, batch) in *held {
                examination.batch(*batch, [record.as_bytes()]);
            }
            examination.end_log(held.last().map_or(Lsn::ZERO, |(_, b)| b.end));
        }
        examination.finish()
    }

    /// The logs of all nodes; the first is the primary's.
    fn check(&self, logs: &[&Held]) -> Verdict {
        let head = |log: usize| LogHead { log: log as u8, shard: ONE, start: Lsn::ZERO, authority: log == 0 };
        let logs: Vec<_> = logs.iter().enumerate().map(|(n, held)| (head(n), *held)).collect();
        self.look(Scope { logs: logs.len() as u8, partial: false, converged: false }, &logs)
    }
}

/// The only kind of violation in it, and how often.
fn only(verdict: &Verdict) -> (Kind, u64) {
    let found: Vec<_> = Kind::ALL.iter().map(|k| (*k, verdict.count(*k))).filter(|(_, n)| *n > 0).collect();
    assert_eq!(found.len(), 1, "{:?}", verdict.violations);
    assert!(!verdict.holds());
    assert_eq!(verdict.violations.len() as u64, found[0].1);
    found[0]
}

#[test]
fn logs_that_hold_what_was_acknowledged_pass() {
    let world = World::committed(50, 2);
    let log = log_of(50);
    let verdict = world.check(&[&log, &log, &log]);
    assert!(verdict.holds(), "{:?}", verdict.violations);
    assert_eq!((verdict.appends, verdict.committed, verdict.promised, verdict.records), (50, 50, 50, 150));
}

#[test]
fn an_acknowledged_record_that_a_promised_node_does_not_hold_is_lost() {
    let world = World::committed(5, 2);
    let (whole, short) = (log_of(5), log_of(4));
    assert_eq!(only(&world.check(&[&whole, &whole, &short])), (Kind::Lost, 1));
    // Of one replica of two it is enough that one has it, and the primary.
    let world = World::committed(5, 1);
    assert!(world.check(&[&whole, &whole, &short]).holds());
    assert_eq!(only(&world.check(&[&whole, &short, &short])), (Kind::Lost, 1));
    let verdict = world.check(&[&short, &whole, &whole]);
    assert_eq!(only(&verdict), (Kind::Lost, 1), "the primary's log does not hold it");
    let shown = verdict.violations[0].to_string();
    for part in ["record 4", "LSN 20480", "promised on 2 nodes", "held by 2 of the logs: 1, 2", "the primary's log"] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn a_promise_ends_only_with_as_many_nodes_as_it_covers() {
    let (whole, none) = (log_of(3), Held::new());
    // Two nodes are gone, and the promise was on three.
    let world = World::committed(3, 2);
    assert!(world.check(&[&whole]).holds());
    assert_eq!(only(&world.check(&[&none])), (Kind::Lost, 3));
    // Two are gone, and the promise was on two: nothing is promised any more.
    let world = World::committed(3, 1);
    let verdict = world.check(&[&none]);
    assert!(verdict.holds());
    assert_eq!((verdict.committed, verdict.promised), (3, 0));
    // What is in a replica's memory is promised by the primary's device alone.
    let mut world = World::new();
    world.append(0, 0, "r0");
    world.outcome(0, Status::Committed(Commit { level: AckLevel::Received, ..commit(0, 2) }));
    assert!(world.check(&[&log_of(1), &none, &none]).holds());
    assert_eq!(only(&world.check(&[&none, &none, &none])), (Kind::Lost, 1));
    assert!(world.check(&[&none, &none]).holds());
}

#[test]
fn a_loss_counts_for_what_was_acknowledged_before_it() {
    let mut world = World::committed(3, 2);
    world.lose();
    world.append(3, 0, "r3");
    world.outcome(3, Status::Committed(commit(3, 2)));
    let rebuilt: Held = log_of(4).split_off(3);
    let whole = log_of(4);
    // The lost node has come back empty and got only what came later.
    let head = |log, start| LogHead { log, shard: ONE, start, authority: false };
    let scope = Scope { logs: 3, partial: false, converged: false };
    let logs = [(head(0, Lsn::ZERO), &whole), (head(1, Lsn::ZERO), &whole), (head(2, Lsn::ZERO), &rebuilt)];
    assert!(world.look(scope, &logs).holds());
    let short = log_of(3);
    let logs = [(head(0, Lsn::ZERO), &whole), (head(1, Lsn::ZERO), &short), (head(2, Lsn::ZERO), &rebuilt)];
    assert_eq!(only(&world.look(scope, &logs)), (Kind::Lost, 1));
    // It is not counted a second time because its folder is not there.
    let logs = [(head(0, Lsn::ZERO), &short), (head(1, Lsn::ZERO), &short)];
    assert_eq!(only(&world.look(Scope { logs: 2, ..scope }, &logs)), (Kind::Lost, 1));
}

#[test]
fn what_is_trimmed_was_there() {
    let world = World::committed(4, 2);
    let (whole, kept) = (log_of(4), log_of(4).split_off(2));
    let head = |log, start| LogHead { log, shard: ONE, start, authority: log == 0 };
    let scope = Scope { logs: 3, partial: false, converged: true };
    let at = |start| [(head(0, start), &kept), (head(1, Lsn::ZERO), &whole), (head(2, start), &kept)];
    assert!(world.look(scope, &at(Lsn(8192))).holds());
    assert_eq!(only(&world.look(scope, &at(Lsn(4096)))), (Kind::Lost, 1));
}

#[test]
fn a_record_that_was_never_appended_is_a_phantom() {
    let world = World::committed(3, 2);
    let mut log = log_of(3);
    log.push(("nobody's".into(), batch(3)));
    let verdict = world.check(&[&log, &log, &log]);
    assert_eq!(only(&verdict), (Kind::Phantom, 3));
    let head = LogHead { log: 0, shard: ONE, start: Lsn::ZERO, authority: true };
    let partial = Scope { logs: 1, partial: true, converged: false };
    assert!(world.look(partial, &[(head, &log)]).holds(), "others append too");
    // A record of another shard is one here.
    let verdict = world.look(Scope { partial: false, ..partial }, &[(LogHead { shard: ShardId(1), ..head }, &log)]);
    assert_eq!((verdict.count(Kind::Phantom), verdict.count(Kind::Lost)), (4, 3));
}

#[test]
fn a_refused_record_is_in_no_log() {
    let mut world = World::committed(1, 2);
    world.append(1, 0, "r1");
    world.outcome(1, Status::Refused);
    let without = log_of(1);
    assert!(world.check(&[&without, &without, &without]).holds());
    let with = log_of(2);
    assert_eq!(only(&world.check(&[&with, &without, &without])), (Kind::RefusedWritten, 1));
}

#[test]
fn what_timed_out_or_is_unknown_may_be_there_or_not() {
    let mut world = World::committed(1, 2);
    for (id, status) in [(1, Some(Status::TimedOut)), (2, Some(Status::Unknown)), (3, None)] {
        world.append(id, 0, &format!("r{id}"));
        if let Some(status) = status {
            world.outcome(id, status);
        }
    }
    for records in 1..=4 {
        let log = log_of(records);
        let verdict = world.check(&[&log, &log, &log]);
        assert!(verdict.holds());
        assert_eq!((verdict.timed_out, verdict.unknown), (1, 2));
    }
}

#[test]
fn a_record_that_is_there_twice_is_a_duplicate() {
    let world = World::committed(3, 2);
    let mut log = log_of(3);
    log.push(("r1".into(), batch(3)));
    assert_eq!(only(&world.check(&[&log, &log, &log])), (Kind::Duplicate, 3));
    // One that was appended twice may be there twice, not three times.
    let mut world = World::new();
    for id in 0..2 {
        world.append(id, 0, "same");
        world.outcome(id, Status::Committed(commit(id, 2)));
    }
    let same = |n: u64| -> Held { (0..n).map(|n| ("same".into(), batch(n))).collect() };
    assert!(world.check(&[&same(2), &same(2), &same(2)]).holds());
    assert_eq!(only(&world.check(&[&same(2), &same(2), &same(1)])), (Kind::Lost, 1));
    assert_eq!(only(&world.check(&[&same(2), &same(2), &same(3)])), (Kind::Duplicate, 1));
}

#[test]
fn equal_records_of_different_promises_are_no_false_alarm() {
    let mut world = World::new();
    for (id, wanted) in [(0, 0), (1, 2)] {
        world.append(id, 0, "same");
        world.outcome(id, Status::Committed(commit(id, wanted)));
    }
    let same = |n: u64| -> Held { (0..n).map(|n| ("same".into(), batch(n))).collect() };
    // The one that is missing on the replicas may be the one that they were never promised.
    assert!(world.check(&[&same(2), &same(1), &same(1)]).holds());
    assert_eq!(only(&world.check(&[&same(1), &same(2), &same(2)])), (Kind::Lost, 1));
}

#[test]
fn a_record_is_where_its_client_was_told() {
    let world = World::committed(3, 2);
    let moved = |change: fn(&mut Batch)| {
        let mut log = log_of(3);
        change(&mut log[2].1);
        log
    };
    for log in [moved(|b| b.end.0 += 4096), moved(|b| b.term.0 += 1), moved(|b| b.first_seq.0 += 1)] {
        assert_eq!(only(&world.check(&[&log, &log, &log])), (Kind::Misplaced, 3));
    }
}

#[test]
fn the_records_of_one_outcome_follow_each_other() {
    let mut world = World::new();
    for id in 0..3 {
        world.append(id, 0, &format!("r{id}"));
    }
    let told = Commit { lsn: Lsn(4096), ..commit(0, 2) };
    let outcome = Outcome { id: 0, records: 3, status: Status::Committed(told), at_us: world.now() };
    world.checker.push(world.source, &Event::Outcome(outcome)).unwrap();
    let look = |records: [&str; 3]| {
        let mut examination = world.checker.examine(Scope { logs: 1, partial: false, converged: false });
        examination.begin_log(LogHead { log: 0, shard: ONE, start: Lsn::ZERO, authority: true });
        examination.batch(batch(0), records.map(str::as_bytes));
        examination.end_log(Lsn(4096));
        examination.finish()
    };
    assert!(look(["r0", "r1", "r2"]).holds());
    let verdict = look(["r0", "r2", "r1"]);
    assert_eq!((verdict.count(Kind::Misplaced), verdict.count(Kind::WrongOrder)), (2, 1));
}

#[test]
fn a_clients_records_are_in_the_order_it_appended_them() {
    let mut world = World::new();
    for (id, client) in [(0, 0), (1, 0), (2, 1)] {
        world.append(id, client, &format!("r{id}"));
    }
    let in_order = |order: [u64; 3]| -> Held { (0..).zip(order).map(|(n, r)| (format!("r{r}"), batch(n))).collect() };
    for order in [[0, 1, 2], [2, 0, 1], [0, 2, 1]] {
        let log = in_order(order);
        assert!(world.check(&[&log, &log, &log]).holds(), "they were appended side by side");
    }
    let log = in_order([1, 2, 0]);
    assert_eq!(only(&world.check(&[&log])), (Kind::WrongOrder, 1));
}

#[test]
fn what_is_appended_after_an_acknowledgement_stands_behind_it() {
    let mut world = World::new();
    world.append(0, 0, "r0");
    let told = Commit { first_seq: None, lsn: Lsn(4096), ..commit(0, 0) };
    world.outcome(0, Status::Committed(told));
    world.append(1, 1, "r1");
    let in_one_batch = |n| Batch { first_seq: Seq(n), ..batch(0) };
    let together = |order: [&str; 2]| -> Held { (0..).zip(order).map(|(n, r)| (r.into(), in_one_batch(n))).collect() };
    assert!(world.check(&[&together(["r0", "r1"])]).holds());
    assert_eq!(only(&world.check(&[&together(["r1", "r0"])])), (Kind::WrongOrder, 1));
}

#[test]
fn logs_that_hold_other_bytes_at_one_place_differ() {
    let mut world = World::new();
    for id in 0..3 {
        world.append(id, id as u32, &format!("r{id}"));
    }
    let log = log_of(3);
    let mut other = log_of(3);
    other[1].0 = "r2".into();
    other[2].0 = "r1".into();
    let verdict = world.check(&[&log, &other, &log]);
    assert_eq!(only(&verdict), (Kind::LogsDiffer, 1));
    assert!(matches!(verdict.violations[0], Violation::LogsDiffer { log: 1, seq: Seq(1), .. }));
    // The same records in another reign are another history.
    let mut other = log_of(3);
    other[2].1.term.0 = 2;
    assert_eq!(only(&world.check(&[&log, &log, &other])), (Kind::LogsDiffer, 1));
    // A log that was trimmed is compared from where it begins, whichever comes first.
    let kept = log_of(3).split_off(2);
    assert!(world.check(&[&kept, &log, &log]).holds());
    let mut front = log_of(3);
    front[0].0 = "r2".into();
    front.truncate(2);
    assert_eq!(only(&world.check(&[&kept, &log, &front])), (Kind::LogsDiffer, 1));
}

#[test]
fn nodes_that_have_caught_up_end_at_one_place() {
    let world = World::committed(3, 0);
    let (log, short) = (log_of(3), log_of(2));
    let head = |log| LogHead { log, shard: ONE, start: Lsn::ZERO, authority: log == 0 };
    let logs = [(head(0), &log), (head(1), &short)];
    let scope = Scope { logs: 2, partial: false, converged: false };
    assert!(world.look(scope, &logs).holds());
    assert_eq!(only(&world.look(Scope { converged: true, ..scope }, &logs)), (Kind::Behind, 1));
}

#[test]
fn a_policy_that_degraded_shows() {
    let commit_under = |policy: Option<&str>, told: Commit| {
        let mut world = World::new();
        let policy = policy.map(|p| p.parse::<CommitPolicy>().unwrap());
        let print = Print::of(b"r0");
        let append = Append { id: 0, client: 0, shard: ONE, print, policy, at_us: 1 };
        world.checker.push(world.source, &Event::Append(append)).unwrap();
        world.clock = 1;
        world.outcome(0, Status::Committed(told));
        let log = log_of(1);
        world.check(&[&log, &log, &log])
    };
    for policy in ["local", "ack_n=2", "all", "majority:received", "ack_n=1"] {
        assert!(commit_under(Some(policy), commit(0, 2)).holds(), "{policy}");
    }
    let acked_by = |acks| commit_under(None, Commit { acks, ..commit(0, 2) });
    assert!(acked_by(2).holds());
    assert_eq!(only(&acked_by(1)), (Kind::Degraded, 1));
    assert_eq!(only(&commit_under(Some("all"), commit(0, 1))), (Kind::Degraded, 1));
    assert_eq!(only(&commit_under(Some("ack_n=2:applied"), commit(0, 2))), (Kind::Degraded, 1));
    assert_eq!(only(&commit_under(Some("ack_n=3"), commit(0, 2))), (Kind::Degraded, 1));
}

#[test]
fn violations_are_counted_beyond_those_that_are_kept() {
    let world = World::committed(300, 2);
    let verdict = world.check(&[&Held::new(), &log_of(300), &log_of(300)]);
    assert_eq!(verdict.count(Kind::Lost), 300);
    assert_eq!(verdict.violations.len(), VIOLATIONS_SHOWN);
}

#[test]
fn a_history_that_contradicts_itself_is_refused() {
    let mut world = World::new();
    world.append(7, 0, "r0");
    world.outcome(7, Status::TimedOut);
    let source = world.source;
    let append = |id| Append { id, client: 0, shard: ONE, print: Print::of(b"x"), policy: None, at_us: 10 };
    let mut push = |event| world.checker.push(source, &event);
    let outcome = |id, records, at_us| Event::Outcome(Outcome { id, records, status: Status::Unknown, at_us });
    assert_eq!(push(Event::Append(append(7))), Err(Refused::SecondAppend(7)));
    assert_eq!(push(outcome(7, 1, 20)), Err(Refused::SecondOutcome(7)));
    assert_eq!(push(outcome(8, 1, 20)), Err(Refused::NotAppended(8)));
    push(Event::Append(append(8))).unwrap();
    assert_eq!(push(outcome(8, 2, 20)), Err(Refused::NotAppended(9)));
    assert_eq!(push(outcome(8, 0, 20)), Err(Refused::Records { id: 8, records: 0 }));
    assert_eq!(push(outcome(8, u64::MAX, 20)), Err(Refused::Records { id: 8, records: u64::MAX }));
    assert_eq!(push(outcome(8, 1, 9)), Err(Refused::Clock { id: 8, append_us: 10, outcome_us: 9 }));
    push(outcome(8, 1, 10)).unwrap();
    assert_eq!(push(Event::Begin { nodes: 2 }), Err(Refused::Nodes { found: 2, expected: 3 }));
    assert_eq!(world.checker.appends(), 2);
    // Another history has numbers of its own.
    let other = world.checker.source();
    world.checker.push(other, &Event::Append(append(7))).unwrap();
}

#[test]
fn an_event_reads_back_what_it_prints() {
    let policy = Some("ack_n=2:applied".parse().unwrap());
    let append = Append { id: 9, client: 3, shard: ShardId(2), print: Print::of(b"hello"), policy, at_us: 77 };
    let commit = Commit { level: AckLevel::Applied, ..commit(4, 2) };
    let outcome = |status| Event::Outcome(Outcome { id: u64::MAX, records: 3, status, at_us: 78 });
    for event in [
        Event::Begin { nodes: 3 },
        Event::Append(append),
        Event::Append(Append { policy: None, ..append }),
        outcome(Status::Committed(commit)),
        outcome(Status::Committed(Commit { first_seq: None, ..commit })),
        outcome(Status::TimedOut),
        outcome(Status::Unknown),
        outcome(Status::Refused),
        Event::Lost { node: NodeName::new("r-1").unwrap(), at_us: 80 },
    ] {
        let line = event.to_string();
        assert_eq!(parse(line.as_bytes()), Ok(event), "{line}");
        for end in 0..line.len() {
            assert!(parse(&line.as_bytes()[..end]).is_err(), "{line} up to {end}");
        }
    }
    let line = Event::Append(append).to_string();
    assert_eq!(
        line,
        "{\"event\":\"append\",\"id\":9,\"client\":3,\"shard\":2,\"bytes\":5,\"hash\":\"a430d84680aabd0b\",\
         \"policy\":\"ack_n=2:applied\",\"at_us\":77}"
    );
    let spaced = line.replace(':', " : ").replace(',', "\t, ").replace("ack_n=2 : applied", "ack_n=2:applied");
    assert_eq!(parse(spaced.as_bytes()), Ok(Event::Append(append)), "{spaced}");
}

#[test]
fn a_line_that_is_no_event_is_refused_with_its_place() {
    let long = format!("{{\"event\":\"{}\"}}", "x".repeat(LINE_BYTES_MAX));
    for (line, at, reason) in [
        ("", 1, "'{' is expected"),
        ("{}", 2, "'\"' is expected"),
        ("[1]", 1, "'{' is expected"),
        (r#"{"event":1}"#, 10, "is a string"),
        (r#"{"id":1}"#, 1, "no field \"event\""),
        (r#"{"event":"begun"}"#, 10, "no event is called"),
        (r#"{"event":"begin","version":2,"nodes":3}"#, 28, "version 2, this build reads 1"),
        (r#"{"event":"begin","version":1,"nodes":256}"#, 38, "too large"),
        (r#"{"event":"begin","version":1,"nodes":3,"node":3}"#, 47, "has no field \"node\""),
        (r#"{"event":"begin","version":1,"version":1,"nodes":3}"#, 30, "there twice"),
        (r#"{"event":"begin","version":1,"nodes":3} x"#, 41, "follows"),
        (r#"{"event":"begin","version":01,"nodes":3}"#, 28, "leading zeros"),
        (r#"{"event":"begin","version":-1,"nodes":3}"#, 28, "a whole number or a string"),
        (r#"{"event":"begin","version":1.5,"nodes":3}"#, 29, "'}' is expected"),
        (r#"{"event":"begin","version":18446744073709551616,"nodes":3}"#, 28, "at most"),
        (r#"{"event":"lost","node":"R1","at_us":1}"#, 24, "is no name"),
        (r#"{"event":"lo\u0073t"}"#, 13, "no escapes"),
        ("{\"event\":\"lost\u{fc}\"}", 15, "plain ASCII"),
        (r#"{"event":"lost"#, 15, "does not end"),
        (r#"{"event":"append","id":1,"shard":0,"bytes":1,"hash":"A30000000000000b","at_us":1}"#, 53, "16 hexadecimal"),
        (
            r#"{"event":"append","id":1,"shard":0,"bytes":1,"hash":"a30000000000000b","policy":"two","at_us":1}"#,
            81,
            "unknown commit policy",
        ),
        (r#"{"event":"outcome","id":1,"status":"done","at_us":1}"#, 36, "a status is"),
        (r#"{"event":"outcome","id":1,"status":"timed_out","lsn":5,"at_us":1}"#, 54, "has no field \"lsn\""),
        (
            r#"{"event":"outcome","id":1,"status":"committed","term":1,"lsn":4096,"level":"disk","wanted":1,"acks":1,"at_us":1}"#,
            76,
            "a level is",
        ),
        (&long, LINE_BYTES_MAX + 1, "at most 1024 may be"),
    ] {
        let error = parse(line.as_bytes()).unwrap_err();
        assert!(error.at == at && error.reason.contains(reason), "{line}: {error}");
    }
}

#[test]
fn the_hash_is_the_one_that_is_documented() {
    // The vectors of http://www.isthe.com/chongo/src/fnv/test_fnv.c.
    for (text, hash) in [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)] {
        assert_eq!(Print::of(text.as_bytes()), Print { bytes: text.len() as u32, hash });
    }
}
