//! One JSON object a line: all that was collected, and the visit's number.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::numbered::Numbered;
use super::read::{BadLine, ReadBack};
use crate::visit::{Text, Visit};

/// The number of the list of fields, in each line: higher where a field is added, and 1 where a line has none.
pub const SCHEMA: u32 = 2;

/// A line of schema 1.
#[derive(Serialize)]
struct LineBefore<'a> {
    #[serde(flatten)]
    visit: &'a Visit<'a>,
    producer: Option<Uuid>,
    sequence: Option<u64>,
}

/// A line of today. Field for field, as `flatten` builds maps and an absent value is
/// `null` here.
#[derive(Serialize)]
struct Line<'a> {
    received_at: Time,
    ip: std::net::IpAddr,
    referrer: &'a Option<Text<'a>>,
    user_agent: &'a Option<Text<'a>>,
    host: &'a Option<Text<'a>>,
    path: &'a Option<Text<'a>>,
    query: &'a Option<Text<'a>>,
    accept_language: &'a Option<Text<'a>>,
    dnt: bool,
    gpc: bool,
    method: &'a Option<Text<'a>>,
    scheme: &'a Option<Text<'a>>,
    producer: Option<Uuid>,
    sequence: Option<u64>,
    schema: u32,
}

/// A time with six fraction digits, or as many as it takes.
struct Time(jiff::Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanosecond() % 1000 {
            0 => serializer.collect_str(&format_args!("{:.6}", self.0)),
            _ => serializer.collect_str(&self.0),
        }
    }
}

/// Appends the line. JSON escapes control characters below U+0020, so no value can break it.
pub(super) fn write(visit: Numbered<'_>, line: &mut Vec<u8>) {
    let (producer, sequence) = visit.number.unzip();
    let Visit { received_at, ip, referrer, user_agent, host, path, query, accept_language, .. } = visit.visit;
    append(
        &Line {
            received_at: Time(*received_at),
            ip: *ip,
            referrer,
            user_agent,
            host,
            path,
            query,
            accept_language,
            dnt: visit.visit.dnt,
            gpc: visit.visit.gpc,
            method: &visit.visit.method,
            scheme: &visit.visit.scheme,
            producer,
            sequence,
            schema: SCHEMA,
        },
        line,
    );
}

/// Appends the line as it was before method, scheme and schema.
pub(super) fn write_before(visit: Numbered<'_>, line: &mut Vec<u8>) {
    let (producer, sequence) = visit.number.unzip();
    let visit = &Visit { method: None, scheme: None, ..visit.visit.clone() };
    append(&LineBefore { visit, producer, sequence }, line);
}

fn append(object: &impl Serialize, line: &mut Vec<u8>) {
    serde_json::to_writer(&mut *line, object)
        .expect("a line has only string keys, and writing to memory cannot fail");
    line.push(b'\n');
}

/// What stands in a line beside the visit. A field that is none of these, or the visit's, would be lost unnoticed.
#[derive(Deserialize)]
struct Beside {
    producer: Option<Uuid>,
    sequence: Option<u64>,
    schema: Option<u32>,
}

/// Every field of a line.
const FIELDS: [&str; 15] = [
    "received_at",
    "ip",
    "referrer",
    "user_agent",
    "host",
    "path",
    "query",
    "accept_language",
    "dnt",
    "gpc",
    "method",
    "scheme",
    "producer",
    "sequence",
    "schema",
];

/// Reads what [`write()`] wrote, of this schema or an earlier one.
pub(super) fn read(line: &[u8]) -> Result<ReadBack<'_>, BadLine> {
    let visit: Visit<'_> = serde_json::from_slice(line).map_err(BadLine::new)?;
    let beside: Beside = serde_json::from_slice(line).map_err(BadLine::new)?;
    if let Some(schema) = beside.schema.filter(|schema| *schema > SCHEMA) {
        return Err(BadLine::new(format_args!("it is of schema {schema}, and this Pixel knows {SCHEMA}")));
    }
    let fields: BTreeMap<Cow<'_, str>, IgnoredAny> = serde_json::from_slice(line).map_err(BadLine::new)?;
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&&***name)) {
        return Err(BadLine::new(format_args!("it has a field that no visit has: {unknown:?}")));
    }
    Ok(ReadBack { visit, number: beside.producer.zip(beside.sequence) })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any_values, visit};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_reads_back_to_its_visit(values in any_values(), sequence in any::<u64>()) {
            let number = Some((Uuid::from_u128(7), sequence));
            let visit = visit(&values);
            let mut line = Vec::new();
            write(Numbered { visit: &visit, number }, &mut line);
            prop_assert_eq!(&read(&line).expect("a line"), &ReadBack { visit: visit.clone(), number });
            let mut before = Vec::new();
            write_before(Numbered { visit: &visit, number }, &mut before);
            let there = read(&before).expect("a line");
            prop_assert_eq!(&there.visit, &Visit { method: None, scheme: None, ..visit.clone() });
            let fields: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            prop_assert_eq!(&fields["sequence"], &serde_json::json!(sequence));
            prop_assert_eq!(&fields["producer"], &serde_json::json!(Uuid::from_u128(7)));
        }
    }
}
