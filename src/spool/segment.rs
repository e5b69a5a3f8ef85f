//! One file of the spool: a journal of groups of visits, preallocated, and used again.
//!
//! A segment in use has bytes behind its last record: zeros, or what is left of the visits that its file
//! held before. Their numbers are smaller than any that the segment will hold, which tells them apart.

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::journal::{Journal, find_in, record_bytes, record_in};
use crate::disk::{DiskFile, private_file, sync_folder};

/// A segment's size: large enough that starting one is rare, small enough that a disk nearly full is
/// used to its end.
pub(super) const SEGMENT_MAX_BYTES: u64 = 8 << 20;
/// The smallest, for a spool with a low cap.
pub(super) const SEGMENT_MIN_BYTES: u64 = 64 << 10;
const SUFFIX: &str = ".spool";
/// A file whose visits are all confirmed, kept to become the next segment: writing 8 MiB of zeros would
/// hold up the answers, and so would giving as much back.
const SPARE: &str = "spare";
/// The sequence of a record's first visit and the number of its visits.
pub(super) const PREFIX_BYTES: usize = 12;
/// More visits than a segment can hold.
const VISITS_MAX: u64 = 1 << 32;

/// How an open file is written and read: as it is, but in tests.
pub(super) type AsDisk = Arc<dyn Fn(File) -> Arc<dyn DiskFile> + Send + Sync>;

/// A segment of an open spool.
pub(super) struct Segment {
    /// The sequence of its first visit.
    pub first: u64,
    /// Where its last record ends, in bytes. Of one that was not sealed, where its file ends.
    pub end: u64,
    /// Its file's name.
    pub path: Arc<Path>,
    /// Its file, while it is in use. A long backlog has more segments than a process has descriptors, so the others
    /// are opened when they are read.
    pub file: Option<Arc<dyn DiskFile>>,
}

impl Segment {
    /// Its file, to be read.
    pub(super) fn open(&self, as_disk: &AsDisk) -> io::Result<Arc<dyn DiskFile>> {
        match &self.file {
            Some(file) => Ok(file.clone()),
            None => Ok(as_disk(File::open(&self.path)?)),
        }
    }
}

/// The segment in use.
pub(super) struct Active {
    /// Its records.
    pub journal: Journal,
    /// How many bytes of its file may be written to.
    pub capacity: u64,
    /// It is sealed before the next append, and used no more: one failed, or its numbers do not go on.
    pub is_spent: bool,
}

impl Active {
    /// Whether there is room for a record of so many bytes.
    pub(super) fn fits(&self, record: u64) -> bool {
        !self.is_spent && self.journal.end() + record <= self.capacity
    }
}

/// The path of the segment that begins with `first`.
pub(super) fn path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}{SUFFIX}"))
}

/// The first sequence of the segment at `path`; `None` where it is another file. AMQP's numbers are signed.
pub(super) fn first_sequence(path: &Path) -> Option<u64> {
    let first: i64 = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()?;
    first.try_into().ok()
}

/// A record's first sequence, count and lines.
pub(super) fn split(record: &[u8]) -> Option<(u64, u32, &[u8])> {
    let (first, rest) = record.split_first_chunk::<8>()?;
    let (count, lines) = rest.split_first_chunk::<4>()?;
    Some((u64::from_le_bytes(*first), u32::from_le_bytes(*count), lines))
}

/// Whether a record may follow where the visit `next` was expected: it is neither of the file's last use,
/// nor bytes in the middle of another record.
pub(super) fn follows(next: u64) -> impl Fn(&[u8]) -> bool {
    move |record| {
        let ahead = split(record).and_then(|(first, ..)| first.checked_sub(next));
        ahead.is_some_and(|ahead| ahead < VISITS_MAX)
    }
}

/// A whole record, as [`records`] finds it.
pub(super) struct Found {
    /// Where it starts, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// The sequence of its first visit.
    pub first: u64,
    /// The sequence behind its last visit.
    pub next: u64,
}

/// Each whole record of a segment's `bytes` that begins with `first`, in order, also those behind damaged places.
pub(super) fn records(bytes: &[u8], first: u64) -> impl Iterator<Item = Found> {
    let (mut place, mut next) = (0, first);
    std::iter::from_fn(move || {
        let follows = follows(next);
        if record_in(bytes, place, &follows).is_none() {
            place = find_in(bytes, place, &follows)?;
        }
        let record = record_in(bytes, place, &follows)?;
        let (first, count, _) = split(record)?;
        let start = place as u64;
        let end = start + record_bytes(record.len());
        (place, next) = (place + record_bytes(record.len()) as usize, first + u64::from(count));
        Some(Found { start, end, first, next })
    })
}

/// Makes the file of a segment, the spare one where that has a size that is `wanted`; its name is durable.
/// Returns how many bytes of it can be written to at once; `None` where nothing is preallocated yet.
pub(super) fn create(
    folder: &Path,
    path: &Path,
    wanted: RangeInclusive<u64>,
    as_disk: &AsDisk,
) -> io::Result<(Arc<dyn DiskFile>, Option<u64>)> {
    let spare = folder.join(SPARE);
    // Where there is none, or none to be had, a new file does.
    let is_spare = fs::rename(&spare, path).is_ok();
    let file = as_disk(private_file().read(true).write(true).truncate(!is_spare).open(path)?);
    // Each use cuts it off behind its last record.
    let capacity = Some(file.len()?).filter(|length| wanted.contains(length));
    if capacity.is_none() {
        file.set_len(0)?;
    }
    file.sync()?;
    sync_folder(folder)?;
    Ok((file, capacity))
}

/// Makes a segment's file the spare one; removes its name where somebody keeps it under another.
pub(super) fn recycle(folder: &Path, path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.nlink() {
        1 => fs::rename(path, folder.join(SPARE)),
        _ => fs::remove_file(path),
    }
}

/// Gives the spare file's room back.
pub(super) fn remove_spare(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(SPARE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Fills a segment with zeros, up to `wanted` bytes, or as many as the disk has where that is at least
/// `needed`; returns how many. So an append writes no metadata (measured: 1.7 times the appends a
/// second), and a disk runs full here, not in the middle of a record.
pub(super) fn preallocate(file: &dyn DiskFile, wanted: u64, needed: u64) -> io::Result<u64> {
    let zeros = vec![0; SEGMENT_MIN_BYTES as usize];
    let mut filled = 0;
    let outcome = loop {
        if filled >= wanted {
            break Ok(());
        }
        match file.write_at(&zeros, filled) {
            Ok(()) => filled += zeros.len() as u64,
            Err(_) if filled >= needed => break file.set_len(filled),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = outcome.and_then(|()| file.sync()) {
        // Gives the room back.
        let _ = file.set_len(0);
        return Err(error);
    }
    Ok(filled)
}
