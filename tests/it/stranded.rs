//! Visits in slots that no process has any more: told, taken over, and drained by hand.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::client::get;
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::load::Load;
use crate::support::output::Output;
use crate::support::program::Program;
use crate::support::wait::wait_until;

const STRANDED_VISITS: &str = "pixel_spool_stranded_visits";

/// Collectors on one folder with so many slots, each with an address of its own.
fn collectors(services: &Services, slots: usize) -> Launch {
    services.http.clone().with("listen", "127.0.0.1:0").with("spool-slots", slots.to_string())
}

/// Takes `count` visits and dies.
fn leave_behind(mut program: Program, count: usize) -> Outcome<Vec<u64>> {
    let load = Load::start(program.address()?, 4);
    load.wait_for(count)?;
    // Before its load ends, so that what it has promised last is among them.
    program.kill()?;
    Ok(load.stop().promised)
}

/// What `pixel audit` says of an output and the spools in a folder.
fn audit_with(output: &Output, spools: &Path) -> Outcome {
    match output.audit_says(&["--spool-dir", &spools.to_string_lossy()])? {
        (0, _) => Ok(()),
        (status, said) => Err(format!("the audit ended with {status}: {said}").into()),
    }
}

/// They waited for ever, and nobody was told.
#[test]
fn visits_of_a_killed_collector_are_taken_over_by_another_on_its_folder() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "taken-over")?;
    let mut storage = services.storage.start()?;
    // While the first one lives there is no broker for it, so that all of its visits stay in its slot.
    let launch = collectors(&services, 2);
    let mut promised = leave_behind(launch.clone().with("amqp-url", NOWHERE).start()?, 400)?;
    let mut second = {
        // Slot 0 is free: whoever keeps it for a moment makes the next one take slot 1.
        let mut keeper = launch.clone().with("amqp-url", NOWHERE).start()?;
        let second = launch.start()?;
        keeper.kill()?;
        second
    };
    let load = Load::start(second.address()?, 2);
    second.wait_for_log("taking it over")?;
    second.wait_for_log("letting it go")?;
    load.wait_for(100)?;
    promised.extend(load.stop().promised);
    services.output.has_each_once(&promised)?;
    second.admin()?.wait_for_metric(STRANDED_VISITS, |left| left == 0.0)?;
    // Its slot can be had again.
    let mut first = launch.start()?;
    first.stop()?;
    second.stop()?;
    storage.stop()?;
    audit_with(&services.output, &launch.folder().join("spool"))
}

#[test]
fn collectors_killed_again_and_again_lose_and_repeat_nothing_of_what_others_take_over() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "hand-over")?;
    let mut storage = services.storage.start()?;
    let launch = collectors(&services, 3);
    let mut promised = Vec::new();
    let mut others = [launch.start()?, launch.start()?];
    for round in 0..3 {
        let load = Load::start(others[round % 2].address()?, 4);
        load.wait_for(150)?;
        // In the middle of what it publishes; then the one that may be taking it over.
        others[round % 2].kill()?;
        promised.extend(load.stop().promised);
        promised.extend(leave_behind(launch.start()?, 150)?);
        thread::sleep(Duration::from_millis(700));
        others[round % 2].start_again()?;
    }
    services.output.has_each_once(&promised)?;
    for other in &mut others {
        other.admin()?.wait_for_metric(STRANDED_VISITS, |left| left == 0.0)?;
        other.stop()?;
    }
    storage.stop()?;
    audit_with(&services.output, &launch.folder().join("spool"))
}

/// Whoever relays a slot to its end has to make room for the collector that wants it back.
#[test]
fn a_collector_that_finds_its_slot_taken_over_gets_it_back() -> Outcome {
    let broker = Broker::start()?;
    let services = Services::new(&broker.url(), "wanted")?;
    let launch = collectors(&services, 2);
    let mut keeper = launch.start()?;
    let promised = leave_behind(launch.clone().with("amqp-url", NOWHERE).start()?, 200)?;
    // A broker that confirms nothing: what was taken over stays so.
    wait_until("a connection", || {
        keeper.admin().is_ok_and(|admin| admin.metric("pixel_broker_connected").is_ok_and(|on| on == 1.0))
    })?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.0000001"])?;
    keeper.wait_for_log("taking it over")?;
    let mut back = launch.start()?;
    keeper.wait_for_log("wants it back")?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.8"])?;
    let mut storage = services.storage.start()?;
    services.output.has_each_once(&promised)?;
    for program in [&mut keeper, &mut back, &mut storage] {
        program.stop()?;
    }
    audit_with(&services.output, &launch.folder().join("spool"))
}

