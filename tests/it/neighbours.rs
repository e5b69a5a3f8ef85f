//! Pixel beside other systems at one broker: what docs/MESSAGES.md promises them, and MassTransit's messages.

use std::fs;
use std::path::Path;

use amiquip::{
    AmqpProperties, AmqpValue, Exchange, ExchangeDeclareOptions, ExchangeType, FieldTable,
    QueueDeclareOptions,
};
use serde_json::Value;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::get;
use crate::support::fixtures::Services;
use crate::support::launch::Launch;
use crate::support::message::{LINE, VISIT, numbered};
use crate::support::program::CONSUMING;
use crate::support::wait::wait_until;

const MASSTRANSIT: &str = "application/vnd.masstransit+json";
const MESSAGE_EXCHANGE: &str = "Pixel.Messages.Visits.Commands:RecordVisitCommand";

fn document(name: &str) -> Outcome<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name))?)
}

fn captured(name: &str) -> Outcome<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masstransit");
    Ok(fs::read(folder.join(format!("{name}.body")))?)
}

/// Binds a queue of another system's to an exchange.
fn bind(broker: &Broker, queue: &str, exchange: &str, key: &str, type_: ExchangeType) -> Outcome {
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let exchange: Exchange<'_> = channel.exchange_declare(type_, exchange, durable)?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue, durable)?.bind(&exchange, key, FieldTable::new())?;
    Ok(())
}

