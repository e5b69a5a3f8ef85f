//! The spool: a durable queue of visits on disk, numbered by this producer.
//!
//! A folder of segments, each a journal named after its first sequence. Appending is one write into a
//! preallocated segment and one fdatasync. What the broker confirmed is forgotten by whole segments, whose
//! files are used again; the file `confirmed` remembers the rest, and may lag: the ledger drops what is
//! sent twice. The newest segment is never given up, as it carries the next sequence, and a start goes on with it.

mod damage;
mod open;
mod reader;
mod segment;
mod shards;
mod slots;
mod state;
mod waiting;

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;
use uuid::Uuid;

pub use self::open::OpenError;
use self::open::{Opened, open};
use self::reader::Reader;
use self::segment::{
    Active, AsDisk, PREFIX_BYTES, SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES, Segment, create, preallocate,
    recycle, remove_spare,
};
use self::shards::Shards;
pub use self::slots::{Slot, SlotState, Slots, want};
use self::state::State;
pub use self::waiting::{Waiting, waiting};
use crate::disk::DiskFile;
use crate::disk::journal::{Journal, record_bytes};
use crate::queue::{Backlog, Position, Reading, Shard};
use crate::queue::{StoreError, VisitStore};
use crate::visit::Visit;
use crate::visit::wire::Message;

/// A spool that this process holds. Clones of the `Arc` share it: workers append, one reader reads.
pub struct Spool {
    folder: PathBuf,
    producer: Uuid,
    max_bytes: u64,
    segment_bytes: u64,
    // Held for the spool's life: one process per spool.
    lock: File,
    confirmed_file: File,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    shards: Mutex<Shards>,
    bell: Sender<()>,
    bell_rings: Receiver<()>,
    as_disk: AsDisk,
}

/// Locked for a whole append.
struct Writer {
    // `None` until there is a segment in use, and after one that could not be made.
    active: Option<Active>,
}

impl Spool {
    /// Opens the spool in `folder`, creating it where it is absent. With `slots` over 1 the spool is
    /// the first free one of the subfolders `0` to `slots - 1`, so that replicas can share a volume.
    ///
    /// # Errors
    /// [`OpenError::Held`] where every slot is another process's, [`OpenError::Newer`] where a newer Pixel has
    /// written it, [`OpenError::Disk`] otherwise. What cannot be read of the segments is no error: it waits until
    /// it can be.
    pub fn open(folder: &Path, slots: u32, max_bytes: u64) -> Result<Self, OpenError> {
        let as_disk: AsDisk = Arc::new(|file| Arc::new(file));
        if slots <= 1 {
            return Self::open_on(folder.to_path_buf(), false, max_bytes, as_disk);
        }
        let mut held = None;
        for slot in 0..slots {
            match Self::open_on(folder.join(slot.to_string()), false, max_bytes, as_disk.clone()) {
                // Of several, one that gives way is the one that is waited for.
                Err(error @ OpenError::Held { gives_way, .. }) => match held {
                    Some(OpenError::Held { gives_way: true, .. }) if !gives_way => {}
                    _ => held = Some(error),
                },
                opened => return opened,
            }
        }
        Err(held.expect("there are at least two slots, and each was held"))
    }

    /// Opens the spool in `folder` to relay what a process that is gone has left there. A collector that wants it is
    /// given it: see [`Spool::is_wanted`].
    ///
    /// # Errors
    /// As for [`Spool::open`].
    pub fn take_over(folder: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        Self::open_on(folder.into(), true, max_bytes, Arc::new(|file| Arc::new(file)))
    }

    /// Tells whoever wants this spool, too, where its process listens.
    pub fn note_address(&self, address: &str) {
        if let Err(error) = open::note_address(&self.lock, address) {
            log::debug!("failed to note the address in `{}`: {error}", self.folder.display());
        }
    }

    /// Whether a collector waits for this spool, which [`Spool::take_over`] has opened.
    pub fn is_wanted(&self) -> bool {
        slots::is_wanted(&self.folder)
    }

    fn open_on(folder: PathBuf, gives_way: bool, max_bytes: u64, as_disk: AsDisk) -> Result<Self, OpenError> {
        let Opened { lock, producer, confirmed_file, segments, active, next, confirmed } =
            open(&folder, gives_way, &as_disk)?;
        let (bell, bell_rings) = crossbeam_channel::bounded(1);
        let segment_bytes = (max_bytes / 4).clamp(SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES);
        let shards = Shards::read(&folder, producer)
            .map_err(|error| OpenError::Disk { path: folder.join("shards"), error })?;
        let spool = Spool {
            producer,
            max_bytes,
            segment_bytes,
            lock,
            confirmed_file,
            writer: Mutex::new(Writer { active }),
            state: Mutex::new(State { segments, next, confirmed }),
            shards: Mutex::new(shards),
            bell,
            bell_rings,
            as_disk,
            folder,
        };
        spool.tidy();
        Ok(spool)
    }

