//! A folder in which files are found by name, and files in it that can only grow.
//!
//! The output file is behind these traits, so that tests can put a disk underneath that fails, loses what was not
//! synced, and is touched by others between any two calls. Nothing in them shortens a file.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use rustix::fs::{OFlags, fcntl_setfl, major, minor};
use rustix::io::Errno;

use super::{DiskFile, identity, open_regular, private_file, rename_new, sync_folder};

/// Which file it is, whatever its name: device and inode number.
pub type Identity = (u64, u64);

/// A folder.
pub trait Folder: Send {
    /// Opens the regular file `name`, creating it (mode 0640) where it is absent and `creates` says so. A link is
    /// not followed, here as below.
    ///
    /// # Errors
    /// What the system said; `NotFound`, also for a folder that is away; `InvalidInput` for what is no regular file.
    fn open(&self, name: &OsStr, creates: bool) -> io::Result<Arc<dyn GrowingFile>>;
    /// Opens the regular file `name` to read and write anywhere; `None` where it is absent.
    fn open_disk(&self, name: &OsStr) -> io::Result<Option<Arc<dyn DiskFile>>>;
    /// Creates the file `name` (mode 0640), empty.
    fn create(&self, name: &OsStr) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives the file `from` the name `to`, in place of any other that has it.
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Gives the file `from` the name `to`, which nobody may have: `AlreadyExists` where somebody does.
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// The names of everything in it.
    fn names(&self) -> io::Result<Vec<OsString>>;
    /// Which file `name` is, links not followed; `None` where there is none.
    fn identity(&self, name: &OsStr) -> io::Result<Option<Identity>>;
    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;
    /// `name` with this folder's path, fit to be shown.
    fn path(&self, name: &OsStr) -> PathBuf;
}

/// A file that is appended to, and whose bytes may be written again where they stand.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait GrowingFile: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads up to `buffer.len()` bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` where the same bytes stand already: a sync that failed may have left them in memory
    /// alone. A file to which the system only lets anybody append stays as it is.
    fn write_again(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Takes room for `bytes` more, so that a disk that is full says so before the first of them is written. A file
    /// system that cannot do that does nothing.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Where the last append by this handle ended.
    fn position(&self) -> io::Result<u64>;
    /// Appends as much of `bytes` as the system takes in one go, wherever the end is by now. The position thereafter
    /// is returned in any case: after an error, too, some of them may stand before it.
    fn append(&self, bytes: &[u8]) -> (u64, io::Result<usize>);
    /// Makes content and length durable (fdatasync). After an error nothing written since the last one is, and
    /// a later sync does not change that: Linux takes the pages for clean.
    fn sync(&self) -> io::Result<()>;
    /// Which file it is.
    fn identity(&self) -> io::Result<Identity>;
    /// How many names it has.
    fn links(&self) -> io::Result<u64>;
    /// Tries to lock it against everybody else (flock); `false` where somebody has it locked.
    fn try_lock(&self) -> io::Result<bool>;
    /// Lets go of the lock.
    fn unlock(&self);
    /// Who has it locked, fit to be shown, where that can be told.
    fn locked_by(&self) -> Option<String>;
    /// Fills `buffer` from `offset`; `false` where the file ends before.
    fn read_whole(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => return Ok(false),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A folder of a real disk.
pub struct RealFolder(PathBuf);

impl RealFolder {
    /// The folder at `path`; it need not be there yet.
    pub fn new(path: &Path) -> Self {
        RealFolder(path.into())
    }
}

impl Folder for RealFolder {
    fn open(&self, name: &OsStr, creates: bool) -> io::Result<Arc<dyn GrowingFile>> {
        let path = self.path(name);
        let appending = open_regular(&path, private_file().create(creates).read(true).append(true))?;
        Ok(Arc::new(RealFile { path, appending, writing: Mutex::new(()), is_told: Once::new() }))
    }

    fn open_disk(&self, name: &OsStr) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match open_regular(&self.path(name), fs::OpenOptions::new().read(true).write(true)) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) if error.kind() == ErrorKind::NotFound && self.0.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &OsStr) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = private_file();
        Ok(Arc::new(open_regular(&self.path(name), options.read(true).write(true).truncate(true))?))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        rename_new(&self.path(from), &self.path(to))
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.0)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }

    fn identity(&self, name: &OsStr) -> io::Result<Option<Identity>> {
        match fs::symlink_metadata(self.path(name)) {
            Ok(found) => Ok(Some(identity(&found))),
            // Where the folder is away, so is everything in it, but that is another matter.
            Err(error) if error.kind() == ErrorKind::NotFound && self.0.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        sync_folder(&self.0)
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        self.0.join(name)
    }
}

/// A file of a real disk, opened with O_APPEND: that is how appends by several programs do not overwrite one
/// another.
struct RealFile {
    // When it was opened.
    path: PathBuf,
    appending: File,
    // Held while something is written: to write in place, O_APPEND is taken off for an instant.
    writing: Mutex<()>,
    is_told: Once,
}

