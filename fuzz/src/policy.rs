//! Text from a command line or a file as a policy, a size, a duration.

use towline::client::policy::parse_policy;
use towline::{CommitPolicy, units};

use crate::alloc::bounded;

/// An error repeats the text, and says in a sentence what would be right.
const ERROR_BYTES: usize = 1024;

/// Everything that reads a short text.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // One by one: an error holds the text, and what is wrong in it a second time.
    bounded(text.len(), ERROR_BYTES, || text.parse::<CommitPolicy>().is_ok());
    bounded(text.len(), ERROR_BYTES, || parse_policy(&text).is_ok());
    bounded(text.len(), ERROR_BYTES, || units::parse_size(&text).is_ok());
    bounded(text.len(), ERROR_BYTES, || units::parse_duration(&text).is_ok());
    policies(&text);
    if let Err(e) = units::parse_size(&text) {
        assert!(e.to_string().contains(text.as_ref()));
    }
    if let Ok(bytes) = units::parse_size(&text) {
        // Without its unit it is the same number of bytes.
        assert_eq!(units::parse_size(&bytes.to_string()), Ok(bytes));
        assert!(units::show_size(bytes).len() < 16);
    }
    if let Ok(time) = units::parse_duration(&text) {
        assert_eq!(units::parse_duration(&format!("{}us", time.as_micros())), Ok(time));
    }
}

/// The engine's parser and the client's are two pieces of code for one language.
fn policies(text: &str) {
    let (ours, clients) = (text.parse::<CommitPolicy>(), parse_policy(text));
    match (&ours, &clients) {
        (Ok(ours), Ok(clients)) => assert_eq!(ours.to_wire(), *clients),
        (Err(ours), Err(clients)) => {
            // Both show what they were given, the engine's quoted as in Rust.
            assert!(ours.to_string().contains(&format!("{text:?}")), "{ours}");
            assert!(clients.to_string().contains(&format!("`{text}`")), "{clients}");
        }
        _ => panic!("{text:?}: {ours:?} here, {clients:?} in the client"),
    }
    let Ok(policy) = ours else { return };
    assert_eq!(policy.to_string().parse(), Ok(policy), "it reads back what it prints");
    assert_eq!(CommitPolicy::from_wire(policy.to_wire()), Some(policy));
    for configured in [0, 1, 2, 3, 5, 127, 128, 254, 255, 256, 1000] {
        match policy.requirement(configured) {
            Ok(need) => {
                assert!(usize::from(need.replicas) <= configured);
                assert!(need.replicas > 0 || policy == CommitPolicy::Local, "only `local` waits for nobody");
            }
            Err(e) => assert!(e.to_string().contains(&policy.to_string())),
        }
    }
}
