//! A listener that stays open: tiny_http with cures for what ends or starves it.
//!
//! tiny_http's accept thread ends at its first error, or panics when descriptors run out; its thread
//! pool leaves connections of a burst without a thread. Both are cured from outside:
//! - A generation is one tiny_http server on a clone of the listening socket. When its accept thread
//!   has ended, which closes that clone, the keeper starts the next one; one worker of the old one
//!   serves its connections until they have been silent for so long that the read timeout has closed
//!   them all.
//! - The keeper connects to the listener a few times a second. Each further connection frees one that
//!   was left without a thread, and then the process has one thread more: so the keeper goes on at once
//!   until it has no more.
//! - A watchdog asks the listener for a page every second. Nobody home for ten seconds ends the process.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tiny_http::Server;

use super::slow::SlowLane;
use super::waiting::{Claims, Taken, Waiting};
use crate::metrics::Metrics;

const LISTEN_BACKLOG: i32 = 4096;
/// Answers are small: a client that does not read them must not fill the system's memory.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Requests are small: a client's window is so, too, and with it the rate of one that is far away.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;
/// Nothing bounds what tiny_http keeps for clients that send faster than requests can be dropped, or a
/// head without an end. Past this the program starts again: some ten thousand honest connections fit.
const MEMORY_MAX_BYTES: u64 = 1 << 30;
/// How soon the next requests of a connection are taken after its last answer.
const HELD_PAUSE: Duration = Duration::from_millis(1);
/// A worker that meets a full socket gets it back after this; the slow lane goes on with it.
const SEND_TIMEOUT: Duration = Duration::from_millis(5);
/// Not more often: each one keeps an idle thread of tiny_http's from ending, and costs time.
const POKE_EVERY: Duration = Duration::from_millis(100);
/// How many connections of a burst are freed without a pause in between.
const POKES_MAX: usize = 1024;
/// A new thread is not always seen at once: so many pokes in vain end the series.
const POKES_IN_VAIN_MAX: usize = 3;
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

/// What a door needs to know.
#[derive(Debug, Clone)]
pub struct DoorSettings {
    /// Its name in the log and in thread names.
    pub name: &'static str,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many threads handle requests.
    pub workers: usize,
    /// A connection that says nothing for this long is closed.
    pub read_timeout: Duration,
    /// A client that takes nothing of its answers for this long is given up.
    pub write_timeout: Duration,
}

/// What is done with requests, in two steps: the first is taken in turns, the second is not.
pub trait Handler: Send + Sync {
    /// Requests with their answers.
    type Group;
    /// Makes durable what must be. While one worker does this, requests gather for the next: the
    /// slower the disk, the larger the groups.
    fn commit(
        &'static self,
        requests: Vec<Taken>,
        slow: &'static SlowLane,
        stopping: &'static AtomicBool,
    ) -> Self::Group;
    /// Answers them.
    fn answer(&self, group: Self::Group, taken: Instant, slow: &SlowLane, closing: bool);
}

/// A listener and its threads. They end with the process.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    shared: &'static Shared,
}

struct Shared {
    settings: DoorSettings,
    slow: SlowLane,
    claims: Claims,
    metrics: &'static Metrics,
    stopping: AtomicBool,
    workers_running: AtomicUsize,
    requests: AtomicUsize,
}

/// One tiny_http server.
struct Generation {
    server: Server,
    // The number of its accept thread's descriptor.
    listener: RawFd,
    // Held by the worker whose turn it is to take requests and make them durable.
    turn: Mutex<Waiting>,
    // Its accept thread has ended.
    deaf: AtomicBool,
}

