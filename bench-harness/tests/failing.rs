//! Calls to a real disk that fail, a few of them; `towline-bench errors --real` lets every one fail.

use towline_bench::failing::{Failing, Sweep, enumerate, run};

#[test]
fn a_few_calls_of_each_kind_fail_and_nothing_is_lost() {
    let dir = std::env::temp_dir().join(format!("towline-failing-{}", std::process::id()));
    let found = enumerate(&dir.join("few"), 1, 131, 2, |_, _| {});
    assert!(found.failed.is_empty(), "{:#?}", found.failed);
    assert!(found.calls.iter().all(|c| c.all > 100 && c.growing > 5), "{:?}", found.calls);
    // The first call of a start: it is refused, and the next one succeeds.
    let ran = run(&dir.join("one"), 1, 0, Some(Failing { sweep: Sweep::ErrorOnce, node: 1, at: 0 })).unwrap();
    assert!(ran.met && ran.refused_starts == 1 && ran.commits > 0, "{ran:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}
