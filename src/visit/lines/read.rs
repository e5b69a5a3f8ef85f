//! Lines of an output file, read back: what each format holds of a visit, and why a line is none.

use std::borrow::Cow;
use std::fmt;

use super::numbered::Numbered;
use super::{LineFormat, combined, ndjson, pipe};
use crate::visit::{Text, Visit};
use uuid::Uuid;

/// How much of a reason is kept, in bytes: some quote what they found.
const REASON_MAX_BYTES: usize = 300;

/// What a line holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadBack<'a> {
    /// The visit. What the line's format does not have is absent.
    pub visit: Visit<'a>,
    /// The spool that numbered it, and the number, where the format has them.
    pub number: Option<(Uuid, u64)>,
}

impl ReadBack<'_> {
    /// As a format writes it.
    pub fn numbered(&self) -> Numbered<'_> {
        Numbered { visit: &self.visit, number: self.number }
    }
}

/// Why a line is no visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub String);

impl BadLine {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        let mut reason = reason.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
        BadLine(reason)
    }
}

impl fmt::Display for BadLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadLine {}

impl LineFormat {
    /// Reads a line that [`LineFormat::write`] wrote, with or without its line feed: all that the format keeps of a
    /// visit comes back.
    ///
    /// # Errors
    /// [`BadLine`] for a line of another format, of another program, or one that was torn.
    pub fn read(self, line: &[u8]) -> Result<ReadBack<'_>, BadLine> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.is_empty() {
            return Err(BadLine::new("it is empty"));
        }
        match self {
            LineFormat::Pipe => pipe::read(text(line)?),
            LineFormat::Combined | LineFormat::CombinedBefore => combined::read(text(line)?, false),
            LineFormat::Vcombined => combined::read(text(line)?, true),
            LineFormat::Ndjson | LineFormat::NdjsonBefore => ndjson::read(line),
        }
    }

    /// The format that a line is of, where it is of one.
    pub fn of_line(line: &[u8]) -> Option<LineFormat> {
        let all = [LineFormat::Ndjson, LineFormat::Pipe, LineFormat::Combined, LineFormat::Vcombined];
        all.into_iter().find(|format| format.read(line).is_ok())
    }
}

fn text(line: &[u8]) -> Result<&str, BadLine> {
    std::str::from_utf8(line)
        .map_err(|error| BadLine::new(format_args!("it is no UTF-8 at byte {}", error.valid_up_to() + 1)))
}

/// A value of `bytes`, which were escaped.
pub(super) fn value_of<'a>(bytes: Cow<'a, [u8]>) -> Result<Option<Text<'a>>, BadLine> {
    let not_utf8 = || BadLine::new("a value's escapes are no UTF-8");
    Ok(match bytes {
        Cow::Borrowed(bytes) => Text::new(std::str::from_utf8(bytes).map_err(|_| not_utf8())?),
        Cow::Owned(bytes) => Text::owned(std::str::from_utf8(&bytes).map_err(|_| not_utf8())?),
    })
}

/// The byte of two hexadecimal digits.
pub(super) fn hex_byte(digits: &[u8]) -> Result<u8, BadLine> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    match digits {
        [high, low, ..] => digit(*high).zip(digit(*low)).map(|(high, low)| (high * 16 + low) as u8),
        _ => None,
    }
    .ok_or_else(|| BadLine::new("`\\x` is not followed by two hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_none_says_what_is_wrong_with_it() {
        use LineFormat::{Combined, Ndjson, Pipe, Vcombined};
        let combined = r#"1.2.3.4 - - [19/Dec/2022:14:16:49 +0000] "GET /track HTTP/1.1" 200 43 "-" "-""#;
        for (format, line, problem) in [
            (Pipe, "".to_string(), "it is empty"),
            (Pipe, "2022-12-19T14:16:49Z|null|null".into(), "it has 3 fields"),
            (Pipe, "yesterday|null|null|1.2.3.4".into(), "`yesterday` is no time"),
            (Pipe, "2022-12-19T14:16:49Z|null|null|localhost".into(), "`localhost` is no address"),
            (Pipe, r"2022-12-19T14:16:49Z|a\b|null|1.2.3.4".into(), "two hexadecimal digits"),
            (Pipe, r"2022-12-19T14:16:49Z|null|a\x4|1.2.3.4".into(), "two hexadecimal digits"),
            (Pipe, r"2022-12-19T14:16:49Z|null|a\xé|1.2.3.4".into(), "two hexadecimal digits"),
            (Combined, combined.replace("43", "44"), "it has no request"),
            (Combined, combined[..combined.len() - 1].into(), "it has no"),
            (Combined, combined.replace("Dec", "Dez"), "is no time such as"),
            (Combined, combined.replace("track", r"a\qb"), r"`\q` is no escape"),
            (Combined, combined.replace("track", r"a\xff"), "no UTF-8"),
            (Combined, format!("px.example.com:80 {combined}"), "is no address"),
            (Vcombined, combined.into(), "it has no"),
            (Ndjson, r#"{"received_at":"2022-12-19T14:16:49Z"}"#.into(), "missing field `ip`"),
            (Ndjson, r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::1","more":1}"#.into(), r#""more""#),
            (Ndjson, r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::1","schema":9}"#.into(), "schema 9"),
            (Ndjson, r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::1""#.into(), "EOF"),
        ] {
            let said = format.read(line.as_bytes()).expect_err(&line).to_string();
            assert!(said.contains(problem), "{line}: {said}");
        }
        assert!(Pipe.read(b"\xff").is_err_and(|error| error.0.contains("no UTF-8 at byte 1")));
    }

    #[test]
    fn the_format_of_a_line_is_recognised() {
        let visit = Visit::new(jiff::Timestamp::UNIX_EPOCH, [1, 2, 3, 4].into());
        for format in [LineFormat::Pipe, LineFormat::Combined, LineFormat::Vcombined, LineFormat::Ndjson] {
            let mut line = Vec::new();
            format.write(Numbered { visit: &visit, number: None }, &mut line);
            assert_eq!(LineFormat::of_line(&line), Some(format));
        }
        assert_eq!(LineFormat::of_line(b"hello"), None);
    }
}