#[test]
fn what_masstransit_publishes_is_recorded_once_with_its_own_time() -> Outcome {
    let broker = Broker::shared()?;
    // The original's consumer was there first, and gets its copy until somebody unbinds it.
    bind(broker, "RecordVisitCommand", MESSAGE_EXCHANGE, "", ExchangeType::Fanout)?;
    let services = Services::new(&broker.url(), "beside-dotnet")?;
    let storage = services.storage.with("format", "pipe").with("masstransit-exchange", MESSAGE_EXCHANGE);
    let mut storage = storage.start()?;
    let publish = |body: &[u8], id: Option<&str>| {
        let properties = AmqpProperties::default().with_content_type(MASSTRANSIT.into());
        let properties = match id {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        broker.publish(MESSAGE_EXCHANGE, body, properties)
    };
    let first = captured("mt813-default")?;
    publish(&first, Some("f40f0000-043c-5af5-65b1-08df49f4d2b1"))?;
    for name in ["mt813-nulls", "mt858-activity", "js013", "mt813-activity"] {
        publish(&captured(name)?, None)?;
    }
    // After a lost confirm it comes in a new envelope.
    let again = String::from_utf8(first)?.replace("f40f0000-043c-5af5-65b1", "00000000-043c-5af5-65b1");
    publish(again.as_bytes(), Some("00000000-043c-5af5-65b1-08df49f4d2b1"))?;
    publish(&captured("js013-bare")?, None)?;
    publish(&captured("mt813-fault")?, None)?;
    broker.publish(
        MESSAGE_EXCHANGE,
        &captured("mt813-rawjson")?,
        AmqpProperties::default().with_content_type("application/json".into()),
    )?;
    for name in ["js013-bare", "mt813-fault", "mt813-rawjson"] {
        let letter = broker.take("beside-dotnet.dead")?.delivery;
        assert_eq!(letter.body, captured(name)?, "{name} is set aside whole");
    }
    storage.admin()?.wait_for_metric("pixel_visits_duplicate_total", |count| count == 1.0)?;
    let lines = services.output.wait_for_lines(5)?;
    let agent = r#"Mozilla/5.0 "quoted" (X11; Linux) 😀"#;
    assert_eq!(
        lines[..4],
        [
            format!("2026-11-24T06:33:16.4387564Z|https://example.com/página?a=1&b=<2>|{agent}|192.168.1.1"),
            "2026-11-24T06:33:17.1124302Z|null|null|192.168.1.1".into(),
            format!("2026-11-24T06:33:19.3024874Z|https://example.com/página?a=1&b=<2>|{agent}|192.168.1.1"),
            "2026-11-24T06:33:20.3230000Z|null|js-client/0|192.168.0.0".into(),
        ]
    );
    assert_eq!(lines.len(), 5);
    assert_eq!(broker.waiting("RecordVisitCommand")?, 9);
    storage.stop()?;
    services.output.audit_finds_nothing().map(drop)
}

/// Whether a value is as a part of the schema says, as far as the schema goes.
fn fits(schema: &Value, value: &Value) -> bool {
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let is = |name: &Value| match name.as_str() {
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    let longest = schema["maxLength"].as_u64().unwrap_or(u64::MAX);
    types.iter().any(is) && value.as_str().is_none_or(|text| text.chars().count() as u64 <= longest)
}

#[test]
fn what_is_published_is_what_messages_md_and_the_schema_say() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "documented")?;
    let mut http = services.http.start()?;
    http.wait_for_log("connected to the broker")?;
    // A second queue gets a copy of everything.
    bind(broker, "copies", "documented", "visit", ExchangeType::Direct)?;
    let headers = [("Referer", "https://google.com"), ("DNT", "1"), ("User-Agent", "Agent 1")];
    assert_eq!(get(http.address()?, "/track?x=1", &headers)?.status, 200);
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    let schema: Value = serde_json::from_str(&document("message.schema.json")?)?;
    let properties = schema["properties"].as_object().ok_or("no properties")?;
    let mut visits = 0;
    while visits < 2 {
        let message = broker.take("copies")?.delivery;
        let said = &message.properties;
        assert_eq!(said.content_type().as_deref(), Some("application/x-ndjson"));
        assert_eq!(said.type_().as_deref(), Some("RecordVisitCommand"));
        assert_eq!(said.delivery_mode(), &Some(2));
        let headers = said.headers().as_ref().ok_or("no headers")?;
        let Some(AmqpValue::LongString(producer)) = headers.get("pixel-producer") else {
            return Err("no producer".into());
        };
        assert_eq!(headers.get("pixel-sequence"), Some(&AmqpValue::LongLongInt(1 + visits)));
        assert_eq!(said.message_id(), &Some(format!("{producer}:{}", 1 + visits)));
        let Some(AmqpValue::LongLongInt(count)) = headers.get("pixel-count") else {
            return Err("no count".into());
        };
        let body = String::from_utf8(message.body)?;
        assert_eq!(body.lines().count() as i64, *count);
        for line in body.lines() {
            let visit: Value = serde_json::from_str(line)?;
            let visit = visit.as_object().ok_or("no object")?;
            for (name, value) in visit {
                let property = properties.get(name).ok_or_else(|| format!("the schema has no {name}"))?;
                assert!(fits(property, value), "{name} is {value}, {property}");
            }
            for name in schema["required"].as_array().ok_or("nothing is required")? {
                assert!(visit.contains_key(name.as_str().unwrap_or_default()), "{name} is not in {line}");
            }
        }
        visits += count;
    }
    // It was amiquip's product and version, and no name.
    let connections = broker.nodes[0].control(&["list_connections", "client_properties"])?;
    let connections = String::from_utf8_lossy(&connections.stdout).into_owned();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (name, value) in [
        ("connection_name", format!("pixel-http@{host}")),
        ("product", "pixel-http".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ] {
        let said = format!("{{\"{name}\",\"{value}\"}}");
        assert!(connections.lines().any(|line| line.contains(&said)), "no {said} in {connections}");
    }
    http.stop()
}

/// A user of a vhost of its own with these permissions: configure, write, read.
fn user(broker: &Broker, name: &str, permissions: [&str; 3]) -> Outcome<String> {
    let node = &broker.nodes[0];
    node.control(&["add_user", name, "sesame"])?;
    let [configure, write, read] = permissions;
    node.control(&["set_permissions", "-p", "restricted", name, configure, write, read])?;
    Ok(format!("amqp://{name}:sesame@127.0.0.1:{}/restricted", node.port))
}

#[test]
fn the_permissions_of_messages_md_are_enough() -> Outcome {
    let broker = Broker::shared()?;
    broker.nodes[0].control(&["add_vhost", "restricted"])?;
    let own = r"^pixel\.visits(\.dead|\.held.*)?$";
    let rows = [
        ("declaring", [own, own, own]),
        ("publishing", ["^$", r"^pixel\.visits$", "^$"]),
        ("consuming", ["^$", r"^pixel\.visits\.dead$", r"^pixel\.visits$"]),
        ("replaying", ["^$", r"^pixel\.visits$", r"^pixel\.visits\.dead$"]),
    ];
    let text = document("MESSAGES.md")?;
    let mut urls = Vec::new();
    for (name, permissions) in rows {
        let [configure, write, read] = permissions;
        let row = format!("| `{configure}` | `{write}` | `{read}` |");
        assert!(text.contains(&row), "docs/MESSAGES.md has no {row}");
        urls.push(user(broker, name, permissions)?);
    }
    // Without a topology, and none to be declared, both say what is missing.
    let without = |url: &str| Services::new(url, "pixel.visits");
    let mut early = without(&urls[1])?.http.with("no-declare", "true").start()?;
    early.wait_for_log("no exchange 'pixel.visits'")?;
    let services = without(&urls[0])?;
    let (mut http, mut storage) = (services.http.start()?, services.storage.start()?);
    get(http.address()?, "/track", &[])?;
    services.output.wait_for_lines(1)?;
    http.stop()?;
    storage.stop()?;
    // By now somebody has declared it.
    early.wait_for_log("connected to the broker")?;
    let consuming = without(&urls[2])?;
    let mut storage = consuming.storage.clone().with("format", "pipe").with("no-declare", "true").start()?;
    get(early.address()?, "/track", &[])?;
    consuming.output.wait_for_lines(1)?;
    // One visit of two cannot be read: pixel-storage publishes it to the dead letters.
    let mut connection = amiquip::Connection::insecure_open(&urls[1])?;
    let channel = connection.open_channel(None)?;
    let body = format!("{VISIT}\nnonsense\n");
    let publish = amiquip::Publish::with_properties(body.as_bytes(), "visit", numbered(9, 1, 2));
    channel.basic_publish("pixel.visits", publish)?;
    assert_eq!(consuming.output.wait_for_lines(2)?[1], LINE);
    storage.admin()?.wait_for_metric("pixel_dead_lettered_visits_total", |count| count == 1.0)?;
    let replay = Launch::new("pixel-storage")?.argument("replay").argument("--no-declare");
    let replay = replay.with("amqp-url", &urls[3]);
    wait_until("its dead letter", || {
        replay
            .run()
            .is_ok_and(|(status, said, _)| status == 0 && said.starts_with("1 dead letters published"))
    })?;
    early.stop()?;
    storage.stop()
}

/// It was bound to one queue of several, or each would have a copy.
#[test]
fn of_several_shards_one_is_bound_to_masstransit_s_exchange() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "shards-beside")?;
    let launch =
        services.storage.with("shards", "2").with("masstransit-exchange", "Other:RecordVisitCommand");
    let mut storages = Vec::new();
    for n in 0..2 {
        let mut storage = launch.clone().with("shard", n.to_string()).start()?;
        storage.wait_for_log(CONSUMING)?;
        storages.push(storage);
    }
    let properties = AmqpProperties::default().with_content_type(MASSTRANSIT.into());
    broker.publish("Other:RecordVisitCommand", &captured("mt813-default")?, properties)?;
    storages[0].admin()?.wait_for_metric("pixel_visits_written_total", |count| count == 1.0)?;
    assert_eq!(storages[1].admin()?.metric("pixel_visits_written_total")?, 0.0);
    Ok(())
}
