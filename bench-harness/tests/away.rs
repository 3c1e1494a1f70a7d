//! The short form of `towline-bench away`: a replica is away for eight times what is kept for it.

use std::process::{Command, Stdio};

#[test]
fn a_primary_whose_replica_is_away_is_flat_in_memory_and_bounded_on_disk() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline-bench"));
    command.args(["away", "--bytes", "1GiB", "--retain-max", "128MiB", "--every-ms", "50", "--json", "--dir"]);
    let output = command.arg(env!("CARGO_TARGET_TMPDIR")).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    // It is no proof if the cap was never reached.
    assert!(said.contains("\"lost_after_s\":") && !said.contains("\"lost_after_s\":null"), "{said}");
}
