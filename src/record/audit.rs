//! The audit of numbers: what a ledger proves of the visits that were written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;
use uuid::Uuid;

use super::sequences::Sequences;
use super::state::{Spooled, Written};

/// What was written of every producer's visits.
#[derive(Debug, Serialize)]
pub struct Audit {
    /// Each spool.
    pub producers: Vec<Producer>,
    /// Visits of other clients, which are not numbered.
    pub foreign: Foreign,
    /// Visits of which nothing is known, though later ones of their producer are.
    pub missing: u64,
    /// How many visits more than one of the outputs has.
    pub twice: u64,
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
    /// How many more than once, as more than one of the outputs has them.
    pub twice: u64,
    /// The runs of those.
    pub in_several: Vec<(u64, u64)>,
}

impl Producer {
    fn of(
        producer: Uuid,
        spooled: &Spooled,
        spool: &InSpool,
        elsewhere: &Sequences,
        began_late: bool,
    ) -> Self {
        let written = &spooled.written;
        let mut known = written.clone();
        let others = [&spooled.dead, &spool.waiting, elsewhere];
        others.iter().flat_map(|other| other.runs()).for_each(|(first, last)| known.insert(first..=last));
        let last = known.runs().last().map_or(0, |(_, last)| last).max(spool.last);
        let first_known = written.runs().chain(spool.waiting.runs()).map(|(first, _)| first).min();
        let first = if began_late { first_known.unwrap_or(last + 1) } else { 1 };
        let gaps = if first <= last { known.missing(first..=last) } else { Vec::new() };
        let only_in = |other: &Sequences| -> u64 {
            let parts = other.runs().flat_map(|(first, last)| written.missing(first..=last));
            parts.map(|part| part.end() - part.start() + 1).sum()
        };
        Producer {
            producer,
            written: written.len(),
            sequences: written.runs().collect(),
            dead: spooled.dead.runs().collect(),
            gaps: gaps.into_iter().map(RangeInclusive::into_inner).collect(),
            duplicates: spooled.duplicates,
            waiting: only_in(&spool.waiting),
            elsewhere: only_in(elsewhere),
            twice: 0,
            in_several: Vec::new(),
        }
    }
}

/// What several outputs have of one producer, how many visits more than one of them has, and which.
fn united<'a>(outputs: impl Iterator<Item = &'a Spooled>) -> (Spooled, u64, Sequences) {
    let (mut all, mut written, mut several) = (Spooled::default(), 0, Sequences::default());
    for one in outputs {
        let mut new = one.written.clone();
        new.remove_all(&all.written);
        let mut known = one.written.clone();
        known.remove_all(&new);
        known.runs().for_each(|(first, last)| several.insert(first..=last));
        one.written.runs().for_each(|(first, last)| all.written.insert(first..=last));
        one.dead.runs().for_each(|(first, last)| all.dead.insert(first..=last));
        all.duplicates += one.duplicates;
        written += one.written.len();
    }
    all.dead.remove_all(&all.written);
    let twice = written - all.written.len();
    (all, twice, several)
}

/// Other clients' visits.
#[derive(Debug, Serialize)]
pub struct Foreign {
    /// How many were written.
    pub written: u64,
    /// How many were delivered again and dropped.
    pub duplicates: u64,
}

/// What a spool's folder tells of its visits.
#[derive(Debug, Clone, Default)]
pub struct InSpool {
    /// The sequences that wait.
    pub waiting: Sequences,
    /// The last sequence that it gave; 0 where it gave none.
    pub last: u64,
}

