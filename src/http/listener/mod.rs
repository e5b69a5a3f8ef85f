//! A listener that stays open: tiny_http with cures for what ends or starves it.
//!
//! tiny_http's accept thread ends at its first error, or panics when descriptors run out; its thread
//! pool leaves connections of a burst without a thread. Both are cured from outside:
//! - A generation is one tiny_http server on a clone of the listening socket. When its accept thread
//!   has ended, which closes that clone, the keeper starts the next one; one worker of the old one
//!   serves its connections until they have been silent for so long that the read timeout has closed
//!   them all.
//! - The keeper connects to the listener when a burst has come, and a few times a second. Each further
//!   connection frees one that was left without a thread, and then the process has one thread more: so
//!   the keeper goes on at once until it has no more.
//! - A watchdog asks the listener for a page every second. Nobody home for ten seconds ends the process.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

pub mod body;
pub mod hang_up;
mod keeper;
pub mod server;
pub mod slow_clients;
pub mod turns;

use self::keeper::{Keeper, watch};
use self::server::{DoorSettings, Generation, Handler, Shared, spawn};
use crate::metrics::Metrics;

const LISTEN_BACKLOG: i32 = 4096;
/// Answers are small: a client that does not read them must not fill the system's memory.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Requests are small: a client's window is so, too, and with it the rate of one that is far away.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;
/// Nothing bounds what tiny_http keeps for clients that send faster than requests can be dropped, or a
/// head without an end. Past this the program starts again: some ten thousand honest connections fit.
const MEMORY_MAX_BYTES: u64 = 1 << 30;
/// A worker that meets a full socket gets it back after this; the slow lane goes on with it.
const SEND_TIMEOUT: Duration = Duration::from_millis(5);

/// A listener and its threads. They end with the process.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    shared: &'static Shared,
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
        let shared: &'static Shared = Box::leak(Box::new(Shared::new(settings, metrics)));
        let keeper = Keeper {
            generations: vec![Generation::start(&listener, shared, handler)?],
            listener: listener.try_clone()?,
            address: reachable(address),
            shared,
            handler,
        };
        let name = shared.settings.name;
        spawn(&format!("{name}-keeper"), move || keeper.run())?;
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

/// Whether clients have made this process so large that it should start again.
pub fn has_outgrown_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib << 10 > MEMORY_MAX_BYTES)
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
