//! One test for each fault that was found by reading: small, in one process, on loopback.

mod cluster;

use cluster::{ONE, Place, commit};
use towline::{AckLevel, AppendError, AppendOptions, CommitPolicy, Lsn, Primary, ShardId};

#[test]
fn to_trim_a_shard_that_is_not_there_does_not_end_the_core() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &[])).unwrap();
    let wrong = std::panic::AssertUnwindSafe(|| primary.trim(ShardId(7), Lsn(4096)));
    assert!(std::panic::catch_unwind(wrong).is_err(), "the caller is told");
    commit(&primary.handle(), b"the core still works");
}

#[test]
fn ack_n_of_no_replicas_is_refused_and_not_taken_for_local() {
    let place = Place::new();
    let none = CommitPolicy::AckN { n: 0, level: AckLevel::Flushed };
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let options = AppendOptions { policy: Some(none), ..AppendOptions::default() };
    let refused = primary.handle().append_with(ONE, b"x", options).unwrap().wait();
    assert!(matches!(refused, Err(AppendError::Policy(_))), "{refused:?}");
    drop(primary);
    let mut config = place.primary("other", &["r1"]);
    config.commit = none;
    assert!(Primary::open(config).is_err());
}
