//! Several queues with an output each: how many there are changes under load, and processes die.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::chance::Chance;
use crate::support::fixtures::Services;
use crate::support::launch::Launch;
use crate::support::load::Load;
use crate::support::message::{VISIT, numbered};
use crate::support::output::{Output, each_is_there_once, lines_of};
use crate::support::program::{CONSUMING, Program, STANDING_BY};
use crate::support::proxy::Proxy;
use crate::support::wait::wait_until;

/// The output of a shard.
fn shard(services: &Services, shard: usize) -> Output {
    Output::at(services.output.path.with_file_name(format!("visits.{shard}.log")))
}

/// The output without shards, and those of four.
fn outputs(services: &Services) -> Vec<Output> {
    std::iter::once(services.output.clone()).chain((0..4).map(|n| shard(services, n))).collect()
}

fn each_once(services: &Services, promised: &[u64]) -> Outcome {
    let outputs = outputs(services);
    each_is_there_once(promised, &|| Ok(outputs.iter().flat_map(|output| lines_of(&output.path)).collect()))
}

/// Within an output, each producer's visits stand in the order of their numbers.
fn are_in_order(output: &Output) -> Outcome {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for line in output.lines() {
        let visit: Value = serde_json::from_str(&line)?;
        let producer = visit["producer"].as_str().ok_or("no producer")?.to_string();
        let sequence = visit["sequence"].as_u64().ok_or("no sequence")?;
        let before = last.insert(producer, sequence).unwrap_or(0);
        assert!(before < sequence, "{sequence} behind {before} in {}", output.path.display());
    }
    Ok(())
}

fn sharded(launch: &Launch, count: usize) -> Launch {
    launch.clone().with("shards", count.to_string())
}

#[test]
fn from_one_shard_to_four_and_back_under_load_and_kills_each_visit_is_written_once() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "grown")?;
    let mut single = services.storage.start()?;
    let any = sharded(&services.storage, 4).with("shard", "auto");
    let mut storages = (0..5).map(|_| any.spawn()).collect::<Outcome<Vec<Program>>>()?;
    let mut http = services.http.start()?;
    let load = Load::start(http.address()?, 8);
    let mut chance = Chance(14);
    for count in [1, 4, 1, 4] {
        // What it has published and heard nothing of goes where it went.
        http.kill()?;
        http = sharded(&services.http, count).start()?;
        for _ in 0..5 {
            load.wait_for(1000)?;
            let victim = &mut storages[chance.below(5) as usize];
            victim.kill()?;
            victim.spawn_again()?;
            if chance.below(2) == 0 {
                http.kill()?;
                http.start_again()?;
            }
        }
    }
    let promised = load.stop().promised;
    each_once(&services, &promised)?;
    let outputs = outputs(&services);
    outputs.iter().try_for_each(are_in_order)?;
    let used = outputs.iter().filter(|output| !output.lines().is_empty()).count();
    assert!(used >= 3 && !outputs[0].lines().is_empty(), "{used} outputs");
    http.stop()?;
    single.stop()?;
    storages.iter_mut().try_for_each(Program::stop)?;
    let report = services.output.audit_finds_nothing()?;
    assert_eq!((&report["twice"], &report["missing"]), (&Value::from(0), &Value::from(0)));
    println!("{} answers of 200, each written once", promised.len());
    Ok(())
}

