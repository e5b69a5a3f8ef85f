//! Requests whose body is still on its way: read off the path that other visits wait on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use tiny_http::{Response, StatusCode};

use super::given_up::GivenUp;
use super::hang_up::has_ended;
use super::request::{BodyRead, Request};
use super::slow_clients::SlowClients;
use crate::http::answer::Answer;

/// How much of a body is read, in bytes.
const BODY_MAX_BYTES: usize = 64 << 10;
/// How long a body may take, and how long a client may go on to send what is not read.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(10);
/// How long a client may take to read that its body is refused, where nothing of it is read.
const FAREWELL: Duration = Duration::from_millis(500);
/// How soon it is looked again whether the answers before it are written.
const PAUSE: Duration = Duration::from_millis(5);
const PIECE_BYTES: usize = 4 << 10;

/// Reads the body of a request, all of it or as much as is read of one.
pub(super) fn read(request: &mut Request) -> BodyRead {
    let length = request.framing().length;
    if length.is_some_and(|length| length > BODY_MAX_BYTES) {
        return BodyRead::TooLarge;
    }
    let peer = request.peer();
    request.read_body(|reader| {
        let until = Instant::now() + LINGER_MAX;
        let mut piece = [0; PIECE_BYTES];
        let mut total = 0;
        loop {
            match reader.read(&mut piece) {
                Ok(0) if length.is_some_and(|length| total < length) => return BodyRead::Gone,
                // The decoder says the same of a chunk that is cut off: then the client has sent its last byte.
                Ok(0) if length.is_none() && has_ended(peer) => return BodyRead::Malformed,
                Ok(0) => return BodyRead::All,
                Ok(bytes) => total += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The decoder's word for a chunk that is none, and for one that is cut off.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return BodyRead::Malformed,
                Err(_) => return BodyRead::Gone,
            }
            if total > BODY_MAX_BYTES {
                return BodyRead::TooLarge;
            }
            if Instant::now() > until {
                return BodyRead::Gone;
            }
        }
    })
}

/// Gives up a client whose body did not come. At most 64 KiB of it are left, or a chunked body, of which nothing
/// is read: it may be dropped, once nobody has to wait for it.
pub(super) fn give_up(request: Request, given_up: &GivenUp) {
    // First, so that nothing is taken of what is read behind it.
    given_up.close(request.peer());
    request.release();
}

/// Gives `answer` to a request whose body is not read to its end, and closes the connection; reads on for a
/// while, so that a client that sends everything before it reads sees the answer.
pub(super) fn refuse(mut request: Request, answer: &Answer, slow: &SlowClients) {
    let peer = request.peer();
    slow.given_up.take_no_more(peer);
    let until = Instant::now() + LINGER_MAX;
    let is_settled = |request: &Request| request.is_alone() && !slow.owes(peer);
    while !is_settled(&request) && Instant::now() < until {
        thread::sleep(PAUSE);
    }
    let is_huge = request.is_huge();
    match slow.given_up.sockets.of(peer) {
        Ok(socket) => {
            if let Some(mut socket) = socket.filter(|_| is_settled(&request)) {
                // The client may have left.
                let _ = socket.write_all(&answer.last_bytes());
                let _ = socket.shutdown(Shutdown::Write);
                linger(&mut socket, if is_huge { FAREWELL } else { LINGER_MAX });
            }
            slow.given_up.close(peer);
            // What is huge abandons its connection where it is dropped.
            request.release();
        }
        Err(_) => {
            refuse_blindly(&mut request, answer, is_huge);
            slow.given_up.close(peer);
        }
    }
}

/// The same where no socket can be reached: the connection is left to the kernel's timeouts.
fn refuse_blindly(request: &mut Request, answer: &Answer, is_huge: bool) {
    // The client may have left.
    let say = |writer: &mut dyn Write| writer.write_all(&answer.last_bytes()).and_then(|()| writer.flush());
    let raw = request.take();
    // Nothing is read of a chunked body when it is dropped.
    if request.framing().length.is_none() {
        let _ = say(&mut raw.into_writer());
        return;
    }
    // Only `upgrade` lends the connection without reading the body first, and it must print a head of its own
    // (T13): an interim one, which every client passes over (RFC 9110, section 15.2).
    let mut stream = raw.upgrade("none", Response::new_empty(StatusCode(100)));
    let _ = say(&mut stream);
    // At the end of the connection tiny_http's reader drops what it lacks: nothing is read of what is huge.
    if is_huge || linger(&mut stream, LINGER_MAX) {
        abandon(request, stream);
    }
}

/// Leaves to itself what must not be dropped.
fn abandon(request: &Request, connection: impl Sized) {
    request.count_abandoned();
    std::mem::forget(connection);
}

/// Reads on for a while; returns whether the client would have gone on.
fn linger(reader: &mut dyn Read, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let mut piece = [0; PIECE_BYTES];
    while Instant::now() < until {
        match reader.read(&mut piece) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