impl Door {
    /// Starts listening. A door lives as long as the process, so its handler does too.
    ///
    /// # Errors
    /// What the system said to the address.
    pub fn open<H: Handler>(
        settings: DoorSettings,
        handler: &'static H,
        metrics: &'static Metrics,
    ) -> io::Result<Door> {
        let listener = listen(&settings)?;
        let address = listener.local_addr()?;
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            slow: SlowLane::new(settings.write_timeout),
            settings,
            claims: Claims::default(),
            metrics,
            stopping: AtomicBool::new(false),
            workers_running: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        }));
        let keeper = Keeper {
            listener: listener.try_clone()?,
            address: reachable(address),
            shared,
            handler,
            generations: Vec::new(),
        };
        let first = keeper.generation()?;
        let generations = vec![first];
        let name = shared.settings.name;
        spawn(&format!("{name}-keeper"), move || Keeper { generations, ..keeper }.run())?;
        spawn(&format!("{name}-slow"), move || {
            shared.slow.run(metrics, || shared.stopping.load(Ordering::Relaxed));
        })?;
        spawn(&format!("{name}-watch"), move || watch(reachable(address), shared))?;
        Ok(Door { listener, address, shared })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener, answers what was asked, and returns when all workers are done or `patience`
    /// is over.
    pub fn close(self, patience: Duration) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // New connections are refused from here on; those that are open go on.
        if let Err(error) = SockRef::from(&self.listener).shutdown(Shutdown::Both) {
            log::debug!("failed to shut the {} listener down: {error}", self.shared.settings.name);
        }
        let until = Instant::now() + patience;
        while self.shared.workers_running.load(Ordering::Relaxed) > 0
            && Instant::now() < until
            && !has_outgrown_memory()
        {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Keeps a listener's generations going.
struct Keeper<H: 'static> {
    listener: TcpListener,
    address: SocketAddr,
    shared: &'static Shared,
    handler: &'static H,
    generations: Vec<Arc<Generation>>,
}

