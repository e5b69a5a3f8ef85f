//! `pixel`: both services in one process, with the spool in place of the broker.

use std::process::ExitCode;

use clap::ArgMatches;
use pixel::metrics::Role;
use pixel::program::options::{
    ADMIN_LISTEN, AdminSettings, Given, HttpSettings, OutputSettings, SpoolSettings, check, log_settings,
};
use pixel::program::{
    Embedded, Facts, Failure, LogSettings, PATIENCE, Process, Writer, audit, commands, convert, dead_letters,
    drain, exit, healthcheck, listen, listen_for_operators, look_after_slots, merge, open_spool, prepare,
    replay, report, status, tail,
};
use pixel::record::SpoolInboxes;

/// tiny_http allocates some thirty times a request, and another thread frees it. With glibc's allocator a
/// visit costs 6 % more processor time (fifty rounds in turns), with mimalloc and snmalloc still more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let given = commands::pixel().get_matches();
    match given.subcommand() {
        Some(("audit", given)) => exit("pixel audit", audit(given)),
        Some(("replay", given)) => exit("pixel replay", replay(given)),
        Some(("drain", given)) => exit("pixel drain", drain(given)),
        Some(("merge", given)) => exit("pixel merge", merge(given)),
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
    prepare(std::slice::from_ref(&output), Some(&settings.folder))?;
    let spool = open_spool(&settings)?;
    let path = http.path.clone();
    let format = output.format;
    let writer = Writer::new(output, &process);
    let files = writer.files();
    let backlog = spool.clone();
    process.part("recorder", move || {
        let mut inboxes = SpoolInboxes::new(backlog.clone(), dead_letters(backlog.folder()));
        writer.run(|recorder, stop| recorder.run_over(&mut inboxes, |_| (), stop))
    })?;
    look_after_slots(&settings, None, &mut process)?;
    let public = listen(http, &spool, Some(format), &process)?;
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
