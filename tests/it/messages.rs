//! What goes through the queue: pixel-http's own messages, other clients', large ones, unreadable ones.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, Publish};
use pixel::queue::VisitStore;
use pixel::spool::Spool;

use crate::Outcome;
use crate::support::admin::Admin;
use crate::support::broker::Broker;
use crate::support::client::get;
use crate::support::fixtures::{Embedded, Services};
use crate::support::memory::MemoryLimit;
use crate::support::message::{LINE, VISIT, named, numbered, numbered_by};
use crate::support::output::Output;
use crate::support::program::Program;
use crate::support::wait::{wait_until, wait_up_to};

/// pixel-storage by itself on a queue of `broker`.
fn storage_alone(broker: &Broker, queue: &str, format: &str) -> Outcome<(Program, Output)> {
    let services = Services::new(&broker.url(), queue)?;
    Ok((services.storage.with("format", format).start()?, services.output))
}

#[test]
fn a_visit_reaches_the_file_whichever_service_starts_first() -> Outcome {
    let broker = Broker::shared()?;
    for (queue, storage_first) in [("http-first", false), ("storage-first", true)] {
        let services = Services::new(&broker.url(), queue)?;
        // Without a format, it is pipe.
        let storage = services.storage.with("format", "");
        let early = if storage_first { Some(storage.start()?) } else { None };
        let mut http = services.http.start()?;
        let headers = [("Referer", "https://google.com"), ("User-Agent", "SomeUserAgent 1.2.3")];
        assert_eq!(get(http.address()?, "/track", &headers)?.status, 200);
        let admin = http.admin()?;
        let mut storage = match early {
            Some(storage) => storage,
            None => {
                // Published before any storage service has ever been there.
                admin.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
                storage.start()?
            }
        };
        let line = services.output.wait_for_lines(1)?.remove(0);
        assert!(line.ends_with("|https://google.com|SomeUserAgent 1.2.3|127.0.0.1"), "{line}");
        admin.wait_for_metric("pixel_visits_published_total", |count| count == 1.0)?;
        assert_eq!(admin.metric("pixel_broker_connected")?, 1.0);
        storage.admin()?.wait_for_metric("pixel_visits_written_total", |count| count == 1.0)?;
        http.stop()?;
        storage.stop()?;
        services.output.audit_finds_nothing()?;
    }
    Ok(())
}

#[test]
fn exchanges_queues_and_their_arguments_are_as_they_are_documented() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "documented")?;
    let mut http = services.http.start()?;
    http.admin()?.wait_for_metric("pixel_broker_connected", |is_connected| is_connected == 1.0)?;
    let list = |arguments: &[&str]| -> Outcome<BTreeSet<String>> {
        let listed = broker.nodes[0].control(&[arguments, &["--quiet", "--no-table-headers"]].concat())?;
        let lines = String::from_utf8(listed.stdout)?;
        Ok(lines.lines().filter(|line| line.contains("documented")).map(str::to_string).collect())
    };
    let exchanges = list(&["list_exchanges", "name", "type", "durable"])?;
    assert_eq!(
        exchanges,
        ["documented\tdirect\ttrue", "documented.dead\tfanout\ttrue"].map(str::to_string).into()
    );
    let bindings = list(&["list_bindings", "source_name", "destination_name", "routing_key"])?;
    for binding in ["documented\tdocumented\tvisit", "documented.dead\tdocumented.dead\t"] {
        assert!(bindings.contains(binding), "{bindings:?}");
    }
    let queues = list(&["list_queues", "name", "durable", "arguments"])?;
    let arguments = |queue: &str| -> Outcome<BTreeSet<String>> {
        let found = queues.iter().find_map(|line| line.strip_prefix(&format!("{queue}\ttrue\t[")));
        let found =
            found.and_then(|rest| rest.strip_suffix(']')).ok_or_else(|| format!("{queue}: {queues:?}"))?;
        Ok(found
            .split_inclusive('}')
            .map(|argument| argument.trim_start_matches([',', ' ']).to_string())
            .collect())
    };
    let expected = [
        "{\"x-queue-type\",\"quorum\"}",
        "{\"x-single-active-consumer\",true}",
        "{\"x-dead-letter-exchange\",\"documented.dead\"}",
        "{\"x-dead-letter-strategy\",\"at-least-once\"}",
        "{\"x-overflow\",\"reject-publish\"}",
        "{\"x-delivery-limit\",1000}",
    ];
    assert_eq!(arguments("documented")?, expected.map(str::to_string).into());
    assert!(arguments("documented.dead")?.contains("{\"x-queue-type\",\"quorum\"}"), "{queues:?}");
    http.stop()
}

