//! What the threads of a listener share, and what each of them does with requests: have them handled, and
//! write the answers.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tiny_http::Method;

use super::body;
use super::given_up::GivenUp;
use super::readers::Readers;
use super::request::{BodyRead, Connections, Fault, Request};
use super::slow_clients::SlowClients;
use super::turned_away::TurnedAway;
use crate::http::answer::{Answer, BAD_FRAMING, BAD_HOST, BUSY, FAILED, TOO_LARGE, UNKNOWN_CODING};
use crate::limits::{is_short_of_memory, put_last};
use crate::metrics::Metrics;
use crate::stop::Stop;
use crate::supervisor::Supervisor;

const BODY_READER_STACK_BYTES: usize = 256 << 10;

/// What a listener needs to know.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// Its name in the log and in thread names.
    pub name: &'static str,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many threads handle requests.
    pub workers: usize,
    /// A connection that says nothing for this long is closed.
    pub read_timeout: Duration,
    /// A client that takes nothing of its answers for this long is given up.
    pub write_timeout: Duration,
}

/// What is done with requests.
pub trait Handler: Send + Sync {
    /// The answer to each of `requests`, in their order. What an answer promises is durable before this
    /// returns. It is called by one worker at a time, so while a group is made durable the next one gathers,
    /// and once for each request whose body was read aside.
    fn handle(&self, requests: &[&Request]) -> Vec<Answer>;
    /// An answer of this status, its own or a refusal of the listener's, is on its way.
    fn answered(&self, _status: &'static str) {}
}

/// What the threads of a listener share.
pub(super) struct Shared {
    pub(super) settings: ListenerSettings,
    pub(super) supervisor: Supervisor,
    pub(super) connections: Arc<Connections>,
    pub(super) slow: SlowClients,
    // The listener is closed, and the workers are to end.
    pub(super) stop: Stop,
    pub(super) workers_running: AtomicUsize,
    // How many requests were taken so far.
    pub(super) requests: AtomicUsize,
    handler: Arc<dyn Handler>,
    metrics: Arc<Metrics>,
    readers: Readers,
    turned_away: TurnedAway,
    are_connections_last: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        settings: ListenerSettings,
        handler: Arc<dyn Handler>,
        metrics: Arc<Metrics>,
        supervisor: Supervisor,
    ) -> Arc<Self> {
        Arc::new(Shared {
            connections: Connections::new(metrics.abandoned_connections.clone()),
            slow: SlowClients::new(
                settings.write_timeout,
                metrics.stalled_connections.clone(),
                GivenUp::new(settings.write_timeout.max(settings.read_timeout) * 2),
            ),
            settings,
            supervisor,
            stop: Stop::default(),
            workers_running: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            handler,
            metrics,
            readers: Readers::default(),
            turned_away: TurnedAway::default(),
            are_connections_last: AtomicBool::new(false),
        })
    }

    /// Starts a thread of this listener.
    pub(super) fn start(
        self: &Arc<Self>,
        part: &str,
        work: impl FnOnce(&Self) -> Result<(), String> + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.clone();
        let name = format!("{}-{part}", self.settings.name);
        self.supervisor.start(&name, move || work(&shared)).map(|_| ())
    }

    /// The name of tiny_http's threads.
    pub(super) fn connections_name(&self) -> String {
        format!("{}-client", self.settings.name)
    }

    /// Lets the threads that read requests run last: there is one for each connection, and few that take them over,
    /// so where all want to run, requests would come faster than they can even be dropped (T7).
    pub(super) fn put_connections_last(&self) {
        let threads = put_last(&self.connections_name());
        if !self.are_connections_last.swap(true, Ordering::Relaxed) {
            log::warn!(
                "clients of the {} listener ask faster than requests are taken: until it starts again, its connections' \
                 threads ({threads} now) run behind all others",
                self.settings.name
            );
        }
    }

