//! Whatever a message holds: it is read or refused, and what was read is written and read the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixel::visit::wire::{Origin, encode, take_apart};
use uuid::Uuid;

/// What of a body can be read, written again, and how many visits that are.
fn read(origin: &Origin, body: &[u8]) -> (Vec<u8>, u64) {
    let (mut lines, mut visits) = (Vec::new(), 0);
    let _ = take_apart(origin, body, &mut |_, visit| {
        if let Ok(visit) = visit {
            encode(visit, &mut lines);
            visits += 1;
        }
    });
    (lines, visits)
}

fuzz_target!(|data: &[u8]| {
    let (lines, visits) = read(&Origin::Foreign { message_id: None }, data);
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count() as u64, visits);
    let spool = |count| Origin::Spool { producer: Uuid::nil(), first: 1, count };
    assert_eq!(read(&spool(visits), &lines), (lines.clone(), visits));
    assert_eq!(read(&spool(visits + 1), &lines), (Vec::new(), 0));
});