#[test]
fn another_client_s_message_is_written_and_recognised_by_its_id() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "foreign", "pipe")?;
    let publish = |body: &str, content_type: &str, properties: AmqpProperties| {
        broker.publish("foreign", body.as_bytes(), properties.with_content_type(content_type.into()))
    };
    publish(VISIT, "application/json", AmqpProperties::default())?;
    publish(VISIT, "application/json", AmqpProperties::default())?;
    assert_eq!(output.wait_for_lines(2)?, [LINE, LINE], "without an id, twice is twice");
    for _ in 0..3 {
        publish(VISIT, "application/json", named("a"))?;
    }
    publish(&format!("{VISIT}\n{VISIT}\n"), "application/x-ndjson", named("b"))?;
    assert_eq!(output.wait_for_lines(5)?.len(), 5);
    // It counts what is committed, and lines can be read a moment before they are.
    storage.admin()?.wait_for_metric("pixel_visits_duplicate_total", |count| count == 2.0)?;
    storage.stop()?;
    let report = output.audit_finds_nothing()?;
    assert_eq!(
        (&report["foreign"]["written"], &report["foreign"]["duplicates"]),
        (&5.into(), &2.into()),
        "{report}"
    );
    Ok(())
}

#[test]
fn a_python_client_s_message_is_written() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "pika", "pipe")?;
    let environment = storage.launch.folder().join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&environment).output()?;
    assert!(made.status.success(), "python3 -m venv: {}", String::from_utf8_lossy(&made.stderr));
    let python = environment.join("bin/python");
    let installed =
        Command::new(&python).args(["-m", "pip", "install", "--quiet", "pika==1.3.2"]).output()?;
    assert!(installed.status.success(), "pip install pika: {}", String::from_utf8_lossy(&installed.stderr));
    let script = format!(
        "import pika, uuid\n\
         connection = pika.BlockingConnection(pika.URLParameters('{}'))\n\
         channel = connection.channel()\n\
         channel.confirm_delivery()\n\
         headers = {{'pixel-producer': str(uuid.UUID(int=7)), 'pixel-sequence': 5, 'pixel-count': 1}}\n\
         body = b'''{VISIT}\\n'''\n\
         for properties in (pika.BasicProperties(message_id='x'), pika.BasicProperties(), pika.BasicProperties(headers=headers)):\n\
         \tfor _ in range(2):\n\
         \t\tchannel.basic_publish('pika', 'visit', body, properties, mandatory=True)\n",
        broker.url()
    );
    let ran = Command::new(&python).args(["-c", &script]).output()?;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(output.wait_for_lines(4)?, [LINE; 4], "one, two, one");
    storage.stop()
}

#[test]
fn a_message_of_which_nothing_can_be_read_ends_whole_in_the_dead_letters_and_the_rest_goes_on() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "unreadable", "pipe")?;
    let cases = [
        ("hello", AmqpProperties::default()),
        ("", AmqpProperties::default()),
        (&VISIT[..50], AmqpProperties::default()),
        (VISIT, numbered_by(0, AmqpValue::LongString("one".into()), 1)),
        (VISIT, numbered(0, -1, 1)),
        (VISIT, numbered(0, 1, 2)),
        (VISIT, numbered(0, 1, 0)),
        (VISIT, numbered(0, i64::MAX, 2)),
    ];
    for (count, (body, properties)) in cases.into_iter().enumerate() {
        broker.publish("unreadable", body.as_bytes(), properties)?;
        broker.publish("unreadable", VISIT.as_bytes(), AmqpProperties::default())?;
        assert_eq!(output.wait_for_lines(count + 1)?[count], LINE);
        let dead = broker.take("unreadable.dead")?;
        assert_eq!(String::from_utf8(dead.delivery.body)?, body, "case {count}");
    }
    storage.wait_for_log("to the dead letters: a message that cannot be read")?;
    storage.admin()?.wait_for_metric("pixel_messages_dead_lettered_total", |count| count == 8.0)?;
    storage.stop()?;
    let report = output.audit_finds_nothing()?;
    let dead = &report["producers"][0]["dead"];
    assert_eq!(dead, &serde_json::json!([[1, 2]]), "of which the headers could be read: {report}");
    Ok(())
}

