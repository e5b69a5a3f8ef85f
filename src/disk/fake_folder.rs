//! A folder on a disk that fails, dies, loses what was not synced and is touched by others, at any call.
//!
//! It knows pages: what a sync that failed left behind is clean, so that a later sync does not make it durable.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::DiskFile;
use super::folder::{Folder, GrowingFile, Identity};
use crate::stop::Stop;

/// How a call goes wrong. A call that dies takes its process with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    FailsBefore,
    FailsAfter,
    /// A write does half of what it should, and says so.
    Short,
    /// A write does half of what it should, and fails.
    FailsHalfway,
    DiesBefore,
    DiesAfter,
    DiesHalfway,
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::FailsBefore,
    Fault::FailsAfter,
    Fault::Short,
    Fault::FailsHalfway,
    Fault::DiesBefore,
    Fault::DiesAfter,
    Fault::DiesHalfway,
];

/// What somebody else does right before a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Appends a line of his own.
    Append,
    /// Appends the beginning of a line.
    AppendTorn,
    Rename,
    Remove,
    Truncate,
    /// Copies the file beside, and cuts it off.
    CopyTruncate,
    /// Removes the lock file while the writer is paused.
    TakeLock,
}

#[derive(Default, Clone)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    // By byte of `live`: whether it was written since the last sync, however that went.
    is_dirty: Vec<bool>,
    links: u64,
    // The handle that has it locked.
    locked_by: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<OsString, usize>,
    durable_names: BTreeMap<OsString, usize>,
    /// What was cut off or removed by others.
    pub(crate) gone: Vec<u8>,
    pub(crate) calls: usize,
    pub(crate) faults: Vec<(usize, Fault)>,
    pub(crate) deeds: Vec<(usize, Deed)>,
    pub(crate) is_dead: bool,
    /// Whether a write that fails leaves the position where it was, whatever arrived: as on a mount that syncs.
    pub(crate) is_sync_mount: bool,
    /// The file that cannot grow.
    pub(crate) full: Option<&'static str>,
    /// Whether the running process has the right to write still.
    pub(crate) has_lock: bool,
    pub(crate) stop: Stop,
    handles: u64,
    renames: usize,
    foreign: usize,
}

/// The handle on a disk: clones share it.
#[derive(Clone, Default)]
pub(crate) struct FakeFolder(Arc<Mutex<Disk>>);

/// The name of the output on it.
pub(crate) const OUTPUT: &str = "visits.log";

struct FakeHandle {
    disk: FakeFolder,
    inode: usize,
    id: u64,
    position: Mutex<u64>,
}

impl Disk {
    fn do_deed(&mut self, deed: Deed) {
        let output = OsString::from(OUTPUT);
        let Some(&inode) = self.names.get(&output) else { return };
        match deed {
            Deed::Append | Deed::AppendTorn => {
                self.foreign += 1;
                let line =
                    format!("foreign {}{}", self.foreign, if deed == Deed::Append { "\n" } else { "" });
                self.inodes[inode].live.extend_from_slice(line.as_bytes());
                self.settle_foreign(inode);
            }
            Deed::Rename => {
                self.renames += 1;
                self.names.remove(&output);
                self.names.insert(format!("{OUTPUT}.{}", self.renames).into(), inode);
                self.durable_names = self.names.clone();
            }
            Deed::Remove => {
                self.names.remove(&output);
                self.inodes[inode].links -= 1;
                let content = self.inodes[inode].live.clone();
                self.gone.extend_from_slice(&content);
                self.durable_names = self.names.clone();
            }
            Deed::Truncate => {
                let content = std::mem::take(&mut self.inodes[inode].live);
                self.gone.extend_from_slice(&content);
                self.inodes[inode].durable.clear();
                self.inodes[inode].is_dirty.clear();
            }
            Deed::CopyTruncate => {
                self.renames += 1;
                let live = std::mem::take(&mut self.inodes[inode].live);
                let is_dirty = vec![false; live.len()];
                let copy = Inode { durable: live.clone(), live, is_dirty, links: 1, locked_by: None };
                self.inodes[inode].durable.clear();
                self.inodes[inode].is_dirty.clear();
                self.inodes.push(copy);
                self.names.insert(format!("{OUTPUT}.{}", self.renames).into(), self.inodes.len() - 1);
                self.durable_names = self.names.clone();
            }
            Deed::TakeLock => self.has_lock = false,
        }
    }

