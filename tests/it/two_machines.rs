//! Storages on two machines without a common file system, the broker on a third, and the network between them.

use std::time::Duration;

use amiquip::{ExchangeDeclareOptions, ExchangeType};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::fixtures::Services;
use crate::support::host::Network;
use crate::support::launch::Launch;
use crate::support::message::{VISIT, numbered};
use crate::support::output::Output;
use crate::support::program::{CONSUMING, Program};
use crate::support::wait::wait_until;

const QUEUE: &str = "pixel.visits";

/// A broker, and two machines for storages.
struct Machines {
    broker: Broker,
    // Behind what runs on it.
    network: Network,
}

impl Machines {
    fn start() -> Outcome<Machines> {
        let network = Network::start(&["broker", "first", "second"])?;
        Ok(Machines { broker: Broker::on(&network.hosts[0])?, network })
    }

    /// A storage on the machine of that number, with an output of its own.
    fn storage(&self, machine: usize) -> Outcome<Launch> {
        let storage = Services::new(&self.broker.url(), QUEUE)?.storage;
        Ok(storage.on(&self.network.hosts[machine]))
    }

    fn publish(&self, first: i64, count: i64) -> Outcome {
        let body = [VISIT].repeat(usize::try_from(count)?).join("\n");
        self.broker.publish(QUEUE, body.as_bytes(), numbered(7, first, count))
    }
}

fn starts_and_is_refused(launch: &Launch) -> Outcome<String> {
    let mut refused = launch.spawn()?;
    let status = refused.wait()?;
    let log = refused.log();
    assert!(status == 1 && !log.contains(CONSUMING), "{status} {log}");
    Ok(log)
}

fn sequences(output: &Output) -> Vec<u64> {
    let number = |line: &String| serde_json::from_str::<serde_json::Value>(line).ok()?["sequence"].as_u64();
    output.lines().iter().filter_map(number).collect()
}

/// They consumed in turn, and each wrote what the other had written and not acknowledged.
#[test]
fn a_second_storage_with_a_file_of_its_own_is_refused_and_told_who_has_the_queue() -> Outcome {
    let mut machines = Machines::start()?;
    let (first, second) = (machines.storage(1)?, machines.storage(2)?);
    let mut one = first.start()?;
    machines.publish(1, 2)?;
    first.output().wait_for_lines(2)?;
    let said = starts_and_is_refused(&second)?;
    let host = machines.network.hosts[1].name();
    let path = first.output().path.display().to_string();
    for told in [host, &path, "PIXEL_TAKEOVER=1"] {
        assert!(said.contains(told), "no {told}: {said}");
    }
    // It stays so when the first has ended, however it did, and when the broker has.
    one.stop()?;
    starts_and_is_refused(&second)?;
    let mut one = first.start()?;
    one.kill()?;
    machines.broker.wait_until_durable(QUEUE)?;
    machines.broker.wait_until_durable("pixel.visits.dead")?;
    machines.broker.wait_until_noted("pixel.visits.held")?;
    machines.broker.nodes[0].kill()?;
    machines.broker.nodes[0].start()?;
    starts_and_is_refused(&second)?;
    // The same output is no other one.
    let mut one = first.start()?;
    let mut standby = first.spawn()?;
    standby.wait_for_log("standing by")?;
    one.kill()?;
    standby.wait_for_log(CONSUMING)?;
    // The first machine is gone for good.
    let mut other = second.clone().with("takeover", "1").start()?;
    assert!(other.log().contains("PIXEL_TAKEOVER says so"), "{}", other.log());
    machines.publish(3, 1)?;
    // Who had it learns of that before it writes.
    assert_eq!(standby.wait()?, 1, "{}", standby.log());
    assert!(standby.log().contains("taken over by another output"), "{}", standby.log());
    second.output().wait_for_lines(1)?;
    assert_eq!((sequences(&first.output()), sequences(&second.output())), (vec![1, 2], vec![3]));
    starts_and_is_refused(&first)?;
    other.stop()
}

/// It had a batch in hand and wrote it, long after another had.
#[test]
fn a_storage_that_was_cut_off_does_not_write_the_batch_it_holds_once_another_has_taken_over() -> Outcome {
    let machines = Machines::start()?;
    let (first, second) = (machines.storage(1)?, machines.storage(2)?);
    // It may take the queue once, which it has: not again when it is back.
    let mut one = first.clone().with("takeover", "1").start()?;
    machines.publish(1, 2)?;
    first.output().wait_for_lines(2)?;
    // It takes the next batch, and cannot write it for as long as somebody reads the file.
    let reader = first.output().hold_writer_up()?;
    machines.publish(3, 2)?;
    one.wait_for_log("keeps it locked")?;
    machines.network.hosts[1].cut_off(true)?;
    let mut other = second.clone().with("takeover", "1").start()?;
    second.output().wait_for_lines(2)?;
    assert_eq!(sequences(&second.output()), [3, 4]);
    drop(reader);
    one.wait_for_log("lost the broker")?;
    machines.network.hosts[1].cut_off(false)?;
    assert_eq!(one.wait()?, 1, "{}", one.log());
    assert!(one.log().contains("belongs to the output"), "{}", one.log());
    assert_eq!(sequences(&first.output()), [1, 2]);
    other.stop()
}

