//! Station "relay": from the spool to the broker, at least once and in order.
//!
//! One thread reads the backlog behind a cursor, keeps a window of unconfirmed messages in flight and
//! forgets what the broker confirmed. Whatever goes wrong with a connection, the cure is the same: a
//! new connection, and on from the first visit that is not confirmed.

mod ports;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

pub use self::ports::{Lost, News, Publisher};
use crate::connect::{Backoff, Connect, Reconnect, Setback};
use crate::health::{Health, Part, counted, in_words};
use crate::metrics::Metrics;
use crate::queue::{Backlog, Position, Reading};
use crate::stop::Stop;

/// A message's size, but for a group that is larger by itself, in bytes.
const MESSAGE_MAX_BYTES: usize = 128 << 10;
/// How long a small message waits to grow: each costs the broker about as much as hundreds of visits in it.
const MESSAGE_GROWS: Duration = Duration::from_millis(25);
/// How many messages may be in flight: at 128 KiB each, 4 MiB.
const WINDOW_MESSAGES: usize = 32;
/// How often a quiet session looks whether it is to stop.
const TICK: Duration = Duration::from_millis(250);
/// How long the broker may take to confirm a message: a quorum queue that lost its leader can forget to, on
/// a connection that is otherwise well.
const CONFIRM_MAX: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };
/// How long a stopping relay goes on with what is left, where a broker takes it.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// The relay of one backlog.
pub struct Relay<'a> {
    /// What is to be published.
    pub backlog: &'a dyn Backlog,
    /// Where confirmed visits, and what becomes of the connection, are counted.
    pub metrics: &'a Metrics,
    /// Where the state of the broker is shown.
    pub health: &'a Health,
}

/// A message that was sent.
struct Sent {
    /// Where the reading that it was made of ends.
    end: Position,
    visits: u64,
}

/// The messages of one connection that are not forgotten yet, by their tags.
struct Window {
    // Where the next reading starts.
    cursor: Position,
    in_flight: BTreeMap<u64, Sent>,
    // Confirmed before an older one is.
    confirmed_apart: BTreeMap<u64, Sent>,
    // The oldest message in flight, and since when it is.
    awaited: (Option<u64>, Instant),
    // Why the broker takes no messages, while it does not.
    blocked: Option<String>,
    // When a spool that could not be read is read again.
    read_again_at: Option<Instant>,
    read_backoff: Backoff,
}

