//! What the relay asks of a broker.

use crossbeam_channel::Receiver;
use std::time::Duration;

use crate::queue::Shard;
use crate::visit::wire::Message;

/// The connection cannot be used any more, and why.
#[derive(Debug)]
pub struct Lost(pub String);

/// What one wait for the broker brought.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// The broker holds these messages on disk, and none of them came back as unroutable.
    Confirmed(Vec<u64>),
    /// The broker takes nothing for now, and why.
    Blocked(String),
    /// It takes messages again, after `Blocked`.
    Unblocked,
    /// There are new visits, or the time is over.
    Nothing,
}

/// One connection to the broker, to publish.
pub trait Publisher: Send {
    /// Sends a message to its shard, and names it by a number that `wait` will confirm. `Ok` promises nothing.
    ///
    /// # Errors
    /// [`Lost`] when the connection is gone. The message may have arrived.
    fn publish(&mut self, message: &Message, shard: Shard) -> Result<u64, Lost>;
    /// Waits for the broker's word or the bell, at most `timeout`.
    ///
    /// # Errors
    /// [`Lost`] when the connection is gone, and when the broker refuses or returns a message.
    fn wait(&mut self, bell: &Receiver<()>, timeout: Duration) -> Result<News, Lost>;
    /// The broker's address, fit to be shown.
    fn address(&self) -> &str;
}
