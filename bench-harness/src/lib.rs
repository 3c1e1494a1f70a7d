//! What `towline-bench` is made of that tests use too: the deterministic simulator.
#![deny(missing_docs)]

pub mod sim;
