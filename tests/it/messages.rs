//! pixel-http and pixel-storage with a real RabbitMQ in between.

use std::fs;
use std::process::Command;

use amiquip::{AmqpProperties, AmqpValue, QueueDeclareOptions, QueueDeleteOptions};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::{Client, get, metric, ready};
use crate::support::load::Load;
use crate::support::message::{LINE, VISIT, named, numbered, numbered_by};
use crate::support::output::all_written_once;
use crate::support::output::{audit, wait_for_lines};
use crate::support::program::Launch;
use crate::support::wait::wait_until;

/// Both services on a queue of the test's own.
fn services(broker: &Broker, queue: &str, folder: &std::path::Path) -> (Launch, Launch) {
    let both = |program| Launch::new(program, folder).with("amqp-url", broker.url()).with("queue", queue);
    (both("pixel-http"), both("pixel-storage"))
}

#[test]
fn a_visit_reaches_the_file_whichever_service_starts_first() -> Outcome {
    let broker = Broker::shared()?;
    for (queue, storage_first) in [("http-first", false), ("storage-first", true)] {
        let folder = tempfile::tempdir()?;
        let (http, storage) = services(broker, queue, folder.path());
        let early = if storage_first { Some(storage.start()?) } else { None };
        let mut collector = http.start()?;
        let headers = [("Referer", "https://google.com"), ("User-Agent", "SomeUserAgent 1.2.3")];
        assert_eq!(get(collector.address()?, "/track", &headers)?.status, 200);
        let mut writer = match early {
            Some(writer) => writer,
            None => {
                // Published before any storage service has ever been there.
                let admin = collector.admin()?;
                wait_until("the confirm", || {
                    metric(admin, "pixel_spool_visits").is_ok_and(|left| left == 0.0)
                })?;
                storage.start()?
            }
        };
        let line = wait_for_lines(&folder.path().join("visits.log"), 1)?.remove(0);
        assert!(line.ends_with("|https://google.com|SomeUserAgent 1.2.3|127.0.0.1"), "{line}");
        let admin = collector.admin()?;
        wait_until("the confirm", || metric(admin, "pixel_visits_published_total").is_ok_and(|n| n == 1.0))?;
        assert_eq!(metric(collector.admin()?, "pixel_broker_connected")?, 1.0);
        let admin = writer.admin()?;
        wait_until("the count", || metric(admin, "pixel_visits_written_total").is_ok_and(|n| n == 1.0))?;
        collector.stop()?;
        writer.stop()?;
        assert_eq!(audit(&folder.path().join("visits.log"))?.0, 0);
    }
    Ok(())
}

#[test]
fn visits_taken_while_the_broker_is_down_arrive_in_order_when_it_is_back() -> Outcome {
    let mut broker = Broker::start()?;
    let folder = tempfile::tempdir()?;
    let (http, storage) = services(&broker, "outage", folder.path());
    let storage = storage.with("format", "ndjson");
    let mut collector = http.start()?;
    let mut writer = storage.start()?;
    let address = collector.address()?;
    let mut sent = 0;
    let mut visits = |count: u32| -> Outcome {
        let mut client = Client::connect(address)?;
        for _ in 0..count {
            sent += 1;
            assert_eq!(client.ask("GET", &format!("/track?n={sent}"), &[])?.status, 200);
        }
        Ok(())
    };
    visits(50)?;
    broker.wait_until_durable("outage")?;
    broker.nodes[0].kill()?;
    visits(200)?;
    assert_eq!(ready(collector.admin()?)?.0, 200, "a broker that is away is no reason for pixel-http");
    let admin = writer.admin()?;
    wait_until("an unready storage", || ready(admin).is_ok_and(|(status, _)| status == 503))?;
    broker.nodes[0].start()?;
    visits(50)?;
    let lines = wait_for_lines(&folder.path().join("visits.log"), 300)?;
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).map(|visit| visit["sequence"].as_u64()))
        .collect::<Result<Option<_>, _>>()?
        .ok_or("a visit without a number")?;
    assert_eq!(numbers, (1..=300).collect::<Vec<u64>>());
    wait_until("a ready storage", || ready(admin).is_ok_and(|(status, _)| status == 200))?;
    collector.stop()?;
    writer.stop()
}

#[test]
fn a_broker_that_is_restarted_under_load_loses_nothing() -> Outcome {
    let mut broker = Broker::start()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (http, storage) = services(&broker, "restart", folder.path());
    let mut collector = http.start()?;
    let writer = storage.with("format", "ndjson").start()?;
    let load = Load::start(&[collector.address()?], 8);
    broker.wait_until_durable("restart")?;
    for _ in 0..2 {
        load.wait_for(300)?;
        broker.nodes[0].kill()?;
        load.wait_for(300)?;
        broker.nodes[0].start()?;
    }
    load.wait_for(300)?;
    let promised = load.stop();
    all_written_once(&promised, &output)?;
    collector.stop()?;
    writer.stop()?;
    assert_eq!(audit(&output)?.0, 0);
    Ok(())
}

