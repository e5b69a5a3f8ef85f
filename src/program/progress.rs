//! How far a command is: a line a second on stderr, or one that is written over where a person looks.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// How much is done of how much.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    shown: Instant,
}

impl Progress {
    /// Of `total` of `what`, nothing is done.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        Progress { what, total, done: 0, shown: Instant::now() }
    }

    /// Notes that `more` is done, and shows it where that is due.
    pub(super) fn advance(&mut self, more: u64) {
        self.done += more;
        let is_terminal = io::stderr().is_terminal();
        if self.shown.elapsed() < EVERY && !(is_terminal && self.done == self.total) {
            return;
        }
        self.shown = Instant::now();
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        let (start, end) = match (is_terminal, self.done < self.total) {
            (true, true) => ("\r", ""),
            (true, false) => ("\r", "\n"),
            (false, _) => ("", "\n"),
        };
        let line = format!("{start}{} of {} {} ({percent} %){end}", self.done, self.total, self.what);
        // Nobody may be listening.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}
