//! Rotated files: compressed, and removed when there are more of them than are to be kept. On a thread of their own, as
//! writing waits for neither.
//!
//! Only a file that the ledger has closed is touched, and only one that has a name of Pixel's: all of it is synced and
//! committed, and no crash left a line in it that a visit may still claim.
//!
//! **Compressed**: aside to `.tmp`, synced, read again and compared, renamed, the folder synced; then the plain file is
//! removed. A crash leaves the plain file, or both, which the next start that compresses compares; nobody else finds a
//! visit twice, as who reads the files of an output reads a compressed one only where the plain one is gone.
//!
//! **Removed**: noted in `<ledger>.removed` first, so that the audit can tell it from a loss.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use super::candidates::Candidate;
use super::compression::Compression;
use super::keep::Keep;
use super::ledger::{Removed, mend_removed, note_removed, read_closed_files, read_removed};
use super::lock::Right;
use super::names::is_own;
use crate::disk::folder::Identity;
use crate::disk::{folder_of, identity, open_regular, private_file, sibling, sync_folder};
use crate::record::FileRecord;
use crate::stop::Stop;

/// How often it is looked whether another file was closed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often all is looked at: for files that are too old by now, and those that failed before.
const ROUND_EVERY: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 1 << 20;
const DRAFT: &str = ".tmp";

/// What becomes of rotated files. By default they stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aftercare {
    /// How they are compressed.
    pub compression: Option<Compression>,
    /// How much of them is kept.
    pub keep: Keep,
}

/// The rotated files of one output.
pub struct RotatedFiles {
    output: PathBuf,
    ledger: PathBuf,
    aftercare: Aftercare,
    right: Box<dyn Right>,
    stop: Stop,
    // The ledger's numbers of files, by their plain names, and which file had that: a name may be given again.
    known: BTreeMap<OsString, (u64, Identity)>,
    // What the ledger has closed, by number, and which list that stands in, and how long it is.
    closed: Arc<BTreeMap<u64, FileRecord>>,
    listed: Option<(Identity, u64)>,
    // Whether nothing half written stands in the list of those that were removed.
    is_list_whole: bool,
}

/// A closed file that is there.
struct Rotated {
    record: FileRecord,
    // Without what a compressor added.
    name: OsString,
    is_plain: bool,
}

/// The checksum and the length of what was read.
type Content = (u32, u64);

impl RotatedFiles {
    /// Those of `output`, which `right` says may be changed by this process.
    pub fn new(
        output: &Path,
        ledger: &Path,
        aftercare: Aftercare,
        right: Box<dyn Right>,
        stop: Stop,
    ) -> Self {
        let (output, ledger) = (output.to_path_buf(), ledger.to_path_buf());
        RotatedFiles {
            output,
            ledger,
            aftercare,
            right,
            stop,
            known: BTreeMap::new(),
            closed: Arc::default(),
            listed: None,
            is_list_whole: false,
        }
    }

    /// Looks after them until the word to stop is given. Nobody has to wait for the end: whatever it is at, the next
    /// start goes on with.
    pub fn run(mut self) {
        let (mut seen, mut next) = (None, Instant::now());
        loop {
            let length = fs::metadata(sibling(&self.ledger, "files")).map_or(0, |metadata| metadata.len());
            if seen.replace(length) != Some(length) || Instant::now() >= next {
                next = Instant::now() + ROUND_EVERY;
                if let Err(error) = self.round() {
                    self.is_list_whole = false;
                    let path = self.output.display();
                    log::warn!("failed to look after the rotated files of `{path}`: {error}; trying again");
                }
            }
            if self.stop.wait(LOOK_EVERY) {
                return;
            }
        }
    }

