//! What `towline-bench` is made of that tests use too: the deterministic simulator, and what many of
//! everything costs, and the opening words of a connection.
#![deny(missing_docs)]

pub mod greeting;
pub mod many;
pub mod sim;
