//! Nodes in processes of their own: the command as it is called, killed, held up and cut off, the examples,
//! and what leaves a node as files. One binary for all of it, since each one takes seconds to link.

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/cutter.rs"]
mod cutter;
#[path = "../support/embedder.rs"]
mod embedder;
#[path = "../support/fleet.rs"]
mod fleet;
#[path = "../support/mounts.rs"]
mod mounts;
#[path = "../support/processes.rs"]
mod processes;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/store.rs"]
mod store;

mod backup;
mod bad_input;
mod broken_links;
mod command;
mod disks;
mod examples;
mod export;
mod history;
mod join;
mod kill9;
mod snapshot_storms;
mod storms;