    /// Others sync what they write, and nothing else.
    fn settle_foreign(&mut self, inode: usize) {
        let inode = &mut self.inodes[inode];
        let from = inode.is_dirty.len();
        inode.is_dirty.resize(inode.live.len(), false);
        if inode.durable.len() < from {
            // The length is the file's, whoever synced: what is before is zeros on disk.
            inode.durable.resize(from, 0);
        }
        let new = inode.live[from..].to_vec();
        inode.durable.truncate(from);
        inode.durable.extend_from_slice(&new);
    }

    /// Whether the next call takes effect, how much of it, and whether it succeeds.
    fn call(&mut self) -> (bool, bool, bool) {
        if self.is_dead {
            return (false, false, false);
        }
        self.calls += 1;
        let now = self.calls;
        let deeds: Vec<Deed> =
            self.deeds.iter().filter(|(call, _)| *call == now).map(|(_, deed)| *deed).collect();
        deeds.into_iter().for_each(|deed| self.do_deed(deed));
        let fault = self.faults.iter().find(|(call, _)| *call == now).map(|(_, fault)| *fault);
        use Fault::{DiesAfter, DiesBefore, DiesHalfway, FailsAfter, FailsHalfway, Short};
        if matches!(fault, Some(DiesBefore | DiesAfter | DiesHalfway)) {
            self.is_dead = true;
            self.stop.set();
        }
        let takes_effect =
            matches!(fault, None | Some(FailsAfter | DiesAfter | Short | FailsHalfway | DiesHalfway));
        let is_half = matches!(fault, Some(Short | FailsHalfway | DiesHalfway));
        (takes_effect, is_half, matches!(fault, None | Some(Short)))
    }

    fn write(&mut self, inode: usize, bytes: &[u8], offset: usize) {
        let inode = &mut self.inodes[inode];
        let end = offset + bytes.len();
        if inode.live.len() < end {
            inode.live.resize(end, 0);
        }
        inode.is_dirty.resize(inode.live.len(), false);
        inode.live[offset..end].copy_from_slice(bytes);
        inode.is_dirty[offset..end].fill(true);
    }
}

fn refused() -> io::Error {
    io::Error::from(ErrorKind::StorageFull)
}

impl FakeFolder {
    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no test panics while it holds this")
    }

    /// A new process; with `loses_power` what was not synced is lost, and else the last one was killed.
    pub(crate) fn start_again(&self, loses_power: bool) {
        let mut disk = self.disk();
        (disk.is_dead, disk.has_lock, disk.stop) = (false, true, Stop::default());
        disk.inodes.iter_mut().for_each(|inode| inode.locked_by = None);
        if loses_power {
            disk.names = disk.durable_names.clone();
            for inode in &mut disk.inodes {
                inode.live = inode.durable.clone();
                inode.is_dirty = vec![false; inode.live.len()];
            }
        }
    }

    /// All that stands in outputs, by name.
    pub(crate) fn outputs(&self) -> Vec<(String, Vec<u8>)> {
        let all = self.files(false).into_iter();
        all.filter(|(name, _)| !name.contains("ledger")).collect()
    }

    /// The same, as a power cut would leave it.
    pub(crate) fn durable_outputs(&self) -> Vec<(String, Vec<u8>)> {
        let all = self.files(true).into_iter();
        all.filter(|(name, _)| !name.contains("ledger")).collect()
    }

    /// Every file by name, as it is or as a power cut would leave it.
    pub(crate) fn files(&self, is_durable: bool) -> Vec<(String, Vec<u8>)> {
        let disk = self.disk();
        let names = if is_durable { &disk.durable_names } else { &disk.names };
        let content = |inode: &Inode| if is_durable { inode.durable.clone() } else { inode.live.clone() };
        let all = names.iter().map(|(name, inode)| (name, content(&disk.inodes[*inode])));
        all.map(|(name, content)| (name.to_string_lossy().into_owned(), content)).collect()
    }

    /// Writes a file as somebody else does.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let mut disk = self.disk();
        let inode = disk.inodes.len();
        let is_dirty = vec![false; content.len()];
        let (live, durable) = (content.to_vec(), content.to_vec());
        disk.inodes.push(Inode { live, durable, is_dirty, links: 1, locked_by: None });
        disk.names.insert(name.into(), inode);
        disk.durable_names.insert(name.into(), inode);
    }

    /// What a file holds.
    pub(crate) fn content(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(OsStr::new(name)).map(|inode| disk.inodes[*inode].live.clone())
    }

    fn handle(&self, disk: &mut Disk, inode: usize) -> Arc<FakeHandle> {
        disk.handles += 1;
        Arc::new(FakeHandle { disk: self.clone(), inode, id: disk.handles, position: Mutex::new(0) })
    }

    /// One call that changes something: `effect` is told whether it is done by half.
    fn change<T>(&self, effect: impl FnOnce(&mut Disk, bool) -> T) -> io::Result<T> {
        let mut disk = self.disk();
        let (takes_effect, is_half, succeeds) = disk.call();
        if !takes_effect {
            return Err(refused());
        }
        let done = effect(&mut disk, is_half);
        if succeeds { Ok(done) } else { Err(refused()) }
    }

    pub(crate) fn ask<T>(&self, answer: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        self.change(|disk, _| answer(disk))
    }
}

