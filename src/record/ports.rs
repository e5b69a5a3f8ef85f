//! What the recorder asks of the outside: an inbox, a log of visits, a ledger; and what each may answer.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use super::state::{Entry, Mark, OpenClaims, Written};
use crate::trace::Span;
use crate::visit::lines::{LineFormat, Numbered};
use crate::visit::wire::{Origin, Unreadable};

/// A message as it was delivered.
#[derive(Debug)]
pub struct Delivered {
    /// Who numbered it, or what is wrong with its headers.
    pub origin: Result<Origin, Unreadable>,
    /// Its visits, as JSON.
    pub body: Vec<u8>,
}

/// What cannot be read of a batch: a visit, or a message as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter<'a> {
    /// The place of its message in the batch.
    pub place: usize,
    /// Whether it is the whole message. Else the rest of the message was readable, and this is one visit.
    pub is_whole: bool,
    /// Whose it is, as when it is delivered again by itself; `None` where that is what cannot be read.
    pub origin: Option<Origin>,
    /// What came.
    pub bytes: &'a [u8],
    /// Why it cannot be read.
    pub reason: Unreadable,
}

impl fmt::Display for DeadLetter<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_whole { "message" } else { "visit" };
        match &self.origin {
            Some(Origin::Spool { producer, first, .. }) => {
                write!(formatter, "a {what} that cannot be read, {producer}:{first}: {}", self.reason)
            }
            Some(Origin::Foreign { message_id: Some(id) }) => {
                write!(formatter, "a {what} that cannot be read, {id:?}: {}", self.reason)
            }
            _ => write!(formatter, "a {what} that cannot be read: {}", self.reason),
        }
    }
}

/// Where messages come from.
pub trait Inbox {
    /// The messages that wait, bounded in number and bytes; empty when there were none for `wait`.
    /// They are the recorder's until it acknowledges them: an unacknowledged one comes again.
    ///
    /// # Errors
    /// [`InboxError`] when the way to the messages is lost; all that was not acknowledged will come
    /// again on the next one.
    fn receive(&mut self, wait: Duration) -> Result<Vec<Delivered>, InboxError>;
    /// Whether what was received last may be written by this process: asked right before, as between a delivery and its
    /// writing any time may pass, and whoever was cut off may have a successor by then.
    ///
    /// # Errors
    /// [`Withheld`], and why.
    fn check(&mut self) -> Result<(), Withheld> {
        Ok(())
    }
    /// Notes that nothing is held any more, and that this process takes no further messages.
    fn leave(&mut self) {}
    /// Sets `dead` aside, durably, and then lets go of every message of the last batch for good.
    /// `dead` is in the order of its places in that batch.
    ///
    /// # Errors
    /// [`InboxError`] when that cannot be done or the way to the messages is lost: any of them may come
    /// again, and what of `dead` was set aside is set aside again then.
    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError>;
    /// The span of the last batch, linked to those that its messages are of; `None` where it is not traced.
    fn trace(&self) -> Option<Span> {
        None
    }
    /// Where the messages come from, fit to be shown.
    fn address(&self) -> &str;
}

/// The way to the messages is lost, and why.
#[derive(Debug)]
pub struct InboxError(pub String);

/// Why what was received may not be written.
#[derive(Debug)]
pub enum Withheld {
    /// It cannot be told now whose it is: what was not begun comes again on another way, to whom it is for.
    Unknown(InboxError),
    /// Another output has taken the queue over: end.
    TakenOver(String),
}

/// The visits of a batch as lines of one format.
#[derive(Debug, Clone)]
pub struct Lines {
    /// The format.
    pub format: LineFormat,
    /// All of them, each with its line feed.
    pub bytes: Vec<u8>,
    /// Where each ends in `bytes`.
    pub ends: Vec<usize>,
}

impl Lines {
    /// No line yet.
    pub fn new(format: LineFormat) -> Self {
        Lines { format, bytes: Vec::new(), ends: Vec::new() }
    }

    /// Adds the line of a visit.
    pub fn add(&mut self, visit: Numbered<'_>) {
        self.format.write(visit, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// Keeps the first `count` lines.
    pub fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Where a line starts in `bytes`.
    pub fn start(&self, line: usize) -> usize {
        if line == 0 { 0 } else { self.ends[line - 1] }
    }

    /// One line.
    pub fn line(&self, line: usize) -> &[u8] {
        &self.bytes[self.start(line)..self.ends[line]]
    }
}

/// What became of a batch: bytes of it that stand in a file, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<'a> {
    /// The ledger's number for the file.
    pub file: u64,
    /// Where they start, in bytes.
    pub start: u64,
    /// The bytes.
    pub bytes: Cow<'a, [u8]>,
    /// How many lines of the batch are whole among them, each counted where it stands first; a fragment is none.
    pub lines: u64,
}

/// What was appended, and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended<'a> {
    /// Where the log ends now; `None` for one that cannot be looked at again.
    pub mark: Option<Mark>,
    /// Where the lines of the batch are: each in one of them.
    pub placed: Vec<Placed<'a>>,
    /// The claims that are open still, where that changed.
    pub claims: Option<Vec<OpenClaims>>,
}

