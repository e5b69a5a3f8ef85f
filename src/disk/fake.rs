//! A disk that loses what was not synced, fails when told to, and after a failed sync is as treacherous as Linux:
//! the pages count as clean, so a later sync that succeeds does not write them.

use super::*;
use std::ops::Range;
use std::sync::{Arc, Mutex};

#[derive(Default, Clone)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    // The parts of `live` that the next sync writes: those that were written since the last one, whether that
    // succeeded or not.
    dirty: Vec<Range<usize>>,
    // Counts down with each write, sync and cut; at zero that operation fails, and all after it.
    operations_left: Option<u64>,
}

impl Content {
    fn resize(&mut self, len: usize) {
        let before = self.live.len();
        self.live.resize(len, 0);
        if len > before {
            self.dirty.push(before..len);
        }
    }
}

/// The handle: clones share the file.
#[derive(Default, Clone)]
pub struct FakeFile(Arc<Mutex<Content>>);

impl FakeFile {
    /// A file whose content is durable.
    pub fn holding(bytes: &[u8]) -> FakeFile {
        let content = Content {
            live: bytes.to_vec(),
            durable: bytes.to_vec(),
            dirty: Vec::new(),
            operations_left: None,
        };
        FakeFile(Arc::new(Mutex::new(content)))
    }
    /// Lets `operations` more writes, syncs and cuts succeed.
    pub fn fail_after(&self, operations: u64) {
        self.content().operations_left = Some(operations);
    }
    /// Ends the failing.
    pub fn heal(&self) {
        self.content().operations_left = None;
    }
    /// The power goes: of what was not synced, the part before `keep` bytes may have arrived. Where bytes were
    /// written over older ones, the older ones are there again.
    pub fn crash(&self, keep: usize) -> FakeFile {
        let content = self.content();
        let mut left = content.durable.clone();
        let arrived = keep.min(content.live.len());
        if arrived > left.len() {
            let from = left.len();
            left.extend_from_slice(&content.live[from..arrived]);
        }
        FakeFile::holding(&left)
    }
    /// The power goes as for `crash`; before `keep` bytes, what was written over older bytes has arrived, too.
    pub fn tear(&self, keep: usize) -> FakeFile {
        let torn = self.crash(keep);
        let arrived = self.live();
        let kept = keep.min(arrived.len());
        torn.content().live[..kept].copy_from_slice(&arrived[..kept]);
        FakeFile::holding(&torn.live())
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
        content.resize(len);
        content.live[offset as usize..end].copy_from_slice(bytes);
        content.dirty.push(offset as usize..end);
        failed.map_or(Ok(()), Err)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, self.len()?)
    }
    fn sync(&self) -> io::Result<()> {
        let operated = self.operate().map(drop);
        let Content { live, durable, dirty, .. } = &mut *self.content();
        if operated.is_ok() {
            // The length is in the file system's journal, which forgets nothing; content is in pages.
            durable.resize(live.len(), 0);
            let written = dirty.iter().map(|part| part.start.min(live.len())..part.end.min(live.len()));
            written.for_each(|part| durable[part.clone()].copy_from_slice(&live[part]));
        }
        dirty.clear();
        operated
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate()?.resize(len as usize);
        Ok(())
    }
}

mod tests {
    use super::*;

    #[test]
    fn what_a_failed_sync_left_is_not_written_by_the_next() {
        let disk = FakeFile::holding(b"old");
        disk.write_at(b"NEW", 0).expect("the disk works");
        disk.fail_after(0);
        disk.sync().expect_err("the disk fails");
        disk.heal();
        disk.append(b"tail").and_then(|()| disk.sync()).expect("the disk works");
        assert_eq!(disk.live(), b"NEWtail");
        assert_eq!(disk.crash(0).live(), b"oldtail");
        assert_eq!(disk.tear(1).live(), b"Nldtail");
        disk.write_at(b"NEW", 0).and_then(|()| disk.sync()).expect("the disk works");
        assert_eq!(disk.crash(0).live(), b"NEWtail");
    }
}
