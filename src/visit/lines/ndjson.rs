//! One JSON object a line: all that was collected, and the visit's number.

use serde::Serialize;
use uuid::Uuid;

use super::numbered::Numbered;
use crate::visit::Visit;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    visit: &'a Visit<'a>,
    producer: Option<Uuid>,
    sequence: Option<u64>,
}

/// Appends the line. JSON escapes control characters below U+0020, so no value can break it.
pub(super) fn write(visit: Numbered<'_>, line: &mut Vec<u8>) {
    let (producer, sequence) = visit.number.unzip();
    let object = Line { visit: visit.visit, producer, sequence };
    serde_json::to_writer(&mut *line, &object)
        .expect("a line has only string keys, and writing to memory cannot fail");
    line.push(b'\n');
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
            let read: Visit<'_> = serde_json::from_slice(&line).expect("JSON");
            prop_assert_eq!(&read, &visit);
            let fields: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            prop_assert_eq!(&fields["sequence"], &serde_json::json!(sequence));
            prop_assert_eq!(&fields["producer"], &serde_json::json!(Uuid::from_u128(7)));
        }
    }
}