impl Folder for FakeFolder {
    fn open(&self, name: &OsStr, creates: bool) -> io::Result<Arc<dyn GrowingFile>> {
        let opened = self.ask(|disk| {
            let inode = match disk.names.get(name) {
                Some(inode) => *inode,
                None if creates => {
                    disk.inodes.push(Inode { links: 1, ..Inode::default() });
                    let inode = disk.inodes.len() - 1;
                    disk.names.insert(name.into(), inode);
                    inode
                }
                None => return None,
            };
            Some(self.handle(disk, inode))
        })?;
        opened.map(|handle| handle as Arc<dyn GrowingFile>).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn open_disk(&self, name: &OsStr) -> io::Result<Option<Arc<dyn DiskFile>>> {
        self.ask(|disk| {
            let inode = disk.names.get(name).copied();
            inode.map(|inode| self.handle(disk, inode) as Arc<dyn DiskFile>)
        })
    }

    fn create(&self, name: &OsStr) -> io::Result<Arc<dyn DiskFile>> {
        self.ask(|disk| {
            disk.inodes.push(Inode { links: 1, ..Inode::default() });
            let inode = disk.inodes.len() - 1;
            disk.names.insert(name.into(), inode);
            self.handle(disk, inode) as Arc<dyn DiskFile>
        })
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.ask(|disk| {
            if let Some(inode) = disk.names.remove(from) {
                disk.names.insert(to.into(), inode);
            }
        })
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let is_taken = self.disk().names.contains_key(to);
        match is_taken {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => self.rename(from, to),
        }
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        self.ask(|disk| disk.names.keys().cloned().collect())
    }

    fn identity(&self, name: &OsStr) -> io::Result<Option<Identity>> {
        self.ask(|disk| disk.names.get(name).map(|inode| (1, *inode as u64)))
    }

    fn sync(&self) -> io::Result<()> {
        self.ask(|disk| disk.durable_names = disk.names.clone())
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        PathBuf::from("fake").join(name)
    }
}

impl FakeHandle {
    fn length(&self) -> io::Result<u64> {
        self.disk.ask(|disk| disk.inodes[self.inode].live.len() as u64)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.ask(|disk| {
            let rest = disk.inodes[self.inode].live.get(offset as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            read
        })
    }

    /// Refuses where the file cannot be as long as `end`.
    fn grow(&self, end: u64) -> io::Result<()> {
        let disk = self.disk.disk();
        let full = disk.full.and_then(|name| disk.names.get(OsStr::new(name)));
        let is_refused = full == Some(&self.inode) && end > disk.inodes[self.inode].live.len() as u64;
        if is_refused { Err(refused()) } else { Ok(()) }
    }

    fn write_in_place(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.grow(offset + bytes.len() as u64)?;
        let written = self.disk.change(|disk, is_half| {
            let bytes = if is_half { &bytes[..bytes.len() / 2] } else { bytes };
            disk.write(self.inode, bytes, offset as usize);
            bytes.len()
        })?;
        // A write of all is tried again by itself where it was short.
        if written < bytes.len() {
            return self.write_in_place(&bytes[written..], offset + written as u64);
        }
        Ok(())
    }

    fn synchronise(&self) -> io::Result<()> {
        let mut disk = self.disk.disk();
        let (takes_effect, _, succeeds) = disk.call();
        if disk.is_dead && !takes_effect {
            return Err(refused());
        }
        let inode = &mut disk.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.is_dirty);
        if takes_effect {
            inode.durable.resize(inode.live.len(), 0);
            for at in (0..inode.live.len()).filter(|at| dirty.get(*at) == Some(&true)) {
                inode.durable[at] = inode.live[at];
            }
        }
        // Whether it failed or not, nothing is dirty any more.
        inode.is_dirty = vec![false; inode.live.len()];
        if succeeds { Ok(()) } else { Err(refused()) }
    }
}

impl DiskFile for FakeHandle {
    fn len(&self) -> io::Result<u64> {
        self.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_in_place(bytes, offset)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length()?;
        self.write_in_place(bytes, end)
    }
    fn sync(&self) -> io::Result<()> {
        self.synchronise()
    }
    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.ask(|_| ())?;
        self.grow(offset + bytes)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.ask(|disk| {
            let inode = &mut disk.inodes[self.inode];
            inode.live.resize(len as usize, 0);
            inode.is_dirty.resize(len as usize, true);
        })
    }
}

