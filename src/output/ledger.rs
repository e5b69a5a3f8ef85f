//! The ledger on disk: a journal beside the output, an entry for each batch.
//!
//! It is read into memory at start, and written anew as one entry when it has grown. Nothing but the
//! holder of the output's lock writes it; `pixel audit` reads it while it is in use.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::journal::{Journal, read_record};
use crate::disk::{DiskFile, folder_of, identity, open_private, private_file, sync_folder};
use crate::record::{Entry, Written};
use crate::record::{Ledger, LedgerError};

/// It is written anew when it is this much longer than four times its last snapshot, in bytes.
const GROWTH_BYTES: u64 = 1 << 20;

/// The ledger of one output file.
pub struct LedgerFile {
    path: PathBuf,
    journal: Journal,
    written: Written,
    rewrite_at: u64,
    // Device and inode of the journal; `None` where it has no name.
    identity: Option<(u64, u64)>,
    // The journal's name may still be the old journal's after a power cut.
    name_unsynced: bool,
}

impl LedgerFile {
    /// Opens the ledger at `path`, creating it where it is absent.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where it is no ledger of this program.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let open = || {
            let file = open_private(path)?;
            let identity = identity(&file.metadata()?);
            let ledger = Self::over(path.to_path_buf(), Arc::new(file))?;
            sync_folder(folder_of(path))?;
            Ok(LedgerFile { identity: Some(identity), ..ledger })
        };
        open().map_err(|error| LedgerError { path: path.display().to_string(), error })
    }

    pub(crate) fn over(path: PathBuf, file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let (mut written, mut unreadable) = (Written::default(), None);
        let journal = Journal::open(file, |record| {
            match serde_json::from_slice::<Entry>(record) {
                Ok(entry) => written.apply(&entry),
                Err(error) => unreadable = Some(error),
            }
            true
        })?;
        match unreadable {
            Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            None => Ok(LedgerFile {
                path,
                rewrite_at: journal.end() * 4 + GROWTH_BYTES,
                journal,
                written,
                identity: None,
                name_unsynced: false,
            }),
        }
    }

    /// Replaces the journal by one that holds the state as one entry.
    fn rewrite(&mut self) -> io::Result<()> {
        let draft = self.path.with_extension("ledger.new");
        let file = private_file().read(true).write(true).truncate(true).open(&draft)?;
        let identity = identity(&file.metadata()?);
        let mut journal = Journal::create(Arc::new(file));
        journal.append(&[&bytes(&self.written.snapshot())])?;
        fs::rename(&draft, &self.path)?;
        self.rewrite_at = journal.end() * 4 + GROWTH_BYTES;
        self.journal = journal;
        self.identity = Some(identity);
        self.name_unsynced = true;
        self.sync_name()
    }

    fn sync_name(&mut self) -> io::Result<()> {
        if self.name_unsynced {
            sync_folder(folder_of(&self.path))?;
            self.name_unsynced = false;
        }
        Ok(())
    }

    /// Writes the journal anew where its file was removed or replaced: what is committed to a file without
    /// a name is lost at the next start.
    fn keep_name(&mut self) -> io::Result<()> {
        let Some(own) = self.identity else { return Ok(()) };
        match fs::metadata(&self.path) {
            Ok(named) if identity(&named) == own => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => log::warn!("`{}` was removed or replaced: writing it anew", self.path.display()),
        }
        self.rewrite()
    }

    fn error(&self, error: io::Error) -> LedgerError {
        LedgerError { path: self.path.display().to_string(), error }
    }
}

impl Ledger for LedgerFile {
    fn written(&self) -> &Written {
        &self.written
    }

    fn commit(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        let committed = self.sync_name().and_then(|()| self.journal.append(&[&bytes(entry)]));
        committed.map_err(|error| self.error(error))?;
        self.written.apply(entry);
        if self.journal.end() >= self.rewrite_at
            && let Err(error) = self.rewrite()
        {
            // The entry is committed all the same, in the longer journal.
            log::warn!("failed to shorten `{}`: {error}", self.path.display());
            self.rewrite_at = self.journal.end() + GROWTH_BYTES;
        }
        Ok(())
    }

    fn repair(&mut self) -> Result<(), LedgerError> {
        let repaired = self.sync_name().and_then(|()| self.journal.repair()).and_then(|()| self.keep_name());
        repaired.map_err(|error| self.error(error))
    }
}

fn bytes(entry: &Entry) -> Vec<u8> {
    serde_json::to_vec(entry).expect("an entry has only string keys, and writing to memory cannot fail")
}

/// Reads a ledger that may be in use: everything that is committed by now.
///
/// # Errors
/// What the system said; `InvalidData` where an entry cannot be read.
pub fn read(path: &Path) -> io::Result<Written> {
    let file = File::open(path)?;
    let (mut written, mut offset, mut record) = (Written::default(), 0, Vec::new());
    while let Some(next) = read_record(&file, offset, &mut record)? {
        let entry: Entry = serde_json::from_slice(&record)?;
        written.apply(&entry);
        offset = next;
    }
    Ok(written)
}
