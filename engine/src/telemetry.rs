//! What a shard measures: histograms of each stage of a commit, and counters. Recording costs no
//! lock and no allocation; a snapshot is a copy that can be merged with others. Percentiles are
//! read from merged histograms and never averaged.

use hdrhistogram::Histogram;

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// The stages of a commit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Stage { $($(#[$doc])* $name,)* }

        impl Stage {
            /// Every stage, in the order in which a commit passes them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    /// From another thread's append until the shard takes it.
    Inbox = "inbox";
    /// From a batch's first record until it is closed.
    Fill = "fill";
    /// From the close of a batch until it is on this node's device.
    Write = "write";
    /// From the begin of a send, which may hold several batches, until the kernel has taken all of it.
    Send = "send";
    /// From the begin of a live batch's send until an ack says that the replica has it in memory; all
    /// replicas of the shard together.
    AckReceived = "ack_received";
    /// From the begin of a live batch's send until an ack says that the replica has it on its device;
    /// all replicas of the shard together.
    AckFlushed = "ack_flushed";
    /// From the news that lets a commit through until its waiters are completed.
    Gate = "gate";
    /// From the first append of a run until the run is committed.
    Commit = "commit";
    /// From an outcome until another thread has taken it from its ticket.
    Wake = "wake";
    /// On a replica: the time that the handler took for a batch.
    Apply = "apply";
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the node was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Every counter with its name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// Adds another shard's.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Records appended or received.
    records,
    /// Bytes of their payloads with record headers.
    body_bytes,
    /// Batches closed or received.
    batches,
    /// Writes handed to the device.
    device_writes,
    /// Bytes of them.
    device_bytes,
    /// Records committed.
    committed,
    /// Records whose deadline passed first.
    timed_out,
    /// System calls that sent.
    send_calls,
    /// System calls that received.
    receive_calls,
    /// Bytes sent to replicas and clients.
    sent_bytes,
    /// Sends to replicas that the kernel did not copy.
    zero_copy_sends,
    /// Sends to replicas that the kernel copied.
    copied_sends,
    /// Times that the task which takes other threads' appends woke up.
    wake_ups,
    /// Links made, counting each reconnect.
    connects,
    /// Times that a link began to read from disk because memory no longer had what it needed.
    catch_ups,
    /// Large reads for catch-up and tails.
    device_reads,
    /// Times that a link waited for an ack, as its window was full.
    window_waits,
    /// Times that a link which catches up without a cap left the disk to live commits.
    polite_pauses,
    /// Batches sent or received compressed,
    packed_batches,
    /// bytes that they have,
    packed_from_bytes,
    /// and bytes that they were sent as.
    packed_to_bytes,
    /// Batches after which the next one waited for the lag target,
    throttled,
    /// and for how long altogether, in microseconds.
    throttled_us,
    /// Acks sent or received.
    acks,
    /// Segments written with zeros.
    segments_zeroed,
    /// Segments used again.
    segments_recycled,
    /// Superblock writes.
    superblock_writes,
    /// Slots lost as their replicas were further behind than the cap.
    slots_lost_retention_cap,
    /// Slots lost as nobody used them.
    slots_lost_idle,
    /// Slots removed.
    slots_lost_removed,
    /// Slots lost as their replicas held other bytes.
    slots_lost_diverged,
    /// Times that the log could not grow, as what is not committed fills the cap.
    log_full,
    /// Snapshots that a primary has made for replicas,
    snapshots_made,
    /// those that a replica has installed,
    snapshots_installed,
    /// times that one went on after its link was cut,
    snapshots_resumed,
    /// and bytes of them, sent or staged.
    snapshot_bytes,
    /// Tails that a replica has cut, as the primary's history has others,
    cuts,
    /// and those of them that were all of a log which had let go of its beginning.
    whole_cuts,
}

/// One shard's measurements.
#[derive(Clone, Debug)]
pub struct Telemetry {
    stages: Vec<Histogram<u64>>,
    /// Counters since the node was opened.
    pub counters: Counters,
}

/// The longest time that a histogram tells apart, in nanoseconds: one minute.
const HIGHEST_NS: u64 = 60_000_000_000;

/// A histogram of one replica's acks, in nanoseconds.
pub(crate) type SlotHistogram = Histogram<u64>;

/// An empty histogram of nanoseconds.
pub(crate) fn histogram() -> SlotHistogram {
    Histogram::new_with_bounds(1, HIGHEST_NS, 2).expect("the bounds are valid")
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { stages: Stage::ALL.iter().map(|_| histogram()).collect(), counters: Counters::default() }
    }
}

impl Telemetry {
    /// Records a duration in nanoseconds, for `count` records or batches at once.
    #[inline]
    pub fn record(&mut self, stage: Stage, ns: u64, count: u64) {
        self.stages[stage as usize].saturating_record_n(ns, count);
    }

    /// A stage's histogram, in nanoseconds.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &Histogram<u64> {
        &self.stages[stage as usize]
    }

    /// Adds another shard's measurements.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.add(theirs).expect("every histogram has the same bounds");
        }
        self.counters.add(&other.counters);
    }
}

/// The percentiles that reports show, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// Values recorded.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Largest.
    pub max_us: f64,
}

impl Percentiles {
    /// Of a histogram in nanoseconds.
    #[must_use]
    pub fn of(h: &Histogram<u64>) -> Self {
        let at = |q| h.value_at_quantile(q) as f64 / 1000.0;
        Self {
            count: h.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: h.max() as f64 / 1000.0,
        }
    }
}
