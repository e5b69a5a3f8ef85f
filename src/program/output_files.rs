//! The files of an output: the one that is written, and those that were rotated, in the order of their last write.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::disk::folder::Identity;
use crate::disk::{folder_of, identity};
use crate::output::names::{is_rotated, plain as plain_name};

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
