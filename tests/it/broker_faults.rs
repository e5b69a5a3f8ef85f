//! Everything that can go wrong around pixel-http, RabbitMQ and pixel-storage: every 200 is in the
//! output once, the audit agrees, and the programs come back by themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amiquip::QueueDeleteOptions;
use rustix::process::Signal;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::chance::Chance;
use crate::support::client::{get, metric, ready};
use crate::support::load::Load;
use crate::support::message::{VISIT, named, numbered};
use crate::support::output::all_written_once;
use crate::support::output::{audit, lines, wait_for_lines};
use crate::support::program::{Launch, Program, at_fixed_port};
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// Both services with load between them.
struct System {
    _folder: tempfile::TempDir,
    output: PathBuf,
    http: Launch,
    storage: Launch,
    collector: Program,
    writer: Program,
    load: Load,
}

impl System {
    fn start(url: &str, queue: &str) -> Outcome<System> {
        let folder = tempfile::tempdir()?;
        let (http, storage, address) = launches(url, queue, folder.path());
        Ok(System {
            output: folder.path().join("visits.log"),
            collector: http.start()?,
            writer: storage.start()?,
            load: Load::start(&[address], 8),
            http,
            storage,
            _folder: folder,
        })
    }

    fn admin(program: &mut Program) -> std::net::SocketAddr {
        program.admin().expect("it has said where its admin listener is")
    }

    /// Waits until everything that is taken is written, too.
    fn is_well(&mut self) -> Outcome {
        for program in [&mut self.collector, &mut self.writer] {
            let admin = program.admin()?;
            wait_until("a ready program", || {
                ready(admin).is_ok_and(|(status, state)| status == 200 && !state.contains("wait"))
            })?;
        }
        Ok(())
    }

    /// Ends the load and both services; each promised visit is written once and the audit agrees.
    fn verify(self) -> Outcome {
        let promised = self.load.stop();
        all_written_once(&promised, &self.output)?;
        self.collector.stop()?;
        self.writer.stop()?;
        let (status, report) = audit(&self.output)?;
        assert_eq!(status, 0, "{report}");
        println!("{} answers of 200, each written once", promised.len());
        Ok(())
    }
}

fn launches(url: &str, queue: &str, folder: &Path) -> (Launch, Launch, std::net::SocketAddr) {
    let both = |program| Launch::new(program, folder).with("amqp-url", url).with("queue", queue);
    let (http, address) = at_fixed_port(both("pixel-http"));
    (http, both("pixel-storage").with("format", "ndjson"), address)
}

#[test]
fn a_silent_broker_is_noticed_and_taken_up_again() -> Outcome {
    let broker = Broker::start()?;
    let mut system = System::start(&broker.url(), "silent")?;
    system.load.wait_for(200)?;
    broker.nodes[0].signal(Signal::STOP)?;
    let (http, storage) = (System::admin(&mut system.collector), System::admin(&mut system.writer));
    // Longer than two heartbeats, then.
    let noticed = wait_until("both to notice", || {
        metric(http, "pixel_broker_connected").is_ok_and(|connected| connected == 0.0)
            && ready(storage).is_ok_and(|(status, _)| status == 503)
    });
    let taken = system.load.wait_for(200);
    broker.nodes[0].signal(Signal::CONT)?;
    noticed.and(taken)?;
    system.is_well()?;
    system.load.wait_for(200)?;
    system.verify()
}

#[test]
fn a_memory_alarm_holds_nothing_up_but_the_spool_and_sigterm_still_ends_both() -> Outcome {
    let broker = Broker::start()?;
    let mut system = System::start(&broker.url(), "alarm")?;
    system.load.wait_for(200)?;
    let alarm = Instant::now();
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.000001"])?;
    system.collector.wait_for_log("takes no messages")?;
    system.load.wait_for(300)?;
    system.collector.signal(Signal::TERM)?;
    assert_eq!(system.collector.wait()?, 0, "{}", system.collector.log());
    system.collector = system.http.start()?;
    system.writer.signal(Signal::TERM)?;
    assert_eq!(system.writer.wait()?, 0, "{}", system.writer.log());
    system.writer = system.storage.start()?;
    system.load.wait_for(300)?;
    std::thread::sleep(Duration::from_secs(20).saturating_sub(alarm.elapsed()));
    system.load.wait_for(100)?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.4"])?;
    system.is_well()?;
    system.load.wait_for(200)?;
    system.verify()
}

