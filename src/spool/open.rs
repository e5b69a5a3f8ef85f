//! Opening a spool: whose it is, what it holds, and where its numbers go on.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::segment::{Segment, first_sequence, follows, remove_spare, split};
use crate::disk::journal::{find_record, read_record};
use crate::disk::{DiskFile, open_private, read_whole, sync_folder};
use crate::queue::Position;

pub(super) const FIRST_SEQUENCE: u64 = 1;

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

impl fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Held { path, holder } => write!(
                formatter,
                "Pixel already runs here as process {holder} (it holds `{}`). Stop it, or give this one its own \
                 --spool-dir, --output, --listen and --admin-listen",
                path.display()
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
    /// The next sequence.
    pub next: u64,
    /// Before the oldest visit that is not confirmed.
    pub confirmed: Position,
}

/// Opens the spool in `folder`, creating it where it is absent.
pub(super) fn open(folder: &Path) -> Result<Opened, OpenError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let lock = hold(&folder.join("lock"))?;
    // This start may create a new producer that counts from 1. Old records in the spare would then have higher
    // numbers and pass for new ones.
    remove_spare(folder).map_err(at(folder))?;
    let (segments, next) = open_segments(folder)?;
    if segments.is_empty() {
        // Not where they are made: an earlier start may have been killed right behind that.
        keep_names(folder);
    }
    let producer = producer(folder, segments.is_empty())?;
    let confirmed_path = folder.join("confirmed");
    let confirmed_file = open_private(&confirmed_path).map_err(at(&confirmed_path))?;
    if segments.is_empty() {
        // It belongs to numbers that are no longer this producer's.
        confirmed_file.set_len(0).and_then(|()| confirmed_file.sync_all()).map_err(at(&confirmed_path))?;
    }
    let confirmed = read_confirmed(&confirmed_file).map_err(at(&confirmed_path))?;
    let next = next.max(confirmed.unwrap_or(FIRST_SEQUENCE));
    let confirmed = locate(&segments, next, confirmed).map_err(at(folder))?;
    Ok(Opened { lock, producer, confirmed_file, segments, next, confirmed })
}

fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |error| OpenError::Disk { path: path.clone(), error }
}

/// Makes the names of a new spool's folder and of those above it durable: a power cut must not take away a
/// folder whose files are synced. One that was there before has a name already, and may be closed to us.
fn keep_names(folder: &Path) {
    for above in folder.ancestors().skip(1) {
        let above = if above == Path::new("") { Path::new(".") } else { above };
        if let Err(error) = sync_folder(above) {
            log::warn!("failed to sync `{}`, which `{}` is in: {error}", above.display(), folder.display());
        }
    }
}

fn hold(path: &Path) -> Result<File, OpenError> {
    let mut file = open_private(path).map_err(at(path))?;
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
        Ok(text) if !is_new => parse_producer(&text).map_err(at(&path)),
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

/// The UUID that the file `producer` holds.
pub(super) fn parse_producer(text: &str) -> io::Result<Uuid> {
    Uuid::parse_str(text.trim()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The first sequence that is not confirmed; `None` where the note is absent or torn.
pub(super) fn read_confirmed(file: &File) -> io::Result<Option<u64>> {
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
        if let Some(first) = first_sequence(&path) {
            paths.push((first, path));
        }
    }
    paths.sort();
    let newest = paths.len().saturating_sub(1);
    let mut segments = VecDeque::new();
    let mut next = FIRST_SEQUENCE;
    for (index, (first, path)) in paths.into_iter().enumerate() {
        let file: Arc<dyn DiskFile> = Arc::new(open_private(&path).map_err(at(&path))?);
        // Only the newest can end in a torn append or in room that is not used: the others are sealed.
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
        match find_record(file, end, follows(next))? {
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
            let behind = find_record(&*holder.file, position.offset, follows(position.sequence))?
                .filter(|behind| *behind < holder.end);
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
