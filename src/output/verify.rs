//! The audit of files: what was written, read again and compared with the ledger's checksums.
//!
//! A CRC finds accidents and hand edits, not forgery: who can write the file can make bytes that fit.
//!
//! Bytes that Pixel did not write are anybody's. But a line among them that is the same as one of Pixel's is a visit
//! that stands twice; for that, all that has such bytes is read a second time.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::candidates::{Candidate, candidates, find};
use super::ledger::RemovedByNow;
use crate::disk::folder_of;
use crate::record::{BLOCK_BYTES, FileRecord, Stretch};

/// How many lines of others are compared with Pixel's at most: 100 MB of memory.
const OTHERS_MAX: usize = 2_000_000;
/// A line that is longer is compared with none, in bytes. One of Pixel's is shorter.
const LINE_MAX_BYTES: usize = 1 << 20;

/// How a file was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Verdict {
    /// Every byte that Pixel wrote is there.
    Verified,
    /// Some are others: the first block that is begins here.
    Damaged {
        /// Where, in bytes; in a compressed file, of what it holds.
        at: u64,
    },
    /// It ends before all of them.
    Shortened {
        /// How long it is, in bytes.
        length: u64,
    },
    /// Every byte is there, but others' lines beside them are the same as some of Pixel's: those visits stand twice.
    Repeated {
        /// Where the first of them starts, in bytes; in a compressed file, of what it holds.
        at: u64,
        /// How many there are.
        copies: u64,
    },
    /// It was not found.
    Missing,
    /// Pixel removed it, as it was told to keep no more.
    Removed {
        /// When.
        at: Timestamp,
    },
    /// It could not be read.
    Unreadable {
        /// What the system said.
        error: String,
    },
}

/// One file.
#[derive(Debug, Clone, Serialize)]
pub struct FileAudit {
    /// Where it is, or was last.
    pub path: PathBuf,
    /// How it was found.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Whether it is compressed.
    pub is_compressed: bool,
    /// How many lines Pixel wrote to it.
    pub lines: u64,
    /// How many bytes Pixel wrote to it.
    pub bytes: u64,
    /// How many bytes in it are others'.
    pub foreign_bytes: u64,
}

impl FileAudit {
    /// The file of `record`, which is not beside `output` any more.
    pub fn absent(output: &Path, record: &FileRecord, verdict: Verdict) -> Self {
        FileAudit {
            path: folder_of(output).join(&record.name),
            verdict,
            is_compressed: false,
            lines: record.lines,
            bytes: record.bytes(),
            foreign_bytes: 0,
        }
    }
}

/// Finds and reads the files of `records`: beside `output`, by names that begin with its own, and among `others`.
/// `removed` is asked which of them are removed once what is there is open: whatever is not there then was noted before.
/// `may_repeat` tells whether a line that others have at a place of a record may be the same as one of Pixel's.
/// `progress` is told how many bytes were read, and of how many.
///
/// # Errors
/// What the system said of the output's folder, or of one of `others`; that of `removed`.
pub fn verify(
    output: &Path,
    others: &[PathBuf],
    records: &[&FileRecord],
    removed: &dyn Fn() -> io::Result<RemovedByNow>,
    may_repeat: &dyn Fn(&FileRecord, u64) -> bool,
    progress: &dyn Fn(u64, u64),
) -> io::Result<Vec<FileAudit>> {
    let (candidates, unopened) = candidates(output, others)?;
    let removed = removed()?;
    let records = records.iter().copied();
    let (gone, records): (Vec<_>, Vec<_>) = records.partition(|record| removed.at(record).is_some());
    let found = find(output, candidates, &records);
    let stored = found.iter().flatten().map(|candidate| candidate.length).sum();
    let meter = Meter { read: Cell::new(0), total: Cell::new(stored), show: progress };
    let mut foreign = ForeignLines::default();
    let mut audits = Vec::new();
    for record in gone {
        let absent = |at| FileAudit::absent(output, record, Verdict::Removed { at });
        audits.extend(removed.at(record).map(absent));
    }
    for (candidate, record) in found.iter().zip(&records) {
        let lines = foreign.of_file(audits.len(), |at| !may_repeat(record, at));
        audits.push(match candidate {
            Some(candidate) => read(candidate, record, &meter, lines),
            None => FileAudit::absent(output, record, Verdict::Missing),
        });
    }
    unopened.into_iter().for_each(|(path, error)| say_unreadable(&mut audits, path, &error));
    if foreign.lines.is_empty() {
        return Ok(audits);
    }
    meter.total.set(stored * 2);
    for (candidate, record) in found.iter().zip(&records) {
        // Whether it can be read was said already.
        let _ = candidate.as_ref().map(|candidate| foreign.compare(candidate, record, &meter));
    }
    for (file, (at, copies)) in foreign.copies() {
        let verdict = &mut audits[file].verdict;
        if *verdict == Verdict::Verified {
            *verdict = Verdict::Repeated { at, copies };
        }
    }
    Ok(audits)
}

