//! Deliberate bugs, to show that the simulator can fail, and the enumeration of failing calls on the machine.
//! Present with the feature `sim` and in unit tests only, and off unless one of them switches one on: for its
//! thread, or for the process.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Canary {
    /// A replica acknowledges as flushed what it has only received.
    AckBeforeFlush,
    /// A primary counts its own copy as durable when the write has only begun.
    OwnCopyInFlight,
    /// The gate takes `received` for `flushed`.
    ReceivedAsFlushed,
    /// A completed write counts as durable although one before it is still in flight.
    DurableOverHole,
    /// A failed write is taken for a good one.
    WriteErrorIgnored,
    /// A failed write or flush is tried once more, and the second word counts.
    FlushRetried,
    /// The rest of a short write is not written.
    ShortWriteIgnored,
    /// Recovery cuts the last whole batch too.
    RecoveryCutsOneMore,
    /// Recovery does not look whether a batch continues the log: recycled bytes read as live.
    RecycledBatchRead,
    /// A replica follows a primary of an older term, which does not mind.
    TermNotChecked,
    /// A start does not bump the term.
    TermNotBumped,
    /// A promoted node takes the next term, as a start does.
    PromotedTermNotUnique,
    /// A primary streams from where the replica ends, whatever it holds there.
    ChainNotCompared,
    /// A primary takes an ack for what it has not sent.
    AckAboveSentTaken,
    /// A replica cuts what it knows to be committed.
    CutBelowCommit,
    /// A handler is given what is not known to be committed.
    ApplyUncommitted,
    /// After a cut the handler goes on as if nothing had happened.
    ApplyForgetsCut,
    /// Whoever waits for room on the device is not woken when a write is done.
    LostWakeup,
    /// The superblock is always written to the same copy.
    SuperblockInPlace,
    /// A new segment's name is not made durable.
    SegmentNameNotSynced,
    /// Segments are used again although the superblock does not say that their log is gone.
    TrimNotRemembered,
    /// A replica promises to follow a newer term in memory only.
    PromiseNotDurable,
    /// A new superblock's second write goes to the only copy there is.
    OnlyCopyOverwritten,
    /// The log is recycled above what a valid slot holds.
    RecycleAboveSlot,
    /// What a replica has goes on counting for commits after its slot is lost.
    LostSlotCounts,
    /// What a replica has goes on counting for commits after it has said that it is gone.
    GoneStillCounts,
    /// What a replica has received does not make room in its link's window again.
    WindowNotReturned,
    /// Settings are in force although the superblock does not say them.
    SettingsNotDurable,
    /// Who waits is not judged anew when other replicas are configured.
    SetNotJudged,
    /// A replica that was heard once counts as heard lately for ever.
    HeardForEver,
    /// A replica that is empty begins one batch too late.
    BeginsTooLate,
    /// A replica that began in the middle counts for what is in front of that, although somebody waits.
    BegunCountsForAll,
    /// What was under way when a snapshot's link was cut is not sent again, and nobody looks.
    SnapshotHoleTaken,
    /// A replica feeds others what it has only received.
    FeedsUnflushed,
    /// Batches stay in memory although nobody needs them.
    RingNotTrimmed,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::AckBeforeFlush,
        Self::OwnCopyInFlight,
        Self::ReceivedAsFlushed,
        Self::DurableOverHole,
        Self::WriteErrorIgnored,
        Self::FlushRetried,
        Self::ShortWriteIgnored,
        Self::RecoveryCutsOneMore,
        Self::RecycledBatchRead,
        Self::TermNotChecked,
        Self::TermNotBumped,
        Self::PromotedTermNotUnique,
        Self::ChainNotCompared,
        Self::AckAboveSentTaken,
        Self::CutBelowCommit,
        Self::ApplyUncommitted,
        Self::ApplyForgetsCut,
        Self::LostWakeup,
        Self::SuperblockInPlace,
        Self::SegmentNameNotSynced,
        Self::TrimNotRemembered,
        Self::PromiseNotDurable,
        Self::OnlyCopyOverwritten,
        Self::RecycleAboveSlot,
        Self::LostSlotCounts,
        Self::GoneStillCounts,
        Self::WindowNotReturned,
        Self::SettingsNotDurable,
        Self::SetNotJudged,
        Self::HeardForEver,
        Self::BeginsTooLate,
        Self::BegunCountsForAll,
        Self::SnapshotHoleTaken,
        Self::FeedsUnflushed,
        Self::RingNotTrimmed,
    ];
}

thread_local! {
    static ON: Cell<Option<Canary>> = const { Cell::new(None) };
}

/// Switches one on for this thread, or all off.
pub fn set(canary: Option<Canary>) {
    ON.set(canary);
}

/// One more than the number of the one that is on for the whole process; 0 if none is.
static EVERYWHERE: AtomicU8 = AtomicU8::new(0);

/// Switches one on for every thread, or none.
pub fn set_everywhere(canary: Option<Canary>) {
    EVERYWHERE.store(canary.map_or(0, |c| c as u8 + 1), Ordering::Relaxed);
}

pub(crate) fn is(canary: Canary) -> bool {
    ON.get() == Some(canary) || EVERYWHERE.load(Ordering::Relaxed) == canary as u8 + 1
}
