//! The `RecordVisitCommand` as it travels: from the spool through the broker to the recorder.

use std::fmt;
use std::io::BufRead;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Deserializer;
use uuid::Uuid;

use crate::visit::Visit;

/// The AMQP `type` of a message.
pub const MESSAGE_TYPE: &str = "RecordVisitCommand";
/// The AMQP `content_type` of a message.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// The header with the UUID of the spool that a message comes from.
pub const PRODUCER_HEADER: &str = "pixel-producer";
/// The header with the sequence of a message's first line.
pub const SEQUENCE_HEADER: &str = "pixel-sequence";
/// The header with the number of a message's lines.
pub const COUNT_HEADER: &str = "pixel-count";

/// The header of a dead letter with why it cannot be read.
pub const REASON_HEADER: &str = "pixel-reason";

/// How much of a reason is kept, in bytes: some quote what they found.
const REASON_MAX_BYTES: usize = 512;

/// The id of a message whose first visit has this number: `<producer>:<sequence>`.
pub fn message_id(producer: Uuid, sequence: u64) -> String {
    format!("{producer}:{sequence}")
}

/// Consecutive visits of one producer: a spool's reading, a broker's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The spool that numbered the visits.
    pub producer: Uuid,
    /// The sequence of the first line; at most `i64::MAX`, as AMQP headers are signed.
    pub first: u64,
    /// How many lines the body has; at least one.
    pub count: u64,
    /// One JSON object a line.
    pub body: Vec<u8>,
}

impl Message {
    /// `<producer>:<first sequence>`.
    pub fn message_id(&self) -> String {
        message_id(self.producer, self.first)
    }
}

/// Who numbered a delivered message, and so how a repeated delivery is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A spool: line n is the visit number `first + n`.
    Spool {
        /// The spool's UUID.
        producer: Uuid,
        /// The sequence of the first line.
        first: u64,
        /// How many lines there must be.
        count: u64,
    },
    /// Another client, known by its `message_id` where it set one.
    Foreign {
        /// The message's `message_id`.
        message_id: Option<String>,
    },
}

/// Why a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl Unreadable {
    /// For `reason`, or its beginning.
    pub fn new(mut reason: String) -> Self {
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
        Unreadable(reason)
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Appends `visit` to `lines` as one line of JSON.
pub fn encode(visit: &Visit<'_>, lines: &mut Vec<u8>) {
    serde_json::to_writer(&mut *lines, visit)
        .expect("a visit has only string keys, and writing to memory cannot fail");
    lines.push(b'\n');
}

/// A part of a body that is to be one visit.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Its bytes, without the white space around them.
    pub bytes: &'a [u8],
    /// What they say, or why nobody can tell.
    pub visit: Result<Visit<'a>, Unreadable>,
}

/// Takes a body apart, in order: what of it cannot be read is one piece among those that can.
///
/// A spool's body has a line for each number. Another client's has JSON values one after the other, a line
/// each or spread over several; what is no JSON ends with its line.
///
/// # Errors
/// [`Unreadable`] where there is nothing, or where a spool's lines are not as many as it promised: then nobody
/// can tell which number belongs to which line.
pub fn pieces<'a>(origin: &Origin, body: &'a [u8]) -> Result<Pieces<'a>, Unreadable> {
    let pieces = Pieces { rest: body, are_lines: false };
    if body.trim_ascii().is_empty() {
        return Err(Unreadable("it holds no visit".into()));
    }
    let Origin::Spool { count, .. } = origin else { return Ok(pieces) };
    let lines = line_ends(body) + u64::from(!body.ends_with(b"\n"));
    // Others number their visits, too, and may write one over several lines.
    let values = || pieces.clone().try_fold(0, |values, piece| piece.visit.is_ok().then_some(values + 1));
    if lines != *count && values() != Some(*count) {
        return Err(Unreadable(format!("{COUNT_HEADER} says {count}, the body has {lines} lines")));
    }
    Ok(Pieces { are_lines: lines == *count, ..pieces })
}

/// The pieces of a body, in order. See [`pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    are_lines: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if !self.are_lines {
            self.rest = self.rest.trim_ascii_start();
            if let Some((visit, bytes)) = first_value(self.rest) {
                return Some(Piece { bytes: self.take(bytes), visit: Ok(visit) });
            }
        }
        if self.rest.is_empty() {
            return None;
        }
        let other = if self.are_lines { None } else { first_value::<IgnoredAny>(self.rest) };
        let piece = self.take(other.map_or_else(|| line_bytes(self.rest), |(_, bytes)| bytes));
        let visit = serde_json::from_slice(piece).map_err(|error| Unreadable::new(error.to_string()));
        Some(Piece { bytes: piece.trim_ascii(), visit })
    }
}

impl<'a> Pieces<'a> {
    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (piece, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        piece
    }
}

