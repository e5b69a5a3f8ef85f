//! One tiny_http server of a listener, and the workers that take its requests in turns.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tiny_http::Server;

use super::slow_clients::SlowLane;
use super::turns::{Claims, Taken, Waiting};
use crate::metrics::Metrics;

/// How soon the next requests of a connection are taken after its last answer.
const HELD_PAUSE: Duration = Duration::from_millis(1);

/// What a door needs to know.
#[derive(Debug, Clone)]
pub struct DoorSettings {
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

/// What is done with requests, in two steps: the first is taken in turns, the second is not.
pub trait Handler: Send + Sync {
    /// Requests with their answers.
    type Group;
    /// Makes durable what must be. While one worker does this, requests gather for the next: the
    /// slower the disk, the larger the groups.
    fn commit(
        &'static self,
        requests: Vec<Taken>,
        slow: &'static SlowLane,
        stopping: &'static AtomicBool,
    ) -> Self::Group;
    /// Answers them.
    fn answer(&self, group: Self::Group, taken: Instant, slow: &SlowLane, closing: bool);
}

/// What the threads of a door share.
pub struct Shared {
    /// What the door was told.
    pub settings: DoorSettings,
    /// Where answers wait for slow clients.
    pub slow: SlowLane,
    /// What is counted.
    pub metrics: &'static Metrics,
    /// The listener is closed, and the workers are to end.
    pub stopping: AtomicBool,
    /// How many workers have not ended.
    pub workers_running: AtomicUsize,
    /// How many requests were taken so far.
    pub requests: AtomicUsize,
    claims: Claims,
}

impl Shared {
    /// What the threads of a new door share.
    pub fn new(settings: DoorSettings, metrics: &'static Metrics) -> Self {
        Shared {
            slow: SlowLane::new(settings.write_timeout),
            settings,
            metrics,
            stopping: AtomicBool::new(false),
            workers_running: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            claims: Claims::default(),
        }
    }
}

/// One tiny_http server.
pub struct Generation {
    server: Server,
    // The number of its accept thread's descriptor.
    listener: RawFd,
    // Held by the worker whose turn it is to take requests and make them durable.
    turn: Mutex<Waiting>,
    // Its accept thread has ended.
    deaf: AtomicBool,
}

impl Generation {
    /// Starts a tiny_http server on a clone of `listener`, and its workers.
    ///
    /// # Errors
    /// What the system said where a descriptor or a thread was not to be had.
    pub fn start<H: Handler>(
        listener: &TcpListener,
        shared: &'static Shared,
        handler: &'static H,
    ) -> io::Result<Arc<Generation>> {
        let listener = listener.try_clone()?;
        let fd = listener.as_raw_fd();
        // It panics where no thread can be had.
        let server = catch_unwind(AssertUnwindSafe(|| Server::from_listener(listener, None)))
            .map_err(|_| io::Error::other("no thread to be had"))?
            .map_err(io::Error::other)?;
        let generation =
            Generation { server, listener: fd, turn: Mutex::default(), deaf: AtomicBool::new(false) };
        let generation = Arc::new(generation);
        for n in 0..shared.settings.workers {
            let generation = generation.clone();
            shared.workers_running.fetch_add(1, Ordering::Relaxed);
            let spawned = spawn(&format!("{}-{n}", shared.settings.name), move || {
                generation.work(n, shared, handler);
                shared.workers_running.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                shared.workers_running.fetch_sub(1, Ordering::Relaxed);
                spawned?;
            }
        }
        Ok(generation)
    }

    /// Whether its accept thread has ended: that closes the clone of `listener`. One that panics, as with
    /// too few descriptors, tells nobody else.
    pub fn is_deaf(&self, listener: &TcpListener) -> bool {
        let opened = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let own = opened(listener.as_raw_fd());
        own.is_some() && opened(self.listener) != own
    }

    /// Leaves the connections to one worker; `false` where that was done before.
    pub fn retire(&self, shared: &Shared) -> bool {
        let is_first = !self.deaf.swap(true, Ordering::Relaxed);
        if is_first {
            (0..shared.settings.workers).for_each(|_| self.unblock());
        }
        is_first
    }

    /// Wakes one worker that waits for requests; a worker that has found one at that moment misses it.
    pub fn unblock(&self) {
        self.server.unblock();
    }

    /// Takes what waits, makes it durable, answers it; until the generation has ended.
    fn work<H: Handler>(&self, number: usize, shared: &'static Shared, handler: &'static H) {
        loop {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(requests) = self.take(&mut turn, number, shared) else { return };
            let taken = Instant::now();
            shared.requests.fetch_add(requests.len(), Ordering::Relaxed);
            let closing = shared.stopping.load(Ordering::Relaxed);
            let step = AssertUnwindSafe(|| {
                let group = handler.commit(requests, &shared.slow, &shared.stopping);
                drop(turn);
                handler.answer(group, taken, &shared.slow, closing);
            });
            // A bug that one request can reach must not be a way to end the program.
            if catch_unwind(step).is_err() {
                log::error!("a {} worker panicked and goes on", shared.settings.name);
            }
        }
    }

    /// Waits for requests and takes those that are there; `None` when worker `number` is to end.
    fn take(&self, waiting: &mut Waiting, number: usize, shared: &'static Shared) -> Option<Vec<Taken>> {
        // By then the read timeout has closed every connection of a generation that accepts no more.
        let silence_max = shared.settings.read_timeout * 2 + Duration::from_secs(1);
        let since = Instant::now();
        let mut first = None;
        loop {
            let receive = || first.take().or_else(|| self.server.try_recv().ok().flatten());
            let group = waiting.take(&shared.claims, &shared.slow, shared.metrics, receive);
            if !group.is_empty() {
                return Some(group);
            }
            let deaf = self.deaf.load(Ordering::Relaxed);
            if deaf && (number > 0 || waiting.is_empty() && since.elapsed() >= silence_max) {
                return None;
            }
            // An error is `unblock`'s, or the accept thread's last word, which the keeper sees by itself.
            first = if !waiting.is_empty() {
                self.server.recv_timeout(HELD_PAUSE).ok().flatten()
            } else if deaf {
                self.server.recv_timeout(silence_max).ok().flatten()
            } else {
                self.server.recv().ok()
            };
            if first.is_none() && waiting.is_empty() && shared.stopping.load(Ordering::Relaxed) {
                return None;
            }
        }
    }
}

/// Starts a thread that ends with the process.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(|_| ())
}
