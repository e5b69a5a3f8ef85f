//! The publishing side of a connection: persistent, mandatory messages, each confirmed by the broker.

use std::collections::BTreeMap;
use std::time::Duration;

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, select};

use super::confirms::{Confirms, Unconfirmed};
use super::properties::of_message;
use super::session::{LOST_BEFORE, Session};
use super::topology::{ROUTING_KEY, queue_of};
use crate::queue::Shard;
use crate::relay::{Lost, News, Publisher};
use crate::trace::{self, Span};
use crate::visit::wire::Message;

/// Where a connection's news arrive.
pub(super) struct Ears {
    confirms: Confirms,
    blocked: Receiver<ConnectionBlockedNotification>,
}

/// A connection that publishes.
pub(super) struct AmqpPublisher {
    // `None` once it is lost.
    session: Option<Session>,
    ears: Ears,
    queue: String,
    address: String,
    // Of messages that are not confirmed, by their tags.
    spans: BTreeMap<u64, Span>,
}

impl AmqpPublisher {
    /// Puts the channel into confirm mode.
    pub(super) fn prepare(connection: &mut Connection, channel: &Channel, _: &str) -> amiquip::Result<Ears> {
        let blocked = connection.listen_for_connection_blocked()?;
        Ok(Ears { confirms: Confirms::listen(channel)?, blocked })
    }

    pub(super) fn new(session: Session, ears: Ears, address: String, queue: String) -> Self {
        AmqpPublisher { session: Some(session), ears, queue, address, spans: BTreeMap::new() }
    }

    fn lost(&mut self) -> Lost {
        self.fail_spans();
        Lost(self.session.take().map_or_else(|| LOST_BEFORE.into(), Session::close))
    }

    fn fail_spans(&mut self) {
        self.spans.values_mut().for_each(|span| span.fail("unconfirmed"));
        self.spans.clear();
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&mut self, message: &Message, shard: Shard) -> Result<u64, Lost> {
        let session = self.session.as_ref().ok_or_else(|| Lost(LOST_BEFORE.into()))?;
        let queue = queue_of(&self.queue, shard);
        let span = trace::send(&queue, ROUTING_KEY, message.count, || trace::marked(&message.body));
        let confirms = &mut self.ears.confirms;
        let sent = confirms.publish(
            session.channel(),
            &queue,
            ROUTING_KEY,
            &message.body,
            of_message(message, span.as_ref().map(Span::context)),
        );
        let tag = sent.map_err(|_| self.lost())?;
        self.spans.extend(span.map(|span| (tag, span)));
        Ok(tag)
    }

    fn wait(&mut self, bell: &Receiver<()>, timeout: Duration) -> Result<News, Lost> {
        let confirmed = select! {
            recv(self.ears.confirms.receiver()) -> confirm => confirm,
            recv(self.ears.blocked) -> notification => return match notification {
                Ok(ConnectionBlockedNotification::Blocked(why)) => Ok(News::Blocked(why)),
                Ok(ConnectionBlockedNotification::Unblocked) => Ok(News::Unblocked),
                Err(_) => Err(self.lost()),
            },
            recv(bell) -> _ => return Ok(News::Nothing),
            default(timeout) => return Ok(News::Nothing),
        };
        let Ok(confirm) = confirmed else { return Err(self.lost()) };
        match self.ears.confirms.settle(confirm) {
            Ok(tags) => {
                if !self.spans.is_empty() {
                    for tag in &tags {
                        self.spans.remove(tag);
                    }
                }
                Ok(News::Confirmed(tags))
            }
            Err(Unconfirmed::Refused(why)) => {
                self.fail_spans();
                Err(Lost(why))
            }
            Err(Unconfirmed::Lost) => Err(self.lost()),
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}
