//! The publishing side of a connection: persistent, mandatory messages, each confirmed by the broker.

use std::collections::BTreeSet;
use std::time::Duration;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmPayload, Connection, ConnectionBlockedNotification,
    FieldTable, Publish, Return,
};
use crossbeam_channel::{Receiver, select};

use super::session::{LOST_BEFORE, Session};
use super::topology::ROUTING_KEY;
use crate::relay::{Lost, News, Publisher};
use crate::visit::wire::{
    CONTENT_TYPE, COUNT_HEADER, MESSAGE_TYPE, Message, PRODUCER_HEADER, SEQUENCE_HEADER,
};

/// AMQP 0-9-1: delivery mode 2 is persistent.
const PERSISTENT: u8 = 2;

/// Where a connection's news arrive.
pub(super) struct Ears {
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    blocked: Receiver<ConnectionBlockedNotification>,
}

/// A connection that publishes.
pub(super) struct AmqpPublisher {
    // `None` once it is lost.
    session: Option<Session>,
    ears: Ears,
    exchange: String,
    address: String,
    // amiquip does not tell the tag of what was published: the broker counts from 1, and so do we.
    last_tag: u64,
    outstanding: BTreeSet<u64>,
}

impl AmqpPublisher {
    /// Puts the channel into confirm mode.
    pub(super) fn prepare(connection: &mut Connection, channel: &Channel, _: &str) -> amiquip::Result<Ears> {
        channel.enable_publisher_confirms()?;
        Ok(Ears {
            confirms: channel.listen_for_publisher_confirms()?,
            returns: channel.listen_for_returns()?,
            blocked: connection.listen_for_connection_blocked()?,
        })
    }

    pub(super) fn new(session: Session, ears: Ears, address: String, exchange: String) -> Self {
        AmqpPublisher {
            session: Some(session),
            ears,
            exchange,
            address,
            last_tag: 0,
            outstanding: BTreeSet::new(),
        }
    }

    fn lost(&mut self) -> Lost {
        Lost(self.session.take().map_or_else(|| LOST_BEFORE.into(), Session::close))
    }

    /// The tags that a confirm settles.
    fn settled(&mut self, confirm: Confirm) -> Result<Vec<u64>, Lost> {
        match confirm {
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple: false }) => {
                self.outstanding.remove(&delivery_tag);
                Ok(vec![delivery_tag])
            }
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple: true }) => {
                let later = self.outstanding.split_off(&(delivery_tag + 1));
                Ok(std::mem::replace(&mut self.outstanding, later).into_iter().collect())
            }
            Confirm::Nack(_) => Err(Lost("the broker refused a message".into())),
        }
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&mut self, message: &Message) -> Result<u64, Lost> {
        let number = |value: u64| {
            let value = i64::try_from(value).expect("a spool's sequences fit a signed 64-bit header");
            AmqpValue::LongLongInt(value)
        };
        let mut headers = FieldTable::new();
        headers.insert(PRODUCER_HEADER.into(), AmqpValue::LongString(message.producer.to_string()));
        headers.insert(SEQUENCE_HEADER.into(), number(message.first));
        headers.insert(COUNT_HEADER.into(), number(message.count));
        let properties = AmqpProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_type_(MESSAGE_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(message.message_id())
            .with_headers(headers);
        let publish = Publish {
            body: &message.body,
            routing_key: ROUTING_KEY.into(),
            mandatory: true,
            immediate: false,
            properties,
        };
        let session = self.session.as_ref().ok_or_else(|| Lost(LOST_BEFORE.into()))?;
        if session.channel().basic_publish(&self.exchange, publish).is_err() {
            return Err(self.lost());
        }
        self.last_tag += 1;
        self.outstanding.insert(self.last_tag);
        Ok(self.last_tag)
    }

    fn wait(&mut self, bell: &Receiver<()>, timeout: Duration) -> Result<News, Lost> {
        let confirmed = select! {
            recv(self.ears.confirms) -> confirm => confirm,
            recv(self.ears.blocked) -> notification => return match notification {
                Ok(ConnectionBlockedNotification::Blocked(why)) => Ok(News::Blocked(why)),
                Ok(ConnectionBlockedNotification::Unblocked) => Ok(News::Unblocked),
                Err(_) => Err(self.lost()),
            },
            recv(bell) -> _ => return Ok(News::Nothing),
            default(timeout) => return Ok(News::Nothing),
        };
        let Ok(confirm) = confirmed else { return Err(self.lost()) };
        let mut tags = self.settled(confirm)?;
        while let Ok(confirm) = self.ears.confirms.try_recv() {
            tags.extend(self.settled(confirm)?);
        }
        // An unroutable message is returned before it is confirmed, so by now its return is here.
        match self.ears.returns.try_recv() {
            Ok(returned) => Err(Lost(format!(
                "it returned a message as unroutable: {} ({})",
                returned.reply_text, returned.reply_code
            ))),
            Err(_) => Ok(News::Confirmed(tags)),
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}
