//! The `RecordVisitCommand` as it travels: from the spool through the broker to the recorder.

use std::fmt;

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

/// What a visit takes as JSON, more or less.
const TYPICAL_BYTES: usize = 256;

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
        format!("{}:{}", self.producer, self.first)
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

/// Reads a body: JSON objects one after the other, a line each or spread over several.
///
/// # Errors
/// [`Unreadable`] where any of it is not a visit, where there is none, or where a spool promised
/// another number of them: a message is recorded whole or not at all.
pub fn decode<'a>(origin: &Origin, body: &'a [u8]) -> Result<Vec<Visit<'a>>, Unreadable> {
    let mut visits = Vec::with_capacity(body.len() / TYPICAL_BYTES);
    for visit in serde_json::Deserializer::from_slice(body).into_iter::<Visit<'a>>() {
        visits.push(visit.map_err(|error| Unreadable(format!("visit {}: {error}", visits.len() + 1)))?);
    }
    match origin {
        _ if visits.is_empty() => Err(Unreadable("it holds no visit".into())),
        Origin::Spool { count, .. } if *count != visits.len() as u64 => {
            Err(Unreadable(format!("{COUNT_HEADER} says {count}, the body holds {}", visits.len())))
        }
        _ => Ok(visits),
    }
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

    #[test]
    fn the_contract_s_example_is_read_and_written_unchanged() {
        let visits = decode(&foreign(), EXAMPLE.as_bytes()).expect("the example is readable");
        let mut lines = Vec::new();
        encode(&visits[0], &mut lines);
        assert_eq!(String::from_utf8(lines).expect("JSON is UTF-8"), EXAMPLE);
    }

    #[test]
    fn a_body_is_read_whole_or_not_at_all() {
        let minimal = r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::ffff:1.2.3.4"}"#;
        let spool = |count| Origin::Spool { producer: Uuid::nil(), first: 1, count };
        for (case, origin, body, visits) in [
            ("one", foreign(), minimal.to_string(), Some(1)),
            ("two", spool(2), format!("{minimal}\n{minimal}\n"), Some(2)),
            ("pretty-printed", foreign(), minimal.replace(',', ",\n  "), Some(1)),
            ("unknown fields", foreign(), minimal.replace('{', r#"{"more":[1],"#), Some(1)),
            ("null", foreign(), minimal.replace('{', r#"{"referrer":null,"#), Some(1)),
            ("empty", foreign(), String::new(), None),
            ("blank", foreign(), "\n".into(), None),
            ("not JSON", foreign(), "hello".into(), None),
            ("half of it", foreign(), minimal[..30].into(), None),
            ("the second bad", foreign(), format!("{minimal}\nx\n"), None),
            ("no address", foreign(), r#"{"received_at":"2022-12-19T14:16:49Z"}"#.into(), None),
            ("a wrong count", spool(3), format!("{minimal}\n{minimal}\n"), None),
            ("a number for a text", foreign(), minimal.replace('{', r#"{"host":1,"#), None),
        ] {
            let read = decode(&origin, body.as_bytes());
            assert_eq!(read.as_ref().ok().map(Vec::len), visits, "{case}: {read:?}");
        }
    }

    #[test]
    fn an_empty_value_is_absent_and_a_mapped_address_is_ipv4() {
        let body = r#"{"received_at":"2022-12-19T14:16:49Z","ip":"::ffff:1.2.3.4","referrer":""}"#;
        let visits = decode(&foreign(), body.as_bytes()).expect("readable");
        assert_eq!(visits[0].referrer, None);
        assert_eq!(visits[0].ip.to_string(), "1.2.3.4");
    }
}
