//! What composes the stations into programs: options, the process with its parts and its end, and the pieces
//! that more than one program plugs in.

mod audit;
pub mod commands;
mod config_file;
mod convert;
mod disks;
mod drain;
mod given;
mod logger;
mod merge;
pub mod options;
mod output_files;
mod process;
mod progress;
mod replay;
mod report;
mod settings;
mod sockets;
mod sorted_lines;
mod status;
mod status_command;
mod stranded;
mod tail;
pub mod visit_file;
mod writer;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::audit::{audit, with_arguments as with_audit_arguments};
pub use self::convert::{convert, convert_command};
pub use self::disks::prepare;
pub use self::drain::{drain, drain_command, drain_to_broker, drain_to_broker_command};
pub use self::logger::LogSettings;
pub use self::merge::{merge, merge_command};
pub use self::process::{Ending, Failure, PATIENCE, Process, exit};
pub use self::replay::{dead_letters, replay, replay_broker, replay_broker_command, replay_command};
pub use self::report::{report, report_command};
pub use self::status::{Collector, Embedded, Storage};
pub use self::status_command::{status, status_command};
pub use self::stranded::look_after_slots;
pub use self::tail::{tail, tail_command};
pub use self::writer::Writer;

use clap::ArgMatches;

use self::options::{AdminSettings, BrokerSettings, Given, HttpSettings, Setting, SpoolSettings};
use crate::amqp;
use crate::disk::folder_of;
pub use crate::http::Facts;
use crate::http::{Admin, Listener, Page, Pixel, Status, Track, ask_ready};
use crate::limits::warn_of_few_files;
use crate::spool::{OpenError, Spool, want};
use crate::visit::lines::LineFormat;

/// How long a slot is waited for that another process relays and gives back: it may have to leave a broker that says
/// nothing.
const GIVING_WAY_MAX: Duration = Duration::from_secs(30);
/// How long a slot may be held by who only looks at it.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// How often it is looked how many visits came and went.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps the numbers of the queue up to date, over a connection of its own.
///
/// # Errors
/// What the system said where no thread is to be had.
pub fn watch_queue(broker: &BrokerSettings, process: &Process) -> Result<(), Failure> {
    let (urls, tls) = (broker.urls.clone(), broker.tls.clone());
    let queues: Vec<_> = broker.all_shards().into_iter().map(|shard| broker.queue_of(shard)).collect();
    let (metrics, stop) = (process.metrics.clone(), process.stop.clone());
    process.aside("queue", move || amqp::watch_queues(&urls, tls.as_ref(), &queues, &metrics, &stop))
}

/// Opens the spool, and makes its first segment.
///
/// # Errors
/// Who holds it, or what the system said.
pub fn open_spool(settings: &SpoolSettings) -> Result<Arc<Spool>, Failure> {
    let spool = open_when_free(settings)?;
    spool.prepare();
    match spool.visits() {
        0 => log::debug!("the spool is `{}`", spool.folder().display()),
        visits => log::info!("{visits} visits wait in the spool `{}`", spool.folder().display()),
    }
    Ok(Arc::new(spool))
}

/// Opens the spool. One that another process relays for who is gone is asked for, and waited for.
fn open_when_free(settings: &SpoolSettings) -> Result<Spool, Failure> {
    let started = Instant::now();
    loop {
        let held = match Spool::open(&settings.folder, settings.slots, settings.max_bytes) {
            Ok(spool) => return Ok(spool),
            Err(error @ OpenError::Held { .. }) => error,
            Err(error) => return Err(Failure::Runtime(error.to_string())),
        };
        let wanted = match &held {
            OpenError::Held { path, gives_way: true, .. } => Some(want(path).map_err(|error| {
                let folder = folder_of(path).display();
                Failure::Runtime(format!(
                    "failed to ask for the spool `{folder}`, which another process empties: {error}"
                ))
            })?),
            _ => None,
        };
        let patience = if wanted.is_some() { GIVING_WAY_MAX } else { LOOK_MAX };
        if started.elapsed() >= patience {
            return Err(Failure::Runtime(held.to_string()));
        }
        std::thread::sleep(Duration::from_millis(50));
        drop(wanted);
    }
}

/// Opens the public listener, whose visits go to `spool`, and are written in `format` where this program does it.
///
/// # Errors
/// What the system said to the address.
pub fn listen(
    settings: HttpSettings,
    spool: &Arc<Spool>,
    format: Option<LineFormat>,
    process: &Process,
) -> Result<Listener, Failure> {
    warn_of_few_files(64 + 4 * settings.listener.workers as u64);
    let page = Page::of(&settings.path, format, &settings.privacy);
    let track = Track {
        store: spool.clone(),
        proxies: settings.proxies,
        pixel: Pixel::at(settings.path, page),
        metrics: process.metrics.clone(),
        health: process.health.clone(),
    };
    let listener = process.listen(settings.listener, Arc::new(track))?;
    spool.note_address(&format!("http://{}", listener.address()));
    Ok(listener)
}

/// Opens the admin listener, which tells operators what `status` says. It closes with the process.
///
/// # Errors
/// What the system said to the address.
pub fn listen_for_operators(
    settings: AdminSettings,
    status: impl Status + 'static,
    facts: Facts,
    process: &Process,
) -> Result<SocketAddr, Failure> {
    let admin = Arc::new(Admin { metrics: process.metrics.clone(), status: Box::new(status), facts });
    let listener = process.listen(settings.listener, admin.clone())?;
    if let Some(numbers) = process.numbers.clone() {
        let (program, stop) = (process.metrics.role.program(), process.stop.clone());
        process.aside("otlp-metrics", move || {
            numbers.run(program, || admin.numbers(), |every| stop.wait(every))
        })?;
    }
    let (metrics, stop) = (process.metrics.clone(), process.stop.clone());
    process.aside("history", move || {
        let went = if metrics.role.writes() { &metrics.written } else { &metrics.published };
        metrics.history.look([metrics.accepted.get(), went.get()]);
        while !stop.wait(LOOK_EVERY) {
            metrics.history.look([metrics.accepted.get(), went.get()]);
        }
    })?;
    log::info!(
        "/healthz, /readyz and /metrics on http://{}, which is also the status page",
        listener.address()
    );
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