/// The JSON value that `text` begins with, where it is a `T`, and how long it is in bytes.
fn first_value<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<(T, usize)> {
    let mut values = Deserializer::from_slice(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// How many lines of `text` end. Counted in bytes, as many at a time as a byte can count, this costs a tenth of
/// what it costs otherwise.
fn line_ends(text: &[u8]) -> u64 {
    let ends = |part: &[u8]| part.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>();
    text.chunks(u8::MAX.into()).map(|part| u64::from(ends(part))).sum()
}

/// How long the first line of `text` is, its end included.
fn line_bytes(mut text: &[u8]) -> usize {
    let bytes = text.len();
    text.skip_until(b'\n').unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = concat!(
        r#"{"received_at":"2022-12-19T14:16:49.960528Z","ip":"192.168.1.1","#,
        r#""referrer":"https://google.com","user_agent":"SomeUserAgent 1.2.3","#,
        r#""host":"px.example.com","path":"/track","query":"x=1","accept_language":"en","#,
        r#""dnt":false,"gpc":false}"#,
        "\n"
    );

    fn foreign() -> Origin {
        Origin::Foreign { message_id: None }
    }

    /// Every visit of a body that is read whole.
    fn visits<'a>(origin: &Origin, body: &'a [u8]) -> Result<Vec<Visit<'a>>, Unreadable> {
        pieces(origin, body)?.map(|piece| piece.visit).collect()
    }

    #[test]
    fn the_contract_s_example_is_read_and_written_unchanged() {
        let visits = visits(&foreign(), EXAMPLE.as_bytes()).expect("the example is readable");
        let mut lines = Vec::new();
        encode(&visits[0], &mut lines);
        assert_eq!(String::from_utf8(lines).expect("JSON is UTF-8"), EXAMPLE);
    }

    /// What is read of a body: `v` for a visit, else the bytes of what is none.
    fn read(origin: &Origin, body: &[u8]) -> Option<Vec<String>> {
        let shown = |piece: Piece<'_>| match piece.visit {
            Ok(_) => "v".to_string(),
            Err(_) => String::from_utf8_lossy(piece.bytes).into_owned(),
        };
        pieces(origin, body).ok().map(|pieces| pieces.map(shown).collect())
    }

    /// One bad line took every visit of its message to the dead letters.
    #[test]
    fn what_cannot_be_read_is_one_piece_among_those_that_can() {
        let minimal = r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::ffff:1.2.3.4"}"#;
        let pretty = minimal.replace(',', ",\n  ");
        let no_visit = r#"{"received_at":"2022-12-19T14:16:49Z"}"#;
        let spool = |count| Origin::Spool { producer: Uuid::nil(), first: 1, count };
        for (case, origin, body, read_as) in [
            ("one", foreign(), minimal.to_string(), Some(&["v"][..])),
            ("two", spool(2), format!("{minimal}\n{minimal}\n"), Some(&["v", "v"])),
            ("pretty-printed", foreign(), pretty.clone(), Some(&["v"])),
            ("pretty-printed and numbered", spool(2), format!("{pretty}\n{minimal}\n"), Some(&["v", "v"])),
            ("unknown fields", foreign(), minimal.replace('{', r#"{"more":[1],"#), Some(&["v"])),
            ("null", foreign(), minimal.replace('{', r#"{"referrer":null,"#), Some(&["v"])),
            ("empty", foreign(), String::new(), None),
            ("empty and numbered", spool(1), String::new(), None),
            ("blank", foreign(), "\n".into(), None),
            ("not JSON", foreign(), "hello".into(), Some(&["hello"])),
            ("half of it", foreign(), minimal[..15].into(), Some(&[&minimal[..15]])),
            ("no address", foreign(), no_visit.into(), Some(&[no_visit])),
            ("the second bad", foreign(), format!("{minimal}\nx\n"), Some(&["v", "x"])),
            ("the first bad", foreign(), format!("{{\n{minimal}\n{minimal}"), Some(&["{", "v", "v"])),
            ("one that is no visit", foreign(), format!("{minimal} 7 {pretty}"), Some(&["v", "7", "v"])),
            (
                "a bad line",
                spool(3),
                format!("{minimal}\n{no_visit}\n{minimal}\n"),
                Some(&["v", no_visit, "v"]),
            ),
            ("a line without an end", spool(2), format!("{minimal}\n{{"), Some(&["v", "{"])),
            ("an empty line", spool(3), format!("{minimal}\n\n{minimal}\n"), Some(&["v", "", "v"])),
            (
                "two on a line",
                spool(1),
                format!("{minimal}{minimal}\n"),
                Some(&[&format!("{minimal}{minimal}")]),
            ),
            ("a wrong count", spool(3), format!("{minimal}\n{minimal}\n"), None),
            ("a wrong count and a bad line", spool(1), format!("{minimal}\nx\n"), None),
            ("a number for a text", spool(1), r#"{"host":1}"#.into(), Some(&[r#"{"host":1}"#])),
        ] {
            assert_eq!(read(&origin, body.as_bytes()).as_deref(), read_as.map(owned).as_deref(), "{case}");
        }
        let not_utf8 = [b"\xff\n", minimal.as_bytes()].concat();
        assert_eq!(read(&spool(2), &not_utf8), Some(owned(&["\u{fffd}", "v"])));
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn an_empty_value_is_absent_and_a_mapped_address_is_ipv4() {
        let body = r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::ffff:1.2.3.4","referrer":""}"#;
        let visits = visits(&foreign(), body.as_bytes()).expect("readable");
        assert_eq!(visits[0].referrer, None);
        assert_eq!(visits[0].ip.to_string(), "1.2.3.4");
    }
}