struct Meter<'a> {
    read: Cell<u64>,
    total: Cell<u64>,
    show: &'a dyn Fn(u64, u64),
}

impl Meter<'_> {
    fn advance(&self, bytes: u64) {
        self.read.set(self.read.get() + bytes);
        (self.show)(self.read.get(), self.total.get());
    }
}

/// Notes of a file that it cannot be opened: of the one that was last seen there, or, as a rotation may have renamed
/// that, beside those that are missing.
fn say_unreadable(audits: &mut Vec<FileAudit>, path: PathBuf, error: &io::Error) {
    let verdict = Verdict::Unreadable { error: error.to_string() };
    let is_it = |audit: &&mut FileAudit| audit.verdict == Verdict::Missing && audit.path == path;
    match audits.iter_mut().find(is_it) {
        Some(audit) => audit.verdict = verdict,
        None => audits.push(FileAudit {
            path,
            verdict,
            is_compressed: false,
            lines: 0,
            bytes: 0,
            foreign_bytes: 0,
        }),
    }
}

/// Compares a file with its record; `foreign` is told each line of others.
fn read(
    candidate: &Candidate,
    record: &FileRecord,
    meter: &Meter<'_>,
    mut foreign: impl FnMut(u64, &[u8]),
) -> FileAudit {
    let (mut damaged, mut is_whole) = (None, true);
    let mut lines = Lines::default();
    let length = walk(candidate, record, meter, &mut |Piece { at, bytes, block }| match block {
        None => lines.add(at, bytes, &mut foreign),
        Some((length, _)) if (bytes.len() as u64) < length => is_whole = false,
        Some((_, crc)) if crc32fast::hash(bytes) != crc => drop(damaged.get_or_insert(at)),
        Some(_) => {}
    });
    lines.end(&mut foreign);
    let verdict = match (&length, damaged) {
        (Err(error), _) => Verdict::Unreadable { error: error.to_string() },
        (_, Some(at)) => Verdict::Damaged { at },
        (Ok(length), None) if !is_whole => Verdict::Shortened { length: *length },
        (Ok(_), None) => Verdict::Verified,
    };
    FileAudit {
        path: candidate.path.clone(),
        verdict,
        is_compressed: candidate.is_compressed(),
        lines: record.lines,
        bytes: record.bytes(),
        foreign_bytes: length.unwrap_or(0).saturating_sub(record.bytes()),
    }
}

/// Some bytes of a file.
struct Piece<'a> {
    /// Where they stand.
    at: u64,
    bytes: &'a [u8],
    /// The length and CRC-32 of the block of Pixel's that they are to be. Where a file is cut, they are fewer.
    block: Option<(u64, u32)>,
}

/// Reads a file from its beginning to its end, in pieces, and returns how long it is.
fn walk(
    candidate: &Candidate,
    record: &FileRecord,
    meter: &Meter<'_>,
    each: &mut dyn FnMut(Piece<'_>),
) -> io::Result<u64> {
    let read = |bytes| meter.advance(bytes);
    let mut reader = candidate.reader(&read)?;
    let mut stretches: Vec<&Stretch> = record.stretches.iter().collect();
    stretches.sort_by_key(|stretch| stretch.start);
    let mut at = 0;
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    let mut next = |length: u64, own: Option<u32>| -> io::Result<u64> {
        bytes.clear();
        reader.by_ref().take(length).read_to_end(&mut bytes)?;
        each(Piece { at, bytes: &bytes, block: own.map(|crc| (length, crc)) });
        at += bytes.len() as u64;
        Ok(at)
    };
    let mut end = 0;
    for stretch in stretches {
        while end < stretch.start {
            let read = next((stretch.start - end).min(BLOCK_BYTES), None)?;
            if read == end {
                break;
            }
            end = read;
        }
        for (number, crc) in stretch.blocks.iter().enumerate() {
            end = next((stretch.length - number as u64 * BLOCK_BYTES).min(BLOCK_BYTES), Some(*crc))?;
        }
    }
    loop {
        let read = next(BLOCK_BYTES, None)?;
        if read == end {
            return Ok(end);
        }
        end = read;
    }
}

/// Lines, from bytes that come in pieces.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    start: u64,
    is_too_long: bool,
}

