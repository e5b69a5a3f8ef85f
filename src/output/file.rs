//! The output file: appended to in whole batches by one process at a time, whatever else happens to it.
//!
//! It may be renamed, removed, truncated or written to by others; the path is looked at before each
//! append and a few times a second. From the beginning of a batch until it is committed an flock on the
//! file keeps cooperating readers out, so that they see whole, committed batches. It also keeps a
//! successor waiting, should somebody remove the lock file while its holder is paused within a batch.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::lock::{OutputLock, lock_out_others, unlock};
use super::tail::Tail;
use crate::disk::{DiskFile, folder_of, identity, private_file, sibling, sync_folder};
use crate::record::Mark;
use crate::record::{VisitLog, VisitLogError};

/// How much of a file is in memory while it is copied.
const PIECE_BYTES: usize = 1 << 20;

/// The output file and the lock that makes it this process's.
pub struct OutputFile {
    path: PathBuf,
    lock: OutputLock,
    // Set by SIGHUP.
    reopen: Arc<AtomicBool>,
    // The ledger's last mark, until the first opening has compared it with the file.
    committed: Option<Mark>,
    open: Option<Open>,
}

struct Open {
    tail: Tail,
    // The same open file description as the tail's, for its flock.
    locked: File,
    identity: (u64, u64),
}

impl Open {
    fn mark(&self, length: u64) -> Mark {
        let (device, inode) = self.identity;
        Mark { device, inode, length }
    }
}

impl OutputFile {
    /// The output at `path`, last committed at `committed`. It is opened by the first `retract`.
    pub fn new(path: &Path, lock: OutputLock, committed: Option<Mark>, reopen: Arc<AtomicBool>) -> Self {
        OutputFile { path: path.into(), lock, reopen, committed, open: None }
    }

    fn failed(&self) -> impl Fn(io::Error) -> VisitLogError + use<> {
        let path = self.path.display().to_string();
        move |error| VisitLogError::Failed { path: path.clone(), error }
    }

    /// Opens the file that the path names by now, if it is another than the one that is open.
    fn refresh(&mut self) -> io::Result<()> {
        let asked = self.reopen.swap(false, Ordering::Relaxed);
        let named = fs::metadata(&self.path).map(|named| identity(&named)).ok();
        let same = self.open.as_ref().map(|open| open.identity) == named && named.is_some();
        if same && !asked {
            return Ok(());
        }
        self.open = None;
        let file = private_file().read(true).append(true).open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        sync_folder(folder_of(&self.path))?;
        if let Some(mark) = self.committed {
            self.cut_unacknowledged(&file, &metadata, mark)?;
            self.committed = None;
        } else if !same {
            log::info!("writing to a new file at `{}`", self.path.display());
        }
        let locked = file.try_clone()?;
        self.open = Some(Open { tail: Tail::new(Box::new(file)), locked, identity: identity(&metadata) });
        Ok(())
    }

    /// Cuts off what stands behind the committed length: it was never acknowledged, and will be
    /// delivered again. The file that the mark names may have been renamed since.
    fn cut_unacknowledged(&self, file: &File, metadata: &fs::Metadata, mark: Mark) -> io::Result<()> {
        // The device's number may be another one after a restart of the machine or the container.
        if metadata.ino() == mark.inode {
            return cut_behind(file, &self.path, mark.length);
        }
        for entry in fs::read_dir(folder_of(&self.path))? {
            let path = entry?.path();
            let is_marked = |metadata: &fs::Metadata| metadata.ino() == mark.inode && metadata.is_file();
            if fs::metadata(&path).is_ok_and(|metadata| is_marked(&metadata)) {
                return cut_behind(
                    &OpenOptions::new().read(true).write(true).open(&path)?,
                    &path,
                    mark.length,
                );
            }
        }
        Ok(())
    }
}

impl VisitLog for OutputFile {
    fn check(&self) -> Result<(), VisitLogError> {
        self.lock.check()
    }

    fn begin(&mut self) -> Result<Mark, VisitLogError> {
        let failed = self.failed();
        let open = self.open.as_mut().ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
        lock_out_others(&open.locked).map_err(&failed)?;
        // Only now: until then a successor may have begun.
        self.lock.check()?;
        Ok(open.mark(open.tail.len().map_err(&failed)?))
    }

    fn append(&mut self, lines: &[u8]) -> Result<Mark, VisitLogError> {
        let failed = self.failed();
        let open = self.open.as_mut().ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
        let length = open.tail.append(lines).map_err(&failed)?;
        Ok(open.mark(length))
    }

    fn settle(&mut self) {
        if let Some(open) = &mut self.open {
            open.tail.settle();
            unlock(&open.locked);
        }
    }

    fn retract(&mut self) -> Result<(), VisitLogError> {
        self.lock.check()?;
        let failed = self.failed();
        if let Some(open) = &mut self.open {
            open.tail.retract().map_err(&failed)?;
            unlock(&open.locked);
        }
        self.refresh().map_err(&failed)
    }
}

/// Moves what stands behind `length` to a file of its own beside, and cuts it off.
fn cut_behind(file: &File, path: &Path, length: u64) -> io::Result<()> {
    let behind = file.metadata()?.len().saturating_sub(length);
    if behind == 0 {
        return Ok(());
    }
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.fZ").to_string();
    let kept_path = sibling(path, &format!("unacknowledged-{time}"));
    let kept = private_file().write(true).create_new(true).open(&kept_path)?;
    if let Err(error) = copy_behind(file, length, &kept).and_then(|()| kept.sync_all()) {
        // The next try makes another.
        let _ = fs::remove_file(&kept_path);
        return Err(error);
    }
    sync_folder(folder_of(path))?;
    file.set_len(length)?;
    file.sync_data()?;
    log::info!(
        "{behind} bytes at the end of `{}` were never acknowledged: moved to `{}`, their visits come again",
        path.display(),
        kept_path.display()
    );
    Ok(())
}

/// Copies what stands behind `from`, in pieces: others may have appended any amount.
fn copy_behind(file: &File, mut from: u64, mut copy: &File) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match DiskFile::read_at(file, &mut piece, from) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                copy.write_all(&piece[..read])?;
                from += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
