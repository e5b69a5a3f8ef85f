//! The dead letters that wait at the broker: looked at, or published to the queue again.

use std::collections::BTreeMap;
use std::time::Duration;

use amiquip::{Channel, Connection, Delivery};

use super::confirms::{Confirms, Unconfirmed};
use super::errors::reason;
use super::masstransit;
use super::properties::replayed;
use super::session::{LOST_BEFORE, Session};
use super::topology::{ROUTING_KEY, dead_letters};
use crate::record::Delivered;
use crate::stop::Stop;

/// How many letters wait for their confirm, and how many bytes of them, but for the last.
const UNCONFIRMED_MAX: usize = 64;
const UNCONFIRMED_MAX_BYTES: usize = 512 << 10;
/// How long the broker may take to confirm them.
const CONFIRM_MAX: Duration = Duration::from_secs(30);

/// The dead letters of one queue, over one connection.
pub struct DeadLetters {
    // `None` once it is lost.
    session: Option<Session>,
    confirms: Confirms,
    queue: String,
    // How many there were at the beginning: what comes back meanwhile is not taken again.
    count: u64,
}

impl DeadLetters {
    /// Counts them.
    pub(super) fn prepare(
        _: &mut Connection,
        channel: &Channel,
        queue: &str,
    ) -> amiquip::Result<(Confirms, u64)> {
        let confirms = Confirms::listen(channel)?;
        let count = channel.queue_declare_passive(dead_letters(queue))?.declared_message_count();
        Ok((confirms, count.unwrap_or_default().into()))
    }

    pub(super) fn new(session: Session, confirms: Confirms, count: u64, queue: String) -> Self {
        DeadLetters { session: Some(session), confirms, queue, count }
    }

    /// How many there were when the connection was made.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Shows each to `look`. They go back as they were when the connection ends, but for their count of deliveries.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub fn look(mut self, stop: &Stop, mut look: impl FnMut(Delivered)) -> Result<(), String> {
        for _ in 0..self.count {
            let Some(letter) = self.take()?.filter(|_| !stop.is_set()) else { break };
            look(masstransit::delivered(&letter.properties, letter.body));
        }
        Ok(())
    }

    /// Publishes each to the queue, under its own numbers and id, and lets go of it when the broker holds it
    /// there; calls `done` for each. Where the connection is lost in between, a letter is in both places, and
    /// whoever records it knows it again. Returns how many there were.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub fn replay(mut self, stop: &Stop, mut done: impl FnMut()) -> Result<u64, String> {
        let (mut waiting, mut bytes, mut replayed_count) = (BTreeMap::new(), 0, 0);
        for _ in 0..self.count {
            let Some(mut letter) = self.take()?.filter(|_| !stop.is_set()) else { break };
            let body = std::mem::take(&mut letter.body);
            let session = self.session.as_ref().ok_or(LOST_BEFORE)?;
            let properties = replayed(&letter.properties);
            let channel = session.channel();
            let sent = self.confirms.publish(channel, &self.queue, ROUTING_KEY, &body, properties);
            waiting.insert(sent.map_err(|error| reason(&error))?, letter);
            bytes += body.len();
            let is_full = waiting.len() >= UNCONFIRMED_MAX || bytes > UNCONFIRMED_MAX_BYTES;
            if is_full {
                self.settle(&mut waiting)?;
                bytes = 0;
            }
            replayed_count += 1;
            done();
        }
        self.settle(&mut waiting)?;
        Ok(replayed_count)
    }

    /// The next one; `None` where there is none.
    fn take(&mut self) -> Result<Option<Delivery>, String> {
        let session = self.session.as_ref().ok_or(LOST_BEFORE)?;
        let taken = session.channel().basic_get(dead_letters(&self.queue), false);
        Ok(taken.map_err(|error| reason(&error))?.map(|get| get.delivery))
    }

    /// Waits until the broker holds all that `waiting` are, and lets go of them.
    fn settle(&mut self, waiting: &mut BTreeMap<u64, Delivery>) -> Result<(), String> {
        self.confirms.wait(0, CONFIRM_MAX).map_err(|unconfirmed| match unconfirmed {
            Unconfirmed::Refused(why) => why,
            Unconfirmed::Lost => self.session.take().map_or(LOST_BEFORE.into(), Session::close),
        })?;
        let session = self.session.as_ref().ok_or(LOST_BEFORE)?;
        for (_, letter) in std::mem::take(waiting) {
            letter.ack(session.channel()).map_err(|error| reason(&error))?;
        }
        Ok(())
    }
}
