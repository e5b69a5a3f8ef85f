//! The bodies that are read aside: not too many at a time, and each with a deadline by the clock.
//!
//! A reader waits within tiny_http for as long as bytes of a chunk's number come, and keeps all of them: neither has
//! a bound. So others look after it, and close what is overdue.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many bodies are read at a time; more are turned away.
const READERS_MAX: usize = 256;

/// The clients whose bodies are read.
#[derive(Default)]
pub(super) struct Readers {
    // `None` for one that is answered or refused by now: that has bounds of its own.
    deadlines: Mutex<HashMap<SocketAddr, Option<Instant>>>,
}

impl Readers {
    /// Counts one more, which is to be done at `deadline`; `false` where there are as many as there may be.
    pub(super) fn begin(&self, peer: SocketAddr, deadline: Instant) -> bool {
        let mut deadlines = self.lock();
        let is_free = deadlines.len() < READERS_MAX;
        if is_free {
            deadlines.insert(peer, Some(deadline));
        }
        is_free
    }

    /// Looks no more after one whose body was read, or is read no more.
    pub(super) fn is_done(&self, peer: SocketAddr) {
        self.lock().entry(peer).and_modify(|deadline| *deadline = None);
    }

    /// Counts one less.
    pub(super) fn end(&self, peer: SocketAddr) {
        self.lock().remove(&peer);
    }

    /// Whose deadline is over; all of them, where memory runs short, as they may be what takes it.
    pub(super) fn overdue(&self, is_memory_short: impl FnOnce() -> bool) -> Vec<SocketAddr> {
        let deadlines = self.lock();
        if deadlines.is_empty() {
            return Vec::new();
        }
        let (now, is_memory_short) = (Instant::now(), is_memory_short());
        let is_overdue = |deadline: &Instant| is_memory_short || *deadline < now;
        let overdue = deadlines.iter().filter(|(_, deadline)| deadline.as_ref().is_some_and(is_overdue));
        overdue.map(|(peer, _)| *peer).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Option<Instant>>> {
        // Each change is one call of the map.
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn readers_are_few_and_overdue_by_the_clock_or_where_memory_is_short() {
        let readers = Readers::default();
        let peer = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let (past, future) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        for port in 1..=READERS_MAX as u16 {
            assert!(readers.begin(peer(port), if port == 1 { past } else { future }));
        }
        assert!(!readers.begin(peer(9999), future), "one too many");
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(readers.overdue(|| false), [peer(1)]);
        readers.is_done(peer(1));
        assert!(readers.overdue(|| false).is_empty());
        assert_eq!(readers.overdue(|| true).len(), READERS_MAX - 1);
        readers.end(peer(1));
        assert!(readers.begin(peer(9999), future));
    }
}
