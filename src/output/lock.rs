//! The right to write an output: a lock file beside it, held for the writer's life.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::folder::lock_holder;
use crate::disk::{folder_of, identity, open_private, sibling};
use crate::record::VisitLogError;
use crate::stop::Stop;

const POLL: Duration = Duration::from_millis(100);

/// A right that somebody may take away.
pub trait Right: Send {
    /// Whether it is held still.
    ///
    /// # Errors
    /// [`VisitLogError::LockLost`] where it is not, [`VisitLogError::Failed`] where that cannot be told now.
    fn check(&self) -> Result<(), VisitLogError>;
}

/// The lock `<output>.lock`, held.
pub struct OutputLock {
    path: PathBuf,
    file: File,
}

/// What keeps a writer waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// Another process holds the lock: standing by is this one's job.
    StandingBy,
    /// Somebody keeps the output itself locked; who, where that can be told.
    OutputLocked(Option<String>),
}

impl OutputLock {
    /// Waits for the lock `<output>.lock`, polling; `None` when the word to stop came before. `waiting` is told, once
    /// each, what it is that is waited for.
    ///
    /// # Errors
    /// What the system said.
    pub fn acquire(output: &Path, stop: &Stop, mut waiting: impl FnMut(Waiting)) -> io::Result<Option<Self>> {
        let path = sibling(output, "lock");
        let mut told = None;
        while !stop.is_set() {
            let reason = match Self::try_acquire(&path)? {
                None => Waiting::StandingBy,
                Some(lock) => match is_locked(output)? {
                    None => return Ok(Some(lock)),
                    Some(holder) => Waiting::OutputLocked(holder),
                },
            };
            if told.as_ref() != Some(&reason) {
                waiting(reason.clone());
                told = Some(reason);
            }
            stop.wait(POLL);
        }
        Ok(None)
    }

    fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = open_private(path)?;
        match fs2::FileExt::try_lock_exclusive(&file) {
            Ok(()) => {
                let lock = OutputLock { path: path.into(), file };
                // Else its file was removed between the two calls, and its lock locks nothing.
                Ok(lock.check().is_ok().then_some(lock))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Right for OutputLock {
    fn check(&self) -> Result<(), VisitLogError> {
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

/// Whether somebody has the output's flock, and who: a writer within its batch that lost its lock file while it was
/// paused, and must be waited for, or a program that rotates the file. A shared lock is tried: a file system may
/// refuse an exclusive one to a descriptor that only reads (NFSv4).
fn is_locked(output: &Path) -> io::Result<Option<Option<String>>> {
    let file = match File::open(output) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match fs2::FileExt::try_lock_shared(&file) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(lock_holder(&file))),
        Err(error) => Err(error),
    }
}
