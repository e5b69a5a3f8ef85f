//! A connection with its one channel, which can be cut.
//!
//! amiquip's calls wait for the broker's answer without a deadline, its destructors too, and a broker
//! does not always answer: one that has just started may never confirm a consumer of a quorum queue,
//! and one that blocks publishers reads nothing. So the connection is made on a socket of our own,
//! which is shut down when patience ends: then every call that waits returns with an error.

use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use amiquip::{Channel, Connection, ConnectionTuning, Error};
use crossbeam_channel::RecvTimeoutError;

use super::errors::{is_refusal, reason};
use super::introduction::Introduced;
use super::tls::Tls;
use super::url::AmqpUrl;
use crate::connect::ConnectError;

/// How long the broker may take from the TCP connection to the last answer before the first message.
const SETUP_MAX: Duration = Duration::from_secs(10);
/// How long it may take to an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long the broker may take to say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// amiquip takes this much more into memory before `basic_publish` blocks, in bytes.
const WRITES_HIGH_WATER: usize = 1 << 20;

/// What is said of a connection that is used after it was found to be lost.
pub(super) const LOST_BEFORE: &str = "the connection was lost before";

/// An open connection. Dropping it closes it, or cuts it where the broker takes too long.
pub(super) struct Session {
    // `None` only once it is being closed, by `close` or by the destructor: nobody can ask for it then.
    open: Option<(Channel, Connection)>,
    socket: TcpStream,
}

impl Session {
    /// Connects and calls `prepare` with the connection and its channel.
    ///
    /// # Errors
    /// [`ConnectError`], at the latest after the connection timeout and [`SETUP_MAX`].
    pub(super) fn open<T: Send + 'static>(
        url: &AmqpUrl,
        tls: Option<&Tls>,
        prepare: impl FnOnce(&mut Connection, &Channel) -> amiquip::Result<T> + Send + 'static,
    ) -> Result<(Session, T), ConnectError> {
        let unavailable = |why: String| ConnectError::Unavailable(format!("the broker at {url}: {why}"));
        let explain = |error: Error| match is_refusal(&error) {
            true => ConnectError::Refused(format!("the broker at {url}: {}", reason(&error))),
            false => unavailable(reason(&error)),
        };
        let socket = connect(url).map_err(|error| unavailable(error.to_string()))?;
        let stream = socket.try_clone().map_err(|error| unavailable(error.to_string()))?;
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let (url_to_open, tls) = (url.clone(), tls.cloned());
        let setup = move || {
            let prepared = open(&url_to_open, tls, stream).and_then(|(mut connection, channel)| {
                let prepared = prepare(&mut connection, &channel)?;
                Ok(((channel, connection), prepared))
            });
            // Nobody waits for it any more when it comes too late.
            let _ = sender.send(prepared);
        };
        let spawned = thread::Builder::new().name("connecting".into()).spawn(setup);
        spawned.map_err(|error| unavailable(error.to_string()))?;
        match receiver.recv_timeout(SETUP_MAX) {
            Ok(Ok((open, prepared))) => Ok((Session { open: Some(open), socket }, prepared)),
            Ok(Err(error)) => Err(explain(error)),
            Err(_) => {
                cut(&socket);
                Err(unavailable(format!("no answer within {} s", SETUP_MAX.as_secs())))
            }
        }
    }

    /// The channel.
    pub(super) fn channel(&self) -> &Channel {
        let (channel, _) = self.open.as_ref().expect("nobody has a session that is being closed");
        channel
    }

    /// Asks the broker something, and cuts the connection where it does not answer.
    pub(super) fn ask<T>(&self, question: impl FnOnce(&Channel) -> amiquip::Result<T>) -> amiquip::Result<T> {
        let (answered, waits) = crossbeam_channel::bounded::<()>(0);
        let socket = &self.socket;
        thread::scope(|scope| {
            let guard = thread::Builder::new().name("patience".into());
            let guard = guard.spawn_scoped(scope, move || {
                if waits.recv_timeout(ANSWER_MAX) == Err(RecvTimeoutError::Timeout) {
                    cut(socket);
                }
            });
            guard.map_err(|source| Error::IoErrorReadingSocket { source })?;
            let answer = question(self.channel());
            drop(answered);
            answer
        })
    }

    /// Its socket, to be cut by somebody else.
    pub(super) fn socket(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }

    /// Closes the connection and returns why it ended: amiquip reports the cause only from `close`.
    pub(super) fn close(mut self) -> String {
        self.say_goodbye().unwrap_or_else(|| "the connection ended".into())
    }

    /// Closes the connection, what was sent before included, unless the broker takes too long.
    fn say_goodbye(&mut self) -> Option<String> {
        let (channel, connection) = self.open.take()?;
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let close = move || {
            let cause = match connection.close() {
                Ok(()) => "it was closed".into(),
                Err(error) => reason(&error),
            };
            drop(channel);
            // Nobody waits for it any more when it comes too late.
            let _ = sender.send(cause);
        };
        let spawned = thread::Builder::new().name("closing".into()).spawn(close);
        let cause = spawned.ok().and_then(|_| receiver.recv_timeout(GOODBYE_MAX).ok());
        cut(&self.socket);
        cause
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

/// The first of the host's addresses that takes the connection.
fn connect(url: &AmqpUrl) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in (url.host(), url.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, url.connection_timeout()) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn open(url: &AmqpUrl, tls: Option<Tls>, stream: TcpStream) -> amiquip::Result<(Connection, Channel)> {
    let tuning = ConnectionTuning::default()
        .buffered_writes_high_water(WRITES_HIGH_WATER)
        .buffered_writes_low_water(0);
    let failed = |source| Error::IoErrorReadingSocket { source };
    let mut connection = match tls.filter(|_| url.is_tls()) {
        Some(tls) => {
            let stream = tls.greet(url.host(), stream).map_err(failed)?;
            Connection::insecure_open_stream(Introduced::new(stream), url.options(), tuning)?
        }
        None => {
            let stream = mio::net::TcpStream::from_stream(stream).map_err(failed)?;
            Connection::insecure_open_stream(Introduced::new(stream), url.options(), tuning)?
        }
    };
    let channel = connection.open_channel(None)?;
    Ok((connection, channel))
}

/// Ends a connection at once: every call that waits on it returns.
pub(super) fn cut(socket: &TcpStream) {
    // It fails only for a socket that is closed already.
    let _ = socket.shutdown(Shutdown::Both);
}
