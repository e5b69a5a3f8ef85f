//! A set of sequence numbers, kept as intervals: what has been written of one producer's visits.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A set of `u64` that costs one entry for each run of consecutive numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Sequences {
    // First number of each run to its last. Runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
}

impl Sequences {
    /// Adds every number of `range`.
    pub fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = (*range.start(), *range.end());
        if first > last {
            return;
        }
        // Swallow each run that overlaps or touches, from the right.
        let reach = last.saturating_add(1);
        while let Some((&start, &end)) = self.runs.range(..=reach).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            self.runs.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// The parts of `range` that are not in the set, ascending.
    pub fn missing(&self, range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let (mut next, last) = (*range.start(), *range.end());
        let mut missing = Vec::new();
        let before = self.runs.range(..=next).next_back();
        let overlapping = before.into_iter().chain(self.runs.range(next.saturating_add(1)..));
        for (&start, &end) in overlapping {
            if start > last || next > last {
                break;
            }
            if end < next {
                continue;
            }
            if start > next {
                missing.push(next..=start - 1);
            }
            match end.checked_add(1) {
                Some(after) => next = after,
                None => return missing,
            }
        }
        if next <= last {
            missing.push(next..=last);
        }
        missing
    }

    /// Removes every number that is in `others`.
    pub fn remove_all(&mut self, others: &Sequences) {
        let left = self.runs().flat_map(|(first, last)| others.missing(first..=last));
        self.runs = left.map(RangeInclusive::into_inner).collect();
    }

    /// The runs, ascending, as (first, last).
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(&first, &last)| (first, last))
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.runs().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The holes between the smallest and the largest number, ascending, as (first, last).
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let runs: Vec<_> = self.runs().collect();
        runs.windows(2).map(|pair| (pair[0].1 + 1, pair[1].0 - 1)).collect()
    }
}

impl From<Vec<(u64, u64)>> for Sequences {
    fn from(runs: Vec<(u64, u64)>) -> Self {
        let mut sequences = Sequences::default();
        runs.into_iter().for_each(|(first, last)| sequences.insert(first..=last));
        sequences
    }
}

impl From<Sequences> for Vec<(u64, u64)> {
    fn from(sequences: Sequences) -> Self {
        sequences.runs().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(
            inserted in proptest::collection::vec((0u64..200, 0u64..30), 0..40),
            asked in (0u64..230, 0u64..60),
        ) {
            let mut sequences = Sequences::default();
            let mut plain = BTreeSet::new();
            for (first, count) in inserted {
                sequences.insert(first..=first + count);
                plain.extend(first..=first + count);
            }
            let (first, last) = (asked.0, asked.0 + asked.1);
            let missing: Vec<u64> = sequences.missing(first..=last).into_iter().flatten().collect();
            let expected: Vec<u64> = (first..=last).filter(|n| !plain.contains(n)).collect();
            prop_assert_eq!(&missing, &expected);
            prop_assert_eq!(sequences.len(), plain.len() as u64);
            let members: Vec<u64> = sequences.runs().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(members, plain.iter().copied().collect::<Vec<_>>());
            let touching = sequences.gaps().iter().any(|(a, b)| a > b);
            prop_assert!(!touching, "runs that touch must be one run");
            let mut left = Sequences::default();
            left.insert(asked.0..=asked.0 + asked.1);
            left.remove_all(&sequences);
            let left: Vec<u64> = left.runs().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn the_ends_of_the_number_line_do_not_overflow() {
        let mut sequences = Sequences::default();
        sequences.insert(u64::MAX - 1..=u64::MAX);
        sequences.insert(0..=0);
        assert_eq!(sequences.missing(0..=u64::MAX), vec![1..=u64::MAX - 2]);
        assert_eq!(sequences.missing(u64::MAX..=u64::MAX), vec![]);
    }
}
