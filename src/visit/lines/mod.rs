//! The line formats of the output file: one visit, one line, whatever the visit holds.

mod combined;
mod escape;
mod ndjson;
mod numbered;
mod pipe;
mod read;

pub use self::ndjson::SCHEMA;
pub use self::numbered::Numbered;
pub use self::read::{BadLine, ReadBack};

use serde::{Deserialize, Serialize};

use self::combined::Looks;

/// How a visit becomes a line.
///
/// The names are those of the ledger: an earlier Pixel wrote `combined` and `ndjson` otherwise, and a line that it left
/// when it was killed is recognised by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineFormat {
    /// `time|referrer|user agent|ip`, the time with seven fraction digits.
    Pipe,
    /// The combined log format of Apache httpd.
    #[serde(rename = "combined 2")]
    Combined,
    /// The same with the virtual host in front, as Debian's httpd has it.
    Vcombined,
    /// One JSON object with all that was collected, producer and sequence.
    #[serde(rename = "ndjson 2")]
    Ndjson,
    /// `Combined` of an earlier Pixel, where each method was GET.
    #[serde(rename = "combined")]
    CombinedBefore,
    /// `Ndjson` of an earlier Pixel, without method, scheme and schema.
    #[serde(rename = "ndjson")]
    NdjsonBefore,
}

impl LineFormat {
    /// Appends the line, its line feed included. What is appended holds no other line feed.
    pub fn write(self, visit: Numbered<'_>, lines: &mut Vec<u8>) {
        match self {
            LineFormat::Pipe => pipe::write(visit.visit, lines),
            LineFormat::Combined => combined::write(visit.visit, Looks::Now, lines),
            LineFormat::Vcombined => combined::write(visit.visit, Looks::WithHost, lines),
            LineFormat::CombinedBefore => combined::write(visit.visit, Looks::Before, lines),
            LineFormat::Ndjson => ndjson::write(visit, lines),
            LineFormat::NdjsonBefore => ndjson::write_before(visit, lines),
        }
    }

    /// The format as it is written today.
    pub fn of_today(self) -> LineFormat {
        match self {
            LineFormat::CombinedBefore => LineFormat::Combined,
            LineFormat::NdjsonBefore => LineFormat::Ndjson,
            today => today,
        }
    }

    /// Whether its times are whole seconds, so that the lines of two visits may be the same.
    pub fn has_whole_seconds(self) -> bool {
        matches!(self, LineFormat::Combined | LineFormat::Vcombined | LineFormat::CombinedBefore)
    }
}

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

impl std::str::FromStr for LineFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "pipe" => Ok(LineFormat::Pipe),
            "combined" => Ok(LineFormat::Combined),
            "vcombined" => Ok(LineFormat::Vcombined),
            "ndjson" => Ok(LineFormat::Ndjson),
            _ => Err("expected pipe, combined, vcombined or ndjson".into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::visit::{Text, Visit};
    use proptest::prelude::*;

    const ALL: [LineFormat; 6] = [
        LineFormat::Pipe,
        LineFormat::Combined,
        LineFormat::Vcombined,
        LineFormat::Ndjson,
        LineFormat::CombinedBefore,
        LineFormat::NdjsonBefore,
    ];

    fn is_json(format: LineFormat) -> bool {
        format.of_today() == LineFormat::Ndjson
    }

    /// Visits of any characters at all, over the whole range of times.
    pub(crate) fn any_values() -> impl Strategy<Value = Vec<Option<String>>> {
        let value = prop_oneof![
            Just(None),
            Just(Some("null".to_string())),
            Just(Some("-".to_string())),
            any::<String>().prop_map(Some),
            proptest::collection::vec(0u8..=255, 0..40)
                .prop_map(|bytes| Some(String::from_utf8_lossy(&bytes).into_owned())),
            r#"[|\\"x\x00-\x20\x7f-\x9f?]{0,12}"#.prop_map(Some),
        ];
        proptest::collection::vec(value, 8)
    }

    pub(crate) fn visit(values: &[Option<String>]) -> Visit<'_> {
        let text = |n: usize| values.get(n)?.as_deref().and_then(Text::new);
        Visit {
            received_at: "2022-12-19T14:16:49.960528Z".parse().expect("a time"),
            ip: "192.168.1.1".parse().expect("an address"),
            referrer: text(0),
            user_agent: text(1),
            host: text(2),
            path: text(3),
            query: text(4),
            accept_language: text(5),
            dnt: false,
            gpc: true,
            method: text(6),
            scheme: text(7),
        }
    }

    proptest! {
        #[test]
        fn whatever_a_visit_holds_it_is_one_line(values in any_values()) {
            for format in ALL {
                let mut lines = Vec::new();
                format.write(Numbered { visit: &visit(&values), number: None }, &mut lines);
                let feeds = lines.iter().filter(|byte| **byte == b'\n').count();
                prop_assert_eq!(feeds, 1, "{:?}", format);
                prop_assert_eq!(lines.last(), Some(&b'\n'));
                let raw = lines.iter().take(lines.len() - 1).any(|byte| *byte < b' ' || *byte == 0x7f);
                prop_assert!(!raw || is_json(format) && lines.contains(&0x7f));
            }
        }
    }

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
