//! What both programs of the async peer share: the visit on the wire, the queue and the options.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde::{Deserialize, Serialize};

/// The name of the exchange and of the queue.
pub const QUEUE: &str = "axum.visits";

/// The routing key between them.
pub const ROUTING_KEY: &str = "visit";

/// One visit, with the same facts as Pixel's.
#[derive(Serialize, Deserialize)]
pub struct Visit {
    pub received_at: jiff::Timestamp,
    pub ip: String,
    pub referrer: Option<String>,
    pub user_agent: Option<String>,
    pub host: Option<String>,
    pub path: String,
    pub query: Option<String>,
    pub accept_language: Option<String>,
    pub dnt: bool,
    pub gpc: bool,
}

/// The value of `--name VALUE` on the command line.
pub fn option(name: &str) -> String {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).unwrap_or_else(|| panic!("{name} is missing"))
}

pub async fn connect() -> lapin::Result<Connection> {
    Connection::connect(&option("--amqp-url"), ConnectionProperties::default()).await
}

/// The durable exchange and quorum queue, as Pixel has them.
pub async fn declare(channel: &Channel) -> lapin::Result<()> {
    let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.exchange_declare(QUEUE.into(), ExchangeKind::Direct, exchange, FieldTable::default()).await?;
    channel.queue_declare(QUEUE.into(), queue, arguments).await?;
    channel
        .queue_bind(
            QUEUE.into(),
            QUEUE.into(),
            ROUTING_KEY.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}
