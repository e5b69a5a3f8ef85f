//! A cluster of three RabbitMQ nodes that lose one another.

use std::time::Duration;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::{metric, ready};
use crate::support::load::Load;
use crate::support::output::all_written_once;
use crate::support::output::{audit, lines};
use crate::support::program::{Launch, at_fixed_port};
use crate::support::wait::wait_up_to;

/// How long a cluster may take to find its way back, on a busy machine.
const ELECTION_MAX: Duration = Duration::from_secs(180);

/// Which node leads the queue.
fn leader(broker: &Broker, queue: &str) -> Outcome<usize> {
    let listed = broker.nodes[0].control(&["list_queues", "--silent", "name", "leader"])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
    let name = lines.find(|(name, _)| *name == queue).ok_or_else(|| format!("no {queue} in {listed}"))?.1;
    let led = broker.nodes.iter().position(|node| node.name() == name.trim());
    led.ok_or_else(|| format!("{name} is none of the nodes").into())
}

#[test]
fn a_cluster_that_loses_its_nodes_loses_no_visit() -> Outcome {
    let mut broker = Broker::cluster(3)?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let both =
        |program| Launch::new(program, folder.path()).with("amqp-url", broker.url()).with("queue", "cluster");
    let (http, address) = at_fixed_port(both("pixel-http"));
    let storage = both("pixel-storage").with("format", "ndjson");
    let mut collector = http.start()?;
    let mut writer = storage.start()?;
    let load = Load::paced(&[address], 4, Duration::from_millis(5));
    let (http, storage) = (collector.admin()?, writer.admin()?);
    let goes_on = || -> Outcome {
        let before = lines(&output).len();
        wait_up_to(ELECTION_MAX, "further lines", || lines(&output).len() > before + 200)?;
        wait_up_to(ELECTION_MAX, "both to be connected", || {
            [http, storage]
                .iter()
                .all(|admin| metric(*admin, "pixel_broker_connected").is_ok_and(|n| n == 1.0))
        })
    };
    load.wait_for(200)?;
    broker.wait_until_durable("cluster")?;
    goes_on()?;

    let leads = leader(&broker, "cluster")?;
    broker.nodes[leads].kill()?;
    goes_on()?;
    broker.nodes[leads].start()?;
    goes_on()?;

    // Each in turn: so the one that either service is connected to is among them.
    for n in 0..3 {
        broker.nodes[n].kill()?;
        goes_on()?;
        broker.nodes[n].start()?;
    }
    goes_on()?;

    broker.nodes[0].kill()?;
    broker.nodes[1].kill()?;
    load.wait_for(300)?;
    assert_eq!(ready(http)?.0, 200, "visits are taken all the same");
    broker.nodes[0].start()?;
    broker.nodes[1].start()?;
    goes_on()?;

    let promised = load.stop();
    let waiting = || metric(http, "pixel_spool_visits").map_or(true, |left| left > 0.0);
    wait_up_to(ELECTION_MAX, "an empty spool", || !waiting())?;
    all_written_once(&promised, &output)?;
    collector.stop()?;
    writer.stop()?;
    let (status, report) = audit(&output)?;
    assert_eq!(status, 0, "{report}");
    Ok(())
}
