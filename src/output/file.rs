//! The output file: appended to in whole batches by one process at a time, whatever else happens to it.
//!
//! It may be renamed, removed, truncated or written to by others; the path is looked at before each
//! append and a few times a second. From the beginning of a batch until it is committed an flock on the
//! file keeps cooperating readers out, so that they see whole, committed batches. It also keeps a
//! successor waiting, should somebody remove the lock file while its holder is paused within a batch.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::disk::{DiskFile, folder_of, read_whole, sync_folder};
use crate::record::state::Mark;
use crate::record::{VisitLog, VisitLogError};

/// How long a reader may keep its lock on the output before that counts as a failure.
const READER_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// How much of a file is in memory while it is copied.
const PIECE_BYTES: usize = 1 << 20;

/// `path` with `.suffix` behind its whole name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// The right to write one output file, held for the writer's life.
pub struct OutputLock {
    path: PathBuf,
    file: File,
}

impl OutputLock {
    /// Waits for the lock `<output>.lock`, polling; `None` when `stop` was set before. Calls
    /// `stand_by` once if somebody else holds it.
    ///
    /// # Errors
    /// What the system said.
    pub fn acquire(output: &Path, stop: &AtomicBool, stand_by: impl FnOnce()) -> io::Result<Option<Self>> {
        let path = beside(output, "lock");
        let mut stand_by = Some(stand_by);
        while !stop.load(Ordering::Relaxed) {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o640).open(&path)?;
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
            std::thread::sleep(POLL);
        }
        Ok(None)
    }

    /// Whether the file that is locked is still the one that others would lock.
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

/// The output file and the lock that makes it this process's.
pub struct OutputFile {
    path: PathBuf,
    lock: OutputLock,
    // Set by SIGHUP.
    reopen: &'static AtomicBool,
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
    pub fn new(path: &Path, lock: OutputLock, committed: Option<Mark>, reopen: &'static AtomicBool) -> Self {
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
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o640).open(&self.path)?;
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

/// The end of a file: what is appended there is provisional until it is settled.
pub struct Tail {
    file: Box<dyn DiskFile>,
    // Where the provisional bytes start.
    provisional_from: Option<u64>,
}

impl Tail {
    /// The end of `file`, all of which is settled.
    pub fn new(file: Box<dyn DiskFile>) -> Self {
        Tail { file, provisional_from: None }
    }

    /// The file's length.
    pub fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> io::Result<bool> {
        self.file.is_empty()
    }

    /// Appends `lines` durably; returns the file's length then. A last line that somebody left
    /// without its end is ended first.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<u64> {
        let from = self.file.len()?;
        let mut last = [b'\n'];
        if from > 0 {
            read_whole(&*self.file, &mut last, from - 1)?;
        }
        self.provisional_from = Some(from);
        if last != [b'\n'] {
            self.file.append(b"\n")?;
        }
        self.file.append(lines)?;
        self.file.sync()?;
        self.file.len()
    }

    /// What was appended stays.
    pub fn settle(&mut self) {
        self.provisional_from = None;
    }

    /// Removes what was appended and not settled, durably.
    pub fn retract(&mut self) -> io::Result<()> {
        if let Some(from) = self.provisional_from {
            // Somebody may have truncated it since: it must not grow by zeros.
            self.file.set_len(from.min(self.file.len()?))?;
            self.file.sync()?;
            self.provisional_from = None;
        }
        Ok(())
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn lock_out_others(file: &File) -> io::Result<()> {
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

fn unlock(file: &File) {
    // It fails only for a descriptor that is none.
    let _ = fs2::FileExt::unlock(file);
}

/// Moves what stands behind `length` to a file of its own beside, and cuts it off.
fn cut_behind(file: &File, path: &Path, length: u64) -> io::Result<()> {
    let behind = file.metadata()?.len().saturating_sub(length);
    if behind == 0 {
        return Ok(());
    }
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.fZ").to_string();
    let kept_path = beside(path, &format!("unacknowledged-{time}"));
    let kept = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&kept_path)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fake::FakeFile;

    #[test]
    fn what_fails_is_retracted_and_what_is_settled_stays() {
        for healthy_operations in 0..8 {
            let disk = FakeFile::default();
            let mut tail = Tail::new(Box::new(disk.clone()));
            tail.append(b"one\n").expect("the disk works");
            tail.settle();
            disk.fail_after(healthy_operations);
            let mut settled = b"one\n".to_vec();
            if tail.append(b"two\n").is_ok() {
                tail.settle();
                settled.extend_from_slice(b"two\n");
            }
            disk.heal();
            tail.retract().expect("the disk is healed");
            assert_eq!(disk.crash(0).live(), settled, "after {healthy_operations}");
        }
    }

    /// The retraction made the file as long as it had been, with zeros: one endless line.
    #[test]
    fn a_file_that_was_truncated_after_a_failed_append_is_not_filled_with_zeros() {
        let disk = FakeFile::default();
        let mut tail = Tail::new(Box::new(disk.clone()));
        tail.append(b"one\n").expect("the disk works");
        tail.settle();
        disk.fail_after(1);
        tail.append(b"two\n").expect_err("the disk fails");
        disk.heal();
        disk.set_len(0).expect("the disk is healed");
        tail.retract().expect("the disk is healed");
        assert_eq!(disk.live(), b"");
    }

    #[test]
    fn a_torn_last_line_is_ended_before_the_next() {
        let disk = FakeFile::default();
        disk.append(b"torn").expect("the disk works");
        let mut tail = Tail::new(Box::new(disk.clone()));
        assert_eq!(tail.append(b"whole\n").expect("the disk works"), 11);
        assert_eq!(disk.live(), b"torn\nwhole\n");
    }
}
