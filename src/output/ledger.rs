//! The ledger on disk: a journal beside the output, an entry for each batch.
//!
//! It is read into memory at start and written anew then, as one entry: so whatever a failed sync of an earlier
//! process left in memory alone is on disk before it is believed, and a ledger never grows with the number of starts.
//! It is written anew, too, when it is four times as long as its state and 1 MiB more. Nothing but the holder of the
//! output's lock writes it; `pixel audit` reads it while it is in use.
//!
//! The records of files to which nothing is added any more are moved to `<ledger>.files`, which only grows. Which of
//! them Pixel removed is noted in `<ledger>.removed`, by the thread that looks after them. A ledger that is begun beside
//! these lists, as the one before was removed, numbers files on behind theirs.
//!
//! # Format 2
//!
//! The first record is the JSON string [`FORMAT`], which an earlier Pixel refuses as no entry of its own, and changes
//! nothing. Each further record is an [`Entry`]. A ledger of format 1 begins with an entry; it is read, and written
//! anew in format 2.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::folder::{Folder, Identity, RealFolder};
use crate::disk::journal::{Journal, find_record, read_record};
use crate::disk::{DiskFile, folder_of, open_regular, sibling};
use crate::record::{BLOCK_BYTES, Entry, FileRecord, Ledger, LedgerError, Written};

/// What a ledger of this format begins with.
const FORMAT: &str = "pixel ledger 2";
const FORMAT_PREFIX: &str = "pixel ledger ";
/// What the list of closed files begins with.
const FILES_FORMAT: &str = "pixel files 1";
/// What the list of removed files begins with.
const REMOVED_FORMAT: &str = "pixel removed 1";
/// It is written anew when it is this much longer than four times its state, in bytes.
const GROWTH_BYTES: u64 = 1 << 20;
/// How long after a failure files are closed again.
const CLOSE_AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(60) };
/// About how long an entry is at most, but for the checksums, of which each takes so much.
const ENTRY_BYTES: u64 = 64 << 10;
const CHECKSUM_BYTES: u64 = 11;
/// How often, and how long apart, it is looked whether an entry that is not whole is one that is being written.
const LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The ledger of one output.
pub struct LedgerFile {
    folder: Box<dyn Folder>,
    name: OsString,
    journal: Journal,
    written: Written,
    rewrite_at: u64,
    // Of the journal's file.
    identity: Identity,
    // Once files could not be closed: when that is tried again.
    closes_from: Option<Instant>,
    // The journal's name may still be the old journal's after a power cut.
    name_unsynced: bool,
}

impl LedgerFile {
    /// Opens the ledger called `name` in `folder`, creating it where it is absent.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where it is no ledger that this program can read, or is damaged. Nothing is
    /// changed then.
    pub fn open(folder: Box<dyn Folder>, name: &OsStr) -> Result<Self, LedgerError> {
        let path = folder.path(name).display().to_string();
        let open = move || {
            let mut written = match folder.open_disk(name)? {
                Some(file) => read_entries(&*file)?.written,
                None => Written::default(),
            };
            if written.mark().is_none() && written.closed_files() == 0 {
                let files_before = last_listed(&*folder, name)?;
                written.apply(&Entry { files_before, ..Entry::default() });
            }
            let (journal, identity) = write_anew(&*folder, name, &written)?;
            let rewrite_at = journal.end() * 4 + GROWTH_BYTES;
            let name = name.to_os_string();
            let (closes_from, name_unsynced) = (None, true);
            let mut ledger = LedgerFile {
                folder,
                name,
                journal,
                written,
                rewrite_at,
                identity,
                closes_from,
                name_unsynced,
            };
            ledger.sync_name()?;
            ledger.close_files();
            Ok(ledger)
        };
        open().map_err(|error| LedgerError { path, error })
    }

    /// The output's id. It goes with the ledger, wherever that goes; one that has none gets one, durably.
    ///
    /// # Errors
    /// What the system said.
    pub fn id(&mut self) -> Result<Uuid, LedgerError> {
        match self.written.id() {
            Some(id) => Ok(id),
            None => {
                let id = Uuid::new_v4();
                self.commit(&Entry { id: Some(id), ..Entry::default() })?;
                Ok(id)
            }
        }
    }

    /// Replaces the journal by one that holds the state as one entry.
    fn rewrite(&mut self) -> io::Result<()> {
        (self.journal, self.identity) = write_anew(&*self.folder, &self.name, &self.written)?;
        self.rewrite_at = self.journal.end() * 4 + GROWTH_BYTES;
        self.name_unsynced = true;
        self.sync_name()
    }

    fn sync_name(&mut self) -> io::Result<()> {
        if self.name_unsynced {
            self.folder.sync()?;
            self.name_unsynced = false;
        }
        Ok(())
    }

