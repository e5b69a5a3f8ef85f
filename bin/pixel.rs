//! `pixel`: both services in one process, with the spool in place of the broker.

mod parts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use pixel::output::file::beside;
use pixel::program::options::{AdminArgs, HttpArgs, LogArgs, OutputArgs, Problems, SpoolArgs};
use pixel::program::{Failure, exit, listen_for_signals, restart, start, start_log};
use pixel::record::audit::Audit;
use pixel::record::spool_inbox::SpoolInbox;

/// A tracking pixel that writes every visit exactly once: GET /track, answered with a transparent GIF
#[derive(Parser)]
#[command(name = "pixel", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Take visits and write them; what plain `pixel` does
    Run(Box<RunArgs>),
    /// Print what was written, per producer, with gaps and dropped duplicates; exit status 1 on a gap
    Audit {
        #[command(flatten)]
        output: OutputArgs,
        /// One JSON object, for machines
        #[arg(long)]
        json: bool,
    },
    /// Ask the running program whether it is ready; exit status 1 when it is not
    Healthcheck(AdminArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    spool: SpoolArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    log: LogArgs,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.command {
        Some(Command::Audit { output, json }) => exit("pixel audit", audit(&output, json)),
        Some(Command::Healthcheck(admin)) => parts::healthcheck("pixel", |problems| admin.check(problems)),
        Some(Command::Run(run)) => exit("pixel", self::run(&run)),
        None => exit("pixel", self::run(&options.run)),
    }
}

fn run(args: &RunArgs) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let checked = (
        args.http.check(&mut problems),
        args.spool.check(&mut problems),
        args.output.check(&mut problems),
        args.admin.check(&mut problems),
        args.log.check(&mut problems),
    );
    let settings = match checked {
        (Some(http), Some(spool), Some(output), Some(admin), Some(log)) => {
            Some((http, spool, output, admin, log))
        }
        _ => None,
    };
    let ((door, proxies), spool, (output, format), admin, log) =
        problems.unless_any(settings).map_err(Failure::Settings)?;
    start_log(&log);
    let (events, received) = listen_for_signals().map_err(|error| error.to_string())?;
    let instruments @ (metrics, health) = parts::instruments();
    let spool = parts::open_spool(&spool)?;

    static STOP: AtomicBool = AtomicBool::new(false);
    let path = output.clone();
    let recorder = start("recorder", &events, move || {
        parts::with_recorder((&path, format), instruments, &STOP, |recorder| {
            recorder.prepare(&STOP)?;
            let mut inbox = SpoolInbox::new(spool, spool.folder().join("dead.ndjson"));
            recorder.run(&mut inbox, &STOP)
        })
    });
    let recorder = recorder.map_err(|error| error.to_string())?;
    let public = parts::open_public(door, proxies, spool, instruments)?;
    parts::open_admin(
        admin,
        (metrics, Some(spool)),
        || parts::problems_of_embedded(health),
        || "ready\n".into(),
    )?;
    log::info!("listening on http://{}, writing to {}", public.address(), output.display());

    let again = parts::wait_for_end(&received, metrics)?;
    public.close(parts::PATIENCE);
    parts::drain(spool);
    STOP.store(true, Ordering::Relaxed);
    parts::join(recorder);
    if again { Err(restart()) } else { Ok(()) }
}

#[expect(clippy::print_stdout, reason = "the report is what it is asked for")]
fn audit(output: &OutputArgs, json: bool) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let checked = output.check(&mut problems);
    let (output, _) = problems.unless_any(checked).map_err(Failure::Settings)?;
    let ledger: PathBuf = beside(&output, "ledger");
    let written = pixel::output::ledger::read(&ledger).map_err(|error| {
        Failure::Settings(format!("failed to read the ledger `{}`: {error}", ledger.display()))
    })?;
    let audit = Audit::of(&written);
    if json {
        let object = serde_json::to_string(&audit).map_err(|error| error.to_string())?;
        println!("{object}");
    } else {
        print!("{audit}");
    }
    if audit.missing > 0 { Err(Failure::Reported) } else { Ok(()) }
}
