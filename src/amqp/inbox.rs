//! The consuming side of a connection: deliveries of the queue, acknowledged batch by batch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, Delivery, Error};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::confirms::{Confirms, Unconfirmed};
use super::errors::reason;
use super::hold::Hold;
use super::intake::Intake;
use super::masstransit;
use super::properties::{of_part, span};
use super::session::{LOST_BEFORE, Session};
use super::tls::Tls;
use super::topology::dead_letters;
use super::url::AmqpUrl;
use crate::record::{DeadLetter, Delivered, Inbox, InboxError, Withheld};
use crate::trace::{self, Span};
use crate::visit::wire::{Origin, Unreadable};

/// How many bytes a batch has, but for its last message.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// How long a batch may grow: each costs two fdatasyncs.
const BATCH_GROWS: Duration = Duration::from_millis(100);
/// The longest body: RabbitMQ 3 takes no longer one by default, RabbitMQ 4 16 MiB.
const BODY_MAX_BYTES: usize = 128 << 20;
/// How many dead letters wait for their confirm, and how many bytes of them, but for the last.
const UNCONFIRMED_MAX: usize = 256;
const UNCONFIRMED_MAX_BYTES: usize = 512 << 10;
/// How long the broker may take to confirm them: one that blocks publishers (an alarm) says nothing.
const CONFIRM_MAX: Duration = Duration::from_secs(10);
/// How long nothing is published to it then.
const BLOCKED_FOR: Duration = Duration::from_secs(60);

/// When the broker was found to take no messages. Clones share it. A connection that publishes to a broker with an
/// alarm is not read from any more, acknowledgements included, and taking messages off the queue may be what ends
/// the alarm. So for a while nothing is published: the broker rejects whole messages by itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Blocked(Arc<Mutex<Option<Instant>>>);

impl Blocked {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_recent(&self) -> bool {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.is_some_and(|noted| noted.elapsed() < BLOCKED_FOR)
    }
}

/// Whose the queue is, and how that is asked.
pub(super) struct Ownership {
    /// `None` where it is not noted.
    pub hold: Option<Hold>,
    pub queue: String,
    /// Where it is asked once the connection is lost.
    pub urls: Vec<AmqpUrl>,
    pub tls: Option<Tls>,
}

impl Ownership {
    fn noted(&self) -> Option<&Hold> {
        self.hold.as_ref().filter(|hold| hold.is_kept())
    }

    /// Asks on the connection that a batch came by: whoever has that still has the batch. The inner error says that
    /// another output has the queue.
    fn ask(&self, session: &Session) -> amiquip::Result<Result<(), String>> {
        session.ask(|channel| match self.noted() {
            Some(hold) => hold.check(channel),
            None => channel.queue_declare_passive(self.queue.as_str()).map(|_| Ok(())),
        })
    }

    /// Asks on a connection of its own, for a batch whose connection is lost.
    fn ask_anew(&self) -> Result<(), Withheld> {
        let Some(hold) = self.noted() else { return Ok(()) };
        let mut failure = InboxError(LOST_BEFORE.into());
        for url in &self.urls {
            let hold = hold.clone();
            match Session::open(url, self.tls.as_ref(), move |_, channel| hold.check(channel)) {
                Ok((_, answer)) => return answer.map_err(Withheld::TakenOver),
                Err(error) => failure = InboxError(error.to_string()),
            }
        }
        Err(Withheld::Unknown(failure))
    }
}

/// A connection that consumes.
pub(super) struct AmqpInbox {
    // `None` once it is lost.
    session: Option<Session>,
    intake: Intake,
    confirms: Confirms,
    queue: String,
    // The exchange of the dead letters.
    dead_letters: String,
    blocked: Blocked,
    ownership: Ownership,
    // The last batch, without its bodies, and how long those are.
    batch: Vec<Delivery>,
    bytes: Vec<usize>,
    address: String,
}

impl AmqpInbox {
    /// Starts consuming, with up to `prefetch` messages sent ahead.
    pub(super) fn prepare(
        channel: &Channel,
        queue: &str,
        prefetch: u16,
    ) -> amiquip::Result<(Receiver<ConsumerMessage>, Confirms)> {
        let confirms = Confirms::listen(channel)?;
        channel.qos(0, prefetch, false)?;
        let consumer = channel.basic_consume(queue, ConsumerOptions::default())?;
        let deliveries = consumer.receiver().clone();
        // Its destructor cancels, and a delivery that arrives after the cancel kills the connection.
        // A tag of some thirty bytes leaks.
        std::mem::forget(consumer);
        Ok((deliveries, confirms))
    }

    pub(super) fn new(
        session: Session,
        intake: Intake,
        confirms: Confirms,
        queue: String,
        blocked: Blocked,
        ownership: Ownership,
        address: String,
    ) -> Self {
        let dead_letters = dead_letters(&queue);
        let (session, batch, bytes) = (Some(session), Vec::new(), Vec::new());
        AmqpInbox {
            session,
            intake,
            confirms,
            queue,
            dead_letters,
            blocked,
            ownership,
            batch,
            bytes,
            address,
        }
    }

    fn lost(&mut self) -> InboxError {
        if let Some(reason) = self.intake.reason_to_leave() {
            return InboxError(reason);
        }
        InboxError(self.session.take().map_or_else(|| LOST_BEFORE.into(), Session::close))
    }