    /// Writes the journal anew where its file was removed or replaced: what is committed to a file without
    /// a name is lost at the next start.
    fn keep_name(&mut self) -> io::Result<()> {
        if self.folder.identity(&self.name)? == Some(self.identity) {
            return Ok(());
        }
        log::warn!("`{}` was removed or replaced: writing it anew", self.folder.path(&self.name).display());
        self.rewrite()
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.sync_name()?;
        self.journal.append(&[&json(entry)])?;
        self.written.apply(entry);
        Ok(())
    }

    /// Moves the records of files that are written to no more. Where that fails they stay here, and a later commit
    /// tries again.
    fn close_files(&mut self) {
        let closing: Vec<FileRecord> = self.written.files_to_close().into_iter().cloned().collect();
        if closing.is_empty() || self.closes_from.is_some_and(|from| Instant::now() < from) {
            return;
        }
        let outcome = self.list_closed(&closing).and_then(|()| {
            let closed = closing.iter().map(|record| record.id).collect();
            self.append(&Entry { closed, ..Entry::default() })
        });
        self.closes_from = outcome.is_err().then(|| Instant::now() + CLOSE_AGAIN);
        if let Err(error) = outcome {
            let list = self.folder.path(&list_name(&self.name, "files"));
            log::warn!("failed to note rotated files in `{}`: {error}; trying again later", list.display());
        }
    }

    /// Appends to the list of closed files. A crash right behind this makes for a record that is there twice: the last
    /// counts.
    fn list_closed(&self, closing: &[FileRecord]) -> io::Result<()> {
        add_to_list(&*self.folder, &list_name(&self.name, "files"), FILES_FORMAT, closing)
    }

    fn error(&self, error: io::Error) -> LedgerError {
        LedgerError { path: self.folder.path(&self.name).display().to_string(), error }
    }
}

impl Ledger for LedgerFile {
    fn written(&self) -> &Written {
        &self.written
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), LedgerError> {
        let checksums = bytes as u64 / BLOCK_BYTES * CHECKSUM_BYTES;
        self.journal.reserve(ENTRY_BYTES + checksums).map_err(|error| self.error(error))
    }

    fn commit(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        self.append(entry).map_err(|error| self.error(error))?;
        self.close_files();
        if self.journal.end() >= self.rewrite_at
            && let Err(error) = self.rewrite()
        {
            // The entry is committed all the same, in the longer journal.
            log::warn!("failed to shorten `{}`: {error}", self.folder.path(&self.name).display());
            self.rewrite_at = self.journal.end() + GROWTH_BYTES;
        }
        Ok(())
    }

    fn repair(&mut self) -> Result<(), LedgerError> {
        let repaired = self.sync_name().and_then(|()| self.journal.repair()).and_then(|()| self.keep_name());
        repaired.map_err(|error| self.error(error))
    }
}

/// A journal that holds `written` as one entry, under the name `name`; its name is not durable yet.
fn write_anew(folder: &dyn Folder, name: &OsStr, written: &Written) -> io::Result<(Journal, Identity)> {
    let mut draft = name.to_os_string();
    draft.push(".new");
    let mut journal = Journal::create(folder.create(&draft)?);
    journal.append(&[&json(&FORMAT)])?;
    journal.append(&[&json(&written.snapshot())])?;
    let identity = folder.identity(&draft)?.ok_or(io::ErrorKind::NotFound)?;
    folder.rename(&draft, name)?;
    Ok((journal, identity))
}

/// Appends to the list called `name`, which begins with its `format`.
fn add_to_list(
    folder: &dyn Folder,
    name: &OsStr,
    format: &str,
    entries: &[impl Serialize],
) -> io::Result<()> {
    let file = match folder.open_disk(name)? {
        Some(file) => file,
        None => folder.create(name)?,
    };
    let mut journal = Journal::open(file, |_| true)?;
    if journal.end() == 0 {
        journal.append(&[&json(&format)])?;
    }
    entries.iter().try_for_each(|entry| journal.append(&[&json(entry)]))?;
    // It may be as new, where this failed the last time.
    folder.sync()
}

/// The name of a list beside the ledger called `name`.
fn list_name(name: &OsStr, what: &str) -> OsString {
    let mut list = name.to_os_string();
    list.push(".");
    list.push(what);
    list
}

