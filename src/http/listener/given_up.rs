//! Connections of which nothing more is taken: what they still ask is neither recorded nor answered.
//!
//! A client is given up where it does not read (see [`super::slow_clients`]), and where the end of a request is
//! unclear (RFC 9112, section 6.3): then whatever follows may be part of it. Its connection is closed; by the
//! kernel's timeouts where nobody else may do it. tiny_http goes on reading until then (T7), so a client is
//! remembered until its connection is gone for sure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hang_up::{Sockets, connected_peers};
use crate::stop::Stop;

/// By then tiny_http has read what had come of a connection before it was shut down.
const READ_OUT: Duration = Duration::from_secs(1);
/// How long the answer to a last request may take.
const LAST_ANSWER_MAX: Duration = Duration::from_secs(60);
/// How often it is looked after those whose connection could not be closed, and after the word to stop.
const TICK: Duration = Duration::from_millis(250);

/// What has become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its last request is still to be answered.
    Answering,
    /// It is to be closed.
    Open,
    /// It was shut down.
    Closed,
    /// Nobody may close it but the kernel.
    Stuck,
}

struct Parting {
    stage: Stage,
    // When it asked, or the stage changed, for the last time.
    since: Instant,
}

impl Parting {
    fn new(stage: Stage) -> Self {
        Parting { stage, since: Instant::now() }
    }
}

/// All clients that are given up.
pub(super) struct GivenUp {
    pub(super) sockets: Sockets,
    partings: Mutex<HashMap<SocketAddr, Parting>>,
    // Their number, so that the rule, nobody at all, costs one load.
    count: AtomicUsize,
    arrival: Condvar,
    // How long a connection may be silent until the kernel or tiny_http ends it.
    silence_max: Duration,
}

impl GivenUp {
    /// Nobody yet; a connection that says nothing for `silence_max` ends by itself.
    pub(super) fn new(silence_max: Duration) -> Self {
        GivenUp {
            sockets: Sockets::default(),
            partings: Mutex::default(),
            count: AtomicUsize::new(0),
            arrival: Condvar::new(),
            silence_max,
        }
    }

    /// Whose requests are to be passed over.
    pub(super) fn peers(&self) -> HashSet<SocketAddr> {
        if self.is_empty() { HashSet::new() } else { self.lock().keys().copied().collect() }
    }

    /// Whether nothing more is to be answered there.
    pub(super) fn is_silenced(&self, peer: SocketAddr) -> bool {
        !self.is_empty() && self.lock().get(&peer).is_some_and(|parting| parting.stage != Stage::Answering)
    }

    /// Takes nothing more of a client, but waits with closing until it is given up: what it has asked is
    /// answered.
    pub(super) fn take_no_more(&self, peer: SocketAddr) {
        let mut partings = self.lock();
        partings.entry(peer).or_insert_with(|| Parting::new(Stage::Answering));
        self.count.store(partings.len(), Ordering::Relaxed);
    }

