//! `pixel-http`: takes visits, makes them durable in the spool, publishes them to RabbitMQ.

mod parts;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use pixel::amqp::Broker;
use pixel::program::options::{AdminArgs, BrokerArgs, HttpArgs, LogArgs, Problems, SpoolArgs};
use pixel::program::{Failure, exit, listen_for_signals, restart, start, start_log};
use pixel::relay::Relay;

/// Answers GET /track with a transparent GIF, makes every visit durable and publishes it to RabbitMQ
#[derive(Parser)]
#[command(name = "pixel-http", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    spool: SpoolArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the running program whether it is ready; exit status 1 when it is not
    Healthcheck(AdminArgs),
}

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.command {
        Some(Command::Healthcheck(admin)) => {
            parts::healthcheck("pixel-http", |problems| admin.check(problems))
        }
        None => exit("pixel-http", run(&options)),
    }
}

fn run(args: &Options) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let checked = (
        args.http.check(&mut problems),
        args.broker.check(&mut problems),
        args.spool.check(&mut problems),
        args.admin.check(&mut problems),
        args.log.check(&mut problems),
    );
    let settings = match checked {
        (Some(http), Some(broker), Some(spool), Some(admin), Some(log)) => {
            Some((http, broker, spool, admin, log))
        }
        _ => None,
    };
    let ((door, proxies), (urls, queue), spool, admin, log) =
        problems.unless_any(settings).map_err(Failure::Settings)?;
    start_log(&log);
    let (events, received) = listen_for_signals().map_err(|error| error.to_string())?;
    let instruments @ (metrics, health) = parts::instruments();
    let spool = parts::open_spool(&spool)?;

    static STOP: AtomicBool = AtomicBool::new(false);
    let ready = format!("publishing to {}, queue {queue}", parts::list(&urls));
    let mut broker = Broker::new(urls, queue);
    let relay = start("relay", &events, move || {
        Relay { backlog: spool, metrics, health }.run(&mut broker, &STOP);
        Ok(())
    });
    let relay = relay.map_err(|error| error.to_string())?;
    let public = parts::open_public(door, proxies, spool, instruments)?;
    parts::open_admin(
        admin,
        (metrics, Some(spool)),
        move || parts::problems_of_collector(health, spool),
        || parts::state_of_collector(health),
    )?;
    log::info!("listening on http://{}, {ready}", public.address());

    let again = parts::wait_for_end(&received, metrics)?;
    public.close(parts::PATIENCE);
    STOP.store(true, Ordering::Relaxed);
    parts::join(relay);
    if again { Err(restart()) } else { Ok(()) }
}
