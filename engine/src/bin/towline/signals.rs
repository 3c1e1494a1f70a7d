//! Signals that ask for an orderly end: blocked, then waited for.
//!
//! Blocked signals stay pending until somebody waits for them, so nothing runs in a handler where
//! almost nothing is allowed (signal-safety(7)). Threads inherit the mask of whoever starts them:
//! [`block`] comes before the first one.

use std::io;

/// The signals, blocked.
#[derive(Clone, Copy)]
pub(crate) struct Signals(libc::sigset_t);

/// Blocks SIGTERM and SIGINT for this thread and those it starts from now on.
pub(crate) fn block() -> io::Result<Signals> {
    // SAFETY: sigset_t is plain data, and sigemptyset gives it its meaning before it is used.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` outlives the calls, and both signals exist.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
    }
    // SAFETY: `set` was filled above; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(Signals(set)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl Signals {
    /// Waits for one of them and gives its name.
    pub(crate) fn wait(&self) -> &'static str {
        let mut number = 0;
        loop {
            // SAFETY: the set was filled by `block`, and `number` outlives the call.
            match unsafe { libc::sigwait(&raw const self.0, &raw mut number) } {
                0 if number == libc::SIGINT => return "SIGINT",
                0 => return "SIGTERM",
                // Only an invalid set is an error (sigwait(3)); an interruption is none.
                _ => {}
            }
        }
    }
}
