//! A listener that stays open: tiny_http 0.12 with cures for what ends, starves or floods it.
//!
//! A request's way: tiny_http reads its head, a worker takes it with all that wait behind it ([`server`],
//! [`turns`]), its body is read aside where it has one ([`body`]), the [`Handler`] says what to answer, and
//! the answer is written, at once or as fast as a slow client takes it ([`slow_clients`]). Clients of which
//! nothing more is to be taken are [`given_up`].
//!
//! # What tiny_http does
//!
//! Read in its source and reproduced; each cure names the behaviour that it is for.
//!
//! - **T1** The accept thread ends at its first error, such as EMFILE, or panics. `recv` then fails once at most,
//!   and nobody is let in any more. Cure: a new server on a clone of the listening socket ([`keeper`]).
//! - **T2** The thread pool starts with 4 threads, falls back to 4 after 5 s without work, and grows by a counter
//!   that lags: connections of a burst are left without a thread until another one closes. Each further
//!   connection, even one that closes at once, frees one of them. Cure: connections of our own ([`keeper`]).
//! - **T3** Each connection holds a pool thread and two descriptors for its life; nothing limits connections,
//!   heads or their number. Cure: timeouts (T4), limits of the whole process ([`crate::limits`]), the edge in front.
//! - **T4** Accepted sockets inherit the listening socket's options (Linux). That is how they get their timeouts,
//!   keep-alive and buffers.
//! - **T5** With a receive timeout, `accept` itself fails with EAGAIN after as long without a connection, which is
//!   T1: the listener gets a new server then.
//! - **T6** A [`tiny_http::Request`] that is dropped, answered or not, reads what is left of its body: it
//!   allocates all of the declared length, which ends the process, panics on 2^64-1, and blocks for as long as
//!   the client likes. Cure: [`Request`], whose reader is leaked where much is left. That costs a thread and
//!   two descriptors and is counted: past a bound the program starts again.
//! - **T7** Requests of one connection are read as fast as they come, answered or not, and the writer of an answer
//!   blocks until the answer before it is done. Cure: [`turns`]; where many threads read and few may drop, the
//!   threads that read come last ([`server`]). So are those behind a body of which not all was
//!   read, from wherever reading it ended. Cure: [`given_up`].
//! - **T8** A body of up to 1,024 bytes is read before its request is handed out, unless the client waits for
//!   100-continue.
//! - **T9** Without an answer, a request is answered with 500 when it is dropped, unless its writer was taken.
//! - **T10** Of several Content-Lengths the first counts, a plus sign is fine, and any Transfer-Encoding means
//!   chunked and beats them. Such requests are refused, and their clients given up ([`given_up`]). A chunk that is
//!   cut off ends a body as its last one does: the kernel knows whether the client has ended.
//! - **T11** Of several Connection headers the first counts, and it is searched for words wherever they stand. With
//!   `upgrade`, the request keeps the bare connection, and nothing is read when it is dropped.
//! - **T12** `unblock` wakes one worker.
//! - **T13** Only `upgrade` hands out the connection without reading the body first, and it prints a head: it is
//!   used only where the socket cannot be reached (T14).
//! - **T14** It hands nobody the socket. Cure: [`hang_up`].
//! - **T15** Bytes outside ASCII in a head close the connection unanswered, `HTTP/2.0` in the request line blocks
//!   its thread for ever, bare line feeds are waited on. No cure but the edge; a listener that nobody reaches any
//!   more ends the process ([`watchdog`]).
//! - **T16** The chunk decoder reads a chunk's number however long it is and however slowly it comes. Cure:
//!   deadlines by the clock and a bound on memory ([`readers`]).

mod body;
mod given_up;
mod hang_up;
mod keeper;
mod readers;
mod request;
mod server;
mod shared;
mod slow_clients;
mod turned_away;
mod turns;
mod watchdog;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use self::hang_up::waiting;
use self::keeper::Keeper;
pub(crate) use self::request::Request;
use self::shared::Shared;
pub(crate) use self::shared::{Handler, ListenerSettings};
use crate::limits::{has_outgrown_memory, open_files_max};
use crate::metrics::Metrics;
use crate::supervisor::Supervisor;

