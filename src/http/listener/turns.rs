//! Which requests are taken next: in turns among connections, however fast one of them asks.
//!
//! tiny_http reads requests as fast as a client sends them, whether their answers are read or not, and the
//! writer of an answer blocks until the connection's answer before it is done (T7). So what a worker has
//! taken is claimed: further requests of the connection wait here until it is answered, and a connection
//! with too many of them is given up. Behind a request whose end is unclear, nothing is taken.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::request::{Connections, Request};
use super::slow_clients::SlowClients;

/// How many requests one turn takes at most.
const GROUP_MAX: usize = 256;
/// How many requests one turn takes over from tiny_http at most: enough to see all that a crowd has sent, and who of
/// it is to be given up.
const RECEIVED_MAX: usize = 65_536;
/// How many requests of one connection wait; nobody pipelines as many and reads the answers.
const HELD_MAX: usize = 256;

/// The requests of one server that no worker has taken yet.
pub(super) struct Turns {
    held: HashMap<SocketAddr, VecDeque<Request>>,
    connections: Arc<Connections>,
}

impl Turns {
    pub(super) fn new(connections: Arc<Connections>) -> Self {
        Turns { held: HashMap::new(), connections }
    }

    /// Whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes a group: of what waits, and of what `receive` brings, until it brings no more.
    pub(super) fn take(
        &mut self,
        slow: &SlowClients,
        mut receive: impl FnMut() -> Option<tiny_http::Request>,
    ) -> Vec<Request> {
        let began = Instant::now();
        let mut group = self.take_held();
        let mut given_up = slow.given_up.peers();
        let mut asked_again = HashSet::new();
        for _ in 0..RECEIVED_MAX {
            let Some(raw) = receive() else {
                slow.given_up.saw_all(began);
                break;
            };
            let mut request = Request::new(raw, &self.connections);
            let peer = request.peer();
            if given_up.contains(&peer) {
                asked_again.insert(peer);
                continue;
            }
            if request.is_last() {
                slow.given_up.take_no_more(peer);
                given_up.insert(peer);
            }
            if group.len() < GROUP_MAX && !self.held.contains_key(&peer) && request.claim() {
                group.push(request);
            } else if self.hold(request) > HELD_MAX {
                slow.give_up(peer);
                given_up.insert(peer);
                self.held.remove(&peer);
            }
        }
        if !asked_again.is_empty() {
            slow.given_up.asked_again(&asked_again);
        }
        group
    }

    /// Keeps a request for a later turn; returns how many of its connection wait now.
    fn hold(&mut self, request: Request) -> usize {
        let held = self.held.entry(request.peer()).or_default();
        held.push_back(request);
        held.len()
    }

    /// Takes an equal share of each connection that nobody has a claim on.
    fn take_held(&mut self) -> Vec<Request> {
        let mut group = Vec::new();
        let share = (GROUP_MAX / self.held.len().max(1)).max(1);
        self.held.retain(|&peer, held| {
            let taken = share.min(held.len());
            if group.len() < GROUP_MAX && self.connections.claim(peer, taken) {
                group.extend(held.drain(..taken).map(Request::claimed));
            }
            !held.is_empty()
        });
        group
    }
}

#[cfg(test)]
mod tests {
    use super::super::given_up::GivenUp;
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use std::time::Duration;
    use tiny_http::{Header, TestRequest};

    fn turns() -> (Turns, SlowClients, Counter) {
        let (abandoned, stalled) = (Counter::default(), Counter::default());
        let timeout = Duration::from_secs(10);
        let slow = SlowClients::new(timeout, stalled.clone(), GivenUp::new(timeout));
        (Turns::new(Connections::new(abandoned)), slow, stalled)
    }

    fn test_request(peer: SocketAddr) -> TestRequest {
        let host = Header::from_bytes("Host", "h").expect("ASCII");
        TestRequest::new().with_header(host).with_remote_addr(peer)
    }

    /// Takes a turn in which `ports` ask, in this order; returns whose requests it took.
    fn take(turns: &mut Turns, slow: &SlowClients, ports: &[u16]) -> Vec<Request> {
        let mut asked = ports.iter();
        turns.take(slow, || {
            let peer = SocketAddr::from(([192, 0, 2, 1], *asked.next()?));
            Some(test_request(peer).into())
        })
    }

    fn ports(group: &[Request]) -> Vec<u16> {
        let mut ports: Vec<u16> = group.iter().map(|request| request.peer().port()).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn a_connection_whose_request_is_with_a_worker_waits() {
        let (mut turns, slow, _) = turns();
        let first = take(&mut turns, &slow, &[1, 1, 2, 1]);
        assert_eq!(ports(&first), [1, 2], "one of each connection");
        assert_eq!(ports(&take(&mut turns, &slow, &[2, 3])), [3], "the others wait for their answers");
        drop(first);
        assert_eq!(ports(&take(&mut turns, &slow, &[])), [1, 1, 2], "a share of what has gathered");
        assert!(turns.is_empty());
    }

    #[test]
    fn a_turn_is_shared_by_all_that_wait() {
        let (mut turns, slow, _) = turns();
        let first = take(&mut turns, &slow, &[1, 2]);
        take(&mut turns, &slow, &[[1; 200], [2; 200]].concat());
        drop(first);
        let group = take(&mut turns, &slow, &[]);
        assert_eq!(group.len(), GROUP_MAX);
        assert_eq!(ports(&group).iter().filter(|port| **port == 1).count(), GROUP_MAX / 2);
    }

    #[test]
    fn a_group_has_an_end() {
        let (mut turns, slow, _) = turns();
        let many: Vec<u16> = (1..=GROUP_MAX as u16 + 10).collect();
        assert_eq!(take(&mut turns, &slow, &many).len(), GROUP_MAX);
        assert_eq!(take(&mut turns, &slow, &[]).len(), 10);
    }

    #[test]
    fn behind_a_request_whose_end_is_unclear_nothing_is_taken() {
        let (mut turns, slow, _) = turns();
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut asked = [("0", peer), ("+0", peer), ("0", peer)].into_iter();
        let group = turns.take(&slow, || {
            let (length, peer) = asked.next()?;
            let header = Header::from_bytes("Content-Length", length).expect("ASCII");
            Some(test_request(peer).with_header(header).into())
        });
        assert_eq!(group.len(), 1);
        drop(group);
        let group = take(&mut turns, &slow, &[1, 2, 1]);
        assert!(group.iter().any(|request| request.is_last()), "it is answered");
        assert_eq!(ports(&group), [1, 2]);
        assert!(turns.is_empty());
    }

    #[test]
    fn a_client_that_asks_and_does_not_read_is_given_up_and_passed_over() {
        let (mut turns, slow, stalled) = turns();
        let first = take(&mut turns, &slow, &[1]);
        take(&mut turns, &slow, &[1; HELD_MAX]);
        assert_eq!(stalled.get(), 0, "as many as that may wait");
        assert_eq!(ports(&take(&mut turns, &slow, &[1, 1, 2])), [2]);
        assert_eq!(stalled.get(), 1);
        assert!(turns.is_empty(), "nothing of it waits");
        drop(first);
        assert!(take(&mut turns, &slow, &[1]).is_empty(), "what it asks is dropped");
    }
}
