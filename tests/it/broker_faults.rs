//! A RabbitMQ that dies, hangs, fills up, refuses, or loses its connections and queues, between
//! pixel-http and pixel-storage.

use std::thread;
use std::time::{Duration, Instant};

use amiquip::{ConsumerMessage, ConsumerOptions, QueueDeclareOptions, QueueDeleteOptions};
use rustix::process::Signal;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::chance::Chance;
use crate::support::client::{Client, get};
use crate::support::fixtures::{Brokered, Services};
use crate::support::message::{VISIT, numbered};
use crate::support::program::{CONSUMING, REFUSED_LOGIN};
use crate::support::proxy::Proxy;
use crate::support::small_disk::SmallDisk;
use crate::support::wait::wait_until;

#[test]
fn visits_taken_while_the_broker_is_down_arrive_in_order_when_it_is_back() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "outage")?;
    let address = system.address;
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
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    assert_eq!(http.readiness()?.0, 200, "a broker that is away is no reason for pixel-http");
    storage.wait_until_unready()?;
    broker.nodes[0].start()?;
    visits(50)?;
    let lines = system.output.wait_for_lines(300)?;
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).map(|visit| visit["sequence"].as_u64()))
        .collect::<Result<Option<_>, _>>()?
        .ok_or("a visit without a number")?;
    assert_eq!(numbers, (1..=300).collect::<Vec<u64>>());
    storage.wait_until_ready()?;
    system.stop_and_audit()
}

#[test]
fn a_broker_that_is_restarted_under_load_loses_nothing() -> Outcome {
    let mut broker = Broker::start()?;
    let system = Brokered::start(&broker.url(), "restart")?;
    let load = system.load(8);
    broker.wait_until_durable("restart")?;
    for _ in 0..2 {
        load.wait_for(300)?;
        broker.nodes[0].kill()?;
        load.wait_for(300)?;
        broker.nodes[0].start()?;
    }
    load.wait_for(300)?;
    system.stop_and_verify(load)
}

#[test]
fn a_broker_that_is_stopped_in_order_is_waited_for() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "stopped")?;
    let load = system.load(6);
    load.wait_for(200)?;
    broker.nodes[0].control(&["stop"])?;
    load.wait_for(200)?;
    broker.nodes[0].kill()?;
    broker.nodes[0].start()?;
    system.wait_until_well()?;
    load.wait_for(200)?;
    system.stop_and_verify(load)
}

#[test]
fn a_silent_broker_is_noticed_and_taken_up_again() -> Outcome {
    let broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "silent")?;
    let load = system.load(6);
    load.wait_for(200)?;
    broker.nodes[0].signal(Signal::STOP)?;
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    // Longer than two heartbeats, then.
    let noticed = wait_until("both to notice", || {
        http.metric("pixel_broker_connected").is_ok_and(|connected| connected == 0.0)
            && storage.readiness().is_ok_and(|(status, _)| status == 503)
    });
    let taken = load.wait_for(200);
    broker.nodes[0].signal(Signal::CONT)?;
    noticed.and(taken)?;
    system.wait_until_well()?;
    load.wait_for(200)?;
    system.stop_and_verify(load)
}

#[test]
fn a_memory_alarm_holds_nothing_up_but_the_spool_and_sigterm_still_ends_both() -> Outcome {
    let broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "alarm")?;
    let load = system.load(6);
    load.wait_for(200)?;
    let alarm = Instant::now();
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.000001"])?;
    system.http.wait_for_log("takes no messages")?;
    load.wait_for(300)?;
    for program in [&mut system.http, &mut system.storage] {
        program.stop()?;
        program.start_again()?;
    }
    load.wait_for(300)?;
    thread::sleep(Duration::from_secs(20).saturating_sub(alarm.elapsed()));
    load.wait_for(100)?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.4"])?;
    system.wait_until_well()?;
    load.wait_for(200)?;
    system.stop_and_verify(load)
}

#[test]
fn a_queue_that_is_deleted_under_the_consumer_is_declared_again() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = Brokered::start(&broker.url(), "deleted")?;
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    let mut load = system.load(6);
    for _ in 0..2 {
        load.wait_for(200)?;
        // What a queue holds is deleted with it, so it must hold nothing.
        system.output.has_each_once(&load.stop().promised)?;
        http.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
        let written = storage.metric("pixel_visits_written_total")?;
        let mut connection = broker.connect()?;
        connection.open_channel(None)?.queue_delete("deleted", QueueDeleteOptions::default())?;
        load = system.load(6);
        storage.wait_for_metric("pixel_visits_written_total", |now| now > written + 100.0)?;
    }
    system.wait_until_well()?;
    system.stop_and_verify(load)
}

