//! Every committed input, without a fuzzing engine: `cargo test` in this folder finds again what was
//! once found, also on a stable compiler.

use std::fs;
use std::path::Path;

use towline_fuzz::{TARGETS, asks, client};

#[test]
fn every_committed_input_passes() {
    for (name, run) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs: Vec<_> = fs::read_dir(&corpus).unwrap().map(|e| e.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            println!("{name}: {}", input.display());
            run(&fs::read(input).unwrap());
        }
    }
}

/// Slots of all names, then replicas of them, and the other way round: more than there may be of both.
#[test]
fn a_client_that_fills_every_slot_is_told() {
    for asked in [[9, 0, 200, 1, 9, 0, 140, 0, 4], [9, 0, 140, 0, 9, 0, 200, 1, 4]] {
        client::frames(0, &asks::frames(&asked, true));
    }
}

#[test]
fn the_corpora_stay_small() {
    let mut total = 0;
    for (name, _) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let sizes: Vec<u64> = fs::read_dir(corpus).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() <= 40, "{name} has {} inputs", sizes.len());
        total += sizes.iter().sum::<u64>();
    }
    assert!(total <= 300 << 10, "{total} bytes");
}