impl RealFile {
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrowingFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.appending.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.appending, buffer, offset)
    }

    fn write_again(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _alone = self.writing();
        // A positioned write to a descriptor with O_APPEND appends (pwrite(2), BUGS). The flag is of this open file
        // alone. To open another takes a name, which may be another file's by now, or /proc, and the file's mode.
        match fcntl_setfl(&self.appending, OFlags::empty()) {
            Err(Errno::PERM) => {
                self.is_told.call_once(|| {
                    log::warn!(
                        "`{}` is append-only (chattr +a): what a crash left in it is synced as it is",
                        self.path.display()
                    );
                });
                return Ok(());
            }
            done => done?,
        }
        let written = self.appending.write_all_at(bytes, offset);
        fcntl_setfl(&self.appending, OFlags::APPEND)?;
        written
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        DiskFile::reserve(&self.appending, self.len()?, bytes)
    }

    fn position(&self) -> io::Result<u64> {
        (&self.appending).stream_position()
    }

    fn append(&self, bytes: &[u8]) -> (u64, io::Result<usize>) {
        let _alone = self.writing();
        let mut file = &self.appending;
        // It is off still where setting it back was refused, as the file was made append-only in between.
        let written = fcntl_setfl(file, OFlags::APPEND).map_err(io::Error::from);
        let written = written.and_then(|()| file.write(bytes));
        match file.stream_position() {
            Ok(position) => (position, written),
            Err(error) => (0, Err(error)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.appending.sync_data()
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.appending.metadata()?))
    }

    fn links(&self) -> io::Result<u64> {
        Ok(self.appending.metadata()?.nlink())
    }

    fn try_lock(&self) -> io::Result<bool> {
        match fs2::FileExt::try_lock_exclusive(&self.appending) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unlock(&self) {
        // It fails only for a descriptor that is none.
        let _ = fs2::FileExt::unlock(&self.appending);
    }

    fn locked_by(&self) -> Option<String> {
        lock_holder(&self.appending)
    }
}

/// Which process holds a flock on `file` (proc(5), /proc/locks), fit to be shown.
pub fn lock_holder(file: &File) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let holder = flock_of(&locks, identity(&file.metadata().ok()?))?;
    let name = fs::read_to_string(format!("/proc/{holder}/comm")).unwrap_or_default();
    Some(format!("process {holder} ({})", name.trim()))
}

/// The process that has the flock of a file, in what /proc/locks says.
fn flock_of(locks: &str, (device, inode): Identity) -> Option<&str> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        // As in `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131090 0 EOF`; a process that waits has `->` in front.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = words[..] else { return None };
        (place == file).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn folder() -> (tempfile::TempDir, RealFolder) {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = RealFolder::new(temporary.path());
        (temporary, folder)
    }

    fn open(folder: &RealFolder) -> Arc<dyn GrowingFile> {
        folder.open(OsStr::new("visits.log"), true).expect("the disk works")
    }

    /// It opened the file once more through /proc: one that was append-only by then, or of another owner, kept a start
    /// that had claims waiting for ever.
    #[test]
    fn bytes_are_written_again_where_they_stand_whatever_became_of_the_file() {
        let (temporary, folder) = folder();
        let path = temporary.path().join("visits.log");
        let file = open(&folder);
        file.append(b"one\ntwo\n").1.expect("the disk works");
        let chattr = |flag: &str| {
            let done = Command::new("chattr").arg(flag).arg(&path).output();
            done.is_ok_and(|done| done.status.success())
        };
        for (case, flag) in [("as it was", "-a"), ("append-only", "+a")] {
            if !chattr(flag) {
                eprintln!("NOT TESTED: this user or file system knows no append-only files");
                continue;
            }
            let outcome = file.write_again(b"two\n", 4).and_then(|()| file.append(b"three\n").1);
            chattr("-a");
            outcome.expect(case);
        }
        fs::remove_file(&path).expect("the disk works");
        file.write_again(b"two\n", 4).expect("one without a name");
        let mut there = vec![0; 20];
        assert!(file.read_whole(&mut there, 0).expect("the disk works"));
        assert_eq!(there, b"one\ntwo\nthree\nthree\n"[..20]);
    }

    /// The holder of a lock on another disk's file of the same inode number was named.
    #[test]
    fn who_has_a_file_locked_is_told_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fd:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 2 08:01:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 3 fd:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 4 fd:01:77 0 EOF\n";
        let on = |major, minor, inode| flock_of(locks, (rustix::fs::makedev(major, minor), inode));
        assert_eq!((on(0xfd, 1, 77), on(8, 1, 77)), (Some("4"), Some("2")));
        assert_eq!((on(8, 2, 77), on(8, 1, 7)), (None, None));
        let (_temporary, folder) = folder();
        let (file, other) = (open(&folder), open(&folder));
        assert!(file.try_lock().expect("the disk works"));
        let own = format!("process {} (", std::process::id());
        assert!(other.locked_by().is_some_and(|holder| holder.starts_with(&own)));
    }

    /// O_APPEND is off for an instant, and belongs to all who write through the same descriptor.
    #[test]
    fn nothing_is_appended_while_bytes_are_written_again() {
        let (_temporary, folder) = folder();
        let (file, other) = (open(&folder), open(&folder));
        file.append(b"first\n").1.expect("the disk works");
        std::thread::scope(|scope| {
            for appending in [&file, &other] {
                scope.spawn(|| {
                    (0..500).for_each(|_| _ = appending.append(b"line\n").1.expect("the disk works"))
                });
            }
            (0..500).for_each(|_| file.write_again(b"first\n", 0).expect("the disk works"));
        });
        let mut there = vec![0; 6 + 1_000 * 5];
        assert!(file.read_whole(&mut there, 0).expect("the disk works"));
        assert_eq!(there, [&b"first\n"[..], &b"line\n".repeat(1_000)].concat());
    }
}
