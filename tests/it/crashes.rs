//! `kill -9` of each program under load, again and again: every 200 is in the output once.

use std::net::SocketAddr;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::load::Load;
use crate::support::output::all_written_once;
use crate::support::output::audit;
use crate::support::port::free_port;
use crate::support::program::Launch;

const KILLS: usize = 8;

/// A launch whose listener keeps its address from start to start, and that address.
pub fn at_fixed_port(launch: Launch) -> (Launch, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    (launch.with("listen", address.to_string()), address)
}

#[test]
fn kill_9_of_pixel_under_load_loses_and_repeats_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 8);
    for _ in 0..KILLS {
        load.wait_for(150)?;
        pixel.kill()?;
        pixel = launch.start()?;
    }
    load.wait_for(150)?;
    let promised = load.stop();
    all_written_once(&promised, &output)?;
    pixel.stop()?;
    let (status, report) = audit(&output)?;
    assert_eq!(status, 0, "{report}");
    println!("{} answers of 200, {} lines, {KILLS} kills", promised.len(), report["producers"][0]["written"]);
    Ok(())
}

#[test]
fn kill_9_of_either_service_under_load_loses_and_repeats_nothing() -> Outcome {
    let broker = Broker::shared()?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let both =
        |program| Launch::new(program, folder.path()).with("amqp-url", broker.url()).with("queue", "crashes");
    let (http, address) = at_fixed_port(both("pixel-http"));
    let storage = both("pixel-storage").with("format", "ndjson");
    let mut collector = http.start()?;
    let mut writer = storage.start()?;
    let load = Load::start(&[address], 8);
    for kill in 0..KILLS {
        load.wait_for(150)?;
        if kill % 2 == 0 {
            collector.kill()?;
            collector = http.start()?;
        } else {
            writer.kill()?;
            writer = storage.start()?;
        }
    }
    load.wait_for(150)?;
    let promised = load.stop();
    all_written_once(&promised, &output)?;
    collector.stop()?;
    writer.stop()?;
    let (status, report) = audit(&output)?;
    assert_eq!(status, 0, "{report}");
    println!("{} answers of 200, {} lines, {KILLS} kills", promised.len(), report["producers"][0]["written"]);
    Ok(())
}
