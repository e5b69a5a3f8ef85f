//! What has been written to one output: the knowledge behind exactly-once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::{FileRecord, Stretch};
use super::sequences::Sequences;
use crate::visit::lines::LineFormat;

/// How many `message_id`s of other clients' messages are remembered: a repeated delivery is
/// recognised as long as fewer messages with other ids came in between.
pub(super) const MESSAGE_IDS_MAX: usize = 65_536;

/// A place in the output file, before which everything is committed, and by which the file is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The ledger's number for the file.
    pub file: u64,
    /// The file's name when it was marked.
    pub name: String,
    /// The file's length then, in bytes.
    pub length: u64,
    /// The CRC-32 of the last [`TAIL_BYTES`](super::TAIL_BYTES) before `length`, or of all where that is less.
    pub tail: u32,
    /// How lines look behind it.
    pub format: LineFormat,
    /// The file's inode number, where nothing stands before `length` that it could be recognised by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

/// The mark of a ledger of format 1, which named the file by its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkByInode {
    /// The file's inode number.
    pub inode: u64,
    /// The file's length in bytes.
    pub length: u64,
}

/// Bytes that a crash left behind a mark: lines among them may be of visits that were not acknowledged, and are
/// delivered again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenClaims {
    /// Where they start, in the file that is recognised by it.
    pub mark: Mark,
    /// Where they end, in bytes.
    pub end: u64,
    /// The bytes among them whose visits were delivered again.
    #[serde(default)]
    pub used: Sequences,
    /// How many starts have written something and found nothing delivered for them.
    #[serde(default)]
    pub idle_starts: u32,
}

/// What a batch did to one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// The ledger's number for it.
    pub file: u64,
    /// Its name, where that is not the mark's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lines added.
    #[serde(default)]
    pub lines: u64,
    /// Bytes added, or all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stretches: Vec<Stretch>,
}

/// What is known of one spool's visits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooled {
    /// The sequences written.
    pub written: Sequences,
    /// The sequences that went to the dead letters alone and were not written since.
    #[serde(default, skip_serializing_if = "Sequences::is_empty")]
    pub dead: Sequences,
    /// How many visits were delivered again and dropped.
    pub duplicates: u64,
}

/// What a batch added; also, applied to nothing, a whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The output's id, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// The mark of a ledger of format 1, until there is one of this format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<MarkByInode>,
    /// Where the output ended after the batch, if it wrote anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// What it did to which file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileChange>,
    /// The files of which nothing is added any more: their records are in the list of closed files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<u64>,
    /// How many had been closed before, in a whole state.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub closed_files: u64,
    /// The highest number of a file in a ledger before this one, which is gone and left its lists.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files_before: u64,
    /// All claims that are open after it, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Vec<OpenClaims>>,
    /// Whether the ledger began when the output had been written already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub began_late: bool,
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
        let new = self.missing(written, producer, range.clone());
        let spooled = self.spools.entry(producer).or_default();
        let fresh: u64 = new.iter().map(|part| part.end() - part.start() + 1).sum();
        new.iter().for_each(|part| spooled.written.insert(part.clone()));
        spooled.duplicates += range.end() - range.start() + 1 - fresh;
        new
    }

    /// The parts of `range` that neither `written` nor this batch has yet.
    pub fn missing(
        &self,
        written: &Written,
        producer: Uuid,
        range: RangeInclusive<u64>,
    ) -> Vec<RangeInclusive<u64>> {
        let missing = written.missing(producer, range);
        match self.spools.get(&producer) {
            Some(spooled) => missing.into_iter().flat_map(|part| spooled.written.missing(part)).collect(),
            None => missing,
        }
    }

    /// Notes visits of a spool that go to the dead letters. One that is written is not dead.
    pub fn note_dead(&mut self, written: &Written, producer: Uuid, range: RangeInclusive<u64>) {
        let noted = written.spools.get(&producer).map(|spooled| &spooled.dead);
        for part in self.missing(written, producer, range) {
            for new in noted.map_or_else(|| vec![part.clone()], |noted| noted.missing(part.clone())) {
                self.spools.entry(producer).or_default().dead.insert(new);
            }
        }
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

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// All that has been written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    id: Option<Uuid>,
    mark: Option<Mark>,
    mark_by_inode: Option<MarkByInode>,
    files: BTreeMap<u64, FileRecord>,
    closed_files: u64,
    files_before: u64,
    claims: Vec<OpenClaims>,
    began_late: bool,
    spools: BTreeMap<Uuid, Spooled>,
    message_ids: HashSet<String>,
    message_ids_by_age: VecDeque<String>,
    foreign: u64,
    foreign_duplicates: u64,
}

