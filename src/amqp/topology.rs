//! The exchange and the queues that both services declare.

use amiquip::{
    AmqpValue, Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable,
    QueueDeclareOptions,
};

use crate::queue::Shard;

/// The routing key of a visit.
pub(super) const ROUTING_KEY: &str = "visit";
/// RabbitMQ 4 dead-letters after 20 redeliveries by default; a recorder that waits for a full disk may
/// see more.
const DELIVERY_LIMIT: i64 = 1000;
/// Past its limit the queue of dead letters, which has none of its own, would drop them, and each look at them is
/// a delivery. RabbitMQ 4 would do so after 20. -1 is no limit there, and to RabbitMQ 3 it is none at all.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// AMQP 0-9-1: the queue or exchange is there with other arguments.
pub(super) const PRECONDITION_FAILED: u16 = 406;
/// AMQP 0-9-1: the user is not permitted to do that.
pub(super) const ACCESS_REFUSED: u16 = 403;
/// The longest queue name: with `.dead` behind it, it must fit AMQP's short string of 255 bytes.
pub(crate) const QUEUE_NAME_MAX_BYTES: usize = 250;

/// The queue of a shard, and its exchange, which has the same name.
pub(crate) fn queue_of(queue: &str, shard: Shard) -> String {
    shard.map_or_else(|| queue.to_string(), |shard| format!("{queue}.{shard}"))
}

/// Where what cannot be read goes: the exchange, and the queue that is bound to it.
pub(super) fn dead_letters(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Declares exchange, queue and dead letters as the contract has them. Doing so again changes nothing;
/// a queue that is there with other arguments is refused by the broker (406).
pub(super) fn declare(connection: &mut Connection, channel: &Channel, queue: &str) -> amiquip::Result<()> {
    let dead = dead_letters(queue);
    channel.exchange_declare(ExchangeType::Fanout, &dead, durable())?;
    declare_dead(connection, channel, &dead)?;
    channel.queue_bind(&dead, &dead, "", FieldTable::new())?;
    let arguments = [
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

/// Declares a fanout exchange, as MassTransit does for each type of message, and has what comes to it come to `queue`.
pub(super) fn bind_to_fanout(channel: &Channel, exchange: &str, queue: &str) -> amiquip::Result<()> {
    channel.exchange_declare(ExchangeType::Fanout, exchange, durable())?;
    channel.queue_bind(queue, exchange, "", FieldTable::new())
}

/// Declares the queue of dead letters. One that an older Pixel declared has no delivery limit; it is taken as it
/// is, since nothing else can be done with it while it holds letters.
fn declare_dead(connection: &mut Connection, channel: &Channel, dead: &str) -> amiquip::Result<()> {
    let limit = ("x-delivery-limit", AmqpValue::LongLongInt(DEAD_DELIVERY_LIMIT));
    // A refusal closes the channel that it comes on.
    let apart = connection.open_channel(None)?;
    match apart.queue_declare(dead, quorum([limit])) {
        Ok(_) => apart.close(),
        Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, .. }) => {
            channel.queue_declare(dead, quorum([]))?;
            log::warn!(
                "the queue {dead} has no delivery limit: RabbitMQ 4 drops a dead letter after 20 deliveries. Stop \
                 pixel-storage, run `pixel-storage replay`, delete the queue, and start pixel-storage"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn durable() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() }
}

fn quorum<const N: usize>(arguments: [(&str, AmqpValue); N]) -> QueueDeclareOptions {
    let mut table = FieldTable::new();
    table.insert("x-queue-type".into(), text("quorum"));
    table.extend(arguments.into_iter().map(|(name, value)| (name.to_string(), value)));
    QueueDeclareOptions { durable: true, arguments: table, ..QueueDeclareOptions::default() }
}

fn text(value: &str) -> AmqpValue {
    AmqpValue::LongString(value.to_string())
}
