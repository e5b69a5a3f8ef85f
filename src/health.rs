//! What keeps the program from its job right now: written by every part, read by `/readyz`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after it was said a problem that lasts is said again.
const SAY_AGAIN_EVERY: Duration =
    if cfg!(test) { Duration::from_millis(40) } else { Duration::from_secs(300) };

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
    problems: Mutex<BTreeMap<Part, Problem>>,
    stands_by: AtomicBool,
}

#[derive(Debug)]
struct Problem {
    text: String,
    // Since when the part cannot do its job, for whatever reason.
    since: Instant,
    noted: Instant,
    said: Instant,
}

/// What the log is to say of a problem, behind it: nothing where it is news, and how long it lasts where it was said
/// before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Lasting(Option<Duration>);

impl fmt::Display for Lasting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(lasts) => write!(formatter, " (for {})", in_words(lasts)),
        }
    }
}

/// A time as people say it.
pub fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A number as people write it: `2,128`.
pub fn counted(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are ASCII"))
        .collect();
    groups.join(",")
}

impl Health {
    /// Notes that `part` cannot do its job; returns what to say of it, where that is news or was said long ago.
    pub fn ill(&self, part: Part, text: &str) -> Option<Lasting> {
        let mut lock = self.lock();
        let now = Instant::now();
        let Some(problem) = lock.get_mut(&part) else {
            lock.insert(part, Problem { text: text.into(), since: now, noted: now, said: now });
            return Some(Lasting(None));
        };
        problem.noted = now;
        if problem.text != text {
            problem.text = text.into();
            problem.said = now;
            return Some(Lasting(None));
        }
        if now - problem.said < SAY_AGAIN_EVERY {
            return None;
        }
        problem.said = now;
        Some(Lasting(Some(now - problem.since)))
    }

    /// Notes that `part` does its job; returns how long it did not, where that is news.
    pub fn well(&self, part: Part) -> Option<Duration> {
        self.lock().remove(&part).map(|problem| problem.since.elapsed())
    }

    /// Every problem, in the order of the parts.
    pub fn all(&self) -> Vec<String> {
        self.problems_but(&[])
    }

    /// Every problem, but those of some parts.
    pub fn problems_but(&self, parts: &[Part]) -> Vec<String> {
        let lock = self.lock();
        let problems = lock.iter().filter(|(ill, _)| !parts.contains(ill));
        problems.map(|(_, problem)| problem.text.clone()).collect()
    }

    /// What is wrong with one part.
    pub fn problem_of(&self, part: Part) -> Option<String> {
        self.lock().get(&part).map(|problem| problem.text.clone())
    }

    /// Clears a problem last reported `age` ago: an unready collector gets no requests, so it could never show
    /// that it has recovered.
    pub fn lapse(&self, part: Part, age: Duration) {
        let mut lock = self.lock();
        if lock.get(&part).is_some_and(|problem| problem.noted.elapsed() >= age) {
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Part, Problem>> {
        // Each change is a few plain assignments, so a panic elsewhere leaves it whole.
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_that_lasts_is_said_again_with_how_long_it_does() {
        let health = Health::default();
        let said = |text| health.ill(Part::Broker, text).map(|lasting| lasting.to_string());
        assert_eq!(said("gone"), Some(String::new()));
        assert_eq!(said("gone"), None);
        assert_eq!(said("refused"), Some(String::new()), "another reason is news");
        std::thread::sleep(SAY_AGAIN_EVERY);
        assert_eq!(said("refused"), Some(" (for 0 s)".into()));
        assert_eq!(said("refused"), None, "for a while it is not said again");
        assert!(health.well(Part::Broker).is_some_and(|lasted| lasted >= SAY_AGAIN_EVERY));
        assert_eq!(health.well(Part::Broker), None);
    }

    #[test]
    fn times_and_numbers_are_as_people_write_them() {
        for (seconds, words) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7260, "2 h 1 min")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
        for (number, words) in [(0, "0"), (999, "999"), (2128, "2,128"), (1_000_000, "1,000,000")] {
            assert_eq!(counted(number), words);
        }
    }
}
