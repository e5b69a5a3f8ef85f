//! A message's properties: who numbered it, and what a dead letter takes along.

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use uuid::Uuid;

use crate::record::DeadLetter;
use crate::trace::Context;
use crate::visit::wire::{
    CONTENT_TYPE, COUNT_HEADER, MESSAGE_TYPE, Message, Origin, PRODUCER_HEADER, REASON_HEADER,
    SEQUENCE_HEADER, Unreadable, message_id,
};

/// AMQP 0-9-1: delivery mode 2 is persistent.
const PERSISTENT: u8 = 2;

/// The header that names a span (W3C Trace Context: AMQP protocol).
const TRACEPARENT_HEADER: &str = "traceparent";
/// The same in MassTransit's messages.
const ACTIVITY_HEADER: &str = "MT-Activity-Id";

/// Those of a message of this program's, and of this span.
pub(super) fn of_message(message: &Message, span: Option<Context>) -> AmqpProperties {
    let mut headers = numbers(message.producer, message.first, message.count);
    if let Some(span) = span {
        headers.insert(TRACEPARENT_HEADER.into(), AmqpValue::LongString(span.to_string()));
    }
    AmqpProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_type_(MESSAGE_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message.message_id())
        .with_headers(headers)
}

/// The span that sent a message, where its headers say so.
pub(super) fn span(properties: &AmqpProperties) -> Option<Context> {
    let headers = properties.headers().as_ref()?;
    [TRACEPARENT_HEADER, ACTIVITY_HEADER].into_iter().find_map(|name| match headers.get(name) {
        Some(AmqpValue::LongString(text)) => Context::parse(text),
        _ => None,
    })
}

/// The headers of `count` visits that `producer` numbered from `first` on.
fn numbers(producer: Uuid, first: u64, count: u64) -> FieldTable {
    let number = |value: u64| {
        let value = i64::try_from(value).expect("a spool's sequences fit a signed 64-bit header");
        AmqpValue::LongLongInt(value)
    };
    let mut headers = FieldTable::new();
    headers.insert(PRODUCER_HEADER.into(), AmqpValue::LongString(producer.to_string()));
    headers.insert(SEQUENCE_HEADER.into(), number(first));
    headers.insert(COUNT_HEADER.into(), number(count));
    headers
}

/// Those of a visit that goes to the dead letters by itself, out of a message with `properties`.
pub(super) fn of_part(letter: &DeadLetter<'_>, properties: &AmqpProperties) -> AmqpProperties {
    let (mut headers, id) = match &letter.origin {
        Some(Origin::Spool { producer, first, count }) => {
            (numbers(*producer, *first, *count), Some(message_id(*producer, *first)))
        }
        Some(Origin::Foreign { message_id }) => (FieldTable::new(), message_id.clone()),
        None => (FieldTable::new(), None),
    };
    headers.insert(REASON_HEADER.into(), AmqpValue::LongString(letter.reason.to_string()));
    with_id(kept(properties), id.as_ref()).with_headers(headers)
}

/// Those of a dead letter that is published again: its own, without what its death has added.
pub(super) fn replayed(properties: &AmqpProperties) -> AmqpProperties {
    let mut headers = FieldTable::new();
    for (name, value) in properties.headers().iter().flatten() {
        // `CC` and `BCC` are addresses to RabbitMQ.
        let is_own = name != REASON_HEADER && name != "CC" && name != "BCC" && !name.starts_with("x-");
        if is_own {
            headers.insert(name.clone(), value.clone());
        }
    }
    with_id(kept(properties), properties.message_id().as_ref()).with_headers(headers)
}

/// What says how to read a body. An expiration would end what waits, and the broker refuses a user id that is
/// not the publisher's.
fn kept(properties: &AmqpProperties) -> AmqpProperties {
    let mut kept = AmqpProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(content_type) = properties.content_type() {
        kept = kept.with_content_type(content_type.clone());
    }
    if let Some(type_) = properties.type_() {
        kept = kept.with_type_(type_.clone());
    }
    kept
}

fn with_id(properties: AmqpProperties, id: Option<&String>) -> AmqpProperties {
    match id {
        Some(id) => properties.with_message_id(id.clone()),
        None => properties,
    }
}

/// Who numbered a message, from its properties.
pub(super) fn origin(properties: &AmqpProperties) -> Result<Origin, Unreadable> {
    let headers = properties.headers().as_ref();
    let header = |name: &str| headers.and_then(|headers: &FieldTable| headers.get(name));
    let producer = header(PRODUCER_HEADER);
    let sequence = header(SEQUENCE_HEADER);
    let count = header(COUNT_HEADER);
    if producer.is_none() && sequence.is_none() && count.is_none() {
        return Ok(Origin::Foreign { message_id: properties.message_id().clone() });
    }
    let bad =
        |name: &str, value: Option<&AmqpValue>| Unreadable::new(format!("its header {name} is {value:?}"));
    let producer = match producer {
        Some(AmqpValue::LongString(text)) => Uuid::parse_str(text).ok(),
        _ => None,
    }
    .ok_or_else(|| bad(PRODUCER_HEADER, producer))?;
    let first = integer(sequence).ok_or_else(|| bad(SEQUENCE_HEADER, sequence))?;
    let number = integer(count).filter(|count| *count > 0).ok_or_else(|| bad(COUNT_HEADER, count))?;
    match first.checked_add(number - 1) {
        Some(last) if last <= i64::MAX as u64 => Ok(Origin::Spool { producer, first, count: number }),
        _ => Err(bad(SEQUENCE_HEADER, sequence)),
    }
}

fn integer(value: Option<&AmqpValue>) -> Option<u64> {
    match *value? {
        AmqpValue::LongLongInt(value) => u64::try_from(value).ok(),
        AmqpValue::LongInt(value) => u64::try_from(value).ok(),
        AmqpValue::ShortInt(value) => u64::try_from(value).ok(),
        AmqpValue::ShortShortInt(value) => u64::try_from(value).ok(),
        AmqpValue::LongUInt(value) => Some(value.into()),
        AmqpValue::ShortUInt(value) => Some(value.into()),
        AmqpValue::ShortShortUInt(value) => Some(value.into()),
        _ => None,
    }
}
