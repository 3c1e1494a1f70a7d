//! The short form of `towline-bench many`: what may not grow, and what a link may cost.

use std::time::Duration;

use towline_bench::many;

fn dir(name: &str) -> std::path::PathBuf {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn many_links_many_shards_and_connections_that_come_and_go_cost_what_they_may() {
    // One after the other: memory is the process's.
    let links = many::idle_links(&dir("links"), 100, Duration::from_millis(100)).unwrap();
    assert!(links.bytes_per_link < 256 << 10, "{links:?}");
    let shards = many::many_shards(&dir("shards"), 64, &[0, 1], Duration::ZERO, 3).unwrap();
    assert!(shards.bytes_per_shard < 32 << 20, "{shards:?}");
    let churn = many::churn(&dir("churn"), 400).unwrap();
    assert!(churn.after.tasks <= churn.before.tasks, "{churn:?}");
    assert!(churn.after.descriptors <= churn.before.descriptors, "{churn:?}");
    assert!(churn.after.threads <= churn.before.threads, "{churn:?}");
    assert!(churn.after.allocated < churn.before.allocated + (1 << 20), "{churn:?}");
    for name in ["links", "shards", "churn"] {
        let _ = std::fs::remove_dir_all(dir(name));
    }
}