/// One bad line took the 2,000 visits of its message with it.
#[test]
fn a_bad_line_goes_to_the_dead_letters_alone_and_the_rest_of_its_message_is_written() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "bad-line", "ndjson")?;
    let bad = r#"{"received_at":"yesterday"}"#;
    let body = format!("{}{bad}\n{}", format!("{VISIT}\n").repeat(1000), format!("{VISIT}\n").repeat(1000));
    let typed = |properties: AmqpProperties| properties.with_content_type("application/x-ndjson".into());
    // And again, as after a crash before it was acknowledged.
    for _ in 0..2 {
        broker.publish("bad-line", body.as_bytes(), typed(numbered(1, 1, 2001)))?;
    }
    broker.publish("bad-line", format!("{VISIT}\nhello\n{VISIT}").as_bytes(), typed(named("a")))?;
    let lines = output.wait_for_lines(2002)?;
    let numbers: Vec<u64> = lines[..2000]
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).map(|visit| visit["sequence"].as_u64()))
        .collect::<Result<Option<_>, _>>()?
        .ok_or("a visit without a number")?;
    assert!(numbers.into_iter().eq((1..=2001).filter(|number| *number != 1001)));
    for (body, id, sequence) in [
        (bad, "7f6b3ad0-43a2-4f2a-a43f-96cb9e4b3a01:1001", Some(1001)),
        (bad, "7f6b3ad0-43a2-4f2a-a43f-96cb9e4b3a01:1001", Some(1001)),
        ("hello", "a#2", None),
    ] {
        let dead = broker.take("bad-line.dead")?.delivery;
        let properties = dead.properties;
        assert_eq!(String::from_utf8(dead.body)?, body);
        assert_eq!(properties.message_id().as_deref(), Some(id));
        assert_eq!(properties.content_type().as_deref(), Some("application/x-ndjson"));
        assert_eq!(properties.delivery_mode(), &Some(2));
        let headers = properties.headers().clone().unwrap_or_default();
        assert_eq!(headers.get("pixel-sequence"), sequence.map(AmqpValue::LongLongInt).as_ref());
        assert_eq!(headers.get("pixel-count"), sequence.map(|_| AmqpValue::LongLongInt(1)).as_ref());
        assert!(matches!(headers.get("pixel-reason"), Some(AmqpValue::LongString(why)) if !why.is_empty()));
    }
    storage.wait_for_log("to the dead letters: a visit that cannot be read, 7f6b3ad0-")?;
    let admin = storage.admin()?;
    assert_eq!(admin.metric("pixel_dead_lettered_visits_total")?, 3.0);
    assert_eq!(admin.metric("pixel_visits_duplicate_total")?, 2000.0);
    storage.stop()?;
    let report = output.audit_finds_nothing()?;
    assert_eq!(report["producers"][0]["dead"], serde_json::json!([[1001, 1001]]), "{report}");
    assert_eq!(output.lines().len(), 2002);
    Ok(())
}