#[test]
fn another_client_s_message_is_written_and_recognised_by_its_id() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let mut writer = services(broker, "foreign", folder.path()).1.start()?;
    let json = || AmqpProperties::default().with_content_type("application/json".into());
    broker.publish("foreign", VISIT.as_bytes(), json())?;
    broker.publish("foreign", VISIT.as_bytes(), json())?;
    assert_eq!(wait_for_lines(&output, 2)?, [LINE, LINE], "without an id, twice is twice");
    for _ in 0..3 {
        broker.publish(
            "foreign",
            VISIT.as_bytes(),
            named("a").with_content_type("application/json".into()),
        )?;
    }
    let two = format!("{VISIT}\n{VISIT}\n");
    let ndjson = named("b").with_content_type("application/x-ndjson".into());
    broker.publish("foreign", two.as_bytes(), ndjson)?;
    assert_eq!(wait_for_lines(&output, 5)?.len(), 5);
    assert_eq!(metric(writer.admin()?, "pixel_visits_duplicate_total")?, 2.0);
    writer.stop()?;
    let (status, report) = audit(&output)?;
    assert_eq!(
        (status, &report["foreign"]["written"], &report["foreign"]["duplicates"]),
        (0, &5.into(), &2.into())
    );
    Ok(())
}

#[test]
fn a_python_client_s_message_is_written() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let writer = services(broker, "pika", folder.path()).1.start()?;
    let environment = folder.path().join("venv");
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
    assert_eq!(wait_for_lines(&folder.path().join("visits.log"), 4)?, [LINE; 4], "one, two, one");
    writer.stop()
}

#[test]
fn what_cannot_be_read_ends_whole_in_the_dead_letters_and_the_rest_goes_on() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let mut writer = services(broker, "unreadable", folder.path()).1.start()?;
    let half = format!("{VISIT}\n{{\"received_at\":");
    let cases = [
        ("hello", AmqpProperties::default()),
        ("", AmqpProperties::default()),
        (&half, AmqpProperties::default()),
        (VISIT, numbered_by(0, AmqpValue::LongString("one".into()), 1)),
        (VISIT, numbered(0, -1, 1)),
        (VISIT, numbered(0, 1, 2)),
        (VISIT, numbered(0, 1, 0)),
        (VISIT, numbered(0, i64::MAX, 2)),
    ];
    for (count, (body, properties)) in cases.into_iter().enumerate() {
        broker.publish("unreadable", body.as_bytes(), properties)?;
        broker.publish("unreadable", VISIT.as_bytes(), AmqpProperties::default())?;
        assert_eq!(wait_for_lines(&folder.path().join("visits.log"), count + 1)?[count], LINE);
        let dead = broker.take("unreadable.dead")?;
        assert_eq!(String::from_utf8(dead.delivery.body)?, body, "case {count}");
    }
    writer.wait_for_log("cannot be read goes to the dead letters")?;
    assert_eq!(metric(writer.admin()?, "pixel_messages_dead_lettered_total")?, 8.0);
    writer.stop()
}

#[test]
fn a_queue_with_other_arguments_is_refused_by_storage_and_waited_for_by_http() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    channel
        .queue_declare("other", QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() })?;
    let (http, storage) = services(broker, "other", folder.path());
    let (status, _, stderr) = storage.output()?;
    assert_eq!(status, 1);
    assert!(stderr.lines().last().is_some_and(|line| line.contains("PRECONDITION_FAILED")), "{stderr}");
    let mut collector = http.start()?;
    assert_eq!(get(collector.address()?, "/track", &[])?.status, 200);
    collector.wait_for_log("PRECONDITION_FAILED")?;
    let (status, why) = ready(collector.admin()?)?;
    assert!(status == 200 && why.contains("PRECONDITION_FAILED"), "{status} {why}");
    channel.queue_delete("other", QueueDeleteOptions::default())?;
    let writer = storage.start()?;
    wait_for_lines(&folder.path().join("visits.log"), 1)?;
    collector.stop()?;
    writer.stop()
}

#[test]
fn a_wrong_password_or_vhost_is_said() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    for (user, vhost, reason) in
        [("guest:sesame", "%2f", "refused the login"), ("guest:guest", "nowhere", "nowhere")]
    {
        let url = format!("amqp://{user}@127.0.0.1:{}/{vhost}", broker.nodes[0].port);
        let (status, _, stderr) =
            Launch::new("pixel-storage", folder.path()).with("amqp-url", url).output()?;
        assert!(status == 1 && stderr.contains(reason), "{status} {stderr}");
        assert!(!stderr.contains("sesame"), "{stderr}");
    }
    Ok(())
}

#[test]
fn a_standby_takes_over() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let (http, storage) = services(broker, "standby", folder.path());
    let storage = storage.with("format", "ndjson");
    let mut collector = http.start()?;
    let active = storage.start()?;
    let mut standby = storage.spawn()?;
    standby.wait_for_log("standing by")?;
    let (status, state) = ready(standby.admin()?)?;
    assert!(status == 200 && state.contains("standing by"), "{status} {state}");
    let load = Load::start(&[collector.address()?], 4);
    load.wait_for(300)?;
    active.kill()?;
    standby.wait_for_log("consuming ")?;
    load.wait_for(300)?;
    let promised = load.stop();
    all_written_once(&promised, &folder.path().join("visits.log"))?;
    collector.stop()?;
    standby.stop()?;
    assert_eq!(audit(&folder.path().join("visits.log"))?.0, 0);
    Ok(())
}

#[test]
fn a_gap_is_found_by_the_audit() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let writer = services(broker, "gap", folder.path()).1.start()?;
    for sequence in [1, 2, 5] {
        broker.publish("gap", VISIT.as_bytes(), numbered(0, sequence, 1))?;
    }
    wait_for_lines(&output, 3)?;
    // While the storage service runs, too.
    let (status, report) = audit(&output)?;
    assert_eq!((status, &report["missing"]), (1, &2.into()));
    assert_eq!(report["producers"][0]["gaps"], serde_json::json!([[3, 4]]));
    writer.stop()?;
    assert!(fs::metadata(output.with_extension("log.ledger")).is_ok());
    Ok(())
}
