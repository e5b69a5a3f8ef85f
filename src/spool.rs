//! The spool: a durable queue of visits on disk, numbered by this producer.
//!
//! A folder of segments, each a journal named after its first sequence. Appending is one write into a
//! preallocated segment and one fdatasync. What the broker confirmed is forgotten by deleting whole
//! segments; the file `confirmed` remembers the rest, and may lag: the ledger drops what is sent twice.
//! The newest segment is never deleted, as it carries the next sequence.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use crate::collect::{StoreError, VisitStore};
use crate::disk::{DiskFile, folder_of, read_whole, sync_folder};
use crate::journal::{Journal, find_record, read_record, record_bytes};
use crate::relay::{Backlog, Position, Reading};
use crate::wire::Message;

/// A segment's size: large enough that creating one is rare, small enough that a disk nearly full is
/// used to its end.
const SEGMENT_MAX_BYTES: u64 = 8 << 20;
const SEGMENT_MIN_BYTES: u64 = 64 << 10;
const SEGMENT_SUFFIX: &str = ".spool";
const FIRST_SEQUENCE: u64 = 1;
/// The sequence of a record's first visit and the number of its visits.
const PREFIX_BYTES: usize = 12;

/// A spool that this process holds. Clones of the `Arc` share it: workers append, one reader reads.
pub struct Spool {
    folder: PathBuf,
    producer: Uuid,
    max_bytes: u64,
    segment_bytes: u64,
    // Held for the spool's life: one process per spool.
    _lock: File,
    confirmed_file: File,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    bell: Sender<()>,
    bell_rings: Receiver<()>,
}

/// Locked for a whole append. `None` until the first append, and after one that failed.
struct Writer {
    active: Option<(Journal, u64)>,
}

/// Locked for moments only.
struct State {
    segments: VecDeque<Segment>,
    next: u64,
    confirmed: Position,
}

