//! The little that Pixel asks of a file, so that tests can put a disk that fails underneath.

pub mod journal;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

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
    /// Cuts or extends with zeros.
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

/// Makes a folder's entries durable: a new, renamed or removed file is safe only after this.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder of `path`; `.` where it names none.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A disk that loses what was not synced, and fails when told to.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Default, Clone)]
    struct Content {
        live: Vec<u8>,
        durable: Vec<u8>,
        // Counts down with each write, sync and cut; at zero that operation fails, and all after it.
        operations_left: Option<u64>,
    }

    /// The handle: clones share the file.
    #[derive(Default, Clone)]
    pub struct FakeFile(Arc<Mutex<Content>>);

    impl FakeFile {
        /// Lets `operations` more writes, syncs and cuts succeed.
        pub fn fail_after(&self, operations: u64) {
            self.content().operations_left = Some(operations);
        }
        /// Ends the failing.
        pub fn heal(&self) {
            self.content().operations_left = None;
        }
        /// The power goes: of what was not synced, the part before `keep` bytes may have arrived.
        pub fn crash(&self, keep: usize) -> FakeFile {
            let content = self.content();
            let mut left = content.durable.clone();
            let arrived = keep.min(content.live.len());
            if arrived > left.len() {
                let from = left.len();
                left.extend_from_slice(&content.live[from..arrived]);
            }
            let left = Content { live: left.clone(), durable: left, operations_left: None };
            FakeFile(Arc::new(Mutex::new(left)))
        }
        /// The process is killed: a reader sees the same, and what was not synced still is not.
        pub fn kill(&self) -> FakeFile {
            let content = Content { operations_left: None, ..self.content().clone() };
            FakeFile(Arc::new(Mutex::new(content)))
        }
        /// How many bytes a power cut leaves at least.
        pub fn durable_len(&self) -> usize {
            self.content().durable.len()
        }
        /// What a reader sees.
        pub fn live(&self) -> Vec<u8> {
            self.content().live.clone()
        }
        fn content(&self) -> std::sync::MutexGuard<'_, Content> {
            self.0.lock().expect("no test panics while it holds this")
        }
        fn operate(&self) -> io::Result<std::sync::MutexGuard<'_, Content>> {
            let mut content = self.content();
            match &mut content.operations_left {
                Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
                left => {
                    *left = left.map(|n| n - 1);
                    Ok(content)
                }
            }
        }
    }

    impl DiskFile for FakeFile {
        fn len(&self) -> io::Result<u64> {
            Ok(self.content().live.len() as u64)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let content = self.content();
            let rest = content.live.get(offset as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            let failed = self.operate().err();
            // A write that fails has written half.
            let bytes = if failed.is_some() { &bytes[..bytes.len() / 2] } else { bytes };
            let mut content = self.content();
            let end = offset as usize + bytes.len();
            let len = content.live.len().max(end);
            content.live.resize(len, 0);
            content.live[offset as usize..end].copy_from_slice(bytes);
            failed.map_or(Ok(()), Err)
        }
        fn append(&self, bytes: &[u8]) -> io::Result<()> {
            self.write_at(bytes, self.len()?)
        }
        fn sync(&self) -> io::Result<()> {
            let mut content = self.operate()?;
            content.durable = content.live.clone();
            Ok(())
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.operate()?.live.resize(len as usize, 0);
            Ok(())
        }
    }
}
