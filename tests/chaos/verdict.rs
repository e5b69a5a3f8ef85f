//! What was promised beside what is in the output files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::Outcome;
use crate::support::output::lines_of;

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
    // Beginnings of lines that stand whole elsewhere: what a crash or an error left, and others wrote behind.
    fragments: usize,
    foreign_lines: BTreeSet<String>,
    pub foreign_lines_lost: usize,
    /// How many files of other programs had the output's inode number.
    pub strangers: usize,
    pub strangers_changed: Vec<String>,
    /// How many files the audit verified.
    pub audited: usize,
    /// What the audit said, where something is not proved.
    pub audit: Option<String>,
}

impl Verdict {
    pub fn of(promised: &BTreeSet<u64>, refused: &BTreeSet<u64>, files: &[PathBuf]) -> Outcome<Verdict> {
        let mut verdict = Verdict { accepted: promised.len(), ..Verdict::default() };
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        let (mut whole, mut torn) = (BTreeSet::new(), Vec::new());
        for line in files.iter().flat_map(|file| lines_of(file)) {
            if let Some(number) = number(&line) {
                *counts.entry(number).or_insert(0) += 1;
                whole.insert(line);
                continue;
            }
            // Of a line of ours that was torn, others' may be the end.
            let (ours, theirs) = line.split_at(line.rfind("foreign ").unwrap_or(line.len()));
            if !theirs.is_empty() {
                verdict.foreign_lines.insert(theirs.to_string());
            }
            if !ours.is_empty() {
                torn.push(ours.to_string());
            }
        }
        for line in torn {
            let next = whole.range(line.clone()..).next();
            match next.is_some_and(|next| next.starts_with(&line)) {
                true => verdict.fragments += 1,
                false => verdict.broken_lines.push(line.chars().take(200).collect()),
            }
        }
        verdict.lost = promised.iter().copied().filter(|number| !counts.contains_key(number)).collect();
        verdict.duplicated =
            counts.iter().filter(|(_, count)| **count > 1).map(|(number, _)| *number).collect();
        verdict.revived = refused.iter().copied().filter(|number| counts.contains_key(number)).collect();
        verdict.unanswered = counts.keys().filter(|number| !promised.contains(number)).count();
        Ok(verdict)
    }

    /// How many lines that others appended are still there.
    pub fn foreign_lines(&self) -> usize {
        self.foreign_lines.len()
    }

    pub fn is_well(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.revived.is_empty()
            && self.broken_lines.is_empty()
            && self.foreign_lines_lost == 0
            && self.strangers_changed.is_empty()
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
        for change in &self.strangers_changed {
            writeln!(formatter, "another program's file was changed: {change}")?;
        }
        if let Some(report) = &self.audit {
            writeln!(formatter, "the audit disagrees: {report}")?;
        }
        writeln!(
            formatter,
            "{} more were written whose answer got lost on its way; {} fragments; {} lines of others; {} files of others \
             with the output's inode number; the audit verified {} files",
            self.unanswered,
            self.fragments,
            self.foreign_lines(),
            self.strangers,
            self.audited
        )?;
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