#[test]
fn what_waits_in_slots_that_nobody_has_is_told_at_start_in_a_metric_and_by_status() -> Outcome {
    let launch = Embedded::launch()?.with("listen", "127.0.0.1:0").with("spool-slots", "2");
    // Nobody writes it: the output's folder is away.
    let lost = launch.clone().with("output", launch.folder().join("away/visits.log"));
    let promised = leave_behind(lost.start()?, 30)?;
    fs::rename(launch.folder().join("spool/0"), launch.folder().join("spool/7"))?;
    let mut pixel = launch.start()?;
    let said = pixel.wait_for_log("that no process has")?;
    assert!(said.contains("spool/7") && said.contains("pixel drain"), "{said}");
    let admin = pixel.admin()?;
    admin.wait_for_metric(STRANDED_VISITS, |left| left >= promised.len() as f64)?;
    admin.wait_for_metric("pixel_spool_stranded_slots", |slots| slots == 1.0)?;
    let status = Launch::new("pixel")?.argument("status").with("admin-listen", admin.address.to_string());
    let (code, said, log) = status.run()?;
    let told = format!("{} visits, in slots that no process has: 1", admin.metric(STRANDED_VISITS)?);
    assert!(code == 0 && said.contains(&told), "no {told}: {code} {said} {log}");
    pixel.stop()
}

#[test]
fn drain_writes_what_waits_in_every_slot_and_says_so() -> Outcome {
    let launch = Embedded::launch()?.with("listen", "127.0.0.1:0").with("spool-slots", "3");
    let lost = launch.clone().with("output", launch.folder().join("away/visits.log"));
    let keepers = [lost.start()?, lost.start()?];
    let mut promised = Vec::new();
    for keeper in keepers {
        promised.extend(leave_behind(keeper, 200)?);
    }
    let spool = launch.folder().join("spool");
    let drain = Launch::new("pixel")?.argument("drain").with("spool-dir", &spool);
    let drain = drain.with("format", "ndjson");
    let (status, said, log) = drain.run()?;
    assert!(status == 0 && said.contains("visits of 2 spools"), "{status} {said} {log}");
    drain.output().has_each_once(&promised)?;
    audit_with(&drain.output(), &spool)?;
    let (status, said, _) = drain.run()?;
    assert!(status == 0 && said.contains("nothing waits"), "{status} {said}");
    Ok(())
}

/// It passed for empty: "nothing waits", or "holds no spool".
#[test]
fn a_slot_that_cannot_be_looked_at_is_told_and_drain_ends_with_1() -> Outcome {
    let launch = Embedded::launch()?.with("listen", "127.0.0.1:0").with("spool-slots", "2");
    let spool = launch.folder().join("spool");
    fs::create_dir_all(spool.join("7"))?;
    fs::write(spool.join("7/producer"), "damaged")?;
    let drain = Launch::new("pixel")?.argument("drain").with("spool-dir", &spool);
    let drain = drain.with("format", "ndjson");
    let is_told = |status: i32, log: &str| {
        status == 1
            && log.contains("spool/7`: ")
            && log.contains("it is no UUID")
            && log.contains("visits may stay in 1 spool that cannot be looked at")
    };
    let (status, said, log) = drain.run()?;
    assert!(is_told(status, &log) && !said.contains("nothing waits"), "{status} {said} {log}");
    let lost = launch.clone().with("output", launch.folder().join("away/visits.log"));
    let mut pixel = lost.start()?;
    pixel.wait_for_log("failed to look at")?;
    let promised = leave_behind(pixel, 100)?;
    let (status, said, log) = drain.run()?;
    assert!(is_told(status, &log) && said.contains("visits of 1 spool written"), "{status} {said} {log}");
    drain.output().has_each_once(&promised)
}

