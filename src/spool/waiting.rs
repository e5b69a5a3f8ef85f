//! What waits in a spool that another process may be using: for the audit.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use uuid::Uuid;

use super::damage::Legible;
use super::open::{FIRST_SEQUENCE, confirmed_in, read_producer, segments};
use super::segment::records;
use super::slots::spools_in;

/// The visits of one producer that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Who numbered them.
    pub producer: Uuid,
    /// Their numbers, ascending; runs neither overlap nor touch.
    pub sequences: Vec<RangeInclusive<u64>>,
    /// The number that its next visit gets.
    pub next: u64,
}

/// The visits that stand in the spool in `folder`, or in its numbered slots, and are not noted as confirmed. Takes no
/// lock and changes nothing.
///
/// Of a spool in use it may name visits that were confirmed meanwhile, and such as were refused because the disk
/// failed, and then failed to take them back. It misses none that waited before and wait after: who asks what was
/// written has to ask that later. Every number that was given away before is below `next`.
///
/// # Errors
/// What the system said; `NotFound` where there is no spool, `InvalidData` where it is a newer Pixel's.
pub fn waiting(folder: &Path) -> io::Result<Vec<Waiting>> {
    let mut found = Vec::new();
    for spool in spools_in(folder)? {
        found.extend(waiting_in(&spool)?);
    }
    if found.is_empty() {
        let text = format!("`{}` holds no spool", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(found)
}

/// What waits in one spool; `None` where there is none.
fn waiting_in(folder: &Path) -> io::Result<Option<Waiting>> {
    let known = read_producer(folder)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let Some((producer, _)) = known else { return Ok(None) };
    let confirmed = confirmed_in(folder)?.unwrap_or(FIRST_SEQUENCE);
    let segments = segments(folder)?;
    let mut next = FIRST_SEQUENCE;
    let mut sequences: Vec<RangeInclusive<u64>> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let until = segments.get(at + 1).map_or(u64::MAX, |next| next.first);
        next = next.max(segment.first);
        let file = match File::open(&segment.path) {
            // All of it is confirmed, and it was given up since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let legible = Legible::read(&file)?;
        if let Some((error, _)) = legible.hidden {
            return Err(io::Error::new(error.kind(), format!("`{}`: {error}", segment.path.display())));
        }
        // Past its last visit the file was given up meanwhile, and is used again.
        for found in records(&legible.bytes, segment.first).take_while(|found| found.first < until) {
            let first = found.first.max(confirmed);
            next = next.max(found.next);
            match sequences.last_mut() {
                _ if first >= found.next => {}
                Some(last) if *last.end() + 1 == first => *last = *last.start()..=found.next - 1,
                _ => sequences.push(first..=found.next - 1),
            }
        }
    }
    // What was given up meanwhile had been noted as confirmed before.
    next = next.max(confirmed_in(folder)?.unwrap_or(FIRST_SEQUENCE));
    Ok(Some(Waiting { producer, sequences, next }))
}