impl Relay<'_> {
    /// Publishes until the word to stop is given, through any number of connections.
    pub fn run(&self, connector: &mut dyn Connect<dyn Publisher>, stop: &Stop) {
        let meanwhile = "visits wait in the spool, trying again";
        let reconnect = Reconnect::new(connector.part(), self.health, self.metrics, meanwhile, stop);
        let Ok(()) = reconnect.run::<Infallible>(|backoff| {
            let mut publisher = connector.connect()?;
            let established = reconnect.established();
            let after = established.after(Some(self.backlog.visits()));
            log::info!("connected to the broker at {}{after}", publisher.address());
            let ended = self.session(&mut *publisher, stop, backoff);
            // What is not confirmed by now is sent again.
            self.metrics.relay_unconfirmed.set(0.0);
            self.metrics.broker_blocked.set(0.0);
            ended.map_err(|Lost(why)| Setback::Again(format!("lost the broker: {why}")))
        });
    }

    /// Publishes over one connection. `Ok` when it is to stop.
    fn session(&self, publisher: &mut dyn Publisher, stop: &Stop, backoff: &mut Backoff) -> Result<(), Lost> {
        let mut window = Window::new(self.backlog.confirmed());
        let silence = crossbeam_channel::never();
        let mut stop_at = None;
        loop {
            self.fill(&mut window, publisher)?;
            self.metrics.relay_unconfirmed.set(window.visits() as f64);
            if stop.is_set() {
                let deadline = *stop_at.get_or_insert_with(|| Instant::now() + DRAIN_MAX);
                // A window that was filled is empty only where there is nothing left to read.
                if window.in_flight.is_empty() || window.blocked.is_some() || Instant::now() >= deadline {
                    return Ok(());
                }
            }
            let is_idle = window.in_flight.is_empty() && window.blocked.is_none();
            match publisher.wait(if is_idle { self.backlog.bell() } else { &silence }, TICK)? {
                News::Confirmed(tags) => {
                    self.settle(&mut window, &tags);
                    backoff.reset();
                }
                News::Blocked(why) => {
                    window.blocked = Some(format!("the broker takes no messages: {why}"));
                    self.metrics.broker_blocked.set(1.0);
                }
                News::Unblocked => {
                    window.blocked = None;
                    self.metrics.broker_blocked.set(0.0);
                    let after = self.health.well(Part::Broker).unwrap_or_default();
                    let (after, waiting) = (in_words(after), counted(self.backlog.visits()));
                    log::info!("the broker takes messages again after {after}, {waiting} visits waiting");
                }
                News::Nothing => {}
            }
            if let Some(problem) = &window.blocked
                && let Some(lasting) = self.health.ill(Part::Broker, problem)
            {
                log::warn!("{problem}{lasting}; visits wait in the spool");
            }
            window.check_patience()?;
        }
    }

    /// Publishes what there is, as far as the window lets it.
    fn fill(&self, window: &mut Window, publisher: &mut dyn Publisher) -> Result<(), Lost> {
        if window.blocked.is_some() {
            return Ok(());
        }
        let left = self.backlog.bytes_after(window.cursor);
        if window.in_flight.is_empty() && (1..MESSAGE_MAX_BYTES as u64).contains(&left) {
            std::thread::sleep(MESSAGE_GROWS);
        }
        // A message that could still grow waits for those before it.
        while window.in_flight.len() < WINDOW_MESSAGES
            && (window.in_flight.is_empty()
                || self.backlog.bytes_after(window.cursor) >= MESSAGE_MAX_BYTES as u64)
        {
            let Some(reading) = self.read(window) else { break };
            let tag = publisher.publish(&reading.message, reading.shard)?;
            window.in_flight.insert(tag, Sent { end: reading.end, visits: reading.message.count });
            window.cursor = reading.end;
        }
        Ok(())
    }

    /// The next message. Where the disk does not give it out, it is asked again later, and the connection stays: what
    /// was read before is still to be confirmed.
    fn read(&self, window: &mut Window) -> Option<Reading> {
        if window.read_again_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        match self.backlog.read(window.cursor, MESSAGE_MAX_BYTES) {
            Ok(reading) => {
                if self.health.well(Part::Backlog).is_some() {
                    log::info!("the spool can be read again");
                }
                window.read_again_at = None;
                window.read_backoff.reset();
                reading
            }
            Err(error) => {
                let problem = format!("failed to read the spool: {error}");
                if let Some(lasting) = self.health.ill(Part::Backlog, &problem) {
                    log::error!("{problem}{lasting}; nothing is skipped, trying again");
                }
                window.read_again_at = Some(Instant::now() + window.read_backoff.next_wait());
                None
            }
        }
    }

    /// Forgets what is confirmed without a hole before it: confirms come in any order.
    fn settle(&self, window: &mut Window, tags: &[u64]) {
        let sent = tags.iter().filter_map(|tag| Some((*tag, window.in_flight.remove(tag)?)));
        window.confirmed_apart.extend(sent);
        let oldest_in_flight = window.in_flight.keys().next().copied().unwrap_or(u64::MAX);
        let held_back = window.confirmed_apart.split_off(&oldest_in_flight);
        let safe = std::mem::replace(&mut window.confirmed_apart, held_back);
        if let Some(newest) = safe.values().next_back() {
            self.backlog.forget(newest.end);
        }
        self.metrics.published.inc_by(safe.values().map(|sent| sent.visits).sum());
    }
}

impl Window {
    fn new(cursor: Position) -> Self {
        Window {
            cursor,
            in_flight: BTreeMap::new(),
            confirmed_apart: BTreeMap::new(),
            awaited: (None, Instant::now()),
            blocked: None,
            read_again_at: None,
            read_backoff: Backoff::default(),
        }
    }

    /// How many visits were sent and are not forgotten.
    fn visits(&self) -> u64 {
        self.in_flight.values().chain(self.confirmed_apart.values()).map(|sent| sent.visits).sum()
    }

    /// Gives the connection up where the oldest message has waited for its confirm for too long.
    fn check_patience(&mut self) -> Result<(), Lost> {
        let oldest = self.in_flight.keys().next().copied();
        if self.blocked.is_some() || oldest.is_none() || oldest != self.awaited.0 {
            self.awaited = (oldest, Instant::now());
        } else if self.awaited.1.elapsed() > CONFIRM_MAX {
            return Err(Lost(format!("no confirm within {} s", CONFIRM_MAX.as_secs())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
