//! Answers whose client does not read them.
//!
//! The listener's send timeout is a few milliseconds (T4), so a worker that meets a full socket gets it back
//! at once and leaves the rest of the answer here. One thread tries all such connections in turn. A client
//! that takes nothing for the write timeout is given up ([`super::given_up`]).

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::given_up::GivenUp;
use super::request::Request;
use crate::stop::Stop;

/// How many answers wait for one client: enough for an honest one that pipelines.
const ANSWERS_MAX: usize = 256;
/// How many clients are waited for; for one more, the one that has taken nothing for the longest is given up.
const CLIENTS_MAX: usize = 1024;
/// How soon a slow client is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// How soon it is seen, without a slow client, that the word to stop was given.
const TICK: Duration = Duration::from_millis(250);

/// A tiny_http answer in the making, and how much of it was handed over.
struct Pending {
    writer: Box<dyn Write + Send>,
    bytes: Vec<u8>,
    at: usize,
    /// Whether the connection is to be closed behind it.
    is_last: bool,
}

/// A client that does not read as fast as it asks.
struct Client {
    /// Oldest first.
    answers: VecDeque<Pending>,
    /// When it took something for the last time.
    since: Instant,
}

/// Everything that waits for slow clients.
pub(super) struct SlowClients {
    pub(super) given_up: GivenUp,
    clients: Mutex<HashMap<SocketAddr, Client>>,
    // Their number, so that the rule, no slow client at all, costs one load.
    count: AtomicUsize,
    arrival: Condvar,
    write_timeout: Duration,
    stalled: Counter,
}

impl SlowClients {
    /// A client that takes nothing for `write_timeout` is given up, and counted in `stalled`.
    pub(super) fn new(write_timeout: Duration, stalled: Counter, given_up: GivenUp) -> Self {
        SlowClients {
            given_up,
            clients: Mutex::default(),
            count: AtomicUsize::new(0),
            arrival: Condvar::new(),
            write_timeout,
            stalled,
        }
    }

    /// Gives up a client that asks for more than it reads.
    pub(super) fn give_up(&self, peer: SocketAddr) {
        self.give_up_in(&mut self.lock(), peer);
    }

    fn give_up_in(&self, clients: &mut HashMap<SocketAddr, Client>, peer: SocketAddr) {
        self.remove(clients, peer);
        if self.given_up.add(peer) {
            self.stalled.inc();
        }
    }

