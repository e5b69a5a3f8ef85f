//! Visits that go to whoever reads standard output.

use std::collections::BTreeSet;
use std::fs;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::get;
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::output::Output;

/// Prints to a file in its folder.
fn printing(launch: Launch, to: &str) -> (Launch, Output) {
    let printed = Output::at(launch.folder().join(to));
    (launch.with("output", "-").before(&format!("exec >>{to}")), printed)
}

#[test]
fn standard_output_has_each_visit_and_nothing_else() -> Outcome {
    let (launch, printed) = printing(Embedded::launch()?, "printed");
    let mut system = Embedded::of(&launch)?;
    let load = system.load(4);
    load.wait_for(200)?;
    system.pixel.signal(rustix::process::Signal::TERM)?;
    assert_eq!(system.pixel.wait()?, 0);
    system.pixel.start_again()?;
    load.wait_for(100)?;
    let answers = load.stop();
    system.pixel.stop()?;
    // All lines are whole, and none is there twice.
    printed.has_each_once(&answers.promised)?;
    let audit = launch.clone().before("true").argument("audit");
    let (status, text, stderr) = audit.clone().run()?;
    assert_eq!(status, 0, "{text} {stderr}");
    for said in
        [&format!("{} written", printed.lines().len()), "no gap", "no file was read (standard output)"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(launch.folder().join("pixel-data/stdout.ledger").exists(), "{text}");
    let (_, text, _) = audit.argument("--json").run()?;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text)?["quick"], true, "{text}");
    Ok(())
}

#[test]
fn a_crash_may_print_visits_twice_and_loses_none() -> Outcome {
    let (launch, printed) = printing(Embedded::launch()?, "printed");
    let mut system = Embedded::of(&launch)?;
    let load = system.load(4);
    for _ in 0..5 {
        load.wait_for(60)?;
        system.pixel.kill()?;
        system.pixel.start_again()?;
    }
    load.wait_for(60)?;
    let promised = load.stop().promised;
    system.pixel.stop()?;
    let written: BTreeSet<u64> = printed.written().into_keys().collect();
    let missing: Vec<_> = promised.iter().filter(|number| !written.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_it_with_one_clear_line_and_the_next_start_goes_on() -> Outcome {
    let launch = Embedded::launch()?.with("output", "-");
    let mut system = Embedded::of(&launch.clone().before("exec > >(head -n 1 >first)"))?;
    system.visit(&[("User-Agent", "one")])?;
    // Nobody has to visit for it to be noticed.
    assert_eq!(system.pixel.wait()?, 1, "{}", system.pixel.log());
    let log = system.pixel.log();
    assert!(log.ends_with("pixel: nobody reads standard output any more (broken pipe): what is not written yet is at the next start"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(fs::read_to_string(launch.folder().join("first"))?.contains("\"one\""));

    let (launch, printed) = printing(launch, "printed");
    let mut system = Embedded::of(&launch)?;
    system.visit(&[("User-Agent", "two")])?;
    let lines = printed.wait_for_lines(1)?;
    assert!(lines.len() == 1 && lines[0].contains("\"two\""), "{lines:?}");
    system.pixel.stop()
}

#[test]
fn a_reader_that_takes_nothing_makes_it_unready_and_it_still_ends_with_0() -> Outcome {
    let launch = Embedded::launch()?.with("output", "-").before("exec > >(sleep 60)");
    let mut system = Embedded::of(&launch)?;
    // A pipe takes 64 KiB.
    for _ in 0..60 {
        system.visit(&[("User-Agent", &"x".repeat(2000))])?;
    }
    let why = system.pixel.admin()?;
    why.wait_until_unready()?;
    assert!(why.readiness()?.1.contains("standard output`: whoever reads it takes nothing"));
    system.visit(&[])?;
    system.pixel.stop()
}

#[test]
fn pixel_storage_prints_and_keeps_its_ledger_where_it_is_told_to() -> Outcome {
    let services = Services::new(&Broker::shared()?.url(), "printed")?;
    let (storage, printed) = printing(services.storage, "printed");
    let state = storage.folder().join("state");
    let mut storage = storage.with("state-dir", &state).start()?;
    let mut http = services.http.start()?;
    assert_eq!(get(http.address()?, "/track?x=1", &[])?.status, 200);
    assert_eq!(printed.wait_for_visit(1)?["query"], "x=1");
    assert!(state.join("stdout.lock").exists() && state.join("stdout.ledger").exists());
    http.stop()?;
    storage.stop()
}
