//! A request as the listener keeps it: its head read once, safe to drop at any moment.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tiny_http::{HTTPVersion, Header, Method};

use crate::http::answer::Persistence;

/// A body up to this many bytes is read before the request is handed out (T8).
const READ_BY_TINY_HTTP_BYTES: usize = 1024;
/// What is left of a body may be dropped up to this, in bytes: tiny_http allocates it (T6).
const DROP_MAX_BYTES: usize = 16 << 20;
/// tiny_http leaves the address out for Unix sockets only.
const NO_PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What a request says of its body (RFC 9112, section 6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// Whether some of it may still be on its way.
    pub(super) is_pending: bool,
    /// Its length in bytes, where that was said.
    pub(super) length: Option<usize>,
}

/// Why a request is refused before anybody looks at what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Headers contradict each other or themselves about the body (RFC 9112, section 6.3).
    Framing,
    /// The body is coded in a way that is not understood (RFC 9112, section 6.1).
    Coding,
    /// It names no host, or more than one (RFC 9112, section 3.2).
    Host,
}

/// What the headers say of the connection and the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) framing: Framing,
    pub(super) fault: Option<Fault>,
    pub(super) persistence: Persistence,
}

impl Head {
    fn of(request: &tiny_http::Request) -> Self {
        let (mut connection, mut expects) = (None, false);
        let (mut content_length, mut differs) = (None, false);
        let (mut coding, mut is_known) = (None, true);
        let mut hosts = 0;
        for Header { field, value } in request.headers() {
            let is = |name: &'static str| field.equiv(name);
            // The length sorts out nearly all names before any is compared.
            match field.as_str().len() {
                4 if is("Host") => hosts += 1,
                6 => expects |= is("Expect"),
                // tiny_http looks at the first one only.
                10 if connection.is_none() && is("Connection") => connection = Some(value.as_str()),
                14 if is("Content-Length") => match content_length {
                    None => content_length = Some(value.as_str()),
                    Some(first) => differs |= first != value.as_str(),
                },
                17 if is("Transfer-Encoding") => {
                    is_known &= coding.is_none() && value.as_str().trim().eq_ignore_ascii_case("chunked");
                    coding = Some(value.as_str());
                }
                _ => {}
            }
        }
        let says = |option| connection.is_some_and(|value| contains_ignore_case(value, option));
        // "close" goes first for the connection, but "upgrade" for the body.
        let is_1_0 = *request.http_version() == HTTPVersion(1, 0);
        let is_1_1 = *request.http_version() == HTTPVersion(1, 1);
        let persistence = match () {
            () if says("close") || says("upgrade") => Persistence::Close,
            () if !is_1_0 => Persistence::KeepAlive,
            () if says("keep-alive") => Persistence::KeepAliveAsked,
            () => Persistence::Close,
        };
        let length = request.body_length();
        let is_pending = match length {
            // The bare connection is kept then, and nothing of it is read when the request is dropped.
            _ if says("upgrade") => false,
            Some(length) if length > READ_BY_TINY_HTTP_BYTES => true,
            Some(length) => length > 0 && expects,
            None => coding.is_some(),
        };
        let is_unclear = |first: &str| coding.is_some() || differs || !is_number(first);
        let fault = match () {
            () if content_length.is_some_and(is_unclear) || coding.is_some() && is_1_0 => {
                Some(Fault::Framing)
            }
            () if !is_known => Some(Fault::Coding),
            () if hosts > 1 || hosts < 1 && is_1_1 => Some(Fault::Host),
            () => None,
        };
        Head { framing: Framing { is_pending, length }, fault, persistence }
    }
}

/// Whether it is what RFC 9110, section 8.6, calls a length, and one that a machine can hold: Rust's
/// own reading, and so tiny_http's, takes a plus sign, too.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<usize>().is_ok()
}

/// Whether `option` stands anywhere in `value`, in capitals or not: what tiny_http looks for.
fn contains_ignore_case(value: &str, option: &str) -> bool {
    value.as_bytes().windows(option.len()).any(|part| part.eq_ignore_ascii_case(option.as_bytes()))
}

/// A request. Dropping it unanswered never waits for its body, and costs its connection where tiny_http would
/// (T6).
pub struct Request {
    // `None` only once it was taken, to be answered or refused.
    raw: Option<tiny_http::Request>,
    head: Head,
    peer: SocketAddr,
    // Whether it holds a claim on its connection.
    is_claimed: bool,
    connections: Arc<Connections>,
}

