//! Who may write: a lock file beside the output, and the flock on the output itself.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::{folder_of, identity, open_private, sibling};
use crate::record::VisitLogError;
use crate::stop::Stop;

/// How long a reader may keep its lock on the output before that counts as a failure.
const READER_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// The right to write one output file, held for the writer's life.
pub struct OutputLock {
    path: PathBuf,
    file: File,
}

impl OutputLock {
    /// Waits for the lock `<output>.lock`, polling; `None` when the word to stop came before. Calls
    /// `stand_by` once if somebody else holds it.
    ///
    /// # Errors
    /// What the system said.
    pub fn acquire(output: &Path, stop: &Stop, stand_by: impl FnOnce()) -> io::Result<Option<Self>> {
        let path = sibling(output, "lock");
        let mut stand_by = Some(stand_by);
        while !stop.is_set() {
            let file = open_private(&path)?;
            match fs2::FileExt::try_lock_exclusive(&file) {
                Ok(()) => {
                    let lock = OutputLock { path: path.clone(), file };
                    // Else its file was removed between the two calls, and its lock locks nothing.
                    if lock.check().is_ok() && !is_in_a_batch(output)? {
                        return Ok(Some(lock));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(stand_by) = stand_by.take() {
                stand_by();
            }
            stop.wait(POLL);
        }
        Ok(None)
    }

    /// Whether the file that is locked is still the one that others would lock.
    pub(super) fn check(&self) -> Result<(), VisitLogError> {
        let path = || self.path.display().to_string();
        let failed = |error| VisitLogError::Failed { path: path(), error };
        let locked = self.file.metadata().map_err(failed)?;
        match fs::metadata(&self.path) {
            Ok(named) if identity(&named) == identity(&locked) => Ok(()),
            // The folder is away, with the lock in it: it may come back.
            Err(error) if error.kind() != io::ErrorKind::NotFound || !folder_of(&self.path).exists() => {
                Err(failed(error))
            }
            _ => Err(VisitLogError::LockLost { path: path() }),
        }
    }
}

/// Whether somebody holds the output's flock: a reader, or a writer within its batch. The latter has lost
/// the lock, but once woken up it will commit that batch before it notices.
fn is_in_a_batch(output: &Path) -> io::Result<bool> {
    let file = match File::open(output) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match fs2::FileExt::try_lock_exclusive(&file) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        locked => locked.map(|()| false),
    }
}

/// Takes the output's flock, so that cooperating readers see whole, committed batches.
///
/// # Errors
/// `WouldBlock` where somebody keeps it for longer than [`READER_MAX`], or what the system said.
pub(super) fn lock_out_others(file: &File) -> io::Result<()> {
    let until = Instant::now() + READER_MAX;
    loop {
        match fs2::FileExt::try_lock_exclusive(file) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = "another process keeps it locked (flock)";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            outcome => return outcome,
        }
    }
}

/// Lets others have the output's flock.
pub(super) fn unlock(file: &File) {
    // It fails only for a descriptor that is none.
    let _ = fs2::FileExt::unlock(file);
}
