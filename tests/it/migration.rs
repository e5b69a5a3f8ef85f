//! The .NET services are replaced while messages are published: with the commands of docs/MIGRATION.md, and a queue and
//! exchanges as MassTransit declares them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use amiquip::{
    AmqpProperties, Channel, ConsumerMessage, ConsumerOptions, Exchange, ExchangeDeclareOptions,
    ExchangeType, FieldTable, Publish, QueueDeclareOptions,
};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::get;
use crate::support::fixtures::Services;
use crate::support::launch::Launch;
use crate::support::output::Output;
use crate::support::program::CONSUMING;
use crate::support::shell::shell;
use crate::support::wait::wait_until;

const MESSAGE: &str = "Pixel.Messages.Visits.Commands:RecordVisitCommand";
const CONSUMER: &str = "RecordVisitCommand";
const FAILED: &str = "RecordVisitCommand_error";

fn captured(name: &str) -> Outcome<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masstransit");
    Ok(fs::read_to_string(folder.join(format!("{name}.body")))?)
}

/// The document's blocks of commands.
fn commands() -> Outcome<Vec<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/MIGRATION.md"))?;
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_string()));
    Ok(blocks.collect())
}

fn exchange<'a>(channel: &'a Channel, name: &str) -> amiquip::Result<Exchange<'a>> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(ExchangeType::Fanout, name, durable)
}

/// What publisher and consumer declare (8.1.3, as captured), and the queue of what failed.
fn declare(channel: &Channel) -> amiquip::Result<()> {
    let message = exchange(channel, MESSAGE)?;
    for base in ["Pixel.Shared.Messages:PixelMessage", "Pixel.Shared.Messages:IPixelMessage"] {
        exchange(channel, base)?.bind_to_source(&message, "", FieldTable::new())?;
    }
    for name in [CONSUMER, FAILED] {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name, durable)?.bind(&exchange(channel, name)?, "", FieldTable::new())?;
    }
    exchange(channel, CONSUMER)?.bind_to_source(&message, "", FieldTable::new())
}

fn envelope() -> AmqpProperties {
    AmqpProperties::default()
        .with_content_type("application/vnd.masstransit+json".into())
        .with_delivery_mode(2)
}

/// What runs until it is told to end, and what comes of it.
struct Running<T> {
    count: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<T, String>>,
}

impl<T: Send + 'static> Running<T> {
    fn start(work: impl FnOnce(&AtomicU64, &AtomicBool) -> Outcome<T> + Send + 'static) -> Self {
        let (count, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, told) = (count.clone(), ends.clone());
        let thread = thread::spawn(move || work(&counted, &told).map_err(|error| error.to_string()));
        Running { count, ends, thread }
    }

    fn wait_for(&self, more: u64) -> Outcome {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        wait_until("more messages", || self.count.load(Ordering::Relaxed) >= wanted)
    }

    fn stop(self) -> Outcome<T> {
        self.ends.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "it panicked")??)
    }
}

