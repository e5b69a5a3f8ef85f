//! The exchange and the queues that both services declare.

use amiquip::{AmqpValue, Channel, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};

/// The routing key of a visit.
pub(super) const ROUTING_KEY: &str = "visit";
/// RabbitMQ 4 dead-letters after 20 redeliveries by default; a recorder that waits for a full disk may
/// see more.
const DELIVERY_LIMIT: i64 = 1000;
/// The longest queue name: with `.dead` behind it, it must fit AMQP's short string of 255 bytes.
pub(crate) const QUEUE_NAME_MAX_BYTES: usize = 250;

/// Where what cannot be read goes: the exchange, and the queue that is bound to it.
pub(super) fn dead_letters(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Declares exchange, queue and dead letters as the contract has them. Doing so again changes nothing;
/// a queue that is there with other arguments is refused by the broker (406).
pub(super) fn declare(channel: &Channel, queue: &str) -> amiquip::Result<()> {
    let durable = || ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let text = |value: &str| AmqpValue::LongString(value.to_string());
    let quorum = |arguments: Vec<(&str, AmqpValue)>| {
        let mut table = FieldTable::new();
        table.insert("x-queue-type".into(), text("quorum"));
        table.extend(arguments.into_iter().map(|(name, value)| (name.to_string(), value)));
        QueueDeclareOptions { durable: true, arguments: table, ..QueueDeclareOptions::default() }
    };
    let dead = dead_letters(queue);
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
