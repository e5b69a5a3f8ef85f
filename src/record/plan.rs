//! What is to become of a batch: lines, an entry in the ledger, dead letters.

use jiff::Timestamp;
use uuid::Uuid;

use std::collections::BTreeMap;
use std::ops::Range;

use super::files::{FileRecord, Stretch};
use super::ports::{Appended, DeadLetter, Delivered, Lines};
use super::state::{Entry, FileChange, Written};
use crate::visit::Visit;
use crate::visit::lines::{LineFormat, Numbered};
use crate::visit::wire::{Origin, Unreadable, take_apart};

/// A longer `message_id` would corrupt the frame: AMQP's short strings have up to 255 bytes.
const MESSAGE_ID_MAX_BYTES: usize = 255;

/// What of a batch is new, and what of it cannot be read.
pub(super) struct Plan<'a> {
    /// The lines of the new visits.
    pub lines: Lines,
    /// The same visits as earlier formats had them, while lines of those wait to be claimed.
    pub as_claimed: Vec<Lines>,
    /// When each of them was received.
    pub times: Vec<Timestamp>,
    /// What the ledger is to know of them.
    pub entry: Entry,
    /// What cannot be read.
    pub dead: Vec<DeadLetter<'a>>,
}

impl<'a> Plan<'a> {
    /// The plan of `batch` where `written` is written already; lines of the formats `claimed` wait to be claimed.
    pub(super) fn of(
        batch: &'a [Delivered],
        format: LineFormat,
        claimed: Vec<LineFormat>,
        written: &Written,
    ) -> Self {
        let others = claimed.into_iter().filter(|other| *other != format);
        let plan = Plan {
            lines: Lines::new(format),
            as_claimed: others.map(Lines::new).collect(),
            times: Vec::new(),
            entry: Entry::default(),
            dead: Vec::new(),
        };
        let mut planner = Planner { plan, written };
        // A line is hardly longer than its visit. Growing would copy it, and hold both meanwhile.
        let bytes: usize = batch.iter().map(|message| message.body.len()).sum();
        planner.plan.lines.bytes.reserve(bytes + bytes / 2);
        for (place, message) in batch.iter().enumerate() {
            if let Err(reason) = planner.add_message(place, message) {
                let origin = message.origin.clone().ok();
                if let Some(Origin::Spool { producer, first, count }) = origin {
                    planner.plan.entry.note_dead(written, producer, first..=first + count - 1);
                }
                let whole = DeadLetter { place, is_whole: true, origin, bytes: &message.body, reason };
                planner.plan.dead.push(whole);
            }
        }
        planner.plan
    }

    /// Notes in `entry` where the lines are.
    pub(super) fn place(appended: &Appended<'_>, written: &Written, entry: &mut Entry) {
        entry.mark.clone_from(&appended.mark);
        entry.claims.clone_from(&appended.claims);
        let mut files: BTreeMap<u64, (FileChange, FileRecord)> = BTreeMap::new();
        for placed in &appended.placed {
            let (change, record) = files.entry(placed.file).or_insert_with(|| {
                // The end of what is known, for the block that is not full yet.
                let known = written.files().get(&placed.file);
                let last = known.and_then(|known| known.stretches.last()).map(Stretch::last_block);
                let record = FileRecord { stretches: last.into_iter().collect(), ..FileRecord::default() };
                // Of one that is not the mark's the claims know the name.
                let claims = written.claims().iter().find(|claims| claims.mark.file == placed.file);
                let name = claims.map(|claims| claims.mark.name.clone());
                let is_marked = appended.mark.as_ref().is_some_and(|mark| mark.file == placed.file);
                let name = name.filter(|_| !is_marked);
                (FileChange { file: placed.file, name, ..FileChange::default() }, record)
            });
            let stretch = FileRecord::stretch(record.stretches.last(), placed.start, &placed.bytes);
            record.add(&stretch);
            change.stretches.push(stretch);
            change.lines += placed.lines;
        }
        entry.files = files.into_values().map(|(change, _)| change).collect();
    }
}

impl Plan<'_> {
    /// Forgets the visits from the `first` on.
    fn forget_from(&mut self, first: usize) {
        self.times.truncate(first);
        std::iter::once(&mut self.lines).chain(&mut self.as_claimed).for_each(|lines| lines.truncate(first));
    }
}

/// A plan in the making.
struct Planner<'a, 'w> {
    plan: Plan<'a>,
    written: &'w Written,
}

