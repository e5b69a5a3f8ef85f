//! Use case "record": from delivered messages to lines in the output file, each visit once.
//!
//! One thread takes what is there, drops what the ledger has seen, appends the rest, makes it durable,
//! commits the ledger, and only then acknowledges. A crash between any two steps leaves either a
//! delivery that comes again and that the ledger drops, or bytes behind the committed length of the
//! output, which the next start cuts off.

mod audit;
mod files;
mod ports;
mod sequences;
mod spool_inbox;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

pub use self::audit::Audit;
pub use self::files::{BLOCK_BYTES, FileRecord, Stretch, TAIL_BYTES};
pub use self::ports::{
    Appended, Delivered, Inbox, InboxError, Ledger, LedgerError, Lines, Placed, VisitLog, VisitLogError,
};
pub use self::sequences::Sequences;
pub use self::spool_inbox::SpoolInbox;
pub use self::state::{Entry, FileChange, Mark, MarkByInode, OpenClaims, Spooled, Written};
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
struct Plan {
    lines: Lines,
    // Which visit each line is.
    numbers: Vec<Option<(Uuid, u64)>>,
    // The same visits as earlier formats had them, while lines of those wait to be claimed.
    as_claimed: Vec<Lines>,
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
                self.attempt(Self::look_after)?;
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
            if !self.persist(stop, |recorder| Ok(recorder.visit_log.check()?))? {
                return Ok(());
            }
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
        let mut plan = Plan::new(self.format, self.visit_log.claims_formats());
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
                        visits.iter().for_each(|visit| plan.add(visit, None));
                    }
                }
                Origin::Spool { producer, first, count } => {
                    let all = *first..=first + (count - 1);
                    let new = plan.entry.note(self.ledger.written(), *producer, all);
                    for (visit, sequence) in visits.iter().zip(*first..) {
                        if new.iter().any(|range| range.contains(&sequence)) {
                            plan.add(visit, Some((*producer, sequence)));
                        }
                    }
                }
            }
        }
        plan
    }

    /// The order of these steps is the promise: nothing is acknowledged that a power cut can take away, and
    /// nothing is appended before the ledger knows where that begins. A step that failed is gone on with by the next
    /// call.
    fn write(&mut self, plan: &Plan) -> Result<(), StepError> {
        self.visit_log.check()?;
        self.ledger.repair()?;
        let mut entry = plan.entry.clone();
        if !plan.lines.is_empty() {
            self.begin()?;
            let appended = self.visit_log.append(&plan.lines, &plan.as_claimed)?;
            plan.place(&appended, self.ledger.written(), &mut entry);
        }
        if !entry.is_empty() {
            self.visit_log.check()?;
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
                // Nothing is written yet: whoever waits for the file may be about to make room.
                self.visit_log.settle();
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
        Ok(self.visit_log.refresh()?)
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
    fn new(format: LineFormat, claimed: Vec<LineFormat>) -> Self {
        let others = claimed.into_iter().filter(|other| *other != format);
        Plan {
            lines: Lines::new(format),
            numbers: Vec::new(),
            as_claimed: others.map(Lines::new).collect(),
            times: Vec::new(),
            entry: Entry::default(),
            unreadable: Vec::new(),
        }
    }

    fn add(&mut self, visit: &Visit<'_>, number: Option<(Uuid, u64)>) {
        self.times.push(visit.received_at);
        self.numbers.push(number);
        let all = std::iter::once(&mut self.lines).chain(&mut self.as_claimed);
        all.for_each(|lines| lines.add(Numbered { visit, number }));
    }

    /// Notes in `entry` where the lines are.
    fn place(&self, appended: &Appended, written: &Written, entry: &mut Entry) {
        entry.mark = Some(appended.mark.clone());
        entry.claims.clone_from(&appended.claims);
        let is_in_one = appended.placed.iter().all(|placed| placed.file == appended.mark.file);
        let mut files: BTreeMap<u64, (FileChange, FileRecord)> = BTreeMap::new();
        for placed in &appended.placed {
            let (change, record) = files.entry(placed.file).or_insert_with(|| {
                // The end of what is known, for the block that is not full yet.
                let known = written.files().get(&placed.file);
                let last = known.and_then(|known| known.stretches.last()).cloned();
                let record = FileRecord { stretches: last.into_iter().collect(), ..FileRecord::default() };
                (FileChange { file: placed.file, ..FileChange::default() }, record)
            });
            let stretch = FileRecord::stretch(record.stretches.last(), placed.start, &placed.bytes);
            record.add(&stretch);
            change.stretches.push(stretch);
            change.lines += placed.lines.len() as u64;
            for number in placed.lines.iter().map(|line| self.numbers[*line]) {
                match number {
                    None => change.foreign += 1,
                    Some((producer, sequence)) if !is_in_one => {
                        let spools = change.spools.get_or_insert_default();
                        spools.entry(producer).or_default().insert(sequence..=sequence);
                    }
                    // They are all of the entry's.
                    Some(_) => {}
                }
            }
            if !is_in_one {
                change.spools.get_or_insert_default();
            }
        }
        entry.files = files.into_values().map(|(change, _)| change).collect();
    }
}
