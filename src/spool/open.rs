//! Opening a spool: whose it is, what it holds, and where its numbers go on.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::damage::Legible;
use super::segment::{Active, AsDisk, Segment, first_sequence, records, remove_spare};
use crate::disk::journal::Journal;
use crate::disk::{keep_names, open_private, read_whole, sync_folder};
use crate::queue::Position;

/// The number of a producer's first visit.
pub(super) const FIRST_SEQUENCE: u64 = 1;
/// The format of a spool's folder. Format 1 had no line for it, and a Pixel of then takes a second line for a bad
/// UUID, so that it refuses what is newer.
const FORMAT: u32 = 2;
const PRODUCER: &str = "producer";
const CONFIRMED: &str = "confirmed";
/// The file that a spool's process holds.
pub(super) const LOCK: &str = "lock";
/// The file that a collector holds which wants a slot that another relays.
pub(super) const WANTED: &str = "wanted";
/// What stands behind the process id of one that gives way.
const GIVES_WAY: &str = "gives way";

/// What an address stands behind.
const LISTENING: &str = "listening on ";

/// Why a spool cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process holds it.
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder's process id, as it wrote it.
        holder: String,
        /// Where it listens, as it wrote it; empty where it did not.
        listening: String,
        /// Whether it relays what others have left there, and lets go of it for a collector that wants it.
        gives_way: bool,
    },
    /// A newer Pixel has written it.
    Newer {
        /// Its folder.
        folder: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The disk refused.
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Held { path, holder, listening, .. } => write!(
                formatter,
                "Pixel already runs here as process {holder} ({listening}{}it holds `{}`). Stop it, or give this one its own \
                 --spool-dir, --output, --listen and --admin-listen",
                if listening.is_empty() { "" } else { "; " },
                path.display()
            ),
            OpenError::Newer { folder, format } => write!(
                formatter,
                "the spool `{}` has format {format}, and this Pixel knows none above {FORMAT}: start the newer Pixel \
                 again, or give this one another --spool-dir",
                folder.display()
            ),
            OpenError::Disk { path, error } => {
                write!(formatter, "failed to open the spool at `{}`: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// What was found in a spool's folder, and is held.
pub(super) struct Opened {
    /// Held for the spool's life: one process per spool.
    pub lock: File,
    /// Who numbers.
    pub producer: Uuid,
    /// The note of what is confirmed.
    pub confirmed_file: File,
    /// Oldest first.
    pub segments: VecDeque<Segment>,
    /// The newest of them, where it can be gone on with.
    pub active: Option<Active>,
    /// The next sequence.
    pub next: u64,
    /// Before the oldest visit that is not confirmed.
    pub confirmed: Position,
}

/// Opens the spool in `folder`, creating it where it is absent. Who `gives_way` has it for a collector that is gone.
pub(super) fn open(folder: &Path, gives_way: bool, as_disk: &AsDisk) -> Result<Opened, OpenError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let lock = hold(&folder.join(LOCK), gives_way)?;
    let known = read_producer(folder)?;
    // This start may create a new producer that counts from 1. Old records in the spare would then have higher
    // numbers and pass for new ones.
    remove_spare(folder).map_err(at(folder))?;
    let mut segments = segments(folder).map_err(at(folder))?;
    let (next, mut active) = match segments.back_mut() {
        Some(newest) => go_on(newest, as_disk).map_err(at(&newest.path))?,
        None => (FIRST_SEQUENCE, None),
    };
    if segments.is_empty() {
        // Not where they are made: an earlier start may have been killed right behind that.
        keep_names(folder);
    }
    let producer = producer(folder, known.filter(|_| !segments.is_empty()))?;
    let confirmed_path = folder.join(CONFIRMED);
    let confirmed_file = open_private(&confirmed_path).map_err(at(&confirmed_path))?;
    if segments.is_empty() {
        // It belongs to numbers that are no longer this producer's.
        confirmed_file.set_len(0).and_then(|()| confirmed_file.sync_all()).map_err(at(&confirmed_path))?;
    }
    let confirmed = read_confirmed(&confirmed_file).unwrap_or_else(|error| {
        log::warn!("failed to read `{}`: {error}; what is confirmed comes again", confirmed_path.display());
        None
    });
    if let Some((active, confirmed)) = active.as_mut().zip(confirmed) {
        // Records of one segment are numbered without a gap.
        active.is_spent |= confirmed > next;
    }
    let next = next.max(confirmed.unwrap_or(FIRST_SEQUENCE));
    let confirmed = locate(&segments, next, confirmed, as_disk);
    Ok(Opened { lock, producer, confirmed_file, segments, active, next, confirmed })
}

fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |error| OpenError::Disk { path: path.clone(), error }
}

fn hold(path: &Path, gives_way: bool) -> Result<File, OpenError> {
    let mut file = open_private(path).map_err(at(path))?;
    if let Err(error) = fs2::FileExt::try_lock_exclusive(&file) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(OpenError::Disk { path: path.into(), error });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(at(path))?;
        let mut lines = text.lines();
        let holder = lines.next().unwrap_or_default().into();
        let note = lines.next().unwrap_or_default();
        let gives_way = note == GIVES_WAY;
        let listening = if note.starts_with(LISTENING) { note.into() } else { String::new() };
        return Err(OpenError::Held { path: path.into(), holder, listening, gives_way });
    }
    note(&file, if gives_way { GIVES_WAY } else { "" }).map_err(at(path))?;
    Ok(file)
}

/// Tells whoever wants the spool, too, where its process listens.
pub(super) fn note_address(lock: &File, address: &str) -> io::Result<()> {
    note(lock, &format!("{LISTENING}{address}"))
}

