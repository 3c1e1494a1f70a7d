//! The pure core: every decision of the protocol, with events in, effects out, and time as an
//! argument. No file, no socket, no clock, no thread, no runtime: production and simulation run the
//! same code.
//!
//! | module | decides |
//! |---|---|
//! | [`policy`] | what a commit waits for |
//! | [`gate`] | which waiters a position completes, and the commit LSN |
//! | [`builder`] | how records become a batch |
//! | [`framing`] | how bytes from a connection become frames, and how much memory they may take |
//! | [`pipeline`] | when a batch may be closed, and how far the device has come |
//! | [`history`] | where terms began, and where two histories part |
//! | [`primary`] | acks, handshakes, fencing |
//! | [`settings`] | what an operator may change while a primary runs, one version after the other |
//! | [`slots`] | who may serve a slot, when it is lost, what of it survives a restart |
//! | [`retention`] | which log may go, which slots go before it, when the log may not grow |
//! | [`admission`] | how long a batch waits while the commit quorum is behind |
//! | [`pace`] | how fast a link may send what it reads from disk |
//! | [`squeeze`] | whether a link compresses its next batch |
//! | [`progress`] | how a replica comes along while it catches up |
//! | [`replica`] | which batch may follow, what may be cut, what an ack may say |
//! | [`snapshot`] | what of a snapshot is sent next, where it goes on after a cut, what of it may be taken |
//! | [`recovery`] | how far a log is whole after a crash, and whether what follows is a tear or damage |

pub mod admission;
pub mod builder;
pub mod framing;
pub mod gate;
pub mod history;
pub mod pace;
pub mod pipeline;
pub mod policy;
pub mod primary;
pub mod progress;
pub mod recovery;
pub mod replica;
pub mod retention;
pub mod settings;
pub mod slots;
pub mod snapshot;
pub mod squeeze;
#[cfg(test)]
mod two_primaries;
