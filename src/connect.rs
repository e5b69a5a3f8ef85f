//! Connections that end and are made anew: the broker's, seen from both sides.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use crate::health::{Health, Part, counted, in_words};
use crate::metrics::Metrics;
use crate::stop::Stop;

// Unit tests fail by the thousand, and nobody is to wait for them.
const SHORTEST: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 100 });
const LONGEST: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// Nobody answers as a broker should: try again.
    Unavailable(String),
    /// The broker says no, to the login or to the queue: an operator must act.
    Refused(String),
    /// What is connected to belongs to another output: end.
    TakenOver(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Unavailable(why) | ConnectError::Refused(why) | ConnectError::TakenOver(why) => {
                formatter.write_str(why)
            }
        }
    }
}

/// A way to the broker, or to what stands in its place. `T` is one connection, to publish or to consume.
pub trait Connect<T: ?Sized>: Send {
    /// What is ill while there is no connection.
    fn part(&self) -> Part {
        Part::Broker
    }
    /// Opens a connection and makes sure that the queue is there.
    ///
    /// # Errors
    /// [`ConnectError::Unavailable`] where another try may help, [`ConnectError::Refused`] where it will not
    /// before somebody has changed something.
    fn connect(&mut self) -> Result<Box<T>, ConnectError>;
}

/// What ends the use of one connection.
#[derive(Debug)]
pub(crate) enum Setback<E> {
    /// There is no connection, or no longer: make another. The text says why.
    Again(String),
    /// Another connection would not help.
    Fatal(E),
}

impl<E> From<ConnectError> for Setback<E> {
    fn from(error: ConnectError) -> Self {
        Setback::Again(error.to_string())
    }
}

/// The reconnect loop, and where it shows how it stands.
pub(crate) struct Reconnect<'a> {
    /// What is connected to.
    part: Part,
    health: &'a Health,
    metrics: &'a Metrics,
    meanwhile: &'a str,
    stop: &'a Stop,
    // How many connections there were.
    made: Cell<u64>,
    // Since when there is none, once one was lost or could not be made.
    absent_since: Cell<Option<Instant>>,
}

impl<'a> Reconnect<'a> {
    /// Connections to `part`, until `stop`. The log adds `meanwhile` to why there is none.
    pub(crate) fn new(
        part: Part,
        health: &'a Health,
        metrics: &'a Metrics,
        meanwhile: &'a str,
        stop: &'a Stop,
    ) -> Self {
        let (made, absent_since) = (Cell::new(0), Cell::new(None));
        Reconnect { part, health, metrics, meanwhile, stop, made, absent_since }
    }

    /// Calls `attempt`, which is to connect and to use the connection, until it returns `Ok` or the word to
    /// stop is given; with growing waits, which `attempt` resets when it gets on.
    ///
    /// # Errors
    /// What `attempt` says is [`Setback::Fatal`].
    pub(crate) fn run<E>(
        &self,
        mut attempt: impl FnMut(&mut Backoff) -> Result<(), Setback<E>>,
    ) -> Result<(), E> {
        let mut backoff = Backoff::default();
        while !self.stop.is_set() {
            match attempt(&mut backoff) {
                Ok(()) => return Ok(()),
                Err(Setback::Fatal(error)) => return Err(error),
                Err(Setback::Again(problem)) => {
                    if self.absent_since.get().is_none() {
                        self.absent_since.set(Some(Instant::now()));
                    }
                    if let Some(lasting) = self.health.ill(self.part, &problem) {
                        log::warn!("{problem}{lasting}; {}", self.meanwhile);
                    }
                    backoff.wait(self.stop);
                }
            }
        }
        Ok(())
    }

    /// Notes that there is a connection, until what is returned is dropped.
    pub(crate) fn established(&self) -> Established<'_> {
        self.health.well(self.part);
        let absent = self.absent_since.take().map(|since| since.elapsed());
        if self.part == Part::Broker {
            self.metrics.broker_connected.set(1.0);
            if self.made.get() > 0 {
                self.metrics.reconnects.inc();
            }
        }
        self.made.set(self.made.get() + 1);
        Established { reconnect: self, absent }
    }
}

/// A connection stands for as long as this lives.
pub(crate) struct Established<'a> {
    reconnect: &'a Reconnect<'a>,
    /// How long there was none, where one was missed.
    absent: Option<Duration>,
}

impl Established<'_> {
    /// What the log is to say of it behind its address: how long there was none, and how many visits wait, where that
    /// is known.
    pub(crate) fn after(&self, waiting: Option<u64>) -> String {
        let Some(absent) = self.absent else { return String::new() };
        let waiting = waiting.map(|visits| format!(", {} visits waiting", counted(visits)));
        format!(" again after {}{}", in_words(absent), waiting.unwrap_or_default())
    }
}

impl Drop for Established<'_> {
    fn drop(&mut self) {
        if self.reconnect.part == Part::Broker {
            self.reconnect.metrics.broker_connected.set(0.0);
        }
    }
}

/// Waits that double from 100 ms to 5 s, each shortened by up to half at random, so that many clients of a
/// broker that comes back do not come at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: SHORTEST }
    }
}

impl Backoff {
    /// Starts again with the shortest wait: something worked.
    pub(crate) fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// Waits; returns at once when the word to stop is given.
    pub(crate) fn wait(&mut self, stop: &Stop) {
        stop.wait(self.next_wait());
    }

    /// How long this wait is to be, for who has something else to do meanwhile.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * chance());
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

/// Between 0 and 1. A v4 UUID is the randomness at hand.
fn chance() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 32) as f64 / f64::from(u32::MAX)
}