    /// Looks after all of them once.
    fn round(&mut self) -> io::Result<()> {
        if !self.is_list_whole {
            self.check()?;
            mend_removed(&self.ledger)?;
            self.is_list_whole = true;
        }
        self.remove_drafts()?;
        let removed = read_removed(&self.ledger)?;
        let removed: HashSet<_> = removed.iter().map(Removed::id).collect();
        // One that is noted and there still: a crash came in between.
        let is_noted = |file: &Rotated| removed.contains(&(file.record.id, file.record.name.as_str()));
        let (noted, mut files): (Vec<_>, Vec<_>) = self.files()?.into_iter().partition(is_noted);
        self.remove(noted, true)?;
        let how = self.aftercare.compression;
        let plain = files.iter().filter(|file| file.is_plain);
        for (file, how) in plain.filter_map(|file| Some((file, how?))) {
            match self.compress(&file.name, how) {
                _ if self.stop.is_set() => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    let path = self.path(&file.name);
                    log::warn!(
                        "failed to compress `{}`: {error}; it stays as it is, trying again",
                        path.display()
                    );
                }
            }
        }
        let mut sizes = Vec::new();
        files.retain(|file| match self.size(&file.name) {
            Ok(size) => {
                sizes.push(size);
                true
            }
            Err(error) => {
                warn(&self.path(&file.name), &error);
                false
            }
        });
        files.truncate(self.aftercare.keep.surplus(&sizes, SystemTime::now()));
        self.remove(files, false)
    }

    /// Those that are closed and there, the oldest first.
    fn files(&mut self) -> io::Result<Vec<Rotated>> {
        let records = self.closed()?;
        let mut found: BTreeMap<OsString, bool> = BTreeMap::new();
        for name in self.names()? {
            let (plain, how) = Compression::of(&name);
            *found.entry(plain.into()).or_default() |= how.is_none();
        }
        self.known.retain(|name, _| found.contains_key(name));
        let mut files = Vec::new();
        for (name, is_plain) in found {
            let Some((record, identity)) = self.record(&name, &records) else { continue };
            self.known.insert(name.clone(), (record.id, identity));
            files.push(Rotated { record: record.clone(), name, is_plain });
        }
        files.sort_by_key(|file| file.record.id);
        Ok(files)
    }

    /// What the ledger has closed. The list, which only grows, is read where it has grown.
    fn closed(&mut self) -> io::Result<Arc<BTreeMap<u64, FileRecord>>> {
        let list = fs::metadata(sibling(&self.ledger, "files")).ok();
        let list = list.map(|metadata| (identity(&metadata), metadata.len()));
        if list.is_none() || self.listed != list {
            let closed = read_closed_files(&self.ledger)?.into_iter().map(beginning);
            self.closed = Arc::new(closed.map(|record| (record.id, record)).collect());
            self.listed = list;
        }
        Ok(self.closed.clone())
    }

    /// The record of the file that is called so, one that begins like it, and which file that is.
    fn record<'a>(
        &self,
        name: &OsStr,
        records: &'a BTreeMap<u64, FileRecord>,
    ) -> Option<(&'a FileRecord, Identity)> {
        let of = |path: &Path| {
            let file = identity(&path.symlink_metadata()?);
            if let Some((id, _)) = self.known.get(name).filter(|(_, known)| *known == file) {
                return Ok(records.get(id).map(|record| (record, file)));
            }
            let Some(candidate) = Candidate::open(path.to_path_buf(), true)? else { return Ok(None) };
            // The last one is the name's, where it was given twice.
            let mut like = records.values().rev();
            let record = like.find(|record| candidate.begins(record).unwrap_or(false));
            Ok(record.map(|record| (record, file)))
        };
        self.stored(name).iter().find_map(|path| {
            of(path).unwrap_or_else(|error: io::Error| {
                warn(path, &error);
                None
            })
        })
    }

    /// The names in the folder that Pixel gave, compressed or not.
    fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder_of(&self.output))? {
            let name = entry?.file_name();
            if is_own(self.output.file_name().unwrap_or_default(), &name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        folder_of(&self.output).join(name)
    }

    /// Where the file whose plain name is `name` is: plain, compressed, or both after a crash.
    fn stored(&self, name: &OsStr) -> Vec<PathBuf> {
        let names = std::iter::once(name.to_os_string()).chain(Compression::names(name));
        names.map(|name| self.path(&name)).filter(|path| path.symlink_metadata().is_ok()).collect()
    }

    fn size(&self, name: &OsStr) -> io::Result<(u64, SystemTime)> {
        let mut size = (0, SystemTime::UNIX_EPOCH);
        for path in self.stored(name) {
            let metadata = path.symlink_metadata()?;
            size = (size.0 + metadata.len(), metadata.modified()?.max(size.1));
        }
        Ok(size)
    }

    fn check(&self) -> io::Result<()> {
        self.right.check().map_err(|error| io::Error::other(error.to_string()))
    }

    /// Removes what a crash left of files that were being compressed.
    fn remove_drafts(&self) -> io::Result<()> {
        for entry in fs::read_dir(folder_of(&self.output))? {
            let name = entry?.file_name();
            let Some(compressed) = name.as_bytes().strip_suffix(DRAFT.as_bytes()).map(OsStr::from_bytes)
            else {
                continue;
            };
            let (plain, how) = Compression::of(compressed);
            if how.is_some() && is_own(self.output.file_name().unwrap_or_default(), plain) {
                let draft = self.path(&name);
                self.remove_draft(&draft, &self.path(plain)).unwrap_or_else(|error| warn(&draft, &error));
            }
        }
        Ok(())
    }

    fn remove_draft(&self, draft: &Path, plain: &Path) -> io::Result<()> {
        // Where the plain file is locked, another Pixel is at it that was paused.
        if !plain.exists() || lock(plain)?.is_some() {
            self.check()?;
            fs::remove_file(draft)?;
        }
        Ok(())
    }

    /// Compresses a plain file, unless it is already, and removes it where the compressed one holds the same. One that
    /// somebody keeps locked waits.
    fn compress(&self, name: &OsStr, how: Compression) -> io::Result<()> {
        let path = self.path(name);
        let Some(plain) = lock(&path)? else { return Ok(()) };
        let compressed: Vec<PathBuf> =
            self.stored(name).into_iter().filter(|stored| *stored != path).collect();
        let content = match &compressed[..] {
            [] => self.write_compressed(&plain, &path, how)?,
            [there, ..] => {
                let content = self.content(&mut &plain)?;
                let said = |problem: &dyn Display| format!("`{}` is there and {problem}", there.display());
                let held = self.content_of(there).map_err(|error| {
                    io::Error::new(error.kind(), said(&format_args!("holds something else: {error}")))
                })?;
                if held != content {
                    return Err(io::Error::new(ErrorKind::AlreadyExists, said(&"holds something else")));
                }
                // Others may have made it, and not synced it.
                File::open(there)?.sync_all()?;
                content
            }
        };
        sync_folder(folder_of(&path))?;
        if plain.metadata()?.len() != content.1 {
            return Err(io::Error::other("somebody writes to it"));
        }
        self.check()?;
        fs::remove_file(&path)?;
        sync_folder(folder_of(&path))
    }

    /// Makes the compressed file of the one at `path`, durable but for its name; returns what it holds.
    fn write_compressed(&self, plain: &File, path: &Path, how: Compression) -> io::Result<Content> {
        let target = self.path(&how.name(path.file_name().unwrap_or_default()));
        let mut draft = target.clone().into_os_string();
        draft.push(DRAFT);
        let draft = PathBuf::from(draft);
        let written = self.write_draft(plain, &draft, how).and_then(|content| {
            self.check()?;
            fs::rename(&draft, &target)?;
            Ok(content)
        });
        match &written {
            Ok((_, length)) => {
                log::info!("compressed `{}` of {length} bytes to `{}`", path.display(), target.display());
            }
            // It would take the room that is lacking; where it cannot be removed, the next round does so.
            Err(_) => drop(fs::remove_file(&draft)),
        }
        written
    }

    fn write_draft(&self, mut plain: &File, draft: &Path, how: Compression) -> io::Result<Content> {
        let file = open_regular(draft, private_file().read(true).write(true).truncate(true))?;
        let of_plain = plain.metadata()?;
        let content =
            how.write(BufWriter::with_capacity(PIECE_BYTES, &file), |target| self.copy(&mut plain, target))?;
        file.set_permissions(of_plain.permissions())?;
        // It is as old as the visits in it.
        file.set_times(FileTimes::new().set_modified(of_plain.modified()?))?;
        file.sync_all()?;
        let stored = BufReader::with_capacity(PIECE_BYTES, File::open(draft)?);
        if self.content(&mut how.reader(stored)?)? != content {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "it does not hold the same when it is read again",
            ));
        }
        Ok(content)
    }

    /// What a compressed file holds.
    fn content_of(&self, path: &Path) -> io::Result<Content> {
        let stored = open_regular(path, OpenOptions::new().read(true))?;
        let stored = BufReader::with_capacity(PIECE_BYTES, stored);
        match Compression::of(path.as_os_str()).1 {
            Some(how) => self.content(&mut how.reader(stored)?),
            None => self.content(&mut { stored }),
        }
    }

    fn content(&self, from: &mut dyn Read) -> io::Result<Content> {
        self.copy(from, &mut io::sink())
    }

    /// Copies all there is, unless the word to stop comes.
    fn copy(&self, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<Content> {
        let (mut sum, mut length, mut piece) = (crc32fast::Hasher::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            if self.stop.is_set() {
                return Err(io::Error::new(ErrorKind::Interrupted, "Pixel ends"));
            }
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok((sum.finalize(), length));
            }
            sum.update(&piece[..read]);
            length += read as u64;
            to.write_all(&piece[..read])?;
        }
    }

    /// Removes files, which the ledger is told before unless they are `noted`. What begins otherwise has only their
    /// name: it is somebody else's, and stays.
    fn remove(&mut self, files: Vec<Rotated>, noted: bool) -> io::Result<()> {
        let mut removing = Vec::new();
        for file in files {
            let mut paths = self.stored(&file.name);
            paths.retain(|path| {
                begins(path, &file.record).unwrap_or_else(|error| {
                    warn(path, &error);
                    false
                })
            });
            if !paths.is_empty() {
                removing.push((file, paths));
            }
        }
        if removing.is_empty() {
            return Ok(());
        }
        self.check()?;
        if !noted {
            let at = Timestamp::now();
            let removed: Vec<Removed> =
                removing.iter().map(|(file, _)| Removed::of(&file.record, at)).collect();
            note_removed(&self.ledger, &removed)?;
        }
        for (file, paths) in removing {
            self.known.remove(&file.name);
            for path in paths {
                match fs::remove_file(&path) {
                    Ok(()) => log::info!("removed `{}`, as --keep has it", path.display()),
                    Err(error) => warn(&path, &error),
                }
            }
        }
        sync_folder(folder_of(&self.output))
    }
}

