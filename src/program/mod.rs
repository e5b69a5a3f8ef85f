//! What composes the stations into programs: options, the process with its parts and its end, and the pieces
//! that more than one program plugs in.

mod audit;
mod config_file;
mod given;
mod logger;
pub mod options;
mod process;
mod progress;
mod replay;
mod settings;
mod sockets;
mod status;
mod writer;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

pub use self::audit::{audit, with_arguments as with_audit_arguments};
pub use self::logger::LogSettings;
pub use self::process::{Ending, Failure, PATIENCE, Process, exit};
pub use self::replay::{dead_letters, replay, replay_broker, replay_broker_command, replay_command};
pub use self::status::{Collector, Embedded, Storage};
pub use self::writer::Writer;

use clap::ArgMatches;

use self::options::{AdminSettings, Given, HttpSettings, Setting, SpoolSettings};
use crate::http::{Admin, Listener, Pixel, Status, Track, ask_ready};
use crate::limits::warn_of_few_files;
use crate::spool::Spool;

/// Opens the spool, and makes its first segment.
///
/// # Errors
/// Who holds it, or what the system said.
pub fn open_spool(settings: &SpoolSettings) -> Result<Arc<Spool>, Failure> {
    let spool = Spool::open(&settings.folder, settings.slots, settings.max_bytes);
    let spool = spool.map_err(|error| Failure::Runtime(error.to_string()))?;
    spool.prepare();
    match spool.visits() {
        0 => log::debug!("the spool is `{}`", spool.folder().display()),
        visits => log::info!("{visits} visits wait in the spool `{}`", spool.folder().display()),
    }
    Ok(Arc::new(spool))
}

/// Opens the public listener, whose visits go to `spool`.
///
/// # Errors
/// What the system said to the address.
pub fn listen(settings: HttpSettings, spool: &Arc<Spool>, process: &Process) -> Result<Listener, Failure> {
    warn_of_few_files(64 + 4 * settings.listener.workers as u64);
    let track = Track {
        store: spool.clone(),
        proxies: settings.proxies,
        pixel: Pixel::at(settings.path),
        metrics: process.metrics.clone(),
        health: process.health.clone(),
    };
    process.listen(settings.listener, Arc::new(track))
}

/// Opens the admin listener, which tells operators what `status` says. It closes with the process.
///
/// # Errors
/// What the system said to the address.
pub fn listen_for_operators(
    settings: AdminSettings,
    status: impl Status + 'static,
    process: &Process,
) -> Result<SocketAddr, Failure> {
    let admin = Admin { metrics: process.metrics.clone(), status: Box::new(status) };
    let listener = process.listen(settings.listener, Arc::new(admin))?;
    log::info!("/healthz, /readyz and /metrics on http://{}", listener.address());
    Ok(listener.address())
}

/// Asks the running program whether it is ready: for a container's health check.
#[expect(clippy::print_stdout, reason = "the answer is what it is asked for")]
pub fn healthcheck(program: &str, given: &ArgMatches, setting: &'static Setting) -> ExitCode {
    let mut given = Given::new(given);
    let admin = AdminSettings::read(&mut given, setting);
    let asked = given.refuse_bad().and_then(|()| ask_ready(admin.listener.listen).map_err(Failure::Runtime));
    exit(program, asked.map(|state| println!("{state}")))
}
