//! `pixel-http`: takes visits, makes them durable in the spool, publishes them to RabbitMQ.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use pixel::amqp::Broker;
use pixel::program::options::{
    ADMIN, ADMIN_LISTEN, AdminSettings, BROKER, BrokerSettings, Given, HTTP, HttpSettings, LOGS, SPOOL,
    SpoolSettings, check, check_command, log_settings, with_settings,
};
use pixel::program::{
    Collector, Failure, LogSettings, Process, exit, healthcheck, listen, listen_for_operators, open_spool,
};
use pixel::relay::Relay;

/// As in `pixel`, which says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn command() -> Command {
    let all: &[_] = &[HTTP, BROKER, SPOOL, ADMIN, LOGS];
    let command = Command::new("pixel-http")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Answers GET /track with a transparent GIF, makes every visit durable and publishes it to RabbitMQ")
        .args_conflicts_with_subcommands(true)
        .subcommand(check_command(all))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}

fn main() -> ExitCode {
    let given = command().get_matches();
    match given.subcommand() {
        Some(("check", given)) => exit("pixel-http check", check(given, Settings::read)),
        Some((_, given)) => healthcheck("pixel-http", given, &ADMIN_LISTEN),
        None => exit("pixel-http", run(&given)),
    }
}

struct Settings {
    http: HttpSettings,
    broker: BrokerSettings,
    spool: SpoolSettings,
    admin: AdminSettings,
    log: LogSettings,
}

impl Settings {
    fn read(given: &mut Given<'_>) -> Self {
        Settings {
            http: HttpSettings::read(given),
            broker: BrokerSettings::read(given),
            spool: SpoolSettings::read(given),
            admin: AdminSettings::read(given, &ADMIN_LISTEN),
            log: log_settings(given),
        }
    }
}

fn run(given: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(given);
    let Settings { http, broker, spool, admin, log } = Settings::read(&mut given);
    given.refuse_bad()?;

    let mut process = Process::start(&log)?;
    let spool = open_spool(&spool)?;
    let target = format!("publishing to {}, queue {}", broker.nodes(), broker.queue);
    let mut broker = Broker::new(broker.urls, broker.tls, broker.queue);
    let (backlog, stop) = (spool.clone(), process.stop.clone());
    let (metrics, health) = (process.metrics.clone(), process.health.clone());
    process.part("relay", move || {
        Relay { backlog: &*backlog, metrics: &metrics, health: &health }.run(&mut broker, &stop);
        Ok(())
    })?;
    let public = listen(http, &spool, &process)?;
    listen_for_operators(admin, Collector { health: process.health.clone(), spool }, &process)?;
    log::info!("listening on http://{}, {target}", public.address());

    let ending = process.wait()?;
    process.close(public, ending);
    process.end(ending)
}