struct Segment {
    first: u64,
    end: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// Why a spool cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process holds it.
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder's process id, as it wrote it.
        holder: String,
    },
    /// The disk refused.
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Held { path, holder } => write!(
                formatter,
                "the spool is held by process {holder} (its lock is `{}`): give each process its own --spool-dir",
                path.display()
            ),
            OpenError::Disk { path, error } => {
                write!(formatter, "failed to open the spool at `{}`: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for OpenError {}

impl Spool {
    /// Opens the spool in `folder`, creating it where it is absent. With `slots` over 1 the spool is
    /// the first free one of the subfolders `0` to `slots - 1`, so that replicas can share a volume.
    ///
    /// # Errors
    /// [`OpenError::Held`] where every slot is another process's, [`OpenError::Disk`] otherwise.
    pub fn open(folder: &Path, slots: u32, max_bytes: u64) -> Result<Self, OpenError> {
        if slots <= 1 {
            return Self::open_slot(folder.to_path_buf(), max_bytes);
        }
        let mut held = None;
        for slot in 0..slots {
            match Self::open_slot(folder.join(slot.to_string()), max_bytes) {
                Err(error @ OpenError::Held { .. }) => held = Some(error),
                opened => return opened,
            }
        }
        Err(held.expect("there are at least two slots, and each was held"))
    }

    fn open_slot(folder: PathBuf, max_bytes: u64) -> Result<Self, OpenError> {
        create_folder(&folder).map_err(at(&folder))?;
        let lock = hold(&folder.join("lock"))?;
        let (segments, next) = open_segments(&folder)?;
        let producer = producer(&folder, segments.is_empty())?;
        let confirmed_path = folder.join("confirmed");
        let confirmed_file = open_file(&confirmed_path).map_err(at(&confirmed_path))?;
        if segments.is_empty() {
            // It belongs to numbers that are no longer this producer's.
            confirmed_file
                .set_len(0)
                .and_then(|()| confirmed_file.sync_all())
                .map_err(at(&confirmed_path))?;
        }
        let confirmed = read_confirmed(&confirmed_file).map_err(at(&confirmed_path))?;
        let next = next.max(confirmed.unwrap_or(FIRST_SEQUENCE));
        let confirmed = locate(&segments, next, confirmed).map_err(at(&folder))?;
        let (bell, bell_rings) = crossbeam_channel::bounded(1);
        let segment_bytes = (max_bytes / 4).clamp(SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES);
        let spool = Spool {
            producer,
            max_bytes,
            segment_bytes,
            _lock: lock,
            confirmed_file,
            writer: Mutex::new(Writer { active: None }),
            state: Mutex::new(State { segments, next, confirmed }),
            bell,
            bell_rings,
            folder,
        };
        spool.forget(spool.confirmed());
        Ok(spool)
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

    /// The cap in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed: each change is a few plain assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves `position` over what the disk has damaged there, to the next whole record before `end`, or to
    /// the segment's end. The audit shows the gap, and a link keeps the segment for a person to look at.
    fn step_over(&self, position: &mut Position, file: &dyn DiskFile, end: u64) -> io::Result<()> {
        let mut record = Vec::new();
        let behind = find_record(file, position.offset)?.filter(|behind| *behind < end);
        let first = match behind {
            Some(behind) => read_record(file, behind, &mut record)?.and_then(|_| split(&record)),
            None => None,
        };
        let first = first.map(|(first, ..)| first).filter(|first| *first >= position.sequence);
        let mut state = self.state();
        let Some(at) = state.segments.iter().position(|segment| segment.first == position.segment) else {
            return Ok(());
        };
        let next = state.segments.get(at + 1).map_or(state.next, |next| next.first);
        let segment = &mut state.segments[at];
        let damaged = position.offset;
        let (offset, after) = match behind.zip(first) {
            Some(found) => found,
            None => {
                segment.end = damaged;
                (damaged, next)
            }
        };
        let kept = segment.path.with_extension("damaged");
        match fs::hard_link(&segment.path, &kept) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                log::warn!("failed to link `{}`: {error}", kept.display());
            }
            _ => {}
        }
        log::error!(
            "`{}` is damaged at byte {damaged}: visits {} to {} cannot be read; the file is kept as `{}`",
            segment.path.display(),
            position.sequence,
            after - 1,
            kept.display(),
        );
        *position = Position { sequence: after, offset, ..*position };
        Ok(())
    }

    /// Seals the segment in use and starts the next, which begins with the sequence `next`.
    fn rotate(&self, writer: &mut Writer, next: u64, needed: u64) -> Result<(), StoreError> {
        if let Some((journal, _)) = &mut writer.active {
            journal.seal().map_err(store_error(&self.folder))?;
            writer.active = None;
        }
        let path = self.folder.join(format!("{next:020}{SEGMENT_SUFFIX}"));
        let file: Arc<dyn DiskFile> =
            Arc::new(create_segment(&self.folder, &path).map_err(store_error(&path))?);
        let mut state = self.state();
        if state.segments.back().is_some_and(|newest| newest.first == next) {
            // It was left empty, and its file is the one that was just emptied again.
            state.segments.pop_back();
        }
        if state.segments.is_empty() {
            state.confirmed = Position { sequence: next, segment: next, offset: 0 };
        }
        state.segments.push_back(Segment { first: next, end: 0, path: path.clone(), file: file.clone() });
        drop(state);
        // The new name carries the next sequence from here on: the segment before it may go, and on a
        // disk that is full it has to.
        self.forget(self.confirmed());
        let capacity = preallocate(&*file, self.segment_bytes.max(needed), needed);
        let capacity = capacity.map_err(store_error(&path))?;
        writer.active = Some((Journal::create(file), capacity));
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
        let fits = |(journal, capacity): &(Journal, u64)| journal.end() + record <= *capacity;
        if !writer.active.as_ref().is_some_and(fits) {
            self.rotate(&mut writer, first, record)?;
        }
        let (journal, capacity) = writer.active.as_mut().expect("rotate left a segment in use");
        let appended = journal.append(&[&first.to_le_bytes(), &count.to_le_bytes(), lines]);
        if appended.is_err() {
            // No longer used: the next append repairs it, seals it and starts another.
            *capacity = 0;
        }
        appended.map_err(store_error(&self.folder))?;
        let mut state = self.state();
        state.next = first + u64::from(count);
        let newest = state.segments.back_mut().expect("the segment in use is the newest");
        newest.end = journal.end();
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
        while message.body.len() < max_bytes {
            let Some((file, offset, end)) = self.state().segment_at(&mut position) else { break };
            // The next segment may start behind a gap, where the one before it was damaged: a message's
            // visits are numbered without one.
            if message.count == 0 {
                message.first = position.sequence;
            } else if position.sequence != message.first + message.count {
                break;
            }
            if offset >= end {
                break;
            }
            let next = read_record(&*file, offset, &mut record)?.filter(|next| *next <= end);
            let whole = next.zip(split(&record)).filter(|(_, (first, ..))| *first == position.sequence);
            let Some((next, (_, count, lines))) = whole else {
                if message.count > 0 {
                    break;
                }
                self.step_over(&mut position, &*file, end)?;
                continue;
            };
            if message.count > 0 && message.body.len() + lines.len() > max_bytes {
                break;
            }
            message.count += u64::from(count);
            message.body.extend_from_slice(lines);
            position.sequence += u64::from(count);
            position.offset = next;
        }
        Ok((message.count > 0).then_some(Reading { message, end: position }))
    }

    fn bytes_after(&self, from: Position) -> u64 {
        let state = self.state();
        let later = state.segments.iter().filter(|segment| segment.first >= from.segment);
        later.map(|segment| segment.end).sum::<u64>().saturating_sub(from.offset)
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
            if let Err(error) = fs::remove_file(&segment.path) {
                log::warn!("failed to remove `{}`: {error}", segment.path.display());
            }
        }
    }

    fn bell(&self) -> &Receiver<()> {
        &self.bell_rings
    }
}

