#![allow(dead_code, reason = "each program uses some of them")]
//! The parts that the programs are put together from.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use pixel::amqp::AmqpUrl;
use pixel::broker::BROKER;
use pixel::connect::Backoff;
use pixel::health::Health;
use pixel::http::{
    Admin, Door, DoorSettings, Handler, STORE, Track, ask_ready, has_outgrown_memory, raise_open_files_limit,
};
use pixel::metrics::Metrics;
use pixel::output::file::{OutputFile, OutputLock, beside};
use pixel::output::ledger::LedgerFile;
use pixel::program::options::{Problems, SpoolSettings};
use pixel::program::{Event, Failure, SIGNALLED, exit};
use pixel::record::{Ledger, OUTPUT, RecordError, Recorder};
use pixel::spool::Spool;
use pixel::visit::client_ip::TrustedProxies;
use pixel::visit::lines::LineFormat;

/// tiny_http allocates some thirty times a request, and another thread frees it. With glibc's allocator a
/// visit costs 6 % more processor time (fifty rounds in turns), with mimalloc and snmalloc still more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long a program that ends waits for each of its parts.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that are given up cost a thread and two descriptors each; past this many, or past an
/// eighth of the descriptors, the program starts again.
const ABANDONED_MAX: u64 = 512;

/// A visit that was refused longer ago than this is no reason any more to be unready.
const REFUSAL_AGE: Duration = Duration::from_secs(10);

/// What is counted and what is wrong: as long-lived as the process.
pub fn instruments() -> (&'static Metrics, &'static Health) {
    (Box::leak(Box::default()), Box::leak(Box::default()))
}

/// Opens the spool, for as long as the process lives.
pub fn open_spool(settings: &SpoolSettings) -> Result<&'static Spool, Failure> {
    let spool = Spool::open(&settings.folder, settings.slots, settings.max_bytes);
    let spool = spool.map_err(|error| Failure::Runtime(error.to_string()))?;
    spool.prepare();
    match spool.visits() {
        0 => log::debug!("the spool is `{}`", spool.folder().display()),
        visits => log::info!("{visits} visits wait in the spool `{}`", spool.folder().display()),
    }
    Ok(Box::leak(Box::new(spool)))
}

/// Opens the public listener. Workers wait for nothing but the disk, and in turns: more of them than
/// cores only make for smaller groups (two cores, three noisy rounds: two workers took 3 % fewer, 17 % and
/// 46 % more visits than four).
pub fn open_public(
    mut settings: DoorSettings,
    proxies: TrustedProxies,
    spool: &'static Spool,
    (metrics, health): (&'static Metrics, &'static Health),
) -> Result<Door, Failure> {
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    settings.workers = settings.workers.min(cores);
    let limit = raise_open_files_limit().unwrap_or(u64::MAX);
    let wanted = 64 + 4 * settings.workers as u64;
    if limit < wanted {
        log::warn!(
            "only {limit} files may be open, of which a connection takes two: raise `ulimit -n` to {wanted} at least"
        );
    }
    let track = Box::leak(Box::new(Track::new(spool, proxies, metrics, health)));
    open_door(settings, track, metrics)
}

/// Opens the admin listener. `problems` says what of the health keeps the program from its job, and
/// `state` what is said when nothing does.
pub fn open_admin(
    settings: DoorSettings,
    (metrics, spool): (&'static Metrics, Option<&'static Spool>),
    problems: impl Fn() -> Vec<String> + Send + Sync + 'static,
    state: impl Fn() -> String + Send + Sync + 'static,
) -> Result<(), Failure> {
    let refresh = move |metrics: &Metrics| {
        if let Some(spool) = spool {
            metrics.spool_visits.set(i64::try_from(spool.visits()).unwrap_or(i64::MAX));
            metrics.spool_bytes.set(i64::try_from(spool.bytes()).unwrap_or(i64::MAX));
        }
    };
    let admin =
        Admin { metrics, refresh: Box::new(refresh), problems: Box::new(problems), state: Box::new(state) };
    let door = open_door(settings, Box::leak(Box::new(admin)), metrics)?;
    log::info!("admin on http://{}", door.address());
    Ok(())
}

fn open_door<H: Handler>(
    settings: DoorSettings,
    handler: &'static H,
    metrics: &'static Metrics,
) -> Result<Door, Failure> {
    let listen = settings.listen;
    let opened = Door::open(settings, handler, metrics);
    opened.map_err(|error| Failure::Runtime(format!("failed to listen on {listen}: {error}")))
}

