//! What the recorder asks of the outside: an inbox, a log of visits, a ledger; and what each may answer.

use std::fmt;
use std::io;
use std::time::Duration;

use super::state::{Entry, Mark, Written};
use crate::visit::wire::{Origin, Unreadable};

/// A message as it was delivered.
#[derive(Debug)]
pub struct Delivered {
    /// Who numbered it, or what is wrong with its headers.
    pub origin: Result<Origin, Unreadable>,
    /// Its visits, as JSON.
    pub body: Vec<u8>,
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
    /// Lets go of every message received so far: those at `unreadable` (ascending places in the last
    /// batch) to the dead letters, whole, and the rest for good.
    ///
    /// # Errors
    /// [`InboxError`] when the way to the messages is lost: any of them may come again.
    fn acknowledge(&mut self, unreadable: &[usize]) -> Result<(), InboxError>;
    /// Where the messages come from, fit to be shown.
    fn address(&self) -> &str;
}

/// The way to the messages is lost, and why.
#[derive(Debug)]
pub struct InboxError(pub String);

/// Where lines go.
pub trait VisitLog {
    /// Whether this process may still write. Asked before anything is undone: what is on disk may be
    /// another's by now.
    fn check(&self) -> Result<(), VisitLogError>;
    /// Keeps everybody else out until `settle` or `retract`; returns where the log ends.
    ///
    /// # Errors
    /// As for `check`, and [`VisitLogError::Failed`] while somebody else does not leave.
    fn begin(&mut self) -> Result<Mark, VisitLogError>;
    /// Appends `lines` and makes them durable; returns where the log ends then. They stay provisional
    /// until `settle`.
    ///
    /// # Errors
    /// What failed. Then none or some of the bytes stand there, until `retract` has succeeded.
    fn append(&mut self, lines: &[u8]) -> Result<Mark, VisitLogError>;
    /// Makes what was appended stay: the ledger knows of it. Lets others in.
    fn settle(&mut self);
    /// Removes what was appended and not settled, durably, and makes the log ready for the next
    /// append: opens the file again where it was renamed, removed or could not be opened. Lets others in.
    fn retract(&mut self) -> Result<(), VisitLogError>;
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
        }
    }
}

/// What has been written.
pub trait Ledger {
    /// The state, without what failed to be committed.
    fn written(&self) -> &Written;
    /// Makes `entry` part of the state, durably.
    ///
    /// # Errors
    /// What failed. Then the entry may stand on disk until `repair` has succeeded.
    fn commit(&mut self, entry: &Entry) -> Result<(), LedgerError>;
    /// Removes what a failed `commit` left, durably, and makes the ledger ready for the next: writes it anew
    /// where its file was removed.
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
