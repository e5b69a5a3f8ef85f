//! `pixel merge`: several outputs as one file, each visit once, in the order of their times.

use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::{Arg, ArgMatches, Command};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::process::Failure;
use super::progress::Progress;
use super::sorted_lines::{Key, SortedLines};
use super::visit_file::{LINE_MAX_BYTES, decompressed, skip_line};
use crate::disk::{create_draft, folder_of, rename_new, sibling, sync_folder};
use crate::limits::raise_open_files_max;
use crate::visit::lines::LineFormat;

/// How many lines of a file that are no visits are named.
const NAMED_MAX: u64 = 5;

/// The subcommand.
pub fn merge_command() -> Command {
    let path = clap::value_parser!(PathBuf);
    Command::new("merge")
        .about(
            "Write the visits of several outputs to one file, each once, in the order of their times: of storages on two \
             machines, of shards, of rotated files (.gz and .zst, too). They are to be of format ndjson, as it has \
             the numbers by which a visit is known again. Takes 64 MiB of memory, and room for all of it on the disk \
             of the new file, twice at most",
        )
        .arg(
            Arg::new("into")
                .long("into")
                .value_name("FILE")
                .value_parser(path.clone())
                .help("The new file; standard output unless given"),
        )
        .arg(Arg::new("outputs").value_name("OUTPUT").num_args(1..).required(true).value_parser(path))
}

/// Where the merged lines go.
struct Target {
    file: Box<dyn Write>,
    // The file, its name until it is whole, and then.
    named: Option<(File, PathBuf, PathBuf)>,
    is_whole: bool,
    written: u64,
}

/// What is needed of a line. The numbers are null for visits of other clients, but there.
#[derive(Deserialize)]
struct Line {
    received_at: Timestamp,
    #[serde(deserialize_with = "present")]
    producer: Option<Uuid>,
    #[serde(deserialize_with = "present")]
    sequence: Option<u64>,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(field)
}

/// Runs it.
///
/// # Errors
/// [`Failure::Settings`] where something is no output of format ndjson, or the new file is there already;
/// [`Failure::Runtime`] for what the system said.
#[expect(
    clippy::print_stderr,
    reason = "the outcome is what it is asked for, and the lines may be on stdout"
)]
pub fn merge(matches: &ArgMatches) -> Result<(), Failure> {
    raise_open_files_max();
    let into = matches.get_one::<PathBuf>("into");
    let folder = into.map_or_else(std::env::temp_dir, |path| folder_of(path).to_path_buf());
    let outputs: Vec<&PathBuf> = matches.get_many("outputs").into_iter().flatten().collect();
    let mut sizes = 0;
    for path in &outputs {
        sizes += fs::metadata(path).map_err(|error| unreadable(path, &error))?.len();
    }
    let mut target = Target::open(into)?;
    let mut progress = Progress::new("bytes", sizes);
    let mut lines = SortedLines::in_folder(&folder);
    let (mut unnumbered, mut bad) = (0, 0);
    for path in outputs {
        let read = read(path, &mut lines)?;
        unnumbered += read.unnumbered;
        bad += read.bad;
        progress.advance(fs::metadata(path).map_or(0, |found| found.len()));
    }
    drop(progress);
    let repeated = lines.write(|line| target.write(line)).map_err(|error| target.failed(&error))?;
    let written = target.complete()?;
    eprintln!("{written} visits written, {repeated} that were there more than once left out");
    if unnumbered > 0 {
        eprintln!(
            "{unnumbered} of them are of other clients: they have no numbers, and may be there more than once"
        );
    }
    if bad > 0 {
        eprintln!("{bad} lines that are no visits left out");
    }
    Ok(())
}

/// What was read of a file, in lines.
#[derive(Default)]
struct Found {
    visits: u64,
    // Of those, the ones without a number.
    unnumbered: u64,
    bad: u64,
}

