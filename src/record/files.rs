//! What the ledger knows of the files that were written: which bytes are Pixel's, and what they must be.

use serde::{Deserialize, Serialize};

/// How many bytes one checksum stands for: so exactly can it be said where a file is damaged.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// How many bytes before its end a file is recognised by.
pub const TAIL_BYTES: u64 = 64 << 10;

/// Consecutive bytes of a file that Pixel wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Where they start, in bytes.
    pub start: u64,
    /// How many they are.
    pub length: u64,
    /// The CRC-32 of each [`BLOCK_BYTES`] from `start` on; the last block may be shorter. In an [`Entry`] that adds to
    /// a stretch, the blocks that it changes.
    ///
    /// [`Entry`]: super::Entry
    pub blocks: Vec<u32>,
}

impl Stretch {
    /// Where they end, in bytes.
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    /// Its last block alone: all that is needed to add to it.
    pub fn last_block(&self) -> Stretch {
        let before = self.length.saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES;
        let blocks = self.blocks.last().copied().into_iter().collect();
        Stretch { start: self.start + before, length: self.length - before, blocks }
    }
}

/// One file: what stands in it of Pixel's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The ledger's number for it.
    pub id: u64,
    /// The name that it had when it was written last.
    pub name: String,
    /// How many lines Pixel wrote.
    #[serde(default)]
    pub lines: u64,
    /// Which bytes, in the order in which they were written.
    #[serde(default)]
    pub stretches: Vec<Stretch>,
}

impl FileRecord {
    /// The change that adds `bytes` at `start` to a file of which `written` was added before.
    pub fn stretch(written: Option<&Stretch>, start: u64, bytes: &[u8]) -> Stretch {
        let goes_on = written.filter(|last| last.end() == start);
        // The block that is not full yet, and how much of it there is.
        let partial = goes_on.map_or(0, |last| last.length % BLOCK_BYTES);
        let mut crc = match goes_on.and_then(|last| last.blocks.last()) {
            Some(crc) if partial > 0 => crc32fast::Hasher::new_with_initial(*crc),
            _ => crc32fast::Hasher::new(),
        };
        let first = ((BLOCK_BYTES - partial) as usize).min(bytes.len());
        let (head, rest) = bytes.split_at(first);
        crc.update(head);
        let blocks = std::iter::once(crc.finalize());
        let blocks = blocks.chain(rest.chunks(BLOCK_BYTES as usize).map(crc32fast::hash)).collect();
        Stretch { start, length: bytes.len() as u64, blocks }
    }

    /// Adds what [`FileRecord::stretch`] made.
    pub fn add(&mut self, new: &Stretch) {
        match self.stretches.last_mut().filter(|last| last.end() == new.start) {
            Some(last) => {
                last.blocks.truncate((last.length / BLOCK_BYTES) as usize);
                last.blocks.extend_from_slice(&new.blocks);
                last.length += new.length;
            }
            None => self.stretches.push(new.clone()),
        }
    }

    /// Where it ends, if that is where the last of it was written.
    pub fn goes_on_at(&self) -> Option<u64> {
        self.stretches.last().map(Stretch::end).filter(|end| *end == self.end())
    }

    /// Where the last of its bytes ends.
    pub fn end(&self) -> u64 {
        self.stretches.iter().map(Stretch::end).max().unwrap_or(0)
    }

    /// How many bytes of it are Pixel's.
    pub fn bytes(&self) -> u64 {
        self.stretches.iter().map(|stretch| stretch.length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the bytes came in pieces, the blocks are those of the whole.
        #[test]
        fn blocks_do_not_depend_on_the_batches(pieces in proptest::collection::vec(1usize..150_000, 1..12)) {
            let bytes: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|n| (n * 31 % 251) as u8).collect();
            let mut record = FileRecord::default();
            let mut from = 0;
            for piece in pieces {
                let start = 7 + from as u64;
                let last = record.stretches.last().map(Stretch::last_block);
                let new = FileRecord::stretch(last.as_ref(), start, &bytes[from..from + piece]);
                record.add(&new);
                from += piece;
            }
            let blocks: Vec<u32> = bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect();
            prop_assert_eq!(&record.stretches, &[Stretch { start: 7, length: bytes.len() as u64, blocks }]);
        }
    }

    #[test]
    fn what_others_wrote_in_between_parts_two_stretches() {
        let mut record = FileRecord::default();
        for (start, bytes) in [(0, "ours\n"), (5, "too\n"), (20, "behind theirs\n")] {
            let new = FileRecord::stretch(record.stretches.last(), start, bytes.as_bytes());
            record.add(&new);
        }
        let places: Vec<_> = record.stretches.iter().map(|stretch| (stretch.start, stretch.length)).collect();
        assert_eq!(places, [(0, 9), (20, 14)]);
        assert_eq!((record.end(), record.bytes()), (34, 23));
    }
}
