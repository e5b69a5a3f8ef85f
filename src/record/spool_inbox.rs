//! The inbox of the embedded program: the spool itself, with no broker in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dead_file;
use super::ports::{DeadLetter, Delivered, Inbox, InboxError};
use crate::connect::{Connect, ConnectError};
use crate::health::Part;
use crate::queue::{Backlog, Position};
use crate::visit::wire::Origin;

/// How many bytes a batch has, but for a group that is larger by itself.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// How long a batch may grow: here the two fdatasyncs of each meet those that every answer waits for.
const BATCH_GROWS: Duration = Duration::from_millis(250);
/// A batch that has not grown for this long is taken as it is.
const BATCH_QUIET: Duration = Duration::from_millis(20);

/// Reads a backlog as inboxes, each from the first unconfirmed visit on: after a failure there is another.
pub struct SpoolInboxes {
    /// What is read.
    pub backlog: Arc<dyn Backlog>,
    /// Where visits go that cannot be read: this program's own, so after a defect or a downgrade.
    pub dead_letters: PathBuf,
}

impl Connect<dyn Inbox> for SpoolInboxes {
    fn part(&self) -> Part {
        Part::Backlog
    }

    fn connect(&mut self) -> Result<Box<dyn Inbox>, ConnectError> {
        let (backlog, dead_letters) = (self.backlog.clone(), self.dead_letters.clone());
        Ok(Box::new(SpoolInbox { cursor: backlog.confirmed(), backlog, dead_letters }))
    }
}

/// Reads a backlog as an inbox.
struct SpoolInbox {
    backlog: Arc<dyn Backlog>,
    dead_letters: PathBuf,
    cursor: Position,
}

impl SpoolInbox {
    /// Waits until a batch is large enough, or grows no more, or is old enough.
    fn gather(&self) {
        let until = Instant::now() + BATCH_GROWS;
        let mut bytes = 0;
        loop {
            let before = std::mem::replace(&mut bytes, self.backlog.bytes_after(self.cursor));
            if bytes == before || bytes >= BATCH_MAX_BYTES as u64 || Instant::now() >= until {
                return;
            }
            std::thread::sleep(BATCH_QUIET);
        }
    }
}

impl Inbox for SpoolInbox {
    fn receive(&mut self, wait: Duration) -> Result<Vec<Delivered>, InboxError> {
        let read = |from| {
            let reading = self.backlog.read(from, BATCH_MAX_BYTES);
            reading.map_err(|error| InboxError(format!("failed to read the spool: {error}")))
        };
        let mut reading = read(self.cursor)?;
        if reading.is_none() {
            // Whether it rang or the time is over, there is one more look.
            let _ = self.backlog.bell().recv_timeout(wait);
            reading = read(self.cursor)?;
        }
        let Some(mut reading) = reading else { return Ok(Vec::new()) };
        if reading.message.body.len() < BATCH_MAX_BYTES / 2 {
            self.gather();
            reading = read(self.cursor)?.unwrap_or(reading);
        }
        let message = reading.message;
        self.cursor = reading.end;
        let origin = Origin::Spool { producer: message.producer, first: message.first, count: message.count };
        Ok(vec![Delivered { origin: Ok(origin), body: message.body }])
    }

    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        if !dead.is_empty() {
            dead_file::append(&self.dead_letters, dead).map_err(|error| {
                InboxError(format!("failed to append to `{}`: {error}", self.dead_letters.display()))
            })?;
        }
        self.backlog.forget(self.cursor);
        Ok(())
    }

    fn address(&self) -> &str {
        "the spool"
    }
}
