//! The inbox of the embedded program: the spool itself, with no broker in between.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::dead_file;
use super::ports::{DeadLetter, Delivered, Inbox, InboxError};
use crate::connect::{Connect, ConnectError};
use crate::health::Part;
use crate::queue::{Backlog, Position, Reading};
use crate::trace::{self, Context, LINKS_MAX, Span};
use crate::visit::wire::Origin;

/// How many bytes a batch has, but for a group that is larger by itself.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// How long a batch may grow: here the two fdatasyncs of each meet those that every answer waits for.
const BATCH_GROWS: Duration = Duration::from_millis(250);
/// A batch that has not grown for this long is taken as it is.
const BATCH_QUIET: Duration = Duration::from_millis(20);

/// Reads a backlog as inboxes, each from the first unconfirmed visit on: after a failure there is another.
pub struct SpoolInboxes {
    backlog: Arc<dyn Backlog>,
    dead_letters: Arc<DeadLetters>,
}

/// Where visits go that cannot be read: this program's own, so after a defect or a downgrade.
struct DeadLetters {
    path: PathBuf,
    // Lines that could not be appended, and the end of the batch that they are of: all else of it is written.
    owed: Mutex<Option<(Vec<u8>, Position)>>,
}

impl SpoolInboxes {
    /// The inboxes of `backlog`, whose dead letters go to the file at `dead_letters`.
    pub fn new(backlog: Arc<dyn Backlog>, dead_letters: PathBuf) -> Self {
        let dead_letters = DeadLetters { path: dead_letters, owed: Mutex::default() };
        SpoolInboxes { backlog, dead_letters: Arc::new(dead_letters) }
    }
}

impl Connect<dyn Inbox> for SpoolInboxes {
    fn part(&self) -> Part {
        Part::Backlog
    }

    /// Where the last inbox failed, this fails in the same way until that is over: nothing is delivered again only
    /// to fail again.
    fn connect(&mut self) -> Result<Box<dyn Inbox>, ConnectError> {
        let (backlog, dead_letters) = (self.backlog.clone(), self.dead_letters.clone());
        let settled = dead_letters.settle(&*backlog);
        let inbox = SpoolInbox { cursor: backlog.confirmed(), backlog, dead_letters, requests: Vec::new() };
        let readable = settled.and_then(|()| inbox.read(1));
        readable.map_err(|InboxError(why)| ConnectError::Unavailable(why))?;
        Ok(Box::new(inbox))
    }
}

impl DeadLetters {
    /// Appends what is owed, and has `backlog` forget the batch that it is of.
    fn settle(&self, backlog: &dyn Backlog) -> Result<(), InboxError> {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((lines, end)) = &*owed {
            dead_file::append(&self.path, lines).map_err(|error| {
                InboxError(format!("failed to append to `{}`: {error}", self.path.display()))
            })?;
            backlog.forget(*end);
            *owed = None;
        }
        Ok(())
    }
}

/// Reads a backlog as an inbox.
struct SpoolInbox {
    backlog: Arc<dyn Backlog>,
    dead_letters: Arc<DeadLetters>,
    cursor: Position,
    // The requests of the last batch that are traced.
    requests: Vec<Context>,
}

impl SpoolInbox {
    fn read(&self, max_bytes: usize) -> Result<Option<Reading>, InboxError> {
        let reading = self.backlog.read(self.cursor, max_bytes);
        reading.map_err(|error| InboxError(format!("failed to read the spool: {error}")))
    }

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
        let mut reading = self.read(BATCH_MAX_BYTES)?;
        if reading.is_none() {
            // Whether it rang or the time is over, there is one more look.
            let _ = self.backlog.bell().recv_timeout(wait);
            reading = self.read(BATCH_MAX_BYTES)?;
        }
        let Some(mut reading) = reading else { return Ok(Vec::new()) };
        if reading.message.body.len() < BATCH_MAX_BYTES / 2 {
            self.gather();
            reading = self.read(BATCH_MAX_BYTES)?.unwrap_or(reading);
        }
        let message = reading.message;
        self.cursor = reading.end;
        if trace::is_on() {
            self.requests = trace::marked(&message.body).take(LINKS_MAX).collect();
        }
        let origin = Origin::Spool { producer: message.producer, first: message.first, count: message.count };
        Ok(vec![Delivered { origin: Ok(origin), body: message.body }])
    }

    fn trace(&self) -> Option<Span> {
        trace::process(None, 1, || self.requests.iter().copied())
    }

    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        let _step = trace::step("ack");
        if dead.is_empty() {
            self.backlog.forget(self.cursor);
            return Ok(());
        }
        let lines = dead_file::lines_of(dead).map_err(|error| InboxError(error.to_string()))?;
        let mut owed = self.dead_letters.owed.lock().unwrap_or_else(PoisonError::into_inner);
        *owed = Some((lines, self.cursor));
        drop(owed);
        self.dead_letters.settle(&*self.backlog)
    }

    fn address(&self) -> &str {
        "the spool"
    }
}
