//! Use case "record": from delivered messages to lines in the output file, each visit once.
//!
//! One thread takes what is there, drops what the ledger has seen, appends the rest, makes it durable,
//! commits the ledger, and only then acknowledges. A crash between any two steps leaves either a
//! delivery that comes again and that the ledger drops, or bytes behind the committed length of the
//! output, which the next start cuts off.

mod audit;
mod ports;
mod sequences;
mod spool_inbox;
mod state;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

pub use self::audit::Audit;
pub use self::ports::{Delivered, Inbox, InboxError, Ledger, LedgerError, VisitLog, VisitLogError};
pub use self::spool_inbox::SpoolInbox;
pub use self::state::{Entry, Mark, Written};
use crate::connect::{Backoff, Connect, ConnectError, Reconnect, Setback};
use crate::health::{Health, Part};
use crate::metrics::Metrics;
use crate::stop::Stop;
use crate::visit::Visit;
use crate::visit::lines::{LineFormat, Numbered};
use crate::visit::wire::{Origin, Unreadable, decode};

/// How many refusals of the broker in a row end the recorder.
pub const REFUSALS_MAX: u32 = 3;
/// How long an idle recorder waits before it looks at the output file and at `stop`.
const TICK: Duration = Duration::from_millis(250);

/// Why recording ended before it was to stop.
#[derive(Debug)]
pub enum RecordError {
    /// The way to the messages is lost: open another.
    Inbox(InboxError),
    /// Another process may be writing: end, and start anew.
    LockLost(String),
    /// The broker says no, again and again.
    Refused(String),
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Inbox(InboxError(why)) | RecordError::LockLost(why) | RecordError::Refused(why) => {
                formatter.write_str(why)
            }
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
    LockLost(String),
}

impl From<VisitLogError> for StepError {
    fn from(error: VisitLogError) -> Self {
        match error {
            VisitLogError::Failed { .. } => StepError::Failed(error.to_string()),
            VisitLogError::LockLost { .. } => StepError::LockLost(error.to_string()),
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
    /// How lines look.
    pub format: LineFormat,
    /// Where they go.
    pub visit_log: &'a mut dyn VisitLog,
    /// What has been written.
    pub ledger: &'a mut dyn Ledger,
    /// What is counted.
    pub metrics: &'a Metrics,
    /// Where a failing output is shown.
    pub health: &'a Health,
}

/// What is to become of a batch.
#[derive(Default)]
struct Plan {
    lines: Vec<u8>,
    times: Vec<Timestamp>,
    entry: Entry,
    unreadable: Vec<(usize, Unreadable)>,
}

impl Recorder<'_> {
    /// Records what `inbox` delivers until `stop` is set. While the output or the ledger fails it
    /// holds the batch and tries again, and takes no further deliveries.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn run(&mut self, inbox: &mut dyn Inbox, stop: &Stop) -> Result<(), RecordError> {
        while !stop.is_set() {
            let batch = inbox.receive(TICK)?;
            if batch.is_empty() {
                // Looks after output and ledger, too: somebody may have moved or removed them.
                self.attempt(Self::recover)?;
                continue;
            }
            let plan = self.plan(&batch);
            if !self.persist(stop, |recorder| recorder.write(&plan))? {
                return Ok(());
            }
            self.count(&plan);
            for (_, why) in &plan.unreadable {
                log::warn!("a message that cannot be read goes to the dead letters: {why}");
            }
            let unreadable: Vec<usize> = plan.unreadable.iter().map(|(place, _)| *place).collect();
            inbox.acknowledge(&unreadable)?;
        }
        Ok(())
    }

    /// Records what comes over any number of connections until the word to stop is given. Whatever goes
    /// wrong with one, the cure is another: what was not acknowledged comes again on it.
    ///
    /// # Errors
    /// [`RecordError::LockLost`], and [`RecordError::Refused`] when the broker has refused
    /// [`REFUSALS_MAX`] times in a row: any failure during the login looks like a refusal.
    pub fn run_over(
        &mut self,
        connector: &mut dyn Connect<dyn Inbox>,
        mut connected: impl FnMut(&str),
        stop: &Stop,
    ) -> Result<(), RecordError> {
        let mut refusals = 0;
        let (health, metrics) = (self.health, self.metrics);
        let connection = &metrics.broker_connected;
        let reconnect = Reconnect { health, connected: connection, meanwhile: "trying again", stop };
        reconnect.run(|backoff| {
            self.prepare(stop).map_err(Setback::Fatal)?;
            let mut inbox = connector.connect().map_err(|error| match error {
                ConnectError::Refused(why) if refusals + 1 == REFUSALS_MAX => {
                    Setback::Fatal(RecordError::Refused(why))
                }
                error => {
                    refusals += u32::from(matches!(error, ConnectError::Refused(_)));
                    error.into()
                }
            })?;
            let _established = reconnect.established();
            connected(inbox.address());
            refusals = 0;
            backoff.reset();
            self.run(&mut *inbox, stop).map_err(|error| match error {
                RecordError::Inbox(InboxError(why)) => Setback::Again(format!("lost the broker: {why}")),
                fatal => Setback::Fatal(fatal),
            })
        })
    }