    /// Makes a segment, all of it, before there is a visit that would have to wait for it; does nothing where the
    /// newest one has room. Where that fails, the first append tries again, and its error counts.
    pub fn prepare(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.state().next;
        if !writer.active.as_ref().is_some_and(|active| active.fits(record_bytes(PREFIX_BYTES)))
            && let Err(error) = self.rotate(&mut writer, next, self.segment_bytes)
        {
            log::debug!("{error}");
        }
    }

    /// Has the visits that are appended from now on go to so many shards. Those before keep theirs, as they may have
    /// gone there already.
    ///
    /// # Errors
    /// What the system said: then nothing has changed.
    pub fn shard_into(&self, count: u32) -> io::Result<()> {
        let (oldest, next) = {
            let state = self.state();
            // What is confirmed may come again, as its note is not synced: to the same shard, whose ledger knows it.
            (state.segments.front().map_or(state.confirmed.sequence, |segment| segment.first), state.next)
        };
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let new = shards.with(count, oldest, next);
        if new != *shards {
            new.write(&self.folder)?;
            *shards = new;
        }
        Ok(())
    }

    /// The shards that the visits which wait here, and those that are appended, go to.
    pub fn shards(&self) -> Vec<Shard> {
        let confirmed = self.state().confirmed.sequence;
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).in_use(confirmed)
    }

    /// The folder of this spool.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many visits wait to be confirmed.
    pub fn visits(&self) -> u64 {
        let state = self.state();
        state.next - state.confirmed.sequence
    }

    /// How many bytes of journal they take.
    pub fn bytes(&self) -> u64 {
        self.state().bytes()
    }

    /// When the oldest visit was received that waits to be confirmed; `None` where none does, or where it cannot be
    /// read.
    pub fn oldest_received_at(&self) -> Option<Timestamp> {
        let place = {
            let state = self.state();
            state.at(state.confirmed).filter(|place| place.position.offset < place.end)?
        };
        let mut record = Vec::new();
        let mut reader = Reader::new(&self.state, &self.as_disk, self.producer);
        reader.read(&place, &mut record).ok()??;
        let line = record.get(PREFIX_BYTES..)?.split(|byte| *byte == b'\n').next()?;
        serde_json::from_slice::<Visit<'_>>(line).ok().map(|visit| visit.received_at)
    }

    /// The most that waiting visits may take, in bytes: an append past it is refused.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Waits until every visit is safe elsewhere, at most for `patience`.
    pub fn drain(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while self.visits() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What stays in it for the next start, in words.
    pub fn what_stays(&self) -> String {
        match self.visits() {
            0 => "nothing stays in the spool".into(),
            visits => format!("{visits} visits stay in the spool for the next start"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        State::lock(&self.state)
    }

    /// Lets go of the segments whose visits are all confirmed.
    fn tidy(&self) {
        self.forget(self.confirmed());
    }

    /// Seals the segment in use and starts the next, which begins with the sequence `next`.
    fn rotate(&self, writer: &mut Writer, next: u64, needed: u64) -> Result<(), StoreError> {
        if let Some(active) = &mut writer.active {
            active.journal.seal().map_err(store_error(&self.folder))?;
            writer.active = None;
        }
        let path = segment::path(&self.folder, next);
        let wanted = self.segment_bytes.max(needed);
        let created = create(&self.folder, &path, needed.max(wanted / 8 * 7)..=wanted, &self.as_disk);
        let (file, recycled) = created.map_err(store_error(&path))?;
        let mut state = self.state();
        if state.segments.back().is_some_and(|newest| newest.first == next) {
            // The newest segment never got a record. The new one has the same first sequence, hence the same
            // name, and has just replaced it.
            state.segments.pop_back();
        }
        if state.segments.is_empty() {
            state.confirmed = Position { sequence: next, segment: next, offset: 0 };
        }
        if let Some(newest) = state.segments.back_mut() {
            newest.file = None;
        }
        state.segments.push_back(Segment {
            first: next,
            end: 0,
            path: path.as_path().into(),
            file: Some(file.clone()),
        });
        drop(state);
        // The new name carries the next sequence from here on: the segment before it may go, and on a
        // disk that is full it has to.
        self.tidy();
        let capacity = match recycled {
            Some(capacity) => capacity,
            // It may need the room of the one that was just given up.
            None => remove_spare(&self.folder)
                .and_then(|()| preallocate(&*file, wanted, needed))
                .map_err(store_error(&path))?,
        };
        writer.active = Some(Active { journal: Journal::create(file), capacity, is_spent: false });
        Ok(())
    }
}

impl VisitStore for Spool {
    fn append(&self, lines: &[u8], count: u32) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let record = record_bytes(PREFIX_BYTES + lines.len());
        let (first, held) = {
            let state = self.state();
            (state.next, state.bytes())
        };
        if held + record > self.max_bytes {
            return Err(StoreError::Full { max_bytes: self.max_bytes });
        }
        if !writer.active.as_ref().is_some_and(|active| active.fits(record)) {
            self.rotate(&mut writer, first, record)?;
        }
        let active = writer.active.as_mut().expect("rotate left a segment in use");
        let appended = active.journal.append(&[&first.to_le_bytes(), &count.to_le_bytes(), lines]);
        active.is_spent = appended.is_err();
        appended.map_err(store_error(&self.folder))?;
        let mut state = self.state();
        state.next = first + u64::from(count);
        let newest = state.segments.back_mut().expect("the segment in use is the newest");
        newest.end = active.journal.end();
        drop(state);
        // A full bell has rung already.
        let _ = self.bell.try_send(());
        Ok(())
    }
}

impl Backlog for Spool {
    fn confirmed(&self) -> Position {
        self.state().confirmed
    }

    fn read(&self, from: Position, max_bytes: usize) -> io::Result<Option<Reading>> {
        let mut position = from;
        let mut message =
            Message { producer: self.producer, first: from.sequence, count: 0, body: Vec::new() };
        let mut record = Vec::new();
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut shard = None;
        let mut reader = Reader::new(&self.state, &self.as_disk, self.producer);
        while message.body.len() < max_bytes {
            let Some(place) = self.state().at(position) else { break };
            position = place.position;
            // The next segment may start behind a gap, where the one before it was damaged: a message's
            // visits are numbered without one.
            let goes_to = shards.of(position.sequence);
            if message.count == 0 {
                (message.first, shard) = (position.sequence, goes_to);
            } else if position.sequence != message.first + message.count || goes_to != shard {
                break;
            }
            if position.offset >= place.end {
                break;
            }
            let read = match reader.read(&place, &mut record) {
                // What was read before is good. The next reading starts here.
                Ok(None) | Err(_) if message.count > 0 => break,
                read => read?,
            };
            let Some((next, count)) = read else {
                position = reader.step_over(&place)?;
                continue;
            };
            let lines = &record[PREFIX_BYTES..];
            if message.count > 0 && message.body.len() + lines.len() > max_bytes {
                break;
            }
            message.count += u64::from(count);
            message.body.extend_from_slice(lines);
            position.sequence += u64::from(count);
            position.offset = next;
        }
        Ok((message.count > 0).then_some(Reading { message, end: position, shard }))
    }

    fn visits(&self) -> u64 {
        Spool::visits(self)
    }

    fn bytes_after(&self, from: Position) -> u64 {
        let state = self.state();
        let left = state.segments.iter().map(|segment| match segment.first.cmp(&from.segment) {
            Less => 0,
            Equal => segment.end.saturating_sub(from.offset),
            Greater => segment.end,
        });
        left.sum()
    }

    fn forget(&self, up_to: Position) {
        let mut state = self.state();
        if up_to.sequence < state.confirmed.sequence {
            return;
        }
        state.confirmed = up_to;
        let mut obsolete = Vec::new();
        while state.segments.len() > 1 && state.segments[1].first <= up_to.sequence {
            obsolete.extend(state.segments.pop_front());
        }
        if let Some(oldest) = state.segments.front()
            && oldest.first > state.confirmed.segment
        {
            let first = oldest.first;
            state.confirmed = Position { sequence: up_to.sequence, segment: first, offset: 0 };
        }
        drop(state);
        let mut note = up_to.sequence.to_le_bytes().to_vec();
        note.extend_from_slice(&crc32fast::hash(&note).to_le_bytes());
        // Not synced: a note that is lost or late makes for duplicates, which the ledger drops.
        if let Err(error) = self.confirmed_file.write_at(&note, 0) {
            log::warn!("failed to note what is confirmed in `{}`: {error}", self.folder.display());
        }
        for segment in obsolete {
            if let Err(error) = recycle(&self.folder, &segment.path) {
                log::warn!("failed to remove `{}`: {error}", segment.path.display());
            }
        }
    }

    fn bell(&self) -> &Receiver<()> {
        &self.bell_rings
    }
}

fn store_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |error| StoreError::Disk { path: path.clone(), error }
}

#[cfg(test)]
mod tests;
