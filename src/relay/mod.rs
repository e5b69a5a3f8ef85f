//! Use case "relay": from the spool to the broker, at least once and in order.
//!
//! One thread reads the backlog behind a cursor, keeps a window of unconfirmed messages in flight and
//! forgets what the broker confirmed. Whatever goes wrong with a connection, the cure is the same: a
//! new connection, and on from the first visit that is not confirmed.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::broker::{BROKER, ConnectError};
use crate::connect::Backoff;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::visit::wire::Message;

/// A message's size, but for a group that is larger by itself, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 128 << 10;
/// How long a small message waits to grow: each costs the broker about as much as hundreds of visits in it.
const GATHER: Duration = Duration::from_millis(25);
/// How many messages may be in flight: at 128 KiB each, 4 MiB.
const WINDOW_MESSAGES: usize = 32;
/// How often a quiet session looks whether it is to stop.
const TICK: Duration = Duration::from_millis(250);
/// How long the broker may take to confirm a message: a quorum queue that lost its leader can forget to, on
/// a connection that is otherwise well.
const CONFIRM_MAX: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };
/// How long a stopping relay goes on with what is left, where a broker takes it.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// A place in the backlog, before the visit `sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The visit's number.
    pub sequence: u64,
    /// The first sequence of the segment that holds it.
    pub segment: u64,
    /// Where in the segment, in bytes.
    pub offset: u64,
}

/// What was read from the backlog.
#[derive(Debug)]
pub struct Reading {
    /// Consecutive visits.
    pub message: Message,
    /// Where the next reading starts.
    pub end: Position,
}

/// Visits that wait to be confirmed.
pub trait Backlog: Send + Sync {
    /// The place before the oldest visit that is not confirmed.
    fn confirmed(&self) -> Position;
    /// The visits from `from` on, of at most `max_bytes` where one group is not larger by itself;
    /// `None` where there are none yet.
    fn read(&self, from: Position, max_bytes: usize) -> io::Result<Option<Reading>>;
    /// How many bytes there are to read from `from` on.
    fn bytes_after(&self, from: Position) -> u64;
    /// Gives up every visit before `up_to`: they are safe elsewhere.
    fn forget(&self, up_to: Position);
    /// Rings after visits were appended.
    fn bell(&self) -> &Receiver<()>;
}

/// A way to the broker.
pub trait Connector: Send {
    /// Opens a connection and makes sure that the queue is there.
    fn connect(&mut self) -> Result<Box<dyn Publisher>, ConnectError>;
}

/// The connection cannot be used any more, and why.
#[derive(Debug)]
pub struct Lost(pub String);

/// What happened on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker holds these messages on disk, and none of them came back as unroutable.
    Confirmed(Vec<u64>),
    /// The broker takes nothing for now, and why.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
    /// There are new visits, or the time is over.
    Nothing,
}

/// One connection to the broker.
pub trait Publisher: Send {
    /// Sends a message, and names it by a number that `wait` will confirm. `Ok` promises nothing.
    fn publish(&mut self, message: &Message) -> Result<u64, Lost>;
    /// Waits for the broker's word or the bell, at most `timeout`.
    ///
    /// # Errors
    /// [`Lost`] when the connection is gone, and when the broker refuses or returns a message.
    fn wait(&mut self, bell: &Receiver<()>, timeout: Duration) -> Result<Event, Lost>;
    /// The broker's address, fit to be shown.
    fn address(&self) -> &str;
}

/// The relay of one backlog.
pub struct Relay<'a> {
    /// What is to be published.
    pub backlog: &'a dyn Backlog,
    /// What is counted.
    pub metrics: &'a Metrics,
    /// Where the state of the broker is shown.
    pub health: &'a Health,
}

