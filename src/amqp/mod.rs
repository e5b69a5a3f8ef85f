//! Station "amqp": RabbitMQ through amiquip.
//!
//! [`Broker`] is the way to it for the relay, which publishes, and for the recorder, which consumes. Both declare
//! the same exchange and queue, so neither has to be first.

mod confirms;
mod dead_letters;
mod errors;
mod hold;
mod inbox;
mod intake;
mod introduction;
mod masstransit;
mod properties;
mod publisher;
mod session;
mod tls;
mod topology;
mod url;
mod watch;

pub use self::dead_letters::DeadLetters;
use self::hold::Hold;
pub use self::hold::OutputName;
use self::inbox::{AmqpInbox, Blocked, Ownership};
use self::intake::{Intake, Pace};
use self::publisher::AmqpPublisher;
pub use self::tls::Tls;
pub use self::url::AmqpUrl;
pub use self::watch::watch_queues;

use amiquip::{Channel, Connection};

use self::session::Session;
pub(crate) use self::topology::{QUEUE_NAME_MAX_BYTES, queue_of};
use self::topology::{bind_to_fanout, declare};
use crate::connect::{Connect, ConnectError};
use crate::queue::Shard;
use crate::record::Inbox;
use crate::relay::Publisher;

/// The brokers of one cluster and the queue on it.
pub struct Broker {
    urls: Vec<AmqpUrl>,
    tls: Option<Tls>,
    queue: String,
    // The queues that are declared: but for a publisher's shards, the one above.
    declared: Vec<String>,
    // Whether they are: the topology may be somebody else's.
    declares: bool,
    // The exchange of another system whose messages are to come to the queue as well.
    also_from: Option<String>,
    // Whose the queue is to be.
    hold: Option<Hold>,
    next: usize,
    pace: Pace,
    blocked: Blocked,
}

impl Broker {
    /// `urls` are the cluster's nodes, at least one, tried in turn; `tls` is for those that are `amqps://`.
    pub fn new(urls: Vec<AmqpUrl>, tls: Option<Tls>, queue: String) -> Self {
        let declared = vec![queue.clone()];
        let (pace, blocked) = (Pace::default(), Blocked::default());
        Broker {
            urls,
            tls,
            queue,
            declared,
            declares: true,
            also_from: None,
            hold: None,
            next: 0,
            pace,
            blocked,
        }
    }

    /// The same, which takes exchanges and queues as they are where it does not declare them.
    pub fn declaring(self, declares: bool) -> Self {
        Broker { declares, ..self }
    }

    /// The same, whose queue is bound to this fanout exchange, too: MassTransit's of a message.
    pub fn also_from(self, exchange: Option<String>) -> Self {
        Broker { also_from: exchange, ..self }
    }

    /// The same, whose queue is to be this output's alone, as far as exchanges are declared.
    pub fn held_by(self, output: OutputName) -> Self {
        let hold = self.declares.then(|| Hold::new(&self.queue, output));
        Broker { hold, ..self }
    }

    /// The same, to publish to these shards of its queue.
    pub fn sharded(self, shards: &[Shard]) -> Self {
        let declared = shards.iter().map(|shard| queue_of(&self.queue, *shard)).collect();
        Broker { declared, ..self }
    }

    /// Connects to the first node that answers, from the next one on, declares the queue and calls
    /// `prepare`. Where none does, a refusal is what it returns before an absence.
    fn connect_any<T: Send + 'static>(
        &mut self,
        prepare: impl Fn(&mut Connection, &Channel, &str) -> amiquip::Result<T> + Clone + Send + 'static,
    ) -> Result<(Session, T, String), ConnectError> {
        let mut failures = Vec::new();
        for _ in 0..self.urls.len() {
            let url = &self.urls[self.next % self.urls.len()];
            // Should this one fail or be lost, the next node is tried first.
            self.next += 1;
            let (queue, prepare) = (self.queue.clone(), prepare.clone());
            let declared = if self.declares { self.declared.clone() } else { Vec::new() };
            let also_from = self.also_from.clone().filter(|_| self.declares);
            let opened = Session::open(url, self.tls.as_ref(), move |connection, channel| {
                declared.iter().try_for_each(|queue| declare(connection, channel, queue))?;
                also_from.iter().try_for_each(|exchange| bind_to_fanout(channel, exchange, &queue))?;
                prepare(connection, channel, &queue)
            });
            match opened {
                Ok((session, prepared)) => return Ok((session, prepared, url.to_string())),
                Err(error) => failures.push(error),
            }
        }
        let refusal = failures.iter().position(|failure| matches!(failure, ConnectError::Refused(_)));
        Err(failures.swap_remove(refusal.unwrap_or(0)))
    }
}

impl Broker {
    /// Connects to look at the dead letters, or to publish them again.
    ///
    /// # Errors
    /// As for [`Connect::connect`].
    pub fn dead_letters(&mut self) -> Result<DeadLetters, ConnectError> {
        let (session, (confirms, count), _) = self.connect_any(DeadLetters::prepare)?;
        Ok(DeadLetters::new(session, confirms, count, self.queue.clone()))
    }
}

impl Connect<dyn Publisher> for Broker {
    fn connect(&mut self) -> Result<Box<dyn Publisher>, ConnectError> {
        // What nobody has declared is told at once, and by its name.
        let needed = if self.declares { Vec::new() } else { self.declared.clone() };
        let (session, ears, address) = self.connect_any(move |connection, channel, queue| {
            let is_there = |exchange: &String| channel.exchange_declare_passive(exchange).map(drop);
            needed.iter().try_for_each(is_there)?;
            AmqpPublisher::prepare(connection, channel, queue)
        })?;
        Ok(Box::new(AmqpPublisher::new(session, ears, address, self.queue.clone())))
    }
}

impl Connect<dyn Inbox> for Broker {
    fn connect(&mut self) -> Result<Box<dyn Inbox>, ConnectError> {
        let prefetch = self.pace.prefetch();
        let hold = self.hold.clone();
        let (session, prepared, address) = self.connect_any(move |connection, channel, queue| match hold
            .as_ref()
            .map_or(Ok(Ok(())), |hold| hold.make(connection))?
        {
            Ok(()) => AmqpInbox::prepare(channel, queue, prefetch).map(Ok),
            Err(why) => Ok(Err(why)),
        })?;
        let (deliveries, confirms) = prepared.map_err(ConnectError::TakenOver)?;
        let intake = session
            .socket()
            .and_then(|socket| Intake::start(deliveries, prefetch, self.pace.clone(), socket))
            .map_err(|error| ConnectError::Unavailable(error.to_string()))?;
        let ownership = Ownership {
            hold: self.hold.clone(),
            queue: self.queue.clone(),
            urls: self.urls.clone(),
            tls: self.tls.clone(),
        };
        let (queue, blocked) = (self.queue.clone(), self.blocked.clone());
        Ok(Box::new(AmqpInbox::new(session, intake, confirms, queue, blocked, ownership, address)))
    }
}
