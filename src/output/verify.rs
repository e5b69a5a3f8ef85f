//! The audit of files: what was written, read again and compared with the ledger's checksums.
//!
//! A CRC finds accidents and hand edits, not forgery: who can write the file can make bytes that fit.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::folder_of;
use crate::record::{BLOCK_BYTES, FileRecord, Stretch};

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
    /// It was not found.
    Missing,
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

/// A file that may be one of the ledger's.
struct Candidate {
    path: PathBuf,
    length: u64,
    compression: Compression,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Candidate {
    /// Whether its name is that of `path`, but for what a compressor adds.
    fn is_named(&self, path: &Path) -> bool {
        self.path == path || self.compression != Compression::None && self.path.with_extension("") == path
    }
}

/// Whether a candidate is the file of a record.
type IsIt<'a> = &'a dyn Fn(&Candidate, &FileRecord) -> bool;

/// What reading a file against a record brought.
struct Reading {
    verdict: Verdict,
    // How long it is, decompressed.
    length: u64,
}

/// Finds and reads the files of `records`: beside `output`, by names that begin with its own, and among `others`.
/// `progress` is told how many bytes were read.
///
/// # Errors
/// What the system said of the output's folder.
pub fn verify(
    output: &Path,
    others: &[PathBuf],
    records: &[&FileRecord],
    progress: &dyn Fn(u64),
) -> io::Result<Vec<FileAudit>> {
    let mut candidates = candidates(output, others)?;
    let mut found: Vec<Option<FileAudit>> = vec![None; records.len()];
    let folder = folder_of(output);
    // First those that a block of theirs tells. Then those that nothing tells: a file of the same length, then one of
    // the name, then one of about the length, as far as that is known.
    let ways: [IsIt; 4] = [
        &|candidate, record| is_of(candidate, record).unwrap_or(false),
        &|candidate, record| candidate.length == record.end(),
        &|candidate, record| candidate.is_named(&folder.join(&record.name)),
        &|candidate, record| {
            candidate.compression != Compression::None
                || candidate.length.abs_diff(record.end()) <= record.end() / 4
        },
    ];
    for is_it in ways {
        // The newest first, as theirs are the names without a number.
        for (found, record) in found.iter_mut().zip(records).rev().filter(|(found, _)| found.is_none()) {
            let named = folder.join(&record.name);
            candidates.sort_by_key(|candidate| !candidate.is_named(&named));
            if let Some(at) = candidates.iter().position(|candidate| is_it(candidate, record)) {
                *found = Some(read(&candidates.remove(at), record, progress));
            }
        }
    }
    let missing =
        |record: &FileRecord| audit_of(folder.join(&record.name), record, Verdict::Missing, 0, false);
    Ok(found
        .into_iter()
        .zip(records)
        .map(|(found, record)| found.unwrap_or_else(|| missing(record)))
        .collect())
}

/// How many bytes `verify` will read at most.
pub fn bytes_to_read(output: &Path, others: &[PathBuf]) -> io::Result<u64> {
    Ok(candidates(output, others)?.iter().map(|candidate| candidate.length).sum())
}

fn candidates(output: &Path, others: &[PathBuf]) -> io::Result<Vec<Candidate>> {
    let name = output.file_name().unwrap_or_default();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder_of(output))? {
        let path = entry?.path();
        let begins =
            path.file_name().unwrap_or_default().as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let is_own = begins.is_some_and(|rest| rest == b".lock" || rest.starts_with(b".ledger"));
        if begins.is_some() && !is_own {
            paths.push(path);
        }
    }
    paths.sort();
    paths.extend(others.iter().cloned());
    let mut candidates = Vec::new();
    for path in paths {
        // A link is not followed: what it names was not written through it.
        let metadata = fs::symlink_metadata(&path)?;
        // In an empty one, nothing of what was written is there.
        if metadata.is_file() && metadata.len() > 0 {
            let compression = match path.extension().and_then(OsStr::to_str) {
                Some("gz") => Compression::Gzip,
                Some("zst" | "zstd") => Compression::Zstd,
                _ => Compression::None,
            };
            candidates.push(Candidate { path, length: metadata.len(), compression });
        }
    }
    Ok(candidates)
}

