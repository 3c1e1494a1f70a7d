//! The history checker: what clients were told, held against what the logs of the nodes that are
//! left hold. One program for the simulator, for storms with real processes, and for anyone
//! (`towline verify --history`).
//!
//! Comes in: a history of appends and outcomes, as values ([`Event`]) or as lines ([`parse`]), and
//! the records of each log, batch by batch. Goes out: a [`Verdict`]: acknowledged records that are
//! missing where the policy promised them, phantoms, duplicates, records out of order or out of
//! place, logs that differ. No I/O, no clock, no threads; nothing is kept of a record but its
//! length and a hash.
//!
//! This history is not that of terms, which is [`crate::protocol::history`].
//!
//! ```
//! use towline::history::{Append, Batch, Checker, Commit, Event, LogHead, Outcome, Print, Scope, Status};
//! use towline::{AckLevel, Lsn, Seq, ShardId, Term};
//!
//! let mut checker = Checker::new(2);
//! let source = checker.source();
//! let print = Print::of(b"one");
//! let append = Append { id: 0, client: 0, shard: ShardId(0), print, policy: None, at_us: 1 };
//! checker.push(source, &Event::Append(append))?;
//! let told = Commit { term: Term(1), lsn: Lsn(4096), first_seq: Some(Seq(0)), level: AckLevel::Flushed, wanted: 1, acks: 1 };
//! checker.push(source, &Event::Outcome(Outcome { id: 0, records: 1, status: Status::Committed(told), at_us: 2 }))?;
//!
//! let mut examination = checker.examine(Scope { logs: 2, partial: false, converged: true });
//! for log in 0..2 {
//!     examination.begin_log(LogHead { log, shard: ShardId(0), start: Lsn::ZERO, authority: log == 0 });
//!     examination.batch(Batch { term: Term(1), end: Lsn(4096), first_seq: Seq(0) }, [&b"one"[..]]);
//!     examination.end_log(Lsn(4096));
//! }
//! assert!(examination.finish().holds());
//! # Ok::<(), towline::history::Refused>(())
//! ```

mod checker;
mod event;
mod examination;
mod format;
mod table;
mod verdict;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Refused, Scope, Source};
pub use event::{Append, Commit, Event, Outcome, Print, Status, VERSION};
pub use examination::{Batch, Examination, LogHead};
pub use format::{LINE_BYTES_MAX, LineError, parse};
pub use verdict::{Kind, LOGS_MAX, Name, VIOLATIONS_SHOWN, Verdict, Violation};
