//! Station "record": from delivered messages to lines in the output file, each visit once.
//!
//! One thread takes what is there, drops what the ledger has seen, appends the rest, makes it durable,
//! commits the ledger, and only then acknowledges. A crash between any two steps leaves either a
//! delivery that comes again and that the ledger drops, or lines behind the ledger's mark, which the
//! visits claim when they come again.

mod audit;
mod dead_file;
mod files;
mod forecast;
mod plan;
mod ports;
mod sequences;
mod spool_inbox;
mod state;

use std::fmt;
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use self::audit::{Audit, InSpool};
pub use self::dead_file::{DeadFiles, read_dead_file};
pub use self::files::{BLOCK_BYTES, FileRecord, Stretch, TAIL_BYTES};
pub use self::forecast::Forecast;
use self::plan::Plan;
pub use self::ports::{
    Appended, DeadLetter, Delivered, Inbox, InboxError, Ledger, LedgerError, Lines, Placed, VisitLog,
    VisitLogError, Withheld,
};
pub use self::sequences::Sequences;
pub use self::spool_inbox::SpoolInboxes;
pub use self::state::{Entry, FileChange, Mark, MarkByInode, OpenClaims, Spooled, Written};
use crate::connect::{Backoff, Connect, ConnectError, Reconnect, Setback};
use crate::health::{Health, Part, in_words};
use crate::metrics::{Metrics, RECENT_MAX};
use crate::stop::Stop;
use crate::trace;
use crate::visit::lines::LineFormat;

/// How many dead letters of a batch are in the log by themselves.
const DEAD_LOGGED_MAX: usize = 10;
/// How long an idle recorder waits before it looks at the output file and at `stop`.
const TICK: Duration = Duration::from_millis(250);
/// How long it may be that a batch was asked for before it is asked for again: whoever is paused for longer than
/// two heartbeats may have a successor.
const ASKED_MAX: Duration = Duration::from_secs(1);

/// Why recording ended before it was to stop.
#[derive(Debug)]
pub enum RecordError {
    /// The way to the messages is lost: open another.
    Inbox(InboxError),
    /// Another process may be writing, or nobody reads what is written: end, and start anew.
    Fatal(String),
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Inbox(InboxError(why)) | RecordError::Fatal(why) => formatter.write_str(why),
        }
    }
}

impl std::error::Error for RecordError {}

impl From<InboxError> for RecordError {
    fn from(error: InboxError) -> Self {
        RecordError::Inbox(error)
    }
}

/// What a step of recording met; `Failed` is tried again.
enum StepError {
    Failed(String),
    // Nothing may be written any more.
    Fatal(String),
    // The batch is given up: it comes again.
    Inbox(InboxError),
}

impl From<VisitLogError> for StepError {
    fn from(error: VisitLogError) -> Self {
        match error {
            VisitLogError::Failed { .. } => StepError::Failed(error.to_string()),
            VisitLogError::LockLost { .. } | VisitLogError::Closed { .. } => {
                StepError::Fatal(error.to_string())
            }
        }
    }
}

impl From<LedgerError> for StepError {
    fn from(error: LedgerError) -> Self {
        StepError::Failed(error.to_string())
    }
}

/// The recorder of one output file.
pub struct Recorder<'a> {
    /// How a visit becomes a line of the output.
    pub format: LineFormat,
    /// Where lines are made durable.
    pub visit_log: &'a mut dyn VisitLog,
    /// What of each producer has been written, and where the output ended.
    pub ledger: &'a mut dyn Ledger,
    /// Where written, repeated and unreadable visits are counted.
    pub metrics: &'a Metrics,
    /// Where a failing output is shown.
    pub health: &'a Health,
}