    /// Waits until the output can be written to, or `stop` is set: before that, no delivery is taken.
    ///
    /// # Errors
    /// [`RecordError::LockLost`].
    pub fn prepare(&mut self, stop: &Stop) -> Result<(), RecordError> {
        self.persist(stop, Self::recover).map(|_| ())
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
                if self.health.well(Part::Output) {
                    log::info!("writing works again");
                }
                Ok(true)
            }
            Err(StepError::Failed(problem)) => {
                if self.health.ill(Part::Output, &problem) {
                    log::error!("{problem}; nothing is acknowledged, trying again");
                }
                Ok(false)
            }
            Err(StepError::LockLost(problem)) => Err(RecordError::LockLost(problem)),
        }
    }

    /// What of a batch is new, and the lines for it.
    fn plan(&self, batch: &[Delivered]) -> Plan {
        let mut plan = Plan::default();
        for (place, message) in batch.iter().enumerate() {
            let visits = message.origin.as_ref().map_err(Clone::clone).and_then(|origin| {
                let visits = decode(origin, &message.body)?;
                Ok((origin, visits))
            });
            let (origin, visits) = match visits {
                Ok(read) => read,
                Err(why) => {
                    plan.unreadable.push((place, why));
                    continue;
                }
            };
            match origin {
                Origin::Foreign { message_id } => {
                    let count = visits.len() as u64;
                    if plan.entry.note_foreign(self.ledger.written(), message_id.as_ref(), count) {
                        visits.iter().for_each(|visit| plan.add(self.format, visit, None));
                    }
                }
                Origin::Spool { producer, first, count } => {
                    let all = *first..=first + (count - 1);
                    let new = plan.entry.note(self.ledger.written(), *producer, all);
                    for (visit, sequence) in visits.iter().zip(*first..) {
                        if new.iter().any(|range| range.contains(&sequence)) {
                            plan.add(self.format, visit, Some((*producer, sequence)));
                        }
                    }
                }
            }
        }
        plan
    }

    /// The order of these steps is the promise: nothing is acknowledged that a power cut can take
    /// away, and nothing stays in the output that the ledger does not know.
    fn write(&mut self, plan: &Plan) -> Result<(), StepError> {
        self.recover()?;
        let start = self.visit_log.begin()?;
        let mut entry = plan.entry.clone();
        if !plan.lines.is_empty() {
            if self.ledger.written().output() != Some(start) {
                // A new file, a truncated one, or one that others write to, too: without a mark of its
                // end, a crash before the next commit would leave lines that no start knows to cut off.
                self.ledger.commit(&Entry { output: Some(start), ..Entry::default() })?;
            }
            entry.output = Some(self.visit_log.append(&plan.lines)?);
        }
        if !entry.is_empty() {
            self.ledger.commit(&entry)?;
        }
        self.visit_log.settle();
        Ok(())
    }

    /// Undoes what a failed `write` left, and makes output and ledger ready for the next. The ledger first:
    /// were the lines cut off before, a crash in between would leave a ledger that counts lines which are gone.
    fn recover(&mut self) -> Result<(), StepError> {
        self.visit_log.check()?;
        self.ledger.repair()?;
        Ok(self.visit_log.retract()?)
    }

    fn count(&self, plan: &Plan) {
        let now = Timestamp::now();
        for time in &plan.times {
            self.metrics.age_at_write.observe(now.duration_since(*time).as_secs_f64().max(0.0));
        }
        self.metrics.written.inc_by(plan.times.len() as u64);
        self.metrics.duplicate.inc_by(plan.entry.duplicates());
        self.metrics.dead_lettered.inc_by(plan.unreadable.len() as u64);
    }
}

impl Plan {
    fn add(&mut self, format: LineFormat, visit: &Visit<'_>, number: Option<(Uuid, u64)>) {
        self.times.push(visit.received_at);
        format.write(Numbered { visit, number }, &mut self.lines);
    }
}

#[cfg(test)]
mod tests;
