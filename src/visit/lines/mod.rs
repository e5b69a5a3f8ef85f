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
}