#[test]
fn a_queue_that_is_deleted_under_the_consumer_is_declared_again() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = System::start(&broker.url(), "deleted")?;
    let address = system.collector.address()?;
    for _ in 0..2 {
        system.load.wait_for(200)?;
        // What a queue holds is deleted with it, so it must hold nothing.
        let promised = system.load.stop();
        all_written_once(&promised, &system.output)?;
        let (http, storage) = (System::admin(&mut system.collector), System::admin(&mut system.writer));
        wait_until("an empty spool", || metric(http, "pixel_spool_visits").is_ok_and(|left| left == 0.0))?;
        let written = metric(storage, "pixel_visits_written_total")?;
        let mut connection = broker.connect()?;
        connection.open_channel(None)?.queue_delete("deleted", QueueDeleteOptions::default())?;
        system.load = Load::start(&[address], 6);
        wait_until("further visits", || {
            metric(storage, "pixel_visits_written_total").is_ok_and(|now| now > written + 100.0)
        })?;
    }
    system.is_well()?;
    system.verify()
}

#[test]
fn a_connection_that_is_cut_within_a_frame_is_made_anew() -> Outcome {
    let broker = Broker::shared()?;
    let proxy = Proxy::start(broker.nodes[0].port);
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    let mut system = System::start(&url, "cut")?;
    system.load.wait_for(100)?;
    let mut chance = Chance(4);
    // Some within the login, some within the topology, most within messages and confirms.
    let cuts: Vec<u32> =
        (0..15).map(|n| (50 + chance.below(if n % 3 == 0 { 3000 } else { 60_000 })) as u32).collect();
    proxy.cut(&cuts);
    for n in 1..=cuts.len() {
        wait_until("another cut", || proxy.cut_count() >= n)?;
    }
    system.load.wait_for(100)?;
    system.is_well()?;
    system.verify()
}

#[test]
fn a_broker_that_refuses_connections_for_a_while_is_tried_until_it_takes_them() -> Outcome {
    let broker = Broker::shared()?;
    let proxy = Proxy::start(broker.nodes[0].port);
    proxy.refuse(true);
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    let folder = tempfile::tempdir()?;
    let (http, storage, address) = launches(&url, "refused", folder.path());
    let mut collector = http.start()?;
    let mut writer = storage.spawn()?;
    let load = Load::start(&[address], 2);
    for round in 0..3 {
        load.wait_for(150)?;
        let admin = writer.admin()?;
        wait_until("an unready storage", || ready(admin).is_ok_and(|(status, _)| status == 503))?;
        if round == 1 {
            // Long enough for the waits between tries to have grown to their longest.
            std::thread::sleep(Duration::from_secs(15));
        }
        proxy.refuse(false);
        wait_until("a ready storage", || ready(admin).is_ok_and(|(status, _)| status == 200))?;
        load.wait_for(150)?;
        proxy.refuse(round < 2);
    }
    let promised = load.stop();
    all_written_once(&promised, &folder.path().join("visits.log"))?;
    assert!(collector.log().matches("WARN").count() <= 12, "{}", collector.log());
    assert!(collector.runs());
    collector.stop()?;
    writer.stop()?;
    assert_eq!(audit(&folder.path().join("visits.log"))?.0, 0);
    Ok(())
}

/// Kills one of `programs` at a random instant, fifty times, and starts it again by its launch. Every fifth
/// start is waited for, and visits after it; the others may be met by the next kill.
fn kill_fifty_times(programs: &mut [(&Launch, &mut Program)], load: &Load, mut chance: Chance) -> Outcome {
    for n in 0..50 {
        load.wait_for(chance.below(60) as usize)?;
        std::thread::sleep(Duration::from_millis(chance.below(40)));
        let (launch, victim) = &mut programs[chance.below(programs.len() as u64) as usize];
        victim.signal(Signal::KILL)?;
        victim.wait()?;
        if n % 5 == 0 {
            **victim = launch.start()?;
            load.wait_for(150)?;
        } else {
            **victim = launch.spawn()?;
        }
    }
    load.wait_for(150)
}

