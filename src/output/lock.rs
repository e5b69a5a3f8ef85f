//! The right to write an output: a lock file beside it, held for the writer's life.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::folder::lock_holder;
use crate::disk::{folder_of, identity, open_regular, private_file};
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
    /// Waits for the lock of one of `outputs`, each a file, or none, with the file that is its lock, polling; which of them it is of,
    /// or `None` when the word to stop came before. `waiting` is told, once each, which output is waited for and why.
    ///
    /// # Errors
    /// What the system said of which file.
    pub fn acquire(
        outputs: &[(Option<&Path>, &Path)],
        stop: &Stop,
        mut waiting: impl FnMut(usize, Waiting),
    ) -> Result<Option<(usize, Self)>, String> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error| format!("failed to lock `{path}`: {error}")
        };
        let mut told = None;
        while !stop.is_set() {
            let mut reason = (0, Waiting::StandingBy);
            for (at, (output, path)) in outputs.iter().enumerate() {
                if let Some(lock) = Self::try_acquire(path).map_err(failed(path))? {
                    let locked =
                        output.map(|output| is_locked(output).map_err(failed(output))).transpose()?;
                    match locked.flatten() {
                        None => return Ok(Some((at, lock))),
                        Some(holder) => reason = (at, Waiting::OutputLocked(holder)),
                    }
                }
            }
            // That the output is kept locked is a problem, and is noted for as long as it lasts.
            if told.as_ref() != Some(&reason) || matches!(reason.1, Waiting::OutputLocked(_)) {
                waiting(reason.0, reason.1.clone());
                told = Some(reason);
            }
            stop.wait(POLL);
        }
        Ok(None)
    }

    /// The same lock, for another thread: it is held for as long as either is.
    ///
    /// # Errors
    /// That there can be no further descriptor.
    pub fn share(&self) -> io::Result<Self> {
        Ok(OutputLock { path: self.path.clone(), file: self.file.try_clone()? })
    }

    fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = open_regular(path, private_file().read(true).write(true))?;
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
        match fs::symlink_metadata(&self.path) {
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
    let file = match open_regular(output, OpenOptions::new().read(true)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::process::Command;
    use std::time::Duration;

    use crate::disk::folder::{Folder, RealFolder};
    use crate::disk::sibling;
    use crate::output::{LedgerFile, read_ledger};

    /// What has one of the names that Pixel opens.
    fn in_the_place_of(name: &str, what: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let made = match what {
            "FIFO" => Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()),
            "socket" => std::os::unix::net::UnixListener::bind(&path).is_ok(),
            "link" => std::os::unix::fs::symlink("elsewhere", &path).is_ok(),
            _ => fs::create_dir(&path).is_ok(),
        };
        assert!(made, "{what}");
        folder
    }

    /// A FIFO in the output's place had the start wait for somebody who opens its other end, and a socket beside it
    /// was an error of the disk, so that the first batch waited for ever.
    #[test]
    fn what_is_no_regular_file_is_refused_with_its_name_and_nothing_waits_for_it() {
        let (told, tells) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for what in ["FIFO", "socket", "link", "folder"] {
                for name in ["visits.log", "visits.log.lock"] {
                    let folder = in_the_place_of(name, what);
                    let output = folder.path().join("visits.log");
                    let locked = OutputLock::acquire(
                        &[(Some(&output), &sibling(&output, "lock"))],
                        &Stop::default(),
                        |_, _| (),
                    );
                    let problem = locked.err().unwrap_or_else(|| format!("{what}: no error"));
                    let _ = told.send((format!("{name}: {what}"), format!("{name}`: it is"), problem));
                }
                let folder = in_the_place_of("visits.log.ledger", what);
                let ledger = OsStr::new("visits.log.ledger");
                let opened = LedgerFile::open(Box::new(RealFolder::new(folder.path())), ledger);
                let problem = opened.err().map(|error| error.to_string()).unwrap_or_default();
                let _ = told.send((format!("ledger: {what}"), "ledger`: it is".into(), problem));
                let read = read_ledger(&folder.path().join(ledger));
                let problem = read.err().map(|error| error.to_string()).unwrap_or_default();
                let expected = if what == "link" { "No such file" } else { "no regular file" };
                let _ = told.send((format!("read: {what}"), expected.into(), problem));
                let opened = RealFolder::new(folder.path()).open(ledger, false);
                let is_other = opened.err().is_some_and(|error| error.kind() == io::ErrorKind::InvalidInput);
                let problem = if is_other { "another's" } else { "an error of the disk" };
                let _ = told.send((format!("beside: {what}"), "another's".into(), problem.into()));
            }
        });
        for n in 0..20 {
            let (case, expected, problem) =
                tells.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("case {n} hangs"));
            assert!(problem.contains(&expected), "{case}: {problem}");
        }
    }
}
