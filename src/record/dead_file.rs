//! `dead.ndjson`: the dead letters of the embedded program, a JSON object a line.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ports::{DeadLetter, Delivered, Inbox, InboxError};
use crate::disk::{folder_of, private_file, sibling, sync_folder};
use crate::stop::Stop;
use crate::visit::wire::Origin;

/// How many bytes of the file are read at a time, but for the last line.
const BATCH_MAX_BYTES: usize = 4 << 20;

/// A dead letter as a line.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    /// The spool that numbered it.
    producer: Uuid,
    /// Its number there.
    sequence: u64,
    /// How many numbers it has from `sequence` on; absent where that is one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    count: u64,
    /// Why it cannot be read.
    #[serde(borrow)]
    reason: Cow<'a, str>,
    /// What came. Where that is not UTF-8, each byte is the character of its number instead (Latin-1).
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    visit: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    visit_latin1: Option<String>,
}

fn one() -> u64 {
    1
}

fn is_one(count: &u64) -> bool {
    *count == 1
}

impl Line<'_> {
    fn body(&self) -> Option<Vec<u8>> {
        match (&self.visit, &self.visit_latin1) {
            (Some(visit), None) => Some(visit.as_bytes().to_vec()),
            (None, Some(latin1)) => latin1.chars().map(|c| u8::try_from(c).ok()).collect(),
            _ => None,
        }
    }

    /// The line's message; `None` where it is no dead letter.
    fn read(line: &[u8]) -> Option<Delivered> {
        let letter: Line<'_> = serde_json::from_slice(line).ok()?;
        let Line { producer, sequence: first, count, .. } = letter;
        let is_number = count > 0 && first.checked_add(count).is_some();
        let body = letter.body().filter(|_| is_number)?;
        Some(Delivered { origin: Ok(Origin::Spool { producer, first, count }), body })
    }
}

/// Appends `letter` to `lines`. What a spool did not number stands there as it came.
fn write_line(letter: &DeadLetter<'_>, lines: &mut Vec<u8>) -> io::Result<()> {
    if let Some(Origin::Spool { producer, first, count }) = letter.origin {
        let visit = std::str::from_utf8(letter.bytes).ok().map(Cow::Borrowed);
        let latin1 = || letter.bytes.iter().map(|byte| char::from(*byte)).collect();
        let visit_latin1 = if visit.is_none() { Some(latin1()) } else { None };
        let reason = Cow::Borrowed(letter.reason.0.as_str());
        let line = Line { producer, sequence: first, count, reason, visit, visit_latin1 };
        serde_json::to_writer(&mut *lines, &line)?;
    } else {
        lines.extend_from_slice(letter.bytes.trim_ascii_end());
    }
    lines.push(b'\n');
    Ok(())
}

/// `letters` as lines.
pub(super) fn lines_of(letters: &[DeadLetter<'_>]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    letters.iter().try_for_each(|letter| write_line(letter, &mut lines))?;
    Ok(lines)
}

/// Appends `lines` to the file at `path`, durably, its name included.
///
/// # Errors
/// What the system said. Then a part of them may be there: what is appended later begins a line of its own.
pub(super) fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = private_file().read(true).append(true).open(path)?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    file.write_all(lines)?;
    file.sync_data()?;
    sync_folder(folder_of(path))
}

/// Files of dead letters as an inbox, each read once. What can be read at last is the recorder's; what still
/// cannot be is kept in a new file, which takes the place of the old one when that is read to its end. Until
/// then the old one is as it was, so a process that is killed begins it again, and the ledger knows what it had.
pub struct DeadFiles {
    waiting: std::vec::IntoIter<PathBuf>,
    open: Option<OpenFile>,
    // Told how many bytes were read.
    progress: Box<dyn FnMut(u64) + Send>,
    // Set when all is done.
    stop: Stop,
}

struct OpenFile {
    path: PathBuf,
    lines: BufReader<File>,
    draft_path: PathBuf,
    draft: File,
    offset: u64,
}

impl DeadFiles {
    /// The inbox over the files at `paths`, which must be there. It sets `stop` when all is done, and tells
    /// `progress` how many bytes it read each time.
    pub fn new(paths: Vec<PathBuf>, progress: impl FnMut(u64) + Send + 'static, stop: Stop) -> Self {
        DeadFiles { waiting: paths.into_iter(), open: None, progress: Box::new(progress), stop }
    }

    fn next_batch(&mut self) -> io::Result<Vec<Delivered>> {
        loop {
            if self.open.is_none() {
                let Some(path) = self.waiting.next() else {
                    self.stop.set();
                    return Ok(Vec::new());
                };
                self.open = Some(OpenFile::open(path)?);
            }
            let Some(open) = &mut self.open else { continue };
            let before = open.offset;
            let batch = open.read()?;
            (self.progress)(open.offset - before);
            if !batch.is_empty() {
                return Ok(batch);
            }
            if let Some(open) = self.open.take() {
                open.finish()?;
            }
        }
    }
}

