//! A process: its log, its signals, its parts, and the way to its end.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;

use super::logger::{self, LogSettings};
use super::sockets::Sockets;
use crate::health::{Health, counted};
use crate::http::{Handler, Listener, ListenerSettings};
use crate::limits::{raise_open_files_max, reason_to_restart};
use crate::metrics::{Metrics, Role};
use crate::stop::Stop;
use crate::supervisor::Supervisor;
use crate::trace;

/// How long a program that ends waits for each of its parts.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether parts have ended.
const LOOK_FOR_ENDS_EVERY: Duration = Duration::from_millis(10);
/// How often it is looked whether clients have made the process too large.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a program that has done nothing wrong ends.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// For good: SIGTERM or SIGINT came.
    Stop,
    /// To start anew in this process: clients hold what cannot be freed otherwise.
    Restart,
}

/// Why a program ends before its time.
#[derive(Debug)]
pub enum Failure {
    /// It was told what it cannot do: exit status 2.
    Settings(String),
    /// It cannot go on: exit status 1.
    Runtime(String),
    /// What it found, and has shown already, is a failure: exit status 1.
    Reported,
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Failure::Runtime(problem)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Runtime(error.to_string())
    }
}

/// What the parts of a program are given, and what they are waited for with.
pub struct Process {
    /// The numbers of all parts, for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What is wrong with which part.
    pub health: Arc<Health>,
    /// Given to the parts when they are to end.
    pub stop: Stop,
    // Where they go beside that.
    pub(super) numbers: Option<trace::Numbers>,
    sockets: Sockets,
    pub(super) supervisor: Supervisor,
    problems: Receiver<String>,
    asked_to_stop: Receiver<()>,
    parts: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts the log and the numbers of a program of this `role`, listens for signals, and raises the limit of open files.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(role: Role, log: &LogSettings) -> Result<Process, Failure> {
        logger::start(log);
        let sockets = Sockets::from_environment();
        let (supervisor, problems) = Supervisor::new();
        let asked_to_stop = listen_for_signals(&supervisor)?;
        raise_open_files_max();
        let metrics = Arc::new(Metrics::of(role));
        let counts = trace::Counts {
            exported: metrics.spans_exported.clone(),
            dropped: metrics.spans_dropped.clone(),
        };
        trace::start(&log.traces, role.program(), counts)?;
        Ok(Process {
            metrics,
            health: Arc::default(),
            stop: Stop::default(),
            numbers: log.traces.numbers.clone(),
            sockets,
            supervisor,
            problems,
            asked_to_stop,
            parts: Vec::new(),
        })
    }

    /// Says in the log that it starts, with the settings that count, which are fit to be shown.
    pub fn announce(&self, settings: &str) {
        let (program, version) = (self.metrics.role.program(), env!("CARGO_PKG_VERSION"));
        log::info!("{program} {version} starts as process {}: {settings}", std::process::id());
    }

    /// Starts a part on a thread of its own; its error ends the program, and so does its panic.
    ///
    /// # Errors
    /// What the system said where no thread is to be had.
    pub fn part(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), Failure> {
        self.parts.push(self.supervisor.start(name, work)?);
        Ok(())
    }

    /// Starts work that nobody waits for at the end; its panic ends the program.
    ///
    /// # Errors
    /// What the system said where no thread is to be had.
    pub(super) fn aside(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
        let work = move || {
            work();
            Ok(())
        };
        self.supervisor.start(name, work)?;
        Ok(())
    }

    /// Opens a listener whose threads are this process's, on the socket that was given for it, if one was. Its socket is
    /// passed on where the program starts again.
    ///
    /// # Errors
    /// What the system said to the address.
    pub fn listen(&self, settings: ListenerSettings, handler: Arc<dyn Handler>) -> Result<Listener, Failure> {
        let (name, address) = (settings.name, settings.listen);
        let given = self.sockets.take(name);
        let opened = Listener::open(settings, given, handler, self.metrics.clone(), self.supervisor.clone());
        let kept = opened.and_then(|listener| {
            self.sockets.keep(name, listener.socket()?)?;
            Ok(listener)
        });
        kept.map_err(|error| {
            let cure = match (error.kind(), name) {
                (io::ErrorKind::AddrInUse, "admin") => {
                    "; another program has it: name another --admin-listen"
                }
                (io::ErrorKind::AddrInUse, _) => "; another program has it: name another --listen",
                _ => "",
            };
            Failure::Runtime(format!("failed to listen on {address}: {error}{cure}"))
        })
    }

    /// Closes the public listener, or leaves its socket to the program that starts anew; what it has taken is answered.
    pub fn close(&self, public: Listener, ending: Ending) {
        match ending {
            Ending::Stop => public.close(PATIENCE),
            Ending::Restart => public.leave(PATIENCE),
        }
    }