impl Audit {
    /// Compares the state of the ledgers of all `outputs` with what is in `spools`, and with the numbers that are
    /// `elsewhere`, in other ledgers. A producer's numbers begin with 1; with the first that is known, where a ledger
    /// began late.
    pub fn of(
        outputs: &[&Written],
        spools: &BTreeMap<Uuid, InSpool>,
        elsewhere: &BTreeMap<Uuid, Sequences>,
    ) -> Self {
        let began_late = outputs.iter().any(|written| written.began_late());
        let written = outputs.iter().flat_map(|written| written.spools().keys());
        let in_spools = spools.iter().filter(|(_, spool)| spool.last > 0);
        let ids: BTreeSet<Uuid> = written.chain(in_spools.map(|(id, _)| id)).copied().collect();
        let producers: Vec<Producer> = ids
            .into_iter()
            .map(|id| {
                let (spooled, twice, several) =
                    united(outputs.iter().filter_map(|written| written.spools().get(&id)));
                let spool = spools.get(&id).cloned().unwrap_or_default();
                let elsewhere = elsewhere.get(&id).cloned().unwrap_or_default();
                let producer = Producer::of(id, &spooled, &spool, &elsewhere, began_late);
                Producer { twice, in_several: several.runs().collect(), ..producer }
            })
            .collect();
        let gaps = producers.iter().flat_map(|producer| &producer.gaps);
        let foreign = outputs.iter().map(|written| written.foreign());
        let (written, duplicates) = foreign.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        Audit {
            missing: gaps.map(|(first, last)| last - first + 1).sum(),
            twice: producers.iter().map(|producer| producer.twice).sum(),
            foreign: Foreign { written, duplicates },
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
            let Producer {
                producer,
                written,
                sequences,
                dead,
                gaps,
                duplicates,
                waiting,
                elsewhere,
                twice,
                in_several,
            } = one;
            write!(formatter, "producer {producer}: {written} written, {duplicates} duplicates dropped")?;
            for (count, what) in [
                (waiting, "waiting in the spool"),
                (elsewhere, "in another ledger"),
                (twice, "in more than one output"),
            ] {
                if *count > 0 {
                    write!(formatter, ", {count} {what}")?;
                }
            }
            writeln!(formatter)?;
            if !sequences.is_empty() {
                writeln!(formatter, "  sequences {}", Runs(sequences))?;
            }
            if !dead.is_empty() {
                writeln!(formatter, "  in the dead letters {}", Runs(dead))?;
            }
            if !gaps.is_empty() {
                writeln!(formatter, "  gaps {}", Runs(gaps))?;
            }
            if !in_several.is_empty() {
                writeln!(formatter, "  in more than one output {}", Runs(in_several))?;
            }
            let ends_with_gap = gaps.last() > sequences.last();
            if ends_with_gap {
                writeln!(formatter, "  what is behind the last written one may be with the broker still")?;
            }
        }
        let Foreign { written, duplicates } = self.foreign;
        if written + duplicates > 0 {
            writeln!(formatter, "other clients: {written} written, {duplicates} duplicates dropped")?;
        }
        match self.missing {
            0 if self.is_empty() => writeln!(formatter, "nothing written yet"),
            0 => writeln!(formatter, "no gap"),
            1 => writeln!(formatter, "1 visit is missing"),
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

    fn numbers(range: RangeInclusive<u64>) -> BTreeMap<Uuid, Sequences> {
        let mut sequences = Sequences::default();
        sequences.insert(range);
        BTreeMap::from([(Uuid::nil(), sequences)])
    }

    fn spool(waiting: RangeInclusive<u64>, last: u64) -> BTreeMap<Uuid, InSpool> {
        let waiting = numbers(waiting).remove(&Uuid::nil()).unwrap_or_default();
        BTreeMap::from([(Uuid::nil(), InSpool { waiting, last })])
    }

    #[test]
    fn a_gap_is_named() {
        let (spools, none) = (BTreeMap::new(), BTreeMap::new());
        let audit = Audit::of(&[&written(&[1..=5, 9..=9, 5..=5], false)], &spools, &none);
        assert_eq!(audit.missing, 3);
        let text = audit.to_string();
        assert!(text.contains("6 written, 1 duplicates dropped"), "{text}");
        assert!(text.contains("sequences 1-5, 9") && text.contains("gaps 6-8"), "{text}");
        assert_eq!(Audit::of(&[&Written::default()], &spools, &none).to_string(), "nothing written yet\n");
    }

    #[test]
    fn a_dead_letter_is_no_gap() {
        let (spools, none) = (BTreeMap::new(), BTreeMap::new());
        let mut written = written(&[1..=5, 9..=9], false);
        let mut entry = Entry::default();
        entry.note_dead(&written, Uuid::nil(), 7..=7);
        written.apply(&entry);
        let audit = Audit::of(&[&written], &spools, &none);
        assert_eq!(audit.missing, 2);
        let text = audit.to_string();
        assert!(text.contains("gaps 6, 8") && text.contains("in the dead letters 7"), "{text}");
    }

    #[test]
    fn a_producer_begins_with_1_unless_the_ledger_began_late() {
        let (spools, none) = (BTreeMap::new(), BTreeMap::new());
        assert_eq!(Audit::of(&[&written(&[4..=6], false)], &spools, &none).producers[0].gaps, [(1, 3)]);
        assert!(Audit::of(&[&written(&[4..=6], true)], &spools, &none).producers[0].gaps.is_empty());
    }

    #[test]
    fn what_waits_or_stands_elsewhere_is_no_gap() {
        let audit = Audit::of(&[&written(&[4..=6], false)], &spool(8..=10, 10), &numbers(1..=3));
        assert_eq!(audit.producers[0].gaps, [(7, 7)], "behind which others wait");
        assert_eq!((audit.producers[0].waiting, audit.producers[0].elsewhere), (3, 3));
    }

    #[test]
    fn what_a_spool_gave_and_no_ledger_has_is_missing() {
        let nowhere = BTreeMap::new();
        let gaps =
            |written: &Written, spools| Audit::of(&[written], &spools, &nowhere).producers[0].gaps.clone();
        let some = written(&[1..=6], false);
        assert_eq!(gaps(&some, spool(9..=9, 12)), [(7, 8), (10, 12)], "also behind what waits");
        assert_eq!(
            gaps(&Written::default(), spool(5..=6, 6)),
            [(1, 4)],
            "of a spool that the ledger has not met"
        );
        assert!(gaps(&written(&[], true), spool(5..=6, 6)).is_empty(), "which may have an older ledger");
        let fresh = BTreeMap::from([(Uuid::nil(), InSpool::default())]);
        assert!(Audit::of(&[&Written::default()], &fresh, &nowhere).is_empty());
    }

    #[test]
    fn outputs_are_read_together_and_what_two_of_them_have_is_told() {
        let none = BTreeMap::new();
        let (one, other) = (written(&[1..=5, 11..=15], false), written(&[6..=10], false));
        let apart = Audit::of(&[&one, &other], &none, &BTreeMap::new());
        assert_eq!((apart.missing, apart.twice, apart.producers[0].written), (0, 0, 15));
        let lacking = Audit::of(&[&one], &none, &BTreeMap::new());
        assert_eq!(lacking.producers[0].gaps, [(6, 10)]);
        let both = Audit::of(&[&one, &written(&[4..=10], false)], &none, &BTreeMap::new());
        assert_eq!((both.missing, both.twice), (0, 2));
        assert!(both.to_string().contains("2 in more than one output"), "{both}");
        assert_eq!(both.producers[0].in_several, [(4, 5)]);
    }
}
