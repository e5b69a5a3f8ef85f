//! Messages of other clients, and of producers that number their visits.

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

/// One visit, as the queue's contract has it.
pub const VISIT: &str = r#"{"received_at":"2022-12-19T14:16:49.960528Z","ip":"192.168.1.1","referrer":"https://google.com","user_agent":"SomeUserAgent 1.2.3"}"#;

/// What the default format makes of it.
pub const LINE: &str = "2022-12-19T14:16:49.9605280Z|https://google.com|SomeUserAgent 1.2.3|192.168.1.1";

/// A message of `count` visits of a producer, numbered from `first` on.
pub fn numbered(producer: u8, first: i64, count: i64) -> AmqpProperties {
    numbered_by(producer, AmqpValue::LongLongInt(first), count)
}

/// The same, where the number may be anything.
pub fn numbered_by(producer: u8, first: AmqpValue, count: i64) -> AmqpProperties {
    let producer = format!("7f6b3ad0-43a2-4f2a-a43f-96cb9e4b3a{producer:02x}");
    let mut headers = FieldTable::new();
    headers.insert("pixel-producer".into(), AmqpValue::LongString(producer));
    headers.insert("pixel-sequence".into(), first);
    headers.insert("pixel-count".into(), AmqpValue::LongLongInt(count));
    AmqpProperties::default().with_headers(headers)
}

/// A message that its sender has given an id.
pub fn named(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_message_id(id.into())
}