    /// Whether answers wait for this client.
    pub(super) fn owes(&self, peer: SocketAddr) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.lock().contains_key(&peer)
    }

    /// Writes an answer, or as much of it as the client takes now and the rest later. The request's body must
    /// have been read: tiny_http reads what is left of it here (T6).
    pub(super) fn answer(&self, mut request: Request, bytes: Vec<u8>) {
        let (peer, is_last) = (request.peer(), request.is_last());
        let mut pending = Pending { writer: request.take().into_writer(), bytes, at: 0, is_last };
        if self.given_up.is_silenced(peer) {
            return;
        }
        if self.owes(peer) || pending.write().is_err_and(|error| is_full(&error)) {
            self.wait(peer, pending);
        } else if is_last {
            self.given_up.add(peer);
        }
        // Its claim ends here, so that the next answer of this connection finds this one waiting.
        drop(request);
    }

    fn wait(&self, peer: SocketAddr, pending: Pending) {
        let mut clients = self.lock();
        if clients.len() >= CLIENTS_MAX
            && !clients.contains_key(&peer)
            && let Some(longest) =
                clients.iter().min_by_key(|(_, client)| client.since).map(|(peer, _)| *peer)
        {
            self.give_up_in(&mut clients, longest);
        }
        let new = || Client { answers: VecDeque::new(), since: Instant::now() };
        let answers = &mut clients.entry(peer).or_insert_with(new).answers;
        if answers.len() < ANSWERS_MAX {
            answers.push_back(pending);
        } else {
            self.give_up_in(&mut clients, peer);
        }
        self.count.store(clients.len(), Ordering::Relaxed);
        self.arrival.notify_one();
    }

    /// Serves the slow clients until the word to stop is given.
    pub(super) fn run(&self, stop: &Stop) {
        while !stop.is_set() {
            let waited = self.arrival.wait_timeout_while(self.lock(), TICK, |clients| clients.is_empty());
            let peers: Vec<SocketAddr> =
                waited.unwrap_or_else(PoisonError::into_inner).0.keys().copied().collect();
            if peers.is_empty() {
                continue;
            }
            std::thread::sleep(PAUSE);
            peers.into_iter().for_each(|peer| self.serve(peer));
        }
    }

    /// Writes what one client takes now.
    fn serve(&self, peer: SocketAddr) {
        loop {
            // Taken out while it is written: a full socket costs a few milliseconds, without the lock.
            let Some(mut pending) = self.next_answer(peer) else { return };
            let written = pending.write();
            let mut clients = self.lock();
            let Some(client) = clients.get_mut(&peer) else { return };
            match written {
                Err(error) if is_full(&error) && client.since.elapsed() < self.write_timeout => {
                    client.answers.push_front(pending);
                    return;
                }
                Err(error) if is_full(&error) => return self.give_up_in(&mut clients, peer),
                // It has the answer, or has left.
                Ok(()) | Err(_) => client.since = Instant::now(),
            }
            if pending.is_last {
                self.given_up.add(peer);
            }
        }
    }

    /// The next answer for a client; without one the client is slow no more.
    fn next_answer(&self, peer: SocketAddr) -> Option<Pending> {
        let mut clients = self.lock();
        let next = clients.get_mut(&peer)?.answers.pop_front();
        if next.is_none() {
            self.remove(&mut clients, peer);
        }
        next
    }

    fn remove(&self, clients: &mut HashMap<SocketAddr, Client>, peer: SocketAddr) {
        clients.remove(&peer);
        self.count.store(clients.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Client>> {
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
    use std::collections::HashSet;
    use std::sync::Arc;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);

    /// A client that takes `room` more bytes, and what it took.
    #[derive(Clone, Default)]
    struct Socket(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Socket {
        fn give(&self, room: usize) {
            self.0.lock().expect("no panic holds it").0 = room;
        }
        fn close(&self) {
            self.give(usize::MAX);
        }
        fn taken(&self) -> Vec<u8> {
            self.0.lock().expect("no panic holds it").1.clone()
        }
        fn answer(&self, bytes: &[u8]) -> Pending {
            Pending { writer: Box::new(self.clone()), bytes: bytes.to_vec(), at: 0, is_last: false }
        }
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, taken) = &mut *self.0.lock().expect("no panic holds it");
            if *room == usize::MAX {
                return Err(ErrorKind::BrokenPipe.into());
            }
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
        SlowClients::new(write_timeout, Counter::default(), GivenUp::new(write_timeout))
    }

    #[test]
    fn answers_go_on_where_they_stopped_and_in_their_order() {
        let (slow, socket) = (slow_clients(Duration::from_secs(60)), Socket::default());
        slow.wait(PEER, socket.answer(b"first "));
        slow.wait(PEER, Pending { is_last: true, ..socket.answer(b"second") });
        let mut expected = 0;
        for room in [0, 3, 5, 4] {
            socket.give(room);
            assert!(slow.owes(PEER) && slow.given_up.peers().is_empty());
            slow.serve(PEER);
            expected += room;
            assert_eq!(socket.taken(), b"first second"[..expected]);
        }
        assert!(!slow.owes(PEER), "it is slow no more");
        assert_eq!(slow.given_up.peers(), HashSet::from([PEER]), "that was its last answer");
        assert_eq!(slow.stalled.get(), 0);
    }

    #[test]
    fn a_client_that_takes_nothing_for_the_write_timeout_is_given_up_once() {
        let (slow, socket) = (slow_clients(Duration::ZERO), Socket::default());
        slow.wait(PEER, socket.answer(b"first"));
        slow.serve(PEER);
        assert_eq!(slow.given_up.peers(), HashSet::from([PEER]));
        slow.give_up(PEER);
        assert!(!slow.owes(PEER), "nothing waits for it any more");
        assert_eq!(slow.stalled.get(), 1);
    }

    /// It was counted as stalled, and so as somebody who tries the front door.
    #[test]
    fn a_client_that_has_left_has_not_stalled() {
        let (slow, socket) = (slow_clients(Duration::ZERO), Socket::default());
        slow.wait(PEER, socket.answer(b"first"));
        slow.wait(PEER, socket.answer(b"second"));
        socket.close();
        slow.serve(PEER);
        assert!(!slow.owes(PEER) && slow.given_up.peers().is_empty());
        assert_eq!(slow.stalled.get(), 0);
    }

    #[test]
    fn only_so_many_answers_wait_for_a_client() {
        let (slow, socket) = (slow_clients(Duration::from_secs(60)), Socket::default());
        for _ in 0..ANSWERS_MAX {
            slow.wait(PEER, socket.answer(b"answer"));
        }
        assert!(slow.given_up.peers().is_empty());
        slow.wait(PEER, socket.answer(b"one too many"));
        assert_eq!(slow.given_up.peers(), HashSet::from([PEER]));
        assert_eq!(slow.stalled.get(), 1);
    }

    /// With as many slow clients as there may be, whoever came next was given up, or had one more answer.
    #[test]
    fn of_too_many_slow_clients_the_one_that_has_waited_longest_is_given_up() {
        let (slow, socket) = (slow_clients(Duration::from_secs(60)), Socket::default());
        let client = |port| SocketAddr::new(PEER.ip(), port);
        for port in 1..=CLIENTS_MAX as u16 {
            slow.wait(client(port), socket.answer(b"answer"));
        }
        slow.wait(client(2), socket.answer(b"another"));
        assert!(slow.given_up.peers().is_empty(), "there is room for them");
        slow.wait(client(9999), socket.answer(b"answer"));
        assert_eq!(slow.given_up.peers(), HashSet::from([client(1)]));
        assert!(slow.owes(client(9999)));
    }
}
