//! Dead letters: brought back by `replay`, each once, whatever ends it.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, FieldTable, QueueDeclareOptions};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::chance::Chance;
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::message::{VISIT, named, numbered};
use crate::support::output::Output;
use crate::support::wait::wait_until;

const PRODUCER: &str = "7f6b3ad0-43a2-4f2a-a43f-96cb9e4b3a01";

/// `pixel replay` in the folder of `launch`.
fn replay(launch: &Launch) -> Launch {
    launch.clone().argument("replay")
}

/// A line of `dead.ndjson`.
fn letter(sequence: u64, visit: &str) -> String {
    serde_json::json!({ "producer": PRODUCER, "sequence": sequence, "reason": "a reason", "visit": visit })
        .to_string()
}

/// Writes the dead letters of the spool of `launch`; returns their file.
fn bury(launch: &Launch, lines: &[String]) -> Outcome<PathBuf> {
    let folder = launch.folder().join("spool");
    fs::create_dir_all(&folder)?;
    let path = folder.join("dead.ndjson");
    fs::write(&path, lines.join("\n") + "\n")?;
    Ok(path)
}

fn sequences(output: &Output) -> Outcome<Vec<Option<u64>>> {
    let sequence = |line: &String| {
        serde_json::from_str::<serde_json::Value>(line).map(|visit| visit["sequence"].as_u64())
    };
    let mut sequences = output.lines().iter().map(sequence).collect::<Result<Vec<_>, _>>()?;
    sequences.sort_unstable();
    Ok(sequences)
}

#[test]
fn what_can_be_read_of_the_spool_s_dead_letters_is_written_once_and_the_rest_is_kept() -> Outcome {
    let launch = Embedded::launch()?;
    let letters = [
        letter(5, VISIT),
        letter(6, "hello"),
        letter(5, VISIT),
        // As an older Pixel kept them, and what a crash left of one.
        VISIT.to_string(),
        "{\"producer\":\"7f6".to_string(),
        letter(8, &VISIT.replace("192.168.1.1", "::1")),
    ];
    let path = bury(&launch, &letters)?;
    let kept = fs::read(&path)?;
    let (status, said, _) = replay(&launch).argument("--dry-run").run()?;
    assert_eq!(status, 0);
    for expected in ["3 visits can be read", "1 visits are repetitions", "2 dead letters still", "7f6b3ad0-"]
    {
        assert!(said.contains(expected), "`{expected}` is not in {said}");
    }
    assert_eq!(fs::read(&path)?, kept, "a dry run changes nothing");
    assert!(launch.output().lines().is_empty());

    let mut pixel = launch.start()?;
    let (status, _, stderr) = replay(&launch).run()?;
    assert!(status == 1 && stderr.contains("already runs"), "{status} {stderr}");
    pixel.stop()?;
    assert_eq!(fs::read(&path)?, kept);

    // The second time as if the first had been killed before it put the new file in place.
    for said_then in
        ["3 visits written, 1 repetitions dropped, 2 dead", "0 visits written, 4 repetitions dropped, 2 dead"]
    {
        fs::write(&path, &kept)?;
        let (status, said, stderr) = replay(&launch).run()?;
        assert!(status == 0 && said.contains(said_then), "{status} {said} {stderr}");
        assert_eq!(sequences(&launch.output())?, [None, Some(5), Some(8)]);
        let left = fs::read_to_string(&path)?;
        assert_eq!(left.lines().count(), 2, "{left}");
        assert!(left.contains(r#""sequence":6"#) && left.contains(r#""visit":"hello""#), "{left}");
        assert!(left.lines().any(|line| line == letters[4]), "{left}");
    }
    fs::write(&path, letter(9, VISIT))?;
    assert_eq!(replay(&launch).run()?.0, 0);
    assert!(!path.exists() && launch.output().lines().len() == 4);
    let (status, said, _) = replay(&launch).run()?;
    assert!(status == 0 && said.contains("no dead letters"), "{said}");
    Ok(())
}

#[test]
fn a_replay_of_the_spool_that_is_killed_at_any_instant_writes_each_visit_once() -> Outcome {
    let launch = Embedded::launch()?;
    const COUNT: u64 = 60_000;
    let lines: Vec<String> =
        (1..=COUNT).map(|n| letter(n, if n % 100 == 0 { "hello" } else { VISIT })).collect();
    let path = bury(&launch, &lines)?;
    let mut chance = Chance(7);
    let mut kills = 0;
    for _ in 0..30 {
        let mut program = replay(&launch).spawn()?;
        thread::sleep(Duration::from_millis(chance.below(300)));
        kills += u32::from(program.runs());
        program.kill()?;
    }
    assert!(kills > 5, "{kills} were killed before their end");
    assert_eq!(replay(&launch).run()?.0, 0);
    let expected = (1..=COUNT).filter(|n| n % 100 != 0).map(Some);
    assert!(sequences(&launch.output())?.into_iter().eq(expected));
    assert_eq!(fs::read_to_string(&path)?.lines().count() as u64, COUNT / 100);
    Ok(())
}

/// What dead-lettering and Pixel itself add to a message.
fn died(properties: AmqpProperties) -> AmqpProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    let text = |text: &str| AmqpValue::LongString(text.into());
    headers.insert("x-first-death-queue".into(), text("somewhere"));
    headers.insert("x-death".into(), AmqpValue::FieldArray(vec![AmqpValue::FieldTable(FieldTable::new())]));
    headers.insert("pixel-reason".into(), text("a reason"));
    headers.insert("CC".into(), AmqpValue::FieldArray(vec![text("visit")]));
    properties.with_headers(headers).with_expiration("1000000".into())
}

fn wait_until_waiting(broker: &Broker, queue: &str, count: u32) -> Outcome {
    wait_until(&format!("{count} letters in {queue}"), || {
        broker.waiting(queue).is_ok_and(|found| found == count)
    })
    .map_err(|error| format!("{error}; there are {:?}", broker.waiting(queue)).into())
}

#[test]
fn the_broker_s_dead_letters_go_through_the_queue_again_once() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "replay")?;
    let mut storage = services.storage.start()?;
    let replay = services.storage.clone().argument("replay");
    let letters = [
        (VISIT, numbered(1, 5, 1)),
        ("hello", numbered(1, 6, 1)),
        (VISIT, numbered(1, 5, 1)),
        (VISIT, named("a#2")),
        (VISIT, numbered(1, 7, 2)),
    ];
    for (body, properties) in letters {
        broker.publish("replay.dead", body.as_bytes(), died(properties))?;
    }
    wait_until_waiting(broker, "replay.dead", 5)?;
    // More often than RabbitMQ 4 delivers by default.
    for _ in 0..25 {
        let (status, said, stderr) = replay.clone().argument("--dry-run").run()?;
        assert_eq!(status, 0, "{stderr}");
        for expected in ["2 visits can be read", "1 visits are repetitions", "2 dead letters still"] {
            assert!(said.contains(expected), "`{expected}` is not in {said}");
        }
        wait_until_waiting(broker, "replay.dead", 5)?;
    }
    for (run, published) in [(1, 5), (2, 2)] {
        let (status, said, stderr) = replay.run()?;
        assert!(status == 0 && said.contains(&format!("{published} dead letters")), "{run} {said} {stderr}");
        services.output.wait_for_lines(2)?;
        wait_until_waiting(broker, "replay.dead", 2)?;
    }
    assert_eq!(sequences(&services.output)?, [None, Some(5)]);
    storage.stop()?;
    let report = services.output.audit()?.1;
    assert_eq!(report["producers"][0]["dead"], serde_json::json!([[6, 8]]), "{report}");
    Ok(())
}