impl Recorder<'_> {
    /// Records what `inbox` delivers until `stop` is set. While the output or the ledger fails it
    /// holds the batch and tries again, and takes no further deliveries.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn run(&mut self, inbox: &mut dyn Inbox, stop: &Stop) -> Result<(), RecordError> {
        self.session(inbox, stop, &mut Backoff::default())
    }

    /// Records over one connection; `backoff` begins anew with each batch that is done.
    fn session(
        &mut self,
        inbox: &mut dyn Inbox,
        stop: &Stop,
        backoff: &mut Backoff,
    ) -> Result<(), RecordError> {
        while !stop.is_set() {
            let batch = inbox.receive(TICK)?;
            if batch.is_empty() {
                self.attempt(Self::look_after)?;
                continue;
            }
            let _within = trace::enter(inbox.trace());
            let (formats, written) = (self.visit_log.claims_formats(), self.ledger.written());
            let plan = Plan::of(&batch, self.format, formats, written);
            if let Some(oldest) = plan.times.iter().min() {
                self.metrics.oldest_delivered.set(unix_seconds(*oldest));
            }
            let written = self.persist(stop, |recorder| recorder.write(&plan, inbox));
            if !written? {
                return Ok(());
            }
            self.count(&plan);
            self.metrics.oldest_delivered.clear();
            // Who takes them has noted them already.
            if !self.metrics.role.takes() {
                let last = &batch[batch.len().saturating_sub(RECENT_MAX)..];
                last.iter().for_each(|message| self.metrics.recent.note(&message.body));
            }
            log_dead(&plan.dead);
            if !self.persist(stop, |recorder| Ok(recorder.visit_log.check()?))? {
                return Ok(());
            }
            inbox.acknowledge(&plan.dead)?;
            self.count_dead(&plan);
            backoff.reset();
        }
        inbox.leave();
        Ok(())
    }

    /// Whether the batch that `inbox` delivered last is this process's still. A batch of which nothing stands anywhere
    /// is given up where that cannot be told, and comes again; one that was begun waits until it can.
    fn may_write(&self, inbox: &mut dyn Inbox) -> Result<(), StepError> {
        inbox.check().map_err(|withheld| match withheld {
            Withheld::TakenOver(why) => StepError::Fatal(why),
            Withheld::Unknown(InboxError(why)) if self.visit_log.has_begun() => {
                StepError::Failed(format!("cannot go on with a batch before it is known whose it is: {why}"))
            }
            Withheld::Unknown(lost) => StepError::Inbox(lost),
        })
    }

    /// Records what comes over any number of connections until the word to stop is given. Whatever goes
    /// wrong with one, the cure is another: what was not acknowledged comes again on it.
    ///
    /// # Errors
    /// [`RecordError::Fatal`].
    pub fn run_over(
        &mut self,
        connector: &mut dyn Connect<dyn Inbox>,
        mut connected: impl FnMut(&str),
        stop: &Stop,
    ) -> Result<(), RecordError> {
        let (part, health, metrics) = (connector.part(), self.health, self.metrics);
        let reconnect = Reconnect::new(part, health, metrics, "trying again", stop);
        reconnect.run(|backoff| {
            self.metrics.oldest_delivered.clear();
            self.prepare(stop).map_err(Setback::Fatal)?;
            let mut inbox = match connector.connect() {
                // Another connection would not help.
                Err(ConnectError::TakenOver(why)) => return Err(Setback::Fatal(RecordError::Fatal(why))),
                connected => connected?,
            };
            let established = reconnect.established();
            connected(&format!("{}{}", inbox.address(), established.after(None)));
            self.session(&mut *inbox, stop, backoff).map_err(|error| match error {
                RecordError::Inbox(InboxError(why)) if part == Part::Broker => {
                    Setback::Again(format!("lost the broker: {why}"))
                }
                RecordError::Inbox(InboxError(why)) => Setback::Again(why),
                fatal => Setback::Fatal(fatal),
            })
        })
    }

    /// Waits until the output can be written to, or `stop` is set: before that, no delivery is taken.
    ///
    /// # Errors
    /// [`RecordError::Fatal`].
    pub fn prepare(&mut self, stop: &Stop) -> Result<(), RecordError> {
        self.persist(stop, Self::open).map(|_| ())
    }

    /// Tries a step until it succeeds; `false` where `stop` was set before it did.
    fn persist(
        &mut self,
        stop: &Stop,
        mut step: impl FnMut(&mut Self) -> Result<(), StepError>,
    ) -> Result<bool, RecordError> {
        let mut backoff = Backoff::default();
        while !self.attempt(&mut step)? {
            if stop.is_set() {
                return Ok(false);
            }
            backoff.wait(stop);
        }
        Ok(true)
    }

    /// Tries a step once and shows in log and health how it went.
    fn attempt(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<(), StepError>,
    ) -> Result<bool, RecordError> {
        match step(self) {
            Ok(()) => {
                if let Some(lasted) = self.health.well(Part::Output) {
                    log::info!("writing works again after {}", in_words(lasted));
                }
                Ok(true)
            }
            Err(StepError::Failed(problem)) => {
                self.metrics.output_errors.inc();
                if let Some(lasting) = self.health.ill(Part::Output, &problem) {
                    log::error!("{problem}{lasting}; nothing is acknowledged, trying again");
                }
                Ok(false)
            }
            Err(StepError::Fatal(problem)) => Err(RecordError::Fatal(problem)),
            Err(StepError::Inbox(lost)) => Err(RecordError::Inbox(lost)),
        }
    }

    /// The order of these steps is the promise: nothing is acknowledged that a power cut can take away, and
    /// nothing is appended before the ledger knows where that begins. A step that failed is gone on with by the next
    /// call.
    fn write(&mut self, plan: &Plan<'_>, inbox: &mut dyn Inbox) -> Result<(), StepError> {
        let asked = Instant::now();
        self.may_write(inbox)?;
        self.visit_log.check()?;
        self.ledger.repair()?;
        let mut entry = plan.entry.clone();
        if !plan.lines.is_empty() {
            // From the first byte on nobody is let in before the ledger knows of it.
            self.ledger.reserve(plan.lines.bytes.len())?;
            self.begin()?;
            // It may have waited for the file, or not have run at all.
            if asked.elapsed() > ASKED_MAX
                && let Err(error) = self.may_write(inbox)
            {
                self.visit_log.let_go();
                return Err(error);
            }
            let appended = self.visit_log.append(&plan.lines, &plan.as_claimed)?;
            Plan::place(&appended, self.ledger.written(), &mut entry);
        }
        if !entry.is_empty() {
            self.visit_log.check()?;
            let _step = trace::step("ledger");
            self.ledger.commit(&entry)?;
        }
        self.visit_log.settle();
        Ok(())
    }

    /// Keeps others out of the output, and has the ledger know where it ends.
    fn begin(&mut self) -> Result<(), StepError> {
        if let Some(opening) = self.visit_log.begin(self.ledger.written())? {
            let noted = self.visit_log.check().map_err(StepError::from);
            let noted = noted.and_then(|()| Ok(self.ledger.commit(&opening)?));
            if noted.is_err() {
                // Whoever waits for the file may be about to make room.
                self.visit_log.let_go();
            }
            noted?;
        }
        Ok(())
    }

    /// Compares the output with the ledger, and reads what a crash left.
    fn open(&mut self) -> Result<(), StepError> {
        self.visit_log.check()?;
        self.ledger.repair()?;
        self.begin()?;
        self.visit_log.settle();
        Ok(())
    }

    /// Looks after output and ledger: somebody may have moved or removed them.
    fn look_after(&mut self) -> Result<(), StepError> {
        self.visit_log.check()?;
        self.ledger.repair()?;
        self.visit_log.refresh()?;
        if self.visit_log.is_due(self.ledger.written()) {
            self.begin()?;
            self.visit_log.settle();
        }
        Ok(())
    }

    fn count(&self, plan: &Plan<'_>) {
        let now = Timestamp::now();
        for time in &plan.times {
            self.metrics.age_at_write.observe(now.duration_since(*time).as_secs_f64().max(0.0));
        }
        self.metrics.written.inc_by(plan.times.len() as u64);
        self.metrics.duplicate.inc_by(plan.entry.duplicates());
        if let Some(newest) = plan.times.iter().max() {
            self.metrics.newest_written.set(unix_seconds(*newest));
            self.metrics.last_write.set(unix_seconds(now));
        }
    }

    /// Counts what was set aside. Where that failed, the batch comes again.
    fn count_dead(&self, plan: &Plan<'_>) {
        let whole = plan.dead.iter().filter(|letter| letter.is_whole).count();
        self.metrics.dead_lettered.inc_by(whole as u64);
        self.metrics.dead_lettered_visits.inc_by((plan.dead.len() - whole) as u64);
    }
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

/// Says in the log what is to go to the dead letters, but not all of very much.
fn log_dead(dead: &[DeadLetter<'_>]) {
    for letter in &dead[..dead.len().min(DEAD_LOGGED_MAX)] {
        log::warn!("to the dead letters: {letter}");
    }
    if dead.len() > DEAD_LOGGED_MAX {
        log::warn!("and {} more of that batch", dead.len() - DEAD_LOGGED_MAX);
    }
}