impl Written {
    /// Adds what a batch changed.
    pub fn apply(&mut self, entry: &Entry) {
        if let Some(mark) = &entry.mark {
            (self.mark, self.mark_by_inode) = (Some(mark.clone()), None);
        }
        self.id = entry.id.or(self.id);
        self.mark_by_inode = entry.output.or(self.mark_by_inode);
        self.began_late |= entry.began_late;
        entry.files.iter().for_each(|change| self.apply_to_file(change, entry));
        entry.closed.iter().for_each(|id| drop(self.files.remove(id)));
        self.closed_files += entry.closed_files + entry.closed.len() as u64;
        self.files_before = self.files_before.max(entry.files_before);
        if let Some(claims) = &entry.claims {
            self.claims.clone_from(claims);
        }
        for (producer, new) in &entry.spools {
            let spooled = self.spools.entry(*producer).or_default();
            new.written.runs().for_each(|(first, last)| spooled.written.insert(first..=last));
            spooled.duplicates += new.duplicates;
            new.dead.runs().for_each(|(first, last)| spooled.dead.insert(first..=last));
            // What can be read at last, after an upgrade, is dead no more.
            spooled.dead.remove_all(&spooled.written);
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

    fn apply_to_file(&mut self, change: &FileChange, entry: &Entry) {
        let record = self.files.entry(change.file).or_default();
        record.id = change.file;
        let marked = entry.mark.as_ref().filter(|mark| mark.file == change.file).map(|mark| &mark.name);
        if let Some(name) = change.name.as_ref().or(marked) {
            record.name.clone_from(name);
        }
        record.lines += change.lines;
        change.stretches.iter().for_each(|stretch| record.add(stretch));
    }

    /// How many visits of other clients were written, and how many were delivered again and dropped.
    pub fn foreign(&self) -> (u64, u64) {
        (self.foreign, self.foreign_duplicates)
    }

    /// The whole state as one entry.
    pub fn snapshot(&self) -> Entry {
        let change = |record: &FileRecord| FileChange {
            file: record.id,
            name: Some(record.name.clone()),
            lines: record.lines,
            stretches: record.stretches.clone(),
        };
        Entry {
            id: self.id,
            output: self.mark_by_inode,
            mark: self.mark.clone(),
            files: self.files.values().map(change).collect(),
            closed: Vec::new(),
            closed_files: self.closed_files,
            files_before: self.files_before,
            claims: (!self.claims.is_empty()).then(|| self.claims.clone()),
            began_late: self.began_late,
            spools: self.spools.clone(),
            message_ids: self.message_ids_by_age.iter().cloned().collect(),
            foreign: self.foreign,
            foreign_duplicates: self.foreign_duplicates,
        }
    }

    /// What the output is known by where it stands beside others, once it has been.
    pub fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Where the output ended after the last batch that wrote anything.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// The same of a ledger of format 1 to which nothing was added since.
    pub fn mark_by_inode(&self) -> Option<MarkByInode> {
        self.mark_by_inode
    }

    /// What is known of the files that may still be added to, by their numbers.
    pub fn files(&self) -> &BTreeMap<u64, FileRecord> {
        &self.files
    }

    /// The number behind which this ledger counts files.
    pub fn files_before(&self) -> u64 {
        self.files_before
    }

    /// How many files were closed: so many records are in the list of those.
    pub fn closed_files(&self) -> u64 {
        self.closed_files
    }

    /// The files that are neither the output any more nor waited for by a claim.
    pub fn files_to_close(&self) -> Vec<&FileRecord> {
        let in_use = |id: u64| {
            self.mark.as_ref().is_some_and(|mark| mark.file == id)
                || self.claims.iter().any(|claims| claims.mark.file == id)
        };
        self.files.values().filter(|record| !in_use(record.id)).collect()
    }

    /// What crashes left behind marks and was not delivered again yet.
    pub fn claims(&self) -> &[OpenClaims] {
        &self.claims
    }

    /// Whether the output had been written before this ledger began.
    pub fn began_late(&self) -> bool {
        self.began_late
    }

    /// What is known of each spool's visits.
    pub fn spools(&self) -> &BTreeMap<Uuid, Spooled> {
        &self.spools
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
        let mut entry =
            Entry { foreign: 2, message_ids: vec!["a".into()], closed: vec![1, 2], ..Entry::default() };
        assert_eq!(entry.note(&written, Uuid::nil(), 1..=5), vec![1..=5]);
        assert_eq!(entry.note(&written, Uuid::nil(), 4..=7), vec![6..=7]);
        written.apply(&entry);
        let mut again = Written::default();
        again.apply(&written.snapshot());
        assert_eq!(again.snapshot(), written.snapshot());
        assert_eq!(again.missing(Uuid::nil(), 0..=9), vec![0..=0, 8..=9]);
        assert!(again.has_seen("a"));
        assert_eq!((again.snapshot().duplicates(), again.closed_files()), (2, 2));
    }

    #[test]
    fn a_dead_visit_that_is_written_later_is_dead_no_more() {
        let dead = |written: &Written| written.snapshot().spools[&Uuid::nil()].dead.clone();
        let mut written = Written::default();
        for (case, noted_dead, noted_written, is_dead) in [
            ("two", &[3, 5][..], &[1][..], &[3, 5][..]),
            ("again", &[3], &[], &[3, 5]),
            ("one is written", &[], &[5], &[3]),
            ("it comes bad again", &[5], &[], &[3]),
            ("dead and written in one batch", &[3, 7], &[3], &[7]),
        ] {
            let mut entry = Entry::default();
            noted_dead.iter().for_each(|n| entry.note_dead(&written, Uuid::nil(), *n..=*n));
            noted_written.iter().for_each(|n| drop(entry.note(&written, Uuid::nil(), *n..=*n)));
            let bytes = serde_json::to_vec(&entry).expect(case);
            written.apply(&serde_json::from_slice(&bytes).expect(case));
            let numbers: Vec<u64> = dead(&written).runs().flat_map(|(first, last)| first..=last).collect();
            assert_eq!(numbers, is_dead, "{case}");
        }
        let yesterday =
            r#"{"spools":{"00000000-0000-0000-0000-000000000000":{"written":[[1,2]],"duplicates":0}}}"#;
        let entry: Entry = serde_json::from_str(yesterday).expect("an older Pixel wrote it");
        assert!(entry.spools[&Uuid::nil()].dead.is_empty());
        // It had each file's visits, too, which nobody asked for.
        let yesterday = r#"{"files":[{"file":7,"lines":2,"spools":{"00000000-0000-0000-0000-000000000000":[[1,2]]},"foreign":1}]}"#;
        let entry: Entry = serde_json::from_str(yesterday).expect("an older Pixel wrote it");
        assert_eq!((entry.files[0].file, entry.files[0].lines), (7, 2));
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
