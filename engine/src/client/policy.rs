//! The commit policy as text: `local`, `ack_n=2:flushed`, `all:applied`, `majority`.

use thiserror::Error;
use towline_wire::message::{AckLevel, WirePolicy};

/// Why a text is not a commit policy. Each names the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No policy has this name.
    #[error(
        "`{text}` is not a commit policy; use local, ack_n=N, all or majority, the last three with :LEVEL or without"
    )]
    Name {
        /// What was given.
        text: String,
    },
    /// `ack_n` without a number of replicas from 1 to 255.
    #[error("`{text}`: ack_n takes a number of replicas from 1 to 255, like ack_n=2")]
    Count {
        /// What was given.
        text: String,
    },
    /// No ack level has this name.
    #[error("`{text}`: `{level}` is not an ack level; use received, flushed or applied")]
    Level {
        /// What was given.
        text: String,
        /// The part behind the colon.
        level: String,
    },
    /// `local` with a level: the primary's own device has none.
    #[error("`{text}`: local waits for no replica, so it takes no ack level")]
    LocalLevel {
        /// What was given.
        text: String,
    },
}

/// Reads a commit policy: `local`, `ack_n=N[:LEVEL]`, `all[:LEVEL]` or `majority[:LEVEL]`, where
/// `LEVEL` is `received`, `flushed` (the default) or `applied` and `N` is 1 to 255 without a leading
/// zero. Nothing else is accepted: no spaces, no capitals, no signs.
///
/// # Errors
/// What is wrong with the text, which the error names.
pub fn parse_policy(text: &str) -> Result<WirePolicy, PolicyError> {
    let (head, level) = match text.split_once(':') {
        Some((head, level)) => (head, Some(level)),
        None => (text, None),
    };
    let (name, count) = match head.split_once('=') {
        Some((name, count)) => (name, Some(count)),
        None => (head, None),
    };
    // Only where a level counts: an error repeats the text.
    let parsed_level = || match level {
        None | Some("flushed") => Ok(AckLevel::Flushed),
        Some("received") => Ok(AckLevel::Received),
        Some("applied") => Ok(AckLevel::Applied),
        Some(level) => Err(PolicyError::Level { text: text.to_owned(), level: level.to_owned() }),
    };
    match (name, count) {
        ("local", None) if level.is_some() => Err(PolicyError::LocalLevel { text: text.to_owned() }),
        ("local", None) => Ok(WirePolicy::Local),
        ("ack_n", count) => {
            let n = count.and_then(replica_count).ok_or_else(|| PolicyError::Count { text: text.to_owned() })?;
            Ok(WirePolicy::AckN(n, parsed_level()?))
        }
        ("all", None) => Ok(WirePolicy::All(parsed_level()?)),
        ("majority", None) => Ok(WirePolicy::Majority(parsed_level()?)),
        _ => Err(PolicyError::Name { text: text.to_owned() }),
    }
}

/// `u8::from_str` takes a sign and leading zeros; a policy takes neither.
fn replica_count(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, policy) in [
            ("local", WirePolicy::Local),
            ("ack_n=1", WirePolicy::AckN(1, AckLevel::Flushed)),
            ("ack_n=255:applied", WirePolicy::AckN(255, AckLevel::Applied)),
            ("ack_n=2:received", WirePolicy::AckN(2, AckLevel::Received)),
            ("all", WirePolicy::All(AckLevel::Flushed)),
            ("all:flushed", WirePolicy::All(AckLevel::Flushed)),
            ("majority", WirePolicy::Majority(AckLevel::Flushed)),
            ("majority:received", WirePolicy::Majority(AckLevel::Received)),
        ] {
            assert_eq!(parse_policy(text), Ok(policy), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_name() {
        type Is = fn(&PolicyError) -> bool;
        let name: Is = |e| matches!(e, PolicyError::Name { .. });
        let count: Is = |e| matches!(e, PolicyError::Count { .. });
        let level: Is = |e| matches!(e, PolicyError::Level { .. });
        let local: Is = |e| matches!(e, PolicyError::LocalLevel { .. });
        for (text, is) in [
            ("", name),
            ("Local", name),
            (" local", name),
            ("local ", name),
            ("default", name),
            ("quorum", name),
            ("local=1", name),
            ("all=2", name),
            ("majority=", name),
            ("ack_n2", name),
            ("ack_n", count),
            ("ack_n=", count),
            ("ack_n=0", count),
            ("ack_n=02", count),
            ("ack_n=+2", count),
            ("ack_n=-1", count),
            ("ack_n=256", count),
            ("ack_n=2=3", count),
            ("ack_n= 2", count),
            ("ack_n=2:", level),
            ("ack_n=2:Flushed", level),
            ("ack_n=2:flushed:", level),
            ("all:durable", level),
            ("majority:flushed ", level),
            ("local:flushed", local),
            ("local:", local),
        ] {
            let error = parse_policy(text).unwrap_err();
            assert!(is(&error), "{text:?} gave {error:?}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
