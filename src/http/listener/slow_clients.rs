//! Answers whose client does not read them.
//!
//! The listener's send timeout is a few milliseconds (T4), so a worker that meets a full socket gets it back
//! at once and leaves the rest of the answer here. One thread tries all such connections in turn. A client
//! that takes nothing for the write timeout is given up: what it still asks is neither recorded nor answered,
//! and its connection is closed; by the kernel (TCP_USER_TIMEOUT) where nobody else may do it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::hang_up::hang_up;
use super::request::Request;
use crate::stop::Stop;

/// How many answers wait for one client: enough for an honest one that pipelines.
const ANSWERS_MAX: usize = 256;
/// How many clients are waited for; more are given up at once.
const CLIENTS_MAX: usize = 1024;
/// After shutdown: how long requests that tiny_http had read already are still discarded.
const HUNG_UP_REMEMBERED: Duration = Duration::from_secs(1);
/// How soon a slow client is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// How soon it is seen, without a slow client, that the word to stop was given.
const TICK: Duration = Duration::from_millis(250);

/// A tiny_http answer in the making, and how much of it was handed over.
struct Pending {
    writer: Box<dyn Write + Send>,
    bytes: Vec<u8>,
    at: usize,
}

/// A client that does not read as fast as it asks.
enum Client {
    /// Its answers wait, oldest first.
    Slow {
        answers: VecDeque<Pending>,
        /// When it took something for the last time.
        since: Instant,
    },
    /// What it asks is neither recorded nor answered.
    GivenUp {
        /// When it asked for the last time.
        since: Instant,
        /// For how long without a request it stays so: until its connection is gone for sure.
        remembered: Duration,
        /// Whether its connection was to be closed.
        is_hung_up: bool,
    },
}

/// Everything that waits for slow clients.
pub(super) struct SlowClients {
    clients: Mutex<HashMap<SocketAddr, Client>>,
    // The same number, so that the rule, no slow client at all, costs one load.
    count: AtomicUsize,
    arrival: Condvar,
    write_timeout: Duration,
    stalled: Counter,
}

impl SlowClients {
    /// A client that takes nothing for `write_timeout` is given up, and counted in `stalled`.
    pub(super) fn new(write_timeout: Duration, stalled: Counter) -> Self {
        SlowClients {
            clients: Mutex::default(),
            count: AtomicUsize::new(0),
            arrival: Condvar::new(),
            write_timeout,
            stalled,
        }
    }

