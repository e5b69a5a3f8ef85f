//! Lines of any amount in the order of their keys, each key once, in bounded memory: sorted in parts, which wait in
//! files without a name, and merged.
//!
//! Memory: [`PART_BYTES`], and [`BUFFER_BYTES`] for each of up to [`PARTS_MAX`] parts. Disk: what was added, and again as
//! much while parts are joined.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// How much is sorted at once, in bytes.
const PART_BYTES: usize = if cfg!(test) { 2000 } else { 64 << 20 };
/// What a line costs beside its bytes.
const LINE_BYTES: usize = size_of::<(Key, usize, usize)>();
/// How many parts are merged at once: each is an open file.
const PARTS_MAX: usize = if cfg!(test) { 3 } else { 128 };
const BUFFER_BYTES: usize = 64 << 10;
/// What stands in front of a line in a part: its key and its length.
const HEAD_BYTES: usize = 8 + 4 + 1 + 16 + 8 + 4;

/// What lines are put in order by: the time of the visit, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub second: i64,
    pub nanosecond: i32,
    /// `None` for visits of other clients, which nothing tells apart.
    pub number: Option<(Uuid, u64)>,
}

/// Lines that are added in any order.
pub(super) struct SortedLines {
    // Where the parts' files are, until they have no name any more.
    folder: PathBuf,
    bytes: Vec<u8>,
    lines: Vec<(Key, usize, usize)>,
    parts: Vec<File>,
    repeated: u64,
}

impl SortedLines {
    /// None yet; parts wait in `folder`.
    pub(super) fn in_folder(folder: &Path) -> Self {
        let (bytes, lines, parts) = (Vec::new(), Vec::new(), Vec::new());
        SortedLines { folder: folder.into(), bytes, lines, parts, repeated: 0 }
    }

    /// Adds a line, with its line feed.
    ///
    /// # Errors
    /// What the system said to a part.
    pub(super) fn add(&mut self, key: Key, line: &[u8]) -> io::Result<()> {
        self.lines.push((key, self.bytes.len(), line.len()));
        self.bytes.extend_from_slice(line);
        match self.bytes.len() + self.lines.len() * LINE_BYTES < PART_BYTES {
            true => Ok(()),
            false => self.end_part(),
        }
    }

    /// Writes all in order, each number once; how many lines were left out because their numbers had come before.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn write(mut self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        self.end_part()?;
        let repeated = merge(self.parts, |_, line| write(line))?;
        Ok(self.repeated + repeated)
    }

    fn end_part(&mut self) -> io::Result<()> {
        if self.parts.len() == PARTS_MAX {
            let mut joined = BufWriter::new(self.nameless()?);
            let parts = std::mem::take(&mut self.parts);
            self.repeated += merge(parts, |key, line| write_line(&mut joined, key, line))?;
            self.parts.push(joined.into_inner().map_err(io::IntoInnerError::into_error)?);
        }
        self.lines.sort_unstable_by_key(|(key, start, _)| (*key, *start));
        let mut part = BufWriter::new(self.nameless()?);
        for (key, start, length) in self.lines.drain(..) {
            write_line(&mut part, &key, &self.bytes[start..start + length])?;
        }
        self.bytes.clear();
        self.parts.push(part.into_inner().map_err(io::IntoInnerError::into_error)?);
        Ok(())
    }

    /// A file that goes with its process, however that ends.
    fn nameless(&self) -> io::Result<File> {
        let path = self.folder.join(format!(".pixel-part-{}", Uuid::new_v4().simple()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }
}

/// The next line of a part.
struct Head {
    key: Key,
    part: usize,
    line: Vec<u8>,
}

impl Head {
    fn rank(&self) -> (Key, usize) {
        (self.key, self.part)
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

fn merge(parts: Vec<File>, mut write: impl FnMut(&Key, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut readers = Vec::new();
    let mut heads = BinaryHeap::new();
    for (part, mut file) in parts.into_iter().enumerate() {
        file.rewind()?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut line = Vec::new();
        if let Some(key) = read_line(&mut reader, &mut line)? {
            heads.push(Reverse(Head { key, part, line }));
        }
        readers.push(reader);
    }
    let (mut repeated, mut last) = (0, None);
    while let Some(mut head) = heads.peek_mut() {
        let key = head.0.key;
        match last == Some(key) && key.number.is_some() {
            true => repeated += 1,
            false => write(&key, &head.0.line)?,
        }
        last = Some(key);
        let part = head.0.part;
        match read_line(&mut readers[part], &mut head.0.line)? {
            Some(key) => head.0.key = key,
            None => drop(PeekMut::pop(head)),
        }
    }
    Ok(repeated)
}

fn write_line(to: &mut impl Write, key: &Key, line: &[u8]) -> io::Result<()> {
    let (producer, sequence) = key.number.unwrap_or_default();
    to.write_all(&key.second.to_le_bytes())?;
    to.write_all(&key.nanosecond.to_le_bytes())?;
    to.write_all(&[u8::from(key.number.is_some())])?;
    to.write_all(producer.as_bytes())?;
    to.write_all(&sequence.to_le_bytes())?;
    let length = u32::try_from(line.len()).map_err(|_| ErrorKind::FileTooLarge)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(line)
}

fn read_line(from: &mut impl Read, line: &mut Vec<u8>) -> io::Result<Option<Key>> {
    let mut head = [0; HEAD_BYTES];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let number = |range: std::ops::Range<usize>| {
        let mut bytes = [0; 8];
        bytes[..range.len()].copy_from_slice(&head[range]);
        u64::from_le_bytes(bytes)
    };
    line.resize(number(37..41) as usize, 0);
    from.read_exact(line)?;
    let mut producer = [0; 16];
    producer.copy_from_slice(&head[13..29]);
    Ok(Some(Key {
        second: number(0..8) as i64,
        nanosecond: number(8..12) as i32,
        number: (head[12] == 1).then(|| (Uuid::from_bytes(producer), number(29..37))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn lines_come_in_order_and_each_number_once_however_many_parts_there_are(
            lines in proptest::collection::vec((-5i64..20, 0i32..3, 0u8..9, 0u64..20), 0..600),
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let mut sorted = SortedLines::in_folder(folder.path());
            let mut expected: BTreeMap<Key, u64> = BTreeMap::new();
            for (second, nanosecond, producer, sequence) in lines {
                // Of other clients every eighth or so.
                let number = (producer > 0).then(|| (Uuid::from_u128(producer.into()), sequence));
                let key = Key { second, nanosecond, number };
                *expected.entry(key).or_default() += 1;
                sorted.add(key, format!("{key:?}\n").as_bytes()).expect("there is room");
            }
            prop_assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
            let mut written = String::new();
            let repeated = sorted.write(|line| {
                written.push_str(std::str::from_utf8(line).expect("text"));
                Ok(())
            });
            let once = |key: &Key, count: &u64| if key.number.is_some() { 1 } else { *count };
            let lines: String = expected
                .iter()
                .map(|(key, count)| format!("{key:?}\n").repeat(once(key, count) as usize))
                .collect();
            prop_assert_eq!(written, lines);
            let left_out: u64 = expected.iter().map(|(key, count)| count - once(key, count)).sum();
            prop_assert_eq!(repeated.expect("there is room"), left_out);
        }
    }
}
