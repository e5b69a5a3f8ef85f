//! The audit of numbers: what a ledger proves of the visits that were written.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::sequences::Sequences;
use super::state::Written;

/// What was written of every producer's visits.
#[derive(Debug, Serialize)]
pub struct Audit {
    /// Each spool.
    pub producers: Vec<Producer>,
    /// Visits of other clients, which are not numbered.
    pub foreign: Foreign,
    /// Visits of which nothing is known, though later ones of their producer are.
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
    /// The runs of those that went to the dead letters and were not written since.
    pub dead: Vec<(u64, u64)>,
    /// The runs that are neither written nor anywhere else that is known.
    pub gaps: Vec<(u64, u64)>,
    /// How many visits were delivered again and dropped.
    pub duplicates: u64,
    /// How many wait in the spool.
    pub waiting: u64,
    /// How many another ledger has.
    pub elsewhere: u64,
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
    /// Compares the ledger's state with the numbers that `waiting` in spools and `elsewhere` in other ledgers are. A
    /// producer's numbers begin with 1; with the first that was written, where the ledger began late.
    pub fn of(
        written: &Written,
        waiting: &BTreeMap<Uuid, Sequences>,
        elsewhere: &BTreeMap<Uuid, Sequences>,
    ) -> Self {
        let state = written.snapshot();
        let none = Sequences::default();
        let mut producers = Vec::new();
        for (producer, spooled) in state.spools {
            let (waits, is_elsewhere) =
                (waiting.get(&producer).unwrap_or(&none), elsewhere.get(&producer).unwrap_or(&none));
            let mut known = spooled.written.clone();
            for (first, last) in spooled.dead.runs().chain(waits.runs()).chain(is_elsewhere.runs()) {
                known.insert(first..=last);
            }
            let last = known.runs().last().map_or(0, |(_, last)| last);
            let first = match spooled.written.runs().next() {
                Some((first, _)) if written.began_late() => first,
                _ => 1,
            };
            let missing = if first <= last { known.missing(first..=last) } else { Vec::new() };
            let only_in = |other: &Sequences| -> u64 {
                let parts = other.runs().flat_map(|(first, last)| spooled.written.missing(first..=last));
                parts.map(|part| part.end() - part.start() + 1).sum()
            };
            producers.push(Producer {
                producer,
                written: spooled.written.len(),
                dead: spooled.dead.runs().collect(),
                gaps: missing.into_iter().map(|part| (*part.start(), *part.end())).collect(),
                duplicates: spooled.duplicates,
                waiting: only_in(waits),
                elsewhere: only_in(is_elsewhere),
                sequences: spooled.written.runs().collect(),
            });
        }
        let gaps = producers.iter().flat_map(|producer| &producer.gaps);
        Audit {
            missing: gaps.map(|(first, last)| last - first + 1).sum(),
            foreign: Foreign { written: state.foreign, duplicates: state.foreign_duplicates },
            producers,
        }
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty() && self.foreign.written + self.foreign.duplicates == 0
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.producers {
            let Producer { producer, written, sequences, dead, gaps, duplicates, waiting, elsewhere } = one;
            write!(formatter, "producer {producer}: {written} written, {duplicates} duplicates dropped")?;
            for (count, what) in [(waiting, "waiting in the spool"), (elsewhere, "in another ledger")] {
                if *count > 0 {
                    write!(formatter, ", {count} {what}")?;
                }
            }
            writeln!(formatter, "\n  sequences {}", Runs(sequences))?;
            if !dead.is_empty() {
                writeln!(formatter, "  in the dead letters {}", Runs(dead))?;
            }
            if !gaps.is_empty() {
                writeln!(formatter, "  gaps {}", Runs(gaps))?;
            }
        }
        let Foreign { written, duplicates } = self.foreign;
        if written + duplicates > 0 {
            writeln!(formatter, "other clients: {written} written, {duplicates} duplicates dropped")?;
        }
        match self.missing {
            0 if self.is_empty() => writeln!(formatter, "nothing written yet"),
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

    fn written(ranges: &[std::ops::RangeInclusive<u64>], began_late: bool) -> Written {
        let mut written = Written::default();
        let mut entry = Entry { began_late, ..Entry::default() };
        for range in ranges {
            entry.note(&written, Uuid::nil(), range.clone());
        }
        written.apply(&entry);
        written
    }

    fn numbers(ranges: &[std::ops::RangeInclusive<u64>]) -> BTreeMap<Uuid, Sequences> {
        let mut sequences = Sequences::default();
        ranges.iter().for_each(|range| sequences.insert(range.clone()));
        BTreeMap::from([(Uuid::nil(), sequences)])
    }

    #[test]
    fn a_gap_is_named() {
        let none = BTreeMap::new();
        let audit = Audit::of(&written(&[1..=5, 9..=9, 5..=5], false), &none, &none);
        assert_eq!(audit.missing, 3);
        let text = audit.to_string();
        assert!(text.contains("6 written, 1 duplicates dropped"), "{text}");
        assert!(text.contains("sequences 1-5, 9") && text.contains("gaps 6-8"), "{text}");
        assert_eq!(Audit::of(&Written::default(), &none, &none).to_string(), "nothing written yet\n");
    }

    #[test]
    fn a_dead_letter_is_no_gap() {
        let none = BTreeMap::new();
        let mut written = written(&[1..=5, 9..=9], false);
        let mut entry = Entry::default();
        entry.note_dead(&written, Uuid::nil(), 7);
        written.apply(&entry);
        let audit = Audit::of(&written, &none, &none);
        assert_eq!(audit.missing, 2);
        let text = audit.to_string();
        assert!(text.contains("gaps 6, 8") && text.contains("in the dead letters 7"), "{text}");
    }

    #[test]
    fn a_producer_begins_with_1_unless_the_ledger_began_late() {
        let none = BTreeMap::new();
        assert_eq!(Audit::of(&written(&[4..=6], false), &none, &none).producers[0].gaps, [(1, 3)]);
        assert!(Audit::of(&written(&[4..=6], true), &none, &none).producers[0].gaps.is_empty());
    }

    #[test]
    fn what_waits_or_stands_elsewhere_is_no_gap() {
        let (waiting, elsewhere) = (numbers(&[8..=10]), numbers(&[1..=3]));
        let audit = Audit::of(&written(&[4..=6], false), &waiting, &elsewhere);
        assert_eq!(audit.producers[0].gaps, [(7, 7)], "behind which others wait");
        assert_eq!((audit.producers[0].waiting, audit.producers[0].elsewhere), (3, 3));
    }
}
