//! Requests whose body is still on its way: read off the path that other visits wait on.
//!
//! tiny_http reads what is left of a body when the request is dropped: it allocates all of the declared
//! length (which ends the process), panics on 2^64-1, and blocks for as long as the client likes. So
//! nothing with a large rest may be dropped. Its reader is leaked instead, which costs a thread and
//! two descriptors, and is counted: past a bound the program restarts.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tiny_http::{Request, Response, StatusCode};

use super::hang_up::hang_up;
use super::turns::Taken;
use crate::http::answer::{TOO_LARGE, contains_ignore_case, header};
use crate::metrics::Metrics;

/// How much of a body is read, in bytes.
pub const BODY_MAX_BYTES: usize = 64 << 10;
/// tiny_http has read bodies up to this, in bytes, before it hands a request out.
const READ_BY_TINY_HTTP_BYTES: usize = 1024;
/// What is left of a body may be dropped up to this, in bytes: tiny_http allocates it.
const DROP_MAX_BYTES: usize = 16 << 20;
/// How long a client may go on to send what is not read.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// How long a client may take to read that its body is far too large.
const FAREWELL: Duration = Duration::from_millis(500);
/// How many bodies are read at a time; more are given up.
const READERS_MAX: usize = 256;
const PIECE_BYTES: usize = 4 << 10;

/// What a request says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Whether some of it may still be on its way.
    pub is_pending: bool,
    /// Its length in bytes where that was said.
    pub length: Option<usize>,
    /// Whether headers contradict each other or themselves.
    pub is_unclear: bool,
}

/// How the body of `request` is framed (RFC 9112, section 6).
pub fn framing(request: &Request) -> Framing {
    let is_chunked = header(request, "Transfer-Encoding").is_some();
    let named = request.headers().iter().filter(|header| header.field.equiv("Content-Length"));
    let mut lengths = named.map(|header| header.value.as_str());
    let is_number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits && text.parse::<usize>().is_ok()
    };
    let is_unclear = lengths
        .next()
        .is_some_and(|first| is_chunked || !is_number(first) || lengths.any(|other| other != first));
    let length = request.body_length();
    let upgrade = header(request, "Connection");
    let is_pending = match length {
        // tiny_http keeps the bare connection then, and reads nothing of it when it is dropped.
        _ if upgrade.is_some_and(|value| contains_ignore_case(value, "upgrade")) => false,
        Some(length) if length > READ_BY_TINY_HTTP_BYTES => true,
        Some(length) => length > 0 && header(request, "Expect").is_some(),
        None => is_chunked,
    };
    Framing { is_pending, length, is_unclear }
}

/// Reads bodies on threads of their own.
#[derive(Default)]
pub struct Bodies {
    readers: AtomicUsize,
}

impl Bodies {
    /// Reads the body of `request` and calls `read` with it when all of it is there. A body that is
    /// too large is answered with 413, one that does not come is given up.
    pub fn take(
        &'static self,
        request: Taken,
        length: Option<usize>,
        metrics: &'static Metrics,
        read: impl FnOnce(Taken) + Send + 'static,
    ) {
        if self.readers.fetch_add(1, Ordering::Relaxed) >= READERS_MAX {
            self.readers.fetch_sub(1, Ordering::Relaxed);
            return discard(request.into_parts().0, metrics);
        }
        // tiny_http's `Request` would be dropped, and so its body read, where no thread can be had.
        let handed_over = std::sync::Arc::new(std::sync::Mutex::new(Some(request)));
        let taken = handed_over.clone();
        let spawned =
            std::thread::Builder::new().name("body".into()).stack_size(256 << 10).spawn(move || {
                if let Some(request) = taken.lock().ok().and_then(|mut request| request.take()) {
                    receive(request, length, metrics, read);
                }
                self.readers.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            self.readers.fetch_sub(1, Ordering::Relaxed);
            let request = handed_over.lock().ok().and_then(|mut request| request.take());
            if let Some(request) = request {
                discard(request.into_parts().0, metrics);
            }
        }
    }
}

fn receive(mut request: Taken, length: Option<usize>, metrics: &'static Metrics, read: impl FnOnce(Taken)) {
    if length.is_some_and(|length| length > BODY_MAX_BYTES) {
        return refuse(request, length, metrics);
    }
    let until = Instant::now() + LINGER_MAX;
    let mut piece = [0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match request.as_reader().read(&mut piece) {
            Ok(0) if length.is_none_or(|length| total == length) => return read(request),
            Ok(0) => break,
            Ok(bytes) => total += bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if total > BODY_MAX_BYTES {
            return refuse(request, length, metrics);
        }
        if Instant::now() > until {
            break;
        }
    }
    // The client is gone or too slow. At most 64 KiB are left, or a chunked body, of which nothing is
    // read: it may be dropped. Without the writer it would be answered with 500.
    let (request, claim) = request.into_parts();
    end(claim.peer);
    drop(request.into_writer());
}

/// Closes a connection, so that nobody waits for what is left of its body.
fn end(peer: SocketAddr) -> bool {
    hang_up(&HashSet::from([peer])).is_ok()
}

/// Answers with 413 and reads on for a while, so that a client that sends everything before it reads
/// sees the answer.
fn refuse(request: Taken, length: Option<usize>, metrics: &Metrics) {
    let (request, claim) = request.into_parts();
    // Only `upgrade` lends the connection without reading the body first, and it must print a head of
    // its own: an interim one, which every client passes over (RFC 9110, section 15.2).
    let mut stream = request.upgrade("none", Response::new_empty(StatusCode(100)));
    let written = stream.write_all(&TOO_LARGE.last_bytes()).and_then(|()| stream.flush());
    if length.is_some_and(|length| length > DROP_MAX_BYTES) {
        // Nothing of it is read: at the end of the connection, tiny_http's reader drops what it lacks.
        metrics.abandoned_connections.inc();
        std::mem::forget(stream);
        std::thread::sleep(FAREWELL);
        end(claim.peer);
        return;
    }
    let until = Instant::now() + LINGER_MAX;
    let mut piece = [0; PIECE_BYTES];
    let mut open = written.is_ok();
    while open && Instant::now() < until {
        match stream.read(&mut piece) {
            Ok(bytes) => open = bytes > 0,
            Err(error) => open = error.kind() == ErrorKind::Interrupted,
        }
    }
    // A chunked body has no end that is known, but nothing of it is read when it is dropped.
    if open && !end(claim.peer) && length.is_some() {
        metrics.abandoned_connections.inc();
        std::mem::forget(stream);
    }
}

/// Drops a request unanswered. Where that would wait for a body, its connection is given up with it.
pub fn discard(request: Request, metrics: &Metrics) {
    if framing(&request).is_pending {
        metrics.abandoned_connections.inc();
        std::mem::forget(request);
    } else {
        // Without its writer, tiny_http answers nothing.
        drop(request.into_writer());
    }
}
