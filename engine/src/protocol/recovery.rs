//! Recovery: how far a log is whole after a crash, and what to make of the place where it is not.
//!
//! Several writes are in flight at once, so after a crash a batch may be missing although a later
//! one is there: that is a tear, and the log is cut in front of it. A batch that *was* on the
//! device and is bad now is damage: it is reported and never skipped. A bad batch is damage if any
//! of these hold, and a tear otherwise:
//!
//! 1. it lies below the superblock's floor (a batch that was durable when that was written starts
//!    there), or at a floor above the log's start, or below what was known to be committed here;
//! 2. a later batch of a term in which this node itself was the primary says in its header that
//!    the bad place was durable when that later batch was closed;
//! 3. a live batch ends further behind it than writes may be in flight;
//! 4. it, or a live batch behind it, is whole and of a newer term than the superblock promises: a
//!    term is promised, durably, before its first batch is written, so the superblock has gone back.
//!
//! (`TigerBeetle`'s recovery table and etcd's torn-entry rule answer the same question for their
//! formats.)

use std::io;
use std::ops::ControlFlow;

use thiserror::Error;
use towline_wire::superblock::{Base, Superblock};
use towline_wire::{
    BLOCK, BODY_BYTES_MAX, BatchError, BatchHeader, BatchView, Lsn, ShardId, SystemId, Term, batch, round_up_to_block,
};

use super::replica::LogEnd;

/// The most bytes that one batch takes on disk.
const BATCH_BYTES_MAX: u64 = round_up_to_block((batch::HEADER + BODY_BYTES_MAX) as u64);

/// Bytes of a log by LSN.
pub trait LogSource {
    /// The bytes from `lsn` on: at least `len` of them, or as many as there are in the files.
    ///
    /// # Errors
    /// What the device says.
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]>;
}

/// What the superblock says.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The cluster's log.
    pub system: SystemId,
    /// The shard.
    pub shard: ShardId,
    /// The highest term promised: no batch may be newer.
    pub term: Term,
    /// The last term in which this node was the primary.
    pub own_term: Term,
    /// Where the log that is kept begins.
    pub oldest: Lsn,
    /// What came before, if the log was begun there: then it may be empty.
    pub base: Option<Base>,
    /// Where to begin to read: a batch that was durable starts here, or the log was empty.
    pub floor: Lsn,
    /// What was known to be committed and durable here.
    pub commit: Lsn,
    /// The last term that had begun in front of the floor, and where: no batch from there on is of an
    /// older one.
    pub reached: (Term, Lsn),
    /// The most bytes that may have been in flight.
    pub in_flight_bytes_max: u64,
}

impl Facts {
    /// What a start goes by.
    #[must_use]
    pub fn of<H: AsRef<[(Term, Lsn)]>, S>(s: &Superblock<H, S>) -> Self {
        let before = s.history.as_ref().iter().rfind(|(_, first)| *first < s.floor_lsn);
        Self {
            reached: before.copied().unwrap_or_default(),
            system: s.system,
            shard: s.shard,
            term: s.term,
            own_term: s.own_term,
            oldest: s.oldest_lsn,
            base: s.base,
            floor: s.floor_lsn,
            commit: s.commit_lsn,
            in_flight_bytes_max: s.in_flight_bytes_max,
        }
    }
}

/// A place where the log tore, and up to where bytes of batches behind it were found. The bytes
/// from `at` to `until` are to be overwritten with zeros before anything is appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tear {
    /// The new end of the log.
    pub at: Lsn,
    /// Where the last remnant ends.
    pub until: Lsn,
    /// What is wrong there.
    pub reason: String,
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The end of the whole log.
    pub end: LogEnd,
    /// Where the last batch starts, or the end for an empty log.
    pub last_batch: Lsn,
    /// Where terms began, in what was read.
    pub terms: Vec<(Term, Lsn)>,
    /// What headers say was committed: a lower bound.
    pub commit: Lsn,
    /// Batches read.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// The tear, if remnants were found behind the end.
    pub tear: Option<Tear>,
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// A batch that was on the device is bad.
    #[error("damage at LSN {at}: {reason}; {evidence}")]
    Damage {
        /// Where.
        at: Lsn,
        /// What is wrong.
        reason: String,
        /// Why it cannot be a torn tail.
        evidence: String,
    },
    /// The device failed.
    #[error("reading at LSN {at}: {source}")]
    Io {
        /// Where.
        at: Lsn,
        /// What it said.
        source: io::Error,
    },
}

