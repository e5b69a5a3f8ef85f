//! `pixel-storage`: consumes the queue and appends each visit to the output file, once.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use pixel::amqp::Broker;
use pixel::health::Part;
use pixel::program::options::{
    AdminSettings, BROKER, BrokerSettings, Given, LOGS, OUTPUTS, OutputSettings, STORAGE_ADMIN,
    STORAGE_ADMIN_LISTEN, check, check_command, log_settings, with_settings,
};
use pixel::program::{
    Failure, LogSettings, Process, Storage, Writer, audit, exit, healthcheck, listen_for_operators,
    replay_broker, replay_broker_command, with_audit_arguments,
};

/// As in `pixel`, which says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn command() -> Command {
    let all: &[_] = &[BROKER, OUTPUTS, STORAGE_ADMIN, LOGS];
    let command = Command::new("pixel-storage")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Consumes visits from RabbitMQ and appends each to a file, exactly once")
        .args_conflicts_with_subcommands(true)
        .subcommand(with_audit_arguments(with_settings(Command::new("audit"), &[OUTPUTS])))
        .subcommand(replay_broker_command())
        .subcommand(check_command(all))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[STORAGE_ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}

fn main() -> ExitCode {
    let given = command().get_matches();
    match given.subcommand() {
        Some(("audit", given)) => exit("pixel-storage audit", audit(given)),
        Some(("replay", given)) => exit("pixel-storage replay", replay_broker(given)),
        Some(("check", given)) => exit("pixel-storage check", check(given, Settings::read)),
        Some((_, given)) => healthcheck("pixel-storage", given, &STORAGE_ADMIN_LISTEN),
        None => exit("pixel-storage", run(&given)),
    }
}

struct Settings {
    broker: BrokerSettings,
    output: OutputSettings,
    admin: AdminSettings,
    log: LogSettings,
}

impl Settings {
    fn read(given: &mut Given<'_>) -> Self {
        Settings {
            broker: BrokerSettings::read(given),
            output: OutputSettings::read(given),
            admin: AdminSettings::read(given, &STORAGE_ADMIN_LISTEN),
            log: log_settings(given),
        }
    }
}

fn run(given: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(given);
    let Settings { broker, output, admin, log } = Settings::read(&mut given);
    given.refuse_bad()?;

    let mut process = Process::start(&log)?;
    process.health.ill(Part::Broker, "not connected yet");
    listen_for_operators(admin, Storage { health: process.health.clone() }, &process)?;
    let writer = Writer::new(output, &process);
    process.part("recorder", move || {
        let queue = broker.queue.clone();
        let connected = |node: &str| log::info!("consuming {queue} from {node}");
        let mut broker = Broker::new(broker.urls, broker.tls, broker.queue);
        writer.run(|recorder, stop| recorder.run_over(&mut broker, connected, stop))
    })?;
    let ending = process.wait()?;
    process.end(ending)
}
