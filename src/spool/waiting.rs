//! What waits in a spool that another process may hold: for the audit, which changes nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::path::Path;

use uuid::Uuid;

use super::open::FIRST_SEQUENCE;
use super::open::{parse_producer, read_confirmed};
use super::segment::{first_sequence, follows, split};
use crate::disk::journal::{find_record, read_record};

/// The visits of one spool that are not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The spool's UUID.
    pub producer: Uuid,
    /// Their sequences, ascending.
    pub sequences: Vec<RangeInclusive<u64>>,
    /// The sequence that it gives to the next visit.
    pub next: u64,
}

/// Reads the spool in `folder`, or those in its numbered slots.
///
/// # Errors
/// What the system said; `NotFound` where there is no spool.
pub fn waiting(folder: &Path) -> io::Result<Vec<Waiting>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_slot =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok());
        if is_slot && path.is_dir() {
            found.extend(of_one(&path)?);
        }
    }
    found.extend(of_one(folder)?);
    if found.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "there is no spool in it"));
    }
    Ok(found)
}

/// The spool right in `folder`; `None` where there is none.
fn of_one(folder: &Path) -> io::Result<Option<Waiting>> {
    let text = match fs::read_to_string(folder.join("producer")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let producer = parse_producer(&text)?;
    let confirmed = match File::open(folder.join("confirmed")) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        file => read_confirmed(&file?)?,
    };
    let mut segments: Vec<(u64, _)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        segments.extend(first_sequence(&path).map(|first| (first, path)));
    }
    segments.sort();
    let (mut sequences, mut next) = (Vec::new(), confirmed.unwrap_or(FIRST_SEQUENCE));
    for (first, path) in segments {
        match File::open(&path) {
            // Confirmed and given up in the meantime.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            file => next = next.max(read_segment(&file?, first, confirmed.unwrap_or(0), &mut sequences)?),
        }
    }
    Ok(Some(Waiting { producer, sequences, next }))
}

/// Adds what stands in a segment from `confirmed` on; returns the sequence that follows.
fn read_segment(
    file: &File,
    first: u64,
    confirmed: u64,
    sequences: &mut Vec<RangeInclusive<u64>>,
) -> io::Result<u64> {
    let (mut next, mut offset, mut record) = (first, 0, Vec::new());
    loop {
        while let Some(behind) = read_record(file, offset, &mut record)?
            && let Some((sequence, count, _)) = split(&record)
            && sequence >= next
        {
            next = sequence + u64::from(count);
            offset = behind;
            if next > confirmed {
                sequences.push(sequence.max(confirmed)..=next - 1);
            }
        }
        // Behind a damaged place the numbers go on.
        match find_record(file, offset, follows(next))? {
            Some(behind) => offset = behind,
            None => return Ok(next),
        }
    }
}
