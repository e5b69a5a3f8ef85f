//! The output as it grows, under whoever renames it, copies and truncates it, or makes several new files between two
//! looks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::growing::Growing;
use crate::disk::folder::Identity;
use crate::disk::{identity, open_regular};
use crate::output::names::plain;
use crate::program::output_files::{FileToRead, OutputFileFound, are_the_same, files_of, opened_files_of};
use crate::program::visit_file::{LINE_MAX_BYTES, decompressed};

/// How many visits are shown of what was written before.
const LAST_LINES: usize = 10;
const LAST_BYTES: u64 = 64 << 10;
/// How far the clock of a file system may be behind this one's.
const CLOCKS: Duration = Duration::from_secs(2);

/// The output at a path, whichever file that is.
pub(super) struct Followed {
    path: PathBuf,
    open: Option<Growing>,
    // Those that had the name before, the oldest first.
    before: Vec<Growing>,
    // The first lines of the files that are known: what begins with one of them is that file's copy.
    heads: BTreeSet<Vec<u8>>,
    looked: SystemTime,
    // The files that were there at the start, and until the first look.
    rotated: Vec<(OutputFileFound, FileToRead)>,
}

impl Followed {
    /// From the end of what is there.
    ///
    /// # Errors
    /// What the system said of the file.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let looked = SystemTime::now();
        let rotated = opened_files_of(path).unwrap_or_default();
        let mut followed = Followed {
            path: path.into(),
            open: None,
            before: Vec::new(),
            heads: rotated.iter().filter_map(|(_, file)| first_line(&mut *lines_in(file)?)).collect(),
            looked,
            rotated,
        };
        followed.open = followed.open_named()?;
        let open = followed.open.as_ref().map(|open| open.identity);
        followed.rotated.retain(|(file, _)| Some(file.identity) != open);
        if let Some(open) = &mut followed.open {
            open.skip_lines()?;
        }
        Ok(followed)
    }

    /// The last lines of what was there at the start.
    pub(super) fn last_lines(&mut self) -> Vec<Vec<u8>> {
        let Some(open) = &mut self.open else { return Vec::new() };
        let from = open.read_to.saturating_sub(LAST_BYTES);
        let mut text = Vec::new();
        let read = open.file.seek(SeekFrom::Start(from));
        let read = read.and_then(|_| (&open.file).take(open.read_to - from).read_to_end(&mut text));
        let mut lines: Vec<Vec<u8>> =
            text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        if read.is_ok() && from > 0 && !lines.is_empty() {
            // It may have begun before.
            lines.remove(0);
        }
        lines.split_off(lines.len().saturating_sub(LAST_LINES))
    }

    /// From the beginning of the file after all.
    pub(super) fn rewind(&mut self) {
        self.open.iter_mut().for_each(Growing::begin_anew);
    }

    /// The files that were rotated before the start, the oldest first, once.
    pub(super) fn rotated(&mut self) -> Vec<(OutputFileFound, FileToRead)> {
        std::mem::take(&mut self.rotated)
    }

    /// Tells `each` every line of those.
    ///
    /// # Errors
    /// What `each` returns.
    pub(super) fn rotated_before(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for (found, file) in self.rotated() {
            if let Some(mut lines) = lines_in(&file) {
                lines_of(&found.path, &mut *lines, each)?;
            }
        }
        Ok(())
    }

    /// Tells `each` every line that came since, in the order of the files.
    ///
    /// # Errors
    /// What the system said of a file, and what `each` returns.
    pub(super) fn new_lines(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        // Who wanted them has had them: their room is others'.
        self.rotated.clear();
        let named = match self.path.symlink_metadata() {
            Ok(metadata) => Some(identity(&metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if named.is_some() && self.open.as_ref().map(|open| open.identity) != named {
            let new = self.open_named()?;
            // What begins like it is its copy.
            self.heads.extend(new.as_ref().and_then(|new| first_line(&mut BufReader::new(&new.file))));
            self.before.extend(self.open.take().map(Growing::without_name));
            self.in_between(new.as_ref().map(|new| new.identity), each)?;
            self.open = new.map(|new| self.known(new.identity).unwrap_or(new));
        }
        for file in self.before.iter_mut().chain(&mut self.open) {
            file.new_lines(each)?;
            self.heads.extend(file.head.take());
        }
        self.before.retain_mut(Growing::count_look);
        Ok(())
    }

    /// The file as it was read before it lost its name, which it has again.
    fn known(&mut self, identity: Identity) -> Option<Growing> {
        let place = self.before.iter().position(|open| open.identity == identity)?;
        Some(self.before.remove(place))
    }

    /// Shows what had the name between two looks only, compressed by now or not. What is `named` is left out.
    fn in_between(
        &mut self,
        named: Option<Identity>,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        // What is read of those before has to be known first.
        for file in &mut self.before {
            file.new_lines(each)?;
            self.heads.extend(file.head.take());
        }
        let since = std::mem::replace(&mut self.looked, SystemTime::now()) - CLOCKS;
        let mut found = files_of(&self.path)?;
        loop {
            for file in found.iter().filter(|file| Some(file.identity) != named && file.modified >= since) {
                self.take_in(file, each)?;
            }
            // What is renamed or compressed while a folder is read may be missed.
            let again = files_of(&self.path)?;
            if are_the_same(&again, &found) {
                return Ok(());
            }
            found = again;
        }
    }

    /// Follows a file that was found beside the output, or shows all of a compressed one, unless it is known.
    fn take_in(
        &mut self,
        found: &OutputFileFound,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        // The next look finds what has the output's name by now.
        if found.path == self.path || self.before.iter().any(|open| open.identity == found.identity) {
            return Ok(());
        }
        let Ok(file) = File::open(&found.path) else { return Ok(()) };
        if identity(&file.metadata()?) != found.identity {
            // Its name is another's since it was listed.
            return Ok(());
        }
        let growing = Growing::new(file.try_clone()?)?;
        let Ok(mut lines) = decompressed(file, &Rc::default()) else { return Ok(()) };
        let Some(head) = first_line(&mut lines) else { return Ok(()) };
        if !self.heads.insert(head.clone()) {
            return Ok(());
        }
        if plain(found.path.as_os_str()) == found.path {
            self.before.push(growing);
            return Ok(());
        }
        each(&head)?;
        lines_of(&found.path, &mut lines, each)
    }

    fn open_named(&self) -> io::Result<Option<Growing>> {
        match open_regular(&self.path, File::options().read(true)) {
            Ok(file) => Growing::new(file).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The lines of a file, decompressed; none where it cannot be read.
fn lines_in(file: &FileToRead) -> Option<Box<dyn BufRead>> {
    file.lines(&Rc::default()).ok()
}

/// The first line; none where there is none, or it cannot be read.
fn first_line(reader: &mut dyn BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX_BYTES as u64).read_until(b'\n', &mut line).ok()?;
    line.ends_with(b"\n").then_some(line)
}

/// Tells `each` every line that is left of the file at `path`. What cannot be read of it is left out, with a word.
fn lines_of(
    path: &Path,
    reader: &mut dyn BufRead,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut *reader).take(LINE_MAX_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => each(&line)?,
            Err(error) => {
                let _ = writeln!(io::stderr(), "left out: failed to read `{}`: {error}", path.display());
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::growing::LOOKS_BACK;
    use super::*;

    fn look(followed: &mut Followed) -> Vec<String> {
        let mut seen = Vec::new();
        let see = &mut |line: &[u8]| {
            seen.push(String::from_utf8_lossy(line).trim_end().to_string());
            Ok(())
        };
        followed.new_lines(see).expect("it can be read");
        seen
    }

    /// It ended with an error, where that was between two of its calls.
    #[test]
    fn a_file_that_is_cut_off_while_it_is_looked_at_is_followed_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        fs::write(&path, "").expect("written");
        let mut followed = Followed::start(&path).expect("it is there");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..10_000 {
                    // More than before each time.
                    let lines: String = (0..=n / 50).map(|line| format!("{n} {line}\n")).collect();
                    fs::write(&path, lines).expect("written");
                }
                is_over.store(true, Ordering::Release);
            });
            let mut seen = BTreeSet::new();
            while !is_over.load(Ordering::Acquire) {
                for line in look(&mut followed) {
                    assert!(line.contains(' '), "not a whole line: {line}");
                    assert!(seen.insert(line.clone()), "twice: {line}");
                }
            }
        });
        fs::write(&path, "last\n").expect("written");
        assert_eq!(look(&mut followed), ["last"]);
    }

    /// So did its start.
    #[test]
    fn a_file_that_is_cut_off_while_it_is_begun_with_is_begun_with_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        fs::write(&path, "").expect("written");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..10_000 {
                    fs::write(&path, format!("{n}\n")).expect("written");
                }
                is_over.store(true, Ordering::Release);
            });
            while !is_over.load(Ordering::Acquire) {
                Followed::start(&path).expect("it is there");
            }
        });
    }

    /// Nothing had been read of it yet, by which that could be known.
    #[test]
    fn an_idle_file_that_is_cut_off_and_grows_past_its_old_length_is_shown_from_its_beginning() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        fs::write(&path, "1\n").expect("written");
        let mut followed = Followed::start(&path).expect("it is there");
        assert_eq!(look(&mut followed), [""; 0]);
        fs::write(&path, "2\n3\n").expect("written");
        assert_eq!(look(&mut followed), ["2", "3"]);
    }

    /// One of them ended it.
    #[test]
    fn a_rotated_file_that_is_damaged_is_left_out_from_there_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        let stored = zstd::encode_all(&b"1\n2\n"[..], 1).expect("memory");
        let damaged = [stored.as_slice(), &stored[..5]].concat();
        let all = |followed: &mut Followed| {
            let mut seen = Vec::new();
            let see = &mut |line: &[u8]| {
                seen.push(String::from_utf8_lossy(line).trim_end().to_string());
                Ok(())
            };
            followed.rotated_before(see).expect("it can be read");
            seen
        };
        fs::write(folder.path().join("visits.log.1.zst"), &damaged).expect("written");
        fs::write(&path, "3\n").expect("written");
        let mut followed = Followed::start(&path).expect("it is there");
        assert_eq!(all(&mut followed), ["1", "2"]);
        // And one that comes.
        let later = zstd::encode_all(&b"4\n5\n"[..], 1).expect("memory");
        fs::write(folder.path().join("visits.log.2.zst"), [&later[..], &later[..5]].concat())
            .expect("written");
        fs::rename(&path, folder.path().join("visits.log.3")).expect("renamed");
        fs::write(&path, "6\n").expect("written");
        assert_eq!(look(&mut followed), ["4", "5", "6"]);
    }

    /// It was shown twice.
    #[test]
    fn a_copy_of_a_file_that_was_not_looked_at_yet_is_known() {
        for is_cut_off in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("visits.log");
            let beside = |name: &str| folder.path().join(name);
            fs::write(&path, "1\n").expect("written");
            let mut followed = Followed::start(&path).expect("it is there");
            fs::rename(&path, beside("visits.log.1")).expect("renamed");
            fs::write(&path, "2\n3\n").expect("written");
            fs::copy(&path, beside("visits.log.2")).expect("copied");
            if is_cut_off {
                fs::write(&path, "4\n").expect("written");
            }
            let expected: &[&str] = if is_cut_off { &["2", "3", "4"] } else { &["2", "3"] };
            assert_eq!(look(&mut followed), expected);
        }
    }

    #[test]
    fn a_file_that_gets_its_name_back_goes_on_where_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, aside) = (folder.path().join("visits.log"), folder.path().join("visits.log.1"));
        fs::write(&path, "").expect("written");
        let mut followed = Followed::start(&path).expect("it is there");
        fs::write(&path, "1\n").expect("written");
        assert_eq!(look(&mut followed), ["1"]);
        for _ in 0..LOOKS_BACK + 10 {
            assert_eq!(look(&mut followed), [""; 0]);
        }
        fs::rename(&path, &aside).expect("renamed");
        fs::write(&path, "2\n").expect("written");
        assert_eq!(look(&mut followed), ["2"]);
        fs::rename(&aside, &path).expect("renamed");
        assert_eq!(look(&mut followed), [""; 0]);
        fs::write(&path, "1\n3\n").expect("written");
        assert_eq!(look(&mut followed), ["3"]);
    }

    /// A file that had been open for longer than one that is rotated is looked at was given up in the look in which it
    /// lost its name.
    #[test]
    fn a_batch_that_is_late_is_shown_however_long_its_file_was_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, aside) = (folder.path().join("visits.log"), folder.path().join("visits.log.1"));
        fs::write(&path, "").expect("written");
        let mut followed = Followed::start(&path).expect("it is there");
        for _ in 0..LOOKS_BACK + 10 {
            assert_eq!(look(&mut followed), [""; 0]);
        }
        fs::rename(&path, &aside).expect("renamed");
        fs::write(&path, "2\n").expect("written");
        assert_eq!(look(&mut followed), ["2"]);
        fs::write(&aside, "1\n").expect("written");
        assert_eq!(look(&mut followed), ["1"]);
    }
}
