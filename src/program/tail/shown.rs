//! How a visit is shown: in columns, with colours on a terminal, or as JSON. Nothing that a client sent reaches the
//! terminal as a control character.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use crate::visit::Text;
use crate::visit::lines::{LineFormat, ReadBack};

const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";
/// How wide a column is, in characters; a longer value is cut.
const IP_WIDTH: usize = 15;
const IP_MAX: usize = 39;
const TARGET_WIDTH: usize = 28;
const REFERRER_WIDTH: usize = 40;

/// Where visits are shown.
pub(super) struct Shown {
    stdout: BufWriter<Stdout>,
    is_json: bool,
    has_colours: bool,
    line: Vec<u8>,
}

impl Shown {
    /// On standard output.
    pub(super) fn on_stdout(is_json: bool) -> Self {
        let stdout = io::stdout();
        // https://no-color.org
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let has_colours = stdout.is_terminal() && is_wanted;
        Shown { stdout: BufWriter::new(stdout), is_json, has_colours, line: Vec::new() }
    }

    /// Shows one.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn show(&mut self, visit: &ReadBack<'_>) -> io::Result<()> {
        self.line.clear();
        match self.is_json {
            true => LineFormat::Ndjson.write(visit.numbered(), &mut self.line),
            false => self.line.extend_from_slice(columns(visit, self.has_colours).as_bytes()),
        }
        self.stdout.write_all(&self.line)
    }

    /// Lets it be seen.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// Time, address, target, referrer, user agent.
fn columns(ReadBack { visit, .. }: &ReadBack<'_>, has_colours: bool) -> String {
    let mut line = String::new();
    let mut column = |text: &str, width: usize, cut: usize, colour: &str| {
        let text = fit(text, cut);
        // Behind the value, so that a wide character shifts no colour.
        let rest = " ".repeat(width.saturating_sub(text.chars().count()));
        let _ = match has_colours {
            true => write!(line, "{colour}{text}{PLAIN}{rest}  "),
            false => write!(line, "{text}{rest}  "),
        };
    };
    let text = |value: &Option<Text<'_>>| {
        value.as_ref().map_or_else(|| "-".into(), |text| text.as_str().to_string())
    };
    let target = match (&visit.path, &visit.query) {
        (path, None) => text(path),
        (path, query) => format!("{}?{}", text(path), text(query)),
    };
    column(&format!("{:.3}", visit.received_at), 24, 24, DIM);
    column(&visit.ip.to_string(), IP_WIDTH, IP_MAX, CYAN);
    if visit.path.is_some() {
        column(&target, TARGET_WIDTH, TARGET_WIDTH, PLAIN);
    }
    column(&text(&visit.referrer), REFERRER_WIDTH, REFERRER_WIDTH, GREEN);
    column(&text(&visit.user_agent), 0, usize::MAX, YELLOW);
    let mut line = line.trim_end().to_string();
    line.push('\n');
    line
}

/// `text` in at most so many characters, with control characters, and those that turn the direction of text, escaped.
fn fit(text: &str, max: usize) -> String {
    let mut fitting = String::new();
    for character in text.chars() {
        let turns =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match character.is_control() || turns {
            true => fitting.extend(character.escape_default()),
            false => fitting.push(character),
        }
    }
    if fitting.chars().count() > max {
        fitting = fitting.chars().take(max - 1).collect();
        fitting.push('…');
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visit::Visit;

    #[test]
    fn a_visit_is_shown_in_columns_and_no_value_reaches_the_terminal_as_a_command() {
        let time = "2026-11-23T14:16:49.960528Z".parse().expect("a time");
        let mut visit = Visit::new(time, [192, 168, 1, 1].into());
        visit.path = Text::new("/track");
        visit.query = Text::new("x=1");
        visit.referrer = Text::owned(&"https://example.com/".repeat(3));
        visit.user_agent = Text::new("\x1b[2J\u{202e}evil\u{9b}");
        let shown = ReadBack { visit, number: None };
        let expected = "2026-11-23T14:16:49.960Z  192.168.1.1      /track?x=1                    \
                        https://example.com/https://example.com…  \\u{1b}[2J\\u{202e}evil\\u{9b}\n";
        assert_eq!(columns(&shown, false), expected);
        let coloured = columns(&shown, true);
        assert!(coloured.contains("\x1b[36m192.168.1.1\x1b[0m      "), "{coloured:?}");
        assert_eq!(coloured.matches('\x1b').count(), 10, "{coloured:?}");
    }
}