/// Publishes visits as the .NET service does, each confirmed; ends with how many.
fn publisher(broker: &Broker) -> Outcome<Running<u64>> {
    let mut connection = broker.connect()?;
    let template = captured("mt813-default")?;
    Ok(Running::start(move |count, ends| {
        let channel = connection.open_channel(None)?;
        channel.enable_publisher_confirms()?;
        let confirms = channel.listen_for_publisher_confirms()?;
        while !ends.load(Ordering::Relaxed) {
            let n = count.load(Ordering::Relaxed);
            let body = template
                .replace("01M8644ECG4PJKWC6TJP5BVZD4", &format!("01M8644ECG{n:016}"))
                .replace(r#"Mozilla/5.0 \"quoted\" (X11; Linux) \uD83D\uDE00"#, &format!("visit {n}"));
            channel.basic_publish(MESSAGE, Publish::with_properties(body.as_bytes(), "", envelope()))?;
            confirms.recv_timeout(Duration::from_secs(30))?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        connection.close()?;
        Ok(count.load(Ordering::Relaxed))
    }))
}

/// Consumes as the .NET service does; ends with the bodies that it has recorded.
fn consumer(broker: &Broker) -> Outcome<Running<Vec<String>>> {
    let mut connection = broker.connect()?;
    Ok(Running::start(move |count, ends| {
        let channel = connection.open_channel(None)?;
        channel.qos(0, 16, false)?;
        let consumer = channel.basic_consume(CONSUMER, ConsumerOptions::default())?;
        let mut recorded = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let Ok(ConsumerMessage::Delivery(delivery)) =
                consumer.receiver().recv_timeout(Duration::from_millis(50))
            else {
                continue;
            };
            recorded.push(String::from_utf8_lossy(&delivery.body).into_owned());
            delivery.ack(&channel)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        // A cancel with deliveries on their way would end the connection before the last ack.
        std::mem::forget(consumer);
        connection.close()?;
        Ok(recorded)
    }))
}

/// The commands that the document calls, those of this broker, in a folder for the PATH.
fn tools(broker: &Broker, port: u16, folder: &Path) -> Outcome {
    let control = broker.nodes[0].rabbitmqctl()?;
    let mut script = "#!/bin/sh\nexec env".to_string();
    for (name, value) in control.get_envs() {
        let value = value.unwrap_or_default().to_string_lossy();
        script += &format!(" '{}={value}'", name.to_string_lossy());
    }
    for word in [control.get_program()].into_iter().chain(control.get_args()) {
        script += &format!(" '{}'", word.to_string_lossy());
    }
    fs::write(folder.join("rabbitmqctl"), script + " \"$@\"\n")?;
    let address = format!("http://127.0.0.1:{port}/cli/rabbitmqadmin");
    let fetched = Command::new("curl").args(["-fsS", &address]).output()?;
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    fs::write(folder.join("admin.py"), fetched.stdout)?;
    let admin =
        format!("#!/bin/sh\nexec python3 '{}' --port {port} \"$@\"\n", folder.join("admin.py").display());
    fs::write(folder.join("rabbitmqadmin"), admin)?;
    for name in ["rabbitmqctl", "rabbitmqadmin"] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// How often each visit stands in the two files.
fn counts(recorded: &[String], output: &Output) -> BTreeMap<u64, usize> {
    let number = |text: &str| text.split_once("visit ")?.1.split(['|', '"']).next()?.parse().ok();
    let mut counts = BTreeMap::new();
    for n in recorded.iter().chain(&output.lines()).filter_map(|line| number(line)) {
        *counts.entry(n).or_insert(0) += 1;
    }
    counts
}

/// Before, both recorded for a while, and what came then was in both files.
#[test]
fn the_steps_of_migration_md_lose_and_double_no_visit() -> Outcome {
    let (broker, port) = Broker::managed()?;
    let folder = tempfile::tempdir()?;
    tools(&broker, port, folder.path())?;
    let run =
        |commands: &str| shell(folder.path(), &format!("set -e; PATH=\"$PWD:$PATH\"\n{commands}"), "sh");
    let [start, unbind, shovel, delete, finish] = &commands()?[..] else {
        return Err("docs/MIGRATION.md has other commands".into());
    };
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    declare(&channel)?;
    let error = captured("mt813-error")?;
    channel.basic_publish(FAILED, Publish::with_properties(error.as_bytes(), "", envelope()))?;

    let (publisher, consumer) = (publisher(&broker)?, consumer(&broker)?);
    consumer.wait_for(200)?;
    let recorded = consumer.stop()?;
    publisher.wait_for(200)?;

    let words: Vec<&str> = start.split_whitespace().collect();
    assert_eq!(words[0], "pixel-storage");
    let plain = Launch::new("pixel-storage")?.without("output").with("amqp-url", broker.url());
    let launch = words[1..].iter().fold(plain, |launch, word| launch.argument(word));
    let output = Output::at(launch.folder().join("visits.log"));
    let mut storage = launch.spawn()?;
    storage.wait_for_log(&format!("{CONSUMING}pixel.visits"))?;
    publisher.wait_for(200)?;
    run(unbind)?;
    publisher.wait_for(200)?;
    run(shovel)?;
    wait_until("the .NET queues to be empty", || {
        [CONSUMER, FAILED].iter().all(|queue| broker.waiting(queue).is_ok_and(|waiting| waiting == 0))
    })?;
    wait_until("the shovels' end", || {
        let left = broker.nodes[0].control(&["list_parameters"]);
        left.is_ok_and(|left| !String::from_utf8_lossy(&left.stdout).contains("shovel"))
    })?;
    run(delete)?;

    let mut http = Services::new(&broker.url(), "pixel.visits")?.http.start()?;
    get(http.address()?, "/track", &[("User-Agent", "a visit of pixel-http")])?;
    publisher.wait_for(200)?;
    let published = publisher.stop()?;
    let before = u64::try_from(recorded.len())?;
    // Of those that failed, and of pixel-http, there is one each.
    output.wait_for_lines(usize::try_from(published - before)? + 2)?;
    let doubled = storage.admin()?.metric("pixel_visits_duplicate_total")?;
    assert!(doubled >= 200.0, "what came between two steps was in both queues, and dropped: {doubled}");
    storage.stop()?;
    run(finish)?;
    let later = Launch::new("pixel-storage")?.with("amqp-url", broker.url()).with("output", &output.path);
    let mut storage = later.start()?;
    get(http.address()?, "/track", &[])?;
    output.wait_for_lines(usize::try_from(published - before)? + 3)?;
    storage.stop()?;
    http.stop()?;
    let counts = counts(&recorded, &output);
    assert!(counts.keys().copied().eq(0..published), "some of {published} visits are nowhere");
    assert!(counts.values().all(|count| *count == 1), "some are there more than once");
    assert_eq!(broker.waiting("pixel.visits.dead")?, 0);
    output.audit_finds_nothing().map(drop)
}