/// The highest number of a file in the lists beside the ledger called `name`; 0 where there is none. That one of them is
/// damaged is told by whoever needs all of it.
fn last_listed(folder: &dyn Folder, name: &OsStr) -> io::Result<u64> {
    /// As much as both lists say of a file.
    #[derive(Deserialize)]
    struct Listed {
        #[serde(alias = "id")]
        file: u64,
    }
    let (mut last, mut record) = (0, Vec::new());
    for what in ["files", "removed"] {
        let list = list_name(name, what);
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("`{}`: {error}", folder.path(&list).display()))
        };
        let Some(file) = folder.open_disk(&list).map_err(named)? else { continue };
        let mut at = 0;
        while let Some(next) = read_record(&*file, at, &mut record).map_err(named)? {
            // The first one is the list's format.
            let listed = serde_json::from_slice(&record).map_or(0, |Listed { file }| file);
            (last, at) = (last.max(listed), next);
        }
    }
    Ok(last)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it has only string keys, and writing to memory cannot fail")
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// What a journal of entries holds.
struct Entries {
    written: Written,
    /// Where the last whole record ends, in bytes.
    end: u64,
}

/// Reads every entry; what follows the last whole one may be an append that was cut short.
fn read_entries(file: &dyn DiskFile) -> io::Result<Entries> {
    let (mut written, mut end, mut record) = (Written::default(), 0, Vec::new());
    while let Some(next) = read_record(file, end, &mut record)? {
        if end > 0 || !is_header(&record)? {
            let entry: Entry = serde_json::from_slice(&record)
                .map_err(|error| invalid(format!("its entry at byte {end} cannot be read: {error}")))?;
            written.apply(&entry);
        }
        end = next;
    }
    if find_record(file, end, |_| true)?.is_some() {
        return Err(invalid(format!("it is damaged at byte {end}, and goes on behind that")));
    }
    Ok(Entries { written, end })
}

/// Whether a ledger's first record says that it is of this format; one of format 1 begins with an entry.
fn is_header(record: &[u8]) -> io::Result<bool> {
    match serde_json::from_slice::<String>(record) {
        Ok(format) if format == FORMAT => Ok(true),
        Ok(format) if format.starts_with(FORMAT_PREFIX) => Err(invalid(format!(
            "it is of another format (`{format}`; this Pixel reads `{FORMAT}`): use the Pixel that wrote it, or a newer one"
        ))),
        Ok(other) => Err(invalid(format!("it begins with `{other}`"))),
        Err(_) => Ok(false),
    }
}

/// What a ledger says, its closed files included.
#[derive(Debug)]
pub struct LedgerContent {
    /// Its state.
    pub written: Written,
    /// The files to which nothing is added any more, oldest first.
    pub closed: Vec<FileRecord>,
    /// How many more the state says there should be.
    pub lacking: u64,
    /// Those of the closed that Pixel removed.
    removed: Vec<Removed>,
}

/// A file that Pixel removed, as it was told to keep no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Removed {
    file: u64,
    name: String,
    // When.
    at: Timestamp,
}

impl Removed {
    /// The file of `record`, removed `at` that time.
    pub(super) fn of(record: &FileRecord, at: Timestamp) -> Self {
        Removed { file: record.id, name: record.name.clone(), at }
    }

    /// The number and the name in its record: a ledger of an earlier Pixel that was begun anew counts from 1 again.
    pub(super) fn id(&self) -> (u64, &str) {
        (self.file, &self.name)
    }
}

/// Which files of a ledger are removed.
#[derive(Debug, Default)]
pub struct RemovedByNow {
    known: HashMap<(u64, String), Timestamp>,
    // Since the ledger was read. They may have been the output then, which had another name.
    since: HashMap<u64, Timestamp>,
}

impl RemovedByNow {
    /// When the file of `record` was removed.
    pub(super) fn at(&self, record: &FileRecord) -> Option<Timestamp> {
        let known = self.known.get(&(record.id, record.name.clone()));
        known.or_else(|| self.since.get(&record.id)).copied()
    }
}

impl LedgerContent {
    /// Which of its files are removed by now, also since it was read at `path`.
    ///
    /// # Errors
    /// As for [`read`].
    pub fn removed_by_now(&self, path: &Path) -> io::Result<RemovedByNow> {
        let before: HashSet<_> = self.removed.iter().map(Removed::id).collect();
        let now = read_removed(path)?;
        let since = now.iter().filter(|one| !before.contains(&one.id())).map(|one| (one.file, one.at));
        let since = since.collect();
        let known = self.removed.iter().map(|one| ((one.file, one.name.clone()), one.at)).collect();
        Ok(RemovedByNow { known, since })
    }
}

