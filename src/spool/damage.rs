//! Places of a segment that the disk has damaged, or does not give out: what stands behind them, and what is kept
//! of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::segment::{follows, split};
use crate::disk::DiskFile;
use crate::disk::journal::{find_record, read_record};
use crate::queue::Position;

/// The next whole record behind a damaged `position`, before `end`: where it starts, in bytes, and the sequence of
/// its first visit.
pub(super) fn next_whole(
    file: &dyn DiskFile,
    position: Position,
    end: u64,
) -> io::Result<Option<(u64, u64)>> {
    let found = find_record(file, position.offset, follows(position.sequence))?;
    let Some(offset) = found.filter(|offset| *offset < end) else { return Ok(None) };
    let mut record = Vec::new();
    if read_record(file, offset, &mut record)?.is_none() {
        return Ok(None);
    }
    let first = split(&record).map(|(first, ..)| first);
    Ok(first.filter(|first| *first >= position.sequence).map(|first| (offset, first)))
}

/// Gives the file of a segment of `producer` a second name, for a person to look at: then its room is not used
/// again. Returns that name.
pub(super) fn keep(segment: &Path, producer: Uuid) -> PathBuf {
    let kept = segment.with_extension(format!("{producer}.damaged"));
    match fs::hard_link(segment, &kept) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            log::warn!("failed to link `{}`: {error}", kept.display());
        }
        _ => {}
    }
    kept
}

/// What Linux reads at once, and gives out or not, in bytes.
const PAGE_BYTES: u64 = 4096;

/// What can be read of a file, in memory. Pages that cannot look like zeros, so like damage.
pub(super) struct Legible {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Why the last page that could not be read could not, and where it ends, in bytes.
    pub hidden: Option<(io::Error, u64)>,
}

impl Legible {
    /// Reads all of `file`.
    ///
    /// # Errors
    /// What the system said of its length.
    pub(super) fn read(file: &dyn DiskFile) -> io::Result<Self> {
        let length = file.len()?;
        let mut legible = Legible { bytes: Vec::new(), hidden: None };
        legible.bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        let mut offset = 0;
        while offset < length {
            match file.read_at(&mut legible.bytes[offset as usize..], offset) {
                Ok(0) => break,
                Ok(read) => offset += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The page that `offset` is in: what stands before another is given out first.
                    let end = length.min((offset / PAGE_BYTES + 1) * PAGE_BYTES);
                    legible.bytes[offset as usize..end as usize].fill(0);
                    legible.hidden = Some((error, end));
                    offset = end;
                }
            }
        }
        Ok(legible)
    }
}
