//! Reading a spool's records: of all its segments one at a time is open.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::damage;
use super::segment::{AsDisk, split};
use super::state::{Place, State};
use crate::disk::DiskFile;
use crate::disk::journal::read_record;
use crate::queue::Position;

/// Reads a spool's records.
pub(super) struct Reader<'a> {
    state: &'a Mutex<State>,
    as_disk: &'a AsDisk,
    producer: Uuid,
    // The segment that was read last, by its first sequence.
    open: Option<(u64, Arc<dyn DiskFile>)>,
}

impl<'a> Reader<'a> {
    /// A reader of the spool of `producer` that holds `state`.
    pub(super) fn new(state: &'a Mutex<State>, as_disk: &'a AsDisk, producer: Uuid) -> Self {
        Reader { state, as_disk, producer, open: None }
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
        let mut state = State::lock(self.state);
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
            let kept = damage::keep(&place.path, self.producer);
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
                let file = (self.as_disk)(File::open(&place.path)?);
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