/// Of a long name a refusal does not even tell the id, and the output was refused its own queue after each stop.
#[test]
fn an_output_has_its_queue_back_however_long_its_name_is() -> Outcome {
    let services = Services::new(&Broker::shared()?.url(), &"q".repeat(120))?;
    for _ in 0..2 {
        let mut storage = services.storage.start()?;
        storage.stop()?;
    }
    Ok(())
}

/// Who asks whose a queue is in the moment in which nobody has it makes a note that names nobody.
#[test]
fn a_note_that_names_nobody_keeps_nobody_out() -> Outcome {
    let broker = Broker::shared()?;
    let mut connection = broker.connect()?;
    let options =
        ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
    connection.open_channel(None)?.exchange_declare(ExchangeType::Fanout, "nobodys.held", options)?;
    let services = Services::new(&broker.url(), "nobodys")?;
    let mut storage = services.storage.start()?;
    storage.stop()?;
    Ok(connection.close()?)
}

/// The same of one that was not cut off, but did not run: its first look is at what it may do.
#[test]
fn a_storage_that_was_paused_does_not_write_the_batch_it_holds_once_another_has_taken_over() -> Outcome {
    let machines = Machines::start()?;
    let (first, second) = (machines.storage(1)?, machines.storage(2)?);
    let mut one = first.start()?;
    machines.publish(1, 1)?;
    first.output().wait_for_lines(1)?;
    let reader = first.output().hold_writer_up()?;
    machines.publish(2, 3)?;
    one.wait_for_log("keeps it locked")?;
    one.pause()?;
    drop(reader);
    let mut other = second.clone().with("takeover", "1").start()?;
    second.output().wait_for_lines(3)?;
    one.signal(rustix::process::Signal::CONT)?;
    assert_eq!(one.wait()?, 1, "{}", one.log());
    assert_eq!((sequences(&first.output()), sequences(&second.output())), (vec![1], vec![2, 3, 4]));
    other.stop()
}

/// It had asked already, waited for the output's lock when it was paused, and wrote the batch as soon as it had that.
#[test]
fn a_storage_that_was_paused_while_it_waited_for_its_output_asks_again_before_it_writes() -> Outcome {
    let machines = Machines::start()?;
    let (first, second) = (machines.storage(1)?, machines.storage(2)?);
    let mut one = first.start()?;
    machines.publish(1, 1)?;
    first.output().wait_for_lines(1)?;
    let reader = first.output().hold_writer_up()?;
    machines.publish(2, 3)?;
    wait_until("the batch in its hand", || machines.broker.waiting(QUEUE).is_ok_and(|waiting| waiting == 0))?;
    // For five seconds it says nothing of the lock; asking takes a moment.
    std::thread::sleep(Duration::from_millis(1500));
    one.pause()?;
    assert!(!one.log().contains("keeps it locked"), "{}", one.log());
    drop(reader);
    let mut other = second.clone().with("takeover", "1").start()?;
    second.output().wait_for_lines(3)?;
    one.signal(rustix::process::Signal::CONT)?;
    assert_eq!(one.wait()?, 1, "{}", one.log());
    assert_eq!((sequences(&first.output()), sequences(&second.output())), (vec![1], vec![2, 3, 4]));
    other.stop()
}

