//! What `towline-bench` is made of that tests use too: the deterministic simulator, and what many of
//! everything costs.
#![deny(missing_docs)]

pub mod many;
pub mod sim;
