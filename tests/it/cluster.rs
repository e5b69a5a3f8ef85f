//! A cluster of three RabbitMQ nodes that lose one another.

use std::time::Duration;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::fixtures::Brokered;
use crate::support::load::Load;
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
    let mut system = Brokered::start(&broker.url(), "cluster")?;
    let load = Load::paced(system.address, 4, Duration::from_millis(5));
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    let output = system.output.clone();
    let goes_on = || -> Outcome {
        let before = output.lines().len();
        wait_up_to(ELECTION_MAX, "further lines", || output.lines().len() > before + 200)?;
        wait_up_to(ELECTION_MAX, "both to be connected", || {
            [http, storage].iter().all(|admin| admin.metric("pixel_broker_connected").is_ok_and(|n| n == 1.0))
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
    assert_eq!(http.readiness()?.0, 200, "visits are taken all the same");
    broker.nodes[0].start()?;
    broker.nodes[1].start()?;
    goes_on()?;

    let answers = load.stop();
    wait_up_to(ELECTION_MAX, "an empty spool", || {
        http.metric("pixel_spool_visits").is_ok_and(|left| left == 0.0)
    })?;
    system.output.verify(&answers)?;
    system.stop_and_audit()
}