impl<'a> Planner<'a, '_> {
    /// Plans one message; nothing of it where it cannot be read at all.
    fn add_message(&mut self, place: usize, message: &'a Delivered) -> Result<(), Unreadable> {
        let origin = message.origin.as_ref().map_err(Clone::clone)?;
        let body = &message.body;
        match origin {
            Origin::Spool { producer, first, count } => {
                self.add_numbered(place, origin, body, *producer, *first..first + count)
            }
            Origin::Foreign { message_id } => self.add_foreign(place, origin, body, message_id.as_ref()),
        }
    }

    fn add_numbered(
        &mut self,
        place: usize,
        origin: &Origin,
        body: &'a [u8],
        producer: Uuid,
        numbers: Range<u64>,
    ) -> Result<(), Unreadable> {
        let new = self.plan.entry.missing(self.written, producer, numbers.start..=numbers.end - 1);
        // The first of those that could be read and are not noted yet, and the next.
        let (mut readable_from, mut sequence) = (numbers.start, numbers.start);
        take_apart(origin, body, &mut |bytes, visit| {
            match visit {
                Ok(visit) if new.iter().any(|range| range.contains(&sequence)) => {
                    self.add(visit, Some((producer, sequence)));
                }
                Ok(_) => {}
                Err(reason) => {
                    self.note(producer, readable_from, sequence);
                    readable_from = sequence + 1;
                    self.plan.entry.note_dead(self.written, producer, sequence..=sequence);
                    let origin = Some(Origin::Spool { producer, first: sequence, count: 1 });
                    self.plan.dead.push(DeadLetter { place, is_whole: false, origin, bytes, reason });
                }
            }
            sequence += 1;
        })?;
        self.note(producer, readable_from, numbers.end);
        Ok(())
    }

    /// Notes the numbers from `from` to before `end`.
    fn note(&mut self, producer: Uuid, from: u64, end: u64) {
        if from < end {
            self.plan.entry.note(self.written, producer, from..=end - 1);
        }
    }

    fn add_foreign(
        &mut self,
        place: usize,
        origin: &Origin,
        body: &'a [u8],
        message_id: Option<&String>,
    ) -> Result<(), Unreadable> {
        let (visits_before, dead_before) = (self.plan.times.len(), self.plan.dead.len());
        let mut n = 0;
        take_apart(origin, body, &mut |bytes, visit| {
            n += 1;
            match visit {
                Ok(visit) => self.add(visit, None),
                Err(reason) => {
                    let message_id = message_id.map(|id| id_of_part(id, n));
                    let origin = Some(Origin::Foreign { message_id });
                    self.plan.dead.push(DeadLetter { place, is_whole: false, origin, bytes, reason });
                }
            }
        })?;
        let visits = (self.plan.times.len() - visits_before) as u64;
        if visits == 0 {
            let reason = self.plan.dead.drain(dead_before..).next().map(|letter| letter.reason);
            return Err(reason.unwrap_or_else(|| Unreadable("it holds no visit".into())));
        }
        if !self.plan.entry.note_foreign(self.written, message_id, visits) {
            self.plan.forget_from(visits_before);
        }
        Ok(())
    }

    fn add(&mut self, visit: &Visit<'_>, number: Option<(Uuid, u64)>) {
        let Plan { lines, as_claimed, times, .. } = &mut self.plan;
        times.push(visit.received_at);
        let all = std::iter::once(lines).chain(as_claimed);
        all.for_each(|lines| lines.add(Numbered { visit, number }));
    }
}

/// The id of the `n`th part of the message `id`: the same whenever that message comes.
fn id_of_part(id: &str, n: u64) -> String {
    let whole = format!("{id}#{n}");
    if whole.len() <= MESSAGE_ID_MAX_BYTES {
        return whole;
    }
    let end = format!("…{:08x}#{n}", crc32fast::hash(id.as_bytes()));
    let kept = id.floor_char_boundary(MESSAGE_ID_MAX_BYTES - end.len());
    format!("{}{end}", &id[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_message_with_a_long_id_has_one_that_fits() {
        assert_eq!(id_of_part("a", 3), "a#3");
        for id in ["x".repeat(254), "é".repeat(127), "x".repeat(255)] {
            let part = id_of_part(&id, 700_000);
            assert!(part.len() <= MESSAGE_ID_MAX_BYTES && part != id_of_part(&id, 700_001), "{part}");
        }
    }
}
