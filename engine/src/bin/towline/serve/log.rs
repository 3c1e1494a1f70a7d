//! The log of `towline serve`.

use std::io::{self, IsTerminal};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;

/// The environment variable that says what is logged.
pub(super) const VARIABLE: &str = "TOWLINE_LOG";
/// Lines that wait to be written to stderr.
const LOG_LINES: usize = 4096;

/// Log lines go to stderr from a thread of their own: a core never waits for a slow terminal, a pipe that
/// nobody reads, or a file on a slow disk. Of lines that wait, more than [`LOG_LINES`] are dropped.
pub(super) struct Log {
    dropped: ErrorCounter,
    /// Writes what is left when it is dropped.
    _rest: WorkerGuard,
}

impl Log {
    pub(super) fn to_stderr() -> Result<Self, Failure> {
        let text = std::env::var(VARIABLE).ok().filter(|t| !t.is_empty()).unwrap_or_else(|| "info".into());
        let filter: Targets = text.parse().map_err(|why: tracing_subscriber::filter::ParseError| Failure::Log {
            text: text.clone(),
            why: why.to_string(),
        })?;
        let (stderr, rest) = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES).finish(io::stderr());
        let dropped = stderr.error_counter();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(stderr)
            .with_ansi(io::stderr().is_terminal())
            // Else it would complain on a stderr that is gone, and panic.
            .log_internal_errors(false);
        // Only this command has a subscriber, so there is none already.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Ok(Self { dropped, _rest: rest })
    }

    /// How many were dropped so far.
    pub(super) fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}
