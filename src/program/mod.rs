//! What every program does around its work: log, signals, and the way to its end.

pub mod options;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;

/// Why a program ends.
#[derive(Debug)]
pub enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// A part cannot go on, and why.
    Failed(String),
}

/// The signals that this process got.
pub struct Signalled {
    /// SIGHUP came since it was last reset.
    pub reopen: AtomicBool,
    /// SIGTERM or SIGINT came.
    pub stop: AtomicBool,
}

/// The one instance: signals are the process's, not a part's.
pub static SIGNALLED: Signalled = Signalled { reopen: AtomicBool::new(false), stop: AtomicBool::new(false) };

/// Starts the log: to stderr, each line with time and level. tiny_http and amiquip are heard only where
/// the filter names them: what they report as errors, Pixel handles and words itself.
pub fn start_log(filter: &str) {
    let mut builder = env_logger::Builder::new();
    for library in ["tiny_http", "amiquip"] {
        builder.filter_module(library, log::LevelFilter::Off);
    }
    builder.parse_filters(filter).format_target(false).init();
}

/// Listens for signals; the first SIGTERM or SIGINT is an [`Event::Stop`], the second ends at once.
///
/// # Errors
/// What the system said.
pub fn listen_for_signals() -> io::Result<(Sender<Event>, Receiver<Event>)> {
    let (events, received) = crossbeam_channel::unbounded();
    let stop = {
        let events = events.clone();
        move || {
            if SIGNALLED.stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            // The receiver lives as long as `main`.
            let _ = events.send(Event::Stop);
        }
    };
    // With its feature `termination`, ctrlc would take SIGHUP for an end, too.
    ctrlc::set_handler(stop.clone()).map_err(io::Error::other)?;
    let mut signals = Signals::new([SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => SIGNALLED.reopen.store(true, Ordering::Relaxed),
                _ => stop(),
            }
        }
    })?;
    Ok((events, received))
}

/// Starts a part on a thread of its own; its error ends the program, and so does its panic.
///
/// # Errors
/// What the system said.
pub fn start(
    name: &str,
    events: &Sender<Event>,
    part: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let events = events.clone();
    thread::Builder::new().name(name.into()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(part));
        if let Err(problem) = outcome.unwrap_or_else(|_| Err("a part panicked, see above".into())) {
            // The receiver lives as long as `main`.
            let _ = events.send(Event::Failed(problem));
        }
    })
}

/// Turns the outcome of `run` into an exit status: 0, 1, or 2 for bad settings.
pub fn exit(program: &str, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Settings(problem)) => {
            eprintln!("{program}: {problem}\ntry {program} --help");
            ExitCode::from(2)
        }
        Err(Failure::Reported) => ExitCode::FAILURE,
        Err(Failure::Runtime(problem)) => {
            eprintln!("{program}: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Why a program ends before its time.
#[derive(Debug)]
pub enum Failure {
    /// It was told what it cannot do.
    Settings(String),
    /// It cannot go on.
    Runtime(String),
    /// What it found, and has shown already, is a failure.
    Reported,
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Failure::Runtime(problem)
    }
}

/// Replaces this process by a new one of the same program, which keeps its process id.
pub fn restart() -> Failure {
    let program = std::env::current_exe().unwrap_or_else(|_| "pixel".into());
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = Command::new(&program).args(arguments).exec();
    Failure::Runtime(format!("failed to start `{}` again: {error}", program.display()))
}