#[test]
fn a_replay_of_the_broker_that_is_killed_at_any_instant_writes_each_visit_once() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "replay-killed")?;
    let mut storage = services.storage.start()?;
    let replay = services.storage.clone().argument("replay");
    const COUNT: i64 = 3000;
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    for n in 1..=COUNT {
        let properties = died(numbered(1, n, 1));
        channel.basic_publish(
            "replay-killed.dead",
            amiquip::Publish::with_properties(VISIT.as_bytes(), "", properties),
        )?;
    }
    wait_until_waiting(broker, "replay-killed.dead", 3000)?;
    let mut chance = Chance(8);
    let mut kills = 0;
    for _ in 0..15 {
        let mut program = replay.spawn()?;
        thread::sleep(Duration::from_millis(chance.below(400)));
        kills += u32::from(program.runs());
        program.kill()?;
    }
    assert!(kills > 3, "{kills} were killed before their end");
    // The broker takes a moment to have back what a killed one held.
    wait_until("nothing left to replay", || {
        replay.run().is_ok_and(|(status, said, _)| status == 0 && said.starts_with("0 "))
    })?;
    services.output.wait_for_lines(COUNT as usize)?;
    storage.stop()?;
    assert!(sequences(&services.output)?.into_iter().eq((1..=COUNT as u64).map(Some)));
    services.output.audit_finds_nothing().map(drop)
}

/// Its queue of dead letters has no delivery limit: RabbitMQ 4 would drop what was looked at 20 times.
#[test]
fn a_queue_of_dead_letters_of_an_older_pixel_is_taken_and_moved() -> Outcome {
    let broker = Broker::shared()?;
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    let mut options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    options.arguments.insert("x-queue-type".into(), AmqpValue::LongString("quorum".into()));
    channel.queue_declare("older.dead", options)?;
    let services = Services::new(&broker.url(), "older")?;
    let mut storage = services.storage.start()?;
    storage.wait_for_log("the queue older.dead has no delivery limit")?;
    broker.publish("older", VISIT.as_bytes(), numbered(1, 1, 1))?;
    broker.publish("older", b"hello", numbered(1, 2, 1))?;
    services.output.wait_for_lines(1)?;
    wait_until_waiting(broker, "older.dead", 1)?;
    // As the log and docs/OPERATIONS.md say.
    storage.stop()?;
    let (status, said, stderr) = services.storage.clone().argument("replay").run()?;
    assert!(status == 0 && said.contains("1 dead letters"), "{said} {stderr}");
    assert_eq!(broker.waiting("older.dead")?, 0);
    broker.nodes[0].control(&["delete_queue", "older.dead"])?;
    storage.start_again()?;
    assert!(!storage.log().contains("no delivery limit"), "{}", storage.log());
    wait_until_waiting(broker, "older.dead", 1)?;
    let queues = broker.nodes[0].control(&["list_queues", "name", "arguments"])?;
    let queues = String::from_utf8(queues.stdout)?;
    let dead = queues.lines().find(|line| line.starts_with("older.dead")).unwrap_or_default();
    assert!(dead.contains("x-delivery-limit") && dead.contains("1000000000"), "{queues}");
    storage.stop()
}