#[test]
fn drain_publishes_what_waits_and_leaves_what_a_process_has() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "drained")?;
    let launch = collectors(&services, 2).with("amqp-url", NOWHERE);
    let mut promised = leave_behind(launch.start()?, 300)?;
    let spool = launch.folder().join("spool");
    fs::rename(spool.join("0"), spool.join("5"))?;
    let mut holder = launch.start()?;
    let load = Load::start(holder.address()?, 1);
    load.wait_for(20)?;
    let held = load.stop().promised;
    let drain = Launch::new("pixel-http")?.argument("drain").with("spool-dir", &spool);
    let drain = drain.with("amqp-url", broker.url()).with("queue", "drained");
    let (status, said, log) = drain.run()?;
    assert!(status == 0 && said.contains("visits of 1 spool"), "{status} {said} {log}");
    assert!(said.contains(&format!("process {}", holder.pid()?.as_raw_nonzero())), "{said}");
    let mut storage = services.storage.start()?;
    services.output.has_each_once(&promised)?;
    holder.stop()?;
    let (status, _, log) = drain.run()?;
    assert_eq!(status, 0, "{log}");
    promised.extend(held);
    services.output.has_each_once(&promised)?;
    storage.stop()?;
    audit_with(&services.output, &spool)
}

#[test]
fn drain_without_a_spool_or_an_end_says_so() -> Outcome {
    let launch = Launch::new("pixel-http")?.argument("drain").with("amqp-url", NOWHERE);
    let (status, _, said) = launch.run()?;
    assert!(status == 2 && said.contains("holds no spool"), "{status} {said}");
    // It waits for a broker until it is told to stop, and then says what stays.
    let services = Services::new(NOWHERE, "nobody")?;
    let mut program = services.http.start()?;
    assert_eq!(get(program.address()?, "/track", &[])?.status, 200);
    program.kill()?;
    let spool = services.http.folder().join("spool");
    let mut drain = launch.with("spool-dir", spool).spawn()?;
    drain.wait_for_log("trying again")?;
    drain.signal(rustix::process::Signal::TERM)?;
    assert_eq!(drain.wait()?, 1, "{}", drain.log());
    assert!(drain.log().contains("1 visit stays"), "{}", drain.log());
    Ok(())
}

/// Collectors look at each other's slots, and whoever was looked at in the moment of its start was refused.
#[test]
fn a_program_whose_spool_somebody_looks_at_in_the_moment_of_its_start_waits_a_moment() -> Outcome {
    let launch = Embedded::launch()?;
    let mut pixel = launch.start()?;
    pixel.stop()?;
    let lock = fs::File::open(launch.folder().join("spool/lock"))?;
    fs2::FileExt::try_lock_shared(&lock)?;
    let mut pixel = launch.spawn()?;
    pixel.wait_for_log("starts as process")?;
    thread::sleep(Duration::from_millis(100));
    drop(lock);
    pixel.address()?;
    pixel.stop()
}

/// It waited for 30 s for a slot that it could not ask for.
#[test]
fn a_collector_that_cannot_ask_for_its_slot_is_told_so_at_once() -> Outcome {
    let broker = Broker::start()?;
    let services = Services::new(&broker.url(), "cannot-ask")?;
    let launch = collectors(&services, 2);
    let mut keeper = launch.start()?;
    leave_behind(launch.clone().with("amqp-url", NOWHERE).start()?, 50)?;
    wait_until("a connection", || {
        keeper.admin().is_ok_and(|admin| admin.metric("pixel_broker_connected").is_ok_and(|on| on == 1.0))
    })?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.0000001"])?;
    keeper.wait_for_log("taking it over")?;
    // Both slots are held, and what would ask for one of them cannot be made.
    fs::create_dir(launch.folder().join("spool/1/wanted"))?;
    let mut back = launch.spawn()?;
    let started = std::time::Instant::now();
    assert_eq!(back.wait()?, 1, "{}", back.log());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(back.log().contains("failed to ask for the spool"), "{}", back.log());
    keeper.kill()
}
