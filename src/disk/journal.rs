//! A file of records, each appended whole and durably or not at all: what the spool's segments and
//! the ledger are made of.
//!
//! A record is framed as its length (u32, little-endian), the CRC-32 of length and payload (u32,
//! little-endian), and the payload. A length of zero, a length that does not fit and a wrong CRC end
//! the journal: what stands there was never acknowledged.

use std::io;
use std::sync::Arc;

use crate::disk::{DiskFile, read_whole};

const HEADER_BYTES: usize = 8;

/// The largest payload. A longer length in a header is garbage.
pub const RECORD_MAX_BYTES: usize = 256 << 20;

/// How much room is taken at once, at least: a call for many records.
const RESERVED_BYTES: u64 = 256 << 10;

/// A journal that is open for appending.
pub struct Journal {
    file: Arc<dyn DiskFile>,
    end: u64,
    // Before which there is room.
    reserved: u64,
    // An append failed, and bytes of it may stand behind `end`.
    torn: bool,
}

impl Journal {
    /// A journal without records in `file`, whatever that holds: who reads it has to tell old bytes apart.
    pub fn create(file: Arc<dyn DiskFile>) -> Self {
        Journal { file, end: 0, reserved: 0, torn: false }
    }

    /// Goes on behind the record that its reader found from `last` to `end`, in bytes, and makes it durable.
    /// What stands behind it stays.
    ///
    /// Each record was synced before the next was written, so only the last may stand in the page cache and nowhere
    /// else: its writer was killed before the sync, or the sync failed. It is written again, as Linux counts
    /// pages whose sync failed as written.
    pub fn open_at(file: Arc<dyn DiskFile>, last: u64, end: u64) -> io::Result<Self> {
        let mut record = vec![0; usize::try_from(end - last).map_err(io::Error::other)?];
        if !read_whole(&*file, &mut record, last)? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        file.write_at(&record, last)?;
        file.sync()?;
        Ok(Journal { file, end, reserved: 0, torn: false })
    }

    /// Reads every record from the start, hands each to `record`, cuts off what follows the last whole
    /// one, and makes all of it durable.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where a whole record follows one that is not: that is no torn
    /// append but damage, and what is behind it was acknowledged. `record` returns `false` to end the journal
    /// before the record it was given.
    pub fn open(file: Arc<dyn DiskFile>, mut record: impl FnMut(&[u8]) -> bool) -> io::Result<Self> {
        let (mut last, mut end, mut payload) = (0, 0, Vec::new());
        while let Some(next) = read_record(&*file, end, &mut payload)? {
            if !record(&payload) {
                break;
            }
            (last, end) = (end, next);
        }
        if find_record(&*file, end, |_| true)?.is_some() {
            let text = format!("it is damaged at byte {end}, and goes on behind that");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        file.set_len(end)?;
        Self::open_at(file, last, end)
    }

    /// Appends one record. `Ok` means that it is on disk; after an error it is not in the journal,
    /// and the next call removes what is left of it before it does anything else.
    ///
    /// # Errors
    /// What the system said; `InvalidInput` for a payload over [`RECORD_MAX_BYTES`].
    pub fn append(&mut self, payload: &[&[u8]]) -> io::Result<()> {
        self.repair()?;
        let len: usize = payload.iter().map(|part| part.len()).sum();
        if len > RECORD_MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut record = Vec::with_capacity(HEADER_BYTES + len);
        record.extend_from_slice(&(len as u32).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        payload.iter().for_each(|part| record.extend_from_slice(part));
        let crc = checksum(&record[..4], &record[HEADER_BYTES..]);
        record[4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());

        self.torn = true;
        if let Err(error) = self.file.write_at(&record, self.end).and_then(|()| self.file.sync()) {
            // At once, so that a crash cannot bring back what is reported as failed; where it fails
            // too, the next call tries again.
            let _ = self.repair();
            return Err(error);
        }
        self.end += record.len() as u64;
        self.torn = false;
        Ok(())
    }

    /// Takes room for records of `bytes`, where the file system can: a disk that is full says so now.
    ///
    /// # Errors
    /// What the system said.
    pub fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        if self.end + bytes > self.reserved {
            let room = bytes.max(RESERVED_BYTES);
            self.file.reserve(self.end, room)?;
            self.reserved = self.end + room;
        }
        Ok(())
    }

    /// Removes what a failed append left, durably.
    pub fn repair(&mut self) -> io::Result<()> {
        if self.torn {
            // The room goes with it.
            self.reserved = 0;
            self.file.set_len(self.end)?;
            self.file.sync()?;
            self.torn = false;
        }
        Ok(())
    }

    /// Gives back what was preallocated, durably.
    pub fn seal(&mut self) -> io::Result<()> {
        self.torn = true;
        self.repair()
    }

    /// Where the next record will start, in bytes: all before is whole and durable.
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// How many bytes of a journal a payload takes.
pub fn record_bytes(payload_bytes: usize) -> u64 {
    (HEADER_BYTES + payload_bytes) as u64
}

/// Reads the payload of the record at `offset`; returns where the next one starts, or `None` where no
/// whole record stands.
pub fn read_record(file: &dyn DiskFile, offset: u64, payload: &mut Vec<u8>) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER_BYTES];
    if !read_whole(file, &mut header, offset)? {
        return Ok(None);
    }
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let next = offset + record_bytes(len);
    if len == 0 || len > RECORD_MAX_BYTES || next > file.len()? {
        return Ok(None);
    }
    payload.resize(len, 0);
    let whole = read_whole(file, payload, offset + HEADER_BYTES as u64)?;
    let intact = checksum(&header[..4], payload) == u32::from_le_bytes([c0, c1, c2, c3]);
    Ok((whole && intact).then_some(next))
}

