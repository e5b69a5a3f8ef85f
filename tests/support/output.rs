//! The output file and what stands beside it, as those see them who read what was written.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Outcome;
use super::launch::Launch;
use super::load::Answers;
use super::wait::{wait_until, wait_up_to};

/// An output file.
#[derive(Debug, Clone)]
pub struct Output {
    pub path: PathBuf,
}

impl Output {
    /// The one at `path`, whether it is there yet or not.
    pub fn at(path: impl Into<PathBuf>) -> Output {
        Output { path: path.into() }
    }

    /// The file whose name is the output's and `suffix`.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Its ledger.
    pub fn ledger(&self) -> PathBuf {
        self.beside(".ledger")
    }

    /// It and everything beside it that begins with its name, but for what is Pixel's own.
    pub fn files(&self) -> Outcome<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(self.folder()?)? {
            let path = entry?.path();
            let suffix = path.to_string_lossy().into_owned();
            let suffix = suffix.strip_prefix(&*self.path.to_string_lossy()).map(str::to_string);
            if suffix.is_some_and(|suffix| suffix != ".lock" && !suffix.starts_with(".ledger")) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// The lines of all of its files, the compressed ones included.
    pub fn lines_of_all(&self) -> Outcome<Vec<String>> {
        let mut lines = Vec::new();
        for path in self.files()? {
            lines.extend(lines_of(&path));
        }
        Ok(lines)
    }

    /// Those of its files that Pixel rotated, in order, compressed ones included.
    pub fn rotated(&self) -> Outcome<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder()?)? {
            let name = entry?.file_name();
            if name.to_string_lossy().starts_with("visits-20") {
                found.push(self.folder()?.join(name));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The lines of it and of those that Pixel rotated.
    pub fn lines_with_rotated(&self) -> Outcome<Vec<String>> {
        let rotated = self.rotated()?;
        Ok(rotated.iter().flat_map(|path| lines_of(path)).chain(self.lines()).collect())
    }

    /// Takes the flock of its readers: the writer waits until the value is dropped.
    pub fn hold_writer_up(&self) -> Outcome<File> {
        Ok(self
            .try_to_hold_writer_up(Duration::from_secs(60), true)?
            .ok_or("others keep the output locked")?)
    }

    /// Appends to it as another program does, without a lock.
    pub fn append(&self, text: &str) -> Outcome {
        Ok(OpenOptions::new().append(true).create(true).open(&self.path)?.write_all(text.as_bytes())?)
    }

    /// Takes the flock, as one of its readers or against all of them; `None` where others have it for so long.
    pub fn try_to_hold_writer_up(&self, patience: Duration, is_exclusive: bool) -> Outcome<Option<File>> {
        let reader = File::open(&self.path)?;
        let lock = || match is_exclusive {
            true => fs2::FileExt::try_lock_exclusive(&reader),
            false => fs2::FileExt::try_lock_shared(&reader),
        };
        let held = wait_up_to(patience, "the output's flock", || lock().is_ok());
        Ok(held.ok().map(|()| reader))
    }

    /// The folder that it is in.
    pub fn folder(&self) -> Outcome<&Path> {
        Ok(self.path.parent().ok_or("no folder")?)
    }

    /// Its lines; none where it is absent.
    pub fn lines(&self) -> Vec<String> {
        lines_of(&self.path)
    }

    /// Waits until it has `count` lines, and returns them.
    pub fn wait_for_lines(&self, count: usize) -> Outcome<Vec<String>> {
        wait_until(&format!("{count} lines in {}", self.path.display()), || self.lines().len() >= count)
            .map_err(|error| format!("{error}; it has {}", self.lines().len()))?;
        Ok(self.lines())
    }

    /// Waits until it has `count` lines of format ndjson, and returns the visit of the last one.
    pub fn wait_for_visit(&self, count: usize) -> Outcome<serde_json::Value> {
        let last = self.wait_for_lines(count)?.pop().ok_or("no line")?;
        Ok(serde_json::from_str(&last)?)
    }

    /// How often each number of a load stands in it; its format is ndjson.
    pub fn written(&self) -> BTreeMap<u64, usize> {
        numbers_of(&self.lines())
    }

    /// Waits until every promised visit is written, then checks that each is there once and that no line
    /// is torn.
    pub fn has_each_once(&self, promised: &[u64]) -> Outcome {
        has_each_once(promised, || Ok(self.lines()))
    }

    /// The same of all of its files together: those that were rotated, and compressed.
    pub fn all_have_each_once(&self, promised: &[u64]) -> Outcome {
        has_each_once(promised, || self.lines_of_all())
    }

    /// Checks that each visit that was answered with 200 is written once, none that was answered with 503
    /// is, and the audit finds nothing.
    pub fn verify(&self, answers: &Answers) -> Outcome {
        self.has_each_once(&answers.promised)?;
        let written = self.written();
        let revived: Vec<_> = answers.refused.iter().filter(|number| written.contains_key(number)).collect();
        assert!(revived.is_empty(), "answered with 503 and written: {revived:?}");
        let report = self.audit_finds_nothing()?;
        println!("{} answers of 200, each written once; the audit: {report}", answers.promised.len());
        Ok(())
    }

    /// Runs `pixel audit` with `arguments`: its exit status and what it says on stdout and stderr.
    pub fn audit_says(&self, arguments: &[&str]) -> Outcome<(i32, String)> {
        let mut launch = Launch::new("pixel")?.argument("audit").with("output", &self.path);
        for argument in arguments {
            launch = launch.argument(argument);
        }
        let (status, stdout, stderr) = launch.run()?;
        Ok((status, stdout + &stderr))
    }

    /// Runs `pixel audit`: its exit status and its JSON.
    pub fn audit(&self) -> Outcome<(i32, serde_json::Value)> {
        let (status, said) = self.audit_says(&["--json"])?;
        Ok((status, serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?))
    }

    /// Runs `pixel audit`, which must end with 0: its JSON.
    pub fn audit_finds_nothing(&self) -> Outcome<serde_json::Value> {
        match self.audit()? {
            (0, report) => Ok(report),
            (status, report) => Err(format!("the audit ended with {status}: {report}").into()),
        }
    }
}

/// The lines of a file, which may be compressed; none where it is absent. One that is being compressed has those of its
/// beginning.
pub fn lines_of(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut plain = Vec::new();
    let _ = match path.extension().and_then(OsStr::to_str) {
        Some("gz") => flate2::read::MultiGzDecoder::new(&*bytes).read_to_end(&mut plain),
        Some("zst") => zstd::stream::copy_decode(&*bytes, &mut plain).map(|()| 0),
        _ => (&*bytes).read_to_end(&mut plain),
    };
    String::from_utf8_lossy(&plain).lines().map(str::to_string).collect()
}

/// How often each number of a load stands in lines of format ndjson.
pub fn numbers_of(lines: &[String]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        // The last line may be half there while the file is written to.
        let Ok(visit) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let number = visit["query"].as_str().and_then(|query| query.strip_prefix("n=")?.parse().ok());
        if let Some(number) = number {
            *counts.entry(number).or_insert(0) += 1;
        }
    }
    counts
}

fn has_each_once(promised: &[u64], lines: impl Fn() -> Outcome<Vec<String>>) -> Outcome {
    each_is_there_once(promised, &lines)?;
    let is_torn = |line: &String| serde_json::from_str::<serde_json::Value>(line).is_err();
    match lines()?.into_iter().find(is_torn) {
        Some(line) => Err(format!("not a whole line: {line}").into()),
        None => Ok(()),
    }
}

/// Waits until every promised visit is among the lines, then checks that each is there once. What others wrote may
/// stand between them.
pub fn each_is_there_once(promised: &[u64], lines: &impl Fn() -> Outcome<Vec<String>>) -> Outcome {
    let missing = || {
        let counts = lines().map(|lines| numbers_of(&lines)).unwrap_or_default();
        promised.iter().filter(|number| !counts.contains_key(number)).count()
    };
    wait_until("every promised visit in the output", || missing() == 0)
        .map_err(|error| format!("{error}: {} of {} are missing", missing(), promised.len()))?;
    let twice: Vec<_> = numbers_of(&lines()?).into_iter().filter(|(_, count)| *count > 1).collect();
    if twice.is_empty() { Ok(()) } else { Err(format!("written more than once: {twice:?}").into()) }
}
