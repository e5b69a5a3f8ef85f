//! Whatever a message holds: it is read or refused, and what was read is written and read the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixel::visit::wire::{Origin, decode, encode};
use uuid::Uuid;

fuzz_target!(|data: &[u8]| {
    let foreign = Origin::Foreign { message_id: None };
    let Ok(visits) = decode(&foreign, data) else { return };
    let mut lines = Vec::new();
    visits.iter().for_each(|visit| encode(visit, &mut lines));
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), visits.len());
    let spool = |count| Origin::Spool { producer: Uuid::nil(), first: 1, count };
    let again = decode(&spool(visits.len() as u64), &lines).expect("what is written can be read");
    let mut lines_again = Vec::new();
    again.iter().for_each(|visit| encode(visit, &mut lines_again));
    assert_eq!(lines, lines_again);
    assert!(decode(&spool(visits.len() as u64 + 1), &lines).is_err());
});
