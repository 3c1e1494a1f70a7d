//! Towline: a write-ahead-log replication engine.
//!
//! A sharded store embeds it. Every appended record is made durable on the primary and on as many
//! replicas as the commit policy asks for before its [`Outcome`] says "committed". One shard runs on
//! one pinned core, owns its slice of the log, and shares no lock with any other shard.
//!
//! ```no_run
//! use towline::{Primary, PrimaryConfig, ShardId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let primary = Primary::open(PrimaryConfig::new("/var/lib/store"))?;
//! let handle = primary.handle(); // Send + Sync; a clone for each thread is fastest
//! let ticket = handle.append(ShardId(0), b"put user:1 = ada")?;
//! let outcome = ticket.wait()?; // or `ticket.await`, under any executor
//! println!("{:?}", outcome.committed());
//! # Ok(())
//! # }
//! ```
//!
//! What each word promises: a record is **in memory** when an append returns, **on device** when a
//! position called *durable* or *flushed* has passed it, and **replicated** when its outcome is
//! [`Outcome::Committed`] under a policy that counts replicas. `docs/GUARANTEES.md` says what each
//! policy survives.
//!
//! [`protocol`] holds every decision as pure state machines; the shell around them runs on glommio.
#![deny(missing_docs)]
#![deny(clippy::undocumented_unsafe_blocks)]

/// Whether a deliberate bug is on: never, but in the simulator, where calls to a disk fail, and in tests.
macro_rules! canary {
    ($name:ident) => {{
        #[cfg(any(feature = "sim", test))]
        let on = crate::canary::is(crate::canary::Canary::$name);
        #[cfg(not(any(feature = "sim", test)))]
        let on = false;
        on
    }};
}

pub mod apply;
#[cfg(feature = "backup")]
pub mod backup;
#[cfg(any(feature = "sim", test))]
#[doc(hidden)]
pub mod canary;
pub mod client;
pub mod config;
pub mod history;
pub mod limits;
pub mod measure;
mod node;
mod notify;
pub mod offline;
mod oneshot;
mod outcome;
pub mod protocol;
mod rt;
mod shard;
pub mod snapshot;
#[cfg(test)]
mod stress_tests;
mod sync;
pub mod sys;
pub mod telemetry;
pub mod units;

#[cfg(feature = "sim")]
#[doc(hidden)]
pub use rt::{inject, world};

pub use apply::{AppliedBatch, Apply, ApplyError, ApplyFn, Deliver, LogApply};
pub use config::{
    Compress, ConfigError, NodeConfig, PrimaryConfig, ReplicaConfig, Retain, RetainMax, StaleReads, TooFewReplicas,
    ZeroCopy,
};
pub use node::{
    CatchUpStatus, Primary, Reads, Replica, ShardStatus, SlotKind, SlotState, SlotStatus, SnapshotStatus, StaleError,
};
pub use outcome::{AppendError, Appended, Bookmark, Outcome};
pub use protocol::policy::{CommitPolicy, PolicyError};
pub use protocol::progress::Shown as CatchUp;
pub use protocol::settings::{SettingChange, Settings, SettingsError};
pub use protocol::slots::SlotError;
pub use shard::mesh::cross::{CrossBookmark, CrossError, CrossOutcome, CrossTicket};
pub use shard::mesh::handle::{AppendOptions, Handle};
pub use shard::mesh::local::{Completion, LocalLane, LocalShard};
pub use shard::mesh::ticket::Ticket;
pub use shard::wal::error::OpenError;
pub use snapshot::{Produced, Snapshot, SnapshotError, SnapshotInfo, Snapshots, Stage};
pub use towline_wire as wire;
pub use towline_wire::message::AckLevel;
pub use towline_wire::superblock::SlotLoss;
pub use towline_wire::{Lsn, Seq, ShardId, SystemId, Term};
