//! The files that may be those of the ledger: what stands beside an output under the names of rotation, and whose is
//! whose.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::compression::Compression;
use super::names::{is_own, is_rotated};
use crate::disk::folder_of;
use crate::record::{BLOCK_BYTES, FileRecord};

/// How often a folder is listed again whose files are renamed meanwhile.
const LISTINGS_MAX: u32 = 10;
const READ_AHEAD_BYTES: usize = 1 << 20;

/// A file that may be one of the ledger's. It is open, so that nobody's renaming changes what is read.
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    /// How long it is, in bytes, as it is stored.
    pub(super) length: u64,
    compression: Option<Compression>,
    file: File,
    // Whether its name is one that a rotation gives, or somebody named it.
    is_rotated: bool,
    // Its first block, decompressed: its length and CRC-32. None where it cannot be read.
    first_block: Option<(u64, u32)>,
}

/// Whether a candidate is the file of a record.
type IsIt<'a> = &'a dyn Fn(&Candidate, &FileRecord) -> bool;

/// A file that may be one of the ledger's and cannot be opened, and why.
pub(super) type Unopened = (PathBuf, io::Error);

/// Finds the file of each of `records` of `output` among the `candidates`; None where it is none of them.
pub(super) fn find(
    output: &Path,
    mut candidates: Vec<Candidate>,
    records: &[&FileRecord],
) -> Vec<Option<Candidate>> {
    let mut found: Vec<Option<Candidate>> = records.iter().map(|_| None).collect();
    let folder = folder_of(output);
    // First those that a block of theirs tells. Then those that nothing tells: a file of the same length, then one of
    // the name, then one of about the length, as far as that is known.
    let ways: [IsIt; 5] = [
        &|candidate, record| candidate.begins(record).unwrap_or(false),
        &|candidate, record| candidate.ends(record).unwrap_or(false),
        &|candidate, record| !candidate.is_compressed() && candidate.length == record.end(),
        &|candidate, record| candidate.is_named(&folder.join(&record.name)),
        &|candidate, record| {
            let is_about = candidate.length.abs_diff(record.end()) <= record.end() / 4;
            candidate.is_rotated && (candidate.is_compressed() || is_about)
        },
    ];
    for is_it in ways {
        // The newest first, as theirs are the names without a number.
        for (found, record) in found.iter_mut().zip(records).rev().filter(|(found, _)| found.is_none()) {
            let named = folder.join(&record.name);
            candidates.sort_by_key(|candidate| !candidate.is_named(&named));
            let place = candidates.iter().position(|candidate| is_it(candidate, record));
            *found = place.map(|place| candidates.remove(place));
        }
    }
    found
}

/// What may be a file of `output`: beside it, and `others`; second, what cannot be opened. The folder is listed until
/// nothing was renamed meanwhile.
///
/// # Errors
/// What the system said of the folder, or of one of `others`.
pub(super) fn candidates(output: &Path, others: &[PathBuf]) -> io::Result<(Vec<Candidate>, Vec<Unopened>)> {
    let (folder, name) = (folder_of(output), output.file_name().unwrap_or_default());
    let mut listed = siblings(folder, name)?;
    let (mut candidates, mut unopened) = (Vec::new(), Vec::new());
    for _ in 0..LISTINGS_MAX {
        candidates.clear();
        unopened.clear();
        for (sibling, _) in &listed {
            let is_rotated = is_rotated(name, sibling);
            match Candidate::open(folder.join(sibling), is_rotated) {
                Ok(candidate) => candidates.extend(candidate),
                // Somebody else's, very likely.
                Err(_) if !is_rotated => {}
                Err(error) => unopened.push((folder.join(sibling), error)),
            }
        }
        let before = std::mem::replace(&mut listed, siblings(folder, name)?);
        if listed == before {
            break;
        }
    }
    for path in others {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
        let candidate = Candidate::open(path.clone(), true).map_err(named)?;
        candidates.push(candidate.ok_or_else(|| invalid(path, "is no file, or an empty one"))?);
    }
    Ok((candidates, unopened))
}

/// The names in `folder` that begin with `name`, and those that Pixel gives to its files, with their inodes, in order;
/// but no lock, ledger or output of another name.
fn siblings(folder: &Path, name: &OsStr) -> io::Result<Vec<(OsString, u64)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        if found.as_bytes().starts_with(name.as_bytes()) || is_own(name, &found) {
            names.push((found, entry.ino()));
        }
    }
    let outputs = names.iter().filter_map(|(name, _)| name.as_bytes().strip_suffix(b".ledger"));
    let others: Vec<Vec<u8>> =
        outputs.filter(|output| *output != name.as_bytes()).map(<[u8]>::to_vec).collect();
    names.retain(|(sibling, _)| {
        let Some(rest) = sibling.as_bytes().strip_prefix(name.as_bytes()) else { return true };
        let is_own = rest == b".lock" || rest.starts_with(b".ledger");
        !is_own && !others.iter().any(|other| sibling.as_bytes().starts_with(other))
    });
    names.sort();
    Ok(names)
}

fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("`{}` {what}", path.display()))
}

impl Candidate {
    /// Opens a file; None where nothing of what was written can be in it: an empty one, a folder or a socket, a link
    /// (what that names was not written through it), one that is gone.
    pub(super) fn open(path: PathBuf, is_rotated: bool) -> io::Result<Option<Self>> {
        // A FIFO is not waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::NXIO)) => {
                return Ok(None);
            }
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Ok(None);
        }
        let (_, compression) = Compression::of(path.as_os_str());
        let length = metadata.len();
        let mut candidate = Candidate { path, length, compression, file, is_rotated, first_block: None };
        candidate.first_block = candidate.block(0, BLOCK_BYTES).ok();
        Ok(Some(candidate))
    }

    /// Whether it is compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.compression.is_some()
    }

    /// Reads it from its beginning, decompressed. `read` is told how many of the bytes that are stored were read.
    pub(super) fn reader<'a>(&'a self, read: &'a dyn Fn(u64)) -> io::Result<Box<dyn Read + 'a>> {
        (&self.file).seek(SeekFrom::Start(0))?;
        let stored = BufReader::with_capacity(READ_AHEAD_BYTES, Counted { file: &self.file, read });
        Ok(match self.compression {
            None => Box::new(stored),
            Some(how) => how.reader(stored)?,
        })
    }

    /// Whether its name is that of `path`, but for what a compressor adds.
    fn is_named(&self, path: &Path) -> bool {
        self.path == path || self.is_compressed() && self.path.with_extension("") == path
    }

    /// Whether the first block of `record` stands where it should.
    pub(super) fn begins(&self, record: &FileRecord) -> io::Result<bool> {
        let Some(first) = record.stretches.first() else { return Ok(false) };
        let length = first.length.min(BLOCK_BYTES);
        let block = match self.first_block {
            Some(block) if first.start == 0 && block.0 <= length => block,
            None if first.start == 0 => return Ok(false),
            _ => self.block(first.start, length)?,
        };
        Ok(block.0 == length && first.blocks.first() == Some(&block.1))
    }

    /// Whether the last block of `record` stands where it should, or so far from the end: whatever was put in or taken
    /// out at one place, it does, or the first one.
    fn ends(&self, record: &FileRecord) -> io::Result<bool> {
        let Some(last) = record.stretches.last().filter(|_| !self.is_compressed()) else { return Ok(false) };
        let number = last.blocks.len().saturating_sub(1) as u64;
        let (start, length) = (last.start + number * BLOCK_BYTES, last.length - number * BLOCK_BYTES);
        let moved = start.checked_add_signed(self.length as i64 - record.end() as i64);
        for place in [Some(start), moved].into_iter().flatten() {
            let block = self.block(place, length)?;
            if block.0 == length && last.blocks.last() == Some(&block.1) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The length, at most `length`, and the CRC-32 of what stands at `start`.
    fn block(&self, start: u64, length: u64) -> io::Result<(u64, u32)> {
        let mut block = Vec::new();
        if self.is_compressed() {
            let mut reader = self.reader(&|_| {})?;
            io::copy(&mut reader.by_ref().take(start), &mut io::sink())?;
            reader.take(length).read_to_end(&mut block)?;
        } else {
            (&self.file).seek(SeekFrom::Start(start))?;
            (&self.file).take(length).read_to_end(&mut block)?;
        }
        Ok((block.len() as u64, crc32fast::hash(&block)))
    }
}

/// A file that tells how much of it was read.
struct Counted<'a> {
    file: &'a File,
    read: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.read)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_file_of_the_output_is_left_out() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let written = [
            "v",
            "v.1",
            "v-2026-11-23T14.gz",
            "v.lock",
            "v.ledger",
            "v.ledger.files",
            "v.eu",
            "v.eu.1",
            "v.eu.ledger",
        ];
        for name in written {
            fs::write(path(name), "bytes\n")?;
        }
        fs::write(path("v.2"), "")?;
        fs::create_dir(path("v.3"))?;
        std::os::unix::fs::symlink(path("v.1"), path("v.4"))?;
        let _socket = std::os::unix::net::UnixListener::bind(path("v.6"))?;
        assert!(std::process::Command::new("mkfifo").arg(path("v.5")).status()?.success());
        let (found, unopened) = candidates(&path("v"), &[])?;
        assert!(unopened.is_empty());
        let names: Vec<_> = found.iter().filter_map(|one| one.path.file_name()).collect();
        assert_eq!(names, ["v", "v-2026-11-23T14.gz", "v.1"]);
        let absent = candidates(&path("v"), &[path("absent")]).map(|_| ());
        assert!(absent.is_err_and(|error| error.to_string().contains("absent")));
        Ok(())
    }
}
