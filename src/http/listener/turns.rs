//! Which requests are taken next: in turns among connections, however fast one of them asks.
//!
//! tiny_http reads requests as fast as a client sends them, whether their answers are read or not, and
//! the writer of an answer blocks until the connection's answer before it is done. So what a worker
//! has taken is claimed: further requests of the connection wait here until it is answered, and a
//! connection with too many of them is given up.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tiny_http::Request;

use super::body::discard;
use super::slow_clients::SlowLane;
use crate::metrics::Metrics;

/// How many requests one turn takes at most.
pub const GROUP_MAX: usize = 256;
/// How many requests one turn takes over from tiny_http at most.
const RECEIVED_MAX: usize = 4096;
/// How many requests of one connection wait; nobody pipelines as many and reads the answers.
const HELD_MAX: usize = 256;

/// Which connections workers have requests of, and how many.
#[derive(Default)]
pub struct Claims(Mutex<HashMap<SocketAddr, usize>>);

impl Claims {
    /// Claims a connection for `requests` of its requests, unless it is claimed already.
    fn claim(&self, peer: SocketAddr, requests: usize) -> bool {
        match self.lock().entry(peer) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(requests);
                true
            }
        }
    }

    fn release(&self, peer: SocketAddr) {
        if let Entry::Occupied(mut claimed) = self.lock().entry(peer) {
            *claimed.get_mut() -= 1;
            if *claimed.get() == 0 {
                claimed.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        // Each change is one call of the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that a worker has taken; no other has one of the same connection until it is dropped.
pub struct Taken {
    request: Request,
    claim: Claim,
}

/// A worker's hold on a connection, for one request.
pub struct Claim {
    /// The connection.
    pub peer: SocketAddr,
    claims: &'static Claims,
}

impl Taken {
    /// Takes them apart; the claim is to live as long as the request's writer.
    pub fn into_parts(self) -> (Request, Claim) {
        (self.request, self.claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.release(self.peer);
    }
}

impl Deref for Taken {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Request {
        &mut self.request
    }
}

/// The requests of one generation that no worker has taken yet.
#[derive(Default)]
pub struct Waiting(HashMap<SocketAddr, VecDeque<Request>>);

impl Waiting {
    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a group: of what waits, and of what `receive` brings, until it brings no more.
    pub fn take(
        &mut self,
        claims: &'static Claims,
        slow: &SlowLane,
        metrics: &Metrics,
        mut receive: impl FnMut() -> Option<Request>,
    ) -> Vec<Taken> {
        let mut group = self.take_held(claims);
        let mut given_up = slow.given_up();
        let mut asked_again = HashSet::new();
        for _ in 0..RECEIVED_MAX {
            let Some(request) = receive() else { break };
            let Some(&peer) = request.remote_addr() else { continue };
            if given_up.contains(&peer) {
                asked_again.insert(peer);
                discard(request, metrics);
            } else if group.len() < GROUP_MAX && !self.0.contains_key(&peer) && claims.claim(peer, 1) {
                group.push(Taken { request, claim: Claim { peer, claims } });
            } else if self.hold(peer, request) > HELD_MAX {
                slow.give_up(peer, metrics);
                given_up.insert(peer);
                let held = self.0.remove(&peer);
                held.into_iter().flatten().for_each(|request| discard(request, metrics));
            }
        }
        if !asked_again.is_empty() {
            slow.remember(&asked_again);
        }
        group
    }

    fn hold(&mut self, peer: SocketAddr, request: Request) -> usize {
        let held = self.0.entry(peer).or_default();
        held.push_back(request);
        held.len()
    }

    /// Takes an equal share of each connection that nobody has a claim on.
    fn take_held(&mut self, claims: &'static Claims) -> Vec<Taken> {
        let mut group = Vec::new();
        let share = (GROUP_MAX / self.0.len().max(1)).max(1);
        self.0.retain(|&peer, held| {
            let taken = share.min(held.len());
            if group.len() < GROUP_MAX && claims.claim(peer, taken) {
                let requests = held.drain(..taken);
                group.extend(requests.map(|request| Taken { request, claim: Claim { peer, claims } }));
            }
            !held.is_empty()
        });
        group
    }
}
