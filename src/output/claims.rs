//! Lines that a crash left behind the ledger's mark: their visits were not acknowledged, so they are delivered again,
//! and are recognised here.
//!
//! Nothing is cut off: a line that nobody claims is somebody else's, and stays. A claimed line is written again
//! where it stands, byte for byte, as a sync that failed may have left it in memory alone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;

use crate::disk::folder::GrowingFile;
use crate::record::OpenClaims;
use crate::visit::lines::LineFormat;

/// How much is read behind a mark, in bytes: more than a batch can be, so that what others appended in any amount
/// costs no more memory.
const READ_MAX_BYTES: u64 = 256 << 20;
/// How many lines are, of 40 bytes of memory each: more than a batch has, as a visit's line is longer than those bytes.
const LINES_MAX: usize = if cfg!(test) { 1 << 10 } else { 4 << 20 };
const PIECE_BYTES: usize = 1 << 20;

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// In which of the files with claims.
    of: usize,
    /// Where it starts, in bytes.
    pub(super) start: u64,
    /// How many bytes it has, its line feed included.
    pub(super) length: u64,
}

/// What one crash left in one file.
#[derive(Clone)]
pub(super) struct Claimable {
    pub(super) file: Arc<dyn GrowingFile>,
    pub(super) noted: OpenClaims,
    // How many of its lines nobody has claimed.
    left: usize,
    // How many of its lines no batch that is committed has claimed.
    unused: usize,
}

/// Where a torn line stands, and what of it is there.
type Fragment = (Place, Vec<u8>);

struct Line {
    // Only looked up by: whether a line is the same is seen when it is read.
    hash: u64,
    place: Place,
    is_taken: bool,
}

/// Everything that may be claimed.
#[derive(Default)]
pub(super) struct Claims {
    files: Vec<Claimable>,
    // By hash and place: of the same lines, the first in the file is claimed first.
    lines: Vec<Line>,
    left: usize,
    // Whether a batch was written since the start.
    has_batch: bool,
    // A line without its end at the end of a file.
    fragment: Option<Fragment>,
}

impl Claims {
    /// Reads what stands in `file` between the mark of `noted` and its end, but what was used.
    pub(super) fn read(&mut self, file: Arc<dyn GrowingFile>, mut noted: OpenClaims) -> io::Result<()> {
        let of = self.files.len();
        let (mut offset, mut start) = (noted.mark.length, noted.mark.length);
        let end = noted.end.min(offset + READ_MAX_BYTES);
        let (mut line, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
        let mut left = 0;
        while offset < end && self.lines.len() < LINES_MAX {
            let wanted = PIECE_BYTES.min((end - offset) as usize);
            let read = file.read_at(&mut piece[..wanted], offset)?;
            if read == 0 {
                break;
            }
            offset += read as u64;
            for part in piece[..read].split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if !part.ends_with(b"\n") {
                    continue;
                }
                let place = Place { of, start, length: line.len() as u64 };
                start += place.length;
                let is_known = self.lines.len() < LINES_MAX;
                if is_known && noted.used.missing(place.start..=place.start).len() == 1 {
                    self.lines.push(Line { hash: hash(&line), place, is_taken: false });
                    left += 1;
                }
                line.clear();
            }
        }
        self.lines.sort_unstable_by_key(|line| (line.hash, line.place));
        if offset == noted.end && !line.is_empty() {
            // It may be gone on with, so a later crash leaves all of that line behind a mark in front of it.
            noted.end = start;
            self.fragment = Some((Place { of, start, length: line.len() as u64 }, line));
        }
        let behind = noted.end - noted.mark.length;
        log::info!(
            "{behind} bytes behind the end of `{}` that the ledger knows: {left} lines of them are compared with what \
             is delivered again, and what nobody claims stays",
            noted.mark.name
        );
        if offset < noted.end || self.lines.len() == LINES_MAX {
            log::warn!(
                "only the first {READ_MAX_BYTES} bytes or {LINES_MAX} lines are compared; the others stay"
            );
        }
        self.left += left;
        self.files.push(Claimable { file, noted, left, unused: left });
        Ok(())
    }