/// Writes the process id, and `note` behind it. They are for people; the lock is flock's.
fn note(lock: &File, note: &str) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all_at(format!("{}\n{note}\n", std::process::id()).as_bytes(), 0)
}

/// The UUID and the format that stand in a spool's folder; `None` where nothing does.
pub(super) fn read_producer(folder: &Path) -> Result<Option<(Uuid, u32)>, OpenError> {
    let path = folder.join(PRODUCER);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(at(&path))?,
    };
    let mut lines = text.lines();
    let producer = Uuid::parse_str(lines.next().unwrap_or_default());
    let format = lines.next().map_or(Some(1), |line| line.strip_prefix("format ")?.parse().ok());
    match (producer, format) {
        (_, Some(format)) if format > FORMAT => Err(OpenError::Newer { folder: folder.into(), format }),
        (Ok(producer), Some(format)) => Ok(Some((producer, format))),
        _ => {
            let text = "it is no UUID with a format on the second line";
            Err(at(&path)(io::Error::new(io::ErrorKind::InvalidData, text)))
        }
    }
}

/// The UUID of a spool, noted durably in today's format. A spool without segments (`known` is `None` then) gets a
/// new one: nobody knows which numbers the old one has given away, and a visit under a number that was used is taken
/// for a duplicate.
fn producer(folder: &Path, known: Option<(Uuid, u32)>) -> Result<Uuid, OpenError> {
    let producer = match known {
        Some((producer, FORMAT)) => return Ok(producer),
        Some((producer, _)) => producer,
        None => Uuid::new_v4(),
    };
    let (path, draft) = (folder.join(PRODUCER), folder.join("producer.new"));
    let write = || {
        let mut file = File::create(&draft)?;
        writeln!(file, "{producer}\nformat {FORMAT}")?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_folder(folder)
    };
    write().map_err(at(&path))?;
    Ok(producer)
}

/// The first sequence of `folder` that is not confirmed; `None` where nothing is noted.
pub(super) fn confirmed_in(folder: &Path) -> io::Result<Option<u64>> {
    match File::open(folder.join(CONFIRMED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => read_confirmed(&file?),
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

/// The segments of a spool's folder, oldest first, each up to the end of its file.
pub(super) fn segments(folder: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(first) = first_sequence(&path) else { continue };
        match fs::metadata(&path) {
            // Of a spool in use: it was given up since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => segments.push(Segment { first, end: found?.len(), path: path.into(), file: None }),
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments.into())
}

/// Finds the newest segment's end, makes what it holds durable, and goes on with it where it is whole; returns the
/// next sequence. What stands behind a damaged place counts: its numbers were given away.
fn go_on(newest: &mut Segment, as_disk: &AsDisk) -> io::Result<(u64, Option<Active>)> {
    let file = match OpenOptions::new().read(true).write(true).open(&newest.path) {
        Ok(file) => as_disk(file),
        Err(error) => return Ok((begin_above(newest, newest.first + newest.end, &error), None)),
    };
    let (mut last, mut end, mut next, mut is_whole) = (0, 0, newest.first, true);
    let legible = Legible::read(&*file)?;
    for found in records(&legible.bytes, newest.first) {
        is_whole &= (found.start, found.first) == (end, next);
        (last, end, next) = (found.start, found.end, found.next);
    }
    let journal = Journal::open_at(file.clone(), last, end)?;
    let capacity = legible.bytes.len() as u64;
    let Some((error, hidden_to)) = legible.hidden else {
        newest.end = end;
        newest.file = Some(file);
        return Ok((next, Some(Active { journal, capacity, is_spent: !is_whole })));
    };
    if hidden_to > end {
        next += capacity - end;
    } else {
        newest.end = end;
    }
    Ok((begin_above(newest, next, &error), None))
}

/// Says that new visits are numbered from `next` on: above one for each byte that cannot be read, as a visit has at
/// least one byte.
fn begin_above(newest: &Segment, next: u64, error: &io::Error) -> u64 {
    let path = newest.path.display();
    log::error!("failed to read `{path}`: {error}; new visits are numbered from {next} on");
    next
}

/// Where the first unconfirmed record stands, or a place before it that cannot be read.
fn locate(segments: &VecDeque<Segment>, next: u64, confirmed: Option<u64>, as_disk: &AsDisk) -> Position {
    let Some(oldest) = segments.front().map(|oldest| oldest.first) else {
        return Position { sequence: next, segment: next, offset: 0 };
    };
    let sequence = confirmed.unwrap_or(oldest).max(oldest);
    let holder = segments.iter().rev().find(|segment| segment.first <= sequence).unwrap_or(&segments[0]);
    let mut position = Position { sequence: holder.first, segment: holder.first, offset: 0 };
    if position.sequence == sequence {
        return position;
    }
    let Ok(legible) = holder.open(as_disk).and_then(|file| Legible::read(&*file)) else {
        return position;
    };
    for found in records(&legible.bytes, holder.first) {
        if found.first > position.sequence.max(sequence) {
            // Visits that are not confirmed stand before it, where it is damaged or cannot be read.
            return position;
        }
        (position.sequence, position.offset) = (found.first, found.start);
        if found.next > sequence {
            return position;
        }
        (position.sequence, position.offset) = (found.next, found.end);
    }
    if legible.hidden.is_none_or(|(_, hidden_to)| hidden_to <= position.offset) {
        // At the end of a journal that holds nothing newer, the confirmed sequence stands for itself.
        position.sequence = position.sequence.max(sequence.min(next));
    }
    position
}
