//! The `RecordVisitCommand` as it travels: from the spool through the broker to the recorder.

use std::fmt;

use memchr::{memchr, memchr_iter};
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
    /// The AMQP `message_id`: `<producer>:<first sequence>`.
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
        /// The message's AMQP `message_id`, where it has one.
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

/// What a piece of a body is: its bytes, and what they say or why nobody can tell.
pub type Piece<'p, 'a> = &'p mut dyn FnMut(&'a [u8], Result<&Visit<'a>, Unreadable>);

/// Takes a body apart and hands each piece on, in order: what of it cannot be read is one piece among those that
/// can. By reference, as moving every visit costs a twentieth of what reading it does.
///
/// A spool's body has a line for each number. Another client's has JSON values one after the other, a line
/// each or spread over several; what is no JSON ends with its line.
///
/// # Errors
/// [`Unreadable`] where there is nothing, or where a spool's lines are not as many as it promised: then nobody
/// can tell which number belongs to which line, and there are no pieces.
pub fn take_apart<'a>(origin: &Origin, body: &'a [u8], piece: Piece<'_, 'a>) -> Result<(), Unreadable> {
    if body.trim_ascii().is_empty() {
        return Err(Unreadable("it holds no visit".into()));
    }
    let Origin::Spool { count, .. } = origin else {
        take_values(body, piece);
        return Ok(());
    };
    let lines = memchr_iter(b'\n', body).count() as u64 + u64::from(!body.ends_with(b"\n"));
    if lines == *count {
        take_lines(body, piece);
        return Ok(());
    }
    // Others number their visits, too, and may write one over several lines.
    let (mut visits, mut are_visits) = (0, true);
    take_values(body, &mut |_, visit| {
        visits += 1;
        are_visits &= visit.is_ok();
    });
    if visits != *count || !are_visits {
        return Err(Unreadable(format!("{COUNT_HEADER} says {count}, the body has {lines} lines")));
    }
    take_values(body, piece);
    Ok(())
}

fn take_lines<'a>(mut body: &'a [u8], piece: Piece<'_, 'a>) {
    while !body.is_empty() {
        let (line, rest) = body.split_at(line_bytes(body));
        read_first(line, &mut |bytes, visit| match visit {
            Ok(_) if !line[bytes..].trim_ascii().is_empty() => {
                piece(line.trim_ascii(), Err(Unreadable("more follows on its line".into())));
            }
            visit => piece(line.trim_ascii(), visit),
        });
        body = rest;
    }
}

fn take_values<'a>(body: &'a [u8], piece: Piece<'_, 'a>) {
    let mut body = body.trim_ascii_start();
    while !body.is_empty() {
        let mut end = 0;
        read_first(body, &mut |bytes, visit| {
            end = if visit.is_ok() { bytes } else { value_bytes(body).unwrap_or_else(|| line_bytes(body)) };
            piece(body[..end].trim_ascii(), visit);
        });
        body = body[end..].trim_ascii_start();
    }
}

/// Reads the visit that `text` begins with, and says where it ends, in bytes.
fn read_first<'a>(text: &'a [u8], read: &mut dyn FnMut(usize, Result<&Visit<'a>, Unreadable>)) {
    let mut values = Deserializer::from_slice(text).into_iter();
    match &values.next() {
        Some(Ok(visit)) => read(values.byte_offset(), Ok(visit)),
        Some(Err(error)) => read(0, Err(Unreadable::new(error.to_string()))),
        None => read(0, Err(Unreadable("it is empty".into()))),
    }
}

/// How long the JSON value is that `text` begins with; `None` where it begins with none.
fn value_bytes(text: &[u8]) -> Option<usize> {
    let mut values = Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    values.next()?.ok().map(|_| values.byte_offset())
}

/// How long the first line of `text` is, its end included.
fn line_bytes(text: &[u8]) -> usize {
    memchr(b'\n', text).map_or(text.len(), |end| end + 1)
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

    /// The first visit of a body, written again.
    fn first(body: &str) -> String {
        let mut lines = Vec::new();
        let taken = take_apart(&foreign(), body.as_bytes(), &mut |_, visit| {
            encode(visit.expect("it can be read"), &mut lines);
        });
        taken.expect("it holds a visit");
        String::from_utf8(lines).expect("JSON is UTF-8")
    }

    #[test]
    fn the_contract_s_example_is_read_and_written_unchanged() {
        assert_eq!(first(EXAMPLE), EXAMPLE);
    }

    /// What is read of a body: `v` for a visit, else the bytes of what is none.
    fn read(origin: &Origin, body: &[u8]) -> Option<Vec<String>> {
        let mut read = Vec::new();
        let taken = take_apart(origin, body, &mut |bytes, visit| {
            read.push(match visit {
                Ok(_) => "v".to_string(),
                Err(_) => String::from_utf8_lossy(bytes).into_owned(),
            });
        });
        taken.ok().map(|()| read)
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
        let written = first(body);
        assert!(written.contains(r#""ip":"1.2.3.4""#) && written.contains(r#""referrer":null"#), "{written}");
    }
}
