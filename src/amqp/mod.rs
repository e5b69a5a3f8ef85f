//! RabbitMQ through amiquip: addresses, connections and the queue that both services declare.

mod inbox;
mod publisher;
mod url;

pub use self::inbox::AmqpInbox;
pub use self::publisher::AmqpPublisher;
pub use self::url::AmqpUrl;

use std::time::Duration;

use amiquip::{
    AmqpValue, Channel, Connection, ConnectionTuning, Error, ExchangeDeclareOptions, ExchangeType,
    FieldTable, QueueDeclareOptions,
};

use crate::broker::ConnectError;
use crate::record::{Inbox, InboxConnector};
use crate::relay::{Connector, Publisher};

/// The routing key of a visit.
const ROUTING_KEY: &str = "visit";
/// RabbitMQ 4 dead-letters after 20 redeliveries by default; a recorder that waits for a full disk may
/// see more.
const DELIVERY_LIMIT: i64 = 1000;
/// amiquip takes this much more into memory before `basic_publish` blocks, in bytes.
const WRITES_HIGH_WATER: usize = 1 << 20;
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

    /// Connects to the first node that answers, from the one that worked last on, and declares the
    /// queue. Where none does, a refusal is what it returns before an absence.
    fn connect_any(&mut self) -> Result<(Connection, Channel, String), ConnectError> {
        let mut failures = Vec::new();
        for _ in 0..self.urls.len() {
            let url = &self.urls[self.next % self.urls.len()];
            match connect(url, &self.queue) {
                Ok((connection, channel)) => return Ok((connection, channel, url.to_string())),
                Err(error) => failures.push(error),
            }
            self.next += 1;
        }
        let refusal = failures.iter().position(|failure| matches!(failure, ConnectError::Refused(_)));
        Err(failures.swap_remove(refusal.unwrap_or(0)))
    }
}

impl Connector for Broker {
    fn connect(&mut self) -> Result<Box<dyn Publisher>, ConnectError> {
        let (connection, channel, address) = self.connect_any()?;
        // Should this connection be lost, the next node is tried first.
        self.next += 1;
        let publisher = AmqpPublisher::start(connection, channel, address, self.queue.clone());
        Ok(Box::new(publisher.map_err(unavailable)?))
    }
}

impl InboxConnector for Broker {
    fn connect(&mut self) -> Result<Box<dyn Inbox>, ConnectError> {
        let (connection, channel, address) = self.connect_any()?;
        self.next += 1;
        let inbox = AmqpInbox::start(connection, channel, address, &self.queue);
        Ok(Box::new(inbox.map_err(unavailable)?))
    }
}

fn connect(url: &AmqpUrl, queue: &str) -> Result<(Connection, Channel), ConnectError> {
    let tuning = ConnectionTuning::default()
        .buffered_writes_high_water(WRITES_HIGH_WATER)
        .buffered_writes_low_water(0);
    let opened = if url.is_tls() {
        Connection::open_tuned(url.secret(), tuning)
    } else {
        Connection::insecure_open_tuned(url.secret(), tuning)
    };
    let explain = |error: Error| {
        let why = format!("the broker at {url}: {}", reason(&error));
        if is_refusal(&error) { ConnectError::Refused(why) } else { ConnectError::Unavailable(why) }
    };
    let mut connection = opened.map_err(explain)?;
    let channel = connection.open_channel(None).map_err(explain)?;
    if let Err(error) = declare(&channel, queue) {
        let cause = explain(error);
        // A channel that the server closed is closed once more by its destructor, and that may wait.
        close_apart((channel, connection));
        return Err(cause);
    }
    Ok((connection, channel))
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

fn unavailable(error: Error) -> ConnectError {
    ConnectError::Unavailable(reason(&error))
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

/// Lets go of a channel or connection on a thread of its own: their destructors talk to the broker,
/// and hang for as long as it is silent or blocks publishers.
fn close_apart<T: Send + 'static>(closing: T) {
    let spawned = std::thread::Builder::new().name("closing".into()).spawn(move || drop(closing));
    if let Err(error) = spawned {
        log::warn!("failed to start a thread that closes a connection: {error}");
    }
}

/// Why a connection ended: amiquip tells only whom closes it. Waits for its word for a second at most.
fn cause(connection: Connection) -> String {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let ask = move || {
        let cause = match connection.close() {
            Ok(()) => "it was closed".into(),
            Err(error) => reason(&error),
        };
        // Nobody waits for it any more after a second.
        let _ = sender.send(cause);
    };
    let spawned = std::thread::Builder::new().name("closing".into()).spawn(ask);
    spawned
        .ok()
        .and_then(|_| receiver.recv_timeout(Duration::from_secs(1)).ok())
        .unwrap_or_else(|| "the connection ended".into())
}