impl State {
    fn bytes(&self) -> u64 {
        let total: u64 = self.segments.iter().map(|segment| segment.end).sum();
        total.saturating_sub(self.confirmed.offset)
    }

    /// The segment that `position` is in, where in it, and where it ends; a position at a segment's
    /// end moves on to the next segment.
    fn segment_at(&self, position: &mut Position) -> Option<(Arc<dyn DiskFile>, u64, u64)> {
        let at = self.segments.iter().position(|segment| segment.first == position.segment);
        let mut index = at.or_else(|| (!self.segments.is_empty()).then_some(0))?;
        if at.is_none() {
            let oldest = &self.segments[0];
            *position = Position { sequence: oldest.first, segment: oldest.first, offset: 0 };
        }
        if position.offset >= self.segments[index].end && index + 1 < self.segments.len() {
            index += 1;
            let next = self.segments[index].first;
            *position = Position { sequence: next, segment: next, offset: 0 };
        }
        let segment = &self.segments[index];
        Some((segment.file.clone(), position.offset, segment.end))
    }
}

/// A record's first sequence, count and lines.
fn split(record: &[u8]) -> Option<(u64, u32, &[u8])> {
    let (first, rest) = record.split_first_chunk::<8>()?;
    let (count, lines) = rest.split_first_chunk::<4>()?;
    Some((u64::from_le_bytes(*first), u32::from_le_bytes(*count), lines))
}

fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |error| OpenError::Disk { path: path.clone(), error }
}

fn store_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |error| StoreError::Disk { path: path.clone(), error }
}

/// Creates the folder and those above it. Their names are durable: a power cut must not take away a folder
/// whose files are synced.
fn create_folder(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        let above = folder_of(folder);
        if above == folder {
            // The folder that this process was started in is gone.
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        create_folder(above)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(above)?,
        }
    }
    Ok(())
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)
}

fn hold(path: &Path) -> Result<File, OpenError> {
    let mut file = open_file(path).map_err(at(path))?;
    if let Err(error) = fs2::FileExt::try_lock_exclusive(&file) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(OpenError::Disk { path: path.into(), error });
        }
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(at(path))?;
        return Err(OpenError::Held { path: path.into(), holder: holder.trim().into() });
    }
    // The id is for people; the lock is flock's.
    let written = file.set_len(0).and_then(|()| file.rewind());
    written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(at(path))?;
    Ok(file)
}