    /// Publishes visits that cannot be read to the dead letters, each as a message of its own, and waits until
    /// the broker holds them all.
    fn set_aside(&mut self, visits: &[&DeadLetter<'_>], batch: &[Delivery]) -> Result<(), InboxError> {
        let mut bytes = 0;
        for letter in visits {
            let session = self.session.as_ref().ok_or_else(|| InboxError(LOST_BEFORE.into()))?;
            let properties = of_part(letter, &batch[letter.place].properties);
            let sent =
                self.confirms.publish(session.channel(), &self.dead_letters, "", letter.bytes, properties);
            sent.map_err(|error| InboxError(reason(&error)))?;
            bytes += letter.bytes.len();
            // A broker that takes nothing is noticed here: with more of it on its way, publishing hangs.
            if bytes > UNCONFIRMED_MAX_BYTES || self.confirms.outstanding() >= UNCONFIRMED_MAX {
                self.wait_for_confirms()?;
                bytes = 0;
            }
        }
        self.wait_for_confirms()
    }

    fn wait_for_confirms(&mut self) -> Result<(), InboxError> {
        self.confirms.wait(0, CONFIRM_MAX).map(drop).map_err(|unconfirmed| match unconfirmed {
            Unconfirmed::Refused(why) => {
                self.blocked.note();
                InboxError(format!("a dead letter is not taken: {why}"))
            }
            Unconfirmed::Lost => self.lost(),
        })
    }

    fn delivery(&mut self, message: ConsumerMessage) -> Result<Delivery, InboxError> {
        match message {
            ConsumerMessage::Delivery(delivery) => Ok(delivery),
            ConsumerMessage::ServerClosedChannel(error) | ConsumerMessage::ServerClosedConnection(error) => {
                Err(InboxError(reason(&error)))
            }
            ConsumerMessage::ServerCancelled => {
                Err(InboxError("it cancelled the consumer: the queue was deleted or moved".into()))
            }
            _ => Err(self.lost()),
        }
    }
}

impl Inbox for AmqpInbox {
    fn receive(&mut self, wait: Duration) -> Result<Vec<Delivered>, InboxError> {
        if let Some(reason) = self.intake.reason_to_leave() {
            return Err(InboxError(reason));
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut until = Instant::now() + wait;
        while batch.len() < self.intake.prefetch() && bytes < BATCH_MAX_BYTES {
            let left = until.saturating_duration_since(Instant::now());
            let mut delivery = match self.intake.deliveries.recv_timeout(left) {
                Ok(message) => self.delivery(message)?,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost()),
            };
            if batch.is_empty() {
                until = Instant::now() + BATCH_GROWS;
            }
            let body = std::mem::take(&mut delivery.body);
            bytes += body.len();
            self.bytes.push(body.len());
            batch.push(delivered(&delivery, body));
            self.batch.push(delivery);
        }
        Ok(batch)
    }

    fn check(&mut self) -> Result<(), Withheld> {
        let Some(session) = &self.session else { return self.ownership.ask_anew() };
        let error = match self.ownership.ask(session) {
            Ok(answer) => return answer.map_err(Withheld::TakenOver),
            Err(error) => error,
        };
        let session = self.session.take();
        let why = match (self.intake.reason_to_leave(), &error) {
            (Some(why), _) => why,
            (None, Error::ServerClosedChannel { .. }) => reason(&error),
            // amiquip says what ended a connection once it is closed.
            _ => session.map_or_else(|| reason(&error), Session::close),
        };
        Err(Withheld::Unknown(InboxError(why)))
    }

    fn leave(&mut self) {
        if let (Some(hold), Some(session)) = (self.ownership.noted(), &self.session)
            && let Err(error) = session.ask(|channel| hold.leave(channel))
        {
            log::debug!("it stays noted that this output has the queue: {}", reason(&error));
        }
    }

    fn trace(&self) -> Option<Span> {
        let spans = || self.batch.iter().filter_map(|delivery| span(&delivery.properties));
        trace::process(Some(&self.queue), self.batch.len(), spans)
    }

    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        let _step = trace::settle(&self.queue);
        let batch = std::mem::take(&mut self.batch);
        let is_blocked = self.blocked.is_recent();
        let is_whole = |letter: &&DeadLetter<'_>| letter.is_whole || is_blocked && is_known_again(letter);
        let (whole, visits): (Vec<_>, Vec<_>) = dead.iter().partition(is_whole);
        self.set_aside(&visits, &batch)?;
        self.bytes.drain(..).for_each(|bytes| self.intake.let_go(bytes));
        let session = self.session.as_ref().ok_or_else(|| InboxError(LOST_BEFORE.into()))?;
        let settle = || {
            let mut newest = None;
            for (place, delivery) in batch.into_iter().enumerate() {
                match whole.iter().any(|letter| letter.place == place) {
                    true => delivery.reject(session.channel(), false)?,
                    false => newest = Some(delivery),
                }
            }
            // The newest of the rest stands for all before it; the rejected ones are settled.
            newest.map_or(Ok(()), |newest| newest.ack_multiple(session.channel()))
        };
        settle().map_err(|error: amiquip::Error| {
            InboxError(self.intake.reason_to_leave().unwrap_or_else(|| reason(&error)))
        })
    }

    fn address(&self) -> &str {
        &self.address
    }
}

/// Whether the ledger knows what is readable of its message when that comes again as a whole.
fn is_known_again(letter: &DeadLetter<'_>) -> bool {
    matches!(letter.origin, Some(Origin::Spool { .. } | Origin::Foreign { message_id: Some(_) }))
}

fn delivered(delivery: &Delivery, body: Vec<u8>) -> Delivered {
    if body.len() > BODY_MAX_BYTES {
        let reason = format!("its body of {} bytes is over the bound of {BODY_MAX_BYTES}", body.len());
        return Delivered { origin: Err(Unreadable(reason)), body: Vec::new() };
    }
    masstransit::delivered(&delivery.properties, body)
}
