//! `pixel-http`: takes visits, makes them durable in the spool, publishes them to RabbitMQ.

use std::process::ExitCode;

use clap::ArgMatches;
use pixel::metrics::Role;
use pixel::program::options::{
    ADMIN_LISTEN, AdminSettings, BrokerSettings, Given, HttpSettings, SpoolSettings, check, log_settings,
};
use pixel::program::{
    Collector, Facts, Failure, LogSettings, Process, commands, drain_to_broker, exit, healthcheck, listen,
    listen_for_operators, look_after_slots, open_spool, prepare, status, watch_queue,
};
use pixel::relay::Relay;

/// As in `pixel`, which says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let given = commands::pixel_http().get_matches();
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
