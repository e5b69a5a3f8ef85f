//! What was published on a channel in confirm mode, and what of it the broker holds on disk.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Channel, Confirm, ConfirmPayload, Publish, Return};
use crossbeam_channel::{Receiver, RecvTimeoutError};

/// Why something is not confirmed.
#[derive(Debug)]
pub(super) enum Unconfirmed {
    /// The broker said so, or said nothing for too long.
    Refused(String),
    /// The connection is gone.
    Lost,
}

/// The messages of one channel.
pub(super) struct Confirms {
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    // amiquip does not tell the tag of what was published: the broker counts from 1, and so do we.
    last_tag: u64,
    outstanding: BTreeSet<u64>,
}

impl Confirms {
    /// Puts `channel` into confirm mode, before anything is published on it.
    pub(super) fn listen(channel: &Channel) -> amiquip::Result<Self> {
        channel.enable_publisher_confirms()?;
        let (confirms, returns) = (channel.listen_for_publisher_confirms()?, channel.listen_for_returns()?);
        Ok(Confirms { confirms, returns, last_tag: 0, outstanding: BTreeSet::new() })
    }

    /// Sends a message that must reach a queue; returns the tag that will be confirmed.
    pub(super) fn publish(
        &mut self,
        channel: &Channel,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: AmqpProperties,
    ) -> amiquip::Result<u64> {
        let routing_key = routing_key.into();
        let publish = Publish { body, routing_key, mandatory: true, immediate: false, properties };
        channel.basic_publish(exchange, publish)?;
        self.last_tag += 1;
        self.outstanding.insert(self.last_tag);
        Ok(self.last_tag)
    }

    /// Where confirms arrive, each to be handed to [`Confirms::settle`].
    pub(super) fn receiver(&self) -> &Receiver<Confirm> {
        &self.confirms
    }

    /// How many messages are not confirmed yet.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The tags that `confirm` settles, and those that arrived behind it.
    ///
    /// # Errors
    /// What the broker says where it refuses a message or returns it as unroutable.
    pub(super) fn settle(&mut self, confirm: Confirm) -> Result<Vec<u64>, Unconfirmed> {
        let mut tags = Vec::new();
        let mut next = Some(confirm);
        while let Some(confirm) = next {
            tags.extend(self.settled(confirm)?);
            next = self.confirms.try_recv().ok();
        }
        // An unroutable message is returned before it is confirmed, so by now its return is here.
        match self.returns.try_recv() {
            Ok(returned) => Err(Unconfirmed::Refused(format!(
                "it returned a message as unroutable: {} ({})",
                returned.reply_text, returned.reply_code
            ))),
            Err(_) => Ok(tags),
        }
    }

    fn settled(&mut self, confirm: Confirm) -> Result<Vec<u64>, Unconfirmed> {
        match confirm {
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple: false }) => {
                self.outstanding.remove(&delivery_tag);
                Ok(vec![delivery_tag])
            }
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple: true }) => {
                let later = self.outstanding.split_off(&(delivery_tag + 1));
                Ok(std::mem::replace(&mut self.outstanding, later).into_iter().collect())
            }
            Confirm::Nack(_) => Err(Unconfirmed::Refused("the broker refused a message".into())),
        }
    }

    /// Waits until at most `left` messages are not confirmed; returns the tags that were.
    ///
    /// # Errors
    /// As for [`Confirms::settle`]; also when that takes longer than `patience`.
    pub(super) fn wait(&mut self, left: usize, patience: Duration) -> Result<Vec<u64>, Unconfirmed> {
        let until = Instant::now() + patience;
        let mut tags = Vec::new();
        while self.outstanding.len() > left {
            match self.confirms.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(confirm) => tags.extend(self.settle(confirm)?),
                Err(RecvTimeoutError::Disconnected) => return Err(Unconfirmed::Lost),
                Err(RecvTimeoutError::Timeout) => {
                    let text = format!("no confirm within {} s", patience.as_secs());
                    return Err(Unconfirmed::Refused(text));
                }
            }
        }
        Ok(tags)
    }
}
