//! A disk that loses what was not synced, and fails when told to.

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
