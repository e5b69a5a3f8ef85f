//! The last visits that came by, as JSON lines: the tail of each batch, so that a batch costs one copy and a visit
//! nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many visits are shown.
pub const RECENT_MAX: usize = 20;
/// How much of a batch is kept, in bytes: what is more than that shows fewer visits.
const TAIL_MAX_BYTES: usize = 64 << 10;

/// The ends of the last batches.
#[derive(Debug, Default)]
pub struct Recent {
    // Oldest first, each with its number of lines.
    tails: Mutex<VecDeque<(usize, Box<[u8]>)>>,
}

impl Recent {
    /// Notes a batch of visits, one a line.
    pub fn note(&self, lines: &[u8]) {
        let text = lines.strip_suffix(b"\n").unwrap_or(lines);
        if text.is_empty() {
            return;
        }
        // From the end of the line before the last ones on, but of what is kept only whole lines.
        let from = text.len().saturating_sub(TAIL_MAX_BYTES);
        let (mut start, mut count) = (text.len(), 0);
        for end in memchr::memrchr_iter(b'\n', &text[from..]).map(|at| from + at + 1) {
            (start, count) = (end, count + 1);
            if count == RECENT_MAX {
                break;
            }
        }
        if count < RECENT_MAX && from == 0 {
            (start, count) = (0, count + 1);
        }
        if count == 0 {
            return;
        }
        let mut tails = self.lock();
        tails.push_back((count, text[start..].into()));
        let mut total: usize = tails.iter().map(|(count, _)| count).sum();
        while let Some((oldest, _)) = tails.front()
            && total - oldest >= RECENT_MAX
        {
            total -= oldest;
            tails.pop_front();
        }
    }

    /// The last lines, newest first.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        let tails = self.lock();
        let lines = tails.iter().rev().flat_map(|(_, tail)| tail.rsplit(|byte| *byte == b'\n'));
        lines.take(RECENT_MAX).map(<[u8]>::to_vec).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(usize, Box<[u8]>)>> {
        // A panic elsewhere leaves it with a batch more or less.
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_newest_first_however_batches_are_cut() {
        for size in [1, 2, 7, 20, 21, 100] {
            let recent = Recent::default();
            let all: Vec<String> = (0..100).map(|n| n.to_string()).collect();
            for batch in all.chunks(size) {
                recent.note((batch.join("\n") + "\n").as_bytes());
            }
            let expected: Vec<&[u8]> = all.iter().rev().take(RECENT_MAX).map(|n| n.as_bytes()).collect();
            assert_eq!(recent.lines(), expected, "{size} a batch");
            assert!(recent.lock().iter().map(|(count, _)| count).sum::<usize>() < 2 * RECENT_MAX);
        }
    }

    #[test]
    fn of_long_lines_fewer_are_kept_and_always_whole_ones() {
        let recent = Recent::default();
        recent.note(&[b"x".repeat(TAIL_MAX_BYTES), b"\n".to_vec()].concat());
        recent.note(&[b"x".repeat(2 * TAIL_MAX_BYTES), b"\ny\n".to_vec()].concat());
        assert_eq!(recent.lines()[0], b"y");
        assert!(recent.lines().len() == 2 && recent.lines()[1].len() == TAIL_MAX_BYTES);
        recent.note(b"");
        assert_eq!(recent.lines()[0], b"y");
    }
}