impl GrowingFile for FakeHandle {
    fn len(&self) -> io::Result<u64> {
        self.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset)
    }
    fn write_again(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        {
            let disk = self.disk.disk();
            let there = disk.inodes[self.inode].live.get(offset as usize..offset as usize + bytes.len());
            // A truncation by somebody else may come in between.
            let was_cut = there.is_none_or(|there| there != bytes) && !disk.deeds.is_empty();
            assert!(was_cut || there == Some(bytes), "only what stands there is written again");
        }
        self.write_in_place(bytes, offset)
    }
    fn reserve(&self, _: u64) -> io::Result<()> {
        self.disk.ask(|_| ())
    }
    fn position(&self) -> io::Result<u64> {
        let position = *self.position.lock().expect("no test panics while it holds this");
        self.disk.ask(|_| position)
    }
    fn append(&self, bytes: &[u8]) -> (u64, io::Result<usize>) {
        let mut position = self.position.lock().expect("no test panics while it holds this");
        let mut before = (0, false);
        let outcome = self.disk.change(|disk, is_half| {
            let bytes = if is_half { &bytes[..bytes.len().div_ceil(2)] } else { bytes };
            let end = disk.inodes[self.inode].live.len();
            disk.write(self.inode, bytes, end);
            before = (*position, disk.is_sync_mount);
            *position = (end + bytes.len()) as u64;
            bytes.len()
        });
        if before.1 && outcome.is_err() {
            *position = before.0;
        }
        (*position, outcome)
    }
    fn sync(&self) -> io::Result<()> {
        self.synchronise()
    }
    fn identity(&self) -> io::Result<Identity> {
        self.disk.ask(|_| (1, self.inode as u64))
    }
    fn links(&self) -> io::Result<u64> {
        self.disk.ask(|disk| disk.inodes[self.inode].links)
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.disk.ask(|disk| {
            let inode = &mut disk.inodes[self.inode];
            let is_free = inode.locked_by.is_none_or(|holder| holder == self.id);
            if is_free {
                inode.locked_by = Some(self.id);
            }
            is_free
        })
    }
    fn unlock(&self) {
        let mut disk = self.disk.disk();
        let inode = &mut disk.inodes[self.inode];
        inode.locked_by = inode.locked_by.filter(|holder| *holder != self.id);
    }
    fn locked_by(&self) -> Option<String> {
        None
    }
}
