//! `pixel-storage`: consumes the queue and appends each visit to the output file, once.

mod parts;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use pixel::amqp::Broker;
use pixel::program::options::{BrokerArgs, LogArgs, OutputArgs, Problems, StorageAdminArgs};
use pixel::program::{Failure, exit, listen_for_signals, start, start_log};

/// Consumes visits from RabbitMQ and appends each to a file, exactly once
#[derive(Parser)]
#[command(name = "pixel-storage", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    admin: StorageAdminArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the running program whether it is ready; exit status 1 when it is not
    Healthcheck(StorageAdminArgs),
}

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.command {
        Some(Command::Healthcheck(admin)) => {
            parts::healthcheck("pixel-storage", |problems| admin.check(problems))
        }
        None => exit("pixel-storage", run(&options)),
    }
}

fn run(args: &Options) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let checked = (
        args.broker.check(&mut problems),
        args.output.check(&mut problems),
        args.admin.check(&mut problems),
        args.log.check(&mut problems),
    );
    let settings = match checked {
        (Some(broker), Some(output), Some(admin), Some(log)) => Some((broker, output, admin, log)),
        _ => None,
    };
    let ((urls, queue), (output, format), admin, log) =
        problems.unless_any(settings).map_err(Failure::Settings)?;
    start_log(&log);
    let (events, received) = listen_for_signals().map_err(|error| error.to_string())?;
    let instruments @ (metrics, health) = parts::instruments();
    parts::open_admin(
        admin,
        (metrics, None),
        || parts::problems_of_storage(health),
        || parts::state_of_storage(health),
    )?;
    health.ill(pixel::broker::BROKER, "not connected yet");

    static STOP: AtomicBool = AtomicBool::new(false);
    let recorder = start("recorder", &events, move || {
        let connected =
            |broker: &str| log::info!("consuming {queue} from {broker}, writing to {}", output.display());
        let mut broker = Broker::new(urls, queue.clone());
        parts::with_recorder((&output, format), instruments, &STOP, |recorder| {
            recorder.run_over(&mut broker, connected, &STOP)
        })
    });
    let recorder = recorder.map_err(|error| error.to_string())?;
    parts::wait_for_end(&received, metrics)?;
    STOP.store(true, Ordering::Relaxed);
    parts::join(recorder);
    Ok(())
}