const LISTEN_BACKLOG: i32 = 4096;
/// Answers are small: a client that does not read them must not fill the system's memory.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Requests are small: a client's window is so, too, and with it the rate of one that is far away.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;
/// A worker that meets a full socket gets it back after this; the answer goes on as fast as the client reads.
const SEND_TIMEOUT: Duration = Duration::from_millis(5);

/// A listener and its threads.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Listener {
    /// Starts listening, on the socket that is `given`, or on one of its own. Its threads are `supervisor`'s.
    ///
    /// # Errors
    /// What the system said to the address.
    pub fn open(
        settings: ListenerSettings,
        given: Option<TcpListener>,
        handler: Arc<dyn Handler>,
        metrics: Arc<Metrics>,
        supervisor: Supervisor,
    ) -> io::Result<Listener> {
        let socket = listen(&settings, given)?;
        let address = socket.local_addr()?;
        let shared = Shared::new(settings, handler, metrics, supervisor);
        let keeper = Keeper::new(socket.try_clone()?, reachable(address), shared.clone())?;
        shared.start("keeper", |_| {
            keeper.run();
            Ok(())
        })?;
        shared.start("slow", |shared| {
            shared.slow.run(&shared.stop);
            Ok(())
        })?;
        shared.start("close", |shared| {
            shared.slow.given_up.run(&shared.stop, || shared.look_after_bodies());
            Ok(())
        })?;
        shared.start("watch", move |shared| watchdog::watch(reachable(address), shared))?;
        Ok(Listener { socket, address, shared })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket that it listens on.
    ///
    /// # Errors
    /// What the system said where there is no descriptor for it.
    pub fn socket(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }

    /// Closes the listener, answers what was asked, and returns when all workers are done or `patience` is
    /// over.
    pub fn close(self, patience: Duration) {
        // New connections are refused from here on; those that are open go on.
        if let Err(error) = SockRef::from(&self.socket).shutdown(Shutdown::Both) {
            log::debug!("failed to shut the {} listener down: {error}", self.shared.settings.name);
        }
        self.finish(patience);
    }

    /// The same, but new connections wait on its socket, for whoever has that next. A crowd that waits already is sent
    /// away, as it would fill the next program, too.
    pub fn leave(self, patience: Duration) {
        let socket = SockRef::from(&self.socket);
        let is_crowd = waiting(&self.socket).is_none_or(|waiting| waiting > u64::from(few().unsigned_abs()));
        let emptied = if is_crowd { socket.shutdown(Shutdown::Both) } else { Ok(()) };
        // The accept thread ends at the first connection that is not there (T1), which the keeper sees to.
        let left = emptied.and_then(|()| socket.set_nonblocking(true)).and_then(|()| socket.listen(few()));
        if let Err(error) = left {
            log::debug!("failed to leave the {} listener's socket: {error}", self.shared.settings.name);
        }
        self.finish(patience);
    }

    /// Answers what was asked, and returns when all workers are done or `patience` is over.
    fn finish(self, patience: Duration) {
        self.shared.stop.set();
        let until = Instant::now() + patience;
        while self.shared.workers_running.load(Ordering::Relaxed) > 0
            && Instant::now() < until
            && !has_outgrown_memory()
        {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// How many connections may wait where nobody accepts them for a moment: the next program takes them all at once.
fn few() -> i32 {
    let few = (open_files_max() / 32).clamp(8, LISTEN_BACKLOG.unsigned_abs().into());
    i32::try_from(few).unwrap_or(LISTEN_BACKLOG)
}

/// Binds and listens, or goes on with the socket that is `given`. Connections inherit the options (T4).
fn listen(settings: &ListenerSettings, given: Option<TcpListener>) -> io::Result<TcpListener> {
    let is_given = given.is_some();
    let socket = match given {
        Some(given) => Socket::from(given),
        None => Socket::new(Domain::for_address(settings.listen), Type::STREAM, Some(Protocol::TCP))?,
    };
    socket.set_nonblocking(false)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    socket.set_tcp_user_timeout(Some(settings.write_timeout))?;
    socket.set_read_timeout(Some(settings.read_timeout))?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    if !is_given {
        socket.bind(&settings.listen.into())?;
    }
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Where this process reaches its own listener.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::http::answer::{Answer, NOT_FOUND};

    /// Answers everything, but panics where it is asked for `/panic`.
    struct Fragile;

    impl Handler for Fragile {
        fn handle(&self, requests: &[&Request]) -> Vec<Answer> {
            assert!(requests.iter().all(|request| request.target() != "/panic"), "on purpose");
            vec![NOT_FOUND; requests.len()]
        }
    }

    fn open() -> (Listener, Arc<Metrics>, crossbeam_channel::Receiver<String>) {
        let settings = ListenerSettings {
            name: "test",
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            workers: 2,
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        };
        let (supervisor, problems) = Supervisor::new();
        let metrics = Arc::<Metrics>::default();
        let listener = Listener::open(settings, None, Arc::new(Fragile), metrics.clone(), supervisor);
        (listener.expect("a port is free"), metrics, problems)
    }

    /// The status of the answer to `request`, on a connection of its own.
    fn ask(listener: &Listener, request: &str) -> String {
        let mut stream = TcpStream::connect(listener.address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("it answers");
        String::from_utf8_lossy(&status[9..]).into_owned()
    }

    /// It dropped the requests of the group: those with bodies made tiny_http allocate the declared length, and
    /// the process aborted.
    #[test]
    fn a_handler_that_panics_is_answered_for_and_the_listener_goes_on() {
        let (listener, metrics, problems) = open();
        for request in [
            "GET /panic HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST /panic HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n",
            "POST /panic HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nContent-Length: 100000000000000\r\n\r\n",
        ] {
            let body = if request.contains("5000") { "x".repeat(5000) } else { String::new() };
            for _ in 0..5 {
                assert_eq!(ask(&listener, &format!("{request}{body}")), "500", "{request:?}");
                assert_eq!(ask(&listener, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"), "404", "after {request:?}");
            }
        }
        assert_eq!(metrics.abandoned_connections.get(), 0);
        assert!(problems.is_empty(), "no thread has ended");
        listener.close(Duration::from_secs(10));
    }

    #[test]
    fn both_kinds_of_bad_bodies_are_answered_before_any_handler_sees_them() {
        let (listener, metrics, _problems) = open();
        let twice = "POST /panic HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello";
        assert_eq!(ask(&listener, twice), "400");
        let huge = "POST /panic HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000\r\n\r\n";
        assert_eq!(ask(&listener, huge), "413");
        let until = Instant::now() + Duration::from_secs(30);
        while metrics.abandoned_connections.get() == 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(metrics.abandoned_connections.get(), 1);
        listener.close(Duration::from_secs(10));
    }

    /// As in Docker: the connection stays open, and tiny_http goes on reading it.
    #[test]
    fn where_no_socket_can_be_reached_nothing_behind_an_unclear_end_is_answered_either() {
        let (listener, _metrics, _problems) = open();
        listener.shared.slow.given_up.sockets.forbid();
        let hidden = "GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3);
        for (rest, statuses) in [
            ("Content-Length: +0\r\n\r\n", &["400"][..]),
            ("Content-Length: +5000\r\n\r\n", &["100", "400"]),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &["400", "400"]),
            ("Content-Length: 70000\r\n\r\n", &["100", "413"]),
            // tiny_http takes what stands behind for a head, and answers that itself.
            ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", &["400"]),
        ] {
            let mut stream = TcpStream::connect(listener.address()).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
            stream
                .write_all(format!("POST / HTTP/1.1\r\nHost: h\r\n{rest}{hidden}").as_bytes())
                .expect("it reads");
            thread::sleep(Duration::from_millis(200));
            stream.write_all(hidden.as_bytes()).expect("it is open");
            let mut answers = Vec::new();
            // It ends with the read timeout.
            let _ = stream.read_to_end(&mut answers);
            let answers = String::from_utf8(answers).expect("ASCII");
            let found: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
            assert_eq!(found, statuses, "{rest:?}: {answers}");
        }
        listener.close(Duration::from_secs(10));
    }
}
