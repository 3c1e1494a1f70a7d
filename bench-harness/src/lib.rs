//! What `towline-bench` is made of that tests use too: the deterministic simulator, what many of
//! everything costs, disks on the machine whose calls fail, the opening words of a connection, and what the
//! kernel says of a process, many runs on all cores, latencies as they are shown.
#![deny(missing_docs)]

pub mod failing;
pub mod greeting;
pub mod jobs;
pub mod latency;
pub mod many;
pub mod memory;
pub mod sim;