/// What was published and not confirmed went to the queue that the new number of shards names, while the old one had
/// it already.
#[test]
fn what_was_published_and_not_confirmed_keeps_its_shard_when_their_number_changes() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "kept")?;
    let mut storages = vec![services.storage.start()?];
    for n in 0..4 {
        storages.push(sharded(&services.storage, 4).with("shard", n.to_string()).start()?);
    }
    let proxy = Proxy::start(broker.nodes[0].port);
    let mut promised = Vec::new();
    for (count, next) in [(1, 4), (4, 1), (1, 3), (3, 4)] {
        let behind = sharded(&services.http, count).with("amqp-url", proxy.url());
        let mut http = behind.start()?;
        http.wait_for_log("connected to the broker")?;
        let written = |services: &Services| -> usize {
            outputs(services).iter().map(|output| output.lines().len()).sum()
        };
        let before = written(&services);
        proxy.swallow_answers(true);
        let load = Load::start(http.address()?, 2);
        // The broker has it, and pixel-http does not know that.
        wait_until("a visit that is written and not confirmed", || written(&services) > before)?;
        load.wait_for(20)?;
        http.kill()?;
        promised.extend(load.stop().promised);
        proxy.swallow_answers(false);
        let mut http = sharded(&services.http, next).start()?;
        each_once(&services, &promised)?;
        http.admin()?.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
        http.stop()?;
    }
    storages.iter_mut().try_for_each(Program::stop)?;
    services.output.audit_finds_nothing().map(drop)
}

#[test]
fn n_and_one_storages_are_n_writers_and_a_standby_that_takes_over() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "standbys")?;
    let any = sharded(&services.storage, 2).with("shard", "auto");
    let mut first = any.start()?;
    let mut second = any.start()?;
    assert!(first.log().contains("consuming standbys.0") && second.log().contains("consuming standbys.1"));
    let mut third = any.spawn()?;
    third.wait_for_log(STANDING_BY)?;
    let (status, state) = third.admin()?.readiness()?;
    assert!(status == 200 && state.contains("standing by"), "{status} {state}");
    second.kill()?;
    third.wait_for_log("consuming standbys.1")?;
    // One that is told which serves that one.
    let mut told = sharded(&services.storage, 2).with("shard", "0").spawn()?;
    told.wait_for_log(STANDING_BY)?;
    first.kill()?;
    told.wait_for_log("consuming standbys.0")?;
    for (n, queue) in ["standbys.0", "standbys.1"].into_iter().enumerate() {
        broker.publish(queue, VISIT.as_bytes(), numbered(1, 1 + n as i64, 1))?;
        shard(&services, n).wait_for_lines(1)?;
    }
    // Both ledgers together have all of the producer's numbers.
    services.output.audit_finds_nothing()?;
    third.stop()?;
    told.stop()?;
    // One of them alone has a gap.
    std::fs::remove_file(shard(&services, 0).ledger())?;
    let (status, said) = services.output.audit_says(&[])?;
    assert!(status == 1 && said.contains("gaps 1"), "{status} {said}");
    Ok(())
}

/// A message of one shard that comes to two of them, as the exchange of consistent hashes may have it after a restart,
/// is told.
#[test]
fn visits_that_two_outputs_have_are_told_by_the_audit() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "doubled")?;
    let mut storages = Vec::new();
    for n in 0..2 {
        let mut storage = sharded(&services.storage, 2).with("shard", n.to_string()).start()?;
        storage.wait_for_log(CONSUMING)?;
        broker.publish(&format!("doubled.{n}"), VISIT.as_bytes(), numbered(2, 1, 1))?;
        shard(&services, n).wait_for_lines(1)?;
        storages.push(storage);
    }
    let (status, said) = services.output.audit_says(&[])?;
    assert!(status == 1 && said.contains("1 in more than one output"), "{status} {said}");
    Ok(())
}

#[test]
fn dead_letters_of_every_shard_are_replayed() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "shards-dead")?;
    for n in 0..2 {
        let mut storage = sharded(&services.storage, 2).with("shard", n.to_string()).start()?;
        broker.publish(&format!("shards-dead.{n}"), b"nonsense", numbered(3, 1 + n, 1))?;
        wait_until("a dead letter", || {
            broker.waiting(&format!("shards-dead.{n}.dead")).is_ok_and(|letters| letters == 1)
        })?;
        storage.stop()?;
    }
    let replay = sharded(&Launch::new("pixel-storage")?, 2).argument("replay").with("amqp-url", broker.url());
    let (status, said, log) = replay.with("queue", "shards-dead").run()?;
    assert_eq!(status, 0, "{log}");
    for n in 0..2 {
        assert!(said.contains(&format!("1 dead letters published to shards-dead.{n} again")), "{said}");
    }
    Ok(())
}