#[test]
fn fifty_kills_of_the_services_at_random_instants_lose_and_repeat_nothing() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = System::start(&broker.url(), "fifty")?;
    let services = &mut [(&system.http, &mut system.collector), (&system.storage, &mut system.writer)];
    kill_fifty_times(services, &system.load, Chance(50))?;
    system.is_well()?;
    system.verify()
}

#[test]
fn fifty_kills_of_pixel_at_random_instants_lose_and_repeat_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 8);
    kill_fifty_times(&mut [(&launch, &mut pixel)], &load, Chance(51))?;
    let promised = load.stop();
    all_written_once(&promised, &output)?;
    pixel.stop()?;
    let (status, report) = audit(&output)?;
    assert_eq!(status, 0, "{report}");
    println!("{} answers of 200, {} lines", promised.len(), report["producers"][0]["written"]);
    Ok(())
}

#[test]
fn both_services_and_the_broker_killed_at_once_come_back() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = System::start(&broker.url(), "at-once")?;
    system.load.wait_for(200)?;
    broker.wait_until_durable("at-once")?;
    for _ in 0..2 {
        system.load.wait_for(200)?;
        broker.nodes[0].signal(Signal::KILL)?;
        system.collector.kill()?;
        system.writer.kill()?;
        broker.nodes[0].kill()?;
        system.collector = system.http.start()?;
        system.writer = system.storage.spawn()?;
        system.load.wait_for(200)?;
        broker.nodes[0].start()?;
        system.is_well()?;
    }
    system.load.wait_for(200)?;
    system.verify()
}

#[test]
fn a_broker_that_is_stopped_in_order_is_waited_for() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = System::start(&broker.url(), "stopped")?;
    system.load.wait_for(200)?;
    broker.nodes[0].control(&["stop"])?;
    system.load.wait_for(200)?;
    broker.nodes[0].kill()?;
    broker.nodes[0].start()?;
    system.is_well()?;
    system.load.wait_for(200)?;
    system.verify()
}

#[test]
fn sigterm_under_load_ends_with_0_and_loses_nothing() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = System::start(&broker.url(), "sigterm")?;
    for round in 0..10 {
        system.load.wait_for(60)?;
        if round % 2 == 0 {
            system.collector.signal(Signal::TERM)?;
            assert_eq!(system.collector.wait()?, 0, "{}", system.collector.log());
            system.collector = system.http.start()?;
        } else {
            system.writer.signal(Signal::TERM)?;
            assert_eq!(system.writer.wait()?, 0, "{}", system.writer.log());
            system.writer = system.storage.start()?;
        }
    }
    system.load.wait_for(60)?;
    system.verify()
}

/// A paused process keeps its lock, so nobody else writes; once somebody removes the lock file a standby
/// does, and the one that wakes up then writes nothing more and ends.
#[test]
fn a_paused_storage_that_wakes_up_after_the_takeover_does_not_write() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = System::start(&broker.url(), "paused")?;
    let lock = system.output.with_extension("log.lock");
    for _ in 0..4 {
        let mut standby = system.storage.spawn()?;
        standby.wait_for_log("standing by")?;
        system.load.wait_for(150)?;
        system.writer.pause()?;
        let written = lines(&system.output).len();
        system.load.wait_for(100)?;
        assert!(lines(&system.output).len() <= written, "only the holder of the lock writes");
        assert!(standby.log().matches("consuming").count() == 0);
        system.writer.signal(Signal::CONT)?;
        wait_until("it to go on", || lines(&system.output).len() > written)?;

        system.load.wait_for(100)?;
        system.writer.pause()?;
        fs::remove_file(&lock)?;
        // It may be paused within a batch, and then the standby waits for that.
        let until = Instant::now() + Duration::from_secs(3);
        while !standby.log().contains("consuming") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        system.load.wait_for(100)?;
        system.writer.signal(Signal::CONT)?;
        assert_eq!(system.writer.wait()?, 1, "{}", system.writer.log());
        assert!(system.writer.log().contains("was removed or replaced while it was held"));
        standby.wait_for_log("consuming")?;
        system.writer = standby;
    }
    system.load.wait_for(100)?;
    system.verify()
}

