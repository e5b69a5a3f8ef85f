//! How many visits came and went in each of the last seconds: two counters, looked at once a second.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many seconds are kept: five minutes.
pub const KEPT_S: usize = 300;

/// The last seconds.
#[derive(Debug, Default)]
pub struct History {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    // What the counters said at the last look.
    before: Option<[u64; 2]>,
    seconds: VecDeque<[u64; 2]>,
}

impl History {
    /// Notes what the counters of visits that came and that went say; to be called once a second.
    pub fn look(&self, counters: [u64; 2]) {
        let mut kept = self.lock();
        if let Some(before) = kept.before.replace(counters) {
            if kept.seconds.len() == KEPT_S {
                kept.seconds.pop_front();
            }
            let grown = [0, 1].map(|which| counters[which].saturating_sub(before[which]));
            kept.seconds.push_back(grown);
        }
    }

    /// How many came, and how many went, in each second that is kept, oldest first.
    pub fn seconds(&self) -> [Vec<u64>; 2] {
        let kept = self.lock();
        [0, 1].map(|which| kept.seconds.iter().map(|second| second[which]).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic elsewhere leaves at worst a second out.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_are_kept() {
        let history = History::default();
        for second in 0..1000 {
            history.look([second * second, second]);
        }
        let [came, went] = history.seconds();
        assert_eq!((came.len(), came.last(), went.last()), (KEPT_S, Some(&1997), Some(&1)));
    }
}