impl Lines {
    /// Tells `each` the lines that end in `bytes`, without their line feeds, and where they start. What stands
    /// somewhere else than behind the bytes before begins another line.
    fn add(&mut self, at: u64, bytes: &[u8], each: &mut impl FnMut(u64, &[u8])) {
        if !self.is_too_long && self.start + self.line.len() as u64 != at {
            self.end(each);
        }
        let mut at = at;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.is_empty() && !self.is_too_long {
                self.start = at;
            }
            at += part.len() as u64;
            self.line.extend_from_slice(part.strip_suffix(b"\n").unwrap_or(part));
            if self.line.len() > LINE_MAX_BYTES {
                self.line.clear();
                self.is_too_long = true;
            }
            if part.ends_with(b"\n") {
                self.end(each);
                self.start = at;
            }
        }
    }

    /// What stands before ends here.
    fn end(&mut self, each: &mut impl FnMut(u64, &[u8])) {
        if !self.line.is_empty() {
            each(self.start, &self.line);
        }
        self.line.clear();
        self.is_too_long = false;
    }
}

/// Lines that Pixel did not write, and which of them are the same as one that it wrote.
#[derive(Default)]
struct ForeignLines {
    // By their hash: of the same lines, the first.
    lines: HashMap<u64, ForeignLine>,
    hasher: RandomState,
}

struct ForeignLine {
    file: usize,
    at: u64,
    count: u64,
    is_copy: bool,
}

impl ForeignLines {
    /// Takes the lines of a file, by its number, but those whose place `is_left_out`.
    fn of_file(&mut self, file: usize, is_left_out: impl Fn(u64) -> bool) -> impl FnMut(u64, &[u8]) {
        move |at, line| {
            if is_left_out(at) {
                return;
            }
            let hash = self.hasher.hash_one(line);
            if self.lines.len() < OTHERS_MAX || self.lines.contains_key(&hash) {
                let first = ForeignLine { file, at, count: 0, is_copy: false };
                self.lines.entry(hash).or_insert(first).count += 1;
                if self.lines.len() == OTHERS_MAX {
                    log::warn!("only {OTHERS_MAX} different lines of others' are compared with Pixel's");
                }
            }
        }
    }

    /// Compares them with the lines of Pixel's in a file.
    fn compare(&mut self, candidate: &Candidate, record: &FileRecord, meter: &Meter<'_>) -> io::Result<()> {
        let mut own = Lines::default();
        let mut each = |_, line: &[u8]| {
            if let Some(same) = self.lines.get_mut(&self.hasher.hash_one(line)) {
                same.is_copy = true;
            }
        };
        walk(candidate, record, meter, &mut |piece| {
            if piece.block.is_some() {
                own.add(piece.at, piece.bytes, &mut each);
            }
        })?;
        own.end(&mut each);
        Ok(())
    }

    /// Of each file that has any, where the first of the same lines starts, and how many they are.
    fn copies(&self) -> HashMap<usize, (u64, u64)> {
        let mut copies = HashMap::new();
        for line in self.lines.values().filter(|line| line.is_copy) {
            let (at, count) = copies.entry(line.file).or_insert((u64::MAX, 0));
            *at = line.at.min(*at);
            *count += line.count;
        }
        copies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_depend_on_the_pieces() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            let mut each = |at: u64, line: &[u8]| found.push((at, line.to_vec()));
            for (n, piece) in text.chunks(size).enumerate() {
                lines.add(7 + (n * size) as u64, piece, &mut each);
            }
            lines.add(40, b"elsewhere", &mut each);
            lines.end(&mut each);
            let expected = [(7, &b"one"[..]), (12, b"two"), (16, b"three"), (40, b"elsewhere")];
            assert_eq!(found, expected.map(|(at, line)| (at, line.to_vec())), "pieces of {size}");
        }
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut each = |at: u64, line: &[u8]| found.push((at, line.to_vec()));
        let long = [&vec![b'x'; LINE_MAX_BYTES][..], b"yy\nnext\n"].concat();
        for (n, piece) in long.chunks(60_000).enumerate() {
            lines.add((n * 60_000) as u64, piece, &mut each);
        }
        assert_eq!(found, [(LINE_MAX_BYTES as u64 + 3, b"next".to_vec())], "too long a line is left out");
    }
}
