//! Whatever a message holds: it is read or refused, and what was read is written and read the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixel::visit::Visit;
use pixel::visit::wire::{Origin, encode, pieces};
use uuid::Uuid;

/// What of a body can be read.
fn read<'a>(origin: &Origin, body: &'a [u8]) -> Vec<Visit<'a>> {
    pieces(origin, body).into_iter().flatten().filter_map(|piece| piece.visit.ok()).collect()
}

fuzz_target!(|data: &[u8]| {
    let visits = read(&Origin::Foreign { message_id: None }, data);
    let mut lines = Vec::new();
    visits.iter().for_each(|visit| encode(visit, &mut lines));
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), visits.len());
    let spool = |count| Origin::Spool { producer: Uuid::nil(), first: 1, count };
    let again = read(&spool(visits.len() as u64), &lines);
    let mut lines_again = Vec::new();
    again.iter().for_each(|visit| encode(visit, &mut lines_again));
    assert_eq!(lines, lines_again);
    assert!(pieces(&spool(visits.len() as u64 + 1), &lines).is_err());
});
