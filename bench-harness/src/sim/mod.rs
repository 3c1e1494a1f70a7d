//! The deterministic simulator: whole clusters of the real engine in a machine park that does not
//! exist, under faults drawn from a seed, and an oracle that knows what was promised.
//!
//! [`world`] is the machine park. [`plan`] draws a run from its seed; [`cluster`] runs the nodes,
//! [`clients`] append, [`operator`] changes settings, [`nemesis`] breaks things, [`checks`] look between any two steps, [`last`]
//! reads the disks at the end and compares them with what [`oracle`] was promised, and [`judge`] has the
//! public history checker do so too. [`run`] is one seed, [`many`] are many, [`minimise`] makes a
//! failing one shorter. [`images`] are all the ways in which a disk can be found after a crash,
//! [`errors`] all the calls to a disk that can fail.

pub mod checks;
pub mod clients;
pub mod cluster;
pub mod errors;
pub mod failed;
pub mod handler;
pub mod images;
pub mod judge;
pub mod last;
pub mod many;
pub mod minimise;
pub mod nemesis;
pub mod operator;
pub mod oracle;
pub mod plan;
mod promotion;
mod readers;
pub mod run;
pub mod store;
pub mod world;
