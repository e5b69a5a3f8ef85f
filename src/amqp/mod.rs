//! RabbitMQ through amiquip: addresses, connections and the queue that both services declare.

mod inbox;
mod publisher;
mod session;
mod url;

pub use self::inbox::AmqpInbox;
pub use self::publisher::AmqpPublisher;
pub use self::url::AmqpUrl;

use amiquip::{
    AmqpValue, Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable,
    QueueDeclareOptions,
};

use self::session::Session;
use crate::connect::{Connect, ConnectError};
use crate::record::Inbox;
use crate::relay::Publisher;

/// The routing key of a visit.
const ROUTING_KEY: &str = "visit";
/// RabbitMQ 4 dead-letters after 20 redeliveries by default; a recorder that waits for a full disk may
/// see more.
const DELIVERY_LIMIT: i64 = 1000;
/// The longest queue name: with `.dead` behind it, it must fit AMQP's short string of 255 bytes.
pub const QUEUE_NAME_MAX_BYTES: usize = 250;

/// The brokers of one cluster and the queue on it.
pub struct Broker {
    urls: Vec<AmqpUrl>,
    queue: String,
    next: usize,
}

impl Broker {
    /// `urls` are the cluster's nodes, at least one, tried in turn.
    pub fn new(urls: Vec<AmqpUrl>, queue: String) -> Self {
        Broker { urls, queue, next: 0 }
    }

    /// Connects to the first node that answers, from the next one on, declares the queue and calls
    /// `prepare`. Where none does, a refusal is what it returns before an absence.
    fn connect_any<T: Send + 'static>(
        &mut self,
        prepare: fn(&mut Connection, &Channel, &str) -> amiquip::Result<T>,
    ) -> Result<(Session, T, String), ConnectError> {
        let mut failures = Vec::new();
        for _ in 0..self.urls.len() {
            let url = &self.urls[self.next % self.urls.len()];
            // Should this one fail or be lost, the next node is tried first.
            self.next += 1;
            let queue = self.queue.clone();
            let opened = Session::open(url, move |connection, channel| {
                declare(channel, &queue)?;
                prepare(connection, channel, &queue)
            });
            match opened {
                Ok((session, prepared)) => return Ok((session, prepared, url.to_string())),
                Err(error) => failures.push(error),
            }
        }
        let refusal = failures.iter().position(|failure| matches!(failure, ConnectError::Refused(_)));
        Err(failures.swap_remove(refusal.unwrap_or(0)))
    }
}

impl Connect<dyn Publisher> for Broker {
    fn connect(&mut self) -> Result<Box<dyn Publisher>, ConnectError> {
        let (session, ears, address) = self.connect_any(AmqpPublisher::prepare)?;
        Ok(Box::new(AmqpPublisher::new(session, ears, address, self.queue.clone())))
    }
}

impl Connect<dyn Inbox> for Broker {
    fn connect(&mut self) -> Result<Box<dyn Inbox>, ConnectError> {
        let (session, deliveries, address) = self.connect_any(AmqpInbox::prepare)?;
        Ok(Box::new(AmqpInbox::new(session, deliveries, address)))
    }
}

/// Declares exchange, queue and dead letters as the contract has them. Doing so again changes nothing;
/// a queue that is there with other arguments is refused by the broker (406).
fn declare(channel: &Channel, queue: &str) -> amiquip::Result<()> {
    let durable = || ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let text = |value: &str| AmqpValue::LongString(value.to_string());
    let quorum = |arguments: Vec<(&str, AmqpValue)>| {
        let mut table = FieldTable::new();
        table.insert("x-queue-type".into(), text("quorum"));
        table.extend(arguments.into_iter().map(|(name, value)| (name.to_string(), value)));
        QueueDeclareOptions { durable: true, arguments: table, ..QueueDeclareOptions::default() }
    };
    let dead = format!("{queue}.dead");
    channel.exchange_declare(ExchangeType::Fanout, &dead, durable())?;
    channel.queue_declare(&dead, quorum(vec![]))?;
    channel.queue_bind(&dead, &dead, "", FieldTable::new())?;
    let arguments = vec![
        ("x-single-active-consumer", AmqpValue::Boolean(true)),
        ("x-dead-letter-exchange", text(&dead)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AmqpValue::LongLongInt(DELIVERY_LIMIT)),
    ];
    channel.exchange_declare(ExchangeType::Direct, queue, durable())?;
    channel.queue_declare(queue, quorum(arguments))?;
    channel.queue_bind(queue, queue, ROUTING_KEY, FieldTable::new())
}

/// What to show of an error: amiquip puts the URL, password included, into some of its messages.
fn reason(error: &Error) -> String {
    match error {
        Error::FailedToConnect { source, .. } | Error::ResolveUrlToSocketAddr { source, .. } => {
            source.to_string()
        }
        Error::InvalidCredentials => "it refused the login (or ended the connection during it)".into(),
        Error::ServerClosedChannel { code, message, .. }
        | Error::ServerClosedConnection { code, message } => format!("{message} ({code})"),
        Error::ConnectionTimeout => "no answer within the connection timeout".into(),
        Error::UrlNoSocketAddrs { .. } => "its name has no address".into(),
        other => other.to_string(),
    }
}

/// Whether trying again will not help. AMQP 0-9-1 reply codes: 403 access-refused, 406
/// precondition-failed, 530 not-allowed (RabbitMQ: no such vhost, or none for this user).
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::InvalidCredentials => true,
        Error::ServerClosedChannel { code, .. } | Error::ServerClosedConnection { code, .. } => {
            matches!(code, 403 | 406 | 530)
        }
        _ => false,
    }
}