/// The spool's UUID, made and made durable when it has no segments: without them nobody knows which
/// numbers the old UUID has given away, and a visit under a number that was used is taken for a duplicate.
fn producer(folder: &Path, is_new: bool) -> Result<Uuid, OpenError> {
    let path = folder.join("producer");
    match fs::read_to_string(&path) {
        Ok(text) if !is_new => Uuid::parse_str(text.trim())
            .map_err(|error| at(&path)(io::Error::new(io::ErrorKind::InvalidData, error))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
        _ => {
            let producer = Uuid::new_v4();
            let draft = folder.join("producer.new");
            let write = || {
                let mut file = File::create(&draft)?;
                writeln!(file, "{producer}")?;
                file.sync_all()?;
                fs::rename(&draft, &path)?;
                sync_folder(folder)
            };
            write().map_err(at(&path))?;
            Ok(producer)
        }
    }
}

/// The first sequence that is not confirmed; `None` where the note is absent or torn.
fn read_confirmed(file: &File) -> io::Result<Option<u64>> {
    let mut note = [0; 12];
    if !read_whole(file, &mut note, 0)? {
        return Ok(None);
    }
    let (sequence, crc) = note.split_first_chunk::<8>().expect("the note has 12 bytes");
    let intact = crc32fast::hash(sequence).to_le_bytes() == crc;
    Ok(intact.then_some(u64::from_le_bytes(*sequence)))
}

/// Every segment, oldest first, each with its true end; and the next sequence.
fn open_segments(folder: &Path) -> Result<(VecDeque<Segment>, u64), OpenError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(first) = name.strip_suffix(SEGMENT_SUFFIX).and_then(|first| first.parse().ok()) {
            paths.push((first, path));
        }
    }
    paths.sort();
    let newest = paths.len().saturating_sub(1);
    let mut segments = VecDeque::new();
    let mut next = FIRST_SEQUENCE;
    for (index, (first, path)) in paths.into_iter().enumerate() {
        let file: Arc<dyn DiskFile> = Arc::new(open_file(&path).map_err(at(&path))?);
        // Only the newest can end in a torn append or in preallocated zeros: the others are sealed.
        let end;
        if index == newest {
            (end, next) = replay(first, &*file).map_err(at(&path))?;
        } else {
            end = file.len().map_err(at(&path))?;
        }
        segments.push_back(Segment { first, end, path, file });
    }
    Ok((segments, next))
}

/// Cuts off what follows the newest segment's last whole record, durably; returns its end in bytes and the
/// next sequence. What stands behind a damaged place counts: its numbers were given away.
fn replay(first: u64, file: &dyn DiskFile) -> io::Result<(u64, u64)> {
    let (mut end, mut next, mut record) = (0, first, Vec::new());
    loop {
        while let Some(behind) = read_record(file, end, &mut record)?
            && let Some((sequence, count, _)) = split(&record)
            && sequence >= next
        {
            end = behind;
            next = sequence + u64::from(count);
        }
        match find_record(file, end)? {
            Some(behind) => end = behind,
            None => break,
        }
    }
    file.set_len(end)?;
    file.sync()?;
    Ok((end, next))
}

/// Where the first unconfirmed record stands.
fn locate(segments: &VecDeque<Segment>, next: u64, confirmed: Option<u64>) -> io::Result<Position> {
    let Some(oldest) = segments.front().map(|oldest| oldest.first) else {
        return Ok(Position { sequence: next, segment: next, offset: 0 });
    };
    let sequence = confirmed.unwrap_or(oldest).max(oldest);
    let holder = segments.iter().rev().find(|segment| segment.first <= sequence).unwrap_or(&segments[0]);
    let mut position = Position { sequence: holder.first, segment: holder.first, offset: 0 };
    let mut record = Vec::new();
    while position.offset < holder.end {
        let Some(end) = read_record(&*holder.file, position.offset, &mut record)? else {
            // It may be damaged where everything is confirmed.
            let behind = find_record(&*holder.file, position.offset)?.filter(|behind| *behind < holder.end);
            let Some(behind) = behind else { break };
            position.offset = behind;
            continue;
        };
        let Some((first, count, _)) = split(&record) else { break };
        position.sequence = first;
        if first >= sequence {
            break;
        }
        position.sequence = first + u64::from(count);
        position.offset = end;
    }
    // At the end of a journal that holds nothing newer, the confirmed sequence stands for itself.
    position.sequence = position.sequence.max(sequence.min(next));
    Ok(position)
}

/// Creates an empty segment; its name is durable.
fn create_segment(folder: &Path, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o640).open(path)?;
    file.sync_all()?;
    sync_folder(folder)?;
    Ok(file)
}

/// Fills a segment with zeros, up to `wanted` bytes, or as many as the disk has where that is at least
/// `needed`; returns how many. So an append writes no metadata (measured: 1.7 times the appends a
/// second), and a disk runs full here, not in the middle of a record.
fn preallocate(file: &dyn DiskFile, wanted: u64, needed: u64) -> io::Result<u64> {
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

#[cfg(test)]
mod tests;
