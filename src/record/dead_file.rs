//! `dead.ndjson`: the dead letters of the embedded program, a JSON object a line.

use std::borrow::Cow;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ports::DeadLetter;
use crate::disk::{folder_of, private_file, sync_folder};
use crate::visit::wire::Origin;

/// A dead letter as a line.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    /// The spool that numbered it, and its number there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    producer: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// How many numbers it has from `sequence` on; absent where that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// Why it cannot be read.
    #[serde(borrow)]
    reason: Cow<'a, str>,
    /// What came. Where that is not UTF-8, each byte is the character of its number instead (Latin-1).
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    visit: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    visit_latin1: Option<String>,
}

impl<'a> Line<'a> {
    fn of(letter: &'a DeadLetter<'_>) -> Line<'a> {
        let (producer, sequence, count) = match &letter.origin {
            Some(Origin::Spool { producer, first, count }) => (Some(*producer), Some(*first), Some(*count)),
            _ => (None, None, None),
        };
        let visit = std::str::from_utf8(letter.bytes).ok().map(Cow::Borrowed);
        let latin1 = || letter.bytes.iter().map(|byte| char::from(*byte)).collect();
        let visit_latin1 = if visit.is_none() { Some(latin1()) } else { None };
        let count = count.filter(|count| *count != 1);
        let reason = Cow::Borrowed(letter.reason.0.as_str());
        Line { producer, sequence, count, reason, visit, visit_latin1 }
    }
}

/// Appends `letters` to the file at `path`, durably, its name included.
///
/// # Errors
/// What the system said. Then a part of them may be there: what is appended later begins a line of its own.
pub(super) fn append(path: &Path, letters: &[DeadLetter<'_>]) -> io::Result<()> {
    let mut file = private_file().read(true).append(true).open(path)?;
    let mut lines = Vec::new();
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            lines.push(b'\n');
        }
    }
    write_lines(letters, &mut lines)?;
    file.write_all(&lines)?;
    file.sync_data()?;
    sync_folder(folder_of(path))
}

fn write_lines(letters: &[DeadLetter<'_>], lines: &mut Vec<u8>) -> io::Result<()> {
    for letter in letters {
        serde_json::to_writer(&mut *lines, &Line::of(letter))?;
        lines.push(b'\n');
    }
    Ok(())
}