    /// Whether nothing can be claimed.
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0 && self.fragment.is_none()
    }

    /// The formats of the lines that can be claimed, each once.
    pub(super) fn formats(&self) -> Vec<LineFormat> {
        let mut formats = Vec::new();
        for file in self.files.iter().filter(|file| file.left > 0) {
            if !formats.contains(&file.noted.mark.format) {
                formats.push(file.noted.mark.format);
            }
        }
        formats
    }

    /// Takes a place where `line` stands.
    pub(super) fn take(&mut self, line: &[u8]) -> io::Result<Option<Place>> {
        if self.left == 0 {
            return Ok(None);
        }
        let hash = hash(line);
        let first = self.lines.partition_point(|known| known.hash < hash);
        for known in self.lines[first..].iter_mut().take_while(|known| known.hash == hash) {
            let (place, mut there) = (known.place, vec![0; line.len()]);
            let is_same = !known.is_taken
                && place.length == line.len() as u64
                && self.files[place.of].file.read_whole(&mut there, place.start)?
                && there == line;
            if is_same {
                known.is_taken = true;
                self.left -= 1;
                self.files[place.of].left -= 1;
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Gives back what was taken for a batch that cannot be begun now.
    pub(super) fn give_back(&mut self, places: impl Iterator<Item = Place>, fragment: Option<Fragment>) {
        for place in places {
            if let Some(line) = self.lines.iter_mut().find(|line| line.place == place && line.is_taken) {
                line.is_taken = false;
                self.left += 1;
                self.files[place.of].left += 1;
            }
        }
        self.fragment = fragment;
    }

    /// The fragment, if nobody has taken it.
    pub(super) fn fragment(&self) -> Option<Fragment> {
        self.fragment.clone()
    }

    /// Takes the fragment, where `line` begins with it, and where it is the end, at `end`, of the file that is `open`.
    pub(super) fn take_fragment(
        &mut self,
        line: &[u8],
        open: &Arc<dyn GrowingFile>,
        end: u64,
    ) -> Option<Place> {
        self.fragment_start(open, end)?;
        let is_of = |(_, fragment): &mut Fragment| line.len() > fragment.len() && line.starts_with(fragment);
        self.fragment.take_if(is_of).map(|(place, _)| place)
    }

    /// Where what may be claimed in the ledger's file `id` ends, in bytes.
    pub(super) fn end_in(&self, id: u64) -> u64 {
        let of = |file: &Claimable| file.noted.mark.file == id;
        let fragment = self.fragment.as_ref().filter(|(place, _)| of(&self.files[place.of]));
        let fragment = fragment.map(|(place, _)| place.start + place.length);
        let ends = self.files.iter().filter(|file| of(file)).map(|file| file.noted.end);
        ends.chain(fragment).max().unwrap_or(0)
    }

    /// The file that a place is in.
    pub(super) fn file(&self, place: Place) -> &Claimable {
        &self.files[place.of]
    }

    /// What is open once a batch that claimed `places` is committed; `None` where nothing changes by that.
    pub(super) fn open_after(&self, places: impl Iterator<Item = Place>) -> Option<Vec<OpenClaims>> {
        let mut files = self.files.clone();
        use_up(&mut files, !self.has_batch, places).then(|| open(&files))
    }

    /// Notes that a batch that claimed `places` is committed.
    pub(super) fn use_up(&mut self, places: impl Iterator<Item = Place>) {
        use_up(&mut self.files, !self.has_batch, places);
        self.has_batch = true;
    }

    /// Where the fragment starts, if it is the end, at `end`, of the file that is `open`.
    pub(super) fn fragment_start(&self, open: &Arc<dyn GrowingFile>, end: u64) -> Option<u64> {
        let (place, _) = self.fragment.as_ref()?;
        let is_end = Arc::ptr_eq(&self.files[place.of].file, open) && place.start + place.length == end;
        is_end.then_some(place.start)
    }

    /// What is open; a fragment stands behind the mark.
    pub(super) fn open(&self) -> Vec<OpenClaims> {
        open(&self.files)
    }
}

/// Notes in `files` that these places are used up by a batch, and, with the first of this start, what it left open;
/// returns whether anything changed. What was not acknowledged is delivered first.
fn use_up(files: &mut [Claimable], is_first: bool, places: impl Iterator<Item = Place>) -> bool {
    if is_first {
        files.iter_mut().for_each(|file| file.noted.idle_starts += 1);
    }
    let mut has_changed = is_first && !files.is_empty();
    for place in places {
        let file = &mut files[place.of];
        file.noted.used.insert(place.start..=place.start + place.length - 1);
        file.noted.idle_starts = 0;
        file.unused -= 1;
        has_changed = true;
    }
    has_changed
}

fn open(files: &[Claimable]) -> Vec<OpenClaims> {
    files.iter().filter(|file| file.unused > 0).map(|file| file.noted.clone()).collect()
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fake_folder::{FakeFolder, OUTPUT};
    use crate::disk::folder::Folder;
    use crate::record::Mark;

    /// What others appended in lines of a byte cost forty times as much memory as disk: 10 GB for 256 MiB.
    #[test]
    fn so_many_lines_are_remembered_however_short_they_are() {
        let folder = FakeFolder::default();
        let content = b"a\n".repeat(3 * LINES_MAX);
        folder.put(OUTPUT, &content);
        let format = LineFormat::Pipe;
        let mark = Mark { file: 1, name: OUTPUT.into(), length: 0, tail: 0, format, inode: None };
        let end = content.len() as u64;
        let mut claims = Claims::default();
        for _ in 0..2 {
            let file = folder.open(OUTPUT.as_ref(), false).expect("it is there");
            let noted = OpenClaims { mark: mark.clone(), end, used: Default::default(), idle_starts: 0 };
            claims.read(file, noted).expect("the disk works");
        }
        assert_eq!((claims.lines.len(), claims.left), (LINES_MAX, LINES_MAX));
        assert_eq!(claims.take(b"a\n").expect("the disk works").map(|place| place.start), Some(0));
    }
}
