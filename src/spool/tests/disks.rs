//! A spool's folder on a disk that fails: names and content as every reader sees them, and under each file a
//! [`FakeFile`] that knows what a power cut would leave of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::fake::FakeFile;
use crate::disk::{DiskFile, identity};
use crate::spool::segment::AsDisk;

const PAGE_BYTES: u64 = 4096;

/// The disk. Clones share it.
#[derive(Default, Clone)]
pub(super) struct Disks(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    // By device and inode number.
    files: BTreeMap<(u64, u64), FakeFile>,
    // Pages that are not given out, by the byte that they start with.
    unreadable: Vec<((u64, u64), u64)>,
    // As in a `FakeFile`, for all of them.
    operations_left: Option<u64>,
    // How many files are open.
    open: usize,
    most_open: usize,
}

impl Disks {
    /// How the spool is to write and read its files.
    pub(super) fn mount(&self) -> AsDisk {
        let disks = self.clone();
        Arc::new(move |file| Arc::new(disks.over(file)))
    }

    /// Lets `operations` more writes, syncs and cuts succeed.
    pub(super) fn fail_after(&self, operations: u64) {
        self.table().operations_left = Some(operations);
    }

    /// The page of the file at `path` that holds the byte `at` cannot be read.
    pub(super) fn hide(&self, path: &Path, at: u64) {
        let file = identity(&fs::metadata(path).expect("it is there"));
        self.table().unreadable.push((file, at / PAGE_BYTES * PAGE_BYTES));
    }

    /// Lets all operations succeed. What cannot be read stays so.
    pub(super) fn stop_failing(&self) {
        self.table().operations_left = None;
    }

    /// Ends all failing.
    pub(super) fn heal(&self) {
        self.stop_failing();
        self.table().unreadable.clear();
    }

    /// How many files were open at once, at most.
    pub(super) fn most_open(&self) -> usize {
        self.table().most_open
    }

    /// Appends to the file at `path`, as a process does that is killed before it syncs.
    pub(super) fn append(&self, path: &Path, bytes: &[u8]) {
        let file = File::options().read(true).write(true).open(path).expect("it is there");
        let file = self.over(file);
        file.write_at(bytes, file.len().expect("it is open")).expect("the disk works");
    }

    /// The power goes: of what was not synced, what stands before `keep` bytes of its file has arrived.
    pub(super) fn cut_power(&self, folder: &Path, keep: usize) {
        let mut table = self.table();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let file = identity(&fs::metadata(&path).expect("it is there"));
            if let Some(disk) = table.files.get_mut(&file) {
                *disk = disk.tear(keep);
                fs::write(&path, disk.live()).expect("the disk works");
            }
        }
    }

    fn over(&self, file: File) -> OnDisk {
        let identity = identity(&file.metadata().expect("it is open"));
        let mut content = vec![0; file.metadata().expect("it is open").len() as usize];
        file.read_exact_at(&mut content, 0).expect("the disk works");
        let mut table = self.table();
        let disk = table.files.entry(identity).or_default();
        if disk.live() != content {
            // Another file had its number before, or somebody wrote to it by its name.
            *disk = FakeFile::holding(&content);
        }
        let disk = disk.clone();
        table.open += 1;
        table.most_open = table.most_open.max(table.open);
        drop(table);
        OnDisk { file, identity, disk, disks: self.clone() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("no test panics while it holds this")
    }
}

/// One open file.
struct OnDisk {
    file: File,
    identity: (u64, u64),
    disk: FakeFile,
    disks: Disks,
}

impl OnDisk {
    fn operate(&self, operation: impl FnOnce(&FakeFile) -> io::Result<()>) -> io::Result<()> {
        match &mut self.disks.table().operations_left {
            Some(0) => self.disk.fail_after(0),
            left => *left = left.map(|operations| operations - 1),
        }
        let outcome = operation(&self.disk);
        self.disk.heal();
        outcome
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        self.disks.table().open -= 1;
    }
}

impl DiskFile for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset + buffer.len() as u64;
        let hidden = self
            .disks
            .table()
            .unreadable
            .iter()
            .filter(|(file, _)| *file == self.identity)
            .filter(|(_, page)| (offset < page + PAGE_BYTES) && end > *page)
            .map(|(_, page)| *page)
            .min();
        match hidden {
            // EIO
            Some(page) if page <= offset => Err(io::Error::from_raw_os_error(5)),
            Some(page) => self.disk.read_at(&mut buffer[..(page - offset) as usize], offset),
            None => self.disk.read_at(buffer, offset),
        }
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let outcome = self.operate(|disk| disk.write_at(bytes, offset));
        let live = self.disk.live();
        let end = live.len().min(offset as usize + bytes.len());
        self.file.write_all_at(&live[offset as usize..end], offset)?;
        outcome
    }
    fn append(&self, _: &[u8]) -> io::Result<()> {
        unreachable!("a spool writes at places")
    }
    fn sync(&self) -> io::Result<()> {
        self.operate(DiskFile::sync)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(|disk| disk.set_len(len))?;
        self.file.set_len(len)
    }
}
