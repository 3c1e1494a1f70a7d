//! Why a configuration cannot be used.

use std::net::SocketAddr;

use thiserror::Error;
use towline_wire::BLOCK;

use crate::protocol::policy::PolicyError;

/// A configuration that cannot be used. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number outside its bounds.
    #[error("{field} is {value}, it must be from {min} to {max}")]
    Bounds {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A size that is not whole blocks.
    #[error("{field} is {value}, it must be a multiple of {BLOCK}")]
    Blocks {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A core that the machine does not have.
    #[error("core {cpu} is configured, this machine has the cores 0 to {last}", last = .there - 1)]
    Cpu {
        /// Which.
        cpu: usize,
        /// Cores of the machine, at least one.
        there: usize,
    },
    /// A core that is there, but not for this process.
    #[error(
        "core {0} is configured, this process may not run on it: it is offline, or outside of the process's cpuset (taskset, AllowedCPUs=, --cpuset-cpus)"
    )]
    CpuNotAllowed(usize),
    /// Something that this build was made without.
    #[error("this build was made without the feature {0}")]
    NotBuilt(&'static str),
    /// A name that is not one.
    #[error("{0:?} is no replica name: use 1 to 63 of a-z, 0-9, _ and -")]
    Name(String),
    /// A replica that is named twice.
    #[error("replica {0} is named twice")]
    Twice(String),
    /// A commit policy that cannot hold.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An address that is not loopback.
    #[error(
        "{0} is not a loopback address, and this version cannot authenticate peers: anybody who reaches it could read and \
         append. Listen on 127.0.0.1, or say --insecure-no-auth if the network is closed to everybody else"
    )]
    NoAuth(SocketAddr),
}
