//! `pixel-storage`: consumes the queue and appends each visit to the output file, once.

use std::process::ExitCode;

use clap::ArgMatches;
use pixel::amqp::OutputName;
use pixel::health::Part;
use pixel::metrics::Role;
use pixel::program::options::{
    AdminSettings, BrokerSettings, Given, OutputSettings, STORAGE_ADMIN_LISTEN, check, log_settings,
};
use pixel::program::{
    Facts, Failure, LogSettings, Process, Storage, Writer, audit, commands, exit, healthcheck,
    listen_for_operators, prepare, replay_broker, status, watch_queue,
};
use pixel::queue::Shard;

/// As in `pixel`, which says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let given = commands::pixel_storage().get_matches();
    match given.subcommand() {
        Some(("audit", given)) => exit("pixel-storage audit", audit(given)),
        Some(("replay", given)) => exit("pixel-storage replay", replay_broker(given)),
        Some(("check", given)) => exit("pixel-storage check", check(given, Settings::read)),
        Some(("status", given)) => exit("pixel-storage status", status(given, &STORAGE_ADMIN_LISTEN)),
        Some((_, given)) => healthcheck("pixel-storage", given, &STORAGE_ADMIN_LISTEN),
        None => exit("pixel-storage", run(&given)),
    }
}

struct Settings {
    broker: BrokerSettings,
    shards: Vec<Shard>,
    masstransit: Option<String>,
    takes_over: bool,
    output: OutputSettings,
    admin: AdminSettings,
    log: LogSettings,
}

impl Settings {
    fn read(given: &mut Given<'_>) -> Self {
        let broker = BrokerSettings::read(given);
        Settings {
            shards: broker.read_choice(given),
            masstransit: BrokerSettings::read_masstransit(given),
            takes_over: BrokerSettings::read_takeover(given),
            broker,
            output: OutputSettings::read(given),
            admin: AdminSettings::read(given, &STORAGE_ADMIN_LISTEN),
            log: log_settings(given),
        }
    }
}

fn run(given: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(given);
    let Settings { broker, shards, masstransit, takes_over, output, admin, log } = Settings::read(&mut given);
    let effective = given.effective();
    given.refuse_bad()?;

    let mut process = Process::start(Role::Storage, &log)?;
    process.announce(&effective);
    process.health.ill(Part::Broker, "not connected yet");
    let outputs: Vec<_> = shards.iter().map(|shard| output.of_shard(*shard)).collect();
    let names: Vec<_> = outputs.iter().map(|output| output.state_path()).collect();
    prepare(&outputs, None)?;
    let writer = Writer::of_any(outputs, &process);
    let facts = Facts { broker: Some(broker.nodes()), queue: Some(broker.queue.clone()), ..Facts::default() };
    let status = Storage { health: process.health.clone(), files: writer.files() };
    listen_for_operators(admin, status, facts, &process)?;
    watch_queue(&broker, &process)?;
    process.part("recorder", move || {
        writer.run_any(|at, id, recorder, stop| {
            let queue = broker.queue_of(shards[at]);
            let connected = |node: &str| log::info!("consuming {queue} from {node}");
            // A fanout exchange would give each shard a copy.
            let exchange = masstransit.filter(|_| matches!(shards[at], None | Some(0)));
            let output = OutputName { id, path: names[at].clone(), takes_over };
            let mut broker = broker.consuming(shards[at]).also_from(exchange).held_by(output);
            recorder.run_over(&mut broker, connected, stop)
        })
    })?;
    let ending = process.wait()?;
    process.end(ending, || "what is not acknowledged stays in the queue".into())
}
