//! Connections that end and are made anew: the broker's, seen from both sides.

use std::fmt;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use crate::health::{Health, Part};
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
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Unavailable(why) | ConnectError::Refused(why) => formatter.write_str(why),
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
#[derive(Clone, Copy)]
pub(crate) struct Reconnect<'a> {
    /// What is connected to.
    pub part: Part,
    /// Where its absence is shown.
    pub health: &'a Health,
    /// 1 while there is a connection to the broker, else 0.
    pub connected: &'a Gauge,
    /// What the log adds to why the connection is gone.
    pub meanwhile: &'a str,
    /// Ends the loop.
    pub stop: &'a Stop,
}

impl Reconnect<'_> {
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
                    if self.health.ill(self.part, &problem) {
                        log::warn!("{problem}; {}", self.meanwhile);
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
        self.connected.set(i64::from(self.part == Part::Broker));
        Established(self.connected)
    }
}

/// A connection stands for as long as this lives.
pub(crate) struct Established<'a>(&'a Gauge);

impl Drop for Established<'_> {
    fn drop(&mut self) {
        self.0.set(0);
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
