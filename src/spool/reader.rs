//! Reading a spool's records: of all its segments one at a time is open.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::segment::split;
use super::{Spool, State, damage};
use crate::disk::DiskFile;
use crate::disk::journal::read_record;
use crate::queue::Position;

/// A position with the segment that it is in.
pub(super) struct Place {
    /// The position.
    pub position: Position,
    /// Where that segment's records end, in bytes.
    pub end: u64,
    path: Arc<Path>,
    // Of the segment in use.
    file: Option<Arc<dyn DiskFile>>,
}

impl State {
    /// What is to be read at `position`. One that is at its segment's end is at the beginning of the next segment,
    /// too, and one whose segment is gone is at the beginning of the oldest.
    pub(super) fn at(&self, mut position: Position) -> Option<Place> {
        let found = self.segments.binary_search_by_key(&position.segment, |segment| segment.first);
        let mut here = found.unwrap_or(0);
        let is_over = found.is_ok() && position.offset >= self.segments[here].end;
        here += usize::from(is_over && here + 1 < self.segments.len());
        let segment = self.segments.get(here)?;
        if found != Ok(here) {
            position = Position { sequence: segment.first, segment: segment.first, offset: 0 };
        }
        Some(Place { position, end: segment.end, path: segment.path.clone(), file: segment.file.clone() })
    }
}

/// Reads a spool's records.
pub(super) struct Reader<'a> {
    spool: &'a Spool,
    // The segment that was read last, by its first sequence.
    open: Option<(u64, Arc<dyn DiskFile>)>,
}

impl<'a> Reader<'a> {
    /// A reader of `spool`.
    pub(super) fn new(spool: &'a Spool) -> Self {
        Reader { spool, open: None }
    }

    /// Reads the record at `place`; returns where it ends and how many visits it has, or `None` where no whole record
    /// of that position's visits stands.
    ///
    /// # Errors
    /// What the system said, with the place.
    pub(super) fn read(&mut self, place: &Place, record: &mut Vec<u8>) -> io::Result<Option<(u64, u32)>> {
        let Position { sequence, offset, .. } = place.position;
        let read = self.file(place).and_then(|file| read_record(&*file, offset, record));
        let end = read.map_err(unreadable(place))?.filter(|end| *end <= place.end);
        let whole = end.zip(split(record)).filter(|(_, (first, ..))| *first == sequence);
        Ok(whole.map(|(end, (_, count, _))| (end, count)))
    }

    /// The position behind what the disk has damaged at `place`: at the next whole record of its segment, or at
    /// that segment's end. The audit shows the gap.
    ///
    /// # Errors
    /// What the system said: what cannot be read is not stepped over, as it may be readable again.
    pub(super) fn step_over(&mut self, place: &Place) -> io::Result<Position> {
        let position = place.position;
        let found = self.file(place).and_then(|file| damage::next_whole(&*file, position, place.end));
        let found = found.map_err(unreadable(place))?;
        let mut state = self.spool.state();
        let Ok(at) = state.segments.binary_search_by_key(&position.segment, |segment| segment.first) else {
            return Ok(position);
        };
        let next = state.segments.get(at + 1).map_or(state.next, |next| next.first);
        let segment = &mut state.segments[at];
        let (offset, after) = match found {
            Some(found) => found,
            // More was appended in the meantime: there is another look.
            None if segment.end != place.end => return Ok(position),
            None => {
                segment.end = position.offset;
                (position.offset, next)
            }
        };
        drop(state);
        // Otherwise it is the room that was left of a segment that nobody sealed.
        if after > position.sequence {
            let kept = damage::keep(&place.path, self.spool.producer);
            log::error!(
                "`{}` is damaged at byte {}: visits {} to {} cannot be read; the file is kept as `{}`",
                place.path.display(),
                position.offset,
                position.sequence,
                after - 1,
                kept.display(),
            );
        }
        Ok(Position { sequence: after, offset, ..position })
    }

    fn file(&mut self, place: &Place) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &place.file {
            return Ok(file.clone());
        }
        match &self.open {
            Some((first, file)) if *first == place.position.segment => Ok(file.clone()),
            _ => {
                let file = (self.spool.as_disk)(std::fs::File::open(&place.path)?);
                self.open = Some((place.position.segment, file.clone()));
                Ok(file)
            }
        }
    }
}

fn unreadable(place: &Place) -> impl Fn(io::Error) -> io::Error {
    |error| {
        let text = format!("`{}` from byte {} on: {error}", place.path.display(), place.position.offset);
        io::Error::new(error.kind(), text)
    }
}
