//! One tiny_http server of a listener, and the workers that take its requests in turns.
//!
//! A listener has one server that accepts connections and perhaps older ones, whose accept thread has ended
//! (T1): of those, one worker each serves the connections that they have.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::request::Request;
use super::shared::Shared;
use super::turns::Turns;

/// How soon the next requests of a connection are taken after its last answer.
const HELD_PAUSE: Duration = Duration::from_millis(1);

/// In a turn that takes over as many requests, more come than are taken, and they wait in tiny_http's memory.
const OVERRUN_MIN: usize = 8_192;

/// One tiny_http server.
pub(super) struct Server {
    inner: tiny_http::Server,
    // The number of its accept thread's descriptor.
    listener: RawFd,
    // Held by the worker whose turn it is to take requests and make them durable.
    turn: Mutex<Turns>,
    // Its accept thread has ended, and all workers but one are to end, too.
    is_retired: AtomicBool,
}

impl Server {
    /// Starts a tiny_http server on a clone of `listener`, and its workers.
    ///
    /// # Errors
    /// What the system said where a descriptor or a thread was not to be had.
    pub(super) fn start(listener: &TcpListener, shared: &Arc<Shared>) -> io::Result<Arc<Server>> {
        let listener = listener.try_clone()?;
        let fd = listener.as_raw_fd();
        let inner = thread::scope(|scope| {
            // tiny_http names none of its threads, and a thread has the name of the one that started it.
            let start = || tiny_http::Server::from_listener(listener, None).map_err(io::Error::other);
            let started = Builder::new().name(shared.connections_name()).spawn_scoped(scope, start)?;
            // It panics where no thread can be had.
            started.join().unwrap_or_else(|_| Err(io::Error::other("no thread to be had")))
        })?;
        let server = Arc::new(Server {
            inner,
            listener: fd,
            turn: Mutex::new(Turns::new(shared.connections.clone())),
            is_retired: AtomicBool::new(false),
        });
        for number in 0..shared.settings.workers {
            let (server, working) = (server.clone(), Working::begin(shared));
            shared.supervisor.start(&format!("{}-{number}", shared.settings.name), move || {
                server.work(number, &working.0);
                Ok(())
            })?;
        }
        Ok(server)
    }

    /// Whether its accept thread has ended: that closes the clone of `listener`. One that panics, as with too
    /// few descriptors, tells nobody else.
    pub(super) fn is_deaf(&self, listener: &TcpListener) -> bool {
        let opened = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let own = opened(listener.as_raw_fd());
        own.is_some() && opened(self.listener) != own
    }

    /// Leaves the connections to one worker; `false` where that was done before.
    pub(super) fn retire(&self, shared: &Shared) -> bool {
        let is_first = !self.is_retired.swap(true, Ordering::Relaxed);
        if is_first {
            (0..shared.settings.workers).for_each(|_| self.unblock());
        }
        is_first
    }

    /// Wakes one worker that waits for requests (T12); one that has found a request at that moment misses it.
    pub(super) fn unblock(&self) {
        self.inner.unblock();
    }

    /// Takes what waits, has it handled, answers it; until the server has ended.
    fn work(&self, number: usize, shared: &Arc<Shared>) {
        loop {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(requests) = self.take(&mut turn, number, shared) else { return };
            let taken = Instant::now();
            shared.requests.fetch_add(requests.len(), Ordering::Relaxed);
            shared.survive(|| {
                let answered = shared.handle(requests);
                // The next worker's turn: its group gathered while this one was made durable.
                drop(turn);
                shared.answer(answered, taken);
            });
        }
    }

    /// Waits for requests and takes those that are there; `None` when worker `number` is to end.
    fn take(&self, turns: &mut Turns, number: usize, shared: &Shared) -> Option<Vec<Request>> {
        // By then the read timeout has closed every connection of a server that accepts no more.
        let silence_max = shared.settings.read_timeout * 2 + Duration::from_secs(1);
        let since = Instant::now();
        let mut first = None;
        loop {
            let mut received = 0;
            let receive = || {
                received += 1;
                if received == OVERRUN_MIN {
                    shared.put_connections_last();
                }
                first.take().or_else(|| self.inner.try_recv().ok().flatten())
            };
            let group = turns.take(&shared.slow, receive);
            if !group.is_empty() {
                return Some(group);
            }
            let is_retired = self.is_retired.load(Ordering::Relaxed);
            if is_retired && (number > 0 || turns.is_empty() && since.elapsed() >= silence_max) {
                return None;
            }
            // `recv` fails after `unblock`, or when the accept thread died. The keeper detects the latter; here
            // both just loop.
            first = if !turns.is_empty() {
                self.inner.recv_timeout(HELD_PAUSE).ok().flatten()
            } else if is_retired {
                self.inner.recv_timeout(silence_max).ok().flatten()
            } else {
                self.inner.recv().ok()
            };
            if first.is_none() && turns.is_empty() && shared.stop.is_set() {
                return None;
            }
        }
    }
}

/// A worker that has not ended, however it does.
struct Working(Arc<Shared>);

impl Working {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.workers_running.fetch_add(1, Ordering::Relaxed);
        Working(shared.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.workers_running.fetch_sub(1, Ordering::Relaxed);
    }
}
