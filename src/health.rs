//! What keeps the program from its job right now: written by every part, read by `/readyz`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What can be ill: a neighbour, or a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The connection to RabbitMQ.
    Broker,
    /// The output file, its lock or its ledger.
    Output,
    /// Appending to the spool.
    Spool,
    /// Reading from the spool, and what is set aside of it.
    Backlog,
}

/// The problems of the program, at most one for each part.
#[derive(Debug, Default)]
pub struct Health {
    problems: Mutex<BTreeMap<Part, (String, Instant)>>,
    stands_by: AtomicBool,
}

impl Health {
    /// Notes that `part` cannot do its job; returns whether that is news.
    pub fn ill(&self, part: Part, problem: &str) -> bool {
        let before = self.lock().insert(part, (problem.to_string(), Instant::now()));
        before.is_none_or(|(before, _)| before != problem)
    }

    /// Notes that `part` does its job; returns whether that is news.
    pub fn well(&self, part: Part) -> bool {
        self.lock().remove(&part).is_some()
    }

    /// Every problem, in the order of the parts.
    pub fn all(&self) -> Vec<String> {
        self.problems_but(&[])
    }

    /// Every problem, but those of some parts.
    pub fn problems_but(&self, parts: &[Part]) -> Vec<String> {
        let lock = self.lock();
        let problems = lock.iter().filter(|(ill, _)| !parts.contains(ill));
        problems.map(|(_, (problem, _))| problem.clone()).collect()
    }

    /// Clears a problem last reported `age` ago: an unready collector gets no requests, so it could never show
    /// that it has recovered.
    pub fn lapse(&self, part: Part, age: Duration) {
        let mut lock = self.lock();
        if lock.get(&part).is_some_and(|(_, noted)| noted.elapsed() >= age) {
            lock.remove(&part);
        }
    }

    /// Notes whether the program waits for another one to end: that is its job, not a problem.
    pub fn stand_by(&self, stands_by: bool) {
        self.stands_by.store(stands_by, Ordering::Relaxed);
    }

    /// Whether the program waits for another one to end.
    pub fn stands_by(&self) -> bool {
        self.stands_by.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Part, (String, Instant)>> {
        // Each change is one call of the map, so a panic elsewhere leaves it whole.
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