/// Waits for the output's lock, opens its ledger, and hands a recorder to `record`. An output that
/// cannot be opened is tried again; `Ok` when the program is to stop.
pub fn with_recorder(
    (output, format): (&Path, LineFormat),
    (metrics, health): (&'static Metrics, &'static Health),
    stop: &AtomicBool,
    record: impl FnOnce(&mut Recorder<'_>) -> Result<(), RecordError>,
) -> Result<(), String> {
    let mut backoff = Backoff::default();
    let (lock, mut ledger) = loop {
        let stand_by = || {
            health.stand_by(true);
            log::info!("standing by: another process writes to `{}`", output.display());
        };
        let opened = OutputLock::acquire(output, stop, stand_by)
            .map_err(|error| format!("failed to lock `{}`: {error}", beside(output, "lock").display()))
            .and_then(|lock| {
                let Some(lock) = lock else { return Ok(None) };
                let ledger = LedgerFile::open(&beside(output, "ledger"));
                ledger.map(|ledger| Some((lock, ledger))).map_err(|error| error.to_string())
            });
        health.stand_by(false);
        match opened {
            Ok(Some(opened)) => break opened,
            Ok(None) => return Ok(()),
            Err(problem) if health.ill(OUTPUT, &problem) => log::error!("{problem}; trying again"),
            Err(_) => {}
        }
        backoff.wait(stop);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    };
    let mut visit_log = OutputFile::new(output, lock, ledger.written().output(), &SIGNALLED.reopen);
    let mut recorder = Recorder { format, visit_log: &mut visit_log, ledger: &mut ledger, metrics, health };
    record(&mut recorder).map_err(|error| match error {
        RecordError::LockLost(why) | RecordError::Refused(why) => why,
        RecordError::Inbox(inbox) => inbox.0,
    })
}

/// Waits for the event that ends the program; `true` when it is to start again.
pub fn wait_for_end(events: &Receiver<Event>, metrics: &Metrics) -> Result<bool, Failure> {
    let limit = raise_open_files_limit().unwrap_or(u64::MAX);
    loop {
        match events.recv_timeout(Duration::from_secs(1)) {
            Ok(Event::Stop) => return Ok(false),
            Ok(Event::Failed(problem)) => return Err(Failure::Runtime(problem)),
            Err(_) if metrics.abandoned_connections.get() > ABANDONED_MAX.min(limit / 8) => {
                log::warn!("too many connections had to be abandoned: draining and starting again");
                return Ok(true);
            }
            Err(_) if has_outgrown_memory() => {
                log::warn!("clients have made it too large: draining and starting again");
                return Ok(true);
            }
            Err(_) => {}
        }
    }
}

/// Waits until every visit of the spool is safe elsewhere, but not for ever.
pub fn drain(spool: &Spool) {
    let until = Instant::now() + PATIENCE;
    while spool.visits() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    if spool.visits() > 0 {
        log::info!("{} visits stay in the spool for the next start", spool.visits());
    }
}

/// Waits for a thread, but not for ever: one that hangs ends with the process.
pub fn join(thread: std::thread::JoinHandle<()>) {
    let until = Instant::now() + PATIENCE;
    while !thread.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks the running program whether it is ready: for a container's health check.
#[expect(clippy::print_stdout, reason = "the answer is what it is asked for")]
pub fn healthcheck(program: &str, check: impl FnOnce(&mut Problems) -> Option<DoorSettings>) -> ExitCode {
    let mut problems = Problems::default();
    let checked = check(&mut problems);
    let asked = problems.unless_any(checked).map_err(Failure::Settings);
    let answer = asked.and_then(|admin| ask_ready(admin.listen).map_err(Failure::Runtime));
    exit(program, answer.map(|state| println!("{state}")))
}

/// The broker's nodes, fit to be shown.
pub fn list(urls: &[AmqpUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What keeps pixel-http from its job: a broker that is away does so only when the spool is nearly full.
pub fn problems_of_collector(health: &Health, spool: &Spool) -> Vec<String> {
    health.lapse(STORE, REFUSAL_AGE);
    let nearly_full = spool.bytes() >= spool.max_bytes() / 10 * 9;
    health.problems_but(if nearly_full { None } else { Some(BROKER) })
}

/// What pixel-http says when it is ready.
pub fn state_of_collector(health: &Health) -> String {
    let waiting = health.all().into_iter().map(|problem| format!("visits wait in the spool: {problem}\n"));
    std::iter::once("ready\n".to_string()).chain(waiting).collect()
}

/// What keeps pixel-storage from its job; standing by is its job.
pub fn problems_of_storage(health: &Health) -> Vec<String> {
    if health.stands_by() { Vec::new() } else { health.all() }
}

/// What keeps `pixel` from its job: with a spool of its own, nobody else should write its output.
pub fn problems_of_embedded(health: &Health) -> Vec<String> {
    health.lapse(STORE, REFUSAL_AGE);
    let held = health.stands_by().then(|| "another process writes to the output".to_string());
    held.into_iter().chain(health.all()).collect()
}

/// What pixel-storage says when it is ready.
pub fn state_of_storage(health: &Health) -> String {
    if health.stands_by() { "standing by: another process writes\n".into() } else { "ready\n".into() }
}
