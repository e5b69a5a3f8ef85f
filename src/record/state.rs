//! What has been written to one output file: the knowledge behind exactly-once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sequences::Sequences;

/// How many `message_id`s of other clients' messages are remembered: a repeated delivery is
/// recognised as long as fewer messages with other ids came in between.
pub(super) const MESSAGE_IDS_MAX: usize = 65_536;

/// A place in the output file, before which everything is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The device that holds the file.
    pub device: u64,
    /// The file's inode number.
    pub inode: u64,
    /// The file's length in bytes.
    pub length: u64,
}

/// What is known of one spool's visits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooled {
    /// The sequences written.
    pub written: Sequences,
    /// How many visits were delivered again and dropped.
    pub duplicates: u64,
}

/// What a batch added; also, applied to nothing, a whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where the output ended after the batch, if it wrote anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Mark>,
    /// What came from spools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spools: BTreeMap<Uuid, Spooled>,
    /// The ids of other clients' messages, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub message_ids: Vec<String>,
    /// How many visits came from other clients.
    #[serde(default)]
    pub foreign: u64,
    /// How many of theirs were delivered again and dropped.
    #[serde(default)]
    pub foreign_duplicates: u64,
}

impl Entry {
    /// Notes a message of a spool; returns the parts of `range` that neither `written` nor this batch
    /// has yet.
    pub fn note(
        &mut self,
        written: &Written,
        producer: Uuid,
        range: RangeInclusive<u64>,
    ) -> Vec<RangeInclusive<u64>> {
        let spooled = self.spools.entry(producer).or_default();
        let unwritten = written.missing(producer, range.clone());
        let new: Vec<_> = unwritten.into_iter().flat_map(|part| spooled.written.missing(part)).collect();
        let fresh: u64 = new.iter().map(|part| part.end() - part.start() + 1).sum();
        new.iter().for_each(|part| spooled.written.insert(part.clone()));
        spooled.duplicates += range.end() - range.start() + 1 - fresh;
        new
    }

    /// Notes a message of another client; returns whether it is new.
    pub fn note_foreign(&mut self, written: &Written, message_id: Option<&String>, visits: u64) -> bool {
        let seen = |id: &String| written.has_seen(id) || self.message_ids.contains(id);
        if message_id.is_some_and(seen) {
            self.foreign_duplicates += visits;
            return false;
        }
        self.message_ids.extend(message_id.cloned());
        self.foreign += visits;
        true
    }

    /// How many visits were dropped because they were written before.
    pub fn duplicates(&self) -> u64 {
        self.foreign_duplicates + self.spools.values().map(|spooled| spooled.duplicates).sum::<u64>()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Entry::default()
    }
}

/// All that has been written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    output: Option<Mark>,
    spools: BTreeMap<Uuid, Spooled>,
    message_ids: HashSet<String>,
    message_ids_by_age: VecDeque<String>,
    foreign: u64,
    foreign_duplicates: u64,
}

impl Written {
    /// Adds what a batch changed.
    pub fn apply(&mut self, entry: &Entry) {
        self.output = entry.output.or(self.output);
        for (producer, new) in &entry.spools {
            let spooled = self.spools.entry(*producer).or_default();
            new.written.runs().for_each(|(first, last)| spooled.written.insert(first..=last));
            spooled.duplicates += new.duplicates;
        }
        for id in &entry.message_ids {
            if self.message_ids.insert(id.clone()) {
                self.message_ids_by_age.push_back(id.clone());
            }
        }
        while self.message_ids_by_age.len() > MESSAGE_IDS_MAX {
            let oldest = self.message_ids_by_age.pop_front();
            oldest.map(|id| self.message_ids.remove(&id));
        }
        self.foreign += entry.foreign;
        self.foreign_duplicates += entry.foreign_duplicates;
    }

    /// The whole state as one entry.
    pub fn snapshot(&self) -> Entry {
        Entry {
            output: self.output,
            spools: self.spools.clone(),
            message_ids: self.message_ids_by_age.iter().cloned().collect(),
            foreign: self.foreign,
            foreign_duplicates: self.foreign_duplicates,
        }
    }

    /// Where the output ended after the last batch that wrote anything.
    pub fn output(&self) -> Option<Mark> {
        self.output
    }

    /// The parts of `range` that have not been written.
    pub fn missing(&self, producer: Uuid, range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        match self.spools.get(&producer) {
            Some(spooled) => spooled.written.missing(range),
            None => vec![range],
        }
    }

    /// Whether another client's message with this id has been written lately.
    pub fn has_seen(&self, message_id: &str) -> bool {
        self.message_ids.contains(message_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_the_state() {
        let mut written = Written::default();
        let mut entry = Entry { foreign: 2, message_ids: vec!["a".into()], ..Entry::default() };
        assert_eq!(entry.note(&written, Uuid::nil(), 1..=5), vec![1..=5]);
        assert_eq!(entry.note(&written, Uuid::nil(), 4..=7), vec![6..=7]);
        written.apply(&entry);
        let mut again = Written::default();
        again.apply(&written.snapshot());
        assert_eq!(again.snapshot(), written.snapshot());
        assert_eq!(again.missing(Uuid::nil(), 0..=9), vec![0..=0, 8..=9]);
        assert!(again.has_seen("a"));
        assert_eq!(again.snapshot().duplicates(), 2);
    }

    #[test]
    fn only_so_many_message_ids_are_remembered() {
        let mut written = Written::default();
        for n in 0..=MESSAGE_IDS_MAX {
            written.apply(&Entry { message_ids: vec![n.to_string()], ..Entry::default() });
        }
        assert!(!written.has_seen("0"));
        assert!(written.has_seen("1") && written.has_seen(&MESSAGE_IDS_MAX.to_string()));
    }
}