impl Relay<'_> {
    /// Publishes until `stop` is set, through any number of connections.
    pub fn run(&self, connector: &mut dyn Connector, stop: &AtomicBool) {
        let mut backoff = Backoff::default();
        while !stop.load(Ordering::Relaxed) {
            let problem = match connector.connect() {
                Ok(mut publisher) => {
                    log::info!("connected to the broker at {}", publisher.address());
                    self.health.well(BROKER);
                    self.metrics.broker_connected.set(1);
                    let lost = self.session(&mut *publisher, stop, &mut backoff);
                    self.metrics.broker_connected.set(0);
                    drop(publisher);
                    match lost {
                        Ok(()) => return,
                        Err(Lost(why)) => format!("lost the broker: {why}"),
                    }
                }
                Err(error) => error.to_string(),
            };
            if self.health.ill(BROKER, &problem) {
                log::warn!("{problem}; visits wait in the spool, trying again");
            }
            backoff.wait(stop);
        }
    }

    /// Publishes over one connection. `Ok` when it is to stop.
    fn session(
        &self,
        publisher: &mut dyn Publisher,
        stop: &AtomicBool,
        backoff: &mut Backoff,
    ) -> Result<(), Lost> {
        let mut cursor = self.backlog.confirmed();
        let mut in_flight: BTreeMap<u64, (Position, u64)> = BTreeMap::new();
        let mut confirmed_apart: BTreeMap<u64, (Position, u64)> = BTreeMap::new();
        let silence = crossbeam_channel::never();
        let mut blocked = false;
        // The oldest message in flight, and since when it is.
        let mut awaited = (None, Instant::now());
        let mut stop_at = None;
        loop {
            if !blocked
                && in_flight.is_empty()
                && (1..MESSAGE_MAX_BYTES as u64).contains(&self.backlog.bytes_after(cursor))
            {
                std::thread::sleep(GATHER);
            }
            // A message that could still grow waits for those before it.
            while !blocked
                && in_flight.len() < WINDOW_MESSAGES
                && (in_flight.is_empty() || self.backlog.bytes_after(cursor) >= MESSAGE_MAX_BYTES as u64)
            {
                let reading = self.backlog.read(cursor, MESSAGE_MAX_BYTES);
                match reading.map_err(|error| Lost(format!("failed to read the spool: {error}")))? {
                    Some(reading) => {
                        let tag = publisher.publish(&reading.message)?;
                        in_flight.insert(tag, (reading.end, reading.message.count));
                        cursor = reading.end;
                    }
                    None => break,
                }
            }
            if stop.load(Ordering::Relaxed) {
                let deadline = *stop_at.get_or_insert_with(|| Instant::now() + DRAIN_MAX);
                // The loop above leaves nothing in flight only where there is nothing left to read.
                if in_flight.is_empty() || blocked || Instant::now() >= deadline {
                    return Ok(());
                }
            }
            let bell = if in_flight.is_empty() && !blocked { self.backlog.bell() } else { &silence };
            match publisher.wait(bell, TICK)? {
                Event::Confirmed(tags) => {
                    confirmed_apart
                        .extend(tags.iter().filter_map(|tag| Some((*tag, in_flight.remove(tag)?))));
                    self.forget(&mut confirmed_apart, &in_flight);
                    backoff.reset();
                }
                Event::Blocked(why) => {
                    blocked = true;
                    let problem = format!("the broker takes no messages: {why}");
                    self.health.ill(BROKER, &problem);
                    log::warn!("{problem}; visits wait in the spool");
                }
                Event::Unblocked => {
                    blocked = false;
                    self.health.well(BROKER);
                    log::info!("the broker takes messages again");
                }
                Event::Nothing => {}
            }
            let oldest = in_flight.keys().next().copied();
            if blocked || oldest.is_none() || oldest != awaited.0 {
                awaited = (oldest, Instant::now());
            } else if awaited.1.elapsed() > CONFIRM_MAX {
                return Err(Lost(format!("no confirm within {} s", CONFIRM_MAX.as_secs())));
            }
        }
    }

    /// Forgets what is confirmed without a hole before it: confirms come in any order.
    fn forget(
        &self,
        confirmed: &mut BTreeMap<u64, (Position, u64)>,
        in_flight: &BTreeMap<u64, (Position, u64)>,
    ) {
        let oldest_in_flight = in_flight.keys().next().copied().unwrap_or(u64::MAX);
        let held_back = confirmed.split_off(&oldest_in_flight);
        let safe = std::mem::replace(confirmed, held_back);
        if let Some((end, _)) = safe.values().next_back() {
            self.backlog.forget(*end);
        }
        self.metrics.published.inc_by(safe.values().map(|(_, count)| count).sum());
    }
}

#[cfg(test)]
mod tests;