#[test]
fn duplicates_reordered_overlapping_and_foreign_messages_are_written_once() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (_, storage, _) = launches(&broker.url(), "messages", folder.path());
    let body = |count: i64| format!("{VISIT}\n").repeat(count as usize);
    // Declares the queue, and all of it waits when the next one starts: so it comes in batches.
    storage.start()?.stop()?;
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
        broker.publish("messages", body(count).as_bytes(), numbered(n as u8 % 2, first, count))?;
        broker.publish("messages", VISIT.as_bytes(), named(&(n / 2).to_string()))?;
        broker.publish("messages", format!("unreadable {n}").as_bytes(), numbered(2, 1, 1))?;
    }
    let expected: usize = [0, 1]
        .map(|parity| {
            let mine = ranges.iter().enumerate().filter(|(n, _)| n % 2 == parity);
            let all = mine.flat_map(|(_, (first, count))| *first..first + count);
            all.collect::<std::collections::BTreeSet<i64>>().len()
        })
        .iter()
        .sum::<usize>()
        + ranges.len().div_ceil(2);
    let writer = storage.start()?;
    wait_for_lines(&output, expected)?;
    for n in 0..ranges.len() {
        let dead = broker.take("messages.dead")?;
        assert_eq!(String::from_utf8(dead.delivery.body)?, format!("unreadable {n}"));
    }
    writer.stop()?;
    assert_eq!(lines(&output).len(), expected);
    let mut seen = std::collections::BTreeSet::new();
    for line in lines(&output) {
        let visit: serde_json::Value = serde_json::from_str(&line)?;
        let number = (visit["producer"].to_string(), visit["sequence"].as_u64());
        assert!(visit["sequence"].is_null() || seen.insert(number), "twice: {line}");
    }
    let (status, report) = audit(&output)?;
    assert_eq!(status, 1, "{report}");
    let gaps: Vec<_> =
        report["producers"].as_array().ok_or("no producers")?.iter().map(|p| &p["gaps"]).collect();
    assert_eq!(gaps, [&serde_json::json!([[51, 59]]), &serde_json::json!([[32, 32], [40, 59]])], "{report}");
    Ok(())
}

#[test]
fn a_message_of_100_mb_is_written_and_an_unreadable_one_is_set_aside_whole() -> Outcome {
    let broker = Broker::start()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (_, storage, _) = launches(&broker.url(), "large", folder.path());
    let mut writer = storage.with("format", "pipe").start()?;
    let line = format!("{VISIT}\n");
    let count = 100_000_000 / line.len();
    let mut body = line.repeat(count).into_bytes();
    let kept = |id: &str| named(id).with_delivery_mode(2);
    broker.publish("large", &body, kept("large"))?;
    let admin = writer.admin()?;
    wait_until("all of it", || metric(admin, "pixel_visits_written_total").is_ok_and(|n| n == count as f64))?;
    broker.publish("large", &body, kept("large"))?;
    body.extend_from_slice(b"and half a vis");
    broker.publish("large", &body, kept("unreadable"))?;
    broker.publish("large", line.as_bytes(), kept("last"))?;
    wait_until("the one behind them", || {
        metric(admin, "pixel_visits_written_total").is_ok_and(|n| n == count as f64 + 1.0)
    })?;
    assert_eq!(metric(admin, "pixel_visits_duplicate_total")?, count as f64);
    assert_eq!(broker.take("large.dead")?.delivery.body.len(), body.len());
    writer.stop()?;
    assert_eq!(lines(&output).len(), count + 1);
    Ok(())
}

#[test]
fn a_wrong_password_is_waited_out_by_http() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let url = format!("amqp://guest:sesame@127.0.0.1:{}/%2f", broker.nodes[0].port);
    let (http, _, address) = launches(&url, "password", folder.path());
    let mut collector = http.start()?;
    assert_eq!(get(address, "/track?n=1", &[])?.status, 200);
    collector.wait_for_log("refused the login")?;
    let (status, why) = ready(collector.admin()?)?;
    assert!(status == 200 && why.contains("refused the login"), "{status} {why}");
    collector.stop()
}