/// Reads the lines of one file. What others have written into it, and what a crash has left, is left out; what is behind
/// the last line feed is being written, or torn.
fn read(path: &Path, lines: &mut SortedLines) -> Result<Found, Failure> {
    let failed = |error: io::Error| unreadable(path, &error);
    let mut reader = File::open(path).and_then(|file| decompressed(file, &Rc::default())).map_err(failed)?;
    let (mut line, mut number, mut found, mut first_bad) = (Vec::new(), 0_u64, Found::default(), None);
    loop {
        line.clear();
        number += 1;
        io::Read::take(&mut *reader, LINE_MAX_BYTES as u64).read_until(b'\n', &mut line).map_err(failed)?;
        if !line.ends_with(b"\n") && line.len() < LINE_MAX_BYTES {
            return match first_bad {
                Some(refusal) if found.visits == 0 => Err(Failure::Settings(refusal)),
                _ => Ok(found),
            };
        }
        match key_of(&line) {
            Ok(key) => {
                found.visits += 1;
                found.unnumbered += u64::from(key.number.is_none());
                lines.add(key, &line).map_err(|error| format!("failed to sort: {error}"))?;
            }
            Err(why) => {
                let refusal = format!(
                    "line {number} of `{}` is no visit of format ndjson, which alone has the numbers to know a visit by: {why}",
                    path.display()
                );
                if LineFormat::of_line(&line).is_some() {
                    return Err(Failure::Settings(refusal));
                }
                if !line.ends_with(b"\n") {
                    skip_line(&mut *reader).map_err(failed)?;
                }
                found.bad += 1;
                if found.bad <= NAMED_MAX {
                    eprintln!("left out: {}:{number}: {why}", path.display());
                }
                first_bad.get_or_insert(refusal);
            }
        }
    }
}

fn key_of(line: &[u8]) -> Result<Key, serde_json::Error> {
    let Line { received_at, producer, sequence } = serde_json::from_slice(line)?;
    Ok(Key {
        second: received_at.as_second(),
        nanosecond: received_at.subsec_nanosecond(),
        number: producer.zip(sequence),
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Settings(format!("failed to read `{}`: {error}", path.display()))
}

impl Target {
    fn open(into: Option<&PathBuf>) -> Result<Self, Failure> {
        let Some(path) = into else {
            return Ok(Target {
                file: Box::new(io::stdout().lock()),
                named: None,
                is_whole: false,
                written: 0,
            });
        };
        let shown = path.display();
        if path.symlink_metadata().is_ok() {
            return Err(Failure::Settings(format!("`{shown}` is there already: name a new file")));
        }
        let draft = sibling(path, "merging");
        let file = create_draft(&draft)
            .map_err(|error| Failure::Settings(format!("failed to make `{shown}`: {error}")))?;
        let named = Some((file.try_clone()?, draft, path.clone()));
        Ok(Target { file: Box::new(BufWriter::new(file)), named, is_whole: false, written: 0 })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.written += 1;
        self.file.write_all(line)
    }

    /// Makes it durable, and gives it its name.
    fn complete(mut self) -> Result<u64, Failure> {
        let completed = self.file.flush().and_then(|()| {
            let Some((file, draft, path)) = &self.named else { return Ok(()) };
            file.sync_all()?;
            rename_new(draft, path)?;
            self.is_whole = true;
            sync_folder(folder_of(path))
        });
        completed.map_err(|error| self.failed(&error))?;
        Ok(self.written)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let what = self.named.as_ref().map(|(_, _, path)| format!("`{}`", path.display()));
        Failure::Runtime(format!(
            "failed to write {}: {error}",
            what.as_deref().unwrap_or("the merged lines")
        ))
    }
}

impl Drop for Target {
    /// What is half done goes.
    fn drop(&mut self) {
        if let Some((_, draft, _)) = self.named.as_ref().filter(|_| !self.is_whole) {
            let _ = fs::remove_file(draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What had appeared meanwhile was replaced, what was called like a draft was emptied, and drafts stayed.
    #[test]
    fn nothing_of_others_is_touched_and_nothing_half_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, draft) = (folder.path().join("all.log"), folder.path().join("all.log.merging"));
        let read = |path: &Path| fs::read_to_string(path).expect("it is there");
        let mut target = Target::open(Some(&path)).expect("there is room");
        target.write(b"ours").expect("there is room");
        fs::write(&path, "theirs").expect("there is room");
        let said = format!("{:?}", target.complete().expect_err("the name is somebody's"));
        assert!(said.contains("all.log`: ") && said.contains("File exists"), "{said}");
        assert_eq!((read(&path), draft.exists()), ("theirs".into(), false));
        fs::remove_file(&path).expect("it is there");
        let mut first = Target::open(Some(&path)).expect("there is room");
        first.write(b"first").expect("there is room");
        let said = format!("{:?}", Target::open(Some(&path)).map(drop).expect_err("another run makes it"));
        assert!(said.contains("all.log.merging` is there: another run makes it"), "{said}");
        assert_eq!(first.complete().expect("it is ours"), 1);
        assert_eq!((read(&path), draft.exists()), ("first".into(), false));
    }
}