/// Where lines go. It only ever grows: what was begun is gone on with, and what a crash left behind the ledger's
/// mark is recognised when its visits are delivered again.
pub trait VisitLog {
    /// Whether this process may still write. Asked before anything is made durable or acknowledged: what is on disk
    /// may be another's by now.
    ///
    /// # Errors
    /// [`VisitLogError::LockLost`] where it may not, [`VisitLogError::Failed`] where that cannot be told now.
    fn check(&self) -> Result<(), VisitLogError>;
    /// Looks after the log when there is nothing to write: makes the file where it was renamed or removed.
    ///
    /// # Errors
    /// As for `check`, what failed, and [`VisitLogError::Closed`].
    fn refresh(&mut self) -> Result<(), VisitLogError>;
    /// Whether a new file is to be begun now, whether or not there is anything to write: the next `begin` does so.
    fn is_due(&self, written: &Written) -> bool;
    /// Keeps everybody else out until `settle` or `let_go`, and compares the log with what was `written`. Returns what the ledger
    /// has to be told before anything is appended: where the log ends, that it is a new file, and, the first time,
    /// which lines wait to be claimed.
    ///
    /// # Errors
    /// As for `refresh`, and [`VisitLogError::Failed`] while somebody else does not leave.
    fn begin(&mut self, written: &Written) -> Result<Option<Entry>, VisitLogError>;
    /// Whether a batch was begun and is not settled: some of it may stand there.
    fn has_begun(&self) -> bool;
    /// The formats of the lines that wait to be claimed, each once; none where there are no such lines.
    fn claims_formats(&self) -> Vec<LineFormat>;
    /// Appends the lines of a batch, but those that a crash left behind already, and makes them durable. `as_claimed`
    /// has the same visits in the other formats of [`VisitLog::claims_formats`].
    ///
    /// # Errors
    /// What failed. Some of the bytes may stand there then: the next call, with the same lines, goes on where this one
    /// stopped, once `begin` has succeeded again. As for `check`, [`VisitLogError::Failed`] and [`VisitLogError::Closed`].
    fn append<'a>(
        &'a mut self,
        lines: &'a Lines,
        as_claimed: &[Lines],
    ) -> Result<Appended<'a>, VisitLogError>;
    /// The ledger knows of what was appended. Lets others in.
    fn settle(&mut self);
    /// The ledger could not be told what `begin` returned. Lets others in.
    fn let_go(&mut self);
}

/// The output file refuses.
#[derive(Debug)]
pub enum VisitLogError {
    /// The disk, or somebody who holds the file: try again.
    Failed {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The lock is gone from under this process, so another may be writing by now: end.
    LockLost {
        /// The lock file.
        path: String,
    },
    /// Nobody reads what is written any more, and nobody else can: end.
    Closed {
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for VisitLogError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VisitLogError::Failed { path, error } => {
                write!(formatter, "failed to write to `{path}`: {error}")
            }
            VisitLogError::LockLost { path } => {
                write!(formatter, "the lock `{path}` was removed or replaced while it was held")
            }
            VisitLogError::Closed { error } => write!(
                formatter,
                "nobody reads standard output any more ({error}): what is not written yet is at the next start"
            ),
        }
    }
}

/// What has been written.
pub trait Ledger {
    /// The state, without what failed to be committed.
    fn written(&self) -> &Written;
    /// Takes room for an entry about `bytes` of lines, so that a disk that is full says so before they are appended,
    /// while others may still have the log.
    ///
    /// # Errors
    /// What the system said.
    fn reserve(&mut self, bytes: usize) -> Result<(), LedgerError>;
    /// Makes `entry` part of the state, durably.
    ///
    /// # Errors
    /// What failed. Then the entry may stand on disk until `repair` has succeeded.
    fn commit(&mut self, entry: &Entry) -> Result<(), LedgerError>;
    /// Removes what a failed `commit` left, durably, and makes the ledger ready for the next: writes it anew
    /// where its file was removed.
    ///
    /// # Errors
    /// What failed.
    fn repair(&mut self) -> Result<(), LedgerError>;
}

/// The ledger refuses.
#[derive(Debug)]
pub struct LedgerError {
    /// The file.
    pub path: String,
    /// What the system said.
    pub error: io::Error,
}

impl fmt::Display for LedgerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "failed to write the ledger `{}`: {}", self.path, self.error)
    }
}