    /// Does what requests ask for. A bug that one of them can reach must not be a way to end the program.
    pub(super) fn survive<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let outcome = catch_unwind(AssertUnwindSafe(step));
        if outcome.is_err() {
            log::error!("the {} listener panicked, see above, and goes on", self.settings.name);
        }
        outcome.ok()
    }

    /// Has requests handled whose bodies are there; the others are read aside. Returns those that were
    /// handled with their answers, in their order, which is that of their connections, too.
    pub(super) fn handle(self: &Arc<Self>, requests: Vec<Request>) -> Vec<(Request, Answer)> {
        let mut here = Vec::with_capacity(requests.len());
        for request in requests {
            if request.framing().is_pending {
                self.read_aside(request);
            } else {
                here.push(request);
            }
        }
        let clear: Vec<&Request> = here.iter().filter(|request| request.fault().is_none()).collect();
        let handled = self.survive(|| self.handler.handle(&clear));
        let answers = handled.unwrap_or_else(|| vec![FAILED; clear.len()]);
        assert_eq!(answers.len(), clear.len(), "a handler answers each request");
        let mut answers = answers.into_iter();
        let mut answer = |request: &Request| match request.fault() {
            Some(fault) => refusal(fault),
            None => answers.next().expect("there is one for each"),
        };
        here.into_iter()
            .map(|request| {
                let answer = answer(&request);
                (request, answer)
            })
            .collect()
    }

    /// Writes answers to requests that were taken at `taken`.
    pub(super) fn answer(&self, answered: Vec<(Request, Answer)>, taken: Instant) {
        let is_closing = self.stop.is_set();
        for (request, answer) in answered {
            let bytes = answer.bytes(request.persistence(), *request.method() == Method::Head, is_closing);
            let is_visit = answer.is_visit();
            self.handler.answered(answer.status());
            self.slow.answer(request, bytes);
            if is_visit {
                self.metrics.track(taken.elapsed(), answer.context().map(|span| span.trace_id()));
            }
        }
    }

    /// Closes the connections of bodies that take too long, and of those that nobody has time for.
    pub(super) fn look_after_bodies(&self) {
        for peer in self.readers.overdue(is_short_of_memory) {
            self.slow.given_up.add(peer);
        }
        self.turned_away.look(&self.slow);
    }

    /// Reads the body of a request on a thread of its own, then has the request handled.
    fn read_aside(self: &Arc<Self>, mut request: Request) {
        let Some(reading) = OccupiedReader::begin(self, request.peer()) else {
            self.handler.answered(BUSY.status());
            return self.turned_away.add(request, BUSY.last_bytes(), &self.slow.given_up);
        };
        // Where no thread is to be had, the request is dropped, and gives its connection up.
        let work = move || {
            let shared = &reading.0;
            let slow = &shared.slow;
            let refuse = |request, answer: &Answer| {
                shared.handler.answered(answer.status());
                body::refuse(request, answer, slow);
            };
            if let Some(fault) = request.fault() {
                refuse(request, &refusal(fault));
                return Ok(());
            }
            let read = body::read(&mut request);
            shared.readers.is_done(request.peer());
            match read {
                BodyRead::All => {
                    let taken = Instant::now();
                    shared.survive(|| shared.answer(shared.handle(vec![request]), taken));
                }
                BodyRead::TooLarge => refuse(request, &TOO_LARGE),
                BodyRead::Malformed => refuse(request, &BAD_FRAMING),
                BodyRead::Gone => body::give_up(request, &slow.given_up),
            }
            Ok(())
        };
        if let Err(error) = self.supervisor.start_small("body", BODY_READER_STACK_BYTES, work) {
            log::debug!("no thread to read a body: {error}");
        }
    }
}

fn refusal(fault: Fault) -> Answer {
    match fault {
        Fault::Framing => BAD_FRAMING,
        Fault::Coding => UNKNOWN_CODING,
        Fault::Host => BAD_HOST,
    }
}

/// One of the bodies that are being read.
struct OccupiedReader(Arc<Shared>, SocketAddr);

impl OccupiedReader {
    fn begin(shared: &Arc<Shared>, peer: SocketAddr) -> Option<Self> {
        let deadline = Instant::now() + body::LINGER_MAX;
        shared.readers.begin(peer, deadline).then(|| OccupiedReader(shared.clone(), peer))
    }
}

impl Drop for OccupiedReader {
    fn drop(&mut self) {
        self.0.readers.end(self.1);
    }
}
