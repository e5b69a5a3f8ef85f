//! Keeps a listener going: frees connections that tiny_http left without a thread (T2), and replaces a server
//! that accepts no more (T1).

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::server::Server;
use super::shared::Shared;
use crate::limits::{has_room, open_files, threads};

/// How often the keeper looks whether there are new connections.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// So many descriptors more are a burst; fewer may be one connection, or a poke of another keeper.
const BURST_FILES_MIN: u64 = 4;
/// How many looks after a burst each come with a poke: a thread may be missing only later.
const EAGER_LOOKS: u32 = 3;
/// Without a burst, at most one poke in this: each wakes an idle pool thread and restarts its 5 s timeout.
const POKE_EVERY: Duration = Duration::from_millis(100);
/// How many looks for new threads a series has at most.
const ROUNDS_MAX: usize = 128;
/// How many pokes there are between two of them at most.
const POKES_AT_ONCE_MAX: u64 = 8;
/// After a success, a series stops at so many looks without a new thread: /proc may show a thread late.
const IN_VAIN_MAX: usize = 3;
const POKE_TIMEOUT: Duration = Duration::from_millis(750);
/// A server that accepts no more costs a thread until its last connection is gone.
const SERVERS_MAX: usize = 128;
/// How long nobody new is accepted at the latest once the listener is closed, or left to another program.
const ACCEPTING_MAX: Duration = Duration::from_secs(1);
/// How long connections have to ask their last question when the listener is closed.
const DRAIN: Duration = Duration::from_millis(200);

/// Keeps a listener's servers going.
pub(super) struct Keeper {
    // What all of them listen on.
    listener: TcpListener,
    // Where this process reaches it.
    address: SocketAddr,
    shared: Arc<Shared>,
    // Oldest first; only the last one accepts connections.
    servers: Vec<Arc<Server>>,
}

impl Keeper {
    /// Starts the first server on `listener`, which this process reaches at `address`.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn new(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let servers = vec![Server::start(&listener, &shared)?];
        Ok(Keeper { listener, address, shared, servers })
    }

    /// Keeps the listener going until it is closed and all workers have ended.
    pub(super) fn run(mut self) {
        let (mut files, mut eager_looks, mut poked) = (0, 0, Instant::now());
        while !self.shared.stop.wait(LOOK_EVERY) {
            let before = std::mem::replace(&mut files, open_files());
            if files >= before + BURST_FILES_MIN {
                eager_looks = EAGER_LOOKS;
            } else if eager_looks == 0 && poked.elapsed() < POKE_EVERY {
                continue;
            }
            eager_looks = eager_looks.saturating_sub(1);
            self.free_starved();
            // Pokes that are still open on the other side are no burst.
            (files, poked) = (open_files(), Instant::now());
            if self.servers.last().is_none_or(|newest| newest.is_deaf(&self.listener)) {
                self.start_successor();
            }
            self.servers.retain(|server| Arc::strong_count(server) > 1);
        }
        self.end_accepting();
        // Connections that are open may have one more question on its way.
        thread::sleep(DRAIN);
        while self.shared.workers_running.load(Ordering::Relaxed) > 0 {
            self.servers.iter().for_each(|server| server.unblock());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nobody is accepted any more. A socket that was shut down ends the accept thread at once, one that is
    /// left to another program when nobody connects any more (T1), which it only sees after one that did.
    fn end_accepting(&self) {
        let until = Instant::now() + ACCEPTING_MAX;
        while self.servers.last().is_some_and(|newest| !newest.is_deaf(&self.listener))
            && Instant::now() < until
        {
            self.poke();
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connects and disconnects; returns whether it could.
    fn poke(&self) -> bool {
        let Ok(stream) = TcpStream::connect_timeout(&self.address, POKE_TIMEOUT) else { return false };
        // With a reset instead of the usual goodbye, no port is kept for a minute.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        true
    }

    /// Starts the next server, and leaves the connections of the last one to one worker. tiny_http stops
    /// accepting for good at its first EMFILE (T1), so only while an eighth of the descriptors' limit (4 to
    /// 256) is free.
    fn start_successor(&mut self) {
        let name = self.shared.settings.name;
        if self.servers.last().is_some_and(|deaf| deaf.retire(&self.shared)) {
            log::debug!("the {name} listener accepts no more");
        }
        if !has_room() || self.servers.len() >= SERVERS_MAX {
            return;
        }
        match Server::start(&self.listener, &self.shared) {
            Ok(server) => self.servers.push(server),
            Err(error) => log::debug!("no new {name} listener yet: {error}"),
        }
    }

    /// Connects and disconnects ("pokes") for as long as that makes for more threads.
    fn free_starved(&self) {
        let (mut at_once, mut in_vain) = (1, IN_VAIN_MAX);
        for _ in 0..ROUNDS_MAX {
            let before = threads();
            for _ in 0..at_once {
                if !self.poke() {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(1));
            let freed = threads().saturating_sub(before);
            // The rule: nobody was left without a thread, and the first poke is in vain.
            in_vain = if freed > 0 { 0 } else { in_vain + 1 };
            if in_vain >= IN_VAIN_MAX {
                return;
            }
            at_once = (2 * freed).clamp(1, POKES_AT_ONCE_MAX);
        }
    }
}