    /// Gives a client up; returns whether it was not before.
    pub(super) fn add(&self, peer: SocketAddr) -> bool {
        let mut partings = self.lock();
        let is_new = match partings.entry(peer) {
            Entry::Occupied(mut parting) if parting.get().stage == Stage::Answering => {
                parting.insert(Parting::new(Stage::Open));
                true
            }
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(Parting::new(Stage::Open));
                true
            }
        };
        self.count.store(partings.len(), Ordering::Relaxed);
        self.arrival.notify_one();
        is_new
    }

    /// The same as [`GivenUp::close_all`] for one, with one look for all that call this at a time.
    pub(super) fn close(&self, peer: SocketAddr) {
        self.take_no_more(peer);
        let stage = match self.sockets.of(peer) {
            Ok(socket) => {
                // It may have ended by itself.
                let _ = socket.map(|socket| socket.shutdown(Shutdown::Both));
                Stage::Closed
            }
            Err(_) => Stage::Stuck,
        };
        self.set(&HashSet::from([peer]), stage);
    }

    /// Notes that these have asked again.
    pub(super) fn asked_again(&self, peers: &HashSet<SocketAddr>) {
        let mut partings = self.lock();
        for peer in peers {
            if let Some(parting) = partings.get_mut(peer) {
                parting.since = Instant::now();
            }
        }
    }

    /// Notes that a look at `began` found the end of tiny_http's requests: those whose connection was gone long
    /// before may be forgotten. Their address may soon be somebody else's.
    pub(super) fn saw_all(&self, began: Instant) {
        if self.is_empty() {
            return;
        }
        let mut partings = self.lock();
        partings.retain(|_, parting| parting.stage != Stage::Closed || parting.since + READ_OUT >= began);
        self.count.store(partings.len(), Ordering::Relaxed);
    }

    /// Closes their connections until the word to stop is given; calls `look` now and then.
    pub(super) fn run(&self, stop: &Stop, look: impl Fn()) {
        while !stop.is_set() {
            let is_idle = |partings: &mut HashMap<_, Parting>| {
                partings.values().all(|parting| parting.stage != Stage::Open)
            };
            drop(self.arrival.wait_timeout_while(self.lock(), TICK, is_idle));
            look();
            self.hang_up();
            self.look_after_stuck();
        }
    }

    fn hang_up(&self) {
        let peers = self.those(|parting| match parting.stage {
            Stage::Open => true,
            Stage::Answering => parting.since.elapsed() > LAST_ANSWER_MAX,
            Stage::Closed | Stage::Stuck => false,
        });
        self.close_all(&peers);
    }

    /// Gives clients up, and closes their connections before this returns, where that is allowed.
    pub(super) fn close_all(&self, peers: &HashSet<SocketAddr>) {
        if peers.is_empty() {
            return;
        }
        let stage = match self.sockets.hang_up(peers) {
            Ok(()) => Stage::Closed,
            Err(error) => {
                log::debug!("failed to hang up on {} clients: {error}", peers.len());
                Stage::Stuck
            }
        };
        self.set(peers, stage);
    }

    /// A connection that nobody may close is gone once the kernel does not know it any more.
    fn look_after_stuck(&self) {
        let silent =
            self.those(|parting| parting.stage == Stage::Stuck && parting.since.elapsed() > self.silence_max);
        if silent.is_empty() {
            return;
        }
        let connected = connected_peers().unwrap_or_else(|| silent.clone());
        let (open, gone) = silent.into_iter().partition(|peer| connected.contains(peer));
        self.set(&open, Stage::Stuck);
        self.set(&gone, Stage::Closed);
    }

    fn those(&self, which: impl Fn(&Parting) -> bool) -> HashSet<SocketAddr> {
        let partings = self.lock();
        partings.iter().filter(|(_, parting)| which(parting)).map(|(peer, _)| *peer).collect()
    }

    fn set(&self, peers: &HashSet<SocketAddr>, stage: Stage) {
        let mut partings = self.lock();
        for peer in peers {
            partings.insert(*peer, Parting::new(stage));
        }
        self.count.store(partings.len(), Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Parting>> {
        // Each change is one call of the map.
        self.partings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);

    fn later(by: Duration) -> Instant {
        Instant::now() + by
    }

    #[test]
    fn a_client_is_remembered_until_its_connection_is_gone_and_all_it_asked_was_seen() {
        let given_up = GivenUp::new(Duration::ZERO);
        given_up.take_no_more(PEER);
        assert!(given_up.peers().contains(&PEER) && !given_up.is_silenced(PEER), "it is answered");
        given_up.hang_up();
        assert!(!given_up.is_silenced(PEER), "and not closed before");
        assert!(given_up.add(PEER) && !given_up.add(PEER), "it is given up once");
        given_up.saw_all(later(READ_OUT * 2));
        assert!(given_up.is_silenced(PEER), "it is still open");
        given_up.hang_up();
        given_up.saw_all(later(READ_OUT / 2));
        given_up.asked_again(&HashSet::from([PEER]));
        given_up.take_no_more(PEER);
        assert!(given_up.is_silenced(PEER), "something of it may come to light");
        given_up.saw_all(later(READ_OUT * 2));
        assert!(given_up.peers().is_empty());
    }

    #[test]
    fn where_nobody_may_close_a_connection_the_kernel_is_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("it is bound"));
        let (server, open) = listener.accept().expect("one has connected");
        let given_up = GivenUp::new(Duration::ZERO);
        given_up.sockets.forbid();
        given_up.add(PEER);
        given_up.add(open);
        given_up.hang_up();
        given_up.look_after_stuck();
        given_up.saw_all(later(READ_OUT * 2));
        assert_eq!(given_up.peers(), HashSet::from([open]), "nobody at that address is connected");
        drop((client, server));
        given_up.look_after_stuck();
        given_up.saw_all(later(READ_OUT * 2));
        // Its port may be waiting to be free.
        assert!(given_up.peers().is_empty());
    }
}
