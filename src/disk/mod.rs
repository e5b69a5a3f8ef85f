//! The little that Pixel asks of a file, so that tests can put a disk that fails underneath.

#[cfg(test)]
pub mod fake;
#[cfg(test)]
pub(crate) mod fake_folder;
pub mod file_system;
pub mod folder;
pub mod journal;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;

/// A file. What was written is safe from a power cut only after `sync`.
pub trait DiskFile: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads up to `buffer.len()` bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`; after an error any part of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at the end, wherever that is by now; errors as for `write_at`.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and length durable (fdatasync). After an error nothing is known of what was
    /// written since the last one.
    fn sync(&self) -> io::Result<()>;
    /// Takes room for `bytes` from `offset` on without making it longer, so that a disk that is full says so before
    /// anything is written. A file system that cannot do that does nothing.
    fn reserve(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
    /// Cuts the file to `len` bytes, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        // The file was opened with O_APPEND.
        let mut file = self;
        file.write_all(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::KEEP_SIZE, offset, bytes) {
            Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(full.into()),
            // What else it may say is about the call, not about the room.
            _ => Ok(()),
        }
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// Fills `buffer` from `offset`; `false` where the file ends before.
pub fn read_whole(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => return Ok(false),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Opens a file to read and write, creating it where it is absent: readable by its group, by nobody else.
///
/// # Errors
/// What the system said.
pub fn open_private(path: &Path) -> io::Result<File> {
    private_file().read(true).write(true).truncate(false).open(path)
}

/// What every file of Pixel's is created with: mode 0640.
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o640);
    options
}

/// Makes a file that is to have another name once it is whole.
///
/// # Errors
/// What the system said; `AlreadyExists`, with the cure, where somebody has the name.
pub fn create_draft(path: &Path) -> io::Result<File> {
    let opened = private_file().write(true).create_new(true).open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let shown = path.display();
            let cure = format!(
                "`{shown}` is there: another run makes it, or left it when it was killed; then remove it"
            );
            io::Error::new(error.kind(), cure)
        }
        _ => error,
    })
}

/// Gives the file `from` the name `to`, which nobody may have.
///
/// # Errors
/// What the system said; `AlreadyExists` where somebody has it.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Of a file system that does not know it (NFS), a look before has to do.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

/// Opens the regular file at `path` as `options` say. Nothing is waited for, and no link is followed.
///
/// # Errors
/// What the system said; `InvalidInput`, with the cure, for what is no regular file.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let other = |what: &str| {
        let cure = format!("it is {what} and no regular file: move it away, or name another output");
        io::Error::new(io::ErrorKind::InvalidInput, cure)
    };
    // A FIFO would wait for its other end, a device for whatever it waits for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = options.custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => other("a symbolic link, which is not followed,"),
        Some(Errno::ISDIR) => other("a folder"),
        Some(Errno::NXIO | Errno::NODEV) => other("a socket, a FIFO or a device"),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(other("a FIFO, a device or a folder")),
    }
}

/// Which file it is, whatever its name: device and inode number.
pub fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// `path` with `.suffix` behind its whole name.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a folder's entries durable: a new, renamed or removed file is safe only after this.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes the names of a new folder and of those above it durable: a power cut must not take away a folder whose files
/// are synced. One that was there before has a name already, and may be closed to us.
pub fn keep_names(folder: &Path) {
    for above in folder.ancestors().skip(1) {
        let above = if above == Path::new("") { Path::new(".") } else { above };
        if let Err(error) = sync_folder(above) {
            log::warn!("failed to sync `{}`, which `{}` is in: {error}", above.display(), folder.display());
        }
    }
}

/// The folder of `path`; `.` where it names none.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
