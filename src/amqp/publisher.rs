//! The publishing side of a connection: persistent, mandatory messages, each confirmed by the broker.

use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, Channel, Connection, ConnectionBlockedNotification, FieldTable};
use crossbeam_channel::{Receiver, select};
use uuid::Uuid;

use super::confirms::{Confirms, Unconfirmed};
use super::session::{LOST_BEFORE, Session};
use super::topology::ROUTING_KEY;
use crate::relay::{Lost, News, Publisher};
use crate::visit::wire::{
    CONTENT_TYPE, COUNT_HEADER, MESSAGE_TYPE, Message, PRODUCER_HEADER, SEQUENCE_HEADER,
};

/// AMQP 0-9-1: delivery mode 2 is persistent.
pub(super) const PERSISTENT: u8 = 2;

/// The headers of `count` visits that `producer` numbered from `first` on.
pub(super) fn numbers(producer: Uuid, first: u64, count: u64) -> FieldTable {
    let number = |value: u64| {
        let value = i64::try_from(value).expect("a spool's sequences fit a signed 64-bit header");
        AmqpValue::LongLongInt(value)
    };
    let mut headers = FieldTable::new();
    headers.insert(PRODUCER_HEADER.into(), AmqpValue::LongString(producer.to_string()));
    headers.insert(SEQUENCE_HEADER.into(), number(first));
    headers.insert(COUNT_HEADER.into(), number(count));
    headers
}

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
    exchange: String,
    address: String,
}

impl AmqpPublisher {
    /// Puts the channel into confirm mode.
    pub(super) fn prepare(connection: &mut Connection, channel: &Channel, _: &str) -> amiquip::Result<Ears> {
        let blocked = connection.listen_for_connection_blocked()?;
        Ok(Ears { confirms: Confirms::listen(channel)?, blocked })
    }

    pub(super) fn new(session: Session, ears: Ears, address: String, exchange: String) -> Self {
        AmqpPublisher { session: Some(session), ears, exchange, address }
    }

    fn lost(&mut self) -> Lost {
        Lost(self.session.take().map_or_else(|| LOST_BEFORE.into(), Session::close))
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&mut self, message: &Message) -> Result<u64, Lost> {
        let properties = AmqpProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_type_(MESSAGE_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(message.message_id())
            .with_headers(numbers(message.producer, message.first, message.count));
        let session = self.session.as_ref().ok_or_else(|| Lost(LOST_BEFORE.into()))?;
        let confirms = &mut self.ears.confirms;
        let sent =
            confirms.publish(session.channel(), &self.exchange, ROUTING_KEY, &message.body, properties);
        sent.map_err(|_| self.lost())
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
            Ok(tags) => Ok(News::Confirmed(tags)),
            Err(Unconfirmed::Refused(why)) => Err(Lost(why)),
            Err(Unconfirmed::Lost) => Err(self.lost()),
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}