    /// The clients that were given up.
    pub(super) fn given_up(&self) -> HashSet<SocketAddr> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return HashSet::new();
        }
        let clients = self.clients();
        let given_up = clients.iter().filter(|(_, client)| matches!(client, Client::GivenUp { .. }));
        given_up.map(|(peer, _)| *peer).collect()
    }

    /// Notes that clients which were given up have asked again.
    pub(super) fn remember(&self, peers: &HashSet<SocketAddr>) {
        let mut clients = self.clients();
        for peer in peers {
            if let Some(Client::GivenUp { since, .. }) = clients.get_mut(peer) {
                *since = Instant::now();
            }
        }
    }

    /// Gives a client up.
    pub(super) fn give_up(&self, peer: SocketAddr) {
        let mut clients = self.clients();
        self.give_up_in(&mut clients, peer);
        self.arrived(&clients);
    }

    fn give_up_in(&self, clients: &mut HashMap<SocketAddr, Client>, peer: SocketAddr) {
        if let Some(Client::GivenUp { since, .. }) = clients.get_mut(&peer) {
            *since = Instant::now();
            return;
        }
        self.stalled.inc();
        let remembered = self.write_timeout * 2;
        clients.insert(peer, Client::GivenUp { since: Instant::now(), remembered, is_hung_up: false });
    }

    /// Writes an answer, or as much of it as the client takes now and the rest later. The request's body must
    /// have been read: tiny_http reads what is left of it here (T6).
    pub(super) fn answer(&self, mut request: Request, bytes: Vec<u8>) {
        let mut pending = Pending { writer: request.take().into_writer(), bytes, at: 0 };
        let peer = request.peer();
        let is_slow = self.count.load(Ordering::Relaxed) > 0 && self.clients().contains_key(&peer);
        if is_slow || pending.write().is_err_and(|error| is_full(&error)) {
            self.wait(peer, pending);
        }
        // Its claim ends here, so that the next answer of this connection finds this one waiting.
        drop(request);
    }

    fn wait(&self, peer: SocketAddr, pending: Pending) {
        let mut clients = self.clients();
        let is_full = clients.len() >= CLIENTS_MAX;
        let slow = || Client::Slow { answers: VecDeque::new(), since: Instant::now() };
        match clients.entry(peer).or_insert_with(slow) {
            Client::Slow { answers, .. } if !is_full && answers.len() < ANSWERS_MAX => {
                answers.push_back(pending);
            }
            Client::Slow { .. } => self.give_up_in(&mut clients, peer),
            Client::GivenUp { .. } => {}
        }
        self.arrived(&clients);
    }

    fn arrived(&self, clients: &HashMap<SocketAddr, Client>) {
        self.count.store(clients.len(), Ordering::Relaxed);
        self.arrival.notify_one();
    }

    /// Serves the slow clients until the word to stop is given.
    pub(super) fn run(&self, stop: &Stop) {
        while !stop.is_set() {
            let waited = self.arrival.wait_timeout_while(self.clients(), TICK, |clients| clients.is_empty());
            let peers: Vec<SocketAddr> =
                waited.unwrap_or_else(PoisonError::into_inner).0.keys().copied().collect();
            if peers.is_empty() {
                continue;
            }
            std::thread::sleep(PAUSE);
            peers.into_iter().for_each(|peer| self.serve(peer));
            self.hang_up();
        }
    }

    /// Closes the connections of those that were given up since the last time.
    fn hang_up(&self) {
        let mut new = HashSet::new();
        for (peer, client) in self.clients().iter_mut() {
            if let Client::GivenUp { is_hung_up: is_hung_up @ false, .. } = client {
                *is_hung_up = true;
                new.insert(*peer);
            }
        }
        if new.is_empty() {
            return;
        }
        match hang_up(&new) {
            Ok(()) => new.iter().for_each(|peer| {
                if let Some(Client::GivenUp { remembered, .. }) = self.clients().get_mut(peer) {
                    *remembered = HUNG_UP_REMEMBERED;
                }
            }),
            Err(error) => log::debug!("failed to hang up on {} clients: {error}", new.len()),
        }
    }

    /// Writes what one client takes now.
    fn serve(&self, peer: SocketAddr) {
        loop {
            // Taken out while it is written: a full socket costs a few milliseconds, without the lock.
            let Some(mut pending) = self.next_answer(peer) else { return };
            let written = pending.write();
            let mut clients = self.clients();
            let Some(Client::Slow { answers, since }) = clients.get_mut(&peer) else { return };
            match written {
                Ok(()) => *since = Instant::now(),
                Err(error) if is_full(&error) && since.elapsed() < self.write_timeout => {
                    answers.push_front(pending);
                    return;
                }
                Err(_) => return self.give_up_in(&mut clients, peer),
            }
        }
    }

    /// The next answer for a client; without one the client is slow no more.
    fn next_answer(&self, peer: SocketAddr) -> Option<Pending> {
        let mut clients = self.clients();
        let next = match clients.get_mut(&peer)? {
            Client::Slow { answers, .. } => answers.pop_front(),
            Client::GivenUp { since, remembered, .. } if since.elapsed() < *remembered => return None,
            Client::GivenUp { .. } => None,
        };
        if next.is_none() {
            clients.remove(&peer);
            self.count.store(clients.len(), Ordering::Relaxed);
        }
        next
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<SocketAddr, Client>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);

    /// A client that takes `room` more bytes, and what it took.
    #[derive(Clone, Default)]
    struct Socket(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Socket {
        fn give(&self, room: usize) {
            self.0.lock().expect("no panic holds it").0 = room;
        }
        fn taken(&self) -> Vec<u8> {
            self.0.lock().expect("no panic holds it").1.clone()
        }
        fn answer(&self, bytes: &[u8]) -> Pending {
            Pending { writer: Box::new(self.clone()), bytes: bytes.to_vec(), at: 0 }
        }
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, taken) = &mut *self.0.lock().expect("no panic holds it");
            let now = bytes.len().min(*room);
            if now == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            *room -= now;
            taken.extend_from_slice(&bytes[..now]);
            Ok(now)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow_clients(write_timeout: Duration) -> SlowClients {
        SlowClients::new(write_timeout, Counter::default())
    }

    #[test]
    fn answers_go_on_where_they_stopped_and_in_their_order() {
        let (slow, socket) = (slow_clients(Duration::from_secs(60)), Socket::default());
        slow.wait(PEER, socket.answer(b"first "));
        slow.wait(PEER, socket.answer(b"second"));
        let mut expected = 0;
        for room in [0, 3, 5, 4] {
            socket.give(room);
            slow.serve(PEER);
            expected += room;
            assert_eq!(socket.taken(), b"first second"[..expected]);
        }
        slow.serve(PEER);
        assert_eq!(slow.count.load(Ordering::Relaxed), 0, "it is slow no more");
        assert!(slow.given_up().is_empty());
    }

    #[test]
    fn a_client_that_takes_nothing_for_the_write_timeout_is_given_up_once() {
        let (slow, socket) = (slow_clients(Duration::ZERO), Socket::default());
        slow.wait(PEER, socket.answer(b"first"));
        slow.serve(PEER);
        assert_eq!(slow.given_up(), HashSet::from([PEER]));
        slow.give_up(PEER);
        slow.wait(PEER, socket.answer(b"second"));
        assert_eq!(slow.stalled.get(), 1);
        // It was to be remembered for twice no time.
        slow.serve(PEER);
        assert!(slow.given_up().is_empty());
    }

    #[test]
    fn one_that_was_given_up_is_remembered_for_as_long_as_it_asks() {
        let slow = slow_clients(Duration::from_millis(100));
        slow.give_up(PEER);
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(60));
            slow.remember(&HashSet::from([PEER]));
            slow.serve(PEER);
            assert_eq!(slow.given_up(), HashSet::from([PEER]));
        }
    }

    #[test]
    fn only_so_many_answers_and_clients_are_waited_for() {
        let (slow, socket) = (slow_clients(Duration::from_secs(60)), Socket::default());
        for _ in 0..ANSWERS_MAX {
            slow.wait(PEER, socket.answer(b"answer"));
        }
        assert!(slow.given_up().is_empty());
        slow.wait(PEER, socket.answer(b"one too many"));
        assert_eq!(slow.given_up(), HashSet::from([PEER]));
        for port in 2..=CLIENTS_MAX as u16 {
            slow.wait(SocketAddr::new(PEER.ip(), port), socket.answer(b"answer"));
        }
        assert_eq!(slow.stalled.get(), 1);
        let last = SocketAddr::new(PEER.ip(), 9999);
        slow.wait(last, socket.answer(b"answer"));
        assert!(slow.given_up().contains(&last));
    }
}
