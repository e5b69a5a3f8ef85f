//! The audit: what a ledger proves of the visits that were written.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::state::Written;

/// What was written of every producer's visits.
#[derive(Debug, Serialize)]
pub struct Audit {
    /// Each spool.
    pub producers: Vec<Producer>,
    /// Visits of other clients, which are not numbered.
    pub foreign: Foreign,
    /// Visits missing between a producer's first and last one.
    pub missing: u64,
}

/// One spool's visits.
#[derive(Debug, Serialize)]
pub struct Producer {
    /// Its UUID.
    pub producer: Uuid,
    /// How many visits were written.
    pub written: u64,
    /// Their sequences as first and last of each run.
    pub sequences: Vec<(u64, u64)>,
    /// The runs that are missing in between.
    pub gaps: Vec<(u64, u64)>,
    /// How many visits were delivered again and dropped.
    pub duplicates: u64,
}

/// Other clients' visits.
#[derive(Debug, Serialize)]
pub struct Foreign {
    /// How many were written.
    pub written: u64,
    /// How many were delivered again and dropped.
    pub duplicates: u64,
}

impl Audit {
    /// Reads the ledger's state.
    pub fn of(written: &Written) -> Self {
        let state = written.snapshot();
        let producers: Vec<_> = state
            .spools
            .into_iter()
            .map(|(producer, spooled)| Producer {
                producer,
                written: spooled.written.len(),
                sequences: spooled.written.runs().collect(),
                gaps: spooled.written.gaps(),
                duplicates: spooled.duplicates,
            })
            .collect();
        let gaps = producers.iter().flat_map(|producer| &producer.gaps);
        Audit {
            missing: gaps.map(|(first, last)| last - first + 1).sum(),
            foreign: Foreign { written: state.foreign, duplicates: state.foreign_duplicates },
            producers,
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for producer in &self.producers {
            let Producer { producer, written, sequences, gaps, duplicates } = producer;
            writeln!(formatter, "producer {producer}: {written} written, {duplicates} duplicates dropped")?;
            writeln!(formatter, "  sequences {}", Runs(sequences))?;
            if !gaps.is_empty() {
                writeln!(formatter, "  gaps {}", Runs(gaps))?;
            }
        }
        let Foreign { written, duplicates } = self.foreign;
        if written + duplicates > 0 {
            writeln!(formatter, "other clients: {written} written, {duplicates} duplicates dropped")?;
        }
        match self.missing {
            0 => writeln!(formatter, "no gap"),
            missing => writeln!(formatter, "{missing} visits are missing"),
        }
    }
}

struct Runs<'a>(&'a [(u64, u64)]);

impl fmt::Display for Runs<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            match first == last {
                true => write!(formatter, "{separator}{first}")?,
                false => write!(formatter, "{separator}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Entry;

    #[test]
    fn a_gap_is_named() {
        let mut written = Written::default();
        let mut entry = Entry::default();
        entry.note(&written, Uuid::nil(), 1..=5);
        entry.note(&written, Uuid::nil(), 9..=9);
        entry.note(&written, Uuid::nil(), 5..=5);
        written.apply(&entry);
        let audit = Audit::of(&written);
        assert_eq!(audit.missing, 3);
        let text = audit.to_string();
        assert!(text.contains("6 written, 1 duplicates dropped"), "{text}");
        assert!(text.contains("sequences 1-5, 9") && text.contains("gaps 6-8"), "{text}");
    }
}
