//! A listener that stays open: tiny_http with cures for what ends or starves it.
//!
//! tiny_http's accept thread ends at its first error, or panics when descriptors run out; its thread
//! pool leaves connections of a burst without a thread. Both are cured from outside:
//! - A generation is one tiny_http server on a clone of the listening socket. When its accept thread
//!   has ended, the keeper starts the next one; the old one's workers serve its connections until
//!   they have been silent for so long that the read timeout has closed them all.
//! - The keeper connects to the listener a few dozen times a second. Each further connection frees one
//!   that was left without a thread, and then the process has one thread more: so the keeper goes on
//!   at once until it has no more.
//! - A watchdog asks the listener for a page every second. Nobody home for ten seconds ends the process.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tiny_http::{Request, Server};

use super::slow::SlowLane;
use crate::metrics::Metrics;

/// How many requests one turn takes at most.
const GROUP_MAX: usize = 256;
const LISTEN_BACKLOG: i32 = 4096;
/// A worker that meets a full socket gets it back after this; the slow lane goes on with it.
const SEND_TIMEOUT: Duration = Duration::from_millis(5);
const POKE_EVERY: Duration = Duration::from_millis(20);
/// How many connections of a burst are freed without a pause in between.
const POKES_MAX: usize = 1024;
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// A listener that answers no probe for this long ends the process.
const DEAF_MAX: Duration = Duration::from_secs(10);
/// As long as clients hold every descriptor, silence is no sign of deafness; but they do not hold them
/// for longer than this without asking anything.
const FULL_MAX: Duration = Duration::from_secs(60);
const GENERATIONS_MAX: usize = 16;
const GENERATION_EVERY: Duration = Duration::from_millis(200);
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
        requests: Vec<Request>,
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
    stopping: AtomicBool,
    workers_running: AtomicUsize,
    requests: AtomicUsize,
}

/// One tiny_http server.
struct Generation {
    server: Server,
    // Held by the worker whose turn it is to take requests and make them durable.
    turn: Mutex<()>,
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
        while self.shared.workers_running.load(Ordering::Relaxed) > 0 && Instant::now() < until {
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
        let mut last_birth = Instant::now();
        let mut last_probe = Instant::now();
        while !self.shared.stopping.load(Ordering::Relaxed) {
            thread::sleep(POKE_EVERY);
            self.free_starved();
            let mut deaf = self.newest_is_deaf();
            if !deaf && last_probe.elapsed() >= PROBE_EVERY {
                // Its accept thread may have panicked, which nobody is told.
                deaf = answers(self.address) == Some(false);
                last_probe = Instant::now();
            }
            self.generations.retain(|generation| Arc::strong_count(generation) > 1);
            if deaf && last_birth.elapsed() >= GENERATION_EVERY && self.generations.len() < GENERATIONS_MAX {
                last_birth = Instant::now();
                match self.generation() {
                    Ok(generation) => self.generations.push(generation),
                    Err(error) => log::debug!("no new {} listener yet: {error}", self.shared.settings.name),
                }
            }
        }
        // Connections that are open may have one more question on its way.
        thread::sleep(DRAIN);
        while self.shared.workers_running.load(Ordering::Relaxed) > 0 {
            // One wakes one worker, and is lost on a worker that has found a request at that moment.
            self.generations.iter().for_each(|generation| generation.server.unblock());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn newest_is_deaf(&self) -> bool {
        self.generations.last().is_none_or(|generation| generation.deaf.load(Ordering::Relaxed))
    }

    /// Connects and disconnects for as long as that makes for more threads: see the module's comment.
    fn free_starved(&self) {
        for _ in 0..POKES_MAX {
            let before = threads();
            let Ok(stream) = TcpStream::connect_timeout(&self.address, PROBE_TIMEOUT) else { return };
            // With a reset instead of the usual goodbye, no port is kept for a minute.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            drop(stream);
            thread::sleep(Duration::from_millis(1));
            if threads() <= before {
                return;
            }
        }
    }

    /// Starts a tiny_http server on the listening socket, and its workers.
    fn generation(&self) -> io::Result<Arc<Generation>> {
        let listener = self.listener.try_clone()?;
        // It panics where no thread can be had.
        let server = catch_unwind(AssertUnwindSafe(|| Server::from_listener(listener, None)))
            .map_err(|_| io::Error::other("no thread to be had"))?
            .map_err(io::Error::other)?;
        let generation = Arc::new(Generation { server, turn: Mutex::new(()), deaf: AtomicBool::new(false) });
        for n in 0..self.shared.settings.workers {
            let (generation, shared, handler) = (generation.clone(), self.shared, self.handler);
            shared.workers_running.fetch_add(1, Ordering::Relaxed);
            let spawned = spawn(&format!("{}-{n}", shared.settings.name), move || {
                work(&generation, shared, handler);
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
fn work<H: Handler>(generation: &Generation, shared: &'static Shared, handler: &'static H) {
    loop {
        let turn = generation.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(requests) = generation.take(shared) else { return };
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
    /// Waits for a request and takes those that wait behind it; `None` at the end.
    fn take(&self, shared: &Shared) -> Option<Vec<Request>> {
        // By then the read timeout has closed every connection of a generation that accepts no more.
        let silence_max = shared.settings.read_timeout * 2 + Duration::from_secs(1);
        let first = loop {
            let deaf = self.deaf.load(Ordering::Relaxed);
            let received =
                if deaf { self.server.recv_timeout(silence_max) } else { self.server.recv().map(Some) };
            match received {
                Ok(Some(request)) => break request,
                // `unblock`, or the silence.
                Ok(None) => return None,
                Err(error) => {
                    log::debug!("the {} listener accepts no more: {error}", shared.settings.name);
                    self.deaf.store(true, Ordering::Relaxed);
                }
            }
        };
        let mut requests = vec![first];
        while requests.len() < GROUP_MAX {
            match self.server.try_recv() {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(_) => self.deaf.store(true, Ordering::Relaxed),
            }
        }
        Some(requests)
    }
}

/// Ends the process when nobody answers at `address` any more.
fn watch(address: SocketAddr, shared: &Shared) {
    let mut answered = Instant::now();
    let mut asked = (0, Instant::now());
    while !shared.stopping.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_secs(1));
        let requests = shared.requests.load(Ordering::Relaxed);
        if requests != asked.0 {
            asked = (requests, Instant::now());
        }
        let patience = match answers(address) {
            Some(true) => {
                answered = Instant::now();
                continue;
            }
            Some(false) => DEAF_MAX,
            None => FULL_MAX,
        };
        if answered.elapsed() >= patience
            && asked.1.elapsed() >= DEAF_MAX
            && !shared.stopping.load(Ordering::Relaxed)
        {
            log::error!(
                "the {} listener at {address} has answered nothing for {} s; ending, to be started again",
                shared.settings.name,
                answered.elapsed().as_secs()
            );
            std::process::exit(1);
        }
    }
}

/// Whether a request at `address` is answered in time; `None` where no descriptor is left to ask.
fn answers(address: SocketAddr) -> Option<bool> {
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
    match ask() {
        Ok(answered) => Some(answered),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => None,
        Err(_) => Some(false),
    }
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

/// How many threads this process has: the links of a folder are its subfolders and two more.
fn threads() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(|_| ())
}

/// Raises the limit of open files to what is allowed; returns it, where it is known.
pub fn raise_open_files_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            log::warn!("failed to raise the limit of open files: {error}");
            current
        }
    }
}
