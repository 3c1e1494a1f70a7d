//! Commit policies: what a commit waits for. A policy never degrades by itself.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use towline_wire::message::{AckLevel, WirePolicy};

/// What a commit waits for. Every policy includes the primary's own copy on its device; the number
/// says how many replicas' acknowledgements come on top, the level what each must vouch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommitPolicy {
    /// Only the primary's own device.
    Local,
    /// The primary's device and `n` replicas.
    AckN {
        /// Replicas, at least 1.
        n: u8,
        /// What each vouches for.
        level: AckLevel,
    },
    /// The primary's device and every configured replica.
    All {
        /// What each vouches for.
        level: AckLevel,
    },
    /// The primary's device and more than half of the configured replicas (of 2: 2, of 3: 2, of
    /// 5: 3).
    Majority {
        /// What each vouches for.
        level: AckLevel,
    },
}

/// Why a text is not a commit policy, or a policy cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text is none of the known policies.
    #[error(
        "unknown commit policy {0:?}: use local, ack_n=N[:received|flushed|applied], all[:LEVEL] or majority[:LEVEL]"
    )]
    Unknown(String),
    /// `ack_n` without a number from 1 to 255.
    #[error("commit policy {0:?}: ack_n needs a number of replicas from 1 to 255, as in ack_n=2")]
    Number(String),
    /// A level that is not known.
    #[error("commit policy {0:?}: the level is one of received, flushed, applied")]
    Level(String),
    /// More replicas than are configured.
    #[error("commit policy {policy} needs {wanted} replicas, {configured} are configured")]
    TooMany {
        /// The policy.
        policy: CommitPolicy,
        /// Replicas it wants.
        wanted: usize,
        /// Replicas configured.
        configured: usize,
    },
}

/// How a requirement's number follows from the configured replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Not at all.
    Number,
    /// More than half of them.
    Majority,
    /// All of them.
    All,
}

/// A policy made concrete for a configured set of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// Replicas that must acknowledge; 0 for [`CommitPolicy::Local`].
    pub replicas: u8,
    /// What each must vouch for.
    pub level: AckLevel,
    /// What the number becomes when another set is configured.
    pub share: Share,
}

impl Requirement {
    /// So many replicas, whichever are configured.
    #[must_use]
    pub const fn number(replicas: u8, level: AckLevel) -> Self {
        Self { replicas, level, share: Share::Number }
    }

    /// The same with so many configured replicas. It never asks for less than one where it asked for
    /// replicas at all: it may be that it cannot hold then.
    #[must_use]
    pub fn over(self, configured: usize) -> Self {
        let wanted = match self.share {
            Share::Number => return self,
            Share::Majority => configured / 2 + 1,
            Share::All => configured.max(1),
        };
        Self { replicas: u8::try_from(wanted).unwrap_or(u8::MAX), ..self }
    }
}

impl CommitPolicy {
    /// What this policy means with `configured` replicas.
    ///
    /// # Errors
    /// [`PolicyError::TooMany`] if it can never hold; [`PolicyError::Number`] for `ack_n` of none,
    /// which would be `local` under a name that promises more.
    pub fn requirement(self, configured: usize) -> Result<Requirement, PolicyError> {
        let (number, level, share) = match self {
            Self::Local => (0, AckLevel::Flushed, Share::Number),
            Self::AckN { n: 0, .. } => return Err(PolicyError::Number(self.to_string())),
            Self::AckN { n, level } => (n, level, Share::Number),
            // All of none would be `local` too.
            Self::All { level } => (0, level, Share::All),
            Self::Majority { level } => (0, level, Share::Majority),
        };
        let need = Requirement { replicas: number, level, share }.over(configured);
        let wanted = usize::from(need.replicas);
        if wanted <= configured { Ok(need) } else { Err(PolicyError::TooMany { policy: self, wanted, configured }) }
    }

    /// As it crosses the network.
    #[must_use]
    pub const fn to_wire(self) -> WirePolicy {
        match self {
            Self::Local => WirePolicy::Local,
            Self::AckN { n, level } => WirePolicy::AckN(n, level),
            Self::All { level } => WirePolicy::All(level),
            Self::Majority { level } => WirePolicy::Majority(level),
        }
    }

