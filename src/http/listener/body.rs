//! Requests whose body is still on its way: read off the path that other visits wait on.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tiny_http::{Response, StatusCode};

use super::hang_up::hang_up;
use super::request::{BodyRead, Request};
use crate::http::answer::TOO_LARGE;

/// How much of a body is read, in bytes.
const BODY_MAX_BYTES: usize = 64 << 10;
/// What is left of a body may be dropped up to this, in bytes: tiny_http allocates it (T6).
const DROP_MAX_BYTES: usize = 16 << 20;
/// How long a body may take, and how long a client may go on to send what is not read.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// How long a client may take to read that its body is far too large.
const FAREWELL: Duration = Duration::from_millis(500);
const PIECE_BYTES: usize = 4 << 10;

/// Reads the body of a request, all of it or as much as is read of one.
pub(super) fn read(request: &mut Request) -> BodyRead {
    let length = request.framing().length;
    if length.is_some_and(|length| length > BODY_MAX_BYTES) {
        return BodyRead::TooLarge;
    }
    request.read_body(|reader| {
        let until = Instant::now() + LINGER_MAX;
        let mut piece = [0; PIECE_BYTES];
        let mut total = 0;
        loop {
            match reader.read(&mut piece) {
                Ok(0) if length.is_none_or(|length| total == length) => return BodyRead::All,
                Ok(0) => return BodyRead::Gone,
                Ok(bytes) => total += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
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

/// Closes the connection of a request whose body did not come. At most 64 KiB of it are left, or a chunked
/// body, of which nothing is read: it may be dropped, once nobody has to wait for it.
pub(super) fn give_up(mut request: Request) {
    end(request.peer());
    // Without its writer, tiny_http answers nothing (T9).
    drop(request.take().into_writer());
}

/// Answers with 413 and reads on for a while, so that a client that sends everything before it reads sees the
/// answer.
pub(super) fn refuse(mut request: Request) {
    let length = request.framing().length;
    // Only `upgrade` lends the connection without reading the body first, and it must print a head of its
    // own (T13): an interim one, which every client passes over (RFC 9110, section 15.2).
    let mut stream = request.take().upgrade("none", Response::new_empty(StatusCode(100)));
    let written = stream.write_all(&TOO_LARGE.last_bytes()).and_then(|()| stream.flush());
    if length.is_some_and(|length| length > DROP_MAX_BYTES) {
        // Nothing of it is read: at the end of the connection, tiny_http's reader drops what it lacks.
        request.count_abandoned();
        std::mem::forget(stream);
        std::thread::sleep(FAREWELL);
        end(request.peer());
        return;
    }
    let until = Instant::now() + LINGER_MAX;
    let mut piece = [0; PIECE_BYTES];
    let mut is_open = written.is_ok();
    while is_open && Instant::now() < until {
        match stream.read(&mut piece) {
            Ok(bytes) => is_open = bytes > 0,
            Err(error) => is_open = error.kind() == ErrorKind::Interrupted,
        }
    }
    // A chunked body has no end that is known, but nothing of it is read when it is dropped.
    if is_open && !end(request.peer()) && length.is_some() {
        request.count_abandoned();
        std::mem::forget(stream);
    }
}

/// Closes a connection, so that nobody waits for what is left of its body; returns whether that is allowed.
fn end(peer: SocketAddr) -> bool {
    hang_up(&HashSet::from([peer])).is_ok()
}