impl Request {
    pub(super) fn new(raw: tiny_http::Request, connections: &Arc<Connections>) -> Self {
        Request {
            head: Head::of(&raw),
            peer: raw.remote_addr().copied().unwrap_or(NO_PEER),
            raw: Some(raw),
            is_claimed: false,
            connections: connections.clone(),
        }
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        self.raw().method()
    }

    /// The request's target, in whichever form it came (RFC 9112, section 3.2).
    pub fn target(&self) -> &str {
        self.raw().url()
    }

    /// Names and values of the headers, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.raw().headers().iter().map(|header| (header.field.as_str().as_str(), header.value.as_str()))
    }

    /// The address of the connection's other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether what is left of its body must not be dropped.
    pub(super) fn is_huge(&self) -> bool {
        self.framing().length.is_some_and(|length| length > DROP_MAX_BYTES)
    }

    pub(super) fn framing(&self) -> Framing {
        self.head.framing
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.head.fault
    }

    /// Whether what follows it on its connection is no request, but perhaps a part of this one.
    pub(super) fn is_last(&self) -> bool {
        self.fault().is_some()
    }

    /// Whether no other request of its connection is with a worker.
    pub(super) fn is_alone(&self) -> bool {
        self.connections.lock().get(&self.peer).is_none_or(|claims| *claims == 1)
    }

    pub(super) fn persistence(&self) -> Persistence {
        self.head.persistence
    }

    /// Reads of its body, and says what came of that.
    pub(super) fn read_body(&mut self, read: impl FnOnce(&mut dyn Read) -> BodyRead) -> BodyRead {
        let raw = self.raw.as_mut().expect("only the last use of a request takes it");
        let outcome = read(raw.as_reader());
        self.head.framing.is_pending = outcome != BodyRead::All;
        outcome
    }

    /// Takes tiny_http's request out, which is to be answered: what is left here is the claim on its
    /// connection, to be kept until that is done.
    pub(super) fn take(&mut self) -> tiny_http::Request {
        self.raw.take().expect("only the last use of a request takes it")
    }

    /// Drops it once its connection is shut down, so that nothing of the body is waited for.
    pub(super) fn release(mut self) {
        if !self.is_huge() {
            // Without its writer, tiny_http answers nothing (T9).
            drop(self.take().into_writer());
        }
    }

    /// Counts one whose connection cannot be freed: its thread and its two descriptors stay.
    pub(super) fn count_abandoned(&self) {
        self.connections.abandoned.inc();
    }

    /// Claims the connection for this request, unless others of it are with a worker.
    pub(super) fn claim(&mut self) -> bool {
        self.is_claimed = self.connections.claim(self.peer, 1);
        self.is_claimed
    }

    /// Notes that the connection was claimed for this request.
    pub(super) fn claimed(mut self) -> Self {
        self.is_claimed = true;
        self
    }

    fn raw(&self) -> &tiny_http::Request {
        self.raw.as_ref().expect("only the last use of a request takes it")
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            if self.head.framing.is_pending {
                self.count_abandoned();
                std::mem::forget(raw);
            } else {
                // Without its writer, tiny_http answers nothing (T9).
                drop(raw.into_writer());
            }
        }
        if self.is_claimed {
            self.connections.release(self.peer);
        }
    }
}

/// What came of reading a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyRead {
    /// All of it was read.
    All,
    /// It is larger than what is read of one.
    TooLarge,
    /// It is not framed as it says.
    Malformed,
    /// The client is gone, or too slow.
    Gone,
}

/// Which connections workers have requests of, and what became of the others.
pub(super) struct Connections {
    // How many requests of each connection are with a worker.
    claims: Mutex<HashMap<SocketAddr, usize>>,
    abandoned: Counter,
}

impl Connections {
    /// No connection yet; those that cannot be freed are counted in `abandoned`.
    pub(super) fn new(abandoned: Counter) -> Arc<Self> {
        Arc::new(Connections { claims: Mutex::default(), abandoned })
    }

