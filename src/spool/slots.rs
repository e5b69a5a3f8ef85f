//! The spools of one folder, its own and its numbered slots: who has them, and what waits in those that nobody has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::damage::Legible;
use super::open::{FIRST_SEQUENCE, LOCK, WANTED, confirmed_in, read_producer, segments};
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
}

impl Slot {
    /// How many visits wait in it while nobody has it.
    pub fn stranded(&self) -> u64 {
        match self.state {
            SlotState::Held(_) => 0,
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

    /// Every spool that there is now. One that cannot be looked at is left out, and said in the log.
    ///
    /// # Errors
    /// What the system said to the folder.
    pub fn look(&mut self) -> io::Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for folder in spools_in(&self.folder)? {
            match self.look_at(&folder) {
                Ok(state) => slots.extend(state.map(|state| Slot { folder, state })),
                Err(error) => log::debug!("failed to look at `{}`: {error}", folder.display()),
            }
        }
        Ok(slots)
    }

    fn look_at(&mut self, folder: &Path) -> io::Result<Option<SlotState>> {
        let known = read_producer(folder).map_err(|error| io::Error::other(error.to_string()))?;
        let lock = folder.join(LOCK);
        if known.is_none() || !lock.exists() {
            return Ok(None);
        }
        let file = File::open(&lock)?;
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