#[test]
fn a_queue_with_other_arguments_is_waited_for_by_both_until_it_is_gone() -> Outcome {
    let broker = Broker::shared()?;
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    channel
        .queue_declare("other", QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() })?;
    let services = Services::new(&broker.url(), "other")?;
    let mut storage = services.storage.spawn()?;
    let mut http = services.http.start()?;
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    for (program, expected) in [(&mut http, 200), (&mut storage, 503)] {
        program.wait_for_log("PRECONDITION_FAILED")?;
        let (status, why) = program.admin()?.readiness()?;
        assert!(status == expected && why.contains("PRECONDITION_FAILED"), "{status} {why}");
    }
    channel.queue_delete("other", QueueDeleteOptions::default())?;
    services.output.wait_for_lines(1)?;
    http.stop()?;
    storage.stop()
}

/// It said "trying again", and ended after the third refusal: nobody wrote any more once the cause was gone.
#[test]
fn whatever_the_broker_refuses_pixel_storage_waits_for_and_goes_on_by_itself() -> Outcome {
    let broker = Broker::shared()?;
    let node = &broker.nodes[0];
    let control = |command: &[&str]| node.control(command).map(drop);
    let allow = |user: &str, vhost: &str| control(&["set_permissions", "-p", vhost, user, ".*", ".*", ".*"]);
    control(&["add_user", "stranger", "sesame"])?;
    for (user, vhost, reason) in
        [("late", "/", REFUSED_LOGIN), ("stranger", "/", "refused"), ("guest", "nowhere", "nowhere")]
    {
        let url = format!(
            "amqp://{user}:{}@127.0.0.1:{}/{}",
            if user == "guest" { "guest" } else { "sesame" },
            node.port,
            vhost.replace('/', "%2f")
        );
        let mut storage = Services::new(&url, "refusals")?.storage.spawn()?;
        let admin = storage.admin()?;
        wait_until("a refusal on /readyz", || {
            admin.readiness().is_ok_and(|(status, why)| status == 503 && why.contains(reason))
        })
        .map_err(|error| format!("{error}: {:?}", admin.readiness()))?;
        // Longer than three tries took.
        std::thread::sleep(Duration::from_secs(4));
        assert!(storage.runs(), "{}", storage.log());
        let said = storage.log().lines().filter(|line| line.contains(reason)).count();
        assert_eq!(said, 1, "it is said once:\n{}", storage.log());
        assert!(!storage.log().contains("sesame"), "{}", storage.log());
        match user {
            "late" => control(&["add_user", user, "sesame"])?,
            "guest" => control(&["add_vhost", vhost])?,
            _ => {}
        }
        allow(user, vhost)?;
        storage.wait_for_log(CONSUMING)?;
        assert_eq!(admin.readiness()?.0, 200);
        storage.stop()?;
    }
    Ok(())
}

#[test]
fn a_wrong_password_is_waited_out_by_http() -> Outcome {
    let port = Broker::shared()?.nodes[0].port;
    let services = Services::new(&format!("amqp://guest:sesame@127.0.0.1:{port}/%2f"), "password")?;
    let mut http = services.http.start()?;
    assert_eq!(get(http.address()?, "/track?n=1", &[])?.status, 200);
    http.wait_for_log(REFUSED_LOGIN)?;
    let (status, why) = http.admin()?.readiness()?;
    assert!(status == 200 && why.contains(REFUSED_LOGIN), "{status} {why}");
    http.stop()
}

#[test]
fn a_connection_that_is_cut_within_a_frame_is_made_anew() -> Outcome {
    let proxy = Proxy::start(Broker::shared()?.nodes[0].port);
    let mut system = Brokered::start(&proxy.url(), "cut")?;
    let load = system.load(6);
    load.wait_for(100)?;
    let mut chance = Chance(4);
    // Some within the login, some within the topology, most within messages and confirms.
    let cuts: Vec<u32> =
        (0..15).map(|n| (50 + chance.below(if n % 3 == 0 { 3000 } else { 60_000 })) as u32).collect();
    proxy.cut(&cuts);
    for n in 1..=cuts.len() {
        wait_until("another cut", || proxy.cut_count() >= n)?;
    }
    load.wait_for(100)?;
    system.wait_until_well()?;
    system.stop_and_verify(load)
}

