//! The word to stop: given once, heard by everybody who holds a clone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A flag that only ever goes up. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    // Beside the mutex's own, so that asking costs one load.
    is_set: AtomicBool,
    lock: Mutex<()>,
    set: Condvar,
}

impl Stop {
    /// Gives the word. Doing so again changes nothing.
    pub fn set(&self) {
        // Under the lock: nobody can be between looking and waiting.
        let _lock = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.is_set.store(true, Ordering::Relaxed);
        self.0.set.notify_all();
    }

    /// Whether the word was given; costs one load.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    /// Waits for the word, at most for `wait`; returns whether it was given.
    pub fn wait(&self, wait: Duration) -> bool {
        let lock = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.set.wait_timeout_while(lock, wait, |()| !self.is_set());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.is_set()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn every_clone_hears_it_and_a_wait_ends_with_it() {
        let stop = Stop::default();
        let heard = stop.clone();
        assert!(!heard.wait(Duration::from_millis(1)));
        let waiting = std::thread::spawn(move || (heard.wait(Duration::from_secs(60)), Instant::now()));
        stop.set();
        let (is_set, _) = waiting.join().expect("it does not panic");
        assert!(is_set && stop.is_set() && stop.wait(Duration::from_secs(60)));
    }
}