/// Looks behind `from`, where none stands, for a whole record whose payload `is_wanted`; returns where it
/// starts.
pub fn find_record(
    file: &dyn DiskFile,
    from: u64,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> io::Result<Option<u64>> {
    let left = usize::try_from(file.len()?.saturating_sub(from)).map_err(io::Error::other)?;
    let mut bytes = vec![0; left];
    read_whole(file, &mut bytes, from)?;
    Ok(find_in(&bytes, 0, is_wanted).map(|place| from + place as u64))
}

/// The payload of the record at `place` of a journal's `bytes`; `None` where no whole record stands whose payload
/// `is_wanted`.
pub fn record_in(bytes: &[u8], place: usize, is_wanted: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    let (header, rest) = bytes.get(place..)?.split_first_chunk::<HEADER_BYTES>()?;
    let [l0, l1, l2, l3, crc @ ..] = *header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    // Asked before the checksum, which would be taken of half the file at most of its bytes.
    let payload = rest.get(..len).filter(|payload| !payload.is_empty() && is_wanted(payload))?;
    (checksum(&header[..4], payload) == u32::from_le_bytes(crc)).then_some(payload)
}

/// Where the first record behind `from` starts in a journal's `bytes` whose payload `is_wanted`.
pub fn find_in(bytes: &[u8], from: usize, is_wanted: impl Fn(&[u8]) -> bool) -> Option<usize> {
    if bytes[from..].iter().all(|byte| *byte == 0) {
        return None;
    }
    (from + 1..bytes.len()).find(|place| record_in(bytes, *place, &is_wanted).is_some())
}

fn checksum(len: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(len);
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fake::FakeFile;

    fn records(file: &FakeFile) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        Journal::open(Arc::new(file.clone()), |record| {
            records.push(record.to_vec());
            true
        })
        .expect("the disk works");
        records
    }

    #[test]
    fn whatever_fails_and_wherever_the_power_goes_it_holds_what_was_acknowledged() {
        for healthy_operations in 0..12 {
            let disk = FakeFile::default();
            let mut journal = Journal::create(Arc::new(disk.clone()));
            disk.fail_after(healthy_operations);
            let mut acknowledged: Vec<Vec<u8>> = Vec::new();
            for n in 0..4u8 {
                let record = vec![n; 5 + usize::from(n)];
                if journal.append(&[&record[..2], &record[2..]]).is_ok() {
                    acknowledged.push(record);
                }
            }
            for keep in 0..=disk.live().len() {
                let found = records(&disk.crash(keep));
                assert!(found.starts_with(&acknowledged), "{healthy_operations} {keep}");
                let unacknowledged = found.len() - acknowledged.len();
                assert!(unacknowledged <= 1, "only the append that was cut short may have arrived");
            }
            let killed = disk.kill();
            let believed = records(&killed);
            assert_eq!(records(&killed.crash(0)), believed, "{healthy_operations}: killed");
            disk.heal();
            journal.append(&[b"after"]).expect("the disk is healed");
            acknowledged.push(b"after".to_vec());
            assert_eq!(records(&disk.crash(0)), acknowledged, "after {healthy_operations}");
        }
    }

    /// It was taken for durable: a spool numbered on behind a visit that a power cut then took away, gave
    /// its number to another visit, and the ledger dropped that one as a duplicate.
    #[test]
    fn what_a_killed_process_wrote_and_did_not_sync_is_durable_once_it_is_opened() {
        let disk = FakeFile::default();
        let mut journal = Journal::create(Arc::new(disk.clone()));
        journal.append(&[b"synced"]).expect("the disk works");
        let written = disk.live();
        disk.append(&written).expect("the disk works");
        assert_eq!(records(&disk), [b"synced", b"synced"]);
        assert_eq!(records(&disk.crash(0)), [b"synced", b"synced"]);
    }

    /// A start whose sync failed left the record that it read clean in the page cache. The next start read it there,
    /// and its sync, which succeeded, did not write it: a power cut took away what both had believed.
    #[test]
    fn what_a_failed_sync_left_in_the_page_cache_is_durable_once_it_is_opened() {
        for healthy_operations in 0..4 {
            let disk = FakeFile::default();
            let mut journal = Journal::create(Arc::new(disk.clone()));
            journal.append(&[b"synced"]).expect("the disk works");
            let written = disk.live();
            disk.append(&written).expect("the disk works");
            disk.fail_after(healthy_operations);
            let _ = Journal::open(Arc::new(disk.clone()), |_| true);
            disk.heal();
            assert_eq!(records(&disk), [b"synced", b"synced"], "{healthy_operations}");
            assert_eq!(records(&disk.crash(0)), [b"synced", b"synced"], "{healthy_operations}");
        }
    }

    /// Everything behind a damaged entry of the ledger was cut off, and so was the output behind an old mark.
    #[test]
    fn damage_in_the_middle_is_no_torn_append() {
        let disk = FakeFile::default();
        let mut journal = Journal::create(Arc::new(disk.clone()));
        for record in [b"one", b"two", b"six"] {
            journal.append(&[record]).expect("the disk works");
        }
        let whole = disk.live();
        for damaged in 0..2 * 11 {
            disk.write_at(&[whole[damaged] ^ 0x55], damaged as u64).expect("the disk works");
            let error = Journal::open(Arc::new(disk.clone()), |_| true).err().expect("it is damaged");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(disk.live().len(), whole.len(), "nothing is cut off");
            disk.write_at(&[whole[damaged]], damaged as u64).expect("the disk works");
        }
    }

    #[test]
    fn garbage_ends_it_and_is_cut_off() {
        for garbage in [&b"\0\0\0\0"[..], b"\xff\xff\xff\xff\0\0\0\0", b"\x01\0\0\0\0\0\0\0x", b"\x01"] {
            let disk = FakeFile::default();
            let mut journal = Journal::create(Arc::new(disk.clone()));
            journal.append(&[b"whole"]).expect("the disk works");
            disk.write_at(garbage, journal.end()).expect("the disk works");
            assert_eq!(records(&disk), [b"whole"]);
            assert_eq!(disk.live().len() as u64, journal.end());
        }
    }
}
