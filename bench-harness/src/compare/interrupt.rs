//! Ctrl-C and SIGTERM: the first asks for an orderly end, in which children are stopped and folders
//! removed; a second one ends at once (the kernel then kills the children, see `child`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static ASKED: AtomicBool = AtomicBool::new(false);

/// The error of whatever was cut short.
pub(crate) const INTERRUPTED: &str = "interrupted";

extern "C" fn note(signal: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
    // SAFETY: signal(2) may be called in a handler (signal-safety(7)).
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// From here on signals are noted.
pub(crate) fn watch() {
    let handler = note as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic and calls what is allowed in a handler.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether an end was asked for.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error if an end was asked for.
pub(crate) fn check() -> Result<(), String> {
    if asked() { Err(INTERRUPTED.into()) } else { Ok(()) }
}

/// Sleeps, unless an end is asked for.
pub(crate) fn sleep(how_long: Duration) -> Result<(), String> {
    let end = Instant::now() + how_long;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Asks again and again until there is an answer, for at most so long; then fails with `what`.
pub(crate) fn wait_for<T>(
    how_long: Duration,
    what: &str,
    ask: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    wait_every(Duration::from_millis(20), how_long, what, ask)
}

/// The same with a pause of its own between two questions.
pub(crate) fn wait_every<T>(
    pause: Duration,
    how_long: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let end = Instant::now() + how_long;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(format!("{what}: not within {} s", how_long.as_secs()));
        }
        sleep(pause)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_answer_or_says_what_did_not_come() {
        let mut left = 3;
        let answer = wait_for(Duration::from_secs(5), "an answer", || {
            left -= 1;
            Ok((left == 0).then_some(7))
        });
        assert_eq!(answer, Ok(7));
        let late: Result<(), _> = wait_for(Duration::ZERO, "an answer", || Ok(None));
        assert_eq!(late, Err("an answer: not within 0 s".to_string()));
    }
}
