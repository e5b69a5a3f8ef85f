//! What was promised beside what is in the output files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// The comparison.
#[derive(Default)]
pub struct Verdict {
    accepted: usize,
    pub lost: Vec<u64>,
    duplicated: Vec<u64>,
    // Answered with 503, and there all the same.
    revived: Vec<u64>,
    // There without a promise: the answer was lost on its way.
    unanswered: usize,
    broken_lines: Vec<String>,
    pub foreign_lines_lost: usize,
    /// What the audit said, where it found a gap.
    pub audit: Option<String>,
}

impl Verdict {
    pub fn of(promised: &BTreeSet<u64>, refused: &BTreeSet<u64>, files: &[PathBuf]) -> Outcome<Verdict> {
        let mut verdict = Verdict { accepted: promised.len(), ..Verdict::default() };
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for file in files {
            for line in String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).lines() {
                match number(line) {
                    Some(number) => *counts.entry(number).or_insert(0) += 1,
                    None if line.starts_with("foreign ") => {}
                    None => verdict.broken_lines.push(line.chars().take(200).collect()),
                }
            }
        }
        verdict.lost = promised.iter().copied().filter(|number| !counts.contains_key(number)).collect();
        verdict.duplicated =
            counts.iter().filter(|(_, count)| **count > 1).map(|(number, _)| *number).collect();
        verdict.revived = refused.iter().copied().filter(|number| counts.contains_key(number)).collect();
        verdict.unanswered = counts.keys().filter(|number| !promised.contains(number)).count();
        Ok(verdict)
    }

    /// How many lines that others appended are still there, in an output or kept apart.
    pub fn foreign_lines_in(&self, folder: Option<&Path>) -> Outcome<usize> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(folder.ok_or("no folder")?)? {
            let bytes = fs::read(entry?.path())?;
            let text = String::from_utf8_lossy(&bytes);
            found.extend(text.lines().filter(|line| line.starts_with("foreign ")).map(str::to_string));
        }
        Ok(found.len())
    }

    pub fn is_well(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.revived.is_empty()
            && self.broken_lines.is_empty()
            && self.foreign_lines_lost == 0
            && self.audit.is_none()
            && self.accepted > 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (numbers, what) in [
            (&self.lost, "lost"),
            (&self.duplicated, "duplicated"),
            (&self.revived, "answered with 503 and written"),
        ] {
            if let Some(first) = numbers.first() {
                writeln!(
                    formatter,
                    "{what}: {} from n={first} on: {:?}",
                    numbers.len(),
                    &numbers[..numbers.len().min(20)]
                )?;
            }
        }
        if let Some(line) = self.broken_lines.first() {
            writeln!(formatter, "{} lines are not whole, the first: {line}", self.broken_lines.len())?;
        }
        if self.foreign_lines_lost > 0 {
            writeln!(formatter, "{} lines of others are gone", self.foreign_lines_lost)?;
        }
        if let Some(report) = &self.audit {
            writeln!(formatter, "the audit disagrees: {report}")?;
        }
        writeln!(formatter, "{} more were written whose answer got lost on its way", self.unanswered)?;
        write!(
            formatter,
            "accepted {}, written {}, lost {}, duplicated {}",
            self.accepted,
            self.accepted - self.lost.len(),
            self.lost.len(),
            self.duplicated.len()
        )
    }
}

/// The number in a line that is one whole JSON object.
fn number(line: &str) -> Option<u64> {
    let rest = line.strip_prefix('{')?.strip_suffix('}')?.split("\"query\":\"n=").nth(1)?;
    rest.split('"').next()?.parse().ok()
}