/// Whether the first or the last block of `record` stands where it should, or the last one so far from the file's end:
/// whatever was put in or taken out at one place, one of them does.
fn is_of(candidate: &Candidate, record: &FileRecord) -> io::Result<bool> {
    let [Some(first), Some(last)] = [record.stretches.first(), record.stretches.last()] else {
        return Ok(false);
    };
    if candidate.compression != Compression::None {
        let mut reader = open(candidate)?;
        io::copy(&mut reader.by_ref().take(first.start), &mut io::sink())?;
        let mut block = Vec::new();
        reader.take(first.length.min(BLOCK_BYTES)).read_to_end(&mut block)?;
        return Ok(first.blocks.first() == Some(&crc32fast::hash(&block)));
    }
    let mut file = File::open(&candidate.path)?;
    let mut is_there = |stretch: &Stretch, number: usize, moved: i64| -> io::Result<bool> {
        let start = number as u64 * BLOCK_BYTES;
        let Some(place) = (stretch.start + start).checked_add_signed(moved) else { return Ok(false) };
        file.seek(SeekFrom::Start(place))?;
        let mut block = Vec::new();
        Read::by_ref(&mut file).take((stretch.length - start).min(BLOCK_BYTES)).read_to_end(&mut block)?;
        Ok(stretch.blocks.get(number) == Some(&crc32fast::hash(&block)))
    };
    let last_block = last.blocks.len().saturating_sub(1);
    let moved = candidate.length as i64 - record.end() as i64;
    Ok(is_there(first, 0, 0)? || is_there(last, last_block, 0)? || is_there(last, last_block, moved)?)
}

fn open(candidate: &Candidate) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(1 << 20, File::open(&candidate.path)?);
    Ok(match candidate.compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::Decoder::with_buffer(file)?),
    })
}

fn read(candidate: &Candidate, record: &FileRecord, progress: &dyn Fn(u64)) -> FileAudit {
    let reading = open(candidate).and_then(|mut reader| compare(&mut reader, record, progress));
    let reading = reading.unwrap_or_else(|error| Reading {
        verdict: Verdict::Unreadable { error: error.to_string() },
        length: 0,
    });
    let is_compressed = candidate.compression != Compression::None;
    audit_of(candidate.path.clone(), record, reading.verdict, reading.length, is_compressed)
}

fn audit_of(
    path: PathBuf,
    record: &FileRecord,
    verdict: Verdict,
    length: u64,
    is_compressed: bool,
) -> FileAudit {
    let bytes = record.bytes();
    FileAudit {
        path,
        verdict,
        is_compressed,
        lines: record.lines,
        bytes,
        foreign_bytes: length.saturating_sub(bytes),
    }
}

/// Reads a file from its beginning to its end, and compares the blocks of `record`.
fn compare(reader: &mut dyn Read, record: &FileRecord, progress: &dyn Fn(u64)) -> io::Result<Reading> {
    let mut stretches: Vec<&Stretch> = record.stretches.iter().collect();
    stretches.sort_by_key(|stretch| stretch.start);
    let (mut at, mut damaged) = (0, None);
    let mut block = Vec::with_capacity(BLOCK_BYTES as usize);
    let mut is_whole = true;
    'all: for stretch in stretches {
        at += skip(reader, stretch.start.saturating_sub(at), progress)?;
        for (number, expected) in stretch.blocks.iter().enumerate() {
            let start = number as u64 * BLOCK_BYTES;
            let length = (stretch.length - start).min(BLOCK_BYTES);
            block.clear();
            reader.take(length).read_to_end(&mut block)?;
            progress(block.len() as u64);
            at += block.len() as u64;
            if (block.len() as u64) < length {
                is_whole = false;
                break 'all;
            }
            if crc32fast::hash(&block) != *expected {
                damaged.get_or_insert(stretch.start + start);
            }
        }
    }
    at += skip(reader, u64::MAX, progress)?;
    let verdict = match damaged {
        Some(at) => Verdict::Damaged { at },
        None if !is_whole => Verdict::Shortened { length: at },
        None => Verdict::Verified,
    };
    Ok(Reading { verdict, length: at })
}

fn skip(reader: &mut dyn Read, bytes: u64, progress: &dyn Fn(u64)) -> io::Result<u64> {
    let skipped = io::copy(&mut reader.take(bytes), &mut io::sink())?;
    progress(skipped);
    Ok(skipped)
}
