//! The programs as processes: watched through their log, ended with the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::Outcome;
use super::admin::Admin;
use super::launch::Launch;
use super::wait::wait_until;

/// Whether a program's log is shown when the program is gone.
pub static SHOWS_LOGS: AtomicBool = AtomicBool::new(true);

// What the programs say in their log, and in no other words.
/// The public listener is there; its address follows.
pub const LISTENING: &str = "listening on http://";
/// The admin listener is there; its address follows.
pub const ADMIN: &str = "/healthz, /readyz and /metrics on http://";
/// The storage service takes messages.
pub const CONSUMING: &str = "consuming ";
/// Another storage service does.
pub const STANDING_BY: &str = "standing by";
/// The process starts itself again.
pub const RESTARTING: &str = "then restarting";
/// The broker does not know the user or the password.
pub const REFUSED_LOGIN: &str = "refused the login";

/// A program that runs.
pub struct Program {
    pub launch: Launch,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    /// Follows the log of a process that `launch` has just started.
    pub fn new(mut child: Child, launch: Launch) -> Outcome<Self> {
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic holds it").push(line);
            }
        });
        Ok(Program { launch, child, log })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic holds it").join("\n")
    }

    /// Waits for a line of the log with `text` in it; fails when the program ends before.
    pub fn wait_for_log(&mut self, text: &str) -> Outcome<String> {
        let mut found = None;
        let mut ended = None;
        wait_until(&format!("`{text}` in the log"), || {
            ended = self.child.try_wait().ok().flatten();
            let log = self.log.lock().expect("no panic holds it");
            found = log.iter().find(|line| line.contains(text)).cloned();
            found.is_some() || ended.is_some()
        })
        .map_err(|error| format!("{error}\n{}", self.log()))?;
        found.ok_or_else(|| format!("it ended with {ended:?}:\n{}", self.log()).into())
    }

    /// The address of its public listener.
    pub fn address(&mut self) -> Outcome<SocketAddr> {
        self.address_after(LISTENING)
    }

    /// Its admin listener.
    pub fn admin(&mut self) -> Outcome<Admin> {
        Ok(Admin { address: self.address_after(ADMIN)? })
    }

    fn address_after(&mut self, prefix: &str) -> Outcome<SocketAddr> {
        let line = self.wait_for_log(prefix)?;
        let rest = line.split(prefix).nth(1).unwrap_or_default();
        Ok(rest.split([',', ' ']).next().unwrap_or_default().parse()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Pauses it with SIGSTOP, and returns when none of its threads runs any more: one that is within
    /// a system call, such as a write, finishes that first.
    pub fn pause(&self) -> Outcome {
        self.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::io::Result<fs::DirEntry>| {
            let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
            // The state follows the name, which stands in parentheses.
            stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
        };
        wait_until("a paused program", || fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(is_stopped)))
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it with SIGTERM; its exit status must be 0.
    pub fn stop(&mut self) -> Outcome {
        self.signal(Signal::TERM)?;
        match self.wait()? {
            0 => Ok(()),
            status => Err(format!("it ended with {status} after SIGTERM:\n{}", self.log()).into()),
        }
    }

    /// Starts it again after its end, and waits until it is ready.
    pub fn start_again(&mut self) -> Outcome {
        *self = self.launch.start()?;
        Ok(())
    }

    /// Starts it again after its end.
    pub fn spawn_again(&mut self) -> Outcome {
        *self = self.launch.spawn()?;
        Ok(())
    }

    /// Waits for its end: its exit status, or 128 and the signal.
    pub fn wait(&mut self) -> Outcome<i32> {
        let mut status = None;
        wait_until("the program's end", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        let status = status.ok_or("no status")?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn pid(&self) -> Outcome<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?).ok_or("no process id")?)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !SHOWS_LOGS.load(Ordering::Relaxed) {
            return;
        }
        // Shown where the test fails.
        println!("--- log of process {}\n{}", self.child.id(), self.log());
    }
}
