//! `pixel-http`: takes visits, makes them durable in the spool, publishes them to RabbitMQ.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use pixel::metrics::Role;
use pixel::program::options::{
    ADMIN, ADMIN_LISTEN, AdminSettings, BROKER, BrokerSettings, Given, HTTP, HttpSettings, LOGS, SPOOL,
    SpoolSettings, check, check_command, log_settings, with_settings,
};
use pixel::program::{
    Collector, Facts, Failure, LogSettings, Process, drain_to_broker, drain_to_broker_command, exit,
    healthcheck, listen, listen_for_operators, look_after_slots, open_spool, prepare, status, status_command,
    watch_queue,
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
        .subcommand(drain_to_broker_command())
        .subcommand(check_command(all))
        .subcommand(status_command(ADMIN))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}

fn main() -> ExitCode {
    let given = command().get_matches();
    match given.subcommand() {
        Some(("drain", given)) => exit("pixel-http drain", drain_to_broker(given)),
        Some(("check", given)) => exit("pixel-http check", check(given, Settings::read)),
        Some(("status", given)) => exit("pixel-http status", status(given, &ADMIN_LISTEN)),
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
    let effective = given.effective();
    given.refuse_bad()?;

    let mut process = Process::start(Role::Collector, &log)?;
    process.announce(&effective);
    let spool_settings = spool;
    prepare(&[], Some(&spool_settings.folder))?;
    let spool = open_spool(&spool_settings)?;
    let target = format!("publishing to {}, queue {}", broker.nodes(), broker.queue);
    let noted = spool.shard_into(broker.shards);
    noted.map_err(|error| format!("failed to note the shards in `{}`: {error}", spool.folder().display()))?;
    let facts = Facts {
        broker: Some(broker.nodes()),
        queue: Some(broker.queue.clone()),
        spool: Some(spool.folder().display().to_string()),
        ..Facts::default()
    };
    watch_queue(&broker, &process)?;
    let path = http.path.clone();
    let mut nodes = broker.publishing(&spool.shards());
    let (backlog, stop) = (spool.clone(), process.stop.clone());
    let (metrics, health) = (process.metrics.clone(), process.health.clone());
    process.part("relay", move || {
        Relay { backlog: &*backlog, metrics: &metrics, health: &health }.run(&mut nodes, &stop);
        Ok(())
    })?;
    look_after_slots(&spool_settings, Some(broker), &mut process)?;
    let public = listen(http, &spool, None, &process)?;
    let facts = Facts { pixel: Some(format!("http://{}{path}", public.address())), ..facts };
    let status = Collector { health: process.health.clone(), spool: spool.clone() };
    listen_for_operators(admin, status, facts, &process)?;
    log::info!("listening on http://{}, {target}", public.address());

    let ending = process.wait()?;
    process.close(public, ending);
    process.end(ending, || spool.what_stays())
}
