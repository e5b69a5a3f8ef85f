//! The files of an output: the one that is written, and those that were rotated, in the order of their last write.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, Seek};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use crate::disk::folder::Identity;
use crate::disk::{folder_of, identity};
use crate::output::names::{is_rotated, plain as plain_name};
use crate::program::visit_file::{FileProblem, decompressed, open_plain};

/// How many files are opened before the first of them is read: names that shift, as logrotate's numbers do, are fewer.
const OPENED_MAX: usize = 256;
/// How often a folder is listed in which names change meanwhile.
const LISTINGS_MAX: u32 = 100;

/// A file of an output.
#[derive(Debug, Clone)]
pub(super) struct OutputFileFound {
    /// Where it is.
    pub path: PathBuf,
    /// Which it is, whatever its name.
    pub identity: Identity,
    /// When it was written last.
    pub modified: SystemTime,
}

impl OutputFileFound {
    fn named(&self) -> (&Path, Identity) {
        (&self.path, self.identity)
    }
}

/// Whether two listings have the same names of the same files.
pub(super) fn are_the_same(one: &[OutputFileFound], other: &[OutputFileFound]) -> bool {
    one.iter().map(OutputFileFound::named).eq(other.iter().map(OutputFileFound::named))
}

/// A file that is to be read, opened already unless it could not be: then by its name when it is read.
pub(super) struct FileToRead {
    /// Where it was.
    pub path: PathBuf,
    opened: Option<File>,
}

impl FileToRead {
    /// The file at `path`, whichever that is when it is read.
    pub(super) fn named(path: PathBuf) -> Self {
        FileToRead { path, opened: None }
    }

    /// Its lines from the beginning, decompressed; `read` is told how many of the bytes that are stored were read.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn lines(&self, read: &Rc<Cell<u64>>) -> Result<Box<dyn BufRead>, FileProblem> {
        let Some(opened) = &self.opened else { return open_plain(&self.path, read) };
        let lines = || -> io::Result<_> {
            let mut file = opened.try_clone()?;
            file.rewind()?;
            decompressed(file, read)
        };
        lines().map_err(|error| FileProblem::whole(&self.path, &error))
    }
}

/// Those of [`files_of`], opened before any of them is read, as whoever rotates may give the name of one to another
/// meanwhile. Of very many, the newest are.
///
/// # Errors
/// What the system said of the folder.
pub(super) fn opened_files_of(path: &Path) -> io::Result<Vec<(OutputFileFound, FileToRead)>> {
    let mut listings = 0;
    loop {
        listings += 1;
        let found = files_of(path)?;
        let by_name = found.len().saturating_sub(OPENED_MAX);
        let open = |(at, file): (usize, &OutputFileFound)| {
            let opened = if at < by_name { None } else { File::open(&file.path).ok() };
            (file.clone(), FileToRead { path: file.path.clone(), opened })
        };
        let files: Vec<_> = found.iter().enumerate().map(open).collect();
        let is_it = |(file, to_read): &(OutputFileFound, FileToRead)| match &to_read.opened {
            Some(opened) => opened.metadata().is_ok_and(|metadata| identity(&metadata) == file.identity),
            None => true,
        };
        if listings == LISTINGS_MAX || files.iter().all(is_it) && are_the_same(&files_of(path)?, &found) {
            return Ok(files);
        }
    }
}

/// Those of the output at `path`, the oldest first; the one that has the name is the last. A compressed one is left out
/// while the plain one is there: it is being made, and has the same visits.
///
/// # Errors
/// What the system said of the folder.
pub(super) fn files_of(path: &Path) -> io::Result<Vec<OutputFileFound>> {
    let name = path.file_name().unwrap_or_default();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder_of(path))? {
        let entry = entry?;
        if !is_rotated(name, &entry.file_name()) {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => found.push(OutputFileFound {
                path: folder_of(path).join(entry.file_name()),
                identity: identity(&metadata),
                modified: metadata.modified()?,
            }),
            // It is no file, or is gone by now.
            _ => {}
        }
    }
    let plain: HashSet<PathBuf> = found.iter().map(|file| file.path.clone()).collect();
    found.retain(|file| {
        let named = plain_name(file.path.as_os_str());
        named == file.path || !plain.contains(Path::new(named))
    });
    found.sort_by_key(|file| (file.path.file_name() == Some(OsStr::new(name)), file.modified));
    Ok(found)
}
