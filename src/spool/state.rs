//! What a spool holds right now: its segments, the next number, and what is confirmed.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::segment::Segment;
use crate::disk::DiskFile;
use crate::queue::Position;

/// Locked for moments only.
pub(super) struct State {
    /// Oldest first.
    pub segments: VecDeque<Segment>,
    /// The next sequence.
    pub next: u64,
    /// Before the oldest visit that is not confirmed.
    pub confirmed: Position,
}

/// A position with the segment that it is in.
pub(super) struct Place {
    /// The position.
    pub position: Position,
    /// Where that segment's records end, in bytes.
    pub end: u64,
    /// That segment's file.
    pub path: Arc<Path>,
    /// The same, open, of the segment in use.
    pub file: Option<Arc<dyn DiskFile>>,
}

impl State {
    /// Locks it.
    pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed: each change is a few plain assignments.
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of journal are not confirmed.
    pub(super) fn bytes(&self) -> u64 {
        let total: u64 = self.segments.iter().map(|segment| segment.end).sum();
        total.saturating_sub(self.confirmed.offset)
    }

    /// What is to be read at `position`. One that is at its segment's end is at the beginning of the next segment that
    /// holds anything, or of the newest, and one whose segment is gone is at the beginning of the oldest.
    pub(super) fn at(&self, mut position: Position) -> Option<Place> {
        let start = |at: &Segment| Position { sequence: at.first, segment: at.first, offset: 0 };
        let found = self.segments.binary_search_by_key(&position.segment, |segment| segment.first);
        let mut here = found.unwrap_or(0);
        if found.is_err() {
            position = start(self.segments.front()?);
        }
        while position.offset >= self.segments[here].end
            && let Some(next) = self.segments.get(here + 1)
        {
            (here, position) = (here + 1, start(next));
        }
        let segment = &self.segments[here];
        Some(Place { position, end: segment.end, path: segment.path.clone(), file: segment.file.clone() })
    }
}