/// Reads the log from the floor on and finds its end. `each` is given every whole batch.
///
/// # Errors
/// Damage, or what the device says. A tear is not an error.
pub fn recover(
    source: &mut impl LogSource,
    facts: &Facts,
    mut each: impl FnMut(&BatchView<'_>),
) -> Result<Recovered, RecoveryError> {
    let start = facts.floor.max(facts.oldest);
    let mut out = Recovered::at(start);
    let all = read_on(source, facts, &mut out, |view| {
        each(view);
        ControlFlow::Continue(())
    })?;
    debug_assert!(all.is_continue());
    Ok(out)
}

impl Recovered {
    /// Nothing, from `start` on.
    #[must_use]
    pub fn at(start: Lsn) -> Self {
        Self { end: LogEnd { lsn: start, ..LogEnd::default() }, last_batch: start, ..Self::default() }
    }
}

/// Reads on from the end of what was found before, until `each` breaks off or the log ends; what is
/// found is added to `out`, also in front of an error.
///
/// # Errors
/// As [`recover`]'s.
pub fn read_on(
    source: &mut impl LogSource,
    facts: &Facts,
    out: &mut Recovered,
    mut each: impl FnMut(&BatchView<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, RecoveryError> {
    // In the middle of a log the first header itself says what came before it.
    let mut known = out.end.lsn == Lsn::ZERO || out.batches > 0;
    if let Some(base) = facts.base.filter(|_| out.batches == 0 && out.end.lsn == facts.oldest) {
        (out.end.chain, out.end.next_seq) = (base.chain, base.seq);
        known = true;
    }
    let reason = loop {
        let at = out.end.lsn;
        let view = match next_batch(source, at)? {
            Ok(view) => view,
            Err(reason) => break reason,
        };
        let h = view.header();
        if !known {
            (out.end.chain, out.end.next_seq, out.end.last_term) = (h.prev_chain(), h.first_seq(), Term::ZERO);
            known = true;
        }
        if let Some(field) = unlinked(h, facts, &out.end) {
            break format!("{field} does not follow the batch before it");
        }
        if let Some(evidence) = unpromised(h, facts) {
            return Err(RecoveryError::Damage { at, reason: "the superblock is older than the log".into(), evidence });
        }
        if h.term() > out.end.last_term {
            out.terms.push((h.term(), at));
        }
        out.last_batch = at;
        // A deliberate bug must not spin: what it takes for the next batch ends behind it.
        let end = if canary!(RecycledBatchRead) { Lsn(at.0 + h.disk_len()) } else { h.end_lsn() };
        out.end = LogEnd { lsn: end, chain: h.chain(), next_seq: h.end_seq(), last_term: h.term() };
        out.commit = out.commit.max(h.commit_lsn());
        out.batches += 1;
        out.records += u64::from(h.record_count());
        if each(&view).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    };
    if canary!(RecoveryCutsOneMore) && out.batches > 1 && out.last_batch > facts.floor {
        let (at, until) = (out.last_batch, out.end.lsn);
        out.end.lsn = at;
        out.tear = Some(Tear { at, until, reason });
        return Ok(ControlFlow::Continue(()));
    }
    out.tear = judge(source, facts, &out.end, reason)?;
    Ok(ControlFlow::Continue(()))
}

/// The batch at `at`, or what is wrong with it.
pub(crate) fn next_batch(source: &mut impl LogSource, at: Lsn) -> Result<Result<BatchView<'_>, String>, RecoveryError> {
    let io = |source| RecoveryError::Io { at, source };
    let need = {
        let bytes = source.bytes(at, BLOCK).map_err(io)?;
        match BatchHeader::check(bytes) {
            Ok(h) => h.disk_len() as usize,
            Err(e) => return Ok(Err(e.to_string())),
        }
    };
    let bytes = source.bytes(at, need).map_err(io)?;
    Ok(BatchView::check_on_disk(bytes).map_err(|e: BatchError| e.to_string()))
}

/// The first field of a whole batch that does not continue the log.
fn unlinked(h: &BatchHeader, facts: &Facts, end: &LogEnd) -> Option<&'static str> {
    let fits = [
        (h.system() == facts.system, "system id"),
        (h.shard() == facts.shard, "shard"),
        (h.lsn() == end.lsn, "LSN"),
        (h.prev_chain() == end.chain, "chain"),
        (h.first_seq() == end.next_seq, "first sequence"),
        (h.term() >= end.last_term, "term"),
        (
            h.term() >= facts.reached.0 || h.lsn() < facts.reached.1,
            "term, which is older than the superblock's history,",
        ),
    ];
    if canary!(RecycledBatchRead) {
        return None;
    }
    fits.into_iter().find(|(ok, _)| !ok).map(|(_, field)| field)
}

/// What shows that the superblock has lost a promise.
fn unpromised(h: &BatchHeader, facts: &Facts) -> Option<String> {
    let (lsn, term, promised) = (h.lsn(), h.term(), facts.term);
    (term > promised)
        .then(|| format!("the batch at {lsn} is of term {term}, the superblock knows none above {promised}"))
}

/// Decides whether the first bad place is the log's end, a tear, or damage.
fn judge(
    source: &mut impl LogSource,
    facts: &Facts,
    end: &LogEnd,
    reason: String,
) -> Result<Option<Tear>, RecoveryError> {
    let at = end.lsn;
    let damage = |reason: String, evidence: String| Err(RecoveryError::Damage { at, reason, evidence });
    if at < facts.floor || (at == facts.floor && facts.floor > facts.oldest) {
        return damage(reason, format!("the superblock says that the log was durable there (floor {})", facts.floor));
    }
    if at < facts.commit {
        return damage(reason, format!("everything below {} is known to be committed", facts.commit));
    }
    if at == facts.oldest && at > Lsn::ZERO && facts.base.is_none() {
        return damage(reason, "the log that is kept begins there".into());
    }
    let mut until = at;
    let mut probe = at;
    let window = Lsn(at.0.saturating_add(facts.in_flight_bytes_max));
    // The bad batch itself may be larger than the window, which is of the last run's settings: what
    // follows it is looked for as far as the largest batch reaches. Further on only what hangs
    // together with a live batch is of interest.
    let reach = Lsn(at.0.saturating_add(facts.in_flight_bytes_max.max(BATCH_BYTES_MAX)));
    while probe <= reach.max(until) {
        let io = |source| RecoveryError::Io { at: probe, source };
        let bytes = source.bytes(probe, BLOCK).map_err(io)?;
        if bytes.len() < batch::HEADER {
            break;
        }
        let live = BatchHeader::check(bytes).ok().filter(|h| {
            h.lsn() == probe && h.system() == facts.system && h.shard() == facts.shard && h.term() >= end.last_term
        });
        let Some(h) = live else {
            probe = Lsn(probe.0 + BLOCK as u64);
            continue;
        };
        until = h.end_lsn();
        if let Some(evidence) = unpromised(h, facts) {
            return damage(reason, evidence);
        }
        if probe > at && h.term() == facts.own_term && h.durable_lsn() > at {
            let evidence = format!("the batch at {probe} says that the log was durable up to {}", h.durable_lsn());
            return damage(reason, evidence);
        }
        if probe > at && until > window {
            let bytes = facts.in_flight_bytes_max;
            return damage(
                reason,
                format!("a live batch follows at {probe}, further on than the {bytes} bytes that can be in flight"),
            );
        }
        probe = Lsn(probe.0 + BLOCK as u64);
    }
    Ok((until > at).then_some(Tear { at, until, reason }))
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