/// A bad line of the spool, as an older Pixel may find it after a downgrade, took its whole batch along.
#[test]
fn a_bad_line_of_the_spool_goes_to_its_dead_letters_alone() -> Outcome {
    let launch = Embedded::launch()?;
    let folder = launch.folder().join("spool");
    fill_spool(&folder, &[VISIT.as_bytes(), b"hello", VISIT.as_bytes(), b"\xff{", VISIT.as_bytes()])?;
    let pixel = Embedded::of(&launch)?;
    let lines = pixel.output.wait_for_lines(3)?;
    let sequence =
        |line: &String| serde_json::from_str::<serde_json::Value>(line).map(|v| v["sequence"].clone());
    assert_eq!(lines.iter().map(sequence).collect::<Result<Vec<_>, _>>()?, [1, 3, 5]);
    // Set aside after the ledger knows of them.
    let letters = wait_for_letters(&folder, 2)?;
    let report = pixel.output.audit_finds_nothing()?;
    assert_eq!(report["producers"][0]["dead"], serde_json::json!([[2, 2], [4, 4]]), "{report}");
    for (letter, sequence, field, visit) in
        [(&letters[0], 2, "visit", "hello"), (&letters[1], 4, "visit_latin1", "\u{ff}{")]
    {
        assert_eq!((&letter["sequence"], &letter[field]), (&sequence.into(), &visit.into()), "{letter}");
        assert_eq!(letter["producer"], report["producers"][0]["producer"]);
        assert!(letter["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
    }
    pixel.stop_and_audit()
}

/// A spool in `folder` that holds these lines, whatever they are.
fn fill_spool(folder: &Path, lines: &[&[u8]]) -> Outcome {
    let spool = Spool::open(folder, 1, 64 << 20)?;
    let mut group = lines.join(&b'\n');
    group.push(b'\n');
    Ok(spool.append(&group, u32::try_from(lines.len())?)?)
}

/// The dead letters of the spool in `folder`, once there are `count`.
fn wait_for_letters(folder: &Path, count: usize) -> Outcome<Vec<serde_json::Value>> {
    let letters = || fs::read_to_string(folder.join("dead.ndjson")).unwrap_or_default();
    wait_until("dead letters in the spool", || letters().lines().count() >= count)?;
    Ok(letters().lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

#[test]
fn a_gap_is_found_by_the_audit() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "gap", "pipe")?;
    for sequence in [1, 2, 5] {
        broker.publish("gap", VISIT.as_bytes(), numbered(0, sequence, 1))?;
    }
    output.wait_for_lines(3)?;
    // While the storage service runs, too.
    let (status, report) = output.audit()?;
    assert_eq!((status, &report["missing"]), (1, &2.into()));
    assert_eq!(report["producers"][0]["gaps"], serde_json::json!([[3, 4]]));
    storage.stop()?;
    assert!(output.ledger().exists());
    Ok(())
}

#[test]
fn duplicates_reordered_overlapping_and_foreign_messages_are_written_once() -> Outcome {
    let broker = Broker::shared()?;
    let (mut storage, output) = storage_alone(broker, "messages", "ndjson")?;
    // The queue is there, and all of it waits when the service starts again: so it comes in batches.
    storage.stop()?;
    let ranges = [
        (1, 5),
        (1, 5),
        (11, 5),
        (6, 5),
        (4, 9),
        (1, 30),
        (30, 1),
        (31, 1),
        (40, 3),
        (38, 2),
        (41, 10),
        (33, 5),
        (1, 50),
        (60, 1),
        (60, 1),
    ];
    for (n, (first, count)) in ranges.into_iter().enumerate() {
        let body = format!("{VISIT}\n").repeat(count as usize);
        broker.publish("messages", body.as_bytes(), numbered(n as u8 % 2, first, count))?;
        broker.publish("messages", VISIT.as_bytes(), named(&(n / 2).to_string()))?;
        broker.publish("messages", format!("unreadable {n}").as_bytes(), numbered(2, 1, 1))?;
    }
    let numbers = ranges.iter().enumerate().flat_map(|(n, (first, count))| {
        let producer = n % 2;
        (*first..first + count).map(move |number| (producer, number))
    });
    let expected = numbers.collect::<BTreeSet<_>>().len() + ranges.len().div_ceil(2);
    storage.start_again()?;
    output.wait_for_lines(expected)?;
    for n in 0..ranges.len() {
        let dead = broker.take("messages.dead")?;
        assert_eq!(String::from_utf8(dead.delivery.body)?, format!("unreadable {n}"));
    }
    storage.stop()?;
    let lines = output.lines();
    assert_eq!(lines.len(), expected);
    let mut seen = BTreeSet::new();
    for line in lines {
        let visit: serde_json::Value = serde_json::from_str(&line)?;
        let number = (visit["producer"].to_string(), visit["sequence"].as_u64());
        assert!(visit["sequence"].is_null() || seen.insert(number), "twice: {line}");
    }
    let (status, report) = output.audit()?;
    assert_eq!(status, 1, "{report}");
    let gaps: Vec<_> =
        report["producers"].as_array().ok_or("no producers")?.iter().map(|p| &p["gaps"]).collect();
    let none = serde_json::json!([]);
    let expected = [&serde_json::json!([[51, 59]]), &serde_json::json!([[32, 32], [40, 59]]), &none];
    assert_eq!(gaps, expected, "the third one's only number is in the dead letters: {report}");
    Ok(())
}

#[test]
fn a_message_of_100_mb_is_written_and_an_unreadable_one_is_set_aside_whole() -> Outcome {
    let broker = Broker::start()?;
    let (mut storage, output) = storage_alone(&broker, "large", "pipe")?;
    let line = long_visit();
    let count = 100_000_000 / line.len();
    let mut body = line.repeat(count).into_bytes();
    let persistent = |id: &str| named(id).with_delivery_mode(2);
    broker.publish("large", &body, persistent("large"))?;
    let admin = storage.admin()?;
    wait_for_written(admin, count as f64)?;
    broker.publish("large", &body, persistent("large"))?;
    body.fill(b'x');
    broker.publish("large", &body, persistent("unreadable"))?;
    broker.publish("large", line.as_bytes(), persistent("last"))?;
    wait_for_written(admin, count as f64 + 1.0)?;
    // It comes more often where the connection is left, as more was sent ahead than there is room for.
    let dropped = admin.metric("pixel_visits_duplicate_total")?;
    assert!(dropped >= count as f64 && dropped % count as f64 == 0.0, "{dropped} of {count}");
    assert_eq!(broker.take("large.dead")?.delivery.body.len(), body.len());
    storage.stop()?;
    assert_eq!(output.lines().len(), count + 1);
    Ok(())
}

/// Waits until so many visits are written. Unoptimised, it takes seconds to read 100 MB, and minutes where other
/// tests run beside.
fn wait_for_written(admin: Admin, count: f64) -> Outcome {
    let is_written = || admin.metric("pixel_visits_written_total").is_ok_and(|written| written == count);
    wait_up_to(Duration::from_secs(300), &format!("{count} written visits"), is_written)
}

/// A line of a visit, of 1,600 bytes: large bodies are quicker to read with fewer of them.
fn long_visit() -> String {
    VISIT.replace("SomeUserAgent", &"x".repeat(1500)) + "\n"
}

/// 64 messages were taken ahead, however large: 2 GB, and the kernel killed the storage again and again.
#[test]
fn twelve_messages_of_30_mb_are_written_within_256_mib_of_memory() -> Outcome {
    let Some(limit) = MemoryLimit::of(256 << 20)? else { return Ok(()) };
    let broker = Broker::start()?;
    let services = Services::new(&broker.url(), "crowd")?;
    // Declares the queue.
    services.storage.start()?.stop()?;
    let line = long_visit();
    let count = 30_000_000 / line.len() as i64;
    let body = line.repeat(count as usize).into_bytes();
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    for n in 0..12 {
        let properties = numbered(1, 1 + n * count, count).with_delivery_mode(2);
        channel.basic_publish("crowd", Publish::with_properties(&body, "visit", properties))?;
        confirms.recv_timeout(Duration::from_secs(60))?;
    }
    let mut storage = limit.around(&services.storage).start()?;
    let admin = storage.admin()?;
    let written = 12.0 * count as f64;
    wait_for_written(admin, written)?;
    storage.wait_for_log("messages are taken one by one now")?;
    // Small ones again: they are taken ahead again, and all of it is written once.
    for n in 0..300 {
        let properties = numbered(2, 1 + n, 1).with_delivery_mode(2);
        channel.basic_publish("crowd", Publish::with_properties(VISIT.as_bytes(), "visit", properties))?;
    }
    wait_for_written(admin, written + 300.0)?;
    storage.wait_for_log("messages are small again")?;
    admin.wait_until_ready()?;
    storage.stop()?;
    let report = services.output.audit_finds_nothing()?;
    let written: Vec<_> = (0..2).map(|n| report["producers"][n]["written"].as_i64()).collect();
    assert_eq!(written, [Some(12 * count), Some(300)], "{report}");
    let lines = BufReader::new(fs::File::open(&services.output.path)?).lines().count();
    assert_eq!(lines as i64, 12 * count + 300);
    Ok(())
}

#[test]
fn a_body_over_the_bound_goes_whole_to_the_dead_letters() -> Outcome {
    let broker = Broker::with("max_message_size = 200000000\n")?;
    let (mut storage, output) = storage_alone(&broker, "huge", "pipe")?;
    let body = format!("{VISIT}\n").repeat(140_000_000 / VISIT.len()).into_bytes();
    broker.publish("huge", &body, named("huge").with_delivery_mode(2))?;
    broker.publish("huge", VISIT.as_bytes(), named("small").with_delivery_mode(2))?;
    assert_eq!(output.wait_for_lines(1)?, [LINE]);
    storage.wait_for_log("is over the bound of 134217728")?;
    assert_eq!(broker.take("huge.dead")?.delivery.body.len(), body.len());
    storage.stop()
}
