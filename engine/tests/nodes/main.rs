//! Nodes in this process: what a primary and its replicas promise those who embed them. One binary for all
//! of it, since each one takes seconds to link.

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/cutter.rs"]
mod cutter;
#[path = "../support/store.rs"]
mod store;

mod apply_in_order;
mod back_pressure;
mod bootstrap;
mod cascade;
mod catch_up;
mod commit_policies;
mod flow;
mod handles;
mod histories;
mod refuses_bad_peers;
mod regressions;
mod replicate;
mod retention;
mod settings;
mod slots;
mod snapshot;
mod snapshot_links;
mod survives_restart;
mod whole_cut;