impl<H: Handler> Keeper<H> {
    fn run(mut self) {
        while !self.shared.stopping.load(Ordering::Relaxed) {
            thread::sleep(POKE_EVERY);
            self.free_starved();
            if self.newest_is_deaf() {
                self.succeed();
            }
            self.generations.retain(|generation| Arc::strong_count(generation) > 1);
        }
        // Connections that are open may have one more question on its way.
        thread::sleep(DRAIN);
        while self.shared.workers_running.load(Ordering::Relaxed) > 0 {
            // One wakes one worker, and is lost on a worker that has found a request at that moment.
            self.generations.iter().for_each(|generation| generation.server.unblock());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether nobody accepts connections: an accept thread that ends closes its listener. One that
    /// panics, as with too few descriptors, tells nobody else.
    fn newest_is_deaf(&self) -> bool {
        let listens = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let own = listens(self.listener.as_raw_fd());
        let newest = self.generations.last();
        own.is_some() && newest.is_none_or(|newest| listens(newest.listener) != own)
    }

    /// Starts the next generation as soon as there are descriptors for one, and leaves the connections
    /// of the last one to one worker.
    fn succeed(&mut self) {
        if let Some(deaf) = self.generations.last()
            && !deaf.deaf.swap(true, Ordering::Relaxed)
        {
            log::debug!("the {} listener accepts no more", self.shared.settings.name);
            (0..self.shared.settings.workers).for_each(|_| deaf.server.unblock());
        }
        if !has_room() || self.generations.len() >= GENERATIONS_MAX {
            return;
        }
        match self.generation() {
            Ok(generation) => self.generations.push(generation),
            Err(error) => log::debug!("no new {} listener yet: {error}", self.shared.settings.name),
        }
    }

    /// Connects and disconnects for as long as that makes for more threads: see the module's comment.
    fn free_starved(&self) {
        let mut in_vain = 0;
        for n in 0..POKES_MAX {
            let before = threads();
            let Ok(stream) = TcpStream::connect_timeout(&self.address, PROBE_TIMEOUT) else { return };
            // With a reset instead of the usual goodbye, no port is kept for a minute.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            drop(stream);
            thread::sleep(Duration::from_millis(1));
            in_vain = if threads() > before { 0 } else { in_vain + 1 };
            // The rule: nobody was left without a thread.
            if n == 0 && in_vain > 0 || in_vain >= POKES_IN_VAIN_MAX {
                return;
            }
        }
    }

    /// Starts a tiny_http server on the listening socket, and its workers.
    fn generation(&self) -> io::Result<Arc<Generation>> {
        let listener = self.listener.try_clone()?;
        let fd = listener.as_raw_fd();
        // It panics where no thread can be had.
        let server = catch_unwind(AssertUnwindSafe(|| Server::from_listener(listener, None)))
            .map_err(|_| io::Error::other("no thread to be had"))?
            .map_err(io::Error::other)?;
        let generation =
            Generation { server, listener: fd, turn: Mutex::default(), deaf: AtomicBool::new(false) };
        let generation = Arc::new(generation);
        for n in 0..self.shared.settings.workers {
            let (generation, shared, handler) = (generation.clone(), self.shared, self.handler);
            shared.workers_running.fetch_add(1, Ordering::Relaxed);
            let spawned = spawn(&format!("{}-{n}", shared.settings.name), move || {
                work(&generation, n, shared, handler);
                shared.workers_running.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                shared.workers_running.fetch_sub(1, Ordering::Relaxed);
                spawned?;
            }
        }
        Ok(generation)
    }
}

/// Takes what waits, makes it durable, answers it; until the generation has ended.
fn work<H: Handler>(generation: &Generation, number: usize, shared: &'static Shared, handler: &'static H) {
    loop {
        let mut turn = generation.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(requests) = generation.take(&mut turn, number, shared) else { return };
        let taken = Instant::now();
        shared.requests.fetch_add(requests.len(), Ordering::Relaxed);
        let closing = shared.stopping.load(Ordering::Relaxed);
        let step = AssertUnwindSafe(|| {
            let group = handler.commit(requests, &shared.slow, &shared.stopping);
            drop(turn);
            handler.answer(group, taken, &shared.slow, closing);
        });
        // A bug that one request can reach must not be a way to end the program.
        if catch_unwind(step).is_err() {
            log::error!("a {} worker panicked and goes on", shared.settings.name);
        }
    }
}

impl Generation {
    /// Waits for requests and takes those that are there; `None` when worker `number` is to end.
    fn take(&self, waiting: &mut Waiting, number: usize, shared: &'static Shared) -> Option<Vec<Taken>> {
        // By then the read timeout has closed every connection of a generation that accepts no more.
        let silence_max = shared.settings.read_timeout * 2 + Duration::from_secs(1);
        let since = Instant::now();
        let mut first = None;
        loop {
            let receive = || first.take().or_else(|| self.server.try_recv().ok().flatten());
            let group = waiting.take(&shared.claims, &shared.slow, shared.metrics, receive);
            if !group.is_empty() {
                return Some(group);
            }
            let deaf = self.deaf.load(Ordering::Relaxed);
            if deaf && (number > 0 || waiting.is_empty() && since.elapsed() >= silence_max) {
                return None;
            }
            // An error is `unblock`'s, or the accept thread's last word, which the keeper sees by itself.
            first = if !waiting.is_empty() {
                self.server.recv_timeout(HELD_PAUSE).ok().flatten()
            } else if deaf {
                self.server.recv_timeout(silence_max).ok().flatten()
            } else {
                self.server.recv().ok()
            };
            if first.is_none() && waiting.is_empty() && shared.stopping.load(Ordering::Relaxed) {
                return None;
            }
        }
    }
}

/// Ends the process when nobody answers at `address` any more.
fn watch(address: SocketAddr, shared: &Shared) {
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

/// Binds and listens. Connections inherit the options (Linux).
fn listen(settings: &DoorSettings) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(settings.listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    socket.set_tcp_user_timeout(Some(settings.write_timeout))?;
    socket.set_read_timeout(Some(settings.read_timeout))?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(&settings.listen.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Where this process reaches its own listener.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Whether there are descriptors for a few connections more.
fn has_room() -> bool {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let spare = (limit / 8).clamp(SPARE_FILES_MIN, SPARE_FILES_MAX);
    let sockets: io::Result<Vec<_>> =
        (0..spare).map(|_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))).collect();
    sockets.is_ok()
}

/// Whether clients have made this process so large that it should start again.
pub fn has_outgrown_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib << 10 > MEMORY_MAX_BYTES)
}

/// How many threads this process has: the links of a folder are its subfolders and two more.
fn threads() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(|_| ())
}

/// Raises the limit of open files to what is allowed; returns it, where it is known.
pub fn raise_open_files_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            log::warn!("failed to raise the limit of open files: {error}");
            current
        }
    }
}
