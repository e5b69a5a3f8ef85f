//! Requests that nobody has time for: their clients are told so, and their connections closed.

use std::collections::HashSet;
use std::io::Write;
use std::mem;
use std::net::Shutdown;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::given_up::GivenUp;
use super::request::Request;
use super::slow_clients::SlowClients;

/// How long a client may take to read what it is told.
const FAREWELL: Duration = Duration::from_millis(500);

/// The requests that are turned away.
#[derive(Default)]
pub(super) struct TurnedAway {
    new: Mutex<Vec<(Request, Vec<u8>)>>,
    // Those that were told so, and when: the earliest first.
    told: Mutex<Vec<(Instant, Request)>>,
}

impl TurnedAway {
    /// Turns a request away with the bytes of an answer. It does not wait for anything.
    pub(super) fn add(&self, request: Request, answer: Vec<u8>, given_up: &GivenUp) {
        given_up.take_no_more(request.peer());
        lock(&self.new).push((request, answer));
    }

    /// Tells those that are new, and closes the connections of those that have had time to read it.
    pub(super) fn look(&self, slow: &SlowClients) {
        let given_up = &slow.given_up;
        let new = mem::take(&mut *lock(&self.new));
        let mut told = lock(&self.told);
        if !new.is_empty() {
            let peers = new.iter().map(|(request, _)| request.peer()).collect();
            let sockets = given_up.sockets.of_all(&peers);
            for (request, answer) in new {
                let peer = request.peer();
                match sockets.as_ref().map(|sockets| sockets.get(&peer)) {
                    Ok(socket) => {
                        // Never before the answer to what it asked first.
                        if let Some(mut socket) = socket.filter(|_| request.is_alone() && !slow.owes(peer)) {
                            // The client may have left.
                            let _ = socket.write_all(&answer);
                            let _ = socket.shutdown(Shutdown::Write);
                        }
                        told.push((Instant::now(), request));
                    }
                    // Dropping it abandons its connection.
                    Err(_) => {
                        given_up.add(peer);
                    }
                }
            }
        }
        let ready = told.iter().take_while(|(since, _)| since.elapsed() > FAREWELL).count();
        let ready: Vec<Request> = told.drain(..ready).map(|(_, request)| request).collect();
        drop(told);
        given_up.close_all(&ready.iter().map(Request::peer).collect::<HashSet<_>>());
        ready.into_iter().for_each(Request::release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
