//! `pixel`: both services in one process, with the spool in place of the broker.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use pixel::metrics::Role;
use pixel::program::options::{
    ADMIN, ADMIN_LISTEN, AdminSettings, Given, HTTP, HttpSettings, LOGS, OUTPUTS, OutputSettings, SPOOL,
    SpoolSettings, check, check_command, log_settings, with_settings,
};
use pixel::program::{
    Embedded, Facts, Failure, LogSettings, PATIENCE, Process, Writer, audit, convert, convert_command,
    dead_letters, drain, drain_command, exit, healthcheck, listen, listen_for_operators, look_after_slots,
    open_spool, replay, replay_command, report, report_command, status, status_command, tail, tail_command,
    with_audit_arguments,
};
use pixel::record::SpoolInboxes;

/// tiny_http allocates some thirty times a request, and another thread frees it. With glibc's allocator a
/// visit costs 6 % more processor time (fifty rounds in turns), with mimalloc and snmalloc still more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn command() -> Command {
    let all: &[_] = &[HTTP, SPOOL, OUTPUTS, ADMIN, LOGS];
    let command = Command::new("pixel")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A tracking pixel that writes every visit exactly once: GET /track, answered with a transparent GIF")
        .args_conflicts_with_subcommands(true)
        .subcommand(with_settings(Command::new("run").about("Take visits and write them; what plain `pixel` does"), all))
        .subcommand(with_audit_arguments(with_settings(Command::new("audit"), &[OUTPUTS])))
        .subcommand(replay_command())
        .subcommand(drain_command())
        .subcommand(convert_command())
        .subcommand(report_command())
        .subcommand(tail_command())
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
        Some(("audit", given)) => exit("pixel audit", audit(given)),
        Some(("replay", given)) => exit("pixel replay", replay(given)),
        Some(("drain", given)) => exit("pixel drain", drain(given)),
        Some(("convert", given)) => exit("pixel convert", convert(given)),
        Some(("report", given)) => exit("pixel report", report(given)),
        Some(("tail", given)) => exit("pixel tail", tail(given)),
        Some(("check", given)) => exit("pixel check", check(given, Settings::read)),
        Some(("status", given)) => exit("pixel status", status(given, &ADMIN_LISTEN)),
        Some(("healthcheck", given)) => healthcheck("pixel", given, &ADMIN_LISTEN),
        Some((_, given)) => exit("pixel", run(given)),
        None => exit("pixel", run(&given)),
    }
}

struct Settings {
    http: HttpSettings,
    spool: SpoolSettings,
    output: OutputSettings,
    admin: AdminSettings,
    log: LogSettings,
}

impl Settings {
    fn read(given: &mut Given<'_>) -> Self {
        Settings {
            http: HttpSettings::read(given),
            spool: SpoolSettings::read(given),
            output: OutputSettings::read(given),
            admin: AdminSettings::read(given, &ADMIN_LISTEN),
            log: log_settings(given),
        }
    }
}

fn run(given: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(given);
    let Settings { http, spool, output, admin, log } = Settings::read(&mut given);
    let effective = given.effective();
    given.refuse_bad()?;

    let mut process = Process::start(Role::Embedded, &log)?;
    process.announce(&effective);
    let settings = spool;
    let spool = open_spool(&settings)?;
    let path = http.path.clone();
    let writer = Writer::new(output, &process);
    let files = writer.files();
    let backlog = spool.clone();
    process.part("recorder", move || {
        let mut inboxes = SpoolInboxes::new(backlog.clone(), dead_letters(backlog.folder()));
        writer.run(|recorder, stop| recorder.run_over(&mut inboxes, |_| (), stop))
    })?;
    look_after_slots(&settings, None, &mut process)?;
    let public = listen(http, &spool, &process)?;
    let facts = Facts {
        pixel: Some(format!("http://{}{path}", public.address())),
        spool: Some(spool.folder().display().to_string()),
        ..Facts::default()
    };
    let status = Embedded { health: process.health.clone(), spool: spool.clone(), files };
    listen_for_operators(admin, status, facts, &process)?;
    log::info!("listening on http://{}", public.address());

    let ending = process.wait()?;
    process.close(public, ending);
    spool.drain(PATIENCE);
    process.end(ending, || spool.what_stays())
}
