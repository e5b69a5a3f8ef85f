//! How far a command is: a bar where a person looks, and a line a second on stderr where not.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const EVERY: Duration = Duration::from_secs(1);

/// How much is done of how much.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
    shown: Instant,
}

impl Progress {
    /// Of `total` of `what`, nothing is done.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} {msg}, {eta} left");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_message(what)
        });
        Progress { what, total, done: 0, bar, shown: Instant::now() }
    }

    /// Notes that `more` is done, and shows it where that is due.
    pub(super) fn advance(&mut self, more: u64) {
        self.set(self.done + more, self.total);
    }

    /// Notes that `done` of `total` is done, and shows it where that is due.
    pub(super) fn set(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.shown.elapsed() >= EVERY {
            self.shown = Instant::now();
            let percent = done.saturating_mul(100) / total.max(1);
            // Nobody may be listening.
            let _ = writeln!(io::stderr(), "{done} of {total} {} ({percent} %)", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
