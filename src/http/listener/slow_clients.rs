//! Answers whose client does not read them.
//!
//! The listener's send timeout is a few milliseconds, so a worker that meets a full socket gets it
//! back at once and leaves the rest of the answer here. One thread tries all such connections in turn.
//! A client that takes nothing for the write timeout is given up: what it still asks is neither
//! recorded nor answered, and its connection is closed; by the kernel (TCP_USER_TIMEOUT) where nobody
//! else may do it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hang_up::hang_up;
use super::turns::Taken;
use crate::metrics::Metrics;

/// How many answers wait for one client: enough for an honest one that pipelines.
const ANSWERS_MAX: usize = 256;
/// How many clients are waited for; more are given up at once.
const CLIENTS_MAX: usize = 1024;
/// How long one is passed over whose connection was closed.
const HUNG_UP_REMEMBERED: Duration = Duration::from_secs(1);
/// How soon a slow client is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// How soon it is seen, without a slow client, that the lane is to stop.
const TICK: Duration = Duration::from_millis(250);

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
    hung_up: bool,
    // How long one that was given up is remembered after its last request.
    remembered: Duration,
}

/// Everything that waits for slow clients.
pub struct SlowLane {
    clients: Mutex<HashMap<SocketAddr, Slow>>,
    // The same number, so that the rule, no slow client at all, costs one load.
    count: AtomicUsize,
    arrival: Condvar,
    write_timeout: Duration,
}

impl SlowLane {
    /// A client that takes nothing for `write_timeout` is given up.
    pub fn new(write_timeout: Duration) -> Self {
        SlowLane {
            clients: Mutex::default(),
            count: AtomicUsize::new(0),
            arrival: Condvar::new(),
            write_timeout,
        }
    }

    /// The clients that were given up: what they ask is neither to be recorded nor answered.
    pub fn given_up(&self) -> HashSet<SocketAddr> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return HashSet::new();
        }
        self.clients().iter().filter(|(_, slow)| slow.given_up).map(|(peer, _)| *peer).collect()
    }

    /// Notes that clients which were given up have asked again.
    pub fn remember(&self, peers: &HashSet<SocketAddr>) {
        let mut clients = self.clients();
        for peer in peers {
            if let Some(slow) = clients.get_mut(peer) {
                slow.since = Instant::now();
            }
        }
    }

    /// Gives a client up.
    pub fn give_up(&self, peer: SocketAddr, metrics: &Metrics) {
        let mut clients = self.clients();
        let slow = clients.entry(peer).or_insert_with(|| Slow::new(self.write_timeout));
        slow.give_up(metrics);
        self.arrived(&clients);
    }

    /// Writes an answer, or as much of it as the client takes now and the rest later. The request's
    /// body must be read: tiny_http reads what is left of it here.
    pub fn answer(&self, request: Taken, bytes: Vec<u8>, metrics: &Metrics) {
        // Until the end, so that the next answer of this connection finds this one here.
        let (request, claim) = request.into_parts();
        let mut pending = Pending { writer: request.into_writer(), bytes, at: 0 };
        let is_slow = self.count.load(Ordering::Relaxed) > 0 && self.clients().contains_key(&claim.peer);
        if is_slow || pending.write().is_err_and(|error| is_full(&error)) {
            self.wait(claim.peer, pending, metrics);
        }
    }

    fn wait(&self, peer: SocketAddr, pending: Pending, metrics: &Metrics) {
        let mut clients = self.clients();
        let is_full = clients.len() >= CLIENTS_MAX;
        let slow = clients.entry(peer).or_insert_with(|| Slow::new(self.write_timeout));
        if is_full || slow.answers.len() >= ANSWERS_MAX {
            slow.give_up(metrics);
        } else if !slow.given_up {
            slow.answers.push_back(pending);
        }
        self.arrived(&clients);
    }

    fn arrived(&self, clients: &HashMap<SocketAddr, Slow>) {
        self.count.store(clients.len(), Ordering::Relaxed);
        self.arrival.notify_one();
    }

    /// Serves the slow clients until `stop` says so.
    pub fn run(&self, metrics: &Metrics, stop: impl Fn() -> bool) {
        while !stop() {
            let waited = self.arrival.wait_timeout_while(self.clients(), TICK, |clients| clients.is_empty());
            let peers: Vec<SocketAddr> =
                waited.unwrap_or_else(PoisonError::into_inner).0.keys().copied().collect();
            if peers.is_empty() {
                continue;
            }
            std::thread::sleep(PAUSE);
            for peer in peers {
                self.serve(peer, metrics);
            }
            self.hang_up();
        }
    }

    /// Closes the connections of those that were given up since the last time.
    fn hang_up(&self) {
        let is_new = |slow: &Slow| slow.given_up && !slow.hung_up;
        let mut new: HashSet<SocketAddr> = HashSet::new();
        new.extend(self.clients().iter_mut().filter(|(_, slow)| is_new(slow)).map(|(peer, slow)| {
            slow.hung_up = true;
            *peer
        }));
        if new.is_empty() {
            return;
        }
        match hang_up(&new) {
            // What is left to pass over are requests that were read before.
            Ok(()) => new.iter().for_each(|peer| {
                if let Some(slow) = self.clients().get_mut(peer) {
                    slow.remembered = HUNG_UP_REMEMBERED;
                }
            }),
            Err(error) => log::debug!("failed to hang up on {} clients: {error}", new.len()),
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
                _ if slow.given_up => return,
                Ok(()) => slow.since = Instant::now(),
                Err(error) if is_full(&error) && slow.since.elapsed() < self.write_timeout => {
                    slow.answers.push_front(pending);
                    return;
                }
                Err(_) => return slow.give_up(metrics),
            }
        }
    }

    /// The next answer for a client; without one the client is slow no more. One that was given up is
    /// remembered until it has been silent for long enough that its connection is gone.
    fn next_answer(&self, peer: SocketAddr) -> Option<Pending> {
        let mut clients = self.clients();
        let slow = clients.get_mut(&peer)?;
        let next = slow.answers.pop_front();
        let remembered = slow.given_up && slow.since.elapsed() < slow.remembered;
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

impl Slow {
    fn new(write_timeout: Duration) -> Self {
        Slow {
            answers: VecDeque::new(),
            since: Instant::now(),
            given_up: false,
            hung_up: false,
            remembered: write_timeout * 2,
        }
    }

    fn give_up(&mut self, metrics: &Metrics) {
        if !self.given_up {
            metrics.stalled_connections.inc();
        }
        self.given_up = true;
        self.since = Instant::now();
        self.answers.clear();
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