/// Says that one file cannot be looked after; the others are.
fn warn(path: &Path, error: &io::Error) {
    log::warn!("failed to look after `{}`: {error}; trying again", path.display());
}

/// As much of a record as a file is recognised by, and no checksum more.
fn beginning(mut record: FileRecord) -> FileRecord {
    record.stretches.truncate(1);
    record.stretches.iter_mut().for_each(|stretch| stretch.blocks.truncate(1));
    record
}

/// Whether the file at `path` begins as `record` has it.
fn begins(path: &Path, record: &FileRecord) -> io::Result<bool> {
    let candidate = Candidate::open(path.to_path_buf(), true)?;
    Ok(candidate.is_some_and(|candidate| candidate.begins(record).unwrap_or(false)))
}

/// Opens a plain file and locks it (flock), so that neither its readers nor another Pixel find it half done; `None` where
/// somebody else has it locked, or its name.
fn lock(path: &Path) -> io::Result<Option<File>> {
    // To write, as some file systems give an exclusive lock to no other descriptor.
    let file = open_regular(path, OpenOptions::new().read(true).append(true))?;
    match fs2::FileExt::try_lock_exclusive(&file) {
        Ok(()) => {
            let is_named = fs::symlink_metadata(path)
                .is_ok_and(|named| file.metadata().is_ok_and(|locked| identity(&named) == identity(&locked)));
            Ok(is_named.then_some(file))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
