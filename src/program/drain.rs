//! `drain`: what waits in a folder's spools that no process has is brought to where it was to go.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::{ArgMatches, Command};

use super::options::{
    BROKER, BrokerSettings, Given, LOGS, OUTPUTS, OutputSettings, SPOOL, SpoolSettings, log_settings,
    with_settings,
};
use super::process::{Failure, Process};
use super::progress::{Progress, tell};
use super::replay::dead_letters;
use super::stranded::{counted, relay};
use super::writer::Writer;
use crate::metrics::Role;
use crate::queue::Backlog;
use crate::record::SpoolInboxes;
use crate::spool::{Slot, SlotState, Slots, Spool};
use crate::stop::Stop;

const TICK: Duration = Duration::from_millis(100);

/// The subcommand of `pixel`: to the output.
pub fn drain_command() -> Command {
    with_settings(Command::new("drain"), &[SPOOL, OUTPUTS, LOGS]).about(
        "Write what waits in the spool, and in every slot of its folder that no process has, to the output, each \
         visit once. It is to be the output that those slots had, as its ledger knows what they have written",
    )
}

/// The subcommand of pixel-http: to the broker.
pub fn drain_to_broker_command() -> Command {
    with_settings(Command::new("drain"), &[SPOOL, BROKER, LOGS]).about(
        "Publish what waits in the spool, and in every slot of its folder that no process has, to RabbitMQ",
    )
}

/// The spools of a folder: those that are to be drained, who has others, and what is wrong with the rest.
struct Found {
    spools: Vec<Arc<Spool>>,
    held: Vec<(PathBuf, String)>,
    unknown: Vec<(PathBuf, String)>,
    visits: u64,
}

impl Found {
    /// Opens those that no process has and that hold visits.
    fn open(settings: &SpoolSettings) -> Result<Found, Failure> {
        let unreadable = |error| {
            Failure::Settings(format!("failed to read the spool `{}`: {error}", settings.folder.display()))
        };
        let slots = match Slots::of(&settings.folder).look() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            slots => slots.map_err(unreadable)?,
        };
        if slots.is_empty() {
            return Err(Failure::Settings(format!("`{}` holds no spool", settings.folder.display())));
        }
        let mut found = Found { spools: Vec::new(), held: Vec::new(), unknown: Vec::new(), visits: 0 };
        for Slot { folder, state } in slots {
            match state {
                SlotState::Held(holder) => found.held.push((folder, holder)),
                SlotState::Unknown(why) => found.unknown.push((folder, why)),
                SlotState::Free(0) => {}
                SlotState::Free(_) => {
                    let spool = Spool::open(&folder, 1, settings.max_bytes);
                    found.spools.push(Arc::new(spool.map_err(|error| error.to_string())?));
                }
            }
        }
        found.spools.retain(|spool| spool.visits() > 0);
        found.visits = found.left();
        Ok(found)
    }

    fn left(&self) -> u64 {
        self.spools.iter().map(|spool| spool.visits()).sum()
    }

    /// Says how it ended; `aside` as for [`tell`].
    ///
    /// # Errors
    /// What stays, or may stay.
    fn conclude(&self, place: &dyn fmt::Display, aside: bool) -> Result<(), Failure> {
        for (folder, holder) in &self.held {
            tell(&format!("`{}` is left to process {holder}, which has it", folder.display()), aside);
        }
        for (folder, why) in &self.unknown {
            tell(&format!("failed to look at `{}`: {why}", folder.display()), true);
        }
        let left = self.left();
        if left > 0 {
            let stay = if left == 1 { "visit stays" } else { "visits stay" };
            return Err(Failure::Runtime(format!("{left} {stay} in the spool, for the next try")));
        }
        let spools = counted(self.spools.len() as u64, "spool");
        match self.visits {
            0 if self.unknown.is_empty() => tell("nothing waits", aside),
            0 => {}
            visits => tell(&format!("{} of {spools} {place}", counted(visits, "visit")), aside),
        }
        if !self.unknown.is_empty() {
            let unknown = counted(self.unknown.len() as u64, "spool");
            return Err(Failure::Runtime(format!("visits may stay in {unknown} that cannot be looked at")));
        }
        Ok(())
    }
}

/// Draws how far it is, from how many visits are left.
fn advance(progress: &Mutex<(Progress, u64)>, left: u64) {
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut progress.1, left);
    progress.0.advance(before.saturating_sub(left));
}

/// Writes them to the output.
///
/// # Errors
/// Bad settings, what the system said, or what stays. The next try goes on.
pub fn drain(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let settings = SpoolSettings::read(&mut given);
    let output = OutputSettings::read(&mut given);
    let log = log_settings(&mut given);
    given.refuse_bad()?;
    let mut process = Process::start(Role::Embedded, &log)?;
    let found = Arc::new(Found::open(&settings)?);
    let is_stdout = output.path.is_none();
    let place = match &output.path {
        Some(path) => format!("written to `{}`", path.display()),
        None => "written to standard output".into(),
    };
    let writer = Writer::new(output, &process);
    let progress = Mutex::new((Progress::new("visits", found.visits), found.visits));
    let (draining, asked) = (found.clone(), process.stop.clone());
    let work = move || {
        writer.run(|recorder, _| {
            for spool in &draining.spools {
                let done = Stop::default();
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while spool.visits() > 0 && !asked.is_set() && !done.is_set() {
                            advance(&progress, draining.left());
                            done.wait(TICK);
                        }
                        done.set();
                    });
                    let backlog: Arc<dyn Backlog> = spool.clone();
                    let mut inboxes = SpoolInboxes::new(backlog, dead_letters(spool.folder()));
                    let recorded = recorder.run_over(&mut inboxes, |_| (), &done);
                    done.set();
                    recorded
                })?;
            }
            Ok(())
        })
    };
    if !found.spools.is_empty() {
        process.part("drain", work)?;
    }
    process.complete()?;
    found.conclude(&place, is_stdout)
}

/// Publishes them.
///
/// # Errors
/// Bad settings, what the system said, or what stays. The next try goes on.
pub fn drain_to_broker(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let settings = SpoolSettings::read(&mut given);
    let broker = BrokerSettings::read(&mut given);
    let log = log_settings(&mut given);
    given.refuse_bad()?;
    let mut process = Process::start(Role::Collector, &log)?;
    let found = Arc::new(Found::open(&settings)?);
    let place = format!("published to {}, queue {}", broker.nodes(), broker.queue);
    let progress = Mutex::new((Progress::new("visits", found.visits), found.visits));
    let (draining, metrics, stop) = (found.clone(), process.metrics.clone(), process.stop.clone());
    process.part("drain", move || {
        for spool in &draining.spools {
            relay(spool, &broker, &metrics, &stop, || {
                advance(&progress, draining.left());
                (spool.visits() == 0).then_some("nothing waits any more")
            });
        }
        Ok(())
    })?;
    process.complete()?;
    found.conclude(&place, false)
}
