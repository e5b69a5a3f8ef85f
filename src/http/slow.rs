//! Answers whose client does not read them.
//!
//! The listener's send timeout is a few milliseconds, so a worker that meets a full socket gets it
//! back at once and leaves the rest of the answer here. One thread tries all such connections in turn.
//! A client that takes nothing for the write timeout is given up: what it still asks is neither
//! recorded nor answered, and the kernel closes its connection (TCP_USER_TIMEOUT).

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tiny_http::Request;

use crate::metrics::Metrics;

/// How many answers wait for one client: enough for an honest one that pipelines.
const ANSWERS_MAX: usize = 1024;
/// How many clients are waited for; more are given up at once.
const CLIENTS_MAX: usize = 1024;
const PAUSE: Duration = Duration::from_millis(5);

/// A tiny_http answer in the making, and how much of it was handed over.
struct Pending {
    writer: Box<dyn Write + Send>,
    bytes: Vec<u8>,
    at: usize,
}

/// A client that does not read as fast as it asks.
struct Slow {
    answers: VecDeque<Pending>,
    since: Instant,
    given_up: bool,
}

/// Everything that waits for slow clients.
pub struct SlowLane {
    clients: Mutex<HashMap<SocketAddr, Slow>>,
    // The same number, so that the rule, no slow client at all, costs one load.
    count: AtomicUsize,
    write_timeout: Duration,
}

impl SlowLane {
    /// A client that takes nothing for `write_timeout` is given up.
    pub fn new(write_timeout: Duration) -> Self {
        SlowLane { clients: Mutex::new(HashMap::new()), count: AtomicUsize::new(0), write_timeout }
    }

    /// Whether `request` is one of a client that was given up.
    pub fn has_given_up(&self, request: &Request) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let Some(peer) = request.remote_addr() else { return false };
        self.clients().get_mut(peer).is_some_and(|slow| {
            if slow.given_up {
                slow.since = Instant::now();
            }
            slow.given_up
        })
    }

    /// Writes an answer, or as much of it as the client takes now and the rest later. The request's
    /// body must be read: tiny_http reads what is left of it here.
    pub fn answer(&self, request: Request, bytes: Vec<u8>) {
        let peer = request.remote_addr().copied();
        let mut pending = Pending { writer: request.into_writer(), bytes, at: 0 };
        if self.count.load(Ordering::Relaxed) > 0
            && let Some(slow) = peer.and_then(|peer| self.clients().get_mut(&peer).map(|_| peer))
        {
            return self.wait(slow, pending);
        }
        if let (Err(error), Some(peer)) = (pending.write(), peer)
            && is_full(&error)
        {
            self.wait(peer, pending);
        }
    }

    fn wait(&self, peer: SocketAddr, pending: Pending) {
        let mut clients = self.clients();
        let full = clients.len() >= CLIENTS_MAX;
        let slow = clients.entry(peer).or_insert_with(|| Slow {
            answers: VecDeque::new(),
            since: Instant::now(),
            given_up: full,
        });
        if slow.answers.len() >= ANSWERS_MAX {
            slow.given_up = true;
        }
        if slow.given_up {
            slow.answers.clear();
        } else {
            slow.answers.push_back(pending);
        }
        self.count.store(clients.len(), Ordering::Relaxed);
    }

    /// Serves the slow clients until `stop` says so.
    pub fn run(&self, metrics: &Metrics, stop: impl Fn() -> bool) {
        while !stop() {
            std::thread::sleep(PAUSE);
            if self.count.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let peers: Vec<SocketAddr> = self.clients().keys().copied().collect();
            for peer in peers {
                self.serve(peer, metrics);
            }
        }
    }

    /// Writes what one client takes now.
    fn serve(&self, peer: SocketAddr, metrics: &Metrics) {
        loop {
            // Taken out while it is written: a full socket costs a few milliseconds, without the lock.
            let Some(mut pending) = self.next_answer(peer) else { return };
            let written = pending.write();
            let mut clients = self.clients();
            let Some(slow) = clients.get_mut(&peer) else { return };
            match written {
                Ok(()) => slow.since = Instant::now(),
                Err(error) if is_full(&error) && slow.since.elapsed() < self.write_timeout => {
                    slow.answers.push_front(pending);
                    return;
                }
                Err(_) => {
                    slow.given_up = true;
                    slow.since = Instant::now();
                    slow.answers.clear();
                    metrics.stalled_connections.inc();
                    return;
                }
            }
        }
    }

    /// The next answer for a client; without one the client is slow no more. One that was given up is
    /// remembered until it has been silent for long enough that its connection is gone.
    fn next_answer(&self, peer: SocketAddr) -> Option<Pending> {
        let mut clients = self.clients();
        let slow = clients.get_mut(&peer)?;
        let next = slow.answers.pop_front();
        let remembered = slow.given_up && slow.since.elapsed() < self.write_timeout * 2;
        if next.is_none() && !remembered {
            clients.remove(&peer);
            self.count.store(clients.len(), Ordering::Relaxed);
        }
        next
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<SocketAddr, Slow>> {
        // A panic between two changes leaves at worst an answer out, on a connection that is slow.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn write(&mut self) -> io::Result<()> {
        while self.at < self.bytes.len() {
            match self.writer.write(&self.bytes[self.at..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.at += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.writer.flush()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
