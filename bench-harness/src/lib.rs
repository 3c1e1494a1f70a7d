//! What `towline-bench` is made of that tests use too: the deterministic simulator, and what many of
//! everything costs, disks on the machine whose calls fail, and the opening words of a connection.
#![deny(missing_docs)]

pub mod failing;
pub mod greeting;
pub mod many;
pub mod sim;
