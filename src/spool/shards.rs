//! Which queue a visit goes to, where there are several: decided by numbers that never change, so that a repetition
//! goes the same way whatever happened in between.
//!
//! A group of visits that was appended at once goes to a shard by its first number, block by block. How many
//! shards there are is noted, durably, with the first number that it counts for, before there is a visit of that
//! number: those before go where they may have gone already.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use uuid::Uuid;

use crate::disk::sync_folder;
use crate::queue::Shard;

/// How many numbers in a row go to one shard: about nine messages of full size, so that shards make for few that are
/// smaller, and few enough that the window in flight reaches several.
const BLOCK: u64 = 4096;
const NOTE: &str = "shards";

/// The shards of one producer's visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shards {
    producer: Uuid,
    // From which number on there are how many, ascending.
    eras: Vec<(u64, u32)>,
}

impl Shards {
    /// What is noted in `folder`; a single one where nothing is, or where the note is another producer's.
    ///
    /// # Errors
    /// What the system said; `InvalidData` for a note that is none.
    pub(super) fn read(folder: &Path, producer: Uuid) -> io::Result<Self> {
        let single = Shards { producer, eras: vec![(0, 1)] };
        let text = match fs::read_to_string(folder.join(NOTE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(single),
            text => text?,
        };
        let mut lines = text.lines();
        let noted_for = lines.next().and_then(|line| Uuid::parse_str(line).ok());
        let era = |line: &str| {
            let (from, shards) = line.split_once(' ')?;
            Some((from.parse::<u64>().ok()?, shards.parse::<u32>().ok().filter(|shards| *shards > 0)?))
        };
        let eras: Option<Vec<_>> = lines.map(era).collect();
        match (noted_for, eras.filter(|eras| !eras.is_empty())) {
            (Some(noted_for), Some(_)) if noted_for != producer => Ok(single),
            (Some(_), Some(eras)) => Ok(Shards { producer, eras }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not say how many shards there are")),
        }
    }

    /// These, with `count` of them from the number `next` on. What only concerns numbers before the `oldest` is left out.
    pub(super) fn with(&self, count: u32, oldest: u64, next: u64) -> Self {
        let mut eras = self.eras.clone();
        eras.retain(|(from, _)| *from < next);
        if eras.last().is_none_or(|(_, last)| *last != count) {
            eras.push((next, count));
        }
        let first = eras.iter().rposition(|(from, _)| *from <= oldest).unwrap_or(0);
        Shards { producer: self.producer, eras: eras.split_off(first) }
    }

    /// Notes them in `folder`, durably.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let (path, draft) = (folder.join(NOTE), folder.join("shards.new"));
        let mut file = File::create(&draft)?;
        writeln!(file, "{}", self.producer)?;
        for (from, count) in &self.eras {
            writeln!(file, "{from} {count}")?;
        }
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_folder(folder)
    }

    fn count_at(&self, sequence: u64) -> u32 {
        let era = self.eras.iter().rev().find(|(from, _)| *from <= sequence);
        era.or(self.eras.first()).map_or(1, |(_, count)| *count)
    }

    /// The shard of the group whose first number this is.
    pub(super) fn of(&self, sequence: u64) -> Shard {
        match self.count_at(sequence) {
            1 => None,
            count => {
                // Producers that begin together do not go to the same one together.
                let own = self.producer.as_u128() as u64 % u64::from(count);
                u32::try_from((sequence / BLOCK + own) % u64::from(count)).ok()
            }
        }
    }

    /// All that visits from `confirmed` on may go to.
    pub(super) fn in_use(&self, confirmed: u64) -> Vec<Shard> {
        let first = self.eras.iter().rposition(|(from, _)| *from <= confirmed).unwrap_or(0);
        let mut shards: Vec<Shard> = Vec::new();
        for (_, count) in &self.eras[first..] {
            match count {
                1 => shards.push(None),
                count => shards.extend((0..*count).map(Some)),
            }
        }
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_its_shard_whatever_their_count_becomes() {
        let folder = tempfile::tempdir().expect("a folder");
        let producer = Uuid::new_v4();
        let mut shards = Shards::read(folder.path(), producer).expect("nothing is noted");
        let mut gone: Vec<(u64, Shard)> = (1..3000).map(|sequence| (sequence, shards.of(sequence))).collect();
        assert!(gone.iter().all(|(_, shard)| shard.is_none()));
        for (count, next) in [(4, 3000), (4, 9000), (1, 12_000), (3, 12_000), (3, 15_000)] {
            shards = shards.with(count, 2000, next);
            shards.write(folder.path()).expect("there is room");
            shards = Shards::read(folder.path(), producer).expect("it was just noted");
            gone.retain(|(sequence, _)| *sequence < next);
            for (sequence, shard) in gone.iter().filter(|(sequence, _)| *sequence >= 2000) {
                assert_eq!(shards.of(*sequence), *shard, "{sequence} with {shards:?}");
            }
            gone.extend((next..next + 3000).map(|sequence| (sequence, shards.of(sequence))));
        }
        assert_eq!(shards.in_use(2500), [None, Some(0), Some(1), Some(2), Some(3)]);
        // What is confirmed is forgotten.
        assert_eq!(shards.with(3, 14_000, 16_000).in_use(14_000), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn shards_get_as_much_and_messages_stay_large() {
        let shards = Shards { producer: Uuid::new_v4(), eras: vec![(0, 4)] };
        let mut counts = [0_u32; 4];
        let mut changes = 0;
        for sequence in 0..1 << 20 {
            let shard = shards.of(sequence).expect("there are four");
            counts[shard as usize] += 1;
            changes += u64::from(shards.of(sequence + 1) != Some(shard));
        }
        assert_eq!(counts, [1 << 18; 4]);
        assert_eq!(changes, (1 << 20) / BLOCK);
    }

    #[test]
    fn a_note_of_another_producer_does_not_count_and_one_that_is_damaged_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |producer| Shards::read(folder.path(), producer);
        let producer = Uuid::new_v4();
        read(producer).expect("nothing").with(4, 1, 1).write(folder.path()).expect("there is room");
        assert_eq!(read(producer).expect("a note").of(1).map(|_| ()), Some(()));
        assert_eq!(read(Uuid::new_v4()).expect("a note").of(1), None);
        for bad in ["", "x\n1 4\n", &format!("{producer}\n"), &format!("{producer}\n1 0\n")] {
            fs::write(folder.path().join(NOTE), bad).expect("there is room");
            assert!(read(producer).is_err(), "{bad}");
        }
    }
}