#[test]
fn a_broker_that_refuses_connections_for_a_while_is_tried_until_it_takes_them() -> Outcome {
    let proxy = Proxy::start(Broker::shared()?.nodes[0].port);
    proxy.refuse(true);
    let mut system = Brokered::spawn(&proxy.url(), "refused")?;
    let storage = system.storage.admin()?;
    let load = system.load(2);
    for round in 0..3 {
        load.wait_for(150)?;
        storage.wait_until_unready()?;
        if round == 1 {
            // Long enough for the waits between tries to have grown to their longest.
            thread::sleep(Duration::from_secs(15));
        }
        proxy.refuse(false);
        storage.wait_until_ready()?;
        load.wait_for(150)?;
        proxy.refuse(round < 2);
    }
    system.output.verify(&load.stop())?;
    assert!(system.http.log().matches("WARN").count() <= 12, "{}", system.http.log());
    assert!(system.http.runs());
    system.stop_and_audit()
}

/// A connection that publishes under an alarm is not read from, so one bad line would have held all others up.
#[test]
fn a_memory_alarm_does_not_let_a_bad_line_hold_the_others_up() -> Outcome {
    let broker = Broker::start()?;
    let services = Services::new(&broker.url(), "bad-alarm")?;
    services.storage.start()?.stop()?;
    let body = format!("{VISIT}\nhello\n{VISIT}\n");
    broker.publish("bad-alarm", body.as_bytes(), numbered(1, 1, 3).with_delivery_mode(2))?;
    broker.publish("bad-alarm", VISIT.as_bytes(), numbered(1, 4, 1).with_delivery_mode(2))?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.000001"])?;
    let mut storage = services.storage.start()?;
    services.output.wait_for_lines(3)?;
    storage.wait_for_log("a dead letter is not taken: no confirm within 10 s")?;
    wait_until("the whole message in the dead letters", || {
        broker.waiting("bad-alarm").is_ok_and(|left| left == 0)
            && broker.waiting("bad-alarm.dead").is_ok_and(|letters| letters > 0)
    })?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.4"])?;
    let (status, said, stderr) = services.storage.clone().argument("replay").run()?;
    assert!(status == 0 && said.contains("dead letters published"), "{said} {stderr}");
    storage.admin()?.wait_for_metric("pixel_visits_duplicate_total", |dropped| dropped >= 2.0)?;
    storage.stop()?;
    let report = services.output.audit_finds_nothing()?;
    assert_eq!(report["producers"][0]["dead"], serde_json::json!([[2, 2]]), "{report}");
    assert_eq!(services.output.lines().len(), 3);
    Ok(())
}

/// By default RabbitMQ waits 30 minutes for an acknowledgement; here, 15 seconds.
#[test]
fn a_batch_that_is_held_for_longer_than_the_broker_waits_comes_again_and_is_written_once() -> Outcome {
    let Some(disk) = SmallDisk::mount("16m")? else { return Ok(()) };
    let broker = Broker::with("consumer_timeout = 15000\n")?;
    // It looks once a minute, and knows no other setting for that.
    let often = "application:set_env(rabbit, channel_tick_interval, 1000).";
    broker.nodes[0].control(&["eval", often])?;
    let services = Services::new(&broker.url(), "timeout")?;
    let mut http = services.http.start()?;
    let storage_launch = services.storage.with("output", disk.path().join("visits.log"));
    let output = storage_launch.output();
    let mut storage = storage_launch.start()?;
    let address = http.address()?;
    let mut promised = Vec::new();
    let mut visits = |count: u64| -> Outcome {
        let mut client = Client::connect(address)?;
        for _ in 0..count {
            promised.push(promised.len() as u64);
            let path = format!("/track?n={}", promised.len() - 1);
            assert_eq!(client.ask("GET", &path, &[])?.status, 200);
        }
        Ok(())
    };
    visits(50)?;
    output.wait_for_lines(50)?;
    disk.fill()?;
    visits(50)?;
    let admin = storage.admin()?;
    admin.wait_until_unready()?;
    wait_until("the broker to end the channel", || {
        broker.consumers("timeout").is_ok_and(|count| count == 0)
    })?;
    visits(50)?;
    disk.free()?;
    output.has_each_once(&promised)?;
    storage.wait_for_log("lost the broker: PRECONDITION_FAILED - delivery acknowledgement on channel")?;
    admin.wait_until_ready()?;
    assert_eq!(
        admin.metric("pixel_visits_duplicate_total")?,
        0.0,
        "the held batch was given up for what comes again"
    );
    http.stop()?;
    storage.stop()?;
    output.audit_finds_nothing().map(drop)
}