/// Reads the ledger at `path`, which may be in use: everything that is committed by now.
///
/// # Errors
/// What the system said; `InvalidData` where it is damaged anywhere. What is at its end and is no whole record may be
/// one that is being written; where it stays like that, it counts as damage.
pub fn read(path: &Path) -> io::Result<LedgerContent> {
    let written = look_until_whole(path, |file| {
        let Entries { written, end } = read_entries(file)?;
        Ok((written, end))
    })?;
    let lists_nothing = written.closed_files() + written.files_before() == 0;
    let closed = match read_list(&sibling(path, "files")) {
        // It could not be begun yet: what is to be listed is in the ledger still.
        Err(error) if error.kind() == io::ErrorKind::InvalidData && lists_nothing => Vec::new(),
        closed => last_of_each(closed?),
    };
    let own = closed.iter().filter(|record| record.id > written.files_before()).count();
    let lacking = written.closed_files().saturating_sub(own as u64);
    let closed = closed.into_iter().filter(|record| !written.files().contains_key(&record.id)).collect();
    Ok(LedgerContent { written, closed, lacking, removed: read_removed(path)? })
}

/// Reads the records of the files that the ledger at `path` has closed, the oldest first.
///
/// # Errors
/// As for [`read`].
pub(super) fn read_closed_files(path: &Path) -> io::Result<Vec<FileRecord>> {
    read_list_if_begun(&sibling(path, "files")).map(last_of_each)
}

/// Of records that are there twice the last.
fn last_of_each(mut records: Vec<FileRecord>) -> Vec<FileRecord> {
    let mut later = HashSet::new();
    records.reverse();
    records.retain(|record| later.insert(record.id));
    records.reverse();
    records
}

/// Reads which of the files of the ledger at `path` Pixel removed.
///
/// # Errors
/// As for [`read`].
pub(super) fn read_removed(path: &Path) -> io::Result<Vec<Removed>> {
    read_list_if_begun(&sibling(path, "removed"))
}

/// Cuts off what a crash or a full disk left half written of the list of removed files, and makes the rest durable. For
/// the thread that notes them.
///
/// # Errors
/// What the system said; `InvalidData` where it is damaged.
pub(super) fn mend_removed(path: &Path) -> io::Result<()> {
    let list = sibling(path, "removed");
    let folder = RealFolder::new(folder_of(&list));
    let Some(file) = folder.open_disk(list.file_name().unwrap_or_default())? else { return Ok(()) };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", list.display()));
    Journal::open(file, |_| true).map_err(named)?;
    folder.sync()
}

/// Notes beside the ledger at `path`, durably, that files are removed. One thread does so.
///
/// # Errors
/// What the system said.
pub(super) fn note_removed(path: &Path, removed: &[Removed]) -> io::Result<()> {
    let list = sibling(path, "removed");
    let folder = RealFolder::new(folder_of(&list));
    add_to_list(&folder, list.file_name().unwrap_or_default(), REMOVED_FORMAT, removed)
}

/// Reads a journal until all of it is whole records, and there are some. `read` returns where the last of them ends.
fn look_until_whole<T>(path: &Path, read: impl Fn(&File) -> io::Result<(T, u64)>) -> io::Result<T> {
    let mut looks = 0;
    loop {
        // Anew each time: it may have been written anew. Whoever reads may name it by a link.
        let file = open_regular(&path.canonicalize()?, OpenOptions::new().read(true))?;
        let length = file.metadata()?.len();
        let (content, end) = read(&file)?;
        if end > 0 && end >= length {
            return Ok(content);
        }
        looks += 1;
        if looks == LOOKS {
            return Err(invalid(format!(
                "`{}` is damaged at byte {end}; if that was a crash, start Pixel once: it keeps what is whole",
                path.display()
            )));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads every entry of a list; there is none where there is no list.
fn read_list<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let read = |file: &File| {
        let (mut entries, mut end, mut record) = (Vec::new(), 0, Vec::new());
        while let Some(next) = read_record(file, end, &mut record)? {
            if end > 0 {
                let of =
                    |error| invalid(format!("`{}` cannot be read at byte {end}: {error}", path.display()));
                entries.push(serde_json::from_slice(&record).map_err(of)?);
            }
            end = next;
        }
        if find_record(file, end, |_| true)?.is_some() {
            return Err(invalid(format!("`{}` is damaged at byte {end}", path.display())));
        }
        Ok((entries, end))
    };
    match look_until_whole(path, read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries,
    }
}

/// The same; one in which no whole record stands could not be begun yet, and is none.
fn read_list_if_begun<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let is_begun = || {
        let file = open_regular(&path.canonicalize()?, OpenOptions::new().read(true))?;
        let begins = read_record(&file, 0, &mut Vec::new())?.is_some();
        Ok::<_, io::Error>(begins || find_record(&file, 0, |_| true)?.is_some())
    };
    match read_list(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData && !is_begun()? => Ok(Vec::new()),
        entries => entries,
    }
}

/// Opens the ledger at `path`.
///
/// # Errors
/// As for [`LedgerFile::open`].
pub fn open_at(path: &Path) -> Result<LedgerFile, LedgerError> {
    let folder = RealFolder::new(folder_of(path));
    LedgerFile::open(Box::new(folder), path.file_name().unwrap_or_default())
}