    /// Claims a connection for `requests` of its requests, unless it is claimed already.
    pub(super) fn claim(&self, peer: SocketAddr, requests: usize) -> bool {
        match self.lock().entry(peer) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(requests);
                true
            }
        }
    }

    fn release(&self, peer: SocketAddr) {
        if let Entry::Occupied(mut claimed) = self.lock().entry(peer) {
            *claimed.get_mut() -= 1;
            if *claimed.get() == 0 {
                claimed.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        // Each change is one call of the map.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiny_http::TestRequest;

    fn test_request() -> TestRequest {
        TestRequest::new().with_header(Header::from_bytes("Host", "h").expect("ASCII"))
    }

    fn connections() -> Arc<Connections> {
        Connections::new(Counter::default())
    }

    /// A request with these headers. Without a Content-Length among them, tiny_http's double sets one of 0.
    fn request(connections: &Arc<Connections>, headers: &[(&str, &str)]) -> Request {
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let headers = headers.iter().map(|(name, value)| Header::from_bytes(*name, *value).expect("ASCII"));
        let raw = headers.fold(test_request().with_remote_addr(peer), TestRequest::with_header);
        Request::new(raw.into(), connections)
    }

    #[test]
    fn a_body_is_framed_by_what_tiny_http_does_with_the_head() {
        let pending = |length| (Framing { is_pending: true, length }, None);
        let here = |length| (Framing { is_pending: false, length }, None);
        let unclear = |(framing, _)| (framing, Some(Fault::Framing));
        for (case, headers, framing) in [
            ("none", &[][..], here(Some(0))),
            ("over what tiny_http reads", &[("Content-Length", "1025")], pending(Some(1025))),
            ("huge", &[("content-length", "100000000000000")], pending(Some(100_000_000_000_000))),
            ("past the largest number", &[("Content-Length", "18446744073709551616")], unclear(here(None))),
            ("a plus sign", &[("Content-Length", "+5000")], unclear(pending(Some(5000)))),
            ("a minus sign", &[("Content-Length", "-1")], unclear(here(None))),
            ("empty", &[("Content-Length", "")], unclear(here(None))),
            ("the same twice", &[("Content-Length", "0"), ("Content-Length", "0")], here(Some(0))),
            ("two", &[("Content-Length", "0"), ("Content-Length", "6")], unclear(here(Some(0)))),
            (
                "chunked and a length",
                &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
                unclear(pending(None)),
            ),
            (
                "upgrade",
                &[("Connection", "Upgrade"), ("Content-Length", "100000000000000")],
                here(Some(100_000_000_000_000)),
            ),
            (
                "upgrade in a second header, which tiny_http does not see",
                &[("Connection", "x"), ("Connection", "upgrade"), ("Content-Length", "5000")],
                pending(Some(5000)),
            ),
        ] {
            let request = request(&connections(), headers);
            assert_eq!((request.framing(), request.fault()), framing, "{case}");
        }
    }

    #[test]
    fn persistence_is_tiny_http_s_and_not_the_rfc_s() {
        use Persistence::{Close, KeepAlive, KeepAliveAsked};
        for (case, version, connection, persistence) in [
            ("1.1", (1, 1), None, KeepAlive),
            ("1.1 with close", (1, 1), Some("Close"), Close),
            ("1.1 with close among others", (1, 1), Some("keep-alive, close"), Close),
            ("1.1 with a word that holds close", (1, 1), Some("x-closed"), Close),
            ("1.1 with upgrade", (1, 1), Some("upgrade"), Close),
            ("1.0", (1, 0), None, Close),
            ("1.0 with keep-alive", (1, 0), Some("Keep-Alive"), KeepAliveAsked),
            ("1.0 with something else", (1, 0), Some("x"), Close),
        ] {
            let mut raw = test_request().with_http_version(version.into());
            if let Some(value) = connection {
                raw = raw.with_header(Header::from_bytes("Connection", value).expect("ASCII"));
            }
            assert_eq!(Request::new(raw.into(), &connections()).persistence(), persistence, "{case}");
        }
    }

    /// A panic in the handler dropped requests with bodies: tiny_http allocated the declared length, and the
    /// process aborted.
    #[test]
    fn a_request_that_is_dropped_with_a_huge_body_is_abandoned_and_counted() {
        let abandoned = Counter::default();
        let connections = Connections::new(abandoned.clone());
        for length in ["100000000000000", "18446744073709551615"] {
            let dropped = std::panic::catch_unwind(|| {
                let _request = request(&connections, &[("Content-Length", length)]);
                panic!("on purpose");
            });
            assert!(dropped.is_err());
        }
        drop(request(&connections, &[]));
        assert_eq!(abandoned.get(), 2, "and only where there is a body");
    }

    #[test]
    fn a_claim_ends_with_the_last_of_its_requests() {
        let connections = connections();
        let mut first = request(&connections, &[]);
        assert!(first.claim());
        let mut second = request(&connections, &[]);
        assert!(!second.claim(), "others of the connection are with a worker");
        drop(second);
        assert!(!request(&connections, &[]).claim(), "dropping what has no claim ends none");
        drop(first.take());
        assert!(!request(&connections, &[]).claim(), "its answer may still be on its way");
        drop(first);
        assert!(request(&connections, &[]).claim());
    }
}
