//! Places of a segment that the disk has damaged: what stands behind them, and what is kept of them.

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
