//! The output file and what stands beside it, as those see them who read what was written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use super::Outcome;
use super::launch::Launch;
use super::load::Answers;
use super::wait::wait_until;

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

    /// The files beside it that hold what a start cut off.
    pub fn set_aside(&self) -> Outcome<Vec<PathBuf>> {
        let folder = self.path.parent().ok_or("no folder")?;
        let paths = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths.filter(|path| path.to_string_lossy().contains("unacknowledged")).collect())
    }

    /// Takes the flock of its readers: the writer waits until the value is dropped.
    pub fn hold_writer_up(&self) -> Outcome<File> {
        let reader = File::open(&self.path)?;
        fs2::FileExt::lock_exclusive(&reader)?;
        Ok(reader)
    }

    /// Its lines; none where it is absent.
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().map(str::to_string).collect()
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
        let mut counts = BTreeMap::new();
        for line in self.lines() {
            // The last line may be half there while the file is written to.
            let Ok(visit) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            let number = visit["query"].as_str().and_then(|query| query.strip_prefix("n=")?.parse().ok());
            if let Some(number) = number {
                *counts.entry(number).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Waits until every promised visit is written, then checks that each is there once and that no line
    /// is torn.
    pub fn has_each_once(&self, promised: &[u64]) -> Outcome {
        let missing = || {
            let counts = self.written();
            promised.iter().filter(|number| !counts.contains_key(number)).count()
        };
        wait_until("every promised visit in the output", || missing() == 0)
            .map_err(|error| format!("{error}: {} of {} are missing", missing(), promised.len()))?;
        let twice: Vec<_> = self.written().into_iter().filter(|(_, count)| *count > 1).collect();
        if !twice.is_empty() {
            return Err(format!("written more than once: {twice:?}").into());
        }
        let is_torn = |line: &String| serde_json::from_str::<serde_json::Value>(line).is_err();
        match self.lines().into_iter().find(is_torn) {
            Some(line) => Err(format!("not a whole line: {line}").into()),
            None => Ok(()),
        }
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

    /// Runs `pixel audit`: its exit status and its JSON.
    pub fn audit(&self) -> Outcome<(i32, serde_json::Value)> {
        let launch = Launch::new("pixel")?.argument("audit").argument("--json").with("output", &self.path);
        let (status, stdout, stderr) = launch.run()?;
        Ok((status, serde_json::from_str(&stdout).map_err(|error| format!("{error}: {stdout}{stderr}"))?))
    }

    /// Runs `pixel audit`, which must end with 0: its JSON.
    pub fn audit_finds_nothing(&self) -> Outcome<serde_json::Value> {
        match self.audit()? {
            (0, report) => Ok(report),
            (status, report) => Err(format!("the audit ended with {status}: {report}").into()),
        }
    }
}
