//! Keeps a listener going: frees connections without a thread, replaces a server that accepts no more, and
//! ends a process that nobody reaches. What it cures is told in [`super`].

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::server::{Generation, Handler, Shared};

/// How often the keeper looks whether there are new connections.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// So many descriptors more are a burst; fewer may be one connection, or a poke of another keeper.
const BURST_FILES_MIN: u64 = 4;
/// How many looks after a burst each come with a poke: a thread may be missing only later.
const EAGER_LOOKS: u32 = 3;
/// Without a burst, not more often: each poke keeps an idle thread of tiny_http's from ending, and costs
/// time.
const POKE_EVERY: Duration = Duration::from_millis(100);
/// How many looks for new threads a series has at most.
const ROUNDS_MAX: usize = 128;
/// How many pokes there are between two of them at most.
const POKES_AT_ONCE_MAX: u64 = 8;
/// A new thread is not always seen at once: so many looks in vain end a series that has freed any.
const IN_VAIN_MAX: usize = 3;
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// A listener that answers no probe for this long ends the process.
const DEAF_MAX: Duration = Duration::from_secs(10);
/// A listener that serves the connections it has, but answers no new one for this long, ends it too.
const BUSY_MAX: Duration = Duration::from_secs(60);
/// One that has ended costs a thread until its last connection is gone.
const GENERATIONS_MAX: usize = 128;
/// A generation without descriptors to spare would end with its first connection.
const SPARE_FILES_MIN: u64 = 4;
const SPARE_FILES_MAX: u64 = 256;
/// How long connections have to ask their last question when the listener is closed.
const DRAIN: Duration = Duration::from_millis(200);

/// Keeps a listener's generations going.
pub struct Keeper<H: 'static> {
    /// What all of them listen on.
    pub listener: TcpListener,
    /// Where this process reaches it.
    pub address: SocketAddr,
    /// What their workers share.
    pub shared: &'static Shared,
    /// What is done with requests.
    pub handler: &'static H,
    /// Oldest first; only the last one listens.
    pub generations: Vec<Arc<Generation>>,
}

impl<H: Handler> Keeper<H> {
    /// Keeps the listener going until the door is closed and all workers have ended.
    pub fn run(mut self) {
        let (mut files, mut eager_looks, mut poked) = (0, 0, Instant::now());
        while !self.shared.stopping.load(Ordering::Relaxed) {
            thread::sleep(LOOK_EVERY);
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
            if self.generations.last().is_none_or(|newest| newest.is_deaf(&self.listener)) {
                self.succeed();
            }
            self.generations.retain(|generation| Arc::strong_count(generation) > 1);
        }
        // Connections that are open may have one more question on its way.
        thread::sleep(DRAIN);
        while self.shared.workers_running.load(Ordering::Relaxed) > 0 {
            self.generations.iter().for_each(|generation| generation.unblock());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts the next generation as soon as there are descriptors for one, and leaves the connections
    /// of the last one to one worker.
    fn succeed(&mut self) {
        if self.generations.last().is_some_and(|deaf| deaf.retire(self.shared)) {
            log::debug!("the {} listener accepts no more", self.shared.settings.name);
        }
        if !has_room() || self.generations.len() >= GENERATIONS_MAX {
            return;
        }
        match Generation::start(&self.listener, self.shared, self.handler) {
            Ok(generation) => self.generations.push(generation),
            Err(error) => log::debug!("no new {} listener yet: {error}", self.shared.settings.name),
        }
    }

    /// Connects and disconnects for as long as that makes for more threads: see the module of the door.
    fn free_starved(&self) {
        let (mut at_once, mut in_vain) = (1, IN_VAIN_MAX);
        for _ in 0..ROUNDS_MAX {
            let before = threads();
            for _ in 0..at_once {
                let Ok(stream) = TcpStream::connect_timeout(&self.address, PROBE_TIMEOUT) else { return };
                // With a reset instead of the usual goodbye, no port is kept for a minute.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
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

/// Ends the process when nobody answers at `address` any more.
pub fn watch(address: SocketAddr, shared: &Shared) {
    let mut silence = Duration::ZERO;
    let mut asked = (0, Instant::now());
    while !shared.stopping.load(Ordering::Relaxed) {
        let turn = Instant::now();
        thread::sleep(PROBE_EVERY);
        let answered = answers(address);
        let requests = shared.requests.load(Ordering::Relaxed);
        if requests != asked.0 {
            asked = (requests, Instant::now());
        }
        // A process that was stopped or starved for longer has not asked in the meantime.
        silence = if answered { Duration::ZERO } else { silence + turn.elapsed().min(PROBE_EVERY * 2) };
        let patience = if asked.1.elapsed() < DEAF_MAX {
            BUSY_MAX
        } else if answered || has_room() {
            DEAF_MAX
        } else {
            // Clients hold all descriptors: those that say nothing, until the read timeout.
            DEAF_MAX + shared.settings.read_timeout * 2
        };
        if silence >= patience && !shared.stopping.load(Ordering::Relaxed) {
            log::error!(
                "the {} listener at {address} has answered nobody new for {} s; ending, to be started again",
                shared.settings.name,
                silence.as_secs()
            );
            std::process::exit(1);
        }
    }
}

/// Whether a request at `address` is answered in time.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /robots.txt HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer)?;
        // The rest is not read: closing with a reset keeps no port for a minute.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        Ok::<_, io::Error>(answer.starts_with(b"HTTP/"))
    };
    ask().unwrap_or(false)
}

/// Whether there are descriptors for a few connections more.
fn has_room() -> bool {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let spare = (limit / 8).clamp(SPARE_FILES_MIN, SPARE_FILES_MAX);
    let sockets: io::Result<Vec<_>> =
        (0..spare).map(|_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))).collect();
    sockets.is_ok()
}

/// How many threads this process has: the links of a folder are its subfolders and two more.
fn threads() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink())
}

/// How many files this process has open; always 0 before Linux 6.2, where nobody counts them.
fn open_files() -> u64 {
    fs::metadata("/proc/self/fd").map_or(0, |files| files.len())
}
