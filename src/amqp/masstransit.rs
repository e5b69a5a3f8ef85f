//! MassTransit's envelopes: the visit in one, and by what it is known again.
//!
//! A publisher that lost its connection before the confirm sends the command again in a new envelope, under a new
//! message id of AMQP's. Only the command's own id, a ULID, stays.

use std::net::IpAddr;

use amiquip::AmqpProperties;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::properties::origin;
use crate::record::Delivered;
use crate::visit::wire::{Origin, Unreadable};

const CONTENT_TYPE: &str = "application/vnd.masstransit+json";
/// What the URN of the command's type ends with, behind its namespace.
const COMMAND: &str = ":RecordVisitCommand";
/// The longest id of an envelope: a GUID with braces.
const ID_MAX_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    message_id: Option<String>,
    #[serde(default)]
    message_type: Vec<String>,
    sent_time: Option<String>,
    message: Option<Command>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    // As the .NET original spells it.
    ip_adress: Option<String>,
    ip_address: Option<String>,
    referrer: Option<String>,
    user_agent: Option<String>,
    message_id: Option<String>,
    utc_time_stamp: Option<String>,
}

/// A message as the recorder takes it: an envelope's visit is taken out, everything else is as it came.
pub(super) fn delivered(properties: &AmqpProperties, body: Vec<u8>) -> Delivered {
    if !properties.content_type().as_ref().is_some_and(|content_type| is_envelope(content_type)) {
        return Delivered { origin: origin(properties), body };
    }
    match unwrap(&body) {
        Ok((message_id, line)) => {
            let message_id = message_id.or_else(|| properties.message_id().clone());
            Delivered { origin: Ok(Origin::Foreign { message_id }), body: line }
        }
        Err(reason) => Delivered { origin: Err(Unreadable::new(reason)), body },
    }
}

/// Whether this is the content type of an envelope, whatever its parameters.
fn is_envelope(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(CONTENT_TYPE)
}

/// The command's id, or else the envelope's, and the visit as a line.
fn unwrap(body: &[u8]) -> Result<(Option<String>, Vec<u8>), String> {
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let envelope: Envelope =
        serde_json::from_slice(text).map_err(|error| format!("no envelope of MassTransit's: {error}"))?;
    let is_command = |urn: &String| urn.starts_with("urn:message:") && urn.ends_with(COMMAND);
    if !envelope.message_type.iter().any(is_command) {
        let types = envelope.message_type.join(", ");
        return Err(format!("an envelope of MassTransit's, but no RecordVisitCommand: {types}"));
    }
    let command = envelope.message.ok_or("an envelope without a message")?;
    let address = given(command.ip_adress).or(given(command.ip_address)).unwrap_or_default();
    let ip: IpAddr = address.parse().map_err(|_| format!("`{address}` is no address"))?;
    let time = |text: Option<String>| text.and_then(|text| text.parse::<Timestamp>().ok());
    let received_at = time(command.utc_time_stamp).or_else(|| time(envelope.sent_time));
    let received_at = received_at.ok_or("neither the command nor its envelope has a time")?;
    let id = given(command.message_id).map(|id| id.to_ascii_uppercase()).filter(|id| is_ulid(id));
    let id = id.or_else(|| given(envelope.message_id).filter(|id| id.len() <= ID_MAX_BYTES));
    let visit = json!({
        "received_at": received_at,
        "ip": ip,
        "referrer": command.referrer,
        "user_agent": command.user_agent,
    });
    Ok((id, visit.to_string().into_bytes()))
}

fn given(text: Option<String>) -> Option<String> {
    text.map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// Whether it is a ULID in upper case: 26 letters of Crockford's base 32, 128 bits, and not the one of zeros.
fn is_ulid(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase() && !b"ILOU".contains(&byte);
    text.len() == 26
        && text.bytes().all(is_letter)
        && text.as_bytes()[0] <= b'7'
        && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn captured(name: &str) -> Result<(Option<String>, String), String> {
        let path = format!("{}/tests/fixtures/masstransit/{name}.body", env!("CARGO_MANIFEST_DIR"));
        unwrap(&fs::read(path).expect(name))
            .map(|(id, line)| (id, String::from_utf8(line).expect("JSON is UTF-8")))
    }

    #[test]
    fn what_was_captured_is_read_with_its_own_time_and_id() {
        for (name, id, time) in [
            ("mt813-default", "01M8644ECG4PJKWC6TJP5BVZD4", "2026-11-24T06:33:16.4387564Z"),
            ("mt813-nulls", "01M8644F1KK6JTTHYH9RPV8V89", "2026-11-24T06:33:17.1124302Z"),
            ("mt858-activity", "01M8644H5TFGNKDGPKMPSQZ0WJ", "2026-11-24T06:33:19.3024874Z"),
            ("js013", "01M8644J6MGY7X1ZHYW9G7MJ9T", "2026-11-24T06:33:20.323Z"),
        ] {
            let (found, line) = captured(name).expect(name);
            assert_eq!(found.as_deref(), Some(id), "{name}");
            assert!(line.contains(time), "{name}: {line}");
        }
        let (_, line) = captured("mt813-default").expect("it was captured");
        assert!(line.contains("https://example.com/página?a=1&b=<2>") && line.contains('😀'), "{line}");
        for (name, reason) in [("js013-bare", "has a time"), ("mt813-fault", "no RecordVisitCommand")] {
            let refused = captured(name).expect_err(name);
            assert!(refused.contains(reason), "{name}: {refused}");
        }
    }

    #[test]
    fn the_least_that_the_original_takes_is_taken_and_nothing_less() {
        let body = |message: &str| {
            let urn = "urn:message:Pixel.Messages.Visits.Commands:RecordVisitCommand";
            unwrap(format!(r#"{{"messageType":["{urn}"],"message":{message}}}"#).as_bytes())
        };
        let time = r#""utcTimeStamp":"2022-12-19T14:16:49Z""#;
        let (id, line) = body(&format!(r#"{{"ipAddress":"::ffff:1.2.3.4",{time}}}"#)).expect("it is enough");
        assert_eq!(id, None);
        assert!(String::from_utf8(line).expect("JSON").contains("2022-12-19T14:16:49Z"));
        let zeros = "0".repeat(26);
        let of_zeros = body(&format!(r#"{{"ipAdress":"1.2.3.4","messageId":"{zeros}",{time}}}"#));
        assert_eq!(of_zeros.expect("a visit").0, None);
        for (message, reason) in [
            (r#"{"ipAdress":"1.2.3.4"}"#.to_string(), "has a time"),
            (r#"{"ipAdress":"1.2.3.4","utcTimeStamp":"yesterday"}"#.into(), "has a time"),
            (format!(r#"{{"ipAdress":"1.2.3",{time}}}"#), "`1.2.3` is no address"),
            (format!(r#"{{"ipAdress":null,{time}}}"#), "`` is no address"),
            ("null".into(), "without a message"),
            ("[]".into(), "no envelope"),
        ] {
            let refused = body(&message).expect_err(&message);
            assert!(refused.contains(reason), "{message}: {refused}");
        }
    }

    #[test]
    fn an_envelope_is_known_by_its_content_type() {
        for yes in [CONTENT_TYPE, "Application/VND.MassTransit+JSON; charset=utf-8"] {
            assert!(is_envelope(yes), "{yes}");
        }
        for no in ["application/json", "application/vnd.masstransit+bson", ""] {
            assert!(!is_envelope(no), "{no}");
        }
    }
}