    /// From the network; `None` asks for the shard's default.
    #[must_use]
    pub const fn from_wire(wire: WirePolicy) -> Option<Self> {
        match wire {
            WirePolicy::Default => None,
            WirePolicy::Local => Some(Self::Local),
            WirePolicy::AckN(n, level) => Some(Self::AckN { n, level }),
            WirePolicy::All(level) => Some(Self::All { level }),
            WirePolicy::Majority(level) => Some(Self::Majority { level }),
        }
    }
}

/// The name of a level in policies and reports.
#[must_use]
pub const fn level_name(level: AckLevel) -> &'static str {
    match level {
        AckLevel::Received => "received",
        AckLevel::Flushed => "flushed",
        AckLevel::Applied => "applied",
    }
}

impl FromStr for CommitPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, level) = match text.split_once(':') {
            None => (text, AckLevel::Flushed),
            Some((name, "received")) => (name, AckLevel::Received),
            Some((name, "flushed")) => (name, AckLevel::Flushed),
            Some((name, "applied")) => (name, AckLevel::Applied),
            Some(_) => return Err(PolicyError::Level(text.into())),
        };
        match name {
            "local" if name == text => Ok(Self::Local),
            "all" => Ok(Self::All { level }),
            "majority" => Ok(Self::Majority { level }),
            _ => match name.strip_prefix("ack_n") {
                None => Err(PolicyError::Unknown(text.into())),
                Some(n) => match n.strip_prefix('=').map(u8::from_str) {
                    // `+2` and `02` parse as numbers, but nobody means them.
                    Some(Ok(n)) if n > 0 && name == format!("ack_n={n}") => Ok(Self::AckN { n, level }),
                    _ => Err(PolicyError::Number(text.into())),
                },
            },
        }
    }
}

impl fmt::Display for CommitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::AckN { n, level } => write!(f, "ack_n={n}:{}", level_name(*level)),
            Self::All { level } => write!(f, "all:{}", level_name(*level)),
            Self::Majority { level } => write!(f, "majority:{}", level_name(*level)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_back_what_it_prints() {
        for text in ["local", "ack_n=1:received", "ack_n=255:applied", "all:flushed", "majority:applied"] {
            assert_eq!(text.parse::<CommitPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("ack_n=2".parse(), Ok(CommitPolicy::AckN { n: 2, level: AckLevel::Flushed }));
    }

    #[test]
    fn an_unknown_or_incomplete_policy_is_refused() {
        for text in [
            "",
            " local",
            "local ",
            "Local",
            "local:flushed",
            "ack_n",
            "ack_n=",
            "ack_n=0",
            "ack_n=-1",
            "ack_n=+1",
            "ack_n=01",
            "ack_n=256",
            "ack_n=1:",
            "ack_n=1:flush",
            "ack_n=1:flushed:applied",
            "ack_n 1",
            "ack_n=1,all",
            "all=1",
            "majority:",
            "quorum",
            "any 2 (a, b)",
        ] {
            assert!(text.parse::<CommitPolicy>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn more_replicas_than_configured_are_refused() {
        let flushed = AckLevel::Flushed;
        assert!(CommitPolicy::AckN { n: 3, level: flushed }.requirement(2).is_err());
        assert!(CommitPolicy::AckN { n: 0, level: flushed }.requirement(2).is_err());
        assert!(CommitPolicy::All { level: flushed }.requirement(0).is_err());
        assert!(CommitPolicy::Majority { level: flushed }.requirement(0).is_err());
        let wanted = |configured| CommitPolicy::Majority { level: flushed }.requirement(configured).unwrap().replicas;
        assert_eq!([1, 2, 3, 4, 5].map(wanted), [1, 2, 2, 3, 3]);
        assert_eq!(CommitPolicy::Local.requirement(0).unwrap().replicas, 0);
    }

    #[test]
    fn a_policy_crosses_the_network_unchanged() {
        for text in ["local", "ack_n=1:received", "ack_n=255:applied", "all:flushed", "majority:applied"] {
            let policy: CommitPolicy = text.parse().unwrap();
            assert_eq!(CommitPolicy::from_wire(policy.to_wire()), Some(policy));
        }
        assert_eq!(CommitPolicy::from_wire(WirePolicy::Default), None, "the shard's own");
    }
}
