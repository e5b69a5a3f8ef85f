//! `pixel-storage`: consumes the queue and appends each visit to the output file, once.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use pixel::amqp::Broker;
use pixel::health::Part;
use pixel::program::options::{
    BROKER, BrokerSettings, Given, LOGS, OUTPUTS, OutputSettings, STORAGE_ADMIN, STORAGE_ADMIN_LISTEN,
    admin_listener, log_settings, with_settings,
};
use pixel::program::{
    Failure, Process, Storage, Writer, audit, exit, healthcheck, listen_for_operators, replay_broker,
    replay_broker_command, with_audit_arguments,
};

/// As in `pixel`, which says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn command() -> Command {
    let command = Command::new("pixel-storage")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Consumes visits from RabbitMQ and appends each to a file, exactly once")
        .args_conflicts_with_subcommands(true)
        .subcommand(with_audit_arguments(with_settings(Command::new("audit"), &[OUTPUTS])))
        .subcommand(replay_broker_command())
        .subcommand(
            with_settings(Command::new("healthcheck"), &[STORAGE_ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, &[BROKER, OUTPUTS, STORAGE_ADMIN, LOGS])
}

fn main() -> ExitCode {
    let given = command().get_matches();
    match given.subcommand() {
        Some(("audit", given)) => exit("pixel-storage audit", audit(given)),
        Some(("replay", given)) => exit("pixel-storage replay", replay_broker(given)),
        Some((_, given)) => healthcheck("pixel-storage", given, &STORAGE_ADMIN_LISTEN),
        None => exit("pixel-storage", run(&given)),
    }
}

fn run(given: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(given);
    let broker = BrokerSettings::read(&mut given);
    let output = OutputSettings::read(&mut given);
    let admin = admin_listener(&mut given, &STORAGE_ADMIN_LISTEN);
    let log = log_settings(&mut given);
    given.refuse_bad()?;

    let mut process = Process::start(&log)?;
    process.health.ill(Part::Broker, "not connected yet");
    listen_for_operators(admin, Storage { health: process.health.clone() }, &process)?;
    let writer = Writer::new(output, &process);
    process.part("recorder", move || {
        let queue = broker.queue.clone();
        let connected = |node: &str| log::info!("consuming {queue} from {node}");
        let mut broker = Broker::new(broker.urls, broker.queue);
        writer.run(|recorder, stop| recorder.run_over(&mut broker, connected, stop))
    })?;
    let ending = process.wait()?;
    process.end(ending)
}