/// What was written before a takeover and could not be acknowledged is in both: that is told apart from a loss, and
/// merged.
#[test]
fn visits_in_both_outputs_are_told_from_lost_ones_and_merged_to_one_each() -> Outcome {
    let broker = Broker::shared()?;
    let storage = |queue: &str| Services::new(&broker.url(), queue).map(|services| services.storage);
    let publish = |queue: &str, first: i64, times: &[&str]| {
        let visit = |time: &&str| VISIT.replace("2022-12-19T14:16:49.960528Z", time);
        let body = times.iter().map(visit).collect::<Vec<_>>().join("\n");
        broker.publish(queue, body.as_bytes(), numbered(8, first, times.len() as i64))
    };
    let (late, early) = ("2022-12-19T14:16:50Z", "2022-12-19T14:16:49.5Z");
    let (first, second) = (storage("both-a")?, storage("both-b")?);
    let mut storages = [first.start()?, second.start()?];
    // The second and third are delivered to both, and nobody has the fifth.
    publish("both-a", 1, &[late, early, early])?;
    publish("both-b", 2, &[early, early, late])?;
    publish("both-b", 6, &[early])?;
    first.output().wait_for_lines(3)?;
    second.output().wait_for_lines(4)?;
    storages.iter_mut().try_for_each(Program::stop)?;
    let paths = [first.output().path, second.output().path].map(|path| path.display().to_string());
    let audit =
        paths.iter().fold(Launch::new("pixel")?.argument("audit"), |audit, path| audit.argument(path));
    let (status, said, log) = audit.clone().without("output").run()?;
    assert_eq!(status, 1, "{said}{log}");
    for told in ["2 in more than one output", "  in more than one output 2-3", "gaps 5", "1 visit is missing"]
    {
        assert!(said.contains(told), "no {told}: {said}");
    }
    assert_eq!(said.matches("verified").count(), 2, "{said}");
    // As one file.
    let merged = Output::at(first.folder().join("merged.log"));
    let merge = Launch::new("pixel")?
        .argument("merge")
        .argument("--into")
        .argument(merged.path.to_str().ok_or("no text")?);
    let merge = merge.argument(&paths[0]).argument(&paths[1]);
    let (status, _, said) = merge.run()?;
    assert!(
        status == 0 && said.contains("5 visits written, 2 that were there more than once"),
        "{status} {said}"
    );
    assert_eq!(sequences(&merged), [2, 3, 6, 1, 4]);
    let (status, _, said) = merge.run()?;
    assert!(status == 2 && said.contains("is there already"), "{status} {said}");
    // Rotated and compressed ones, to standard output.
    let compressed = std::process::Command::new("gzip").arg(&paths[1]).status()?;
    assert!(compressed.success());
    let merge = Launch::new("pixel")?.argument("merge").argument(&paths[0]);
    let (status, lines, said) = merge.clone().argument(&format!("{}.gz", paths[1])).run()?;
    assert!(status == 0 && lines.lines().eq(merged.lines()), "{status} {said} {lines}");
    // Whatever they are called.
    std::fs::rename(format!("{}.gz", paths[1]), &paths[1])?;
    let (status, lines, said) = merge.clone().argument(&paths[1]).run()?;
    assert!(status == 0 && lines.lines().eq(merged.lines()), "{status} {said} {lines}");
    // What others have written into one, and what a crash has left in it.
    let mut with_others: Vec<String> = merged.lines();
    with_others.insert(0, "a line of others".into());
    with_others.insert(3, "{\"received_at\":\"2022-12-19T14:16".into());
    with_others.push("x".repeat(3 << 20));
    let others = first.folder().join("others.log");
    std::fs::write(&others, with_others.join("\n") + "\n")?;
    let alone = Launch::new("pixel")?.argument("merge").argument(&others.display().to_string());
    let (status, lines, said) = alone.run()?;
    assert!(status == 0 && lines.lines().eq(merged.lines()), "{status} {said} {lines}");
    assert!(
        said.contains("others.log:4: ") && said.contains("3 lines that are no visits left out"),
        "{said}"
    );
    // What has no numbers cannot be merged.
    let plain = Output::at(first.folder().join("plain.log"));
    plain.append("2022-12-19T14:16:49.9605280Z|null|null|192.168.1.1\n")?;
    std::fs::write(first.folder().join("no-visits.log"), "a line of others\nanother\n")?;
    for (other, told) in [
        ("plain.log", "line 1 of `"),
        ("no-visits.log", "line 1 of `"),
        ("nowhere.log", "nowhere.log`: No such file"),
    ] {
        let other = first.folder().join(other).display().to_string();
        let (status, lines, said) = merge.clone().argument(&other).run()?;
        assert!(status == 2 && lines.is_empty() && said.contains(told), "{status} {said} {lines}");
    }
    Ok(())
}

/// A network that comes back before anybody has taken over is an outage like others.
#[test]
fn a_storage_that_was_cut_off_goes_on_where_nobody_has_taken_over() -> Outcome {
    let machines = Machines::start()?;
    let first = machines.storage(1)?;
    let mut one: Program = first.start()?;
    machines.publish(1, 2)?;
    first.output().wait_for_lines(2)?;
    machines.network.hosts[1].cut_off(true)?;
    one.wait_for_log("lost the broker")?;
    wait_until("a broker that has noticed", || {
        machines.broker.consumers(QUEUE).is_ok_and(|consumers| consumers == 0)
    })?;
    machines.publish(3, 2)?;
    std::thread::sleep(Duration::from_millis(200));
    machines.network.hosts[1].cut_off(false)?;
    first.output().wait_for_lines(4)?;
    one.stop()?;
    assert_eq!(sequences(&first.output()), [1, 2, 3, 4]);
    first.output().audit_finds_nothing().map(drop)
}

/// On one machine nothing is in doubt: the other is gone, or has let go.
#[test]
fn another_output_of_the_same_machine_has_the_queue_once_the_first_has_let_go_or_is_gone() -> Outcome {
    let broker = Broker::shared()?;
    let storage = || Services::new(&broker.url(), "one-machine").map(|services| services.storage);
    let (first, second, third) = (storage()?, storage()?, storage()?);
    let mut one = first.start()?;
    starts_and_is_refused(&second)?;
    one.stop()?;
    let mut other = second.start()?;
    assert!(other.log().contains("it has let go of it"), "{}", other.log());
    other.kill()?;
    starts_and_is_refused(&third)?;
    std::fs::remove_file(second.output().ledger())?;
    let mut last = third.start()?;
    assert!(last.log().contains("it is gone from this machine"), "{}", last.log());
    last.stop()
}