/// RabbitMQ 4 sets a message aside after 20 redeliveries where its queue says nothing else, and drops it where that has
/// no dead letters.
#[test]
fn a_storage_that_is_killed_25_times_with_the_same_visits_in_hand_writes_them_in_the_end() -> Outcome {
    let Some(disk) = SmallDisk::mount("16m")? else { return Ok(()) };
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "killed")?;
    // A start that cannot write its ledger takes nothing, so that is elsewhere.
    let state = tempfile::tempdir()?;
    let launch =
        services.storage.with("output", disk.path().join("visits.log")).with("state-dir", state.path());
    let mut storage = launch.start()?;
    broker.publish("killed", VISIT.as_bytes(), numbered(1, 1, 1))?;
    launch.output().wait_for_lines(1)?;
    disk.fill()?;
    // More than the page of its last line has room for.
    broker.publish("killed", [VISIT].repeat(100).join("\n").as_bytes(), numbered(1, 2, 100))?;
    for _ in 0..25 {
        storage.admin()?.wait_until_unready()?;
        assert_eq!(broker.waiting("killed")?, 0, "they are in its hand");
        storage.kill()?;
        wait_until("the visits back", || broker.waiting("killed").is_ok_and(|waiting| waiting == 1))?;
        storage.start_again()?;
    }
    disk.free()?;
    launch.output().wait_for_lines(101)?;
    storage.stop()?;
    assert_eq!(broker.waiting("killed.dead")?, 0);
    let (status, said, stderr) = launch.argument("audit").run()?;
    assert_eq!(status, 0, "{said} {stderr}");
    Ok(())
}

/// Past the queue's own limit, which is 1,000, a message is among the dead letters; it was to be lost nowhere.
#[test]
fn a_message_past_its_delivery_limit_is_a_dead_letter_that_replay_brings_back() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "limit")?;
    services.storage.start()?.stop()?;
    broker.publish("limit", VISIT.as_bytes(), numbered(1, 1, 1).with_delivery_mode(2))?;
    let mut connection = broker.connect()?;
    let channel = connection.open_channel(None)?;
    let consumer = channel.basic_consume("limit", ConsumerOptions::default())?;
    let mut deliveries = 0;
    while let Ok(message) = consumer.receiver().recv_timeout(Duration::from_secs(3)) {
        let ConsumerMessage::Delivery(delivery) = message else { break };
        deliveries += 1;
        delivery.reject(&channel, true)?;
    }
    assert_eq!(deliveries, 1001, "the first, and 1,000 again");
    wait_until("a dead letter", || broker.waiting("limit.dead").is_ok_and(|letters| letters == 1))?;
    std::mem::forget(consumer);
    connection.close()?;
    let mut storage = services.storage.start()?;
    let (status, said, stderr) = services.storage.clone().argument("replay").run()?;
    assert!(status == 0 && said.starts_with("1 dead letters published"), "{said} {stderr}");
    services.output.wait_for_lines(1)?;
    storage.stop()?;
    services.output.audit_finds_nothing().map(drop)
}

#[test]
fn a_disk_alarm_of_the_broker_holds_nothing_up_but_the_spool() -> Outcome {
    let broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "disk-alarm")?;
    let load = system.load(6);
    load.wait_for(200)?;
    broker.nodes[0].control(&["set_disk_free_limit", "1000000GB"])?;
    system.http.wait_for_log("takes no messages")?;
    load.wait_for(300)?;
    assert_eq!(system.http.admin()?.readiness()?.0, 200, "visits are taken");
    broker.nodes[0].control(&["set_disk_free_limit", "1MB"])?;
    system.wait_until_well()?;
    load.wait_for(200)?;
    system.stop_and_verify(load)
}
