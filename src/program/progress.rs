//! How far a command is: a bar where a person looks, and a line a second on stderr where not.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const EVERY: Duration = Duration::from_secs(1);

/// A bar for `total` of `what`; it is hidden where stderr is no terminal.
pub(super) fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} {msg}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    bar.with_style(style).with_message(what)
}

/// How much is done of how much.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    bar: ProgressBar,
    shown: Instant,
}

impl Progress {
    /// Of `total` of `what`, nothing is done.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        Progress { what, total, done: 0, bar: bar(what, total), shown: Instant::now() }
    }

    /// Notes that `more` is done, and shows it where that is due.
    pub(super) fn advance(&mut self, more: u64) {
        self.done += more;
        self.bar.set_position(self.done);
        if self.bar.is_hidden() && self.shown.elapsed() >= EVERY {
            self.shown = Instant::now();
            let percent = self.done.saturating_mul(100) / self.total.max(1);
            // Nobody may be listening.
            let _ = writeln!(io::stderr(), "{} of {} {} ({percent} %)", self.done, self.total, self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Prints the outcome that was asked for: on stdout, unless that has visits; then `aside`, on stderr.
#[expect(clippy::print_stdout, reason = "it is what was asked for")]
pub(super) fn tell(outcome: &str, aside: bool) {
    if aside { eprintln!("{outcome}") } else { println!("{outcome}") }
}