/// The messages of a file of dead letters, for whoever only wants to look.
///
/// # Errors
/// What the system said.
pub fn read_dead_file(path: &Path, mut look: impl FnMut(&[Delivered])) -> io::Result<()> {
    let (mut lines, mut offset) = (BufReader::new(File::open(path)?), 0);
    loop {
        let batch = read_batch(&mut lines, &mut offset)?;
        if batch.is_empty() {
            return Ok(());
        }
        look(&batch);
    }
}

/// The next messages of a file that was read up to `offset`; none at its end. Lines that are no dead letters
/// make a message together that another client might have sent: an older Pixel kept visits as they were, and
/// with the place as its id that message is known again when it is read again.
fn read_batch(lines: &mut impl BufRead, offset: &mut u64) -> io::Result<Vec<Delivered>> {
    let (mut batch, mut others, from) = (Vec::new(), Vec::new(), *offset);
    let mut line = Vec::new();
    while *offset - from < BATCH_MAX_BYTES as u64 {
        line.clear();
        let bytes = lines.read_until(b'\n', &mut line)?;
        if bytes == 0 {
            break;
        }
        *offset += bytes as u64;
        match Line::read(&line) {
            Some(message) => batch.push(message),
            None => others.extend_from_slice(&line),
        }
    }
    if !others.trim_ascii().is_empty() {
        let id = format!("dead.ndjson:{from}:{:08x}", crc32fast::hash(&others));
        batch.push(Delivered { origin: Ok(Origin::Foreign { message_id: Some(id) }), body: others });
    }
    Ok(batch)
}

impl OpenFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let lines = BufReader::new(File::open(&path)?);
        let draft_path = sibling(&path, "new");
        let draft = private_file().write(true).truncate(true).open(&draft_path)?;
        Ok(OpenFile { path, lines, draft_path, draft, offset: 0 })
    }

    fn read(&mut self) -> io::Result<Vec<Delivered>> {
        read_batch(&mut self.lines, &mut self.offset)
    }

    /// Puts what is left in the old file's place.
    fn finish(self) -> io::Result<()> {
        let folder = folder_of(&self.path);
        if self.draft.metadata()?.len() > 0 {
            self.draft.sync_all()?;
            fs::rename(&self.draft_path, &self.path)?;
        } else {
            fs::remove_file(&self.path)?;
            fs::remove_file(&self.draft_path)?;
        }
        sync_folder(folder)
    }
}

impl Inbox for DeadFiles {
    fn receive(&mut self, _: Duration) -> Result<Vec<Delivered>, InboxError> {
        let failed = |error| InboxError(format!("failed to read the dead letters: {error}"));
        self.next_batch().map_err(failed)
    }

    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        lines_of(dead).and_then(|lines| open.draft.write_all(&lines)).map_err(|error| {
            InboxError(format!("failed to write to `{}`: {error}", open.draft_path.display()))
        })
    }

    fn address(&self) -> &str {
        "the dead letters"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visit::wire::Unreadable;

    #[test]
    fn a_letter_is_read_as_it_was_written_whatever_its_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dead.ndjson");
        let all: Vec<u8> = (0..=255).collect();
        let bodies: [&[u8]; 5] = [b"hello", b"", "\u{1f600}\"\\".as_bytes(), &all, b"two\nlines\n"];
        for (first, bytes) in (1..).zip(bodies) {
            let origin = Some(Origin::Spool { producer: Uuid::nil(), first, count: first });
            let reason = Unreadable("a reason".into());
            let letter = DeadLetter { place: 0, is_whole: false, origin, bytes, reason };
            let lines = lines_of(&[letter]).expect("it is written to memory");
            append(&path, &lines).expect("the disk works");
            // A process that was killed while it appended.
            let mut torn = private_file().append(true).open(&path).expect("it is there");
            torn.write_all(b"{\"producer\":\"0").expect("the disk works");
        }
        let mut read = Vec::new();
        read_dead_file(&path, |batch| {
            read.extend(batch.iter().map(|message| (message.origin.clone(), message.body.clone())));
        })
        .expect("the disk works");
        let (torn_origin, torn) = read.pop().expect("the torn ones");
        assert!(matches!(torn_origin, Ok(Origin::Foreign { message_id: Some(_) })));
        assert_eq!(torn, b"{\"producer\":\"0\n".repeat(5).strip_suffix(b"\n").expect("it ends so"));
        for ((origin, body), (first, expected)) in read.into_iter().zip((1..).zip(bodies)) {
            assert_eq!(origin, Ok(Origin::Spool { producer: Uuid::nil(), first, count: first }));
            assert_eq!(body, expected);
        }
    }
}
