//! The spools of one folder, its own and its numbered slots: who has them, and what waits in those that nobody has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::damage::Legible;
use super::open::{FIRST_SEQUENCE, LOCK, OpenError, WANTED, confirmed_in, read_producer, segments};
use super::segment::records;
use crate::disk::open_private;

/// One spool of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its folder.
    pub folder: PathBuf,
    /// What is known of it.
    pub state: SlotState,
}

/// Who has a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// A process, by the id that it wrote.
    Held(String),
    /// Nobody; and so many visits wait in it.
    Free(u64),
    /// That cannot be told, nor what waits in it: why.
    Unknown(String),
}

impl Slot {
    /// How many visits wait in it while nobody has it.
    pub fn stranded(&self) -> u64 {
        match self.state {
            SlotState::Held(_) | SlotState::Unknown(_) => 0,
            SlotState::Free(visits) => visits,
        }
    }
}

/// The spools of one folder, looked at again and again.
pub struct Slots {
    folder: PathBuf,
    // What was counted in a slot that nobody had, and when somebody last had it: since then nothing has changed.
    counted: BTreeMap<PathBuf, (SystemTime, u64)>,
}

impl Slots {
    /// The spools in `folder`.
    pub fn of(folder: &Path) -> Self {
        Slots { folder: folder.into(), counted: BTreeMap::new() }
    }

    /// Every spool that there is now, also one that cannot be looked at.
    ///
    /// # Errors
    /// What the system said to the folder.
    pub fn look(&mut self) -> io::Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for folder in spools_in(&self.folder)? {
            // Whoever takes it meanwhile may remove what was just listed.
            let state = self.look_at(&folder).or_else(|_| self.look_at(&folder));
            let state = state.unwrap_or_else(|error| Some(SlotState::Unknown(error.to_string())));
            slots.extend(state.map(|state| Slot { folder, state }));
        }
        Ok(slots)
    }

    fn look_at(&mut self, folder: &Path) -> io::Result<Option<SlotState>> {
        let known = match read_producer(folder) {
            // A file whose name is a number.
            Err(OpenError::Disk { error, .. }) if error.kind() == io::ErrorKind::NotADirectory => None,
            known => known.map_err(|error| io::Error::other(error.to_string()))?,
        };
        if known.is_none() {
            return Ok(None);
        }
        let lock = folder.join(LOCK);
        let file = File::open(&lock)
            .map_err(|error| io::Error::new(error.kind(), format!("`{}`: {error}", lock.display())))?;
        match fs2::FileExt::try_lock_shared(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let holder = fs::read_to_string(&lock)?;
                return Ok(Some(SlotState::Held(holder.lines().next().unwrap_or_default().into())));
            }
            Err(error) => return Err(error),
        }
        // Whoever takes the slot writes its id into it.
        let had = file.metadata()?.modified()?;
        // At once, so that nobody who wants it finds it held.
        drop(file);
        match self.counted.get(folder) {
            Some((then, visits)) if *then == had => Ok(Some(SlotState::Free(*visits))),
            _ => {
                let visits = visits_in(folder)?;
                self.counted.insert(folder.into(), (had, visits));
                Ok(Some(SlotState::Free(visits)))
            }
        }
    }
}

/// The folder, and its numbered subfolders in their order: each may be a spool.
pub(super) fn spools_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut slots = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
            slots.insert(number, entry.path());
        }
    }
    Ok(std::iter::once(folder.to_path_buf()).chain(slots.into_values()).collect())
}

/// How many visits wait in a spool, of which its newest segment alone is read. One whose end cannot be read counts
/// as one, at least.
fn visits_in(folder: &Path) -> io::Result<u64> {
    let segments = segments(folder)?;
    let (Some(oldest), Some(newest)) = (segments.front(), segments.back()) else { return Ok(0) };
    let confirmed = confirmed_in(folder)?.unwrap_or(FIRST_SEQUENCE).max(oldest.first);
    let legible = Legible::read(&File::open(&newest.path)?)?;
    let next = records(&legible.bytes, newest.first).last().map_or(newest.first, |found| found.next);
    let visits = next.saturating_sub(confirmed);
    Ok(visits.max(u64::from(legible.hidden.is_some())))
}

/// Tells whoever relays the slot of this lock file that a collector wants it, for as long as what is returned lives.
///
/// # Errors
/// What the system said.
pub fn want(lock: &Path) -> io::Result<File> {
    let wanted = open_private(&lock.with_file_name(WANTED))?;
    // Others may want it as well.
    fs2::FileExt::try_lock_shared(&wanted)?;
    Ok(wanted)
}

/// Whether a collector wants the slot in `folder`.
pub(super) fn is_wanted(folder: &Path) -> bool {
    let Ok(wanted) = File::open(folder.join(WANTED)) else { return false };
    let locked = fs2::FileExt::try_lock_exclusive(&wanted);
    locked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They were left out, and passed for empty.
    #[test]
    fn a_slot_that_cannot_be_looked_at_is_told_with_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let producer = "01234567-89ab-cdef-0123-456789abcdef";
        let newer = format!("{producer}\nformat 99\n");
        for (slot, text) in [("0", "no producer"), ("2", &*newer), ("10", producer)] {
            fs::create_dir(folder.path().join(slot)).expect("there is room");
            fs::write(folder.path().join(slot).join("producer"), text).expect("there is room");
        }
        // No spools.
        fs::create_dir(folder.path().join("3")).expect("there is room");
        fs::write(folder.path().join("4"), "").expect("there is room");
        let found = Slots::of(folder.path()).look().expect("the folder can be read");
        let wrong = ["it is no UUID", "has format 99", "lock`: No such file"];
        assert_eq!(found.len(), wrong.len(), "{found:?}");
        for ((slot, wrong), name) in found.iter().zip(wrong).zip(["0", "2", "10"]) {
            assert_eq!((slot.folder.as_path(), slot.stranded()), (&*folder.path().join(name), 0));
            assert!(matches!(&slot.state, SlotState::Unknown(why) if why.contains(wrong)), "{slot:?}");
        }
    }
}
