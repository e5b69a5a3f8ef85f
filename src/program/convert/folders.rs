//! Converted visits as files: one, or one for each day or hour in folders that DuckDB, Spark and ClickHouse know as
//! partitions. A file has its name once it is whole; until then it is called `….tmp`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::file_format::FileFormat;
use super::sink::Sink;
use super::sinks::sink;
use crate::disk::{create_draft, folder_of, keep_names, rename_new, sibling, sync_folder};
use crate::visit::lines::Numbered;

/// How many files are open at once: each has some memory. Of more, the one that was used least lately is closed, and
/// what comes for its hour goes to another beside it.
const OPEN_MAX: usize = 16;

/// Which visits are in a file together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// All of them.
    All,
    /// Those of a day (UTC).
    Day,
    /// Those of an hour (UTC).
    Hour,
}

impl By {
    /// The folder of a time, below the one that was named.
    fn folder(self, time: Timestamp) -> String {
        match self {
            By::All => String::new(),
            By::Day => time.strftime("dt=%Y-%m-%d").to_string(),
            By::Hour => time.strftime("dt=%Y-%m-%d/hour=%H").to_string(),
        }
    }
}

struct Open {
    sink: Box<dyn Sink>,
    file: File,
    used: u64,
}

/// Files that are written.
pub(super) struct Files {
    root: PathBuf,
    // Whether it was there before.
    is_found: bool,
    by: By,
    format: FileFormat,
    open: BTreeMap<String, Open>,
    // By folder: how many files were begun in it.
    begun: BTreeMap<String, u32>,
    // With the name that each is to have, which it has not got yet.
    drafts: Vec<PathBuf>,
    used: u64,
}

impl Files {
    /// Files of `format`: `root` itself, or below it.
    pub(super) fn new(root: &Path, by: By, format: FileFormat) -> Self {
        Files {
            is_found: root.exists(),
            root: root.into(),
            by,
            format,
            open: BTreeMap::new(),
            begun: BTreeMap::new(),
            drafts: Vec::new(),
            used: 0,
        }
    }

    /// Adds a visit to the file of its time.
    ///
    /// # Errors
    /// Which file, and what the system said of it.
    pub(super) fn add(&mut self, visit: Numbered<'_>) -> Result<(), String> {
        self.used += 1;
        let folder = self.by.folder(visit.visit.received_at);
        if !self.open.contains_key(&folder) {
            self.make_room()?;
            let open = self.begin(&folder)?;
            self.open.insert(folder.clone(), open);
        }
        let open = self.open.get_mut(&folder).expect("it was just opened");
        open.used = self.used;
        open.sink
            .add(visit)
            .map_err(|error| format!("failed to write to `{}`: {error}", self.root.join(folder).display()))
    }

    /// Makes everything durable, and then gives each file its name.
    ///
    /// # Errors
    /// Which file, and what the system said of it.
    pub(super) fn finish(mut self) -> Result<usize, String> {
        if self.by == By::All && self.drafts.is_empty() {
            let open = self.begin("")?;
            self.open.insert(String::new(), open);
        }
        while let Some((folder, open)) = self.open.pop_first() {
            self.close(&folder, open)?;
        }
        let count = self.drafts.len();
        while let Some(path) = self.drafts.last() {
            rename_new(&draft(path), path).map_err(|error| failed(path, &error))?;
            let path = self.drafts.pop().expect("there is a last one");
            sync_folder(folder_of(&path)).map_err(|error| failed(&path, &error))?;
        }
        Ok(count)
    }

    fn begin(&mut self, folder: &str) -> Result<Open, String> {
        let begun = self.begun.entry(folder.into()).or_default();
        *begun += 1;
        let path = match self.by {
            By::All => self.root.clone(),
            _ => {
                let number = if *begun > 1 { format!("-{begun}") } else { String::new() };
                self.root.join(folder).join(format!("visits{number}.{}", self.format.extension()))
            }
        };
        if path.symlink_metadata().is_ok() {
            return Err(format!("`{}` is there already: remove it, or name another", path.display()));
        }
        let make = || -> io::Result<File> {
            if self.by != By::All {
                fs::create_dir_all(folder_of(&path))?;
                keep_names(folder_of(&path));
            }
            create_draft(&draft(&path))
        };
        let file = make().map_err(|error| {
            self.remove_folders(&path);
            failed(&path, &error)
        })?;
        self.drafts.push(path.clone());
        let sink = file.try_clone().and_then(|file| sink(self.format, Box::new(file)));
        Ok(Open { sink: sink.map_err(|error| failed(&path, &error))?, file, used: 0 })
    }

    /// Removes the new folders of a file that have nothing else.
    fn remove_folders(&self, path: &Path) {
        let folders = path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        for folder in folders.filter(|folder| *folder != self.root || !self.is_found) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Closes the file that was used least lately, where so many are open.
    fn make_room(&mut self) -> Result<(), String> {
        if self.open.len() < OPEN_MAX {
            return Ok(());
        }
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(folder, _)| folder.clone());
        match oldest.and_then(|folder| self.open.remove_entry(&folder)) {
            Some((folder, open)) => self.close(&folder, open),
            None => Ok(()),
        }
    }

    fn close(&self, folder: &str, open: Open) -> Result<(), String> {
        let closed = open.sink.finish().and_then(|()| open.file.sync_all());
        closed.map_err(|error| failed(&self.root.join(folder), &error))
    }
}

impl Drop for Files {
    /// What is half done goes, and the folders that have nothing else.
    fn drop(&mut self) {
        for path in &self.drafts {
            let _ = fs::remove_file(draft(path));
            self.remove_folders(path);
        }
    }
}

fn draft(path: &Path) -> PathBuf {
    sibling(path, "tmp")
}

fn failed(path: &Path, error: &io::Error) -> String {
    format!("failed to write `{}`: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visit::Visit;
    use crate::visit::lines::LineFormat;

    /// What had appeared meanwhile was replaced, and what was called like a draft was emptied, and removed.
    #[test]
    fn nothing_of_others_is_touched_and_nothing_half_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("hours");
        let day = root.join("dt=1970-01-01");
        let (path, draft) = (day.join("visits.log"), day.join("visits.log.tmp"));
        let visit = Visit::new(Timestamp::UNIX_EPOCH, [1, 2, 3, 4].into());
        let visit = || Numbered { visit: &visit, number: None };
        let files = || Files::new(&root, By::Day, FileFormat::Lines(LineFormat::Pipe));
        let read = |path: &Path| fs::read_to_string(path).expect("it is there");
        fs::create_dir_all(&day).expect("there is room");
        fs::write(&draft, "theirs").expect("there is room");
        let said = files().add(visit()).expect_err("the draft is somebody's");
        assert!(said.contains("visits.log.tmp` is there: another run makes it"), "{said}");
        assert_eq!(read(&draft), "theirs");
        fs::remove_file(&draft).expect("it is there");
        let mut ours = files();
        ours.add(visit()).expect("there is room");
        fs::write(&path, "theirs").expect("there is room");
        let said = ours.finish().expect_err("the name is somebody's");
        assert!(said.contains("File exists"), "{said}");
        assert_eq!((read(&path), draft.exists()), ("theirs".into(), false));
        fs::remove_dir_all(&root).expect("it is there");
        let mut ours = files();
        ours.add(visit()).expect("there is room");
        assert_eq!(ours.finish(), Ok(1));
        assert!(path.exists() && !draft.exists());
    }
}
