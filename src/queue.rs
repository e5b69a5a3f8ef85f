//! The spool's two sides, as ports: where visits are kept, and where they are taken from.

use std::fmt;
use std::io;

use crossbeam_channel::Receiver;

use crate::visit::wire::Message;

/// Keeps visits until they are written.
pub trait VisitStore: Send + Sync {
    /// Appends `count` visits, one a line of `lines`. `Ok` means that they are on disk and will
    /// survive a power cut, all of them; an error means that none of them is promised, and, unless the
    /// disk failed a second time while they were taken back, that none will be written.
    ///
    /// # Errors
    /// [`StoreError::Full`] until older visits are written; [`StoreError::Disk`] while the disk
    /// refuses. Both may heal, so the next call tries again.
    fn append(&self, lines: &[u8], count: u32) -> Result<(), StoreError>;
}

/// Why visits could not be made durable.
#[derive(Debug)]
pub enum StoreError {
    /// The cap in bytes is reached.
    Full {
        /// The cap, in bytes.
        max_bytes: u64,
    },
    /// The disk refused.
    Disk {
        /// The file or folder.
        path: String,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Full { max_bytes } => {
                write!(formatter, "the spool has reached its cap of {max_bytes} bytes")
            }
            StoreError::Disk { path, error } => {
                write!(formatter, "failed to append to `{path}`: {error}")
            }
        }
    }
}

impl std::error::Error for StoreError {}

/// A place in the backlog, before the visit `sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The visit's number, from 1 on.
    pub sequence: u64,
    /// The first sequence of the segment that holds it.
    pub segment: u64,
    /// Where in the segment, in bytes.
    pub offset: u64,
}

/// Which of several queues visits go to; `None` where there is one for all.
pub type Shard = Option<u32>;

/// What was read from the backlog.
#[derive(Debug)]
pub struct Reading {
    /// Consecutive visits, at least one.
    pub message: Message,
    /// Where the next reading starts.
    pub end: Position,
    /// Where they go: the same at every reading.
    pub shard: Shard,
}

/// Visits that wait to be confirmed.
pub trait Backlog: Send + Sync {
    /// The place before the oldest visit that is not confirmed.
    fn confirmed(&self) -> Position;
    /// The visits from `from` on, of at most `max_bytes` where one group is not larger by itself;
    /// `None` where there are none yet.
    fn read(&self, from: Position, max_bytes: usize) -> io::Result<Option<Reading>>;
    /// How many visits wait to be confirmed.
    fn visits(&self) -> u64;
    /// How many bytes there are to read from `from` on.
    fn bytes_after(&self, from: Position) -> u64;
    /// Gives up every visit before `up_to`: they are safe elsewhere.
    fn forget(&self, up_to: Position);
    /// Rings after visits were appended.
    fn bell(&self) -> &Receiver<()>;
}