    /// Waits until the program is to end.
    ///
    /// # Errors
    /// Why a part cannot go on.
    pub fn wait(&self) -> Result<Ending, Failure> {
        tell_systemd(NotifyState::Ready);
        loop {
            select! {
                recv(self.asked_to_stop) -> _ => {
                    tell_systemd(NotifyState::Stopping);
                    return Ok(Ending::Stop);
                }
                recv(self.problems) -> problem => {
                    let problem = problem.unwrap_or_else(|_| "nobody looks after its threads".into());
                    return Err(Failure::Runtime(problem));
                }
                default(LOOK_EVERY) => {
                    tell_systemd(NotifyState::Watchdog);
                    if let Some(why) = reason_to_restart(self.metrics.abandoned_connections.get()) {
                        log::warn!("{why}: finishing what is accepted, then restarting");
                        return Ok(Ending::Restart);
                    }
                }
            }
        }
    }

    /// Waits until the parts have ended by themselves. SIGTERM or SIGINT gives them the word to stop.
    ///
    /// # Errors
    /// Why a part could not do what it was to do.
    pub fn complete(self) -> Result<(), Failure> {
        while self.parts.iter().any(|part| !part.is_finished()) {
            if self.asked_to_stop.recv_timeout(LOOK_FOR_ENDS_EVERY).is_ok() {
                break;
            }
        }
        self.end_parts()
    }

    /// Gives the parts the word to stop, waits for them, but not for ever, says in the log what stays, and ends as it
    /// is to.
    ///
    /// # Errors
    /// What a part said at last, or why the program cannot be started again.
    pub fn end(self, ending: Ending, what_stays: impl FnOnce() -> String) -> Result<(), Failure> {
        let (role, metrics) = (self.metrics.role, &self.metrics);
        let ended = self.end_parts();
        let did =
            |is_own: bool, count: u64, what: &str| is_own.then(|| format!(", {} {what}", counted(count)));
        let deeds = [
            did(role.takes(), metrics.accepted.get(), "taken"),
            did(role.has_broker() && role.takes(), metrics.published.get(), "published"),
            did(role.writes(), metrics.written.get(), "written"),
        ];
        let deeds: String = deeds.into_iter().flatten().collect();
        log::info!("{} stops{deeds}; {}", role.program(), what_stays());
        // Who asked meanwhile would not ask the program that starts anew.
        let ending = if self.asked_to_stop.try_recv().is_ok() { Ending::Stop } else { ending };
        match (ending, ended) {
            (Ending::Restart, _) => Err(restart(&self.sockets)),
            (Ending::Stop, ended) => ended,
        }
    }

    fn end_parts(&self) -> Result<(), Failure> {
        self.stop.set();
        let until = Instant::now() + PATIENCE;
        while self.parts.iter().any(|part| !part.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        trace::finish();
        match self.problems.try_iter().next() {
            Some(problem) => Err(Failure::Runtime(problem)),
            None => Ok(()),
        }
    }
}

/// Tells systemd, where it has started the program and wants to know (sd_notify(3)).
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!("failed to notify systemd: {error}");
    }
}

/// Listens for signals: the first SIGTERM or SIGINT arrives at what is returned, the second ends the process at
/// once. Where there is a terminal, SIGHUP tells that it is closed, and ends the process, too; the shell and the system
/// may both send it. Where there is none, rotators tell by it that they have renamed the output: that ends nothing, as
/// the output's name is looked at anyway.
fn listen_for_signals(supervisor: &Supervisor) -> io::Result<Receiver<()>> {
    let (asked, asked_to_stop) = crossbeam_channel::unbounded();
    let was_asked = Arc::new(AtomicBool::new(false));
    let ask = move |is_impatient: bool| match was_asked.swap(true, Ordering::Relaxed) {
        true if is_impatient => std::process::exit(130),
        true => {}
        // The receiver lives as long as the process.
        false => asked.send(()).unwrap_or_default(),
    };
    let interrupt = ask.clone();
    // With its feature `termination`, ctrlc would take SIGHUP for an end, too.
    ctrlc::set_handler(move || interrupt(true)).map_err(io::Error::other)?;
    let is_on_terminal = io::stdin().is_terminal() || io::stderr().is_terminal();
    let mut signals = Signals::new([SIGTERM, SIGHUP])?;
    supervisor.start("signals", move || {
        let ending = signals.forever().filter(|signal| *signal != SIGHUP || is_on_terminal);
        ending.for_each(|signal| ask(signal != SIGHUP));
        Ok(())
    })?;
    Ok(asked_to_stop)
}

/// Turns the outcome of a program into an exit status: 0, 1, or 2 for bad settings.
pub fn exit(program: &str, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Settings(problem)) => {
            eprintln!("{program}: {problem}\ntry {program} --help");
            ExitCode::from(2)
        }
        Err(Failure::Reported) => ExitCode::FAILURE,
        Err(Failure::Runtime(problem)) if logger::is_for_machines() => {
            log::error!("{program} ends: {problem}");
            ExitCode::FAILURE
        }
        Err(Failure::Runtime(problem)) => {
            eprintln!("{program}: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Replaces this process by a new one of the same program, which keeps its process id and its listening sockets.
fn restart(sockets: &Sockets) -> Failure {
    let program = std::env::current_exe().unwrap_or_else(|_| "pixel".into());
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(&program);
    if let Err(error) = sockets.pass_on(command.args(arguments)) {
        log::warn!("clients are refused until the program listens again: {error}");
    }
    let error = command.exec();
    Failure::Runtime(format!("failed to start `{}` again: {error}", program.display()))
}
